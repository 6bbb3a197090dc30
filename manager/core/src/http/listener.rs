//! The listeners of an address that host names share: plain HTTP on 80, TLS on 443.
//!
//! They say nothing of hosts but which names a certificate is for: a new host with a certificate is an
//! update of the listener, applied in place; everything else comes by scopes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{
    Http2ProtocolOptions, HttpProtocolOptions, TransportSocket, TypedExtensionConfig,
    transport_socket,
};
use envoy_types::pb::envoy::config::core::v3::socket_address::Protocol as Transport;
use envoy_types::pb::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use envoy_types::pb::envoy::config::listener::v3::{
    FilterChain, FilterChainMatch, Listener, ListenerFilter,
};
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    PathWithEscapedSlashesAction, RouteSpecifier, StripPortMode, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::scoped_routes::scope_key_builder::{
    FragmentBuilder, fragment_builder,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::scoped_routes::scope_key_builder::fragment_builder::{
    HeaderValueExtractor, header_value_extractor,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::scoped_routes::{
    ConfigSpecifier, ScopeKeyBuilder,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, ScopedRds, ScopedRoutes,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use envoy_types::pb::envoy::extensions::http::early_header_mutation::header_mutation::v3::HeaderMutation as Early;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, TlsParameters, tls_parameters,
};
use fairlead_api::TenantId;
use fairlead_api::claim::ClaimKey;
use fairlead_api::http::ANY_HOST;
use fairlead_api::route::Protocol;
use fairlead_xds::{Key, Resource, ResourceType};

use super::filters::{self, SCOPE};
use super::secrets;
use super::site::{Chain, prefix};
use crate::model::{HTTP_PORT, HTTPS_PORT};
use crate::pb::{
    ads, any, duration, extension, flag, listener_filter, network_filter, number, removal,
    replacement, socket,
};
use crate::translate::listener::{from_proxies, header_timeout, proxy_protocol};
use crate::translate::{Binding, listener, listener_name};

/// More than the 64 KiB that people send.
const MAX_HEADERS_KB: u32 = 96;
const MAX_HEADERS: u32 = 200;
/// Envoy's edge guide.
const STREAMS: u32 = 100;
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(3_600);
/// A scope whose routes do not come holds a new listener up no longer than this.
const FETCH: Duration = Duration::from_secs(5);

/// What is known of the hosts at an address.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Front {
    /// Host names by how TLS for them ends, and whose they are.
    pub(crate) chains: BTreeMap<(TenantId, Chain), BTreeSet<Arc<str>>>,
    /// Plain HTTP is served.
    pub(crate) plain: bool,
    /// There is a wildcard host, or one for all others.
    pub(crate) wild: bool,
    /// Proxies in front that are believed.
    pub(crate) trusted_hops: u32,
}

/// The listeners of an address.
pub(crate) fn translate(
    address: IpAddr,
    front: &Front,
    bind: &dyn Fn(ClaimKey) -> Binding,
) -> Vec<Resource> {
    let at = |port| bind(ClaimKey { address, protocol: Protocol::Tcp, port });
    let mut resources = Vec::with_capacity(2);
    resources.extend(front.plain.then(|| plain(address, front, &at(HTTP_PORT))));
    resources.extend((!front.chains.is_empty()).then(|| secure(address, front, &at(HTTPS_PORT))));
    resources
}

fn plain(address: IpAddr, front: &Front, binding: &Binding) -> Resource {
    let manager = manager(&prefix(address, HTTP_PORT, None), HTTP_PORT, front);
    let chain = FilterChain {
        filters: vec![network_filter("envoy.filters.network.http_connection_manager", &manager)],
        ..FilterChain::default()
    };
    publish(address, HTTP_PORT, binding, vec![chain], None)
}

fn secure(address: IpAddr, front: &Front, binding: &Binding) -> Resource {
    // A chain for each name: a name that comes or goes leaves the connections of all others alone.
    let named = front.chains.iter().flat_map(|((tenant, chain), names)| {
        names.iter().map(move |name| self::chain(address, front, tenant, chain, name))
    });
    let chains = named.collect();
    let inspector =
        listener_filter("envoy.filters.listener.tls_inspector", &TlsInspector::default());
    publish(address, HTTPS_PORT, binding, chains, Some(inspector))
}

fn chain(
    address: IpAddr,
    front: &Front,
    tenant: &TenantId,
    chain: &Chain,
    name: &str,
) -> FilterChain {
    // All other server names: no match at all.
    let server_names = if name == ANY_HOST { Vec::new() } else { vec![name.to_owned()] };
    let transport_protocol = "tls".to_owned();
    let matching = FilterChainMatch { server_names, transport_protocol, ..Default::default() };
    let built = match chain {
        Chain::Terminate(id) => {
            let manager = manager(&prefix(address, HTTPS_PORT, Some(tenant)), HTTPS_PORT, front);
            let filter = "envoy.filters.network.http_connection_manager";
            FilterChain {
                filters: vec![network_filter(filter, &manager)],
                transport_socket: Some(transport(&secrets::certificate_name(id))),
                ..FilterChain::default()
            }
        }
        // Not held back until the Cluster is there: the listener is everybody's.
        Chain::Passthrough(cluster) => passthrough(cluster),
    };
    let (name, filter_chain_match) = (name.to_owned(), Some(matching));
    FilterChain { name, filter_chain_match, ..built }
}

fn publish(
    address: IpAddr,
    port: u16,
    binding: &Binding,
    mut filter_chains: Vec<FilterChain>,
    inspector: Option<ListenerFilter>,
) -> Resource {
    let name = listener_name(Protocol::Tcp, address, port);
    let base = listener(&name, socket(binding.address, binding.port, Transport::Tcp));
    let listener_filters = proxy_protocol(binding).into_iter().chain(inspector).collect();
    if !binding.proxies.is_empty() {
        for chain in &mut filter_chains {
            let matching = chain.filter_chain_match.take().unwrap_or_default();
            chain.filter_chain_match = Some(from_proxies(binding, matching));
        }
    }
    let listener_filters_timeout = header_timeout(binding);
    let listener = Listener { filter_chains, listener_filters, listener_filters_timeout, ..base };
    Resource::new(Key::new(ResourceType::Listener, name.as_str()), &listener, [])
}

fn passthrough(cluster: &str) -> FilterChain {
    let proxy = TcpProxy {
        stat_prefix: "passthrough".into(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..TcpProxy::default()
    };
    FilterChain {
        filters: vec![network_filter("envoy.filters.network.tcp_proxy", &proxy)],
        ..FilterChain::default()
    }
}

fn transport(certificate: &str) -> TransportSocket {
    let sds = SdsSecretConfig { name: certificate.to_owned(), sds_config: Some(ads()) };
    let parameters = TlsParameters {
        tls_minimum_protocol_version: tls_parameters::TlsProtocol::TlSv12.into(),
        ..TlsParameters::default()
    };
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(parameters),
            tls_certificate_sds_secret_configs: vec![sds],
            alpn_protocols: vec!["h2".into(), "http/1.1".into()],
            ..CommonTlsContext::default()
        }),
        ..DownstreamTlsContext::default()
    };
    TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any(&context))),
    }
}

