//! One table: what passes, and what is named.

use fairlead_api::http::{BackendRef, BasicAuth, HeaderMatch, HeaderMatchType, HostTls};
use proptest::prelude::*;

use super::*;

fn host(edit: impl FnOnce(&mut HttpRule)) -> Host {
    let mut rule = HttpRule {
        name: "spec.rules[0].http.paths[0]".into(),
        matches: vec![HttpMatch::default()],
        ..HttpRule::default()
    };
    edit(&mut rule);
    Host { hostname: "a.example".into(), rules: vec![rule], ..Host::default() }
}

/// What is said of a rule that was edited like this; nothing: it is fine.
fn said(edit: impl FnOnce(&mut HttpRule)) -> String {
    let (good, bad) = hosts(vec![host(edit)], &[]);
    if !bad.is_empty() && !good[0].rules.is_empty() {
        let HttpRule { backends, filters, .. } = &good[0].rules[0];
        assert!(backends.is_empty() && **filters == Filters::default(), "what is left is closed");
    }
    bad.join("; ")
}

fn path(kind: PathMatchType, value: &str) -> PathMatch {
    PathMatch { kind, value: value.into() }
}

#[test]
fn host_names_are_dns_names_with_at_most_one_wildcard_in_front() {
    for good in ["*", "a.example", "*.a.example", "localhost", "1a.example"] {
        hostname(good).unwrap_or_else(|error| panic!("{good}: {error}"));
    }
    let long = format!("{}.example", "a.".repeat(130));
    for bad in [
        "",
        "A.example",
        "a..example",
        "*.*.a",
        "a.*.b",
        "-a.b",
        "a_b.c",
        "1.2.3.4",
        "a:80",
        "a/b",
        &long,
    ] {
        assert!(hostname(bad).is_err(), "{bad}");
    }
}

type Edit = Box<dyn FnOnce(&mut HttpRule)>;

#[test]
#[allow(clippy::too_many_lines)] // a table
fn what_envoy_would_refuse_is_named() {
    assert_eq!(said(|_| ()), "");
    let cases: Vec<(&str, Edit)> = vec![
        (
            "does not begin with /",
            Box::new(|r| r.matches[0].path = path(PathMatchType::Exact, "x")),
        ),
        (
            "without ? and #",
            Box::new(|r| r.matches[0].path = path(PathMatchType::PathPrefix, "/a?b")),
        ),
        (
            "without ? and #",
            Box::new(|r| r.matches[0].path = path(PathMatchType::PathPrefix, "/a\nb")),
        ),
        (
            "RE2 understands",
            Box::new(|r| r.matches[0].path = path(PathMatchType::RegularExpression, "/(")),
        ),
        ("1 to 8 matches", Box::new(|r| r.matches.clear())),
        (
            "not a name of RFC 9110",
            Box::new(|r| {
                let kind = HeaderMatchType::Exact;
                r.matches[0].headers =
                    vec![HeaderMatch { kind, name: "a b".into(), value: String::new() }];
            }),
        ),
        (
            "is not one of spec.backends",
            Box::new(|r| {
                r.backends = vec![BackendRef { name: "nobody".into(), weight: 1 }];
            }),
        ),
        (
            "cannot be edited",
            Box::new(|r| {
                r.filters.request_header_modifier.set.insert("Host".into(), "x".into());
            }),
        ),
        (
            "cannot be edited",
            Box::new(|r| {
                r.filters.request_header_modifier.remove.push("x-fairlead-scope".into());
            }),
        ),
        (
            "not a name of RFC 9110",
            Box::new(|r| {
                r.filters.response_header_modifier.set.insert(":status".into(), "200".into());
            }),
        ),
        (
            "visible ASCII",
            Box::new(|r| {
                r.filters.request_header_modifier.set.insert("X".into(), "a\r\nb".into());
            }),
        ),
        (
            "not 301",
            Box::new(|r| {
                r.filters.request_redirect =
                    Some(RequestRedirect { status_code: 200, ..Default::default() });
            }),
        ),
        (
            "must be http or https",
            Box::new(|r| {
                let scheme = Some("ftp".into());
                r.filters.request_redirect =
                    Some(RequestRedirect { scheme, status_code: 301, ..Default::default() });
            }),
        ),
        (
            "has only 0 groups",
            Box::new(|r| {
                r.filters.url_rewrite.path = Some(PathRewrite::ReplaceRegexMatch("/\\1".into()));
            }),
        ),
        (
            "not for every origin",
            Box::new(|r| {
                let allow_origins = vec!["*".into()];
                r.filters.cors =
                    Some(Cors { allow_origins, allow_credentials: true, ..Cors::default() });
            }),
        ),
        (
            "is not an origin",
            Box::new(|r| {
                let allow_origins = vec!["https://*.a.example:(".into()];
                r.filters.cors = Some(Cors { allow_origins, ..Cors::default() });
            }),
        ),
        ("is no CIDR", Box::new(|r| r.filters.client_addresses.allow = vec!["10.0.0.0/33".into()])),
        (
            "must name a Secret",
            Box::new(|r| {
                r.filters.basic_auth = Some(BasicAuth { secret: "../other".into() });
            }),
        ),
        ("must be above 0", Box::new(|r| r.filters.rate_limit = Some(RateLimit::default()))),
        (
            "the cookie's name",
            Box::new(|r| {
                let (name, path) = ("a;b".into(), "/".into());
                r.session_persistence =
                    Some(SessionPersistence::Cookie { name, max_age_seconds: 0, path });
            }),
        ),
    ];
    for (wanted, edit) in cases {
        let message = said(edit);
        assert!(
            message.starts_with("spec.rules[0]") && message.contains(wanted),
            "{wanted}: {message}"
        );
        assert!(message.len() < 400, "{message}");
    }
}

#[test]
fn tls_that_cannot_be_leaves_the_host_in_plain_http() {
    let tls = |certificate: Option<&str>| Host {
        tls: Some(HostTls { certificate: certificate.map(Into::into), ..HostTls::default() }),
        ..host(|_| ())
    };
    assert!(hosts(vec![tls(Some("shop-tls"))], &[]).1.is_empty());
    for bad in [None, Some("../x"), Some("A")] {
        let (good, said) = hosts(vec![tls(bad)], &[]);
        assert!(
            good[0].tls.is_none() && said[0].contains("needs the name of a Secret"),
            "{said:?}"
        );
    }
}

proptest! {
    /// Whatever a tenant sends: no panic, and what is said has bounds.
    #[test]
    fn any_text_is_read(text in ".{0,60}", expression in "[/a-z(){}\\[\\]*+?|^$\\\\0-9,:<>!=.-]{0,40}") {
        let _ = hostname(&text);
        let message = said(|rule| {
            rule.matches[0].path = path(PathMatchType::RegularExpression, &expression);
            rule.filters.request_header_modifier.set.insert(text.clone(), text.clone());
            rule.filters.client_addresses.deny = vec![text.clone()];
        });
        prop_assert!(message.len() < 1_000);
    }
}
