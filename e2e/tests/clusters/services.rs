//! Services of type `LoadBalancer`, from creation to deletion.

use std::collections::BTreeSet;

use crate::layer4::udp;
use crate::web::eventually;
use crate::world::{
    address, answers, apply, event, fetch, gone, hub, kubectl, on_host, service, shared, tenant,
    until,
};

const HTTP: &str = "{name: http, port: 80, targetPort: 8080}";

#[test]
fn a_service_is_served_changed_and_gone() {
    let world = shared("a_service_is_served_changed_and_gone");
    let a = tenant("tenant-a");
    world.workload(&a, "life");
    apply(&a, &service("life", "web", HTTP, ""));
    let ip = address(&a, "life", "web");
    answers(&format!("http://{ip}/"), "cluster=tenant-a");
    until(&hub(), "-n tenant-a get route svc.life.web --no-headers", |line| {
        line.contains("Service/life/web") && line.contains("True") && line.contains(&ip)
    });

    // Another port: the address stays, the old port is closed.
    apply(&a, &service("life", "web", "{name: http, port: 8088, targetPort: 8080}", ""));
    answers(&format!("http://{ip}:8088/"), "cluster=tenant-a");
    gone(&format!("http://{ip}:80/"));
    // The hub's apiserver keeps no fields' owners of what was changed.
    let managed = "-n tenant-a get route svc.life.web --show-managed-fields -o jsonpath={.metadata.managedFields}";
    assert_eq!(kubectl(&hub(), managed), "");

    // No pod: the connection is closed; a pod again: it answers.
    kubectl(&a, "-n life scale deployment/echo --replicas=0");
    gone(&format!("http://{ip}:8088/"));
    until(&hub(), "-n tenant-a get route svc.life.web --no-headers", |line| {
        line.contains("NoReadyEndpoints")
    });
    kubectl(&a, "-n life scale deployment/echo --replicas=1");
    answers(&format!("http://{ip}:8088/"), "cluster=tenant-a");

    // Deleted: nothing answers, and nothing is left.
    kubectl(&a, "-n life delete service web --timeout=30s");
    gone(&format!("http://{ip}:8088/"));
    until(&hub(), "get routes -A -o name", |names| !names.contains("svc.life.web"));
    until(&hub(), "get addressclaims -o jsonpath={.items[*].spec.route}", |routes| {
        !routes.contains("svc.life.web")
    });
}

#[test]
fn tenants_with_the_same_names_each_have_their_own() {
    let world = shared("tenants_with_the_same_names_each_have_their_own");
    let mut seen = BTreeSet::new();
    for name in ["tenant-a", "tenant-b"] {
        let cluster = tenant(name);
        world.workload(&cluster, "same");
        apply(&cluster, &service("same", "web", "{name: http, port: 7000, targetPort: 8080}", ""));
        let ip = address(&cluster, "same", "web");
        answers(&format!("http://{ip}:7000/"), &format!("cluster={name}"));
        assert!(seen.insert(ip), "one address and port cannot be both tenants'");
    }
}

#[test]
fn every_port_of_a_service_is_served_also_udp() {
    let world = shared("every_port_of_a_service_is_served_also_udp");
    let a = tenant("tenant-a");
    world.workload(&a, "many");
    let ports = "{name: one, port: 7100, targetPort: 8080}, {name: two, port: 7101, targetPort: 8081}, \
                 {name: dns, port: 7102, targetPort: 5353, protocol: UDP}";
    apply(&a, &service("many", "web", ports, ""));
    let ip = address(&a, "many", "web");
    answers(&format!("http://{ip}:7100/"), "port=8080");
    answers(&format!("http://{ip}:7101/"), "port=8081");
    // Nobody tries again for a datagram, and one node's kube-proxy may be later than another's, which answered above.
    let answered = |said: String| said.contains("cluster=tenant-a") && said.contains("port=5353");
    eventually("UDP answers", || udp(&format!("{ip}:7102"), 2).is_some_and(answered));
}

#[test]
fn local_traffic_goes_to_the_nodes_with_a_pod_only() {
    let world = shared("local_traffic_goes_to_the_nodes_with_a_pod_only");
    let a = tenant("tenant-a");
    world.workload(&a, "local");
    let port = "{name: http, port: 7200, targetPort: 8080}";
    apply(&a, &service("local", "web", port, "  externalTrafficPolicy: Local"));
    let ip = address(&a, "local", "web");
    answers(&format!("http://{ip}:7200/"), "cluster=tenant-a");
    for _ in 0..20 {
        // A node without a pod would drop the packets; and no node hides who sent them.
        let answer = fetch(&format!("http://{ip}:7200/")).unwrap();
        assert!(answer.contains("client=172.18.0.1"), "sent by an Envoy's host: {answer}");
    }
}

