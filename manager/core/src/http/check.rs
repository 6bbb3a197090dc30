//! What Envoy would reject, found before it is sent: a bad rule is left out and named, the others
//! are served. Everything here comes from a tenant and is believed of nothing.
//!
//! Envoy's own limits (config validation of `envoy.config.route.v3`): header names and values of RFC
//! 9110, no edit of `host` or of a pseudo header, RE2 programs of a bounded size, unique domains.

use std::collections::BTreeSet;

use fairlead_api::http::{
    ANY_HOST, ClientAddresses, Cors, ExternalAuth, Filters, HeaderModifier, HealthCheck, Host,
    HttpMatch, HttpRule, PathMatch, PathMatchType, PathRewrite, Probe, RateLimit, RequestRedirect,
    SessionPersistence, TlsMode, Upstream, UpstreamTls, UrlRewrite,
};
use ipnet::IpNet;

use super::regex;
use crate::model::Backend;

/// `exact.<hostname>` must be a name of a Kubernetes object.
const MAX_HOSTNAME: usize = 240;
const MAX_PATH: usize = 1_024;
const MAX_VALUE: usize = 4_096;

/// The hosts that can be served, with the rules that can; and what cannot, by its field.
pub fn hosts(hosts: Vec<Host>, backends: &[Backend]) -> (Vec<Host>, Vec<String>) {
    let names: BTreeSet<&str> = backends.iter().map(|backend| &*backend.name).collect();
    let (mut good, mut bad, mut seen) =
        (Vec::with_capacity(hosts.len()), Vec::new(), BTreeSet::new());
    for (index, mut host) in hosts.into_iter().enumerate() {
        let at = |what: &str| format!("hosts[{index}] ({:?}): {what}", clip(&host.hostname));
        if let Err(what) = hostname(&host.hostname) {
            bad.push(at(&what));
            continue;
        }
        if !seen.insert(host.hostname.clone()) {
            bad.push(at("is there twice"));
            continue;
        }
        let rules = std::mem::take(&mut host.rules);
        host.rules.reserve_exact(rules.len());
        for one in rules {
            match rule(&one, &names) {
                Ok(()) => host.rules.push(one),
                Err(what) => {
                    bad.push(format!("{}: {what}", clip(&one.name)));
                    host.rules.extend(closed(one));
                }
            }
        }
        if let Err(what) = tls(&host) {
            bad.push(format!("host {:?}: {what}", host.hostname));
            host.tls = None;
        }
        good.push(host);
    }
    (good, bad)
}

/// What is left of a rule that cannot be followed: 503. Without it, its requests would meet a shorter
/// path's rule, and perhaps less of a restriction.
fn closed(rule: HttpRule) -> Option<HttpRule> {
    let HttpRule { name, mut matches, .. } = rule;
    for one in &mut matches {
        // Of an expression that cannot be used, what it begins with.
        let PathMatch { kind, value } = &mut one.path;
        if *kind == PathMatchType::RegularExpression && regex::check("path", value).is_err() {
            let plain = |c: &char| c.is_ascii_alphanumeric() || "/-_~".contains(*c);
            let literal = value.trim_start_matches('^').chars().take_while(plain).collect();
            (*kind, *value) = (PathMatchType::PathPrefix, literal);
        }
    }
    matches.retain(|one| one.path.value.len() > 1 && http_match(one).is_ok());
    matches.truncate(8);
    (!matches.is_empty()).then(|| HttpRule { name, matches, ..HttpRule::default() })
}

/// Whether a backend can be spoken to as it asks.
pub fn upstream(upstream: &Upstream) -> Result<(), String> {
    let Some(UpstreamTls { server_name, ca }) = &upstream.tls else { return Ok(()) };
    if server_name.as_deref().is_some_and(|name| name.len() > 253 || !dns(name)) {
        return Err("upstream.tls.serverName: must be a DNS name in lower case".into());
    }
    if ca.as_deref().is_some_and(|name| !dns(name)) {
        return Err("upstream.tls.ca: must be the name of a Secret".into());
    }
    Ok(())
}

