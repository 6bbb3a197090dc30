//! Annotations under `fairlead.dev/` of an Ingress → typed settings. `docs/annotations.md` is the
//! table for users; a test holds the two together.

use std::collections::BTreeMap;

use fairlead_api::http::{
    Balancing, ClientAddresses, Cors, HeaderModifier, PathRewrite, RateLimit, RequestRedirect,
    Retry, RetryOn, SessionPersistence, Timeouts, UpstreamProtocol,
};

use super::nginx;
use crate::annotations::{
    Complaint, Known, MAX_CONNECT, PREFIX, balancing, boolean, cidrs, list, millis, number, plain,
    set, strict, unknown,
};

/// What an Ingress asks for beside its rules.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(clippy::struct_excessive_bools)] // each is an annotation
pub(crate) struct Settings {
    pub(crate) pool: String,
    pub(crate) address: String,
    pub(crate) no_redirect: bool,
    pub(crate) passthrough: bool,
    pub(crate) protocol: Option<(UpstreamProtocol, bool)>,
    pub(crate) tls_ca: Option<String>,
    pub(crate) tls_name: Option<String>,
    pub(crate) connect_millis: Option<u32>,
    pub(crate) timeouts: Timeouts,
    pub(crate) retry: Option<Retry>,
    pub(crate) rate_limit: Option<RateLimit>,
    pub(crate) rate_burst: Option<u32>,
    pub(crate) clients: ClientAddresses,
    pub(crate) cors: Option<Cors>,
    pub(crate) redirect: Option<RequestRedirect>,
    pub(crate) redirect_code: Option<u16>,
    pub(crate) app_root: Option<String>,
    pub(crate) rewrite: Option<PathRewrite>,
    pub(crate) rewrite_host: Option<String>,
    pub(crate) path_regex: bool,
    pub(crate) request_headers: HeaderModifier,
    pub(crate) response_headers: HeaderModifier,
    pub(crate) session: Option<SessionPersistence>,
    pub(crate) balancing: Balancing,
    pub(crate) basic_auth: Option<String>,
    pub(crate) auth_service: Option<(String, String)>,
    pub(crate) auth_path: String,
    pub(crate) auth_headers: Vec<String>,
    pub(crate) max_body_bytes: Option<u64>,
    pub(crate) canary: Option<(String, String)>,
    pub(crate) canary_weight: u32,
    pub(crate) canary_header: Option<String>,
    pub(crate) canary_header_value: Option<String>,
    /// It is not to be published as it is: it would take another's requests.
    pub(crate) unpublished: bool,
    /// A restriction that cannot be read: nothing is served rather than everything.
    pub(crate) closed: bool,
}

