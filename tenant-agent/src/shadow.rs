//! The shadows of a Service: a `NodePort` Service beside it, where it has no node ports of its own; and one
//! for each slot, where a client keeps to one pod.

use std::collections::BTreeMap;

use fairlead_process::token::sha256;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::packed::Objects;
use crate::slots;

/// The label of a shadow: the name of its Service.
pub(crate) const SHADOW_OF: &str = "fairlead.dev/shadow-of";

/// The label of a shadow that is a slot: its number.
pub(crate) const SLOT: &str = "fairlead.dev/slot";

/// The name of the Service that this one is a shadow of: by its label, or by its owner if somebody took that away.
pub(crate) fn shadow_of(service: &Service) -> Option<&String> {
    label(service).or_else(|| {
        let named = service.metadata.name.as_deref()?;
        let mut owners = service.metadata.owner_references.iter().flatten();
        let is_named = |owner: &str| {
            named == name(owner) || (0..slots::MAX).any(|slot| named == slot_name(owner, slot))
        };
        let owner = owners.find(|owner| owner.kind == "Service" && is_named(&owner.name))?;
        Some(&owner.name)
    })
}

fn label(service: &Service) -> Option<&String> {
    service.metadata.labels.as_ref()?.get(SHADOW_OF)
}

/// The name of a Service's shadow: a DNS label that no other Service's shadow has.
pub(crate) fn name(service: &str) -> String {
    named(service, "")
}

/// The name of the shadow of a Service's slot.
pub(crate) fn slot_name(service: &str, slot: usize) -> String {
    named(service, &format!("-{slot}"))
}

fn named(service: &str, end: &str) -> String {
    let hash = &sha256(service.as_bytes())[..8];
    let head: String = service.chars().take(63 - 4 - hash.len() - end.len()).collect();
    format!("{head}-fl-{hash}{end}")
}

/// The shadow of a slot of a Service. Who is behind it, its slices say; traffic that reaches a node stays
/// on it, whatever the Service says.
pub(crate) fn slot(service: &Service, slot: usize) -> Service {
    let mut made = shadow(service);
    made.metadata.name =
        Some(slot_name(service.metadata.name.as_deref().unwrap_or_default(), slot));
    made.metadata.labels.get_or_insert_default().insert(SLOT.to_owned(), slot.to_string());
    if let Some(spec) = &mut made.spec {
        spec.selector = None;
        spec.external_traffic_policy = Some("Local".into());
    }
    made
}

/// The slots of a Service that there are, in order.
pub(crate) fn slots<'a>(
    services: &'a Objects<Service>,
    namespace: &'a str,
    name: &'a str,
) -> impl Iterator<Item = Service> + 'a {
    let slot = move |number| {
        let key = (namespace.to_owned(), slot_name(name, number));
        services.get(&key).filter(|found| shadow_of(found).is_some_and(|of| of == name))
    };
    // One may be missing: somebody deleted it, or its own deletion was the last thing done.
    (0..slots::MAX).filter_map(slot)
}

/// The node port that a shadow has for a port.
pub(crate) fn node_port(shadow: &Service, port: i32, protocol: &str) -> Option<i32> {
    let mut ports = shadow.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let same = |one: &&ServicePort| {
        one.port == port && one.protocol.as_deref().unwrap_or("TCP") == protocol
    };
    ports.find(same)?.node_port.filter(|port| *port > 0)
}

