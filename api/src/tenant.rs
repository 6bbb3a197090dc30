//! `Tenant`: a workload cluster and what it may use.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pool::PortRange;

/// A workload cluster. Its objects live in the namespace `tenant-<name>`.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
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
    printcolumn(name = "Certificate", type_ = "date", json_path = ".status.certificateNotAfter", priority = 1),
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
    /// Host names that it may publish: `shop.example.com` is that name alone, `*.example.com` every name
    /// below it and the wildcard itself. None given: any name that no other tenant holds.
    #[serde(default)]
    #[schemars(
        length(max = 256),
        inner(
            length(max = 253),
            regex(
                pattern = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
            )
        )
    )]
    pub domains: Vec<String>,
    /// Ports of its nodes that traffic may be sent to; its cluster's `--service-node-port-range`.
    #[serde(default = "node_ports")]
    pub node_ports: PortRange,
    /// SPIFFE ids of an existing trust domain that are this tenant's agents, too. Their certificates are
    /// verified with the CAs in the Secret `fairlead-external-ca`.
    #[serde(default, rename = "spiffeIDs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(max = 2048), regex(pattern = "^spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+$"))
    )]
    pub spiffe_ids: Vec<String>,
    /// Bounds on what it may hold.
    #[serde(default)]
    pub quotas: Quotas,
}

impl Default for TenantSpec {
    fn default() -> Self {
        Self {
            pools: Vec::new(),
            node_cidrs: Vec::new(),
            domains: Vec::new(),
            node_ports: node_ports(),
            spiffe_ids: Vec::new(),
            quotas: Quotas::default(),
        }
    }
}

/// What Kubernetes gives out unless told otherwise.
fn node_ports() -> PortRange {
    PortRange { first: 30_000, last: 32_767 }
}

/// Bounds on what a tenant may hold. What is beyond is refused with a reason; what is held already stays.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Quotas {
    /// How many Routes; 10,000 unless given.
    #[schemars(with = "i32", range(min = 0))]
    pub routes: u32,
    /// How many host names; 10,000 unless given.
    #[schemars(with = "i32", range(min = 0))]
    pub hostnames: u32,
    /// How many addresses its Routes may be spread over; 256 unless given.
    #[schemars(with = "i32", range(min = 0))]
    pub addresses: u32,
    /// How many ports of addresses; 20,000 unless given.
    #[schemars(with = "i32", range(min = 0))]
    pub ports: u32,
    /// How many endpoints (node and node port) of all its Routes together; 200,000 unless given.
    #[schemars(with = "i32", range(min = 0))]
    pub endpoints: u32,
    /// How many changes a second its agent may push; 500 unless given. Four times as many may come at
    /// once, after a pause. What comes faster waits.
    #[schemars(with = "i32", range(min = 1, max = 100_000))]
    pub changes_per_second: u32,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            routes: 10_000,
            hostnames: 10_000,
            addresses: 256,
            ports: 20_000,
            endpoints: 200_000,
            changes_per_second: 500,
        }
    }
}

/// What the hub sees of the tenant.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TenantStatus {
    /// `Connected`, `ClockSkewed`.
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
    /// When the certificate of the agent that is connected ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_not_after: Option<Time>,
    /// Nodes in its `NodeSet`.
    #[serde(default)]
    #[schemars(with = "i32")]
    pub nodes: u32,
    /// Routes in its namespace.
    #[serde(default)]
    #[schemars(with = "i32")]
    pub routes: u32,
}
