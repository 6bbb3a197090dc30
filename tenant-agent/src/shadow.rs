//! The shadow of a Service: a `NodePort` Service beside it, where it has no node ports of its own.

use std::collections::BTreeMap;
use std::fmt::Write;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use sha2::{Digest, Sha256};

/// The label of a shadow: the name of its Service.
pub(crate) const SHADOW_OF: &str = "fairlead.dev/shadow-of";

/// The name of the Service that this one is a shadow of.
pub(crate) fn shadow_of(service: &Service) -> Option<&String> {
    service.metadata.labels.as_ref()?.get(SHADOW_OF)
}

/// The name of a Service's shadow: a DNS label that no other Service's shadow has.
pub(crate) fn name(service: &str) -> String {
    let mut hash = String::new();
    for byte in &Sha256::digest(service)[..4] {
        // Writing to a String cannot fail.
        let _ = write!(hash, "{byte:02x}");
    }
    let head: String = service.chars().take(63 - 4 - hash.len()).collect();
    format!("{head}-fl-{hash}")
}

/// The shadow that a Service needs. The apiserver chooses the node ports. `local`: traffic that reaches
/// a node stays on it, whatever the Service says.
pub(crate) fn shadow(service: &Service, local: bool) -> Service {
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
            external_traffic_policy: if local {
                Some("Local".into())
            } else {
                spec.external_traffic_policy
            },
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
