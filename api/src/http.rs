//! The layer-7 part of a Route, in the Gateway API's words: host names, matches, filters, weighted
//! backends. An Ingress and, later, an `HTTPRoute` become the same values.
//!
//! The agent writes them, the manager believes nothing of them: bounds and syntax are checked again
//! before anything reaches Envoy.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rare::{Common, Rare};

/// What the Route wants of one host name.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    /// `shop.example.com`, `*.example.com` (exactly one label in place of the `*`), or `*`: every
    /// host that nobody else serves at this address.
    #[schemars(length(min = 1, max = 253))]
    pub hostname: String,
    /// How TLS for it ends; none: it is served in plain HTTP only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<HostTls>,
    /// What requests for it meet, in no particular order; none: 404.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub rules: Vec<HttpRule>,
}

/// The name of the host that stands for all others.
pub const ANY_HOST: &str = "*";

/// How TLS for a host ends.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct HostTls {
    /// Where it ends.
    pub mode: TlsMode,
    /// `Terminate`: the Secret with the certificate, in the source's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub certificate: Option<String>,
    /// Plain HTTP is answered with a redirect to HTTPS.
    #[serde(default)]
    pub redirect: bool,
}

/// Where TLS ends.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum TlsMode {
    /// At the fleet.
    #[default]
    Terminate,
    /// At the backend: the fleet looks at the server name only.
    Passthrough,
}

/// What happens to requests that match.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct HttpRule {
    /// Where it stands in the source object, for messages: `spec.rules[0].http.paths[1]`.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Which requests; one of them is enough.
    #[schemars(length(min = 1, max = 8))]
    pub matches: Vec<HttpMatch>,
    /// What is done to them on the way.
    #[serde(default, skip_serializing_if = "is_default")]
    pub filters: Rare<Filters>,
    /// Where they go, by weight; none: 503, since what the source names is not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub backends: Vec<BackendRef>,
    /// How long things may take.
    #[serde(default, skip_serializing_if = "is_default")]
    pub timeouts: Timeouts,
    /// What is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// What ties a client to one endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<SessionPersistence>,
}

/// Which requests a rule is about: all that is named must hold.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct HttpMatch {
    /// The path, without its query.
    pub path: PathMatch,
    /// Headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
}

/// A path.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct PathMatch {
    /// How `value` is to be read.
    #[serde(rename = "type")]
    pub kind: PathMatchType,
    /// The path, its prefix by elements, or an RE2 expression.
    #[schemars(length(min = 1, max = 1024))]
    pub value: String,
}

impl Default for PathMatch {
    fn default() -> Self {
        Self { kind: PathMatchType::PathPrefix, value: "/".into() }
    }
}

/// How a path is matched.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PathMatchType {
    /// As it is, case-sensitive.
    Exact,
    /// By path elements: `/foo` matches `/foo` and `/foo/bar`, not `/foobar`.
    #[default]
    PathPrefix,
    /// An RE2 expression that the path begins with, whatever the case.
    RegularExpression,
}

/// A header.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMatch {
    /// How `value` is to be read.
    #[serde(rename = "type")]
    pub kind: HeaderMatchType,
    /// The header's name.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// Its value, or an expression for all of it.
    #[schemars(length(max = 4096))]
    pub value: String,
}

/// How a header is matched.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum HeaderMatchType {
    /// As it is.
    #[default]
    Exact,
    /// An RE2 expression for the whole value.
    RegularExpression,
}

/// A backend of the Route, with its share.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct BackendRef {
    /// One of `spec.backends`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its share of the sum of all weights.
    #[schemars(with = "i32", range(min = 0, max = 1_000_000))]
    pub weight: u32,
}

/// What is done to requests and answers. Each at most once, and nothing unless asked.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub struct Filters {
    /// Edits of the request's headers.
    #[serde(skip_serializing_if = "is_default")]
    pub request_header_modifier: HeaderModifier,
    /// Edits of the answer's headers.
    #[serde(skip_serializing_if = "is_default")]
    pub response_header_modifier: HeaderModifier,
    /// Answers with a redirect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<RequestRedirect>,
    /// Another path or host towards the backend.
    #[serde(skip_serializing_if = "is_default")]
    pub url_rewrite: UrlRewrite,
    /// Answers browsers' questions about other origins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// Only these clients, by address.
    #[serde(skip_serializing_if = "is_default")]
    pub client_addresses: ClientAddresses,
    /// A user and a password are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basic_auth: Option<BasicAuth>,
    /// Another service is asked first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_auth: Option<ExternalAuth>,
    /// How many requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// The largest body of a request, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i64>", range(min = 0))]
    pub max_body_bytes: Option<u64>,
}

