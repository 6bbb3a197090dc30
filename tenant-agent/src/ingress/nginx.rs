//! Annotations of ingress-nginx, which is no longer maintained: those that have a counterpart here are
//! followed, each of the others is named in an Event. Snippets are never followed.
//!
//! What they mean: <https://kubernetes.github.io/ingress-nginx/user-guide/nginx-configuration/annotations/>.

use std::collections::BTreeMap;

use fairlead_api::http::{PathRewrite, RateLimit, SessionPersistence};

use super::settings::{Settings, code, cookie, cors, path, redirect, set_protocol, size};
use crate::annotations::{Complaint, MAX_CONNECT, boolean, cidrs, list, number, set};

const PREFIX: &str = "nginx.ingress.kubernetes.io/";

type Setter = fn(&mut Settings, &str) -> Result<(), String>;

/// Those that are followed, in the order in which they are applied, and whether they restrict.
pub(crate) const FOLLOWED: &[(&str, Setter, bool)] = &[
    ("ssl-redirect", |s, v| set(&mut s.no_redirect, !boolean(v)?), false),
    ("force-ssl-redirect", |s, v| force(s, v), false),
    ("ssl-passthrough", |s, v| set(&mut s.passthrough, boolean(v)?), false),
    ("backend-protocol", set_protocol, false),
    (
        "proxy-ssl-secret",
        |s, v| set(&mut s.tls_ca, Some(v.rsplit('/').next().unwrap_or(v).into())),
        false,
    ),
    ("proxy-ssl-verify", |s, v| verify(s, v), false),
    ("proxy-ssl-name", |s, v| set(&mut s.tls_name, Some(v.into())), false),
    ("proxy-ssl-server-name", |_, v| only(v, "on"), false),
    ("proxy-body-size", |s, v| set(&mut s.max_body_bytes, size(v)?), true),
    (
        "proxy-connect-timeout",
        |s, v| set(&mut s.connect_millis, Some(seconds(v)?.min(MAX_CONNECT))),
        false,
    ),
    ("proxy-read-timeout", |s, v| idle(s, v), false),
    ("proxy-send-timeout", |s, v| idle(s, v), false),
    ("proxy-buffering", |_, v| only(v, "off"), false),
    ("proxy-request-buffering", |_, v| only(v, "off"), false),
    ("proxy-http-version", |_, v| only(v, "1.1"), false),
    ("use-regex", |s, v| set(&mut s.path_regex, boolean(v)?), false),
    ("rewrite-target", |s, v| rewrite(s, v), false),
    ("app-root", |s, v| set(&mut s.app_root, Some(path(v)?)), false),
    ("permanent-redirect", |s, v| moved(s, v, 301), false),
    ("permanent-redirect-code", |s, v| moved_code(s, v), false),
    ("temporal-redirect", |s, v| moved(s, v, 302), false),
    ("temporal-redirect-code", |s, v| moved_code(s, v), false),
    ("whitelist-source-range", |s, v| set(&mut s.clients.allow, cidrs(v)?), true),
    ("allowlist-source-range", |s, v| set(&mut s.clients.allow, cidrs(v)?), true),
    ("denylist-source-range", |s, v| set(&mut s.clients.deny, cidrs(v)?), true),
    ("limit-rps", |s, v| limit(s, v, 1), true),
    ("limit-rpm", |s, v| limit(s, v, 60), true),
    ("limit-burst-multiplier", |s, v| burst(s, v), true),
    ("enable-cors", |s, v| enable_cors(s, v), false),
    ("cors-allow-origin", |s, v| origins(s, v), false),
    ("cors-allow-methods", |s, v| set(&mut cors(s).allow_methods, list(v)), false),
    ("cors-allow-headers", |s, v| set(&mut cors(s).allow_headers, list(v)), false),
    ("cors-expose-headers", |s, v| set(&mut cors(s).expose_headers, list(v)), false),
    ("cors-allow-credentials", |s, v| credentials(s, v), false),
    ("cors-max-age", |s, v| set(&mut cors(s).max_age_seconds, number(v, 0, 100_000_000)?), false),
    ("affinity", |s, v| affinity(s, v), false),
    ("session-cookie-name", |s, v| cookie(s, |name, _, _| v.clone_into(name)), false),
    ("session-cookie-path", |s, v| cookie(s, |_, _, path| v.clone_into(path)), false),
    ("session-cookie-max-age", |s, v| max_age(s, v), false),
    ("upstream-hash-by", |s, v| hash_by(s, v), false),
    ("load-balance", |_, v| only(v, "round_robin"), false),
    ("auth-type", |_, v| only(v, "basic"), true),
    ("auth-secret", |s, v| auth_secret(s, v), true),
    ("auth-secret-type", |_, v| only(v, "auth-file"), true),
    ("upstream-vhost", |s, v| upstream_host(s, v), false),
    ("x-forwarded-prefix", |s, v| forwarded_prefix(s, v), false),
];

