//! What a layout gives Envoy: the listener, and a Secret for each host name; for wildcards, what differs from
//! what Fairlead says.

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
    DirectResponseAction, RedirectAction, Route, RouteConfiguration, RouteMatch, VirtualHost, redirect_action::RedirectResponseCode, route, route_match,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::cert_mappers::sni::v3::Sni;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::cert_selectors::on_demand_secret::v3::Config as OnDemand;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::SessionTicketKeysType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret, TlsCertificate, secret,
};
use fairlead_xds::{Change, Key, Resource, ResourceType};
use prost::Message;
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use serde::Serialize;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::wildcards;
use crate::authority::authority;
use crate::envoy::{ads, any, pipe};

/// The name of the one `RouteConfiguration` that holds all hosts.
const TABLE: &str = "all";

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
    Resource::new(Key::new(ResourceType::Secret, host), &secret, []).into()
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
    Resource::new(Key::new(ResourceType::Listener, "bench"), &listener, []).into()
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
    let answer = DirectResponseAction { status: 200, ..DirectResponseAction::default() };
    let host = VirtualHost {
        name: "all".into(),
        domains: vec!["*".into()],
        routes: vec![all(route::Action::DirectResponse(answer))],
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
            virtual_hosts: vec![host],
            ..RouteConfiguration::default()
        })),
        ..HttpConnectionManager::default()
    }
}

/// The change, with its listener at a socket in the file system.
pub fn with_listener_at(change: Change, at: &Path) -> Result<Change> {
    match change {
        Change::Put(resource) if resource.key.kind == ResourceType::Listener => {
            let listener = moved(resource.decode()?, at);
            Ok(Resource::new(resource.key.clone(), &listener, []).into())
        }
        other => Ok(other),
    }
}

/// The listener of a change, at a socket in the file system, with the one table of hosts instead of scopes.
pub fn one_configuration(change: Change, at: &Path) -> Option<Result<Change>> {
    let Change::Put(resource) = change else { return None };
    (resource.key.kind == ResourceType::Listener).then(|| {
        let mut listener = moved(resource.decode()?, at);
        for filter in listener.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters) {
            if let Some(filter::ConfigType::TypedConfig(config)) = &mut filter.config_type {
                let mut manager = HttpConnectionManager::decode(&*config.value)?;
                let (config_source, route_config_name) = (Some(ads()), TABLE.to_owned());
                let rds = Rds { config_source, route_config_name };
                manager.route_specifier = Some(RouteSpecifier::Rds(rds));
                *config = any(&manager);
            }
        }
        Ok(Resource::new(resource.key.clone(), &listener, []).into())
    })
}

fn moved(listener: Listener, at: &Path) -> Listener {
    let address = Some(pipe(at.display().to_string()));
    // An option of sockets with IP addresses.
    Listener { address, freebind: None, ..listener }
}

/// The one `RouteConfiguration` with all these hosts.
pub fn whole_table(layout: wildcards::Layout, hosts: &[usize]) -> Change {
    let host = |number: &usize| {
        let redirect = RedirectAction {
            response_code: RedirectResponseCode::Found.into(),
            host_redirect: wildcards::answer(*number),
            ..RedirectAction::default()
        };
        let name = layout.host(*number);
        VirtualHost {
            domains: vec![name.clone()],
            name,
            routes: vec![all(route::Action::Redirect(redirect))],
            ..VirtualHost::default()
        }
    };
    let table = RouteConfiguration {
        name: TABLE.into(),
        virtual_hosts: hosts.iter().map(host).collect(),
        ..RouteConfiguration::default()
    };
    Resource::new(Key::new(ResourceType::Routes, TABLE), &table, []).into()
}

/// What is done with all requests.
fn all(action: route::Action) -> Route {
    Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix("/".into())),
            ..RouteMatch::default()
        }),
        action: Some(action),
        ..Route::default()
    }
}
