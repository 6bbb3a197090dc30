//! The shadows of a Service: a `NodePort` Service beside it, where it has no node ports of its own; and one
//! for each slot, where a client keeps to one pod.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::runtime::reflector::{ObjectRef, Store};
use sha2::{Digest, Sha256};

use crate::slots;

/// The label of a shadow: the name of its Service.
pub(crate) const SHADOW_OF: &str = "fairlead.dev/shadow-of";

/// The label of a shadow that is a slot: its number.
pub(crate) const SLOT: &str = "fairlead.dev/slot";

/// The name of the Service that this one is a shadow of.
pub(crate) fn shadow_of(service: &Service) -> Option<&String> {
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
    let mut hash = String::new();
    for byte in &Sha256::digest(service)[..4] {
        // Writing to a String cannot fail.
        let _ = write!(hash, "{byte:02x}");
    }
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
    services: &'a Store<Service>,
    namespace: &'a str,
    name: &'a str,
) -> impl Iterator<Item = Arc<Service>> + 'a {
    let slot = move |number| {
        let reference = ObjectRef::new(&slot_name(name, number)).within(namespace);
        services.get(&reference).filter(|found| shadow_of(found).is_some_and(|of| of == name))
    };
    (0..slots::MAX).map_while(slot)
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
    let (Some(there), Some(wanted)) = (&there.spec, &wanted.spec) else { return false };
    let ports = |spec: &ServiceSpec| -> Vec<ServicePort> {
        let plain = |port: &ServicePort| ServicePort { node_port: None, ..port.clone() };
        spec.ports.iter().flatten().map(plain).collect()
    };
    // What was left out is filled in by the apiserver.
    let same_ports = ports(there).len() == ports(wanted).len()
        && ports(there).iter().zip(ports(wanted)).all(|(there, wanted)| {
            (there.port, &there.name, &there.protocol)
                == (wanted.port, &wanted.name, &wanted.protocol)
                && (wanted.target_port.is_none() || there.target_port == wanted.target_port)
        });
    same_ports
        && there.external_traffic_policy == wanted.external_traffic_policy
        && there.selector.as_ref().is_none_or(BTreeMap::is_empty)
            == wanted.selector.as_ref().is_none_or(BTreeMap::is_empty)
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
    fn names_are_labels_and_differ() {
        let long = "a".repeat(63);
        let (one, two) = (name(&long), name(&format!("{}b", "a".repeat(62))));
        assert_eq!((one.len(), two.len()), (63, 63));
        assert_ne!(one, two);
        assert!(name("web").starts_with("web-fl-"));
    }
}