/// Whether a shadow is already as it shall be, but for what the apiserver chose.
pub(crate) fn is_as_wanted(there: &Service, wanted: &Service) -> bool {
    let owner = |one: &Service| {
        let owners = one.metadata.owner_references.as_ref();
        owners.and_then(|owners| owners.first()).map(|owner| owner.uid.clone())
    };
    let gone = there.metadata.deletion_timestamp.is_some();
    let (Some(now), Some(spec)) = (&there.spec, &wanted.spec) else { return false };
    // What was left out is filled in by the apiserver.
    let left_out = |wanted: &Option<_>, now: &Option<_>| wanted.is_none() || wanted == now;
    let same_port = |(now, wanted): (&ServicePort, &ServicePort)| {
        (now.port, &now.name, &now.protocol) == (wanted.port, &wanted.name, &wanted.protocol)
            && (wanted.target_port.is_none() || now.target_port == wanted.target_port)
            && now.app_protocol == wanted.app_protocol
    };
    let ports = |spec: &ServiceSpec| spec.ports.clone().unwrap_or_default();
    let some = |selector: &Option<BTreeMap<_, _>>| selector.clone().unwrap_or_default();
    !gone
        && owner(there) == owner(wanted)
        && label(there) == label(wanted)
        && ports(now).len() == ports(spec).len()
        && ports(now).iter().zip(&ports(spec)).all(same_port)
        && some(&now.selector) == some(&spec.selector)
        && left_out(&spec.external_traffic_policy, &now.external_traffic_policy)
        && left_out(&spec.ip_family_policy, &now.ip_family_policy)
        && (spec.ip_families.is_none() || spec.ip_families == now.ip_families)
        && now.publish_not_ready_addresses.unwrap_or(false)
            == spec.publish_not_ready_addresses.unwrap_or(false)
}

/// The shadow that a Service needs. The apiserver chooses the node ports.
pub(crate) fn shadow(service: &Service) -> Service {
    let spec = service.spec.clone().unwrap_or_default();
    let owner_name = service.metadata.name.clone().unwrap_or_default();
    let port = |port: ServicePort| ServicePort {
        node_port: None,
        app_protocol: port.app_protocol,
        name: port.name,
        port: port.port,
        protocol: port.protocol,
        target_port: port.target_port,
    };
    let supported = |port: &ServicePort| port.protocol.as_deref() != Some("SCTP");
    Service {
        metadata: ObjectMeta {
            name: Some(name(&owner_name)),
            namespace: service.metadata.namespace.clone(),
            labels: Some(BTreeMap::from([(SHADOW_OF.to_owned(), owner_name.clone())])),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Service".into(),
                name: owner_name,
                uid: service.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            type_: Some("NodePort".into()),
            selector: spec.selector,
            ports: Some(spec.ports.into_iter().flatten().filter(supported).map(port).collect()),
            external_traffic_policy: spec.external_traffic_policy,
            publish_not_ready_addresses: spec.publish_not_ready_addresses,
            ip_families: spec.ip_families,
            ip_family_policy: spec.ip_family_policy,
            // Affinity by client address would see one client: Envoy.
            session_affinity: Some("None".into()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_applied_again_and_what_did_not_is_not() {
        let service = |selector: &str| -> Service {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "web", "uid": "u1"},
                "spec": {"selector": {"app": selector}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]},
            }))
            .unwrap()
        };
        // As the apiserver has it.
        let mut there = shadow(&service("v1"));
        let spec = there.spec.as_mut().unwrap();
        spec.external_traffic_policy = Some("Cluster".into());
        spec.ip_families = Some(vec!["IPv4".into()]);
        spec.ports.as_mut().unwrap()[0].node_port = Some(30_000);
        assert!(is_as_wanted(&there, &shadow(&service("v1"))));
        assert!(!is_as_wanted(&there, &shadow(&service("v2"))), "another selector");
        let mut anew = service("v1");
        anew.metadata.uid = Some("u2".into());
        assert!(!is_as_wanted(&there, &shadow(&anew)), "the Service was made anew");
        assert!(!is_as_wanted(&there, &slot(&service("v1"), 0)));
        there.metadata.labels = None;
        assert!(!is_as_wanted(&there, &shadow(&service("v1"))), "its label was taken away");
    }

    #[test]
    fn a_shadow_without_its_label_is_known_by_its_owner() {
        let service: Service =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "web", "uid": "u1"}}))
                .unwrap();
        for mut made in [shadow(&service), slot(&service, 3)] {
            made.metadata.labels = None;
            assert_eq!(shadow_of(&made), Some(&"web".to_owned()));
            made.metadata.name = Some("another".into());
            assert_eq!(shadow_of(&made), None, "it is only owned");
        }
    }

    #[test]
    fn names_are_labels_and_differ() {
        let long = "a".repeat(63);
        let (one, two) = (name(&long), name(&format!("{}b", "a".repeat(62))));
        assert_eq!((one.len(), two.len()), (63, 63));
        assert_ne!(one, two);
        assert!(name("web").starts_with("web-fl-"));
    }
}
