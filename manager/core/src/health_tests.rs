use super::*;

fn wanted(tenant: &str, endpoints: &[&str]) -> Wanted {
    let check = HealthCheck {
        probe: Probe::Tcp {},
        interval_millis: 1_000,
        timeout_millis: 500,
        unhealthy_threshold: 1,
        healthy_threshold: 1,
    };
    let endpoints = endpoints.iter().map(|ip| (ip.parse().unwrap(), 30_000)).collect();
    let (tenant, host) = (tenant.parse().unwrap(), "web.shop".to_owned());
    Wanted { tenant, check, host, socket: None, endpoints }
}

fn with(checkers: &[&str]) -> Health {
    let mut health = Health::default();
    for envoy in checkers {
        health.checker(&(*envoy).into(), true);
    }
    health
}

/// Tells the same of an endpoint in the words of an Envoy.
fn tell(health: &mut Health, envoy: &str, ip: &str, healthy: bool, now: i64) -> Vec<String> {
    let names: Vec<_> = health.names.keys().cloned().collect();
    let found = vec![((ip.parse().unwrap(), 30_000), healthy)];
    let report = names.into_iter().map(|name| (name, found.clone())).collect();
    health.report(&envoy.into(), report, now)
}

/// What Envoys are told, all of them long after the last time.
fn take(health: &mut Health) -> Vec<(EnvoyId, HealthCheckSpecifier)> {
    health.rests.clear();
    health.take(0)
}

fn says(health: &Health) -> String {
    let verdict = health.verdict([&"c".to_owned()].into_iter()).unwrap();
    format!("{} {}", verdict.reason.as_str(), verdict.message)
}

#[test]
fn an_endpoint_that_does_not_answer_is_left_out_until_it_does() {
    let mut health = with(&["e1"]);
    health.set("c", Some(wanted("blue", &["10.0.0.1", "10.0.0.2"])), &[]);
    let told = take(&mut health);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].1.cluster_health_checks[0].locality_endpoints[0].endpoints.len(), 2);
    assert_eq!(says(&health), "Pending not every endpoint was asked yet");
    tell(&mut health, "e1", "10.0.0.2", true, 0);
    assert_eq!(says(&health), "Pending not every endpoint was asked yet");
    // Nothing else changes for Envoy, and yet there is something to tell.
    assert_eq!(tell(&mut health, "e1", "10.0.0.1", true, 0), ["c"]);
    assert_eq!(says(&health), "Healthy 2 of 2 endpoints are healthy");
    assert_eq!(tell(&mut health, "e1", "10.0.0.1", true, 0), Vec::<String>::new());
    assert_eq!(tell(&mut health, "e1", "10.0.0.1", false, 10), ["c"]);
    assert_eq!(health.unhealthy("c"), [("10.0.0.1".parse().unwrap(), 30_000)].into());
    assert_eq!(says(&health), "Unhealthy 1 of 2 endpoints are healthy; not 10.0.0.1:30000");
    // All of them: everybody is tried.
    tell(&mut health, "e1", "10.0.0.2", false, 20);
    assert!(health.unhealthy("c").is_empty());
    assert!(says(&health).starts_with("Unhealthy 0 of 2"));
    assert_eq!(tell(&mut health, "e1", "10.0.0.1", true, 30), ["c"]);
    assert_eq!(health.unhealthy("c"), [("10.0.0.2".parse().unwrap(), 30_000)].into());
}

#[test]
fn an_endpoint_that_was_not_asked_yet_is_not_taken_for_unhealthy() {
    let mut health = with(&["e1"]);
    health.set("c", Some(wanted("blue", &["10.0.0.1", "10.0.0.2"])), &[]);
    assert_eq!(tell(&mut health, "e1", "10.0.0.1", false, 1_000), Vec::<String>::new());
    assert_eq!(health.next(), Some(4_500), "its timeout, two reports, and the jitter");
    assert_eq!(health.due(4_499), Vec::<String>::new());
    assert_eq!(health.due(4_500), ["c"]);
    assert_eq!(health.unhealthy("c").len(), 1);
}

#[test]
fn two_envoys_check_however_many_there_are_and_one_that_reaches_it_is_enough() {
    let all = ["e1", "e2", "e3", "e4", "e5", "e6"];
    let mut health = with(&all);
    for number in 0..60 {
        health.set(&format!("c{number}"), Some(wanted("blue", &["10.0.0.1", "10.0.0.2"])), &[]);
    }
    let told = take(&mut health);
    let checks: usize = told.iter().map(|(_, one)| one.cluster_health_checks.len()).sum();
    assert_eq!(checks, 120, "two for each");
    assert!(told.iter().all(|(_, one)| one.cluster_health_checks.len() > 5), "spread");
    let by: Vec<_> = health.checks["c0"].by.iter().cloned().collect();
    for envoy in &by {
        tell(&mut health, envoy, "10.0.0.1", true, 0);
    }
    tell(&mut health, &by[0], "10.0.0.1", false, 10);
    assert!(health.unhealthy("c0").is_empty(), "the other one reaches it");
    tell(&mut health, &by[1], "10.0.0.1", false, 10);
    assert_eq!(health.unhealthy("c0").len(), 1);
    // A checker goes: another one takes over, and what was known holds until that one knows.
    health.checker(&by[0], false);
    assert!(!health.checks["c0"].by.contains(&by[0]) && health.checks["c0"].by.len() == 2);
    assert_eq!(health.unhealthy("c0").len(), 1);
}

