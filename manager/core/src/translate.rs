//! A Route with its address → Envoy resources. Equal values give equal bytes.
//!
//! Layer 4: a Listener per (address, port, protocol), a Cluster and its endpoints per backend. The
//! Listener and the Cluster say nothing of nodes, so a change of nodes, of ready endpoints or of the
//! `NodePort` changes endpoints only: no connection is drained.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbPolicy,
};
use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster, OutlierDetection};
use envoy_types::pb::envoy::config::core::v3::socket_address::Protocol as Transport;
use envoy_types::pb::envoy::config::core::v3::{
    Address, HealthStatus, ProxyProtocolConfig, TransportSocket, proxy_protocol_config,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::r#type::v3::Percent;
use fairlead_api::RouteId;
use fairlead_api::claim::ClaimKey;
use fairlead_api::condition::{Reason, Verdict};
use fairlead_api::few::Few;
use fairlead_api::http::{Balancing, ProxyProtocol, Upstream};
use fairlead_api::route::{IpFamily, Protocol};
use fairlead_xds::{Key, Resource, ResourceType};
use ipnet::IpNet;

use crate::model::{Backend, Wish};
use crate::nodes::Nodes;
use crate::pb::{ads, duration, extension_socket, flag, millis, number, socket};

pub(crate) mod listener;

/// Envoy's edge guide: small buffers, since clients are strangers.
const BUFFER_BYTES: u32 = 32 * 1024;
/// Connections, and UDP sessions, of one backend through one Envoy.
const MAX_CONNECTIONS: u32 = 65_536;
/// Requests of one backend that are tried again at the same time.
const MAX_RETRIES: u32 = 1_024;
const CONNECT_MILLIS: u32 = 2_000;

/// What a Route becomes.
#[derive(Debug, PartialEq)]
pub struct Translation {
    /// Its resources.
    pub resources: Vec<Resource>,
    /// Verdict on `ResolvedRefs`.
    pub resolved: Verdict,
}

/// Where Envoy listens for a port, and who may be in front of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The address that is bound; unspecified where others announce the one that clients know.
    pub address: IpAddr,
    /// The port that is bound.
    pub port: u16,
    /// Balancers in front that speak the PROXY protocol; where there are any, only they may connect.
    pub proxies: Vec<IpNet>,
}

/// Translates one Route of layer 4. `bind`: where Envoy listens for a claimed port; `unhealthy`: endpoints of
/// a Cluster to which nothing shall be sent.
pub fn translate(
    wish: &Wish,
    addresses: &[IpAddr],
    nodes: Option<&Nodes>,
    bind: &dyn Fn(ClaimKey) -> Binding,
    unhealthy: &dyn Fn(&str) -> BTreeSet<(IpAddr, u16)>,
) -> Translation {
    let none = Nodes::default();
    let nodes_known = nodes.unwrap_or(&none);
    let mut resources = Vec::with_capacity(wish.backends.len() * 2 + wish.listeners.len());
    for backend in &wish.backends {
        resources.push(transport_cluster(backend, wish.clients.source_affinity));
        resources.push(endpoints(backend, nodes_known, &unhealthy(&backend.cluster)));
    }
    for (listener, ip) in
        wish.listeners.iter().flat_map(|one| addresses.iter().map(move |ip| (one, *ip)))
    {
        let Some(backend) = listener.backend else { continue };
        let cluster = &wish.backends[backend].cluster;
        let binding = bind(listener.key(ip));
        resources.push(match listener.protocol.transport() {
            Protocol::Udp => listener::udp(ip, listener.port, &binding, cluster, &wish.clients),
            _ => listener::tcp(ip, listener.port, &binding, cluster, &wish.clients),
        });
    }
    Translation { resources, resolved: resolve(wish, nodes) }
}

/// The name of the Cluster of a backend of layer 4.
pub(crate) fn backend_name(route: &RouteId, backend: &Backend) -> String {
    format!("{route}/{}", backend.name)
}

pub(crate) fn listener_name(protocol: Protocol, ip: IpAddr, port: u16) -> String {
    format!("{protocol}/{}", std::net::SocketAddr::new(ip, port))
}

