//! The table for users and the annotations are the same.

use super::super::nginx::FOLLOWED;
use super::*;

#[test]
fn the_documentation_has_every_annotation() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/annotations.md");
    let text = std::fs::read_to_string(file).unwrap();
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with('|')).collect();
    let has = |name: &str| rows.iter().any(|row| row.contains(&format!("`{name}`")));
    let ours = KNOWN.iter().map(|known| known.name);
    let all = ours.chain(FOLLOWED.iter().map(|(name, ..)| *name));
    let missing: Vec<_> = all.filter(|name| !has(name)).collect();
    assert!(missing.is_empty(), "not in docs/annotations.md: {missing:?}");
}

#[test]
fn values_are_read_or_named() {
    let read = |name: &str, value: &str| {
        let annotations = BTreeMap::from([(format!("{PREFIX}{name}"), value.to_owned())]);
        Settings::parse(&annotations)
    };
    for (name, value) in [
        ("request-timeout", "1.5s"),
        ("request-timeout", "600h"),
        ("retries", "11"),
        ("retry-on", "always"),
        ("rate-limit", "0/s"),
        ("allow-cidrs", "10.0.0.0/33"),
        ("redirect", "ftp://x"),
        ("redirect-code", "200"),
        ("affinity", "ip"),
        ("max-body-size", "5t"),
        ("auth-service", "web"),
        ("backend-protocol", "FCGI"),
        ("affinity-cookie-name", "x"),
    ] {
        let (_, complaints) = read(name, value);
        let message = &complaints.first().unwrap_or_else(|| panic!("{name}: {value}")).message;
        assert!(message.contains(name) && message.contains(value), "{message}");
    }
    assert_eq!(read("idle-timeout", "2h").0.timeouts.idle_millis, Some(7_200_000));
    assert_eq!(read("max-body-size", "0").0.max_body_bytes, None);
}

#[test]
fn a_restriction_that_cannot_be_read_closes_and_others_do_not() {
    let closed = |name: &str| {
        let annotations = BTreeMap::from([(name.to_owned(), "nonsense $$".to_owned())]);
        Settings::parse(&annotations).0.closed
    };
    for name in [
        "fairlead.dev/allow-cidrs",
        "fairlead.dev/rate-limit",
        "fairlead.dev/max-body-size",
        "nginx.ingress.kubernetes.io/whitelist-source-range",
        "nginx.ingress.kubernetes.io/auth-url",
        "nginx.ingress.kubernetes.io/auth-tls-secret",
    ] {
        assert!(closed(name), "{name}");
    }
    for name in ["fairlead.dev/request-timeout", "nginx.ingress.kubernetes.io/auth-realm"] {
        assert!(!closed(name), "{name}");
    }
}
