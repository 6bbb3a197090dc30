//! `Tenant`: a workload cluster and what it may use.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A workload cluster. Its objects live in the namespace `tenant-<name>`.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "Tenant",
    plural = "tenants",
    status = "TenantStatus",
    shortname = "flt",
    category = "fairlead",
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 56")
        .message("metadata.name must be an RFC 1123 label of at most 56 characters"),
    printcolumn(
        name = "Connected",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Connected\")].status"
    ),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes"),
    printcolumn(name = "Routes", type_ = "integer", json_path = ".status.routes"),
    printcolumn(name = "Agent", type_ = "string", json_path = ".status.agentVersion"),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".status.clusterVersion"),
    printcolumn(name = "Last seen", type_ = "date", json_path = ".status.lastSeen"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct TenantSpec {
    /// The `AddressPools` that it may use, the first that fits being taken.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub pools: Vec<String>,
    /// Its nodes' addresses must lie in one of these. None given: any address that is not
    /// refused always (loopback, link-local, multicast, unspecified). One that cannot be read allows
    /// nothing.
    #[serde(default, rename = "nodeCIDRs")]
    #[schemars(
        length(max = 64),
        inner(length(max = 43), regex(pattern = "^[0-9a-fA-F.:]+/[0-9]{1,3}$"))
    )]
    pub node_cidrs: Vec<String>,
    /// Bounds on what it may hold.
    #[serde(default)]
    pub quotas: Quotas,
}

/// Bounds on what a tenant may hold.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Quotas {
    /// How many Routes; 10,000 unless given.
    #[schemars(with = "i32", range(min = 0))]
    pub routes: u32,
}

impl Default for Quotas {
    fn default() -> Self {
        Self { routes: 10_000 }
    }
}

/// What the hub sees of the tenant.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TenantStatus {
    /// `Connected`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// When its agent was last heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Time>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// Version of the tenant's Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_version: Option<String>,
    /// Nodes in its `NodeSet`.
    #[serde(default)]
    #[schemars(with = "i32")]
    pub nodes: u32,
    /// Routes in its namespace.
    #[serde(default)]
    #[schemars(with = "i32")]
    pub routes: u32,
}