/// Every annotation that there is, in the order in which they are applied.
pub(crate) const KNOWN: &[Known<Settings>] = &[
    plain("pool", |s, v| set(&mut s.pool, v.to_owned())),
    plain("address", |s, v| set(&mut s.address, v.to_owned())),
    plain("ssl-redirect", |s, v| set(&mut s.no_redirect, !boolean(v)?)),
    plain("ssl-passthrough", |s, v| set(&mut s.passthrough, boolean(v)?)),
    plain("backend-protocol", |s, v| set(&mut s.protocol, Some(protocol(v)?))),
    plain("backend-tls-ca", |s, v| set(&mut s.tls_ca, Some(v.to_owned()))),
    plain("backend-tls-server-name", |s, v| set(&mut s.tls_name, Some(v.to_owned()))),
    plain("connect-timeout", |s, v| {
        set(&mut s.connect_millis, Some(millis(v)?.clamp(1, MAX_CONNECT)))
    }),
    plain("request-timeout", |s, v| set(&mut s.timeouts.request_millis, Some(millis(v)?))),
    plain("idle-timeout", |s, v| set(&mut s.timeouts.idle_millis, Some(millis(v)?))),
    plain("retries", |s, v| set(&mut retry(s).attempts, number(v, 0, 10)?)),
    plain("retry-on", |s, v| set(&mut retry(s).on, retry_on(v)?)),
    plain("retry-timeout", |s, v| set(&mut retry(s).per_try_millis, Some(millis(v)?.max(1)))),
    strict("rate-limit", |s, v| set(&mut s.rate_limit, Some(rate(v)?))),
    strict("rate-limit-burst", |s, v| set(&mut s.rate_burst, Some(number(v, 1, 1_000_000)?))),
    strict("rate-limit-per-client", |s, v| {
        let limit = s.rate_limit.as_mut().ok_or("needs fairlead.dev/rate-limit beside it")?;
        limit.per_client = boolean(v)?;
        Ok(())
    }),
    strict("allow-cidrs", |s, v| set(&mut s.clients.allow, cidrs(v)?)),
    strict("deny-cidrs", |s, v| set(&mut s.clients.deny, cidrs(v)?)),
    plain("cors-allow-origins", |s, v| set(&mut cors(s).allow_origins, list(v))),
    plain("cors-allow-methods", |s, v| set(&mut cors(s).allow_methods, list(v))),
    plain("cors-allow-headers", |s, v| set(&mut cors(s).allow_headers, list(v))),
    plain("cors-expose-headers", |s, v| set(&mut cors(s).expose_headers, list(v))),
    plain("cors-allow-credentials", |s, v| set(&mut cors(s).allow_credentials, boolean(v)?)),
    plain("cors-max-age", |s, v| set(&mut cors(s).max_age_seconds, millis(v)? / 1_000)),
    plain("redirect", |s, v| set(&mut s.redirect, Some(redirect(v)?))),
    plain("redirect-code", |s, v| set(&mut s.redirect_code, Some(code(v)?))),
    plain("app-root", |s, v| set(&mut s.app_root, Some(path(v)?))),
    plain("rewrite-prefix", |s, v| {
        set(&mut s.rewrite, Some(PathRewrite::ReplacePrefixMatch(path(v)?)))
    }),
    plain("rewrite-path", |s, v| set(&mut s.rewrite, Some(PathRewrite::ReplaceFullPath(path(v)?)))),
    plain("rewrite-regex", |s, v| {
        set(&mut s.rewrite, Some(PathRewrite::ReplaceRegexMatch(path(v)?)))
    }),
    plain("rewrite-host", |s, v| set(&mut s.rewrite_host, Some(v.to_owned()))),
    plain("path-regex", |s, v| set(&mut s.path_regex, boolean(v)?)),
    plain("request-headers-set", |s, v| set(&mut s.request_headers.set, headers(v)?)),
    plain("request-headers-add", |s, v| set(&mut s.request_headers.add, headers(v)?)),
    plain("request-headers-remove", |s, v| set(&mut s.request_headers.remove, list(v))),
    plain("response-headers-set", |s, v| set(&mut s.response_headers.set, headers(v)?)),
    plain("response-headers-add", |s, v| set(&mut s.response_headers.add, headers(v)?)),
    plain("response-headers-remove", |s, v| set(&mut s.response_headers.remove, list(v))),
    plain("affinity", |s, v| set(&mut s.session, Some(affinity(v)?))),
    plain("affinity-cookie-name", |s, v| cookie(s, |name, _, _| v.clone_into(name))),
    plain("affinity-cookie-max-age", |s, v| {
        let seconds = millis(v)? / 1_000;
        cookie(s, |_, age, _| *age = seconds)
    }),
    plain("affinity-cookie-path", |s, v| cookie(s, |_, _, path| v.clone_into(path))),
    plain("load-balancing", |s, v| set(&mut s.balancing, balancing(v)?)),
    strict("basic-auth-secret", |s, v| set(&mut s.basic_auth, Some(v.to_owned()))),
    strict("auth-service", |s, v| set(&mut s.auth_service, Some(service(v)?))),
    strict("auth-path", |s, v| set(&mut s.auth_path, path(v)?)),
    plain("auth-response-headers", |s, v| set(&mut s.auth_headers, list(v))),
    strict("max-body-size", |s, v| set(&mut s.max_body_bytes, size(v)?)),
    plain("canary-backend", |s, v| set(&mut s.canary, Some(service(v)?))),
    plain("canary-weight", |s, v| set(&mut s.canary_weight, number(v, 0, 100)?)),
    plain("canary-header", |s, v| set(&mut s.canary_header, Some(v.to_owned()))),
    plain("canary-header-value", |s, v| set(&mut s.canary_header_value, Some(v.to_owned()))),
];

