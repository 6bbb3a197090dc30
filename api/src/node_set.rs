//! `NodeSet`: a tenant's nodes, once and not once per Route.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The one `NodeSet` of a tenant's namespace has this name.
pub const NODE_SET: &str = "nodes";

/// The nodes of a tenant that may receive traffic.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "NodeSet",
    plural = "nodesets",
    namespaced,
    status = "NodeSetStatus",
    shortname = "flnodes",
    category = "fairlead",
    printcolumn(name = "Refused", type_ = "string", json_path = ".status.refused[0]"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeSetSpec {
    /// The agent's hash of what it pushed, hexadecimal; opaque to the hub.
    #[schemars(length(max = 64))]
    pub content_hash: String,
    /// Sorted by name.
    #[schemars(length(max = 5000))]
    pub nodes: Vec<Node>,
}

/// What the hub made of it.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeSetStatus {
    /// Addresses that are this tenant's: no other tenant's Routes lead there.
    // Written also where it is empty: a merge patch takes away only what it names.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Nodes that are left out, with the reason; the first hundred.
    #[serde(default)]
    pub refused: Vec<String>,
}

/// One node.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// `metadata.name` in the tenant cluster.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// IP literals, at most one of each family.
    #[schemars(length(max = 2), inner(length(max = 45)))]
    pub addresses: Vec<String>,
}
