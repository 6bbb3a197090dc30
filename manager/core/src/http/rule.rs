//! One rule of a host → routes of a `VirtualHost`.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::retry_policy::RetryHostPredicate;
use envoy_types::pb::envoy::config::route::v3::retry_policy::retry_host_predicate::ConfigType;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HashPolicy, HostRewriteSpecifier, hash_policy,
};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, HeaderMatcher, RedirectAction, RetryPolicy, Route, RouteAction,
    RouteMatch, WeightedCluster, weighted_cluster,
};
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatchAndSubstitute, StringMatcher, string_matcher,
};
use fairlead_api::http::{
    Filters, HeaderMatch, HeaderMatchType, HeaderModifier, HttpMatch, HttpRule, PathMatch,
    PathMatchType, PathRewrite, RequestRedirect, Retry, RetryOn, SessionPersistence, UrlRewrite,
};
use prost::Message;

use super::filters::{self, Parts};
use crate::pb::{
    any, append_map, exactly, header, inline, literal, millis, number, regex, set_header,
};

/// A stream on which nothing moves ends after an hour.
const IDLE_MILLIS: u32 = 3_600_000;
/// `Route.typed_per_filter_config`.
const PER_FILTER: u32 = 13;

/// What a rule needs to know of its surroundings.
pub(crate) struct Context<'a> {
    /// The cluster of a backend.
    pub(crate) clusters: &'a BTreeMap<&'a str, Arc<str>>,
    /// The users of a Secret; `None` while it is missing or broken.
    pub(crate) users: &'a dyn Fn(&str) -> Option<String>,
}

/// A route, encoded: its filters' parts are a map, which the generated code would write in random
/// order.
pub(crate) fn encode(route: &Route, parts: &Parts) -> Vec<u8> {
    let mut bytes = route.encode_to_vec();
    append_map(&mut bytes, PER_FILTER, parts);
    bytes
}

/// A rule's route for one of its matches.
pub(crate) fn route(rule: &HttpRule, one: &HttpMatch, context: &Context<'_>) -> Vec<u8> {
    let HttpRule {
        name: _,
        matches: _,
        filters,
        backends: _,
        timeouts: _,
        retry: _,
        session_persistence,
    } = rule;
    let mut route = Route { r#match: Some(matching(one)), ..Route::default() };
    let mut parts = Parts::new();
    headers(&mut route, filters);
    let ready = policies(&mut parts, filters, context);
    if let Some(session) = session_persistence {
        filters::session(&mut parts, session);
    }
    route.action = Some(match &filters.request_redirect {
        _ if !ready => unavailable(),
        Some(redirect) => Action::Redirect(redirection(redirect)),
        None => forward(rule, one, context).map_or_else(unavailable, Action::Route),
    });
    encode(&route, &parts)
}

/// What the source names is not there: nothing can be served, and nothing is let through.
fn unavailable() -> Action {
    let body = Some(inline("no backend\n"));
    Action::DirectResponse(DirectResponseAction { status: 503, body, ..Default::default() })
}

/// Whether all policies can be kept; one that cannot must not be left out.
fn policies(parts: &mut Parts, filters: &Filters, context: &Context<'_>) -> bool {
    let Filters {
        request_header_modifier: _,
        response_header_modifier: _,
        request_redirect: _,
        url_rewrite: _,
        cors,
        client_addresses,
        basic_auth,
        external_auth,
        rate_limit,
        max_body_bytes,
    } = filters;
    if let Some(cors) = cors {
        filters::cors(parts, cors);
    }
    if !client_addresses.allow.is_empty() || !client_addresses.deny.is_empty() {
        filters::client_addresses(parts, client_addresses);
    }
    if let Some(limit) = rate_limit {
        filters::rate_limit(parts, limit);
    }
    if let Some(bytes) = max_body_bytes {
        filters::body_size(parts, *bytes);
    }
    if let Some(auth) = basic_auth {
        let Some(users) = (context.users)(&auth.secret) else { return false };
        filters::basic_auth(parts, &users);
    }
    if let Some(auth) = external_auth {
        let cluster = auth.backend.as_deref().and_then(|name| context.clusters.get(name));
        let Some(cluster) = cluster else { return false };
        filters::external_auth(parts, auth, cluster);
    }
    true
}

/// The requests that a match is about.
pub(crate) fn matching(one: &HttpMatch) -> RouteMatch {
    let HttpMatch { path: PathMatch { kind, value }, headers } = one;
    let path = match kind {
        PathMatchType::Exact => PathSpecifier::Path(value.clone()),
        PathMatchType::PathPrefix => match value.trim_end_matches('/') {
            "" => PathSpecifier::Prefix("/".into()),
            elements => PathSpecifier::PathSeparatedPrefix(elements.to_owned()),
        },
        // Envoy matches whole paths; what people write are beginnings.
        PathMatchType::RegularExpression => PathSpecifier::SafeRegex(regex(whole_path(value))),
    };
    RouteMatch {
        path_specifier: Some(path),
        headers: headers.iter().map(header_matcher).collect(),
        ..RouteMatch::default()
    }
}

/// An expression for a path that begins with what was asked for, whatever the case.
fn whole_path(expression: &str) -> String {
    format!("(?i)(?:{expression}).*")
}

fn header_matcher(one: &HeaderMatch) -> HeaderMatcher {
    let HeaderMatch { kind, name, value } = one;
    let matcher = match kind {
        HeaderMatchType::Exact => exactly(value),
        HeaderMatchType::RegularExpression => StringMatcher {
            match_pattern: Some(string_matcher::MatchPattern::SafeRegex(regex(value.as_str()))),
            ..StringMatcher::default()
        },
    };
    HeaderMatcher {
        name: name.clone(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matcher)),
        ..HeaderMatcher::default()
    }
}

