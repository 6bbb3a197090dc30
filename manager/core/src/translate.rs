//! A Route with its address → Envoy resources. Equal values give equal bytes.
//!
//! Layer 4: a Listener per (address, port, protocol), a Cluster and its endpoints per backend. The
//! Listener and the Cluster say nothing of nodes, so a change of nodes, of ready endpoints or of the
//! `NodePort` changes endpoints only: no connection is drained.

use std::net::IpAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster, OutlierDetection};
use envoy_types::pb::envoy::config::core::v3::Address;
use envoy_types::pb::envoy::config::core::v3::socket_address::Protocol as Transport;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener, UdpListenerConfig};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use envoy_types::pb::envoy::extensions::filters::udp::udp_proxy::v3::udp_proxy_config::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::udp::udp_proxy::v3::{
    Route as UdpRoute, UdpProxyConfig,
};
use envoy_types::pb::xds::core::v3::TypedExtensionConfig;
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::OnMatch;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::on_match;
use fairlead_api::RouteId;
use fairlead_api::condition::{Reason, Verdict};
use fairlead_api::route::Protocol;
use fairlead_xds::{Key, Resource, ResourceType};

use crate::model::{Backend, Wish};
use crate::nodes::Nodes;
use crate::pb::{ads, any, duration, flag, listener_filter, network_filter, number, socket};

/// Envoy's edge guide: small buffers, since clients are strangers.
const BUFFER_BYTES: u32 = 32 * 1024;
/// Connections, and UDP sessions, of one backend through one Envoy.
const MAX_CONNECTIONS: u32 = 65_536;
/// Requests of one backend that are tried again at the same time.
const MAX_RETRIES: u32 = 1_024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A node that refuses is tried no further; another one is.
const CONNECT_ATTEMPTS: u32 = 3;

/// What a Route becomes.
#[derive(Debug, PartialEq)]
pub struct Translation {
    /// Its resources.
    pub resources: Vec<Resource>,
    /// Verdict on `ResolvedRefs`.
    pub resolved: Verdict,
}

/// Translates one Route of layer 4.
pub fn translate(route: &RouteId, wish: &Wish, ip: IpAddr, nodes: Option<&Nodes>) -> Translation {
    let none = Nodes::default();
    let nodes_known = nodes.unwrap_or(&none);
    let mut resources = Vec::with_capacity(wish.backends.len() * 2 + wish.listeners.len());
    for backend in &wish.backends {
        let name = backend_name(route, backend);
        resources.push(tcp_cluster(&name));
        resources.push(endpoints(&name, backend, nodes_known));
    }
    for listener in &wish.listeners {
        let Some(backend) = listener.backend else { continue };
        let cluster = backend_name(route, &wish.backends[backend]);
        resources.push(match listener.protocol.transport() {
            Protocol::Udp => udp_listener(ip, listener.port, &cluster),
            _ => tcp_listener(ip, listener.port, &cluster),
        });
    }
    Translation { resources, resolved: resolve(wish, nodes) }
}

fn backend_name(route: &RouteId, backend: &Backend) -> String {
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

/// The addresses that serve a backend, in the order of the nodes' names.
fn members<'a>(backend: &'a Backend, nodes: &'a Nodes) -> impl Iterator<Item = IpAddr> + 'a {
    let wanted = move |name: &str| backend.nodes.as_ref().is_none_or(|names| names.contains(name));
    nodes.addresses.iter().filter(move |(name, _)| wanted(name)).map(|(_, address)| *address)
}

/// A backend's Cluster, but for what its protocol adds.
pub(crate) fn cluster(name: &str) -> Cluster {
    let thresholds = Thresholds {
        max_connections: number(MAX_CONNECTIONS),
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
        connect_timeout: duration(CONNECT_TIMEOUT),
        per_connection_buffer_limit_bytes: number(BUFFER_BYTES),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![thresholds],
            ..Default::default()
        }),
        ..Cluster::default()
    }
}

fn tcp_cluster(name: &str) -> Resource {
    let cluster = Cluster { outlier_detection: Some(outlier_detection()), ..cluster(name) };
    let endpoints = Key::new(ResourceType::Endpoints, name);
    Resource::new(Key::new(ResourceType::Cluster, name), &cluster, []).renewing(endpoints)
}

/// A node that does not answer is left out for a while; never more than half of them.
fn outlier_detection() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: number(3),
        interval: duration(Duration::from_secs(1)),
        base_ejection_time: duration(Duration::from_secs(10)),
        max_ejection_percent: number(50),
        ..OutlierDetection::default()
    }
}

/// Where a backend is.
pub(crate) fn endpoints(name: &str, backend: &Backend, nodes: &Nodes) -> Resource {
    let endpoint = |ip| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(socket(ip, backend.node_port, Transport::Tcp)),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    let all: Vec<_> = members(backend, nodes).map(endpoint).collect();
    let locality = LocalityLbEndpoints { lb_endpoints: all, ..LocalityLbEndpoints::default() };
    let assignment = ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![locality],
        ..ClusterLoadAssignment::default()
    };
    Resource::new(Key::new(ResourceType::Endpoints, name), &assignment, [])
}

fn tcp_listener(ip: IpAddr, port: u16, cluster: &str) -> Resource {
    let name = listener_name(Protocol::Tcp, ip, port);
    let proxy = TcpProxy {
        stat_prefix: name.clone(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        max_connect_attempts: number(CONNECT_ATTEMPTS),
        ..TcpProxy::default()
    };
    let filters = vec![network_filter("envoy.filters.network.tcp_proxy", &proxy)];
    let chain = FilterChain { filters, ..FilterChain::default() };
    let address = socket(ip, port, Transport::Tcp);
    let listener = Listener { filter_chains: vec![chain], ..listener(&name, address) };
    needing(&name, &listener, cluster)
}

fn udp_listener(ip: IpAddr, port: u16, cluster: &str) -> Resource {
    let name = listener_name(Protocol::Udp, ip, port);
    let route = UdpRoute { cluster: cluster.to_owned() };
    let action = TypedExtensionConfig { name: "route".into(), typed_config: Some(any(&route)) };
    let matcher = Matcher {
        on_no_match: Some(Box::new(OnMatch {
            on_match: Some(on_match::OnMatch::Action(action)),
            ..OnMatch::default()
        })),
        ..Matcher::default()
    };
    let proxy = UdpProxyConfig {
        stat_prefix: name.clone(),
        route_specifier: Some(RouteSpecifier::Matcher(matcher)),
        ..UdpProxyConfig::default()
    };
    let listener = Listener {
        listener_filters: vec![listener_filter("envoy.filters.udp_listener.udp_proxy", &proxy)],
        udp_listener_config: Some(UdpListenerConfig::default()),
        ..listener(&name, socket(ip, port, Transport::Udp))
    };
    needing(&name, &listener, cluster)
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

fn needing(name: &str, listener: &Listener, cluster: &str) -> Resource {
    Resource::new(Key::new(ResourceType::Listener, name), listener, cluster_keys(cluster))
}

/// What must be there for a Cluster to be of use.
pub(crate) fn cluster_keys(name: &str) -> [Key; 2] {
    [Key::new(ResourceType::Cluster, name), Key::new(ResourceType::Endpoints, name)]
}