/// `scopes`: what the scopes at this listener begin with.
fn manager(scopes: &str, port: u16, front: &Front) -> HttpConnectionManager {
    let upgrade = UpgradeConfig { upgrade_type: "websocket".into(), ..UpgradeConfig::default() };
    HttpConnectionManager {
        stat_prefix: "http".into(),
        http_filters: filters::all(front.wild.then_some(scopes)),
        route_specifier: Some(RouteSpecifier::ScopedRoutes(scoped_routes())),
        early_header_mutation_extensions: vec![early(scopes, port)],
        use_remote_address: flag(true),
        xff_num_trusted_hops: front.trusted_hops,
        strip_port_mode: Some(StripPortMode::StripAnyHostPort(true)),
        strip_trailing_host_dot: true,
        upgrade_configs: vec![upgrade],
        max_request_headers_kb: number(MAX_HEADERS_KB),
        common_http_protocol_options: Some(HttpProtocolOptions {
            idle_timeout: duration(IDLE),
            max_headers_count: number(MAX_HEADERS),
            headers_with_underscores_action: HeadersWithUnderscoresAction::DropHeader.into(),
            ..HttpProtocolOptions::default()
        }),
        http2_protocol_options: Some(Http2ProtocolOptions {
            allow_connect: true,
            max_concurrent_streams: number(STREAMS),
            initial_stream_window_size: number(STREAM_WINDOW),
            initial_connection_window_size: number(CONNECTION_WINDOW),
            ..Http2ProtocolOptions::default()
        }),
        // The route's own holds: an hour.
        stream_idle_timeout: duration(IDLE),
        request_headers_timeout: duration(HEADERS_TIMEOUT),
        normalize_path: flag(true),
        merge_slashes: true,
        path_with_escaped_slashes_action: PathWithEscapedSlashesAction::RejectRequest.into(),
        server_header_transformation: 2, // PASS_THROUGH: the backend's own
        ..HttpConnectionManager::default()
    }
}

fn scoped_routes() -> ScopedRoutes {
    let whole = HeaderValueExtractor {
        name: SCOPE.into(),
        extract_type: Some(header_value_extractor::ExtractType::Index(0)),
        ..HeaderValueExtractor::default()
    };
    let fragment =
        FragmentBuilder { r#type: Some(fragment_builder::Type::HeaderValueExtractor(whole)) };
    let mut routes = ads();
    routes.initial_fetch_timeout = duration(FETCH);
    ScopedRoutes {
        name: "fairlead".into(),
        scope_key_builder: Some(ScopeKeyBuilder { fragments: vec![fragment] }),
        rds_config_source: Some(routes),
        config_specifier: Some(ConfigSpecifier::ScopedRds(ScopedRds {
            scoped_rds_config_source: Some(ads()),
            ..ScopedRds::default()
        })),
    }
}

/// Before the scope is looked up: its key from the host, and nothing of what the client says it is.
fn early(scopes: &str, port: u16) -> TypedExtensionConfig {
    let mutations = vec![
        removal(SCOPE),
        replacement(SCOPE, format!("{scopes}%REQ(:AUTHORITY)%")),
        removal("x-forwarded-host"),
        replacement("x-forwarded-host", "%REQ(:AUTHORITY)%"),
        // The port that clients know: the one that is bound may be another.
        replacement("x-forwarded-port", port.to_string()),
    ];
    extension("envoy.http.early_header_mutation.header_mutation", &Early { mutations })
}