/// What Envoy would refuse of a health check: it would refuse all others beside it.
pub fn health_check(check: &HealthCheck) -> Result<(), String> {
    let HealthCheck {
        probe,
        interval_millis,
        timeout_millis,
        unhealthy_threshold,
        healthy_threshold,
    } = check;
    let printable = |text: &str, most: usize| {
        text.len() <= most && text.bytes().all(|byte| (0x21..0x7f).contains(&byte))
    };
    if *interval_millis < 1_000 || *timeout_millis == 0 {
        return Err(
            "healthCheck: the interval must be 1s at least, and the timeout more than 0".into()
        );
    }
    if *unhealthy_threshold == 0 || *healthy_threshold == 0 {
        return Err("healthCheck: thresholds must be 1 at least".into());
    }
    match probe {
        Probe::Tcp {} => Ok(()),
        Probe::Http { path, host, port: _ } => {
            if !path.starts_with('/') || !printable(path, 1_024) {
                return Err("healthCheck.path: must begin with / and be printable".into());
            }
            if host.as_deref().is_some_and(|host| host.is_empty() || !printable(host, 253)) {
                return Err("healthCheck.host: must be a host name".into());
            }
            Ok(())
        }
        Probe::Grpc { service } => match service.as_deref() {
            Some(service) if !printable(service, 253) => {
                Err("healthCheck.service: must be the name of a gRPC service".into())
            }
            _ => Ok(()),
        },
    }
}

fn clip(text: &str) -> String {
    text.chars().take(128).collect()
}

/// `*`, a DNS name, or one with `*` as its first label.
pub fn hostname(name: &str) -> Result<(), String> {
    if name == ANY_HOST {
        return Ok(());
    }
    if name.len() > MAX_HOSTNAME {
        return Err(format!("a host name has at most {MAX_HOSTNAME} characters"));
    }
    if dns(name.strip_prefix("*.").unwrap_or(name)) && name.parse::<std::net::IpAddr>().is_err() {
        return Ok(());
    }
    Err("must be a DNS name in lower case; \"*\" may stand for its first label".into())
}

fn dns(name: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.').all(label)
}

fn tls(host: &Host) -> Result<(), String> {
    let Some(tls) = &host.tls else { return Ok(()) };
    match tls.mode {
        TlsMode::Terminate if tls.certificate.as_deref().is_none_or(|name| !dns(name)) => {
            Err("TLS needs the name of a Secret".into())
        }
        // Envoy's wildcards in server names reach any depth, and so into other tenants' names.
        TlsMode::Passthrough if host.hostname.starts_with('*') => {
            Err("TLS is passed through for whole host names only".into())
        }
        _ => Ok(()),
    }
}

fn rule(rule: &HttpRule, backends: &BTreeSet<&str>) -> Result<(), String> {
    let HttpRule {
        name: _,
        matches,
        filters,
        backends: refs,
        timeouts: _,
        retry: _,
        session_persistence,
    } = rule;
    if matches.is_empty() || matches.len() > 8 {
        return Err("1 to 8 matches are needed".into());
    }
    matches.iter().try_for_each(http_match)?;
    if let Some(unknown) = refs.iter().find(|one| !backends.contains(&*one.name)) {
        return Err(format!("backend {:?} is not one of spec.backends", clip(&unknown.name)));
    }
    if !refs.is_empty() && refs.iter().map(|one| u64::from(one.weight)).sum::<u64>() == 0 {
        return Err("the weights of all backends are 0".into());
    }
    if refs.iter().any(|one| one.weight > 1_000_000) || refs.len() > 16 {
        return Err("at most 16 backends, each with a weight of at most 1000000".into());
    }
    check_filters(filters, matches, backends)?;
    match session_persistence {
        Some(SessionPersistence::Cookie { name, path, .. }) => {
            token("the cookie's name", name)?;
            path_text("the cookie's path", path)
        }
        Some(SessionPersistence::SourceAddress {}) | None => Ok(()),
    }
}