/// Whether all that a Route names leads somewhere.
pub(crate) fn resolve(wish: &Wish, nodes: Option<&Nodes>) -> Verdict {
    if let Some(first) = wish.unresolved.first() {
        let more = match wish.unresolved.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        return Verdict::no(
            Reason::RefNotFound,
            format!("{}: {}{more}", first.reason, first.message),
        );
    }
    let Some(nodes) = nodes else {
        let message = "the tenant's agent has told of no nodes yet";
        return Verdict::no(Reason::NoNodes, message);
    };
    if let Some((name, why)) = nodes.refused.iter().find(|(name, _)| uses(wish, name)) {
        return Verdict::no(Reason::NodeNotAllowed, format!("node {name:?} is left out: {why}"));
    }
    if let Some(backend) = wish.backends.iter().find(|one| !nodes.allows(one.node_port)) {
        let message = format!(
            "backend {:?}: node port {} is outside Tenant.spec.nodePorts ({} to {})",
            backend.name, backend.node_port, nodes.ports.first, nodes.ports.last
        );
        return Verdict::no(Reason::NodePortNotAllowed, message);
    }
    match wish.backends.iter().find(|backend| members(backend, nodes).next().is_none()) {
        None => Verdict::yes(Reason::ResolvedRefs),
        Some(backend) => {
            let message = format!(
                "backend {:?} has no ready endpoint; connections are closed until a pod is ready",
                backend.name
            );
            Verdict::no(Reason::NoReadyEndpoints, message)
        }
    }
}

fn uses(wish: &Wish, node: &str) -> bool {
    wish.backends
        .iter()
        .any(|backend| backend.nodes.as_ref().is_none_or(|names| names.contains(node)))
}

/// The addresses and ports that serve a backend, in the order of the nodes' names.
pub(crate) fn members<'a>(
    backend: &'a Backend,
    nodes: &'a Nodes,
) -> impl Iterator<Item = (IpAddr, u16)> + 'a {
    let wanted = move |name: &str| backend.nodes.as_ref().is_none_or(|names| names.contains(name));
    let first = nodes.addresses.iter().filter(move |(name, _)| wanted(name));
    let first = first.map(|(_, addresses)| (addresses, backend.node_port));
    let slot = |(port, names): &'a (u16, Few<Box<str>>)| {
        let there = nodes.addresses.iter().filter(move |(name, _)| names.contains(*name));
        there.map(move |(_, addresses)| (addresses, *port))
    };
    let all = first.chain(backend.slots.iter().flat_map(slot));
    let all = all.filter(|(_, port)| nodes.allows(*port));
    all.filter_map(|(addresses, port)| Some((of_family(addresses, backend.family)?, port)))
}

/// The address of a node at which a backend is reached.
fn of_family(addresses: &[IpAddr], family: Option<IpFamily>) -> Option<IpAddr> {
    addresses.iter().copied().find(|ip| IpFamily::fits(family, *ip))
}

/// How one of a backend's nodes is chosen.
pub(crate) fn policy(balancing: Balancing) -> LbPolicy {
    match balancing {
        Balancing::RoundRobin => LbPolicy::RoundRobin,
        Balancing::LeastRequest => LbPolicy::LeastRequest,
        Balancing::Random => LbPolicy::Random,
        Balancing::Maglev => LbPolicy::Maglev,
    }
}

/// What connections to a backend begin with: the client's address, where that is asked for, before what
/// `inner` says. Health checks begin with it, too.
pub(crate) fn transport_socket(
    upstream: &Upstream,
    inner: Option<TransportSocket>,
) -> Option<TransportSocket> {
    let Some(version) = upstream.proxy_protocol else { return inner };
    let version = match version {
        ProxyProtocol::V1 => proxy_protocol_config::Version::V1,
        ProxyProtocol::V2 => proxy_protocol_config::Version::V2,
    };
    let raw = || extension_socket("envoy.transport_sockets.raw_buffer", &RawBuffer::default());
    let config = ProxyProtocolUpstreamTransport {
        config: Some(ProxyProtocolConfig { version: version.into(), ..Default::default() }),
        transport_socket: Some(inner.unwrap_or_else(raw)),
        ..ProxyProtocolUpstreamTransport::default()
    };
    Some(extension_socket("envoy.transport_sockets.upstream_proxy_protocol", &config))
}

