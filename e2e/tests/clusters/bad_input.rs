//! What cannot be served is said, with the way out, and harms nothing else.

use crate::world::{
    address, answers, apply, event, gone, hub, kubectl, pool, service, shared, tenant, until,
};

#[test]
fn sctp_is_named_and_the_other_port_works() {
    let world = shared("sctp_is_named_and_the_other_port_works");
    let b = tenant("tenant-b");
    world.workload(&b, "sctp");
    let ports = "{name: http, port: 7600, targetPort: 8080}, {name: s, port: 9, protocol: SCTP}";
    apply(&b, &service("sctp", "web", ports, ""));
    let ip = address(&b, "sctp", "web");
    answers(&format!("http://{ip}:7600/"), "cluster=tenant-b");
    event(&b, "sctp", "web", "port 9 has protocol SCTP");
    let errors =
        "-n sctp get service web -o jsonpath={.status.loadBalancer.ingress[0].ports[*].error}";
    until(&b, errors, |said| said == "fairlead.dev/ProtocolNotSupported");
}

#[test]
fn an_address_outside_the_pool_is_refused_by_name() {
    let world = shared("an_address_outside_the_pool_is_refused_by_name");
    let b = tenant("tenant-b");
    world.workload(&b, "outside");
    let port = "{name: http, port: 7700, targetPort: 8080}";
    apply(&b, &service("outside", "web", port, "  loadBalancerIP: 10.1.2.3"));
    event(&b, "outside", "web", "address 10.1.2.3 is in none of the pools: public");
    until(&hub(), "-n tenant-b get route svc.outside.web --no-headers", |line| {
        line.contains("AddressNotInPool")
    });
    // The way out that the message names.
    apply(&b, &service("outside", "web", port, "  loadBalancerIP: 172.18.0.209"));
    let ip = address(&b, "outside", "web");
    assert_eq!(ip, "172.18.0.209");
    answers(&format!("http://{ip}:7700/"), "cluster=tenant-b");
}

#[test]
fn a_port_that_is_held_is_refused_and_taken_over_when_it_is_free() {
    let world = shared("a_port_that_is_held_is_refused_and_taken_over_when_it_is_free");
    let (a, b) = (tenant("tenant-a"), tenant("tenant-b"));
    world.workload(&a, "held");
    world.workload(&b, "held");
    let port = "{name: http, port: 7800, targetPort: 8080}";
    let asking = "  loadBalancerIP: 172.18.0.208";
    apply(&a, &service("held", "first", port, asking));
    let url = format!("http://{}:7800/", address(&a, "held", "first"));
    answers(&url, "cluster=tenant-a");
    apply(&b, &service("held", "second", port, asking));
    event(&b, "held", "second", "port 7800/TCP of 172.18.0.208 is taken");
    let told = kubectl(&hub(), "-n tenant-b get route svc.held.second -o yaml");
    assert!(!told.contains("tenant-a"), "a refusal never names another tenant's object: {told}");
    answers(&url, "cluster=tenant-a");
    kubectl(&a, "-n held delete service first --timeout=30s");
    assert_eq!(address(&b, "held", "second"), "172.18.0.208");
    answers(&url, "cluster=tenant-b");
}

#[test]
fn a_pool_that_is_exhausted_says_so() {
    let world = shared("a_pool_that_is_exhausted_says_so");
    let b = tenant("tenant-b");
    world.workload(&b, "full");
    pool("tiny", "addresses: [172.18.0.210], sharing: Exclusive");
    let asking = |name: &str, port: u16| {
        service("full", name, &format!("{{name: http, port: {port}, targetPort: 8080}}"), "")
            .replace("metadata: {", "metadata: {annotations: {fairlead.dev/pool: tiny}, ")
    };
    apply(&b, &asking("one", 7900));
    let ip = address(&b, "full", "one");
    answers(&format!("http://{ip}:7900/"), "cluster=tenant-b");
    apply(&b, &asking("two", 7901));
    event(
        &b,
        "full",
        "two",
        "no address of pool \"tiny\" that this Route may be on has room for port 7901/TCP",
    );
    until(&hub(), "get addresspool tiny --no-headers", |line| {
        line.split_whitespace().collect::<Vec<_>>()[1..6] == ["Exclusive", "Direct", "1", "1", "0"]
    });
    kubectl(&b, "-n full delete service one --timeout=30s");
    gone(&format!("http://{ip}:7900/"));
    assert_eq!(address(&b, "full", "two"), ip);
    answers(&format!("http://{ip}:7901/"), "cluster=tenant-b");
}