fn http_match(one: &HttpMatch) -> Result<(), String> {
    let HttpMatch { path: PathMatch { kind, value }, headers } = one;
    match kind {
        PathMatchType::Exact | PathMatchType::PathPrefix => path_text("path", value)?,
        PathMatchType::RegularExpression => regex::check("path", value)?,
    }
    for header in headers {
        token("the header to match", &header.name)?;
        match header.kind {
            fairlead_api::http::HeaderMatchType::Exact => value_text("its value", &header.value)?,
            fairlead_api::http::HeaderMatchType::RegularExpression => {
                regex::check("its value", &header.value)?;
            }
        }
    }
    Ok(())
}

fn check_filters(
    filters: &Filters,
    matches: &[HttpMatch],
    backends: &BTreeSet<&str>,
) -> Result<(), String> {
    let Filters {
        request_header_modifier,
        response_header_modifier,
        request_redirect,
        url_rewrite,
        cors,
        client_addresses,
        basic_auth,
        external_auth,
        rate_limit,
        max_body_bytes: _,
    } = filters;
    header_modifier("requestHeaderModifier", request_header_modifier)?;
    header_modifier("responseHeaderModifier", response_header_modifier)?;
    request_redirect.as_ref().map_or(Ok(()), redirect)?;
    rewrite(url_rewrite, matches)?;
    cors.as_ref().map_or(Ok(()), check_cors)?;
    addresses(client_addresses)?;
    if basic_auth.as_ref().is_some_and(|auth| !dns(&auth.secret)) {
        return Err("basicAuth: must name a Secret".into());
    }
    external_auth.as_ref().map_or(Ok(()), |auth| check_auth(auth, backends))?;
    rate_limit.as_ref().map_or(Ok(()), limit)
}

fn header_modifier(field: &str, edits: &HeaderModifier) -> Result<(), String> {
    let HeaderModifier { set, add, remove } = edits;
    if set.len() + add.len() + remove.len() > 64 {
        return Err(format!("{field}: at most 64 edits"));
    }
    for (name, value) in set.iter().chain(add) {
        editable(field, name)?;
        value_text(&format!("{field}: the value of {name:?}"), value)?;
    }
    remove.iter().try_for_each(|name| editable(field, name))
}

/// Envoy refuses edits of `host` and of pseudo headers; ours are not a tenant's to forge.
fn editable(field: &str, name: &str) -> Result<(), String> {
    token(field, name)?;
    let lower = name.to_ascii_lowercase();
    if lower == "host" || lower.starts_with("x-fairlead-") || lower.starts_with("x-envoy-") {
        return Err(format!("{field}: header {name:?} cannot be edited"));
    }
    Ok(())
}

fn redirect(redirect: &RequestRedirect) -> Result<(), String> {
    let RequestRedirect { scheme, hostname: host, port: _, path, status_code } = redirect;
    if scheme.as_deref().is_some_and(|scheme| !["http", "https"].contains(&scheme)) {
        return Err("requestRedirect: the scheme must be http or https".into());
    }
    if ![301, 302, 303, 307, 308].contains(status_code) {
        return Err(format!("requestRedirect: {status_code} is not 301, 302, 303, 307 or 308"));
    }
    if host.as_deref().is_some_and(|host| !dns(&host.to_ascii_lowercase())) {
        return Err("requestRedirect: the host must be a DNS name".into());
    }
    match path {
        Some(path) if !path.starts_with('/') => {
            Err("requestRedirect: the path must begin with /".into())
        }
        Some(path) => value_text("requestRedirect: the path", path),
        None => Ok(()),
    }
}

fn rewrite(rewrite: &UrlRewrite, matches: &[HttpMatch]) -> Result<(), String> {
    let UrlRewrite { hostname: host, path } = rewrite;
    if host.as_deref().is_some_and(|host| !dns(&host.to_ascii_lowercase())) {
        return Err("urlRewrite: the host must be a DNS name".into());
    }
    match path {
        None => Ok(()),
        Some(PathRewrite::ReplacePrefixMatch(path) | PathRewrite::ReplaceFullPath(path)) => {
            path_text("urlRewrite", path)
        }
        Some(PathRewrite::ReplaceRegexMatch(path)) => {
            path_text("urlRewrite", path)?;
            let groups = matches.iter().map(|one| match one.path.kind {
                PathMatchType::RegularExpression => regex::groups(&one.path.value),
                _ => 0,
            });
            regex::substitution(path, groups.min().unwrap_or(0))
        }
    }
}