/// A backend's Cluster, but for what its protocol adds.
pub(crate) fn cluster(name: &str, upstream: &Upstream) -> Cluster {
    let connections = upstream.max_connections.unwrap_or(MAX_CONNECTIONS);
    let thresholds = Thresholds {
        max_connections: number(connections),
        max_pending_requests: number(MAX_CONNECTIONS),
        max_requests: number(MAX_CONNECTIONS),
        max_retries: number(MAX_RETRIES),
        ..Thresholds::default()
    };
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ads()),
            ..Default::default()
        }),
        connect_timeout: millis(upstream.connect_millis.unwrap_or(CONNECT_MILLIS)),
        per_connection_buffer_limit_bytes: number(BUFFER_BYTES),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![thresholds],
            ..Default::default()
        }),
        ..Cluster::default()
    }
}

/// The Cluster of a backend of layer 4.
fn transport_cluster(backend: &Backend, source_affinity: bool) -> Resource {
    let Backend { cluster: name, upstream, .. } = backend;
    let Upstream { protocol: _, tls: _, balancing, .. } = upstream;
    let balancing = if source_affinity { Balancing::Maglev } else { *balancing };
    let cluster = Cluster {
        lb_policy: policy(balancing).into(),
        outlier_detection: Some(outlier_detection()),
        transport_socket: transport_socket(upstream, None),
        // What is checked and unhealthy is sent nothing, however few are left.
        common_lb_config: upstream.health_check.as_ref().map(|_| CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: 0.0 }),
            ..CommonLbConfig::default()
        }),
        ..cluster(name, upstream)
    };
    let [key, endpoints] = cluster_keys(name);
    Resource::new(key, &cluster, []).renewing(endpoints)
}

/// A node that does not answer is left out for a while.
fn outlier_detection() -> OutlierDetection {
    OutlierDetection { consecutive_5xx: number(3), ..ejection() }
}

/// For how long nodes are left out: never more than half of them.
pub(crate) fn ejection() -> OutlierDetection {
    OutlierDetection {
        // When Envoy looks who may come back; nodes are left out at once. It is a timer for each Cluster: at once a
        // second 10,000 of them took 3 % of a core for nothing.
        interval: duration(Duration::from_secs(5)),
        base_ejection_time: duration(Duration::from_secs(10)),
        max_ejection_percent: number(50),
        ..OutlierDetection::default()
    }
}

/// Where a backend is.
pub(crate) fn endpoints(
    backend: &Backend,
    nodes: &Nodes,
    unhealthy: &BTreeSet<(IpAddr, u16)>,
) -> Resource {
    let name = &backend.cluster;
    let status = |endpoint: (IpAddr, u16)| {
        if unhealthy.contains(&endpoint) { HealthStatus::Unhealthy } else { HealthStatus::Unknown }
    };
    let endpoint = |(ip, port)| LbEndpoint {
        health_status: status((ip, port)).into(),
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(socket(ip, port, Transport::Tcp)),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    let all: Vec<_> = members(backend, nodes).map(endpoint).collect();
    let locality = LocalityLbEndpoints { lb_endpoints: all, ..LocalityLbEndpoints::default() };
    let assignment = ClusterLoadAssignment {
        cluster_name: name.to_string(),
        endpoints: vec![locality],
        ..ClusterLoadAssignment::default()
    };
    Resource::new(Key::new(ResourceType::Endpoints, name.clone()), &assignment, [])
}

/// What all listeners have.
pub(crate) fn listener(name: &str, address: Address) -> Listener {
    Listener {
        name: name.to_owned(),
        address: Some(address),
        // An announced address may live on any node of the hub, and move.
        freebind: flag(true),
        per_connection_buffer_limit_bytes: number(BUFFER_BYTES),
        ..Listener::default()
    }
}

/// What must be there for a Cluster to be of use.
pub(crate) fn cluster_keys(name: &Arc<str>) -> [Key; 2] {
    [ResourceType::Cluster, ResourceType::Endpoints].map(|kind| Key::new(kind, name.clone()))
}
