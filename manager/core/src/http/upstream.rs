//! A backend of layer 7 → a Cluster. All Routes of a tenant's namespace share the Cluster of a
//! Service's port; where they want it spoken to in different ways, there is one for each way.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::cluster::v3::{Cluster, OutlierDetection};
use envoy_types::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as Common, TransportSocket,
    UpstreamHttpProtocolOptions,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
    UpstreamTlsContext,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config,
};
use fairlead_api::TenantId;
use fairlead_api::http::{Upstream, UpstreamProtocol, UpstreamTls};
use fairlead_xds::Resource;

use super::secrets;
use crate::model::Backend;
use crate::nodes::Nodes;
use crate::pb::{ads, any, exactly, extension_socket, number};
use crate::translate::{self, ejection};

/// Answers' headers may be as large as requests'.
const MAX_HEADERS_KB: u32 = 96;
const MAX_HEADERS: u32 = 200;

/// The name of a backend's Cluster: `<tenant>/<namespace>/<service>:<port>@<node port>`, and a hash of
/// how it is spoken to where that is not as usual. The node port tells a Service's own from that of its
/// shadow, and a new one from an old one: routes lead to the one that they were made for.
pub(crate) fn name(tenant: &TenantId, namespace: &str, backend: &Backend) -> String {
    let Backend { name, cluster: _, node_port, nodes: _, slots: _, family: _, upstream } = backend;
    let usual = format!("{tenant}/{namespace}/{name}@{node_port}");
    if *upstream == Upstream::default() {
        return usual;
    }
    // Text with every field in it, in order: equal settings have equal names, in every process.
    let settings = format!("{upstream:?}");
    format!("{usual}/{:016x}", fairlead_xds::hash(settings.as_bytes()))
}

/// The Cluster and its endpoints.
pub(crate) fn translate(
    tenant: &TenantId,
    namespace: &str,
    backend: &Backend,
    nodes: &Nodes,
) -> [Resource; 2] {
    let name = &backend.cluster;
    let Upstream { protocol, tls, balancing, .. } = &backend.upstream;
    let options = options(*protocol, tls.as_ref());
    let cluster = Cluster {
        lb_policy: translate::policy(*balancing).into(),
        outlier_detection: Some(outlier_detection()),
        transport_socket: translate::transport_socket(
            &backend.upstream,
            tls.as_ref().map(|tls| transport(tls, tenant, namespace)),
        ),
        typed_extension_protocol_options: [(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
            any(&options),
        )]
        .into(),
        ..translate::cluster(name, &backend.upstream)
    };
    let [key, endpoints] = translate::cluster_keys(name);
    [
        Resource::new(key, &cluster, []).renewing(endpoints),
        translate::endpoints(backend, nodes, &BTreeSet::new()),
    ]
}

fn options(protocol: UpstreamProtocol, tls: Option<&UpstreamTls>) -> HttpProtocolOptions {
    let http1 = Http1ProtocolOptions::default();
    let http2 = Http2ProtocolOptions::default();
    let explicit = |config| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(config),
        })
    };
    let chosen = match (protocol, tls) {
        (UpstreamProtocol::Http2, _) => {
            explicit(explicit_http_config::ProtocolConfig::Http2ProtocolOptions(http2))
        }
        (UpstreamProtocol::Http, None) => {
            explicit(explicit_http_config::ProtocolConfig::HttpProtocolOptions(http1))
        }
        // By ALPN.
        (UpstreamProtocol::Http, Some(_)) => UpstreamProtocolOptions::AutoConfig(AutoHttpConfig {
            http_protocol_options: Some(http1),
            http2_protocol_options: Some(http2),
            ..AutoHttpConfig::default()
        }),
    };
    // The name that is sent is the request's host, unless one is given.
    let by_host = tls.is_some_and(|tls| tls.server_name.is_none());
    let verified = tls.is_some_and(|tls| tls.ca.is_some());
    HttpProtocolOptions {
        common_http_protocol_options: Some(Common {
            max_headers_count: number(MAX_HEADERS),
            max_response_headers_kb: number(MAX_HEADERS_KB),
            ..Common::default()
        }),
        upstream_http_protocol_options: by_host.then(|| UpstreamHttpProtocolOptions {
            auto_sni: true,
            auto_san_validation: verified,
            ..UpstreamHttpProtocolOptions::default()
        }),
        upstream_protocol_options: Some(chosen),
        ..HttpProtocolOptions::default()
    }
}

/// A node to which no connection can be made is left out for a while; what a backend answers is its
/// own concern.
fn outlier_detection() -> OutlierDetection {
    OutlierDetection {
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: number(3),
        enforcing_consecutive_5xx: number(0),
        enforcing_consecutive_gateway_failure: number(0),
        enforcing_success_rate: number(0),
        enforcing_local_origin_success_rate: number(0),
        ..ejection()
    }
}

fn transport(tls: &UpstreamTls, tenant: &TenantId, namespace: &str) -> TransportSocket {
    let UpstreamTls { server_name, ca } = tls;
    let trust = ca.as_ref().map(|secret| {
        let names = server_name.iter().map(|name| SubjectAltNameMatcher {
            san_type: SanType::Dns.into(),
            matcher: Some(exactly(name)),
            ..SubjectAltNameMatcher::default()
        });
        let sds = SdsSecretConfig {
            name: secrets::ca_name(tenant, namespace, secret),
            sds_config: Some(ads()),
        };
        ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
            default_validation_context: Some(CertificateValidationContext {
                match_typed_subject_alt_names: names.collect(),
                ..CertificateValidationContext::default()
            }),
            validation_context_sds_secret_config: Some(sds),
            ..CombinedCertificateValidationContext::default()
        })
    });
    let context = UpstreamTlsContext {
        sni: server_name.clone().unwrap_or_default(),
        common_tls_context: Some(CommonTlsContext {
            validation_context_type: trust,
            ..CommonTlsContext::default()
        }),
        ..UpstreamTlsContext::default()
    };
    extension_socket("envoy.transport_sockets.tls", &context)
}
