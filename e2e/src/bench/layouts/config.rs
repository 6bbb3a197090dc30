//! What a layout gives Envoy: the listener, and a Secret for each host name.

use std::path::Path;

use anyhow::Result;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::{
    DataSource, TransportSocket, TypedExtensionConfig, transport_socket,
};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter, listener_filter,
};
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, Route, RouteConfiguration, RouteMatch, VirtualHost, route, route_match,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::cert_mappers::sni::v3::Sni;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::cert_selectors::on_demand_secret::v3::Config as OnDemand;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::SessionTicketKeysType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret, TlsCertificate, secret,
};
use fairlead_xds::{Change, Key, Resource, ResourceType};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use serde::Serialize;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::authority::authority;
use crate::envoy::{ads, any, pipe};

/// How Envoy finds the certificate of a server name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// A filter chain for each host name, with its certificate by SDS.
    Chains,
    /// One filter chain, which has all certificates by SDS.
    OneChain,
    /// One filter chain, which asks for a certificate when a client first names the host.
    OnDemand,
}

/// All of them.
pub const LAYOUTS: [Layout; 3] = [Layout::Chains, Layout::OneChain, Layout::OnDemand];

impl Layout {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chains => "a filter chain for each",
            Self::OneChain => "one chain, all by SDS",
            Self::OnDemand => "one chain, on demand",
        }
    }

    /// With so many hosts it is usable at all.
    pub fn most(self) -> usize {
        match self {
            // Each certificate that comes builds all of them anew.
            Self::OneChain => 300,
            _ => usize::MAX,
        }
    }

    /// Whether one host more changes the listener.
    pub fn touches_listener(self) -> bool {
        self != Self::OnDemand
    }
}

/// The name of a host.
pub fn host(number: usize) -> String {
    format!("h{number}.bench.example")
}

/// A certificate, and its key.
#[derive(Debug, Clone)]
pub struct Pair {
    /// As a client is shown it.
    pub der: Vec<u8>,
    chain: Vec<u8>,
    key: Vec<u8>,
}

/// Who issues the certificates; clients trust it.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// A new one.
    pub fn new() -> Result<Self> {
        authority("layouts").map(Self)
    }

    /// Its own certificate.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// A new certificate for a host.
    pub fn issue(&self, host: &str) -> Result<Pair> {
        let key = KeyPair::generate()?;
        let made = CertificateParams::new(vec![host.to_owned()])?.signed_by(&key, &self.0)?;
        Ok(Pair {
            der: made.der().to_vec(),
            chain: made.pem().into_bytes(),
            key: key.serialize_pem().into_bytes(),
        })
    }
}

/// The Secret of a host.
pub fn certificate(host: &str, pair: &Pair) -> Change {
    let bytes = |bytes: &[u8]| {
        Some(DataSource {
            specifier: Some(Specifier::InlineBytes(bytes.to_vec())),
            ..DataSource::default()
        })
    };
    let certificate = TlsCertificate {
        certificate_chain: bytes(&pair.chain),
        private_key: bytes(&pair.key),
        ..TlsCertificate::default()
    };
    let secret =
        Secret { name: host.to_owned(), r#type: Some(secret::Type::TlsCertificate(certificate)) };
    Change::Put(Resource::new(Key::new(ResourceType::Secret, host), &secret, []))
}

/// The listener for the first `count` hosts, at a socket in the file system.
pub fn listener(layout: Layout, count: usize, at: &Path) -> Change {
    let hosts = || (0..count).map(host);
    let filter_chains = match layout {
        Layout::Chains => hosts().map(|host| chain(&host, tls(vec![sds(&host)], None))).collect(),
        Layout::OneChain => {
            vec![chain("", tls(hosts().map(|host| sds(&host)).collect(), None))]
        }
        Layout::OnDemand => vec![chain("", tls(Vec::new(), Some(selector())))],
    };
    let path = at.display().to_string();
    let inspector = ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".into(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(any(&TlsInspector::default()))),
        ..ListenerFilter::default()
    };
    let listener = Listener {
        name: "bench".into(),
        address: Some(pipe(path)),
        listener_filters: vec![inspector],
        filter_chains,
        ..Listener::default()
    };
    Change::Put(Resource::new(Key::new(ResourceType::Listener, "bench"), &listener, []))
}

/// `host`: the only one; empty: all.
fn chain(host: &str, transport: DownstreamTlsContext) -> FilterChain {
    let server_names = if host.is_empty() { Vec::new() } else { vec![host.to_owned()] };
    FilterChain {
        name: host.to_owned(),
        filter_chain_match: Some(FilterChainMatch { server_names, ..FilterChainMatch::default() }),
        filters: vec![Filter {
            name: "envoy.filters.network.http_connection_manager".into(),
            config_type: Some(filter::ConfigType::TypedConfig(any(&manager()))),
        }],
        transport_socket: Some(TransportSocket {
            name: "envoy.transport_sockets.tls".into(),
            config_type: Some(transport_socket::ConfigType::TypedConfig(any(&transport))),
        }),
        ..FilterChain::default()
    }
}

fn tls(
    certificates: Vec<SdsSecretConfig>,
    selector: Option<TypedExtensionConfig>,
) -> DownstreamTlsContext {
    // Envoy does not take a selector where sessions are resumed.
    let resumes = selector.is_none();
    DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_sds_secret_configs: certificates,
            custom_tls_certificate_selector: selector,
            ..CommonTlsContext::default()
        }),
        disable_stateful_session_resumption: !resumes,
        session_ticket_keys_type: (!resumes)
            .then_some(SessionTicketKeysType::DisableStatelessSessionResumption(true)),
        ..DownstreamTlsContext::default()
    }
}

fn sds(name: &str) -> SdsSecretConfig {
    SdsSecretConfig { name: name.to_owned(), sds_config: Some(ads()) }
}

fn selector() -> TypedExtensionConfig {
    let mapper = TypedExtensionConfig {
        name: "sni".into(),
        typed_config: Some(any(&Sni { default_value: "none".into() })),
    };
    let config = OnDemand {
        config_source: Some(ads()),
        certificate_mapper: Some(mapper),
        prefetch_secret_names: Vec::new(),
    };
    TypedExtensionConfig { name: "on-demand".into(), typed_config: Some(any(&config)) }
}

/// Answers everything with 200.
fn manager() -> HttpConnectionManager {
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix("/".into())),
            ..RouteMatch::default()
        }),
        action: Some(route::Action::DirectResponse(DirectResponseAction {
            status: 200,
            ..DirectResponseAction::default()
        })),
        ..Route::default()
    };
    let all = VirtualHost {
        name: "all".into(),
        domains: vec!["*".into()],
        routes: vec![route],
        ..VirtualHost::default()
    };
    let router = HttpFilter {
        name: "envoy.filters.http.router".into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(&Router::default()))),
        ..HttpFilter::default()
    };
    HttpConnectionManager {
        stat_prefix: "bench".into(),
        http_filters: vec![router],
        route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration {
            name: "all".into(),
            virtual_hosts: vec![all],
            ..RouteConfiguration::default()
        })),
        ..HttpConnectionManager::default()
    }
}
