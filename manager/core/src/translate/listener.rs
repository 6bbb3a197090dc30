//! The Listeners of layer 4.

use std::net::IpAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::socket_address::Protocol as Transport;
use envoy_types::pb::envoy::config::core::v3::socket_option::{self, SocketState};
use envoy_types::pb::envoy::config::core::v3::{CidrRange, SocketOption, UdpSocketConfig};
use envoy_types::pb::envoy::config::listener::v3::{
    FilterChain, FilterChainMatch, Listener, ListenerFilter, UdpListenerConfig,
};
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use envoy_types::pb::envoy::extensions::filters::udp::udp_proxy::v3::udp_proxy_config::{
    HashPolicy as UdpHashPolicy, RouteSpecifier, hash_policy as udp_hash_policy,
};
use envoy_types::pb::envoy::extensions::filters::udp::udp_proxy::v3::{
    Route as UdpRoute, UdpProxyConfig,
};
use envoy_types::pb::envoy::extensions::matching::common_inputs::network::v3::SourceIpInput;
use envoy_types::pb::envoy::extensions::matching::input_matchers::ip::v3::Ip;
use envoy_types::pb::envoy::r#type::v3::{HashPolicy, hash_policy};
use envoy_types::pb::google::protobuf::UInt64Value;
use envoy_types::pb::xds::core::v3::TypedExtensionConfig;
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_list::predicate::{
    MatchType, SinglePredicate, single_predicate,
};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_list::{FieldMatcher, Predicate};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::{
    MatcherList, MatcherType, OnMatch, on_match,
};
use fairlead_api::route::Protocol;
use fairlead_xds::{Key, Resource, ResourceType};
use ipnet::IpNet;

use super::{Binding, cluster_keys, listener, listener_name};
use crate::model::Clients;
use crate::pb::{any, listener_filter, millis, network_filter, number, socket};

/// A node that refuses is tried no further; another one is.
const CONNECT_ATTEMPTS: u32 = 3;
/// The largest datagram that there is; Envoy drops those of more than 1,500 bytes unless told.
const MAX_DATAGRAM: u64 = 65_535;
/// A PROXY protocol header that does not come.
const HEADER_MILLIS: u32 = 3_000;
/// A connection on which nothing moves.
const TCP_IDLE_MILLIS: u32 = 3_600_000;
/// A client from which nothing comes.
const UDP_IDLE_MILLIS: u32 = 60_000;

/// A Listener that sends connections to a Cluster.
pub(super) fn tcp(
    ip: IpAddr,
    port: u16,
    binding: &Binding,
    cluster: &Arc<str>,
    clients: &Clients,
) -> Resource {
    let Clients { source_ranges, idle_millis, source_affinity } = clients;
    let name = listener_name(Protocol::Tcp, ip, port);
    let by_source = HashPolicy {
        policy_specifier: Some(hash_policy::PolicySpecifier::SourceIp(
            hash_policy::SourceIp::default(),
        )),
    };
    let proxy = TcpProxy {
        stat_prefix: name.clone(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_string())),
        max_connect_attempts: number(CONNECT_ATTEMPTS),
        idle_timeout: millis(idle_millis.unwrap_or(TCP_IDLE_MILLIS)),
        hash_policy: source_affinity.then_some(by_source).into_iter().collect(),
        ..TcpProxy::default()
    };
    let matching = FilterChainMatch {
        source_prefix_ranges: source_ranges.iter().map(cidr).collect(),
        ..from_proxies(binding, FilterChainMatch::default())
    };
    let chain = FilterChain {
        filter_chain_match: (matching != FilterChainMatch::default()).then_some(matching),
        filters: vec![network_filter("envoy.filters.network.tcp_proxy", &proxy)],
        ..FilterChain::default()
    };
    let address = socket(binding.address, binding.port, Transport::Tcp);
    let listener = Listener {
        filter_chains: vec![chain],
        listener_filters: proxy_protocol(binding).into_iter().collect(),
        listener_filters_timeout: header_timeout(binding),
        ..listener(&name, address)
    };
    needing(&name, &listener, cluster)
}

/// What reads who the client is, where balancers in front say so.
pub(crate) fn proxy_protocol(binding: &Binding) -> Option<ListenerFilter> {
    let filter =
        || listener_filter("envoy.filters.listener.proxy_protocol", &ProxyProtocol::default());
    (!binding.proxies.is_empty()).then(filter)
}

/// How long a header of the PROXY protocol may take: whoever connects and says nothing is held so long.
pub(crate) fn header_timeout(
    binding: &Binding,
) -> Option<envoy_types::pb::google::protobuf::Duration> {
    (!binding.proxies.is_empty()).then(|| millis(HEADER_MILLIS)).flatten()
}