#[test]
fn a_service_without_node_ports_gets_a_shadow_that_goes_with_it() {
    let world = shared("a_service_without_node_ports_gets_a_shadow_that_goes_with_it");
    let b = tenant("tenant-b");
    world.workload(&b, "shadows");
    let port = "{name: http, port: 7300, targetPort: 8080}";
    apply(&b, &service("shadows", "web", port, "  allocateLoadBalancerNodePorts: false"));
    let ip = address(&b, "shadows", "web");
    answers(&format!("http://{ip}:7300/"), "cluster=tenant-b");
    let shadows = "-n shadows get services -l fairlead.dev/shadow-of=web -o name";
    assert_eq!(kubectl(&b, shadows).lines().count(), 1);
    kubectl(&b, "-n shadows delete service web --timeout=30s");
    gone(&format!("http://{ip}:7300/"));
    until(&b, shadows, str::is_empty);
}

#[test]
fn a_shadow_that_a_quota_refuses_is_told_of_on_its_service() {
    let world = shared("a_shadow_that_a_quota_refuses_is_told_of_on_its_service");
    let b = tenant("tenant-b");
    world.workload(&b, "refused");
    let quota = r#"{"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": "refused"},
        "spec": {"hard": {"services.nodeports": "0"}}}"#;
    apply(&b, quota);
    // Before it was counted it is not in force.
    let counted = "-n refused get resourcequota none -o jsonpath={.status.hard}";
    until(&b, counted, |hard| !hard.is_empty());
    let port = "{name: http, port: 7310, targetPort: 8080}";
    apply(&b, &service("refused", "web", port, "  allocateLoadBalancerNodePorts: false"));
    event(&b, "refused", "web", "exceeded quota: none, requested: services.nodeports=1");
    kubectl(&b, "-n refused delete resourcequota none");
    let ip = address(&b, "refused", "web");
    answers(&format!("http://{ip}:7310/"), "cluster=tenant-b");
}

#[test]
fn a_service_of_another_class_is_left_alone() {
    let world = shared("a_service_of_another_class_is_left_alone");
    let b = tenant("tenant-b");
    world.workload(&b, "other");
    let theirs =
        service("other", "theirs", HTTP, "").replace("fairlead.dev/fairlead", "example.com/lb");
    apply(&b, &theirs);
    // Ours comes later; once it is served, theirs was seen, too.
    apply(&b, &service("other", "ours", "{name: http, port: 7400, targetPort: 8080}", ""));
    let ip = address(&b, "other", "ours");
    answers(&format!("http://{ip}:7400/"), "cluster=tenant-b");
    let get = "-n other get service theirs -o jsonpath={.metadata.finalizers}{.status.loadBalancer.ingress}";
    assert_eq!(kubectl(&b, get), "");
    assert!(!kubectl(&hub(), "get routes -A -o name").contains("theirs"));
}

#[test]
fn a_node_that_is_taken_out_receives_nothing_and_comes_back() {
    let world = crate::world::alone("a_node_that_is_taken_out_receives_nothing_and_comes_back");
    let a = tenant("tenant-a");
    world.workload(&a, "nodes");
    apply(&a, &service("nodes", "web", "{name: http, port: 7500, targetPort: 8080}", ""));
    let ip = address(&a, "nodes", "web");
    let url = format!("http://{ip}:7500/");
    answers(&url, "cluster=tenant-a");
    let port = kubectl(&a, "-n nodes get service web -o jsonpath={.spec.ports[0].nodePort}");
    let node = "tenant-a-2";
    on_host(node, &format!(
        "nft 'add table ip count; add chain ip count in {{ type filter hook prerouting priority -400; }}; \
         add rule ip count in tcp dport {port} tcp flags syn counter'"
    ))
    .unwrap();
    // Connections that arrived at the node's port while 40 were made.
    let arrived = || {
        let count = || -> u32 {
            let rules = on_host(node, "nft list table ip count").unwrap();
            let packets = rules.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
            packets.unwrap().parse().unwrap()
        };
        let before = count();
        (0..40).for_each(|_| drop(fetch(&url).unwrap()));
        count() - before
    };
    // A node whose kube-proxy was late is left out for 10 s.
    eventually("both nodes serve", || arrived() > 0);

    let exclude = "node.kubernetes.io/exclude-from-external-load-balancers";
    kubectl(&a, &format!("label node {node} {exclude}=true"));
    let nodes = "-n tenant-a get nodeset nodes -o jsonpath={.spec.nodes[*].name}";
    until(&hub(), nodes, |names| !names.contains(node));
    until(&hub(), "-n tenant-a get route svc.nodes.web --no-headers", |l| l.contains("True"));
    answers(&url, "cluster=tenant-a");
    let excluded = arrived();
    kubectl(&a, &format!("label node {node} {exclude}-"));
    assert_eq!(excluded, 0, "an excluded node receives nothing");

    until(&hub(), nodes, |names| names.contains(node));
    eventually("it serves again", || arrived() > 0);
    on_host(node, "nft delete table ip count").unwrap();
}
