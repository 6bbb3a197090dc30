//! The HTTP filters of every listener, and what a rule gives them.
//!
//! Policies are off at the listener and switched on by the route that asks for them, so that a
//! request passes no filter that nobody asked for. Envoy decides that with the first route it finds;
//! where a wildcard is found later, the filters are on at the listener and read their route's part
//! (`fallback` below). Filters that cannot be on with nothing to do stand in a slot: a composite that
//! a route fills.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::common::mutation_rules::v3::HeaderMutation as Mutation;
use envoy_types::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use envoy_types::pb::envoy::config::core::v3::{
    CelExpressionConfig, CidrRange, HttpUri, SubstitutionFormatString, substitution_format_string,
};
use envoy_types::pb::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac as Rules, permission, principal, rbac,
};
use envoy_types::pb::envoy::config::route::v3::rate_limit::action::RemoteAddress;
use envoy_types::pb::envoy::config::route::v3::{RateLimit as Limit, rate_limit};
use envoy_types::pb::envoy::extensions::common::matching::v3::{
    ExtensionWithMatcher, ExtensionWithMatcherPerRoute,
};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::{
    LocalRateLimitDescriptor, rate_limit_descriptor,
};
use envoy_types::pb::envoy::extensions::filters::common::matcher::action::v3::SkipFilter;
use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3::{
    FilterStateValue, filter_state_value,
};
use envoy_types::pb::envoy::extensions::filters::http::basic_auth::v3::BasicAuth as BasicAuthFilter;
use envoy_types::pb::envoy::extensions::filters::http::body_size_limit::v3::BodySizeLimit;
use envoy_types::pb::envoy::extensions::filters::http::composite::v3::{
    Composite, ExecuteFilterAction, FilterChainConfiguration,
};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::{Cors as CorsFilter, CorsPolicy};
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::{
    AuthorizationRequest, AuthorizationResponse, ExtAuthz, HttpService, ext_authz,
};
use envoy_types::pb::envoy::extensions::filters::http::header_mutation::v3::{
    HeaderMutation, Mutations,
};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::{Rbac, RbacPerRoute};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::http::set_filter_state::v3::Config as FilterState;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::{
    StatefulSession, StatefulSessionPerRoute, stateful_session_per_route,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::extensions::formatter::cel::v3::Cel;
use envoy_types::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use envoy_types::pb::envoy::r#type::http::v3::Cookie;
use envoy_types::pb::envoy::r#type::matcher::v3::ListStringMatcher;
use envoy_types::pb::envoy::r#type::v3::{HttpStatus, TokenBucket};
use envoy_types::pb::google::protobuf::{Any, UInt32Value, UInt64Value};
use envoy_types::pb::xds::core::v3::TypedExtensionConfig as XdsExtension;
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::{OnMatch, on_match};
use fairlead_api::http::{ClientAddresses, Cors, ExternalAuth, RateLimit, SessionPersistence};

use super::check;
use crate::pb::{
    any, duration, exactly, extension, flag, http_filter, inline, likewise, number, regex, removal,
    replacement, whole,
};

/// The header that names a request's scope: ours, whatever a client sent.
pub(crate) const SCOPE: &str = "x-fairlead-scope";

const CORS: &str = "envoy.filters.http.cors";
const RBAC: &str = "envoy.filters.http.rbac";
const RATE_LIMIT: &str = "envoy.filters.http.local_ratelimit";
const SESSION: &str = "envoy.filters.http.stateful_session";
const BASIC_AUTH: &str = "fairlead.basic_auth";
const EXTERNAL_AUTH: &str = "fairlead.external_auth";
const BODY_SIZE: &str = "fairlead.body_size";

/// Tokens of a bucket that never runs dry.
const PLENTY: u32 = 1_000_000_000;
/// Clients that a limit per client remembers, at each Envoy.
const CLIENTS: u32 = 10_000;

/// The filters of a listener, in the order in which requests meet them. `fallback`: the listener has
/// a wildcard host, or one for all others; this is where they are found.
pub(crate) fn all(fallback: Option<&str>) -> Vec<HttpFilter> {
    let off = fallback.is_none();
    let mut filters = fallback.map(select).unwrap_or_default();
    let limit = LocalRateLimit { stat_prefix: "limit".into(), ..LocalRateLimit::default() };
    filters.extend([
        http_filter(CORS, &CorsFilter {}, off),
        http_filter(RBAC, &Rbac::default(), off),
        http_filter(RATE_LIMIT, &limit, off),
        slot(BASIC_AUTH, off),
        slot(EXTERNAL_AUTH, off),
        slot(BODY_SIZE, off),
        http_filter(SESSION, &StatefulSession::default(), off),
        http_filter("envoy.filters.http.router", &Router::default(), false),
    ]);
    filters
}

/// Looks for the host in lower case, then for a wildcard where there is no such host, then for the host
/// that stands for all others. CEL sees the route that was found only once something asked for it: the
/// empty mutation does.
fn select(prefix: &str) -> Vec<HttpFilter> {
    let found = "has(xds.virtual_host_name)";
    let scope = format!("request.headers[\"{SCOPE}\"]");
    let wild = format!(
        "%CEL({found} ? {scope} : re.extract({scope}, \"^(.*/)[^./*]+(\\\\..+)$\", \"\\\\1*\\\\2\"))%"
    );
    let rest = format!("%CEL({found} ? {scope} : \"{prefix}*\")%");
    let clear = FilterState { clear_route_cache: true, ..FilterState::default() };
    vec![
        lower(),
        rename("fairlead.case", format!("%FILTER_STATE({SCOPE}:PLAIN)%")),
        http_filter("fairlead.case.clear", &clear, false),
        http_filter("fairlead.case.find", &HeaderMutation::default(), false),
        rename("fairlead.wildcard", wild),
        http_filter("fairlead.wildcard.clear", &clear, false),
        http_filter("fairlead.wildcard.find", &HeaderMutation::default(), false),
        rename("fairlead.default", rest),
        http_filter("fairlead.default.clear", &clear, false),
    ]
}

/// Only the formatter of this filter takes CEL with functions of text.
fn lower() -> HttpFilter {
    let functions = CelExpressionConfig { enable_string_functions: true, ..Default::default() };
    let text = format!("%CEL(request.headers['{SCOPE}'].lowerAscii())%");
    let format = SubstitutionFormatString {
        format: Some(substitution_format_string::Format::TextFormatSource(inline(text))),
        formatters: vec![extension("envoy.formatter.cel", &Cel { cel_config: Some(functions) })],
        ..SubstitutionFormatString::default()
    };
    let value = FilterStateValue {
        key: Some(filter_state_value::Key::ObjectKey(SCOPE.into())),
        factory_key: "envoy.string".into(),
        value: Some(filter_state_value::Value::FormatString(format)),
        ..FilterStateValue::default()
    };
    let config = FilterState { on_request_headers: vec![value], ..FilterState::default() };
    http_filter("fairlead.case.read", &config, false)
}

fn rename(name: &str, value: String) -> HttpFilter {
    http_filter(name, &mutating(vec![replacement(SCOPE, value)]), false)
}

/// The filter's configuration for edits of the request.
fn mutating(request_mutations: Vec<Mutation>) -> HeaderMutation {
    let mutations = Some(Mutations { request_mutations, ..Mutations::default() });
    HeaderMutation { mutations, ..HeaderMutation::default() }
}

/// A place for a filter that cannot be there with nothing to do.
fn slot(name: &str, off: bool) -> HttpFilter {
    let slot = ExtensionWithMatcher {
        extension_config: Some(extension("composite", &Composite::default())),
        xds_matcher: Some(always("skip", any(&SkipFilter {}))),
        ..ExtensionWithMatcher::default()
    };
    http_filter(name, &slot, off)
}

fn always(name: &str, action: Any) -> Matcher {
    let action = XdsExtension { name: name.into(), typed_config: Some(action) };
    let on_match = Some(on_match::OnMatch::Action(action));
    let on_no_match = OnMatch { on_match, ..OnMatch::default() };
    Matcher { on_no_match: Some(Box::new(on_no_match)), ..Matcher::default() }
}

/// What a route puts into a slot.
fn fill<M: prost::Name>(filter: &str, config: &M) -> Any {
    let action = ExecuteFilterAction {
        typed_config: Some(extension(filter, config)),
        ..ExecuteFilterAction::default()
    };
    run(&action)
}

fn run(action: &ExecuteFilterAction) -> Any {
    any(&ExtensionWithMatcherPerRoute { xds_matcher: Some(always("run", any(action))) })
}

/// A route's part of the filters, by their names.
pub(crate) type Parts = BTreeMap<&'static str, Any>;

pub(crate) fn cors(parts: &mut Parts, cors: &Cors) {
    let Cors {
        allow_origins,
        allow_methods,
        allow_headers,
        expose_headers,
        allow_credentials,
        max_age_seconds,
    } = cors;
    let origin = |origin: &String| match origin.split_once("*.") {
        _ if origin == "*" => pattern(".*".into()),
        Some((scheme, parent)) => {
            pattern(format!("{scheme}[a-z0-9-]+\\.{}", parent.replace('.', "\\.")))
        }
        None => exactly(origin),
    };
    let policy = CorsPolicy {
        allow_origin_string_match: allow_origins.iter().map(origin).collect(),
        allow_methods: allow_methods.join(", "),
        allow_headers: allow_headers.join(", "),
        expose_headers: expose_headers.join(", "),
        max_age: max_age_seconds.to_string(),
        allow_credentials: flag(*allow_credentials),
        ..CorsPolicy::default()
    };
    parts.insert(CORS, any(&policy));
}

fn pattern(text: String) -> envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher {
    use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher};
    let matcher = string_matcher::MatchPattern::SafeRegex(regex(text));
    StringMatcher { match_pattern: Some(matcher), ..StringMatcher::default() }
}