fn headers(route: &mut Route, filters: &Filters) {
    let edits = |modifier: &HeaderModifier| {
        let set = modifier.set.iter().map(|(name, value)| set_header(name, literal(value)));
        let append = HeaderAppendAction::AppendIfExistsOrAdd;
        let add = modifier.add.iter().map(|(name, value)| header(name, literal(value), append));
        set.chain(add).collect()
    };
    route.request_headers_to_add = edits(&filters.request_header_modifier);
    let gone = &filters.request_header_modifier.remove;
    route.request_headers_to_remove.clone_from(gone);
    route.response_headers_to_add = edits(&filters.response_header_modifier);
    let gone = &filters.response_header_modifier.remove;
    route.response_headers_to_remove.clone_from(gone);
    if filters.basic_auth.is_some() {
        // The backend has no use for the password.
        route.request_headers_to_remove.push("authorization".into());
    }
}

fn redirection(redirect: &RequestRedirect) -> RedirectAction {
    let RequestRedirect { scheme, hostname, port, path, status_code } = redirect;
    let code = match status_code {
        301 => RedirectResponseCode::MovedPermanently,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::Found,
    };
    RedirectAction {
        host_redirect: hostname.clone().unwrap_or_default(),
        port_redirect: port.unwrap_or_default().into(),
        response_code: code.into(),
        scheme_rewrite_specifier: scheme.clone().map(SchemeRewriteSpecifier::SchemeRedirect),
        strip_query: path.is_some(),
        path_rewrite_specifier: path.clone().map(PathRewriteSpecifier::PathRedirect),
    }
}

