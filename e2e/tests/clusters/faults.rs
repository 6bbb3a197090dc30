//! Restarts, a hub that is away, certificates that are wrong. What worked before keeps working.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use fairlead_e2e::install::{self, NAMESPACE};
use fairlead_e2e::local::{Local, net};
use fairlead_e2e::topology::Cluster;

use crate::world::{
    address, alone, answers, apply, event, gone, hub, kubectl, service, tenant, until,
};

/// One request on a connection of its own.
pub fn request(address: &str) -> Result<()> {
    request_for("test", address)
}

/// The same for a host name.
pub fn request_for(host: &str, address: &str) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { bail!("{answer:?}") }
}

/// Sends requests from the client host while `work` goes on: how many, and the errors.
pub fn under_load(address: &str, work: impl FnOnce()) -> (u32, Vec<String>) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            net::within("client", || {
                let (mut sent, mut errors) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    sent += 1;
                    if let Err(error) = request(address) {
                        errors.push(format!("{error:#}"));
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok((sent, errors))
            })
        });
        work();
        stop.store(true, Ordering::Relaxed);
        load.join().expect("the load").expect("the client host")
    })
}

/// Restarts the manager, and waits until the new one serves.
pub fn rollout_of_manager() {
    kubectl(&hub(), &format!("-n {NAMESPACE} rollout restart deployment/fairlead-manager"));
    rolled_out(&hub(), "manager");
}

/// Restarts a tenant's agents, and waits until the new ones run.
pub fn rollout_of_agents(cluster: &Cluster) {
    kubectl(cluster, &format!("-n {NAMESPACE} rollout restart deployment/fairlead-agent"));
    rolled_out(cluster, "agent");
}

/// Waits until the new pods of a component run, and no old one does: a rollout is over for `kubectl` while an old pod
/// still ends, and serves or holds its streams until then.
pub fn rolled_out(cluster: &Cluster, component: &str) {
    rollout(cluster, component);
    let pods =
        format!("-n {NAMESPACE} get pods -l app.kubernetes.io/component={component} -o name");
    let replicas = format!(
        "-n {NAMESPACE} get deployment fairlead-{component} -o jsonpath={{.spec.replicas}}"
    );
    let replicas = kubectl(cluster, &replicas).trim().parse::<usize>().expect("a number");
    until(cluster, &pods, |names| names.lines().count() == replicas);
}

fn rollout(cluster: &Cluster, component: &str) {
    let deployment = format!("deployment/fairlead-{component}");
    kubectl(cluster, &format!("-n {NAMESPACE} rollout status {deployment} --timeout=120s"));
}

#[test]
fn a_restart_of_the_manager_loses_no_request() {
    let world = alone("a_restart_of_the_manager_loses_no_request");
    let a = tenant("tenant-a");
    world.workload(&a, "upgrade");
    apply(&a, &service("upgrade", "web", "{name: http, port: 8000, targetPort: 8080}", ""));
    let ip = address(&a, "upgrade", "web");
    answers(&format!("http://{ip}:8000/"), "cluster=tenant-a");
    let claim = "get addressclaims -o jsonpath={.items[*].metadata.uid}";
    let before = kubectl(&hub(), claim);
    let (sent, errors) = under_load(&format!("{ip}:8000"), || {
        kubectl(&hub(), &format!("-n {NAMESPACE} rollout restart deployment/fairlead-manager"));
        rollout(&hub(), "manager");
        // The new one serves: a change arrives.
        apply(&a, &service("upgrade", "more", "{name: http, port: 8001, targetPort: 8080}", ""));
        let more = address(&a, "upgrade", "more");
        answers(&format!("http://{more}:8001/"), "cluster=tenant-a");
    });
    assert!(sent > 100, "only {sent} requests");
    assert!(errors.is_empty(), "{} of {sent} failed: {:?}", errors.len(), errors.first());
    let after = kubectl(&hub(), claim);
    assert!(before.split(' ').all(|uid| after.contains(uid)), "every claim outlives a restart");
}

#[test]
fn a_restart_of_the_agents_changes_nothing() {
    let world = alone("a_restart_of_the_agents_changes_nothing");
    let a = tenant("tenant-a");
    world.workload(&a, "agents");
    apply(&a, &service("agents", "web", "{name: http, port: 8100, targetPort: 8080}", ""));
    let ip = address(&a, "agents", "web");
    answers(&format!("http://{ip}:8100/"), "cluster=tenant-a");
    let route = "-n tenant-a get route svc.agents.web \
                 -o jsonpath={.metadata.uid}/{.metadata.generation}";
    let before = kubectl(&hub(), route);
    let (sent, errors) = under_load(&format!("{ip}:8100"), || {
        kubectl(&a, &format!("-n {NAMESPACE} rollout restart deployment/fairlead-agent"));
        rollout(&a, "agent");
        apply(&a, &service("agents", "more", "{name: http, port: 8101, targetPort: 8080}", ""));
        let more = address(&a, "agents", "more");
        answers(&format!("http://{more}:8101/"), "cluster=tenant-a");
    });
    assert!(errors.is_empty(), "{} of {sent} failed: {:?}", errors.len(), errors.first());
    assert_eq!(kubectl(&hub(), route), before, "the Route is the one from before, not made anew");
}

