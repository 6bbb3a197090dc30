//! `AddressPool`: addresses that may be given out.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Addresses that the hub's Envoys serve, and who may share one.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "AddressPool",
    plural = "addresspools",
    status = "AddressPoolStatus",
    validation = Rule::new("self.spec.exposure == 'Direct' || (self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 50)")
        .message("metadata.name must be a DNS label of at most 50 characters where spec.exposure is Service: Services are named by it"),
    shortname = "pool",
    shortname = "pools",
    category = "fairlead",
    printcolumn(name = "Sharing", type_ = "string", json_path = ".spec.sharing"),
    printcolumn(name = "Exposure", type_ = "string", json_path = ".spec.exposure"),
    printcolumn(name = "Addresses", type_ = "integer", json_path = ".status.addresses"),
    printcolumn(name = "Used", type_ = "integer", json_path = ".status.used"),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.free"),
    printcolumn(name = "Claims", type_ = "integer", json_path = ".status.claims"),
    printcolumn(name = "Problem", type_ = "string", json_path = ".status.problem"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.exposure == oldSelf.exposure").message("spec.exposure is immutable: make another pool, and drain this one"),
    validation = Rule::new("self.exposure == 'Service' || self.addresses.size() > 0")
        .message("spec.addresses: at least one is needed where exposure is Direct"),
    validation = Rule::new("self.exposure == 'Direct' || self.addresses.size() == 0")
        .message("spec.addresses: must be empty where exposure is Service; they come from the hub's own load balancer")
)]
pub struct AddressPoolSpec {
    /// Addresses (`10.0.0.1`), ranges (`10.0.0.1-10.0.0.9`) and CIDRs (`10.0.0.0/28`, every address
    /// of it), IPv4 or IPv6, in the order in which they are given out. None where `exposure` is
    /// `Service`.
    #[serde(default)]
    #[schemars(length(max = 256), inner(length(max = 91)))]
    pub addresses: Vec<String>,
    /// Who may hold ports on one address at the same time.
    #[serde(default)]
    pub sharing: Sharing,
    /// Which of several addresses that fit is taken.
    #[serde(default)]
    pub packing: Packing,
    /// How many ports of an address are given out at most; none given: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 131_072))]
    pub max_ports_per_address: Option<u32>,
    /// How many Routes share an address at most; none given: as many as there are ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 131_072))]
    pub max_routes_per_address: Option<u32>,
    /// Where the port of a listener that takes any is taken from; 20000 to 29999 unless given.
    #[serde(default = "any_ports")]
    pub any_ports: PortRange,
    /// Ports that are never given out, for example those of the hub's own services.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<i32>", length(max = 1024), inner(range(min = 1, max = 65535)))]
    pub reserved_ports: Vec<u16>,
    /// For so many seconds after its last use a port goes to nobody but the tenant that had it: clients
    /// that know the old address do not reach somebody else. Counted anew when the manager restarts.
    #[serde(default)]
    #[schemars(with = "i32", range(min = 0, max = 604_800))]
    pub hold_seconds: u32,
    /// Nothing new is given out; what is held stays until it is given back.
    #[serde(default)]
    pub draining: bool,
    /// How clients reach the addresses.
    #[serde(default)]
    pub exposure: Exposure,
    /// Where `exposure` is `Service`: what the hub's Services are like.
    #[serde(default)]
    pub service: ServiceTemplate,
    /// Balancers in front of the addresses that speak the PROXY protocol, as CIDRs. Where there are
    /// any, only they may connect by TCP, and the client is who they say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(max = 43), regex(pattern = "^[0-9a-fA-F.:]+/[0-9]{1,3}$"))
    )]
    pub proxy_protocol_from: Vec<String>,
    /// Proxies in front of the pool's addresses that may be believed: so many of the last entries of
    /// `X-Forwarded-For` were added by them. 0, unless given: the client is who connects, and what it
    /// says of itself is not believed.
    #[serde(default)]
    #[schemars(with = "i32", range(min = 0, max = 16))]
    pub trusted_hops: u32,
}

impl Default for AddressPoolSpec {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            sharing: Sharing::default(),
            packing: Packing::default(),
            max_ports_per_address: None,
            max_routes_per_address: None,
            any_ports: any_ports(),
            reserved_ports: Vec::new(),
            hold_seconds: 0,
            draining: false,
            exposure: Exposure::default(),
            service: ServiceTemplate::default(),
            proxy_protocol_from: Vec::new(),
            trusted_hops: 0,
        }
    }
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

/// The finalizer of a pool: it stays until its last port is given back, since what it says of its addresses
/// holds for what is served there.
pub const FINALIZER: &str = "fairlead.dev/claims";

/// Which of several addresses that fit is taken.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Packing {
    /// The first in the order of `spec.addresses`: an address is filled before another is opened.
    #[default]
    Fill,
    /// The one with the fewest Routes, the first of these.
    Spread,
}

/// How clients reach a pool's addresses.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Exposure {
    /// Envoy binds the addresses on the hub's nodes, to which they must lead.
    #[default]
    Direct,
    /// One Service of type `LoadBalancer` on the hub for each address, which comes from the hub's own
    /// provider; Envoy listens on target ports of the nodes.
    Service,
}

/// Ports from `first` to `last`.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    #[schemars(with = "i32", range(min = 1, max = 65535))]
    pub first: u16,
    /// The highest.
    #[schemars(with = "i32", range(min = 1, max = 65535))]
    pub last: u16,
}

fn any_ports() -> PortRange {
    PortRange { first: 20_000, last: 29_999 }
}

/// The hub's Services of a pool.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceTemplate {
    /// Their `spec.loadBalancerClass`; none given: the hub's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub load_balancer_class: Option<String>,
    /// Their annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// How many addresses there are at most; 4 unless given.
    #[schemars(with = "i32", range(min = 1, max = 256))]
    pub max_addresses: u32,
    /// The ports of the hub's nodes at which Envoy listens; 12000 to 19999 unless given. They must not
    /// meet the hub's node ports, nor those of another pool.
    pub target_ports: PortRange,
}

impl Default for ServiceTemplate {
    fn default() -> Self {
        Self {
            load_balancer_class: None,
            annotations: BTreeMap::new(),
            max_addresses: 4,
            target_ports: PortRange { first: 12_000, last: 19_999 },
        }
    }
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
    /// Ports that are given out.
    #[serde(default)]
    #[schemars(with = "i64")]
    pub claims: u64,
    /// What is wrong, naming the field; empty when nothing is.
    #[serde(default)]
    pub problem: String,
}