/// `None`: no backend that can be spoken to.
fn forward(rule: &HttpRule, one: &HttpMatch, context: &Context<'_>) -> Option<RouteAction> {
    let HttpRule { name: _, matches: _, filters, backends, timeouts, retry, session_persistence } =
        rule;
    let weights: Vec<_> = backends
        .iter()
        .filter(|backend| backend.weight > 0)
        .filter_map(|backend| Some((context.clusters.get(backend.name.as_str())?, backend.weight)))
        .collect();
    let cluster = match weights.as_slice() {
        [] => return None,
        [(cluster, _)] => ClusterSpecifier::Cluster(cluster.to_string()),
        _ => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: weights
                .into_iter()
                .map(|(cluster, weight)| weighted_cluster::ClusterWeight {
                    name: cluster.to_string(),
                    weight: number(weight),
                    ..weighted_cluster::ClusterWeight::default()
                })
                .collect(),
            ..WeightedCluster::default()
        }),
    };
    let mut action = RouteAction {
        cluster_specifier: Some(cluster),
        // 0: no limit; Envoy's own would be 15 s.
        timeout: millis(timeouts.request_millis.unwrap_or(0)),
        idle_timeout: millis(timeouts.idle_millis.unwrap_or(IDLE_MILLIS)),
        retry_policy: Some(retry.as_ref().map_or_else(elsewhere, retry_policy)),
        ..RouteAction::default()
    };
    if *session_persistence == Some(SessionPersistence::SourceAddress {}) {
        let by_address = hash_policy::ConnectionProperties { source_ip: true };
        let policy = hash_policy::PolicySpecifier::ConnectionProperties(by_address);
        action.hash_policy = vec![HashPolicy { policy_specifier: Some(policy), terminal: false }];
    }
    rewrite(&mut action, &filters.url_rewrite, one);
    Some(action)
}

/// What certainly reached no backend is tried at another node: one may be gone, or its kube-proxy late.
fn elsewhere() -> RetryPolicy {
    let on = vec![RetryOn::ConnectFailure, RetryOn::RefusedStream];
    retry_policy(&Retry { attempts: 2, on, per_try_millis: None })
}

fn retry_policy(retry: &Retry) -> RetryPolicy {
    let Retry { attempts, on, per_try_millis } = retry;
    let words: Vec<_> = on.iter().map(|one| one.as_str()).collect();
    RetryPolicy {
        retry_on: words.join(","),
        num_retries: number(*attempts),
        per_try_timeout: per_try_millis.and_then(millis),
        retry_host_predicate: vec![RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".into(),
            config_type: Some(ConfigType::TypedConfig(any(&PreviousHostsPredicate {}))),
        }],
        host_selection_retry_max_attempts: 3,
        ..RetryPolicy::default()
    }
}

fn rewrite(action: &mut RouteAction, rewrite: &UrlRewrite, one: &HttpMatch) {
    let UrlRewrite { hostname, path } = rewrite;
    action.host_rewrite_specifier = hostname.clone().map(HostRewriteSpecifier::HostRewriteLiteral);
    let substitute = |pattern: String, substitution: String| {
        Some(RegexMatchAndSubstitute { pattern: Some(regex(pattern)), substitution })
    };
    let escaped = |path: &str| path.replace('\\', "\\\\");
    let prefix = one.path.value.trim_end_matches('/');
    match path {
        None => {}
        Some(PathRewrite::ReplaceFullPath(path)) => {
            action.regex_rewrite = substitute("^.*$".into(), escaped(path));
        }
        Some(PathRewrite::ReplacePrefixMatch(path))
            if one.path.kind != PathMatchType::PathPrefix =>
        {
            // Nothing but the whole of such a path matches.
            action.regex_rewrite = substitute("^.*$".into(), escaped(path));
        }
        Some(PathRewrite::ReplacePrefixMatch(path)) => match path.trim_end_matches('/') {
            // By hand where one side is `/`: Envoy would write `//bar` for `/foo/bar`, `/newbar` for
            // `/bar`.
            target if target.is_empty() || prefix.is_empty() => {
                let pattern = format!("^{}/*(.*)$", regex_syntax::escape(prefix));
                action.regex_rewrite = substitute(pattern, format!("{}/\\1", escaped(target)));
            }
            target => target.clone_into(&mut action.prefix_rewrite),
        },
        Some(PathRewrite::ReplaceRegexMatch(path)) => {
            let pattern = format!("(?i)^(?:{}).*$", one.path.value);
            action.regex_rewrite = substitute(pattern, path.clone());
        }
    }
}