/// Follows what can be followed, and complains of the rest.
pub(super) fn apply(
    settings: &mut Settings,
    annotations: &BTreeMap<String, String>,
    complaints: &mut Vec<Complaint>,
) {
    if annotations.get(&format!("{PREFIX}enable-cors")).is_none_or(|value| value != "true") {
        // Without it nothing of CORS holds.
        let rest =
            annotations.iter().filter(|(name, _)| !name.starts_with(&format!("{PREFIX}cors-")));
        let rest = rest.map(|(name, value)| (name.clone(), value.clone())).collect();
        return follow(settings, &rest, complaints);
    }
    follow(settings, annotations, complaints);
}

fn follow(
    settings: &mut Settings,
    annotations: &BTreeMap<String, String>,
    complaints: &mut Vec<Complaint>,
) {
    for (name, read, restricts) in FOLLOWED {
        let full = format!("{PREFIX}{name}");
        let Some(value) = annotations.get(&full) else { continue };
        if let Err(why) = read(settings, value.trim()) {
            complaints.push(settings.complain(&full, value, &why, *restricts));
        }
    }
    if annotations.contains_key(&format!("{PREFIX}auth-type")) && settings.basic_auth.is_none() {
        settings.closed = true;
        let message = format!(
            "annotation {PREFIX}auth-type needs a good auth-secret beside it; until then all is \
             answered with 503"
        );
        complaints.push(Complaint { reason: "InvalidAnnotation", message });
    }
    let names = annotations.keys().filter_map(|name| name.strip_prefix(PREFIX));
    let unknown: Vec<_> =
        names.filter(|name| !FOLLOWED.iter().any(|(known, ..)| known == name)).collect();
    for name in unknown {
        let message = match name {
            _ if name.ends_with("-snippet") => {
                format!("annotation {PREFIX}{name}: snippets are never followed")
            }
            "canary" => {
                // Published like any other, it would take the requests of the one that it is beside.
                settings.unpublished = annotations[&format!("{PREFIX}canary")] == "true";
                format!(
                    "annotation {PREFIX}canary is not followed, and its Ingress is not published; use \
                     fairlead.dev/canary-backend on the main Ingress"
                )
            }
            _ if name.starts_with("canary") => format!(
                "annotation {PREFIX}{name} is not followed; use fairlead.dev/canary-backend on the \
                 main Ingress"
            ),
            _ => format!("annotation {PREFIX}{name} is not followed, and has no effect"),
        };
        // Who was kept out there must not be let in here.
        let about_words = name == "auth-realm";
        settings.closed |= !about_words && (name.starts_with("auth-") || name == "satisfy");
        complaints.push(Complaint { reason: "UnsupportedAnnotation", message });
    }
}

fn only(value: &str, wanted: &str) -> Result<(), String> {
    if value == wanted { Ok(()) } else { Err(format!("only {wanted} is followed")) }
}

/// The weaker wish gives way.
fn force(settings: &mut Settings, value: &str) -> Result<(), String> {
    settings.no_redirect &= !boolean(value)?;
    Ok(())
}

fn seconds(text: &str) -> Result<u32, String> {
    Ok(number(text, 1, 1_000_000)? * 1_000)
}

fn verify(settings: &mut Settings, value: &str) -> Result<(), String> {
    match value {
        // A Secret beside it is then for nothing that we need.
        "off" => set(&mut settings.tls_ca, None),
        "on" if settings.tls_ca.is_some() => Ok(()),
        _ => Err("on needs proxy-ssl-secret with ca.crt".into()),
    }
}

/// nginx has one for each direction; here it is a stream on which nothing moves.
fn idle(settings: &mut Settings, value: &str) -> Result<(), String> {
    let millis = seconds(value)?;
    let longest = settings.timeouts.idle_millis.map_or(millis, |old| old.max(millis));
    settings.timeouts.idle_millis = Some(longest);
    Ok(())
}