pub(crate) fn client_addresses(parts: &mut Parts, addresses: &ClientAddresses) {
    let ClientAddresses { allow, deny } = addresses;
    let mut ids = Vec::new();
    if !allow.is_empty() {
        ids.push(one_of(allow));
    }
    if !deny.is_empty() {
        let denied = Box::new(one_of(deny));
        ids.push(Principal { identifier: Some(principal::Identifier::NotId(denied)) });
    }
    let all = principal::Identifier::AndIds(principal::Set { ids });
    let any_request = Permission { rule: Some(permission::Rule::Any(true)) };
    let policy = Policy {
        permissions: vec![any_request],
        principals: vec![Principal { identifier: Some(all) }],
        ..Policy::default()
    };
    let rules = Rules {
        action: rbac::Action::Allow.into(),
        policies: [("clients".to_owned(), policy)].into(),
        ..Rules::default()
    };
    let rbac = Rbac { rules: Some(rules), ..Rbac::default() };
    parts.insert(RBAC, any(&RbacPerRoute { rbac: Some(rbac) }));
}

fn one_of(ranges: &[String]) -> Principal {
    let range = |net: ipnet::IpNet| CidrRange {
        address_prefix: net.network().to_string(),
        prefix_len: Some(UInt32Value { value: net.prefix_len().into() }),
    };
    let ids = ranges
        .iter()
        .filter_map(|text| check::cidr(text))
        .map(|net| Principal { identifier: Some(principal::Identifier::RemoteIp(range(net))) });
    Principal {
        identifier: Some(principal::Identifier::OrIds(principal::Set { ids: ids.collect() })),
    }
}

