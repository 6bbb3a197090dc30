//! Addresses of the hub's own provider, and a manager that dies while it gives out many.

use std::process::Command;
use std::time::Duration;

use fairlead_e2e::install::NAMESPACE;
use fairlead_e2e::local::Local;
use fairlead_e2e::{metallb, run};

use crate::layer4::udp;
use crate::web::eventually;
use crate::world::{
    address, alone, answers, apply, asking, event, gone, hub, kubectl, pool, service, tenant, until,
};

#[test]
fn addresses_come_from_the_hubs_own_provider() {
    let world = alone("addresses_come_from_the_hubs_own_provider");
    metallb::install(&Local).expect("MetalLB");
    let spec = format!(
        "exposure: Service, sharing: Any, service: {{loadBalancerClass: {}, maxAddresses: 2}}",
        metallb::CLASS
    );
    pool("provided", &spec);
    let (a, b) = (tenant("tenant-a"), tenant("tenant-b"));
    let web = |name: &str, port: u16, target: u16| {
        let ports = format!("{{name: http, port: {port}, targetPort: {target}}}");
        let proxy = "fairlead.dev/proxy-protocol: v2";
        let settings = if target == 8090 { proxy } else { "" };
        asking("provided", settings, &service("given", name, &ports, ""))
    };
    for cluster in [&a, &b] {
        world.workload(cluster, "given");
    }
    apply(&a, &web("one", 80, 8090));
    let first = address(&a, "given", "one");
    assert!(first.starts_with("172.18.0.22"), "{first} is MetalLB's");
    // The client's address survives the hub's Service, Envoy and the tenant's kube-proxy.
    answers(&format!("http://{first}/"), "client=172.18.0.5\n");
    // Another tenant shares the address; the same port opens one more.
    apply(&b, &web("two", 81, 8080));
    assert_eq!(address(&b, "given", "two"), first);
    answers(&format!("http://{first}:81/"), "cluster=tenant-b");
    apply(&b, &web("three", 80, 8080));
    let second = address(&b, "given", "three");
    assert_ne!(second, first);
    answers(&format!("http://{second}/"), "cluster=tenant-b");
    let services = format!("-n {NAMESPACE} get services -l fairlead.dev/balancer");
    let ports = format!("{services} -o jsonpath={{.items[*].spec.ports[*].port}}");
    assert_eq!(kubectl(&hub(), &ports).split(' ').count(), 3);
    apply(&b, &web("four", 80, 8080));
    event(&b, "given", "four", "port 80/TCP of every address in pool \"provided\" is taken");
    // UDP and an Ingress, there too.
    let dns = "{name: dns, port: 53, targetPort: 5353, protocol: UDP}";
    apply(&a, &asking("provided", "", &service("given", "dns", dns, "")));
    let ip = address(&a, "given", "dns");
    let ask = || udp(&format!("{ip}:53"), 2);
    eventually("UDP answers", || ask().is_some_and(|said| said.contains("tenant-a")));
    // Ports go with their Routes, and an address with its last port.
    kubectl(&b, "-n given delete service three four --timeout=60s");
    gone(&format!("http://{second}/"));
    until(&hub(), &format!("{services} -o name"), |names| names.lines().count() == 1);
    kubectl(&b, "-n given delete service two --timeout=60s");
    gone(&format!("http://{first}:81/"));
    answers(&format!("http://{first}/"), "client=172.18.0.5\n");
    // Somebody deletes the hub's Service: it is made anew, at the address that its claims are for.
    kubectl(&hub(), &format!("-n {NAMESPACE} delete service fairlead-provided-1"));
    answers(&format!("http://{first}/"), "client=172.18.0.5\n");
    kubectl(&a, "-n given delete service one dns --timeout=60s");
    until(&hub(), &format!("{services} -o name"), str::is_empty);
    until(&hub(), "get claims -o jsonpath={.items[*].spec.pool}", |pools| {
        !pools.contains("provided")
    });
}

/// How many Services are published at once.
const FLOOD: u16 = 500;

#[test]
fn a_manager_that_is_killed_while_it_allocates_loses_and_leaks_nothing() {
    let world = alone("a_manager_that_is_killed_while_it_allocates_loses_and_leaks_nothing");
    let b = tenant("tenant-b");
    world.workload(&b, "flood");
    let one = |number| {
        let ports = format!("{{name: http, port: {}, targetPort: 8080}}", 11_000 + number);
        service("flood", &format!("s{number}"), &ports, "")
    };
    let all = (0..FLOOD).map(one).collect::<Vec<_>>().join("---\n");
    let claims = "get claims -o jsonpath={range.items[*]}{.metadata.name}|{.spec.route};{end}";
    let ours = |said: &str| -> Vec<(String, String)> {
        let pairs = said.split(';').filter_map(|line| line.split_once('|'));
        let mine = pairs.filter(|(_, route)| route.starts_with("svc.flood."));
        mine.map(|(name, route)| (name.to_owned(), route.to_owned())).collect()
    };
    let mut kills = 0;
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| apply(&b, &all));
        for enough in [50, 150, 300] {
            until(&hub(), claims, |said| ours(said).len() >= enough);
            kill_manager();
            let held = ours(&kubectl(&hub(), claims)).len();
            // Only a kill in the middle tells something.
            kills += u32::from(held < usize::from(FLOOD));
        }
        flood.join().expect("500 Services");
    });
    assert!(kills >= 2, "only {kills} of 3 came before the last claim");
    // None is lost: each Route has its claim, and only one.
    let wait = Duration::from_secs(180);
    let held = run::wait_for("500 claims", wait, || {
        let said = kubectl(&hub(), claims);
        let held = ours(&said);
        anyhow::ensure!(held.len() == usize::from(FLOOD), "{} claims", held.len());
        Ok(held)
    })
    .unwrap();
    let routes: std::collections::BTreeSet<_> = held.iter().map(|(_, route)| route).collect();
    assert_eq!(routes.len(), usize::from(FLOOD), "one claim for each Route");
    let programmed = "-n tenant-b get routes -o jsonpath={range.items[*]}{.metadata.name}={.status.conditions[?(@.type==\"Programmed\")].status};{end}";
    run::wait_for("500 programmed", wait, || {
        let said = kubectl(&hub(), programmed);
        let good = said
            .split(';')
            .filter(|line| line.starts_with("svc.flood.") && line.ends_with("=True"));
        let good = good.count();
        anyhow::ensure!(good == usize::from(FLOOD), "{good} of {FLOOD}");
        Ok(())
    })
    .unwrap();
    answers(&format!("http://{}:11000/", address(&b, "flood", "s0")), "cluster=tenant-b");
    // None is leaked.
    kubectl(&b, "delete namespace flood --timeout=180s");
    run::wait_for("no claim is left", wait, || {
        let left = ours(&kubectl(&hub(), claims));
        anyhow::ensure!(left.is_empty(), "{} left, {:?}", left.len(), left.first());
        Ok(())
    })
    .unwrap();
}

/// `kill -9`, and nothing else: the kubelet starts it again.
fn kill_manager() {
    let found = run::output(Command::new("pgrep").args(["-f", "^/usr/local/bin/fairlead-manager"]));
    let found = found.expect("the manager's process");
    for pid in found.split_whitespace() {
        run::output(Command::new("kill").args(["-9", pid])).expect("kill");
    }
}