fn check_cors(cors: &Cors) -> Result<(), String> {
    let Cors {
        allow_origins,
        allow_methods,
        allow_headers,
        expose_headers,
        allow_credentials,
        max_age_seconds: _,
    } = cors;
    if allow_origins.is_empty() || allow_origins.len() > 64 {
        return Err("cors: 1 to 64 origins are needed".into());
    }
    for one in allow_origins {
        let rest = one.strip_prefix("https://").or_else(|| one.strip_prefix("http://"));
        let (host, port) = match rest.and_then(|rest| rest.split_once(':')) {
            Some((host, port)) => (Some(host), port),
            None => (rest, "0"),
        };
        let good = host.is_some_and(|host| dns(host.strip_prefix("*.").unwrap_or(host)))
            && port.parse::<u16>().is_ok();
        if one != "*" && one != "null" && !good {
            return Err(format!("cors: {:?} is not an origin like https://example.com", clip(one)));
        }
    }
    // Envoy answers with the origin that asked: with credentials that would open the site to all.
    if *allow_credentials && allow_origins.iter().any(|one| one == "*") {
        return Err("cors: credentials are not for every origin; name the origins".into());
    }
    let lists = [allow_methods, allow_headers, expose_headers];
    let all = lists.into_iter().flatten().filter(|one| *one != "*");
    all.into_iter().try_for_each(|one| token("cors", one))
}

fn addresses(addresses: &ClientAddresses) -> Result<(), String> {
    let ClientAddresses { allow, deny } = addresses;
    if allow.len() + deny.len() > 512 {
        return Err("clientAddresses: at most 512 ranges".into());
    }
    match allow.iter().chain(deny).find(|text| cidr(text).is_none()) {
        Some(bad) => Err(format!("clientAddresses: {:?} is no CIDR", clip(bad))),
        None => Ok(()),
    }
}

/// A CIDR, or an address alone.
pub fn cidr(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| Some(IpNet::from(text.parse::<std::net::IpAddr>().ok()?)))
}

fn check_auth(auth: &ExternalAuth, backends: &BTreeSet<&str>) -> Result<(), String> {
    let ExternalAuth { backend, path_prefix, response_headers } = auth;
    if backend.as_deref().is_some_and(|name| !backends.contains(name)) {
        return Err("externalAuth: the backend is not one of spec.backends".into());
    }
    if !path_prefix.is_empty() {
        path_text("externalAuth", path_prefix)?;
    }
    response_headers.iter().try_for_each(|name| token("externalAuth", name))
}

fn limit(limit: &RateLimit) -> Result<(), String> {
    let RateLimit { requests, unit_seconds, burst, per_client: _ } = limit;
    if *requests == 0 || *burst == 0 || *unit_seconds == 0 || *unit_seconds > 86_400 {
        return Err("rateLimit: requests and burst must be above 0, the unit 1 s to 1 day".into());
    }
    Ok(())
}

fn path_text(field: &str, text: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'?' && byte != b'#';
    if !text.starts_with('/') {
        return Err(format!("{field}: {:?} does not begin with /", clip(text)));
    }
    if text.len() > MAX_PATH || !text.bytes().all(plain) {
        let rule = "a path has at most 1024 visible ASCII characters, without ? and #";
        return Err(format!("{field}: {:?}: {rule}", clip(text)));
    }
    Ok(())
}

/// A header's name, a method, a cookie's name (RFC 9110, "Tokens").
fn token(field: &str, text: &str) -> Result<(), String> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.is_empty() || text.len() > 256 || !text.bytes().all(inner) {
        return Err(format!("{field}: {:?} is not a name of RFC 9110", clip(text)));
    }
    Ok(())
}

fn value_text(field: &str, text: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_graphic() || byte == b' ' || byte == b'\t';
    if text.len() > MAX_VALUE || !text.bytes().all(plain) {
        return Err(format!("{field}: at most {MAX_VALUE} visible ASCII characters"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