pub(crate) fn rate_limit(parts: &mut Parts, limit: &RateLimit) {
    let bucket = bucket(limit);
    let mut config = LocalRateLimit {
        stat_prefix: "limit".into(),
        status: Some(HttpStatus { code: 429 }),
        filter_enabled: whole(),
        filter_enforced: whole(),
        token_bucket: Some(bucket),
        ..LocalRateLimit::default()
    };
    if limit.per_client {
        let entry =
            rate_limit_descriptor::Entry { key: "remote_address".into(), value: String::new() };
        let address = rate_limit::action::ActionSpecifier::RemoteAddress(RemoteAddress::default());
        let action = rate_limit::Action { action_specifier: Some(address) };
        config.token_bucket = Some(TokenBucket {
            max_tokens: PLENTY,
            tokens_per_fill: number(PLENTY),
            fill_interval: duration(std::time::Duration::from_secs(1)),
        });
        config.always_consume_default_token_bucket = flag(false);
        config.rate_limits = vec![Limit { actions: vec![action], ..Limit::default() }];
        config.descriptors = vec![LocalRateLimitDescriptor {
            entries: vec![entry],
            token_bucket: Some(bucket),
            ..LocalRateLimitDescriptor::default()
        }];
        config.max_dynamic_descriptors = number(CLIENTS);
    }
    parts.insert(RATE_LIMIT, any(&config));
}