/// Only balancers that are trusted may say who the client is: whoever else connects finds no filter chain,
/// and is closed.
pub(crate) fn from_proxies(binding: &Binding, matching: FilterChainMatch) -> FilterChainMatch {
    let direct_source_prefix_ranges = binding.proxies.iter().map(cidr).collect();
    FilterChainMatch { direct_source_prefix_ranges, ..matching }
}

fn cidr(net: &IpNet) -> CidrRange {
    CidrRange {
        address_prefix: net.addr().to_string(),
        prefix_len: number(net.prefix_len().into()),
    }
}

/// A Listener that sends datagrams to a Cluster, by sessions.
pub(super) fn udp(
    ip: IpAddr,
    port: u16,
    binding: &Binding,
    cluster: &Arc<str>,
    clients: &Clients,
) -> Resource {
    let Clients { source_ranges, idle_millis, source_affinity } = clients;
    let name = listener_name(Protocol::Udp, ip, port);
    let by_source =
        UdpHashPolicy { policy_specifier: Some(udp_hash_policy::PolicySpecifier::SourceIp(true)) };
    // 0 would be a session that ends at once.
    let idle =
        idle_millis.map_or(UDP_IDLE_MILLIS, |given| if given == 0 { u32::MAX } else { given });
    let large = UdpSocketConfig {
        max_rx_datagram_size: Some(UInt64Value { value: MAX_DATAGRAM }),
        ..UdpSocketConfig::default()
    };
    let proxy = UdpProxyConfig {
        stat_prefix: name.clone(),
        idle_timeout: millis(idle),
        hash_policies: source_affinity.then_some(by_source).into_iter().collect(),
        upstream_socket_config: Some(large),
        route_specifier: Some(RouteSpecifier::Matcher(matcher(cluster, source_ranges))),
        ..UdpProxyConfig::default()
    };
    let listener = Listener {
        listener_filters: vec![listener_filter("envoy.filters.udp_listener.udp_proxy", &proxy)],
        socket_options: vec![may_fragment(binding.address)],
        udp_listener_config: Some(UdpListenerConfig {
            downstream_socket_config: Some(large),
            ..UdpListenerConfig::default()
        }),
        ..listener(&name, socket(binding.address, binding.port, Transport::Udp))
    };
    needing(&name, &listener, cluster)
}

/// Lets answers be fragmented that are larger than the network's packets. Envoy forbids it for QUIC's sake
/// on all UDP listeners, and the kernel would refuse to send them (seen on 1.40:
/// `downstream_sess_tx_errors`).
fn may_fragment(address: IpAddr) -> SocketOption {
    // Linux: IP_MTU_DISCOVER is option 10 of level 0, IPV6_MTU_DISCOVER option 23 of level 41; 0 is DONT.
    let (level, name) = if address.is_ipv4() { (0, 10) } else { (41, 23) };
    SocketOption {
        description: "fragments are allowed".into(),
        level,
        name,
        state: SocketState::StateBound.into(),
        value: Some(socket_option::Value::IntValue(0)),
        ..SocketOption::default()
    }
}

/// What leads datagrams to a Cluster: all, or those from these ranges. The others are dropped.
fn matcher(cluster: &str, source_ranges: &[IpNet]) -> Matcher {
    let route = UdpRoute { cluster: cluster.to_owned() };
    let lead = OnMatch {
        on_match: Some(on_match::OnMatch::Action(extension("route", any(&route)))),
        ..OnMatch::default()
    };
    if source_ranges.is_empty() {
        return Matcher { on_no_match: Some(Box::new(lead)), ..Matcher::default() };
    }
    let ranges = Ip {
        cidr_ranges: source_ranges.iter().map(cidr).collect(),
        stat_prefix: "source_ranges".into(),
    };
    let predicate = SinglePredicate {
        input: Some(extension("envoy.matching.inputs.source_ip", any(&SourceIpInput::default()))),
        matcher: Some(single_predicate::Matcher::CustomMatch(extension(
            "envoy.matching.matchers.ip",
            any(&ranges),
        ))),
    };
    let inside = FieldMatcher {
        predicate: Some(Predicate { match_type: Some(MatchType::SinglePredicate(predicate)) }),
        on_match: Some(lead),
    };
    let list = MatcherList { matchers: vec![inside] };
    Matcher { matcher_type: Some(MatcherType::MatcherList(list)), ..Matcher::default() }
}

fn extension(name: &str, config: envoy_types::pb::google::protobuf::Any) -> TypedExtensionConfig {
    TypedExtensionConfig { name: name.to_owned(), typed_config: Some(config) }
}

fn needing(name: &str, listener: &Listener, cluster: &Arc<str>) -> Resource {
    Resource::new(Key::new(ResourceType::Listener, name), listener, cluster_keys(cluster))
}