#[test]
fn what_a_node_is_asked_is_bounded_whatever_the_tenant_wants() {
    let asked = |checks: u32| {
        let mut health = with(&["e1", "e2", "e3"]);
        for number in 0..checks {
            health.set(&format!("c{number}"), Some(wanted("blue", &["10.0.0.1"])), &[]);
        }
        // Another tenant is asked as often as before.
        health.set("other", Some(wanted("red", &["10.0.1.1"])), &[]);
        let mut per_second = 0.0;
        for (_, specifier) in take(&mut health) {
            for check in specifier.cluster_health_checks {
                let interval = check.health_checks[0].interval.unwrap();
                if check.cluster_name.starts_with("hds/other/") {
                    assert_eq!(interval.seconds, 1);
                } else {
                    per_second += 1.0 / f64::from(i32::try_from(interval.seconds).unwrap());
                }
            }
        }
        per_second
    };
    assert!(asked(10) > 19.0, "few are asked as often as they want");
    for checks in [25, 100, 1_000] {
        assert!(asked(checks) <= 50.0, "{checks}");
    }
}

#[test]
fn what_was_unhealthy_before_a_restart_is_so_until_somebody_knows_better() {
    let mut health = with(&["e1"]);
    let before = ["10.0.0.1:30000".to_owned(), "10.9.9.9:1".to_owned()];
    health.set("c", Some(wanted("blue", &["10.0.0.1", "10.0.0.2"])), &before);
    assert_eq!(health.told([&"c".to_owned()].into_iter()), ["10.0.0.1:30000"]);
    assert_eq!(tell(&mut health, "e1", "10.0.0.1", true, 0), ["c"]);
    assert!(health.unhealthy("c").is_empty());
    assert!(says(&health).starts_with("Pending"), "the other was not asked yet");
}

#[test]
fn each_port_of_a_node_counts() {
    let mut health = with(&["e1", "e2"]);
    let ip: IpAddr = "10.0.0.1".parse().unwrap();
    let slots = |count: u16| Wanted {
        endpoints: (0..count).map(|slot| (ip, 30_000 + slot)).collect(),
        ..wanted("blue", &[])
    };
    health.set("c", Some(slots(16)), &[]);
    let interval = |health: &mut Health| {
        health.checker(&"e3".into(), true);
        let told = take(health);
        let mut all = told.into_iter().flat_map(|(_, one)| one.cluster_health_checks);
        all.next().unwrap().health_checks[0].interval.unwrap().seconds
    };
    assert_eq!(interval(&mut health), 1, "32 a second");
    health.set("d", Some(slots(16)), &[]);
    health.checker(&"e3".into(), false);
    assert_eq!(interval(&mut health), 2, "64 a second would be too many");
    health.set("c", None, &[]);
    health.set("d", None, &[]);
    assert!(health.counts.is_empty());
}

#[test]
fn another_check_has_another_name_and_no_endpoint_no_check() {
    let mut health = with(&["e1"]);
    health.set("c", Some(wanted("blue", &["10.0.0.1", "10.0.0.2"])), &[]);
    let first = health.checks["c"].name.clone();
    tell(&mut health, "e1", "10.0.0.1", true, 0);
    tell(&mut health, "e1", "10.0.0.1", false, 0);
    health.set("c", Some(wanted("blue", &["10.0.0.1", "10.0.0.3"])), &[]);
    assert_eq!(health.checks["c"].name, first);
    assert_eq!(health.unhealthy("c").len(), 1, "what is known of those that stay, stays");
    let mut grpc = wanted("blue", &["10.0.0.1"]);
    grpc.check.probe = Probe::Grpc { service: None };
    health.set("c", Some(grpc), &[]);
    assert_ne!(health.checks["c"].name, first);
    health.set("c", Some(wanted("blue", &[])), &[]);
    assert!(health.checks.is_empty() && health.names.is_empty() && health.counts.is_empty());
    assert!(take(&mut health).iter().all(|(_, one)| one.cluster_health_checks.is_empty()));
}

#[test]
fn ports_of_kube_proxy_are_asked_plainly_and_in_place_of_the_backends() {
    let mut health = with(&["e1"]);
    let mut local = wanted("blue", &["10.0.0.1"]);
    local.check.probe = Probe::Http { path: "/healthz".into(), host: None, port: Some(31_000) };
    local.socket = Some(TransportSocket::default());
    health.set("c", Some(local), &[]);
    let told = take(&mut health).remove(0).1.cluster_health_checks.remove(0);
    assert!(told.transport_socket_matches.is_empty());
    let endpoint = &told.locality_endpoints[0].endpoints[0];
    assert_eq!(endpoint.health_check_config.as_ref().unwrap().port_value, 31_000);
}

#[test]
fn an_envoy_is_told_all_of_its_checks_seldom_where_they_are_many() {
    let mut health = with(&["e1"]);
    for number in 0..500 {
        health.set(&format!("c{number}"), Some(wanted("blue", &["10.0.0.1"])), &[]);
    }
    assert_eq!(health.take(10_000).len(), 1);
    health.set("c7", Some(wanted("blue", &["10.0.0.2"])), &[]);
    assert_eq!((health.take(10_999).len(), health.next()), (0, Some(11_000)));
    health.set("c8", Some(wanted("blue", &["10.0.0.2"])), &[]);
    assert_eq!(health.take(11_000).len(), 1, "both at once");
    assert_eq!((health.take(20_000).len(), health.next()), (0, None));
    // One that connects anew knows nothing.
    health.set("c9", Some(wanted("blue", &["10.0.0.2"])), &[]);
    assert_eq!(health.take(20_000).len(), 1);
    health.checker(&"e1".into(), false);
    health.checker(&"e1".into(), true);
    assert_eq!(health.take(20_001).len(), 1);
}