impl Settings {
    /// Reads annotations. Ours count before those of ingress-nginx.
    pub(crate) fn parse(annotations: &BTreeMap<String, String>) -> (Self, Vec<Complaint>) {
        let (mut settings, mut complaints) = (Self::default(), Vec::new());
        nginx::apply(&mut settings, annotations, &mut complaints);
        for Known { name, read, restricts } in KNOWN {
            let Some(value) = annotations.get(&format!("{PREFIX}{name}")) else { continue };
            if let Err(why) = read(&mut settings, value.trim()) {
                complaints.push(settings.complain(
                    &format!("{PREFIX}{name}"),
                    value,
                    &why,
                    *restricts,
                ));
            }
        }
        complaints.extend(unknown(annotations, KNOWN, &["shadow-of"]));
        complaints.extend(settings.finish());
        (settings, complaints)
    }

    /// A value that cannot be read. Where it restricts, nothing is served until it can.
    pub(super) fn complain(
        &mut self,
        name: &str,
        value: &str,
        why: &str,
        restricts: bool,
    ) -> Complaint {
        self.closed |= restricts;
        let then = if restricts { "; until then all is answered with 503" } else { "" };
        Complaint::unreadable(name, value, why, then)
    }

    /// What one annotation says of another.
    fn finish(&mut self) -> Option<Complaint> {
        if let (Some(limit), Some(burst)) = (&mut self.rate_limit, self.rate_burst) {
            limit.burst = burst;
        }
        if let (Some(redirect), Some(code)) = (&mut self.redirect, self.redirect_code) {
            redirect.status_code = code;
        }
        if let Some(retry) = self.retry.as_mut().filter(|retry| retry.on.is_empty()) {
            // What has certainly not reached the application.
            retry.on = vec![RetryOn::ConnectFailure, RetryOn::RefusedStream];
        }
        if self.session == Some(SessionPersistence::SourceAddress {}) {
            self.balancing = Balancing::Maglev;
        }
        let restricts = self.clients != ClientAddresses::default()
            || self.basic_auth.is_some()
            || self.auth_service.is_some()
            || self.rate_limit.is_some();
        if !(self.passthrough && restricts) {
            return None;
        }
        self.closed = true;
        let message = "annotation fairlead.dev/ssl-passthrough: nobody can be kept out of what is \
                       passed through; remove it, or the restrictions beside it"
            .to_owned();
        Some(Complaint { reason: "InvalidAnnotation", message })
    }
}

/// One `Name: value` on each line.
fn headers(text: &str) -> Result<BTreeMap<String, String>, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let header = |line: &str| {
        let (name, value) = line.split_once(':').ok_or("must be lines of Name: value")?;
        Ok((name.trim().to_owned(), value.trim().to_owned()))
    };
    lines.map(header).collect()
}

fn protocol(text: &str) -> Result<(UpstreamProtocol, bool), String> {
    match text {
        "HTTP" => Ok((UpstreamProtocol::Http, false)),
        "HTTP2" | "H2C" | "GRPC" => Ok((UpstreamProtocol::Http2, false)),
        "HTTPS" => Ok((UpstreamProtocol::Http, true)),
        "GRPCS" => Ok((UpstreamProtocol::Http2, true)),
        _ => Err("must be HTTP, HTTP2, GRPC, HTTPS or GRPCS".into()),
    }
}

/// The same, of annotations that share the words.
pub(super) fn set_protocol(settings: &mut Settings, text: &str) -> Result<(), String> {
    settings.protocol = Some(protocol(text)?);
    Ok(())
}

fn retry(settings: &mut Settings) -> &mut Retry {
    settings.retry.get_or_insert_with(|| Retry { attempts: 1, ..Retry::default() })
}

fn retry_on(text: &str) -> Result<Vec<RetryOn>, String> {
    let word = |text: &String| {
        RetryOn::parse(text).ok_or_else(|| {
            "knows connect-failure, refused-stream, reset, gateway-error, 5xx and retriable-4xx"
                .to_owned()
        })
    };
    list(text).iter().map(word).collect()
}

