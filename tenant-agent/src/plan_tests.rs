use serde_json::{Value, json};

use super::*;

fn service(spec: Value) -> Service {
    let mut object = json!({
        "metadata": {"namespace": "shop", "name": "web", "uid": "u1"},
        "spec": {
            "type": "LoadBalancer",
            "loadBalancerClass": LOAD_BALANCER_CLASS,
            "selector": {"app": "web"},
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}],
        },
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn ready(nodes: &[&str]) -> Ready {
    let nodes: std::collections::BTreeSet<_> =
        nodes.iter().map(|node| (*node).to_owned()).collect();
    Ready { any: !nodes.is_empty(), nodes, content: 0 }
}

fn names(route: &v1::Route) -> Option<Vec<String>> {
    route.backends[0].nodes.as_ref().map(|nodes| nodes.names.clone())
}

#[test]
fn a_service_is_ours_by_class_or_by_default() {
    let ours = service(json!({}));
    let other = service(json!({"loadBalancerClass": "example.com/other"}));
    let none = service(json!({"loadBalancerClass": null}));
    let internal = service(json!({"type": "ClusterIP"}));
    assert_eq!(duty(&ours, false), Duty::Publish);
    assert_eq!(duty(&other, true), Duty::Ignore);
    assert_eq!(duty(&none, false), Duty::Ignore);
    assert_eq!(duty(&none, true), Duty::Publish);
    assert_eq!(duty(&internal, true), Duty::Ignore);
}

#[test]
fn a_service_that_is_ours_no_longer_is_withdrawn() {
    let mut held = service(json!({"type": "ClusterIP"}));
    held.metadata.finalizers = Some(vec![FINALIZER.into()]);
    assert_eq!(duty(&held, false), Duty::Withdraw);
    let mut deleted = service(json!({}));
    deleted.metadata.finalizers = Some(vec![FINALIZER.into()]);
    deleted.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    assert_eq!(duty(&deleted, false), Duty::Withdraw);
}

#[test]
fn a_route_leads_each_port_to_its_node_port() {
    let service = service(json!({"ports": [
        {"port": 80, "protocol": "TCP", "nodePort": 30080},
        {"port": 53, "protocol": "UDP", "nodePort": 30053},
    ]}));
    let ports = ports(&service);
    assert!(!ports.needs_shadow && ports.problems.is_empty());
    let route = route(&service, &ports, &[30080, 30053], &ready(&["n1"])).unwrap();
    let listeners: Vec<_> = route.listeners.iter().map(|l| (l.name.as_str(), l.port)).collect();
    assert_eq!(listeners, [("tcp-80", 80), ("udp-53", 53)]);
    let backends: Vec<_> = route.backends.iter().map(|b| b.node_port).collect();
    assert_eq!(backends, [30080, 30053]);
    assert_eq!(names(&route), None, "every node serves");
}

#[test]
fn local_names_the_nodes_and_no_endpoint_names_none() {
    let cluster = service(json!({}));
    let local = service(json!({"externalTrafficPolicy": "Local"}));
    let of = |service: &Service, nodes: &[&str]| {
        names(&route(service, &ports(service), &[30080], &ready(nodes)).unwrap())
    };
    assert_eq!(of(&local, &["n2", "n1"]), Some(vec!["n1".into(), "n2".into()]));
    assert_eq!(of(&local, &[]), Some(Vec::new()));
    assert_eq!(of(&cluster, &[]), Some(Vec::new()));
}

#[test]
fn a_service_without_node_ports_needs_a_shadow() {
    let ports = ports(&service(json!({"ports": [{"port": 80}]})));
    assert!(ports.needs_shadow);
    let shadow = crate::shadow::shadow(
        &service(json!({"ports": [{"port": 80, "targetPort": 8080}]})),
        false,
    );
    let spec = shadow.spec.unwrap();
    assert_eq!(spec.type_.as_deref(), Some("NodePort"));
    assert_eq!(spec.selector, service(json!({})).spec.unwrap().selector);
    assert_eq!(spec.ports.unwrap()[0].node_port, None);
}

#[test]
fn sctp_is_named_and_the_other_ports_work() {
    let service = service(json!({"ports": [
        {"port": 80, "protocol": "TCP", "nodePort": 30080},
        {"port": 9, "protocol": "SCTP", "nodePort": 30009},
    ]}));
    let ports = ports(&service);
    assert_eq!(ports.served.len(), 1);
    assert_eq!(ports.problems[0].reason, "ProtocolNotSupported");
    assert!(ports.problems[0].message.contains("port 9 has protocol SCTP"));
}

#[test]
fn a_restriction_that_is_not_enforced_is_not_passed_over() {
    let by_field = service(json!({"loadBalancerSourceRanges": ["10.0.0.0/8"]}));
    let mut by_annotation = service(json!({}));
    let annotations = [(SOURCE_RANGES.to_owned(), "10.0.0.0/8".to_owned())];
    by_annotation.metadata.annotations = Some(annotations.into());
    for (service, named) in
        [(by_field, "spec.loadBalancerSourceRanges"), (by_annotation, SOURCE_RANGES)]
    {
        let ports = ports(&service);
        assert!(ports.served.is_empty());
        assert!(ports.problems[0].message.contains(named));
    }
}

#[test]
fn no_selector_and_no_node_port_is_said() {
    let ports = ports(&service(json!({"selector": null, "ports": [{"port": 80}]})));
    assert!(ports.served.is_empty() && !ports.needs_shadow);
    assert_eq!(ports.problems[0].reason, "NoNodePort");
}

#[test]
fn an_address_is_asked_for_by_annotation_before_the_field() {
    let mut service = service(json!({"loadBalancerIP": "10.0.0.1"}));
    let of = |service: &Service| {
        let route = route(service, &ports(service), &[30080], &ready(&["n1"])).unwrap();
        (route.pool, route.ip)
    };
    assert_eq!(of(&service), (String::new(), "10.0.0.1".into()));
    let both = [(POOL, "public"), (ADDRESS, "10.0.0.2")];
    service.metadata.annotations = Some(both.map(|(k, v)| (k.into(), v.into())).into());
    assert_eq!(of(&service), ("public".into(), "10.0.0.2".into()));
}