/// Somebody deletes a shadow, or its label: while the agents run, and while they do not.
#[test]
fn a_shadow_that_is_deleted_is_made_anew() {
    let world = alone("a_shadow_that_is_deleted_is_made_anew");
    let b = tenant("tenant-b");
    world.workload(&b, "remade");
    let port = "{name: http, port: 8150, targetPort: 8080}";
    apply(&b, &service("remade", "web", port, "  allocateLoadBalancerNodePorts: false"));
    let url = format!("http://{}:8150/", address(&b, "remade", "web"));
    answers(&url, "cluster=tenant-b");
    let shadows = "-n remade get services -l fairlead.dev/shadow-of=web -o name";
    let name = kubectl(&b, shadows).trim().to_owned();
    let again = || until(&b, shadows, |names| names.trim() == name);
    kubectl(&b, &format!("-n remade delete {name}"));
    again();
    answers(&url, "cluster=tenant-b");
    kubectl(&b, &format!("-n remade label {name} fairlead.dev/shadow-of-"));
    again();
    let scale = |to: usize| {
        kubectl(&b, &format!("-n {NAMESPACE} scale deployment/fairlead-agent --replicas={to}"));
        rolled_out(&b, "agent");
    };
    scale(0);
    kubectl(&b, &format!("-n remade delete {name}"));
    scale(2);
    again();
    answers(&url, "cluster=tenant-b");
}

#[test]
fn the_second_agent_takes_over_when_the_first_dies() {
    let world = alone("the_second_agent_takes_over_when_the_first_dies");
    let b = tenant("tenant-b");
    world.workload(&b, "takeover");
    let holder =
        format!("-n {NAMESPACE} get lease fairlead-agent -o jsonpath={{.spec.holderIdentity}}");
    let first = until(&b, &holder, |name| !name.is_empty());
    kubectl(&b, &format!("-n {NAMESPACE} delete pod {first} --force --grace-period=0"));
    let start = Instant::now();
    apply(&b, &service("takeover", "web", "{name: http, port: 8200, targetPort: 8080}", ""));
    let ip = address(&b, "takeover", "web");
    answers(&format!("http://{ip}:8200/"), "cluster=tenant-b");
    assert!(start.elapsed() < Duration::from_secs(30), "it took {:?}", start.elapsed());
    assert_ne!(kubectl(&b, &holder), first);
    rollout(&b, "agent");
}

#[test]
fn a_hub_that_is_away_is_said_and_can_be_left_behind() {
    let world = alone("a_hub_that_is_away_is_said_and_can_be_left_behind");
    let b = tenant("tenant-b");
    world.workload(&b, "away");
    apply(&b, &service("away", "web", "{name: http, port: 8300, targetPort: 8080}", ""));
    let url = format!("http://{}:8300/", address(&b, "away", "web"));
    answers(&url, "cluster=tenant-b");
    apply(&b, &service("away", "left", "{name: http, port: 8302, targetPort: 8080}", ""));
    let left = format!("http://{}:8302/", address(&b, "away", "left"));

    kubectl(&hub(), &format!("-n {NAMESPACE} scale deployment/fairlead-manager --replicas=0"));
    kubectl(
        &hub(),
        &format!(
            "-n {NAMESPACE} wait pod -l app.kubernetes.io/component=manager --for=delete --timeout=60s"
        ),
    );
    apply(&b, &service("away", "new", "{name: http, port: 8301, targetPort: 8080}", ""));
    event(&b, "away", "new", "HubUnreachable");
    kubectl(&b, "-n away delete service left --wait=false");
    event(&b, "away", "left", "fairlead.dev/force-remove=true");
    kubectl(&b, "-n away annotate service left fairlead.dev/force-remove=true");
    until(&b, "-n away get services -o name", |names| !names.contains("left"));
    answers(&url, "cluster=tenant-b");

    kubectl(&hub(), &format!("-n {NAMESPACE} scale deployment/fairlead-manager --replicas=1"));
    rollout(&hub(), "manager");
    let new = address(&b, "away", "new");
    answers(&format!("http://{new}:8301/"), "cluster=tenant-b");
    // The agent's inventory no longer names what was left behind.
    gone(&left);
    until(&hub(), "get routes -A -o name", |names| !names.contains("svc.away.left"));
}

#[test]
fn an_agent_with_a_token_that_does_not_work_goes_on_as_before_and_says_so() {
    let world = alone("an_agent_with_a_token_that_does_not_work_goes_on_as_before_and_says_so");
    let b = tenant("tenant-b");
    world.workload(&b, "ghost");
    apply(&b, &service("ghost", "web", "{name: http, port: 8400, targetPort: 8080}", ""));
    let url = format!("http://{}:8400/", address(&b, "ghost", "web"));
    let unknown = fairlead_process::token::Token::new([7; 32]).unwrap();
    let known = crate::agent::token("b");
    install::fairlead(&Local, &["token", "revoke", known.id.as_str()]).unwrap();
    for (token, says) in [(unknown, "this is not the hub"), (known, "join token is not known here")]
    {
        let secret = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "fairlead-agent-join", "namespace": NAMESPACE},
            "stringData": {"token": token.reveal()},
        });
        apply(&b, &secret.to_string());
        rollout_of_agents(&b);
        let logs = format!("-n {NAMESPACE} logs -l app.kubernetes.io/component=agent --tail=50");
        until(&b, &logs, |text| {
            text.lines().any(|line| {
                line.contains("the new join token does not work") && line.contains(says)
            })
        });
        until(&hub(), "get tenant b --no-headers", |line| line.contains("True"));
        answers(&url, "cluster=tenant-b");
    }
}