/// `100/s`, `1000/m` or `5000/h`.
fn rate(text: &str) -> Result<RateLimit, String> {
    let rule = || "must be a rate like 100/s, 1000/m or 5000/h".to_owned();
    let (number, unit) = text.split_once('/').ok_or_else(rule)?;
    let unit_seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return Err(rule()),
    };
    let requests: u32 =
        number.parse().ok().filter(|n| (1..=1_000_000).contains(n)).ok_or_else(rule)?;
    Ok(RateLimit { requests, unit_seconds, burst: requests, per_client: false })
}

pub(super) fn cors(settings: &mut Settings) -> &mut Cors {
    settings.cors.get_or_insert_with(|| Cors {
        allow_origins: vec!["*".into()],
        allow_methods: ["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"]
            .map(String::from)
            .into(),
        allow_headers: vec!["Content-Type".into(), "Authorization".into()],
        max_age_seconds: 3_600,
        ..Cors::default()
    })
}

/// `https://host[:port][/path]`, or a path alone.
pub(super) fn redirect(text: &str) -> Result<RequestRedirect, String> {
    let found = RequestRedirect { status_code: 302, ..RequestRedirect::default() };
    if text.starts_with('/') {
        return Ok(RequestRedirect { path: Some(text.to_owned()), ..found });
    }
    let rule = || "must be a URL like https://example.com/path, or a path".to_owned();
    let (scheme, rest) = text.split_once("://").ok_or_else(rule)?;
    if !["http", "https"].contains(&scheme) {
        return Err(rule());
    }
    let (authority, path) = match rest.find('/') {
        Some(place) => (&rest[..place], Some(rest[place..].to_owned())),
        None => (rest, None),
    };
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(port.parse().map_err(|_| rule())?)),
        None => (authority, None),
    };
    if host.is_empty() || text.contains('$') {
        return Err(rule());
    }
    Ok(RequestRedirect {
        scheme: Some(scheme.to_owned()),
        hostname: Some(host.to_owned()),
        port,
        path,
        ..found
    })
}

pub(super) fn code(text: &str) -> Result<u16, String> {
    let code = text.parse().ok().filter(|code| [301, 302, 303, 307, 308].contains(code));
    code.ok_or_else(|| "must be 301, 302, 303, 307 or 308".to_owned())
}

pub(super) fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        return Ok(text.to_owned());
    }
    Err("must begin with /".into())
}

fn affinity(text: &str) -> Result<SessionPersistence, String> {
    match text {
        "cookie" => Ok(SessionPersistence::Cookie {
            name: "fairlead".into(),
            max_age_seconds: 0,
            path: "/".into(),
        }),
        "source-address" => Ok(SessionPersistence::SourceAddress {}),
        _ => Err("must be cookie or source-address".into()),
    }
}

/// Sets something of the cookie of an affinity that was asked for.
pub(super) fn cookie(
    settings: &mut Settings,
    set: impl FnOnce(&mut String, &mut u32, &mut String),
) -> Result<(), String> {
    match &mut settings.session {
        Some(SessionPersistence::Cookie { name, max_age_seconds, path }) => {
            set(name, max_age_seconds, path);
            Ok(())
        }
        _ => Err("needs the affinity cookie beside it".into()),
    }
}

/// `name:port`, the port by number or name.
fn service(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, port)) if !name.is_empty() && !port.is_empty() => {
            Ok((name.to_owned(), port.to_owned()))
        }
        _ => Err("must be a Service of this namespace with its port, as name:port".into()),
    }
}

/// `0` (no limit), or bytes, with `k`, `m` or `g` for units of 1024.
pub(super) fn size(text: &str) -> Result<Option<u64>, String> {
    let rule = || "must be a size like 512k, 10m or 1g".to_owned();
    let lower = text.to_ascii_lowercase();
    let (digits, factor) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 1 << 10),
        Some(b'm') => (&lower[..lower.len() - 1], 1 << 20),
        Some(b'g') => (&lower[..lower.len() - 1], 1 << 30),
        _ => (lower.as_str(), 1),
    };
    let number = digits.parse::<u32>().ok().map(u64::from);
    let bytes = number.and_then(|number| number.checked_mul(factor));
    Ok(Some(bytes.ok_or_else(rule)?).filter(|bytes| *bytes > 0))
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
