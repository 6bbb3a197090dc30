//! `Route`: how one source object of a tenant is published.

use std::fmt;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::http::{Host, Unresolved, Upstream, is_default};

/// One source object's wish, in the Gateway API's words. Written by the manager for the tenant's
/// agent; nobody edits it by hand.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "Route",
    plural = "routes",
    namespaced,
    status = "RouteStatus",
    shortname = "flr",
    category = "fairlead",
    printcolumn(name = "Source", type_ = "string", json_path = ".status.display.source"),
    printcolumn(name = "Hostnames", type_ = "string", json_path = ".status.display.hostnames"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.display.address"),
    printcolumn(name = "Ports", type_ = "string", json_path = ".status.display.ports"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status"
    ),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.display.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.rules.all(r, self.listeners.exists(l, l.name == r.listener))")
        .message("spec.rules[].listener must name one of spec.listeners")
)]
pub struct RouteSpec {
    /// The tenant's object that this Route publishes.
    #[x_kube(validation = Rule::new(
        "self.kind == oldSelf.kind && self.__namespace__ == oldSelf.__namespace__ && self.name == oldSelf.name"
    ).message("spec.source is immutable"))]
    pub source: Source,
    /// The agent's hash of what it pushed, hexadecimal; opaque to the hub.
    #[schemars(length(min = 1, max = 64))]
    pub content_hash: String,
    /// What was asked of the allocator; nothing asked is the usual case.
    #[serde(default, skip_serializing_if = "AddressRequest::is_empty")]
    pub address: AddressRequest,
    /// Where clients connect.
    #[schemars(length(min = 1, max = 64))]
    pub listeners: Vec<Listener>,
    /// Layer 4: which listener leads to which backend.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub rules: Vec<RouteRule>,
    /// The tenant's node ports.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub backends: Vec<Backend>,
    /// Layer 7: what each host name leads to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub hosts: Vec<Host>,
    /// Layer 4: who is let in, and for how long.
    #[serde(default, skip_serializing_if = "is_default")]
    pub clients: Clients,
    /// What the source names and the agent did not find.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub unresolved: Vec<Unresolved>,
}

impl RouteSpec {
    /// The wish of a source that wants nothing yet.
    pub fn new(source: Source, content_hash: impl Into<String>) -> Self {
        Self {
            source,
            content_hash: content_hash.into(),
            address: AddressRequest::default(),
            listeners: Vec::new(),
            rules: Vec::new(),
            backends: Vec::new(),
            hosts: Vec::new(),
            clients: Clients::default(),
            unresolved: Vec::new(),
        }
    }
}

/// The object in the tenant cluster.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Its kind.
    #[schemars(extend("maxLength" = 32))]
    pub kind: SourceKind,
    /// Its namespace in the tenant cluster.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its `metadata.uid`.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Its `metadata.creationTimestamp`, in seconds since 1970; 0: not known.
    #[serde(default)]
    pub created: i64,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
    }
}

/// What can be published.
#[derive(
    Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
pub enum SourceKind {
    /// A core/v1 Service of type `LoadBalancer`.
    Service,
    /// A networking.k8s.io/v1 Ingress.
    Ingress,
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service => f.write_str("Service"),
            Self::Ingress => f.write_str("Ingress"),
        }
    }
}

/// What a tenant may ask of the allocator.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct AddressRequest {
    /// A pool by name, instead of the first of the tenant's pools that fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub pool: Option<String>,
    /// These addresses, at most one of each family: that or an error.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2), inner(length(max = 45)))]
    pub ips: Vec<String>,
    /// Routes of the tenant that name the same group belong on one address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub group: Option<String>,
    /// The address is shared with nobody, whatever the pool says.
    #[serde(default, skip_serializing_if = "is_default")]
    pub alone: bool,
    /// An address of each of these; empty: one, of whichever family the pool has first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub families: Vec<IpFamily>,
    /// The second family only where the pools have addresses of it (`PreferDualStack`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub prefer_dual_stack: bool,
}

/// A family of addresses, in Kubernetes' words.
#[derive(
    Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
pub enum IpFamily {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl IpFamily {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Whether an address will do where this family is wanted; `None`: any one does.
    pub fn fits(wanted: Option<Self>, address: IpAddr) -> bool {
        wanted.is_none_or(|wanted| wanted == Self::of(address))
    }

    /// The family of its name in Kubernetes; `None`: there is none of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::V4, Self::V6].into_iter().find(|family| family.as_str() == name)
    }

    /// Its name in Kubernetes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Layer 4: who is let in, and for how long.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub struct Clients {
    /// Nobody is let in: what keeps some out cannot be read. The address stays.
    #[serde(skip_serializing_if = "is_default")]
    pub closed: bool,
    /// CIDRs of the clients that are let in, by their true addresses; empty: everybody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 43)))]
    pub source_ranges: Vec<String>,
    /// A connection, or UDP session, on which nothing moves for so long is closed, in milliseconds; 0:
    /// never. An hour for TCP and a minute for UDP unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 0))]
    pub idle_millis: Option<u32>,
    /// A client's address decides where it is sent, by a hash that survives changes of nodes and pods.
    #[serde(skip_serializing_if = "is_default")]
    pub source_affinity: bool,
}