/// `$1` to `$9` are groups; without any, every path becomes the target.
fn rewrite(settings: &mut Settings, value: &str) -> Result<(), String> {
    let target = path(value)?;
    if !target.contains('$') {
        settings.rewrite = Some(PathRewrite::ReplaceFullPath(target));
        return Ok(());
    }
    let mut groups = String::with_capacity(target.len());
    let mut rest = target.chars().peekable();
    while let Some(one) = rest.next() {
        let digit = rest.peek().is_some_and(char::is_ascii_digit);
        match one {
            '$' if digit => groups.push('\\'),
            '$' => return Err("only $1 to $9 are followed".into()),
            '\\' => return Err("must not hold a backslash".into()),
            other => groups.push(other),
        }
    }
    // As ingress-nginx does it: with groups, paths are expressions.
    settings.path_regex = true;
    settings.rewrite = Some(PathRewrite::ReplaceRegexMatch(groups));
    Ok(())
}

fn moved(settings: &mut Settings, value: &str, status_code: u16) -> Result<(), String> {
    let mut redirect = redirect(value)?;
    redirect.status_code = status_code;
    // nginx appends neither the path nor the query.
    redirect.path.get_or_insert_with(|| "/".into());
    settings.redirect = Some(redirect);
    Ok(())
}

fn moved_code(settings: &mut Settings, value: &str) -> Result<(), String> {
    let code = code(value)?;
    settings.redirect.as_mut().ok_or("needs the redirect beside it")?.status_code = code;
    Ok(())
}

fn limit(settings: &mut Settings, value: &str, unit_seconds: u32) -> Result<(), String> {
    let requests = number(value, 1, 1_000_000)?;
    // nginx lets five times as many through at once.
    let burst = requests.saturating_mul(5);
    settings.rate_limit = Some(RateLimit { requests, unit_seconds, burst, per_client: true });
    Ok(())
}

fn burst(settings: &mut Settings, value: &str) -> Result<(), String> {
    let times = number(value, 1, 1_000)?;
    let limit = settings.rate_limit.as_mut().ok_or("needs limit-rps or limit-rpm beside it")?;
    limit.burst = limit.requests.saturating_mul(times);
    Ok(())
}

fn enable_cors(settings: &mut Settings, value: &str) -> Result<(), String> {
    if !boolean(value)? {
        return Ok(());
    }
    let cors = cors(settings);
    cors.allow_headers = list(
        "DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,Content-Type,\
         Range,Authorization",
    );
    cors.max_age_seconds = 1_728_000;
    Ok(())
}

/// With origins that are named, cookies are let through, as nginx does; never with `*`.
fn origins(settings: &mut Settings, value: &str) -> Result<(), String> {
    let cors = cors(settings);
    cors.allow_origins = list(value);
    cors.allow_credentials = !cors.allow_origins.iter().any(|origin| origin == "*");
    Ok(())
}

fn credentials(settings: &mut Settings, value: &str) -> Result<(), String> {
    let wanted = boolean(value)?;
    let cors = cors(settings);
    cors.allow_credentials = wanted && !cors.allow_origins.iter().any(|origin| origin == "*");
    Ok(())
}

fn affinity(settings: &mut Settings, value: &str) -> Result<(), String> {
    only(value, "cookie")?;
    settings.session = Some(SessionPersistence::Cookie {
        name: "INGRESSCOOKIE".into(),
        max_age_seconds: 0,
        path: "/".into(),
    });
    Ok(())
}

fn max_age(settings: &mut Settings, value: &str) -> Result<(), String> {
    let seconds = number(value, 0, 1_000_000_000)?;
    cookie(settings, |_, age, _| *age = seconds)
}

fn hash_by(settings: &mut Settings, value: &str) -> Result<(), String> {
    if !["$remote_addr", "$binary_remote_addr"].contains(&value) {
        return Err("only $remote_addr is followed".into());
    }
    settings.session = Some(SessionPersistence::SourceAddress {});
    Ok(())
}

fn auth_secret(settings: &mut Settings, value: &str) -> Result<(), String> {
    if value.contains('/') {
        return Err("must be a Secret of the same namespace".into());
    }
    settings.basic_auth = Some(value.to_owned());
    Ok(())
}

fn upstream_host(settings: &mut Settings, value: &str) -> Result<(), String> {
    if value.contains('$') {
        return Err("variables are not followed".into());
    }
    settings.rewrite_host = Some(value.to_owned());
    Ok(())
}

fn forwarded_prefix(settings: &mut Settings, value: &str) -> Result<(), String> {
    let value = path(value)?;
    if value.contains('$') {
        return Err("variables are not followed".into());
    }
    settings.request_headers.set.insert("X-Forwarded-Prefix".into(), value);
    Ok(())
}
