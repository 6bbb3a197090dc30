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

fn names(route: &RouteSpec) -> Option<Vec<String>> {
    let Nodes { policy, names } = &route.backends[0].nodes;
    (*policy == NodePolicy::Named).then(|| names.clone())
}

fn planned(service: &Service, ways: &Ways, nodes: &[&str]) -> RouteSpec {
    let (settings, complaints) = Settings::parse(service);
    let ports = ports(service);
    route(service, &settings, &complaints, &ports, ways, &ready(nodes)).unwrap()
}

fn at(node_ports: &[i32]) -> Ways {
    Ways { node_ports: node_ports.to_vec(), slots: Vec::new() }
}

fn annotated(service: Service, annotations: &[(&str, &str)]) -> Service {
    let mut service = service;
    let all = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    service.metadata.annotations = Some(all.collect());
    service
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
    let route = planned(&service, &at(&[30080, 30053]), &["n1"]);
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
    let of = |service: &Service, nodes: &[&str]| names(&planned(service, &at(&[30080]), nodes));
    assert_eq!(of(&local, &["n2", "n1"]), Some(vec!["n1".into(), "n2".into()]));
    assert_eq!(of(&local, &[]), Some(Vec::new()));
    assert_eq!(of(&cluster, &[]), Some(Vec::new()));
}

#[test]
fn a_service_without_node_ports_needs_a_shadow() {
    let ports = ports(&service(json!({"ports": [{"port": 80}]})));
    assert!(ports.needs_shadow);
    let shadow =
        crate::shadow::shadow(&service(json!({"ports": [{"port": 80, "targetPort": 8080}]})));
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
fn a_restriction_that_cannot_be_read_lets_nobody_in_and_keeps_the_address() {
    let by_field = service(json!({"loadBalancerSourceRanges": ["what"]}));
    let route = planned(&by_field, &at(&[30080]), &["n1"]);
    assert!(route.clients.closed && route.listeners.len() == 1);
    assert!(route.unresolved[0].message.starts_with("spec.loadBalancerSourceRanges: \"what\""));
    let good = service(json!({"loadBalancerSourceRanges": ["10.0.0.0/8"]}));
    let route = planned(&good, &at(&[30080]), &["n1"]);
    assert_eq!(route.clients.source_ranges, ["10.0.0.0/8"]);
}

#[test]
fn what_cannot_be_followed_is_told_on_the_route_and_the_rest_works() {
    let service = annotated(
        service(json!({"ports": [
            {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP", "nodePort": 30054},
        ]})),
        &[
            ("fairlead.dev/proxy-protocol", "v2"),
            ("fairlead.dev/any-port", "dns, ftp"),
            ("fairlead.dev/what", "1"),
        ],
    );
    let route = planned(&service, &at(&[30053, 30054]), &["n1"]);
    let told: Vec<_> = route.unresolved.iter().map(|one| one.message.as_str()).collect();
    assert!(told.iter().any(|one| one.contains("fairlead.dev/what is unknown")), "{told:?}");
    assert!(told.iter().any(|one| one.contains("port 53/UDP: not possible over node ports")));
    assert!(told.iter().any(|one| one.contains("the Service has no port \"ftp\"")));
    assert_eq!(route.listeners.iter().map(|one| one.port).collect::<Vec<_>>(), [0, 53]);
    let proxied: Vec<_> =
        route.backends.iter().map(|b| b.upstream.proxy_protocol.is_some()).collect();
    assert_eq!(proxied, [false, true]);
}

#[test]
fn clients_that_keep_to_a_pod_have_a_port_of_the_node_for_each() {
    let service = service(json!({"sessionAffinity": "ClientIP"}));
    let (settings, _) = Settings::parse(&service);
    assert!(is_sticky(&settings));
    let slot = |port: i32, nodes: &[&str]| {
        (vec![port], nodes.iter().map(|node| (*node).to_owned()).collect::<BTreeSet<_>>())
    };
    let slots = vec![slot(31_000, &["n1", "n2"]), slot(31_001, &["n1"])];
    let route = planned(&service, &Ways { node_ports: vec![30080], slots }, &["n1", "n2"]);
    let backend = &route.backends[0];
    assert_eq!((backend.node_port, names(&route).unwrap().len()), (31_000, 2));
    assert_eq!(backend.slots, [Slot { node_port: 31_001, nodes: vec!["n1".into()] }]);
    assert!(route.clients.source_affinity);
}

#[test]
fn server_names_share_port_443() {
    let names = [("fairlead.dev/tls-hostnames", "db.example.com, DB2.example.com")];
    let tls = json!({"ports": [{"port": 443, "protocol": "TCP", "nodePort": 30443}]});
    let route = planned(&annotated(service(tls), &names), &at(&[30443]), &["n1"]);
    assert_eq!(route.listeners[0].protocol, Protocol::Https);
    let hosts: Vec<_> = route.hosts.iter().map(|host| host.hostname.as_str()).collect();
    assert_eq!(hosts, ["db.example.com", "db2.example.com"]);
    assert!(route.hosts.iter().all(|host| host.tls.as_ref().unwrap().mode == TlsMode::Passthrough));
    let other = planned(&annotated(service(json!({})), &names), &at(&[30080]), &["n1"]);
    assert_eq!((other.listeners[0].protocol, other.listeners[0].port), (Protocol::Tcp, 80));
    assert!(other.unresolved[0].message.contains("server names share port 443/TCP"));
}

#[test]
fn an_address_is_asked_for_by_annotation_before_the_field() {
    let service = service(json!({"loadBalancerIP": "10.0.0.1"}));
    let of = |service: &Service| {
        let route = planned(service, &at(&[30080]), &["n1"]);
        (route.address.pool, route.address.ips)
    };
    assert_eq!(of(&service), (None, vec!["10.0.0.1".into()]));
    let both = [("fairlead.dev/pool", "public"), ("fairlead.dev/address", "10.0.0.2")];
    assert_eq!(of(&annotated(service, &both)), (Some("public".into()), vec!["10.0.0.2".into()]));
}