/// The bucket of a limit. It is filled in steps of its interval, so small steps are smoother; Envoy's
/// least interval is 50 ms.
fn bucket(limit: &RateLimit) -> TokenBucket {
    let RateLimit { requests, unit_seconds, burst, per_client: _ } = limit;
    let (unit, requests) = (u64::from(*unit_seconds) * 1_000, u64::from(*requests).max(1));
    // As many as 50 ms are worth, at least one; and as often as makes them what was asked for.
    let tokens = (requests * 50).div_ceil(unit).max(1);
    let interval = (tokens * unit / requests).max(50);
    TokenBucket {
        max_tokens: *burst,
        tokens_per_fill: number(u32::try_from(tokens).unwrap_or(u32::MAX)),
        fill_interval: duration(std::time::Duration::from_millis(interval)),
    }
}

/// `users`: lines of `user:{SHA}…`.
pub(crate) fn basic_auth(parts: &mut Parts, users: &str) {
    let config = BasicAuthFilter { users: Some(inline(users)), ..BasicAuthFilter::default() };
    parts.insert(BASIC_AUTH, fill("envoy.filters.http.basic_auth", &config));
}

pub(crate) fn external_auth(parts: &mut Parts, auth: &ExternalAuth, cluster: &str) {
    let ExternalAuth { backend: _, path_prefix, response_headers } = auth;
    let list = |names: &[&str]| {
        let patterns = names.iter().map(|name| likewise(name)).collect();
        Some(ListStringMatcher { patterns })
    };
    let uri = HttpUri {
        uri: "http://external-auth".into(),
        timeout: duration(std::time::Duration::from_secs(5)),
        http_upstream_type: Some(HttpUpstreamType::Cluster(cluster.to_owned())),
    };
    let upstream: Vec<&str> = response_headers.iter().map(String::as_str).collect();
    let service = HttpService {
        server_uri: Some(uri),
        path_prefix: path_prefix.clone(),
        authorization_request: Some(AuthorizationRequest::default()),
        authorization_response: Some(AuthorizationResponse {
            allowed_upstream_headers: list(&upstream),
            // What a browser needs to log in.
            allowed_client_headers: list(&["location", "set-cookie", "www-authenticate"]),
            ..AuthorizationResponse::default()
        }),
        ..HttpService::default()
    };
    let config = ExtAuthz {
        transport_api_version: envoy_types::pb::envoy::config::core::v3::ApiVersion::V3.into(),
        allowed_headers: list(&["authorization", "cookie", "x-forwarded-for", "x-forwarded-proto"]),
        status_on_error: Some(HttpStatus { code: 503 }),
        services: Some(ext_authz::Services::HttpService(service)),
        ..ExtAuthz::default()
    };
    // What the service may say of a client, no client says of itself.
    let forget = mutating(upstream.iter().map(|name| removal(name)).collect());
    let chain = FilterChainConfiguration {
        typed_config: vec![
            extension("envoy.filters.http.header_mutation", &forget),
            extension("envoy.filters.http.ext_authz", &config),
        ],
    };
    let action =
        ExecuteFilterAction { filter_chain: Some(chain), ..ExecuteFilterAction::default() };
    parts.insert(EXTERNAL_AUTH, run(&action));
}

pub(crate) fn body_size(parts: &mut Parts, bytes: u64) {
    let max_request_bytes = Some(UInt64Value { value: bytes });
    let config = BodySizeLimit { max_request_bytes };
    parts.insert(BODY_SIZE, fill("envoy.filters.http.body_size_limit", &config));
}

/// A cookie that names the endpoint; by source address it is the cluster that keeps the tie.
pub(crate) fn session(parts: &mut Parts, session: &SessionPersistence) {
    let SessionPersistence::Cookie { name, max_age_seconds, path } = session else { return };
    let cookie = Cookie {
        name: name.clone(),
        ttl: (*max_age_seconds > 0)
            .then(|| duration(std::time::Duration::from_secs((*max_age_seconds).into())))
            .flatten(),
        path: path.clone(),
        ..Cookie::default()
    };
    let state = CookieBasedSessionState { cookie: Some(cookie) };
    let session = StatefulSession {
        session_state: Some(extension("envoy.http.stateful_session.cookie", &state)),
        ..StatefulSession::default()
    };
    let r#override = Some(stateful_session_per_route::Override::StatefulSession(session));
    parts.insert(SESSION, any(&StatefulSessionPerRoute { r#override }));
}
