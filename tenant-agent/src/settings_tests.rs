use proptest::prelude::*;
use serde_json::json;

use super::*;

fn service(annotations: &[(&str, &str)], spec: serde_json::Value) -> Service {
    let annotations: serde_json::Map<_, _> =
        annotations.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
    serde_json::from_value(json!({"metadata": {"annotations": annotations}, "spec": spec})).unwrap()
}

fn read(annotations: &[(&str, &str)]) -> (Settings, Vec<String>) {
    let (settings, complaints) = Settings::parse(&service(annotations, json!({})));
    (settings, complaints.into_iter().map(|one| one.message).collect())
}

#[test]
fn every_annotation_is_in_the_table_for_users() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/services.md");
    let table = std::fs::read_to_string(file).unwrap();
    for Known { name, .. } in KNOWN {
        assert!(table.contains(&format!("`{name}`")), "docs/services.md has no {name}");
    }
}

#[test]
fn good_values_are_read() {
    let (settings, complaints) = read(&[
        ("fairlead.dev/pool", "public"),
        ("fairlead.dev/address", "172.18.0.200, fd00::1"),
        ("fairlead.dev/group", "shop"),
        ("fairlead.dev/sharing", "none"),
        ("fairlead.dev/ip-families", "IPv4,IPv6"),
        ("fairlead.dev/any-port", "http, 81"),
        ("fairlead.dev/source-ranges", "10.0.0.0/8, 1.2.3.4"),
        ("fairlead.dev/idle-timeout", "10s"),
        ("fairlead.dev/connect-timeout", "500ms"),
        ("fairlead.dev/max-connections", "100"),
        ("fairlead.dev/proxy-protocol", "v2"),
        ("fairlead.dev/affinity", "source-address"),
        ("fairlead.dev/load-balancing", "least-request"),
        ("fairlead.dev/health-check", "http"),
        ("fairlead.dev/health-check-path", "/live"),
    ]);
    assert!(complaints.is_empty(), "{complaints:?}");
    assert_eq!(settings.address.ips, ["172.18.0.200", "fd00::1"]);
    assert!(settings.address.alone && settings.clients.source_affinity);
    assert_eq!(settings.clients.source_ranges.len(), 2);
    assert_eq!(settings.any_port.len(), 2);
    let check = settings.upstream.health_check.unwrap();
    assert_eq!(check.probe, Probe::Http { path: "/live".into(), host: None, port: None });
    assert_eq!((check.interval_millis, check.timeout_millis), (5_000, 2_000));
}

#[test]
fn a_bad_value_names_the_annotation_and_the_way_out() {
    for (name, value, says) in [
        ("fairlead.dev/address", "1.2.3.4,1.2.3.5", "one of each family"),
        ("fairlead.dev/address", "what", "must be an IP address"),
        ("fairlead.dev/sharing", "maybe", "must be none"),
        ("fairlead.dev/ip-families", "IPv5", "must be IPv4, IPv6"),
        ("fairlead.dev/proxy-protocol", "3", "must be v1 or v2"),
        ("fairlead.dev/affinity", "cookie", "must be source-address or none"),
        ("fairlead.dev/load-balancing", "best", "round-robin"),
        ("fairlead.dev/health-check", "icmp", "must be tcp, http, grpc or none"),
        ("fairlead.dev/health-check-path", "/", "have no effect without"),
        ("fairlead.dev/health-check-interval", "10ms", "from 1000ms"),
        ("fairlead.dev/nonsense", "1", "is unknown"),
    ] {
        let (settings, complaints) = read(&[(name, value)]);
        assert_eq!(complaints.len(), 1, "{name}");
        assert!(
            complaints[0].contains(says) && complaints[0].contains("fairlead.dev/"),
            "{complaints:?}"
        );
        assert!(!settings.clients.closed, "{name} keeps nobody out");
    }
}

#[test]
fn source_ranges_that_cannot_be_read_close_the_service() {
    for one in [
        service(&[("fairlead.dev/source-ranges", "10.0.0.0/99")], json!({})),
        service(&[(SOURCE_RANGES, "what")], json!({})),
        service(&[], json!({"loadBalancerSourceRanges": ["what"]})),
    ] {
        let (settings, complaints) = Settings::parse(&one);
        assert!(settings.clients.closed && complaints[0].message.contains("nobody is let in"));
    }
}

#[test]
fn the_spec_counts_where_the_api_says_so() {
    let spec = json!({
        "ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "PreferDualStack",
        "loadBalancerIP": "1.2.3.4", "sessionAffinity": "ClientIP",
        "loadBalancerSourceRanges": ["10.0.0.0/8"],
        "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
    });
    let annotations = [("fairlead.dev/address", "1.2.3.5"), (SOURCE_RANGES, "11.0.0.0/8")];
    let (settings, complaints) = Settings::parse(&service(&annotations, spec.clone()));
    assert!(complaints.is_empty(), "{complaints:?}");
    assert_eq!(settings.address.families, [IpFamily::V6, IpFamily::V4]);
    assert!(settings.address.prefer_dual_stack && settings.clients.source_affinity);
    assert_eq!(settings.address.ips, ["1.2.3.5"], "the annotation is preferred");
    let probe = settings.upstream.health_check.clone().unwrap().probe;
    assert_eq!(probe, Probe::Http { path: "/healthz".into(), host: None, port: Some(31_000) });
    assert_eq!(settings.clients.source_ranges, ["10.0.0.0/8"], "the spec beats the annotation");
    let broken = [(SOURCE_RANGES, "what"), ("fairlead.dev/source-ranges", "what")];
    let (settings, _) = Settings::parse(&service(&broken, spec.clone()));
    assert!(!settings.clients.closed, "what does not count closes nothing");
    let (settings, complaints) = Settings::parse(&service(&[(SOURCE_RANGES, "")], json!({})));
    assert!(complaints.is_empty() && settings.clients.source_ranges.is_empty());
    let (settings, _) = Settings::parse(&service(&[("fairlead.dev/health-check", "none")], spec));
    assert_eq!(settings.upstream.health_check, None);
}

proptest! {
    /// Whatever an annotation says, it is read or complained about.
    #[test]
    fn any_value_is_survived(index in 0..KNOWN.len(), value in "\\PC{0,40}") {
        let name = format!("{PREFIX}{}", KNOWN[index].name);
        let _ = read(&[(&name, &value)]);
    }
}