impl Common for Filters {
    fn common() -> &'static Self {
        static COMMON: LazyLock<Filters> = LazyLock::new(Filters::default);
        &COMMON
    }
}

/// Edits of headers.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderModifier {
    /// Name → value: whatever was there is replaced.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    /// Name → value: beside whatever was there.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub add: BTreeMap<String, String>,
    /// Names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub remove: Vec<String>,
}

/// A redirect; what is not given stays as it was in the request.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestRedirect {
    /// `http` or `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// Another host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Another port.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Another path, with its query.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub path: Option<String>,
    /// 301, 302, 303, 307 or 308.
    #[schemars(with = "i32")]
    pub status_code: u16,
}

/// Another path or host towards the backend.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub struct UrlRewrite {
    /// Another `Host`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Another path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
}

/// Another path; at most 1,024 bytes.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub enum PathRewrite {
    /// In place of the prefix that matched.
    ReplacePrefixMatch(String),
    /// In place of the whole path.
    ReplaceFullPath(String),
    /// In place of the whole path, `\1` to `\9` being what the groups of the path's expression took.
    ReplaceRegexMatch(String),
}

/// Cross-origin requests (Fetch standard, "CORS protocol").
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub struct Cors {
    /// `https://shop.example.com`, `https://*.example.com`, or `*`.
    #[schemars(length(max = 64))]
    pub allow_origins: Vec<String>,
    /// Methods.
    #[schemars(length(max = 16))]
    pub allow_methods: Vec<String>,
    /// Request headers.
    #[schemars(length(max = 64))]
    pub allow_headers: Vec<String>,
    /// Answer headers that scripts may see.
    #[schemars(length(max = 64))]
    pub expose_headers: Vec<String>,
    /// With cookies.
    pub allow_credentials: bool,
    /// How long an answer holds, in seconds.
    #[schemars(with = "i32", range(min = 0))]
    pub max_age_seconds: u32,
}

/// Client addresses, IPv4 and IPv6, as CIDRs.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientAddresses {
    /// Only these, if any is given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub allow: Vec<String>,
    /// Never these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub deny: Vec<String>,
}

/// HTTP basic authentication (RFC 7617).
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct BasicAuth {
    /// The Secret with the users, in the source's namespace: `auth` holds lines of `user:{SHA}…`.
    #[schemars(length(min = 1, max = 253))]
    pub secret: String,
}

/// Another service decides: an answer of 200 lets the request through.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub struct ExternalAuth {
    /// One of `spec.backends`; none: it is not there, and every request is refused with 503.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub backend: Option<String>,
    /// Put before the request's path.
    #[schemars(length(max = 1024))]
    pub path_prefix: String,
    /// Headers of its answer that the backend is sent.
    #[schemars(length(max = 64))]
    pub response_headers: Vec<String>,
}

/// Requests of all clients together, at each Envoy.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// How many in a unit of time.
    #[schemars(with = "i32", range(min = 1))]
    pub requests: u32,
    /// That unit, in seconds.
    #[schemars(with = "i32", range(min = 1, max = 86_400))]
    pub unit_seconds: u32,
    /// How many at once.
    #[schemars(with = "i32", range(min = 1))]
    pub burst: u32,
    /// Each client address has its own.
    #[serde(default)]
    pub per_client: bool,
}

/// How long things may take, in milliseconds; not given: no limit but that of idle streams.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub struct Timeouts {
    /// A request with its answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 0))]
    pub request_millis: Option<u32>,
    /// A stream on which nothing moves; one hour unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 0))]
    pub idle_millis: Option<u32>,
}

/// What is tried again.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub struct Retry {
    /// How often.
    #[schemars(with = "i32", range(min = 0, max = 10))]
    pub attempts: u32,
    /// On what, in Envoy's words (`connect-failure`, `5xx`, …).
    #[schemars(length(max = 16))]
    pub on: Vec<RetryOn>,
    /// How long one may take, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1))]
    pub per_try_millis: Option<u32>,
}

/// On what a request is tried again (Envoy, `x-envoy-retry-on`).
#[derive(
    Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord,
)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// No connection.
    ConnectFailure,
    /// The stream was refused before anything was done.
    RefusedStream,
    /// The connection broke before the answer's headers.
    Reset,
    /// 502, 503 or 504.
    GatewayError,
    /// Any 5xx, or no answer.
    #[serde(rename = "5xx")]
    ServerError,
    /// 409.
    #[serde(rename = "retriable-4xx")]
    Retriable4xx,
}