impl AddressRequest {
    /// Nothing was asked.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A port where clients connect.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Unique in the Route.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Transport.
    pub protocol: Protocol,
    /// The port on the address; 0: any of the pool's `anyPorts`, told in the status.
    #[schemars(with = "i32", range(min = 0, max = 65535))]
    pub port: u16,
}

/// Protocols that the fleet serves.
#[derive(
    Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP, byte for byte.
    Tcp,
    /// UDP, by session.
    Udp,
    /// HTTP over TCP: the listener's port is shared, and the host name leads on.
    Http,
    /// HTTP over TLS: the port is shared, and the server name leads on.
    Https,
}

impl Protocol {
    /// Whether Routes share the listener's port by host names.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }

    /// What it runs over: `Tcp` or `Udp`.
    #[must_use]
    pub fn transport(self) -> Self {
        match self {
            Self::Tcp | Self::Http | Self::Https => Self::Tcp,
            Self::Udp => Self::Udp,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("TCP"),
            Self::Udp => f.write_str("UDP"),
            Self::Http => f.write_str("HTTP"),
            Self::Https => f.write_str("HTTPS"),
        }
    }
}

/// All that arrives at a listener goes to a backend.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct RouteRule {
    /// A listener's name.
    #[schemars(length(min = 1, max = 63))]
    pub listener: String,
    /// A backend's name.
    #[schemars(length(min = 1, max = 63))]
    pub backend: String,
}

/// One `NodePort` of the tenant: the same port on each of its nodes.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Unique in the Route. Of an Ingress: `<service>:<port>`, by which all Ingresses of the
    /// namespace share one Envoy Cluster.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The port on the nodes.
    #[schemars(with = "i32", range(min = 1, max = 65535))]
    pub node_port: u16,
    /// Which nodes serve it.
    #[serde(default)]
    pub nodes: Nodes,
    /// Further ports on the nodes: where a client keeps to one pod, each port of a node leads to
    /// another one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub slots: Vec<Slot>,
    /// The family of the nodes' addresses; none given: whichever a node has first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<IpFamily>,
    /// How it is spoken to.
    #[serde(default, skip_serializing_if = "is_default")]
    pub upstream: Upstream,
}

impl Backend {
    /// A port of all nodes, spoken to as usual.
    pub fn new(name: impl Into<String>, node_port: u16) -> Self {
        Self {
            name: name.into(),
            node_port,
            nodes: Nodes::default(),
            slots: Vec::new(),
            family: None,
            upstream: Upstream::default(),
        }
    }
}

/// A further port of a backend.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Slot {
    /// The port on the nodes.
    #[schemars(with = "i32", range(min = 1, max = 65535))]
    pub node_port: u16,
    /// The nodes that have a pod behind it, sorted.
    #[schemars(length(max = 5000))]
    pub nodes: Vec<String>,
}

/// Which of the tenant's nodes serve a backend.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Nodes {
    /// `All`: every node of the tenant's `NodeSet` (`externalTrafficPolicy: Cluster`).
    /// `Named`: those in `names` only, which may be none (`Local`, or no ready endpoint).
    pub policy: NodePolicy,
    /// Node names, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5000))]
    pub names: Vec<String>,
}

/// How `Nodes` is to be read.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum NodePolicy {
    /// Every node.
    #[default]
    All,
    /// Only the nodes that are named.
    Named,
}

/// What became of the wish.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RouteStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The addresses held, as text. Written also when there is none: a merge patch keeps what it does
    /// not name.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// The ports that listeners which take any were given.
    #[serde(default)]
    pub ports: Vec<GivenPort>,
    /// Endpoints that are checked and unhealthy, as `ip:port`: what a restarted manager begins with.
    #[serde(default)]
    pub unhealthy: Vec<String>,
    /// `Accepted`, `ResolvedRefs` and `Programmed`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Text for kubectl's columns; derived, never read back.
    #[serde(default)]
    pub display: Display,
}

/// The port of a listener that takes any.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct GivenPort {
    /// The listener's name.
    pub listener: String,
    /// Its port on the addresses.
    #[schemars(with = "i32", range(min = 1, max = 65535))]
    pub port: u16,
}

/// Text for kubectl's columns.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Display {
    /// `Service/shop/web`.
    pub source: String,
    /// `shop.example.com,www.example.com`.
    #[serde(default)]
    pub hostnames: String,
    /// `172.18.0.200`.
    pub address: String,
    /// `80,443/TCP`.
    pub ports: String,
    /// The reason of the first condition that does not hold.
    pub reason: String,
}
