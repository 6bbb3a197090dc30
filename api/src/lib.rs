//! The custom resources of Fairlead's hub (group `fairlead.dev/v1alpha1`), the names that are
//! parsed once into types, and the condition types and reasons that a person reads.
//!
//! Invariants: a value of a name type is valid; a name that is rendered from several parts can be
//! read back without ambiguity. Absent on purpose: any I/O and any decision.

// The derive of kube names one attribute twice.
#![allow(clippy::duplicated_attributes)]

pub mod agent;
pub mod claim;
pub mod condition;
pub mod few;
pub mod http;
pub mod names;
pub mod node_set;
pub mod pool;
pub mod rare;
pub mod route;
pub mod tenant;
mod uid;

pub use agent::{Agent, AgentSpec, AgentStatus, JoinToken, JoinTokenSpec, JoinTokenStatus};
pub use claim::{AddressClaim, AddressClaimSpec, HostnameClaim, HostnameClaimSpec};
pub use names::{AgentId, NameError, RouteId, RouteName, SecretName, TenantId};
pub use node_set::{Node, NodeSet, NodeSetSpec, NodeSetStatus};
pub use pool::{
    AddressPool, AddressPoolSpec, AddressPoolStatus, Exposure, Packing, PortRange, Sharing,
};
pub use route::{Route, RouteSpec, RouteStatus};
pub use tenant::{Tenant, TenantSpec, TenantStatus};
pub use uid::Uid;

/// The API group of every custom resource here.
pub const GROUP: &str = "fairlead.dev";
/// `spec.loadBalancerClass` of the Services that Fairlead publishes.
pub const LOAD_BALANCER_CLASS: &str = "fairlead.dev/fairlead";

/// `spec.controller` of the `IngressClass` whose Ingresses Fairlead publishes.
pub const INGRESS_CONTROLLER: &str = "fairlead.dev/ingress";

/// The `CustomResourceDefinition`s, in the order in which `crdgen` writes them: (file name, definition).
pub fn definitions() -> Vec<(
    &'static str,
    k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
)> {
    use kube::CustomResourceExt;
    vec![
        ("addressclaims.yaml", AddressClaim::crd()),
        ("addresspools.yaml", AddressPool::crd()),
        ("agents.yaml", Agent::crd()),
        ("hostnameclaims.yaml", HostnameClaim::crd()),
        ("jointokens.yaml", JoinToken::crd()),
        ("nodesets.yaml", NodeSet::crd()),
        ("routes.yaml", Route::crd()),
        ("tenants.yaml", Tenant::crd()),
    ]
}

/// The definitions as (file name, YAML): what `deploy/crds` must hold.
pub fn rendered() -> Result<Vec<(&'static str, String)>, serde_saphyr::ser::Error> {
    definitions()
        .into_iter()
        .map(|(file, crd)| {
            let body = serde_saphyr::to_string(&crd)?;
            Ok((file, format!("# Written by `cargo crdgen`; do not edit.\n{body}")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn deploy_crds_is_what_the_types_say() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds");
        for (file, text) in super::rendered().unwrap() {
            let stored = std::fs::read_to_string(format!("{folder}/{file}")).unwrap_or_default();
            assert!(stored == text, "deploy/crds/{file} is stale: run `cargo crdgen`");
        }
    }
}