impl RetryOn {
    /// Envoy's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectFailure => "connect-failure",
            Self::RefusedStream => "refused-stream",
            Self::Reset => "reset",
            Self::GatewayError => "gateway-error",
            Self::ServerError => "5xx",
            Self::Retriable4xx => "retriable-4xx",
        }
    }

    /// The value of Envoy's word.
    pub fn parse(text: &str) -> Option<Self> {
        use RetryOn::{
            ConnectFailure, GatewayError, RefusedStream, Reset, Retriable4xx, ServerError,
        };
        let all = [ConnectFailure, RefusedStream, Reset, GatewayError, ServerError, Retriable4xx];
        all.into_iter().find(|one| one.as_str() == text)
    }
}

/// What ties a client to one endpoint: a node of the tenant.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub enum SessionPersistence {
    /// A cookie that the fleet sets.
    #[serde(rename_all = "camelCase")]
    Cookie {
        /// Its name.
        name: String,
        /// How long it holds, in seconds; 0: as long as the browser runs.
        #[schemars(with = "i32", range(min = 0))]
        max_age_seconds: u32,
        /// Its `Path`.
        path: String,
    },
    /// The client's address.
    SourceAddress {},
}

/// How a backend is spoken to.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub struct Upstream {
    /// In which protocol.
    pub protocol: UpstreamProtocol,
    /// Over TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<UpstreamTls>,
    /// How one of its nodes is chosen.
    pub balancing: Balancing,
    /// How long a connection may take, in milliseconds; 2 s unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 600_000))]
    pub connect_millis: Option<u32>,
    /// How many connections each Envoy keeps to it at most; 65,536 unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 1_000_000))]
    pub max_connections: Option<u32>,
    /// The client's address is told at the start of each connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Its nodes are asked whether they serve it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
}

/// Versions of the PROXY protocol (haproxy's proxy-protocol.txt).
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// How nodes are asked whether they serve a backend.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// How often at most, in milliseconds. It is asked less often where the tenant has many checks.
    #[schemars(with = "i32", range(min = 1_000, max = 3_600_000))]
    pub interval_millis: u32,
    /// How long an answer may take, in milliseconds.
    #[schemars(with = "i32", range(min = 100, max = 60_000))]
    pub timeout_millis: u32,
    /// So many bad answers one after the other take a node out.
    #[schemars(with = "i32", range(min = 1, max = 10))]
    pub unhealthy_threshold: u32,
    /// So many good ones bring it back.
    #[schemars(with = "i32", range(min = 1, max = 10))]
    pub healthy_threshold: u32,
}

/// What a node is asked.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub enum Probe {
    /// A connection.
    Tcp {},
    /// A request that is answered with 200 to 399.
    Http {
        /// Its path.
        #[schemars(length(min = 1, max = 1024))]
        path: String,
        /// Its `Host`; `<service>.<namespace>` unless given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(length(max = 253))]
        host: Option<String>,
        /// Another port of the node than the backend's: the Service's `healthCheckNodePort`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<i32>", range(min = 1, max = 65535))]
        port: Option<u16>,
    },
    /// The gRPC health protocol (`grpc.health.v1`).
    Grpc {
        /// The service that is asked for; the whole server unless given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(length(max = 253))]
        service: Option<String>,
    },
}

/// Protocols towards backends.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum UpstreamProtocol {
    /// HTTP/1.1, or over TLS whatever the backend prefers.
    #[default]
    #[serde(rename = "HTTP")]
    Http,
    /// HTTP/2, in plain text with prior knowledge; gRPC.
    #[serde(rename = "HTTP2")]
    Http2,
}

/// TLS towards a backend.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub struct UpstreamTls {
    /// The name that is sent, and verified; the request's host unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub server_name: Option<String>,
    /// The Secret with `ca.crt`, in the source's namespace; none: the certificate is not verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub ca: Option<String>,
}

/// How a node is chosen.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Balancing {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one with the fewest requests under way, of two.
    LeastRequest,
    /// Any.
    Random,
    /// By a hash that survives changes of nodes; for `sessionPersistence`.
    Maglev,
}

/// Something that the source names and that is not there, or is broken.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Unresolved {
    /// `CamelCase`.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Names the field and the object, and says the way out.
    #[schemars(length(max = 1024))]
    pub message: String,
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
