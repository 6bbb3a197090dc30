use fairlead_proto::v1;
use k8s_openapi::api::core::v1::{LoadBalancerStatus, ServicePort, ServiceStatus};
use k8s_openapi::jiff::Timestamp;

use super::*;

fn now() -> Time {
    Time(Timestamp::UNIX_EPOCH)
}

fn ports(problems: Vec<Problem>) -> Ports {
    let served = vec![ServicePort { port: 80, protocol: Some("TCP".into()), ..Default::default() }];
    Ports { served, problems, needs_shadow: false }
}

fn word(programmed: bool) -> Word {
    let condition = |kind: &str, holds| v1::Condition {
        r#type: kind.into(),
        holds,
        reason: if holds { kind.into() } else { "Pending".into() },
        message: String::new(),
    };
    Word::Status(v1::Status {
        addresses: vec!["10.0.0.1".into()],
        conditions: vec![condition("Accepted", true), condition("Programmed", programmed)],
        ..v1::Status::default()
    })
}

/// The Service after a report was written.
fn after(service: Service, report: &Report) -> Service {
    let load_balancer = Some(LoadBalancerStatus { ingress: Some(report.ingress.clone()) });
    let conditions = Some(report.conditions.clone());
    Service { status: Some(ServiceStatus { load_balancer, conditions }), ..service }
}

#[test]
fn an_address_is_shown_once_it_is_served_and_stays() {
    let service = Service::default();
    let pending = report(&service, &ports(Vec::new()), Some(&word(false)), &now());
    assert!(pending.ingress.is_empty() && pending.events.is_empty());
    let service = after(service, &pending);

    let served = report(&service, &ports(Vec::new()), Some(&word(true)), &now());
    assert_eq!(served.ingress[0].ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(served.ingress[0].ip_mode.as_deref(), Some("Proxy"));
    let note = Note::normal("EnsuredLoadBalancer", "Served at 10.0.0.1");
    assert_eq!(served.events, [note]);
    let service = after(service, &served);

    for word in [Some(word(false)), None] {
        let later = report(&service, &ports(Vec::new()), word.as_ref(), &now());
        assert_eq!(later.ingress, served.ingress, "a change under way does not take it back");
    }
    let again = report(&service, &ports(Vec::new()), Some(&word(true)), &now());
    assert_eq!(again.events, [], "no news");
    assert_eq!(again.conditions, served.conditions);
}

#[test]
fn a_refusal_is_told_once_with_the_hubs_words() {
    let refused =
        v1::Refused { reason: "TooManyRoutes".into(), message: "ask".into(), ..Default::default() };
    let report1 = report(
        &Service::default(),
        &ports(Vec::new()),
        Some(&Word::Refused(refused.clone())),
        &now(),
    );
    assert_eq!(report1.events, [Note::warning("SyncLoadBalancerFailed", "TooManyRoutes: ask")]);
    let service = after(Service::default(), &report1);
    let report2 = report(&service, &ports(Vec::new()), Some(&Word::Refused(refused)), &now());
    assert_eq!(report2.events, []);
}

#[test]
fn a_port_that_cannot_be_served_is_marked_beside_those_that_are() {
    let problem = Problem {
        reason: "ProtocolNotSupported",
        message: "port 9 has protocol SCTP".into(),
        port: Some((9, "SCTP".into())),
    };
    let report = report(&Service::default(), &ports(vec![problem]), Some(&word(true)), &now());
    let entries = report.ingress[0].ports.as_ref().unwrap();
    assert_eq!((entries[0].port, entries[0].error.as_deref()), (80, None));
    let error = Some("fairlead.dev/ProtocolNotSupported");
    assert_eq!((entries[1].port, entries[1].error.as_deref()), (9, error));
    assert!(
        report.conditions.iter().any(|c| c.type_ == "LoadBalancerPortsError" && c.status == "True")
    );
}

#[test]
fn other_controllers_conditions_are_left_alone() {
    let theirs = Condition {
        type_: "example.com/Their".into(),
        status: "True".into(),
        reason: "R".into(),
        message: String::new(),
        observed_generation: None,
        last_transition_time: now(),
    };
    let status = ServiceStatus { conditions: Some(vec![theirs.clone()]), load_balancer: None };
    let service = Service { status: Some(status), ..Service::default() };
    let report = report(&service, &ports(Vec::new()), Some(&word(true)), &now());
    assert_eq!(report.conditions[0], theirs);
}
