//! `AddressPool`: addresses that may be given out.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Addresses that the hub's Envoys bind, and who may share one.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "AddressPool",
    plural = "addresspools",
    status = "AddressPoolStatus",
    shortname = "pool",
    shortname = "pools",
    category = "fairlead",
    printcolumn(name = "Sharing", type_ = "string", json_path = ".spec.sharing"),
    printcolumn(name = "Addresses", type_ = "integer", json_path = ".status.addresses"),
    printcolumn(name = "Used", type_ = "integer", json_path = ".status.used"),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.free"),
    printcolumn(name = "Claims", type_ = "integer", json_path = ".status.claims"),
    printcolumn(name = "Problem", type_ = "string", json_path = ".status.problem"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolSpec {
    /// Addresses (`10.0.0.1`), ranges (`10.0.0.1-10.0.0.9`) and CIDRs (`10.0.0.0/28`, every address
    /// of it), IPv4 or IPv6, in the order in which they are given out.
    #[schemars(length(min = 1, max = 256), inner(length(max = 91)))]
    pub addresses: Vec<String>,
    /// Who may hold ports on one address at the same time.
    #[serde(default)]
    pub sharing: Sharing,
    /// Ports that are never given out, for example those of the hub's own services.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<i32>", length(max = 1024), inner(range(min = 1, max = 65535)))]
    pub reserved_ports: Vec<u16>,
    /// Proxies in front of the pool's addresses that may be believed: so many of the last entries of
    /// `X-Forwarded-For` were added by them. 0, unless given: the client is who connects, and what it
    /// says of itself is not believed.
    #[serde(default)]
    #[schemars(with = "i32", range(min = 0, max = 16))]
    pub trusted_hops: u32,
}

/// Who may hold ports on one address at the same time.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sharing {
    /// One Route has the address for itself.
    Exclusive,
    /// Routes of one tenant share it.
    #[default]
    Tenant,
    /// Any tenant's Routes share it, by the platform's consent.
    Any,
}

/// How full the pool is.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolStatus {
    /// Addresses in the pool.
    #[serde(default)]
    #[schemars(with = "i64")]
    pub addresses: u64,
    /// Addresses with at least one claim.
    #[serde(default)]
    #[schemars(with = "i64")]
    pub used: u64,
    /// Addresses without a claim.
    #[serde(default)]
    #[schemars(with = "i64")]
    pub free: u64,
    /// Claims on the pool.
    #[serde(default)]
    #[schemars(with = "i64")]
    pub claims: u64,
    /// What is wrong with `spec`, naming the entry; empty when nothing is.
    #[serde(default)]
    pub problem: String,
}
