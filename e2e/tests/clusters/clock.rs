//! Agents whose clock is two days off, by libfaketime: all the programs here share this machine's clock.

use std::time::Duration;

use fairlead_e2e::install::NAMESPACE;
use fairlead_e2e::local::Local;
use fairlead_e2e::topology::Cluster;
use fairlead_e2e::{cluster, packages};

use crate::faults::rollout_of_manager;
use crate::identity::{connected, everybody_anew, join_anew, lifetime};
use crate::world::{address, alone, answers, apply, hub, kubectl, service, tenant, until};

/// How far ahead, in seconds.
const AHEAD: i64 = 2 * 86_400;

/// The agents of a tenant with a clock of their own; without it again once this goes.
struct Clock<'a> {
    tenant: &'a Cluster,
    /// The Deployment's before.
    revision: String,
}

impl<'a> Clock<'a> {
    /// Agents are replaced by ones that go by the clock of this machine, until it is set.
    fn new(tenant: &'a Cluster) -> Self {
        let library =
            format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
        packages::ensure_one(&library, "libfaketime").expect("libfaketime");
        kubectl(tenant, &format!("-n {NAMESPACE} delete configmap clock --ignore-not-found"));
        let revision = format!(
            "-n {NAMESPACE} get deployment fairlead-agent -o jsonpath={{.metadata.annotations.deployment\\.kubernetes\\.io/revision}}"
        );
        let clock = Self { tenant, revision: kubectl(tenant, &revision) };
        let from = format!("--from-file={library} --from-literal=offset=+0");
        kubectl(tenant, &format!("-n {NAMESPACE} create configmap clock {from}"));
        // Schedules and time-outs are the kernel's still: what jumps is the time of day.
        let patch = r#"{"spec":{"template":{"spec":{
            "volumes": [{"name": "clock", "configMap": {"name": "clock"}}],
            "containers": [{
                "name": "agent",
                "volumeMounts": [{"name": "clock", "mountPath": "/clock"}],
                "env": [
                    {"name": "LD_PRELOAD", "value": "/clock/libfaketime.so.1"},
                    {"name": "FAKETIME_TIMESTAMP_FILE", "value": "/clock/offset"},
                    {"name": "FAKETIME_CACHE_DURATION", "value": "1"},
                    {"name": "FAKETIME_DONT_FAKE_MONOTONIC", "value": "1"}
                ]
            }]
        }}}}"#;
        let patch = ["-n", NAMESPACE, "patch", "deployment", "fairlead-agent", "-p", patch];
        cluster::kubectl(&Local, tenant, &patch).expect("patched");
        clock
    }

    /// Sets it ahead; comes back when the agent that leads goes by it.
    fn jump(&self) {
        let offset = format!("{{\"data\":{{\"offset\":\"+{AHEAD}\"}}}}");
        kubectl(self.tenant, &format!("-n {NAMESPACE} patch configmap clock -p {offset}"));
        // A kubelet looks at a pod's files when the pod changes, or else once in a while.
        let pods = "pods -l app.kubernetes.io/component=agent";
        kubectl(self.tenant, &format!("-n {NAMESPACE} annotate {pods} clock=set"));
        let lease = "get lease fairlead-agent -o jsonpath={.spec.renewTime}";
        let ahead = |text: &str| {
            let renewed = text.parse::<jiff::Timestamp>().ok();
            renewed
                .is_some_and(|at| at.as_second() > jiff::Timestamp::now().as_second() + AHEAD / 2)
        };
        until(self.tenant, &format!("-n {NAMESPACE} {lease}"), ahead);
    }
}

impl Drop for Clock<'_> {
    fn drop(&mut self) {
        let undo =
            format!("rollout undo deployment/fairlead-agent --to-revision={}", self.revision);
        for undo in [undo.as_str(), "delete configmap clock"] {
            let words: Vec<_> = ["-n", NAMESPACE].into_iter().chain(undo.split(' ')).collect();
            if let Err(error) = cluster::kubectl(&Local, self.tenant, &words) {
                eprintln!("the agents of {} keep their clock: {error:#}", self.tenant.name);
            }
        }
    }
}

/// When the certificates end that agents of tenant b have, or had.
const CERTIFICATES: &str = "-n tenant-b get agents -o jsonpath={.items[*].status.notAfter}";

/// A running agent's clock jumps: it renews on, connects again, and its tenant is told. One that starts with such a
/// clock says what is wrong, and what is published stays.
#[test]
fn an_agent_whose_clock_is_two_days_off_goes_by_the_hubs_time() {
    let world = alone("an_agent_whose_clock_is_two_days_off_goes_by_the_hubs_time");
    let b = tenant("tenant-b");
    world.workload(&b, "clock");
    lifetime(30);
    {
        let clock = Clock::new(&b);
        join_anew(&b, "b");
        clock.jump();
        // Two more certificates, the second of which was asked for with the clock ahead.
        for _ in 0..2 {
            let before = kubectl(&hub(), CERTIFICATES);
            until(&hub(), CERTIFICATES, |now| now != before);
        }
        rollout_of_manager();
        let skewed =
            "get tenant b -o jsonpath={.status.conditions[?(@.type==\"ClockSkewed\")].message}";
        let told = until(&hub(), skewed, |message| message.contains("ahead of the hub's"));
        let seconds: i64 = told.split(' ').find_map(|word| word.parse().ok()).expect("how far");
        assert!((AHEAD - 60..AHEAD + 60).contains(&seconds), "{told}");
        println!("told: {told}");
        apply(&b, &service("clock", "web", "{name: http, port: 9210, targetPort: 8080}", ""));
        let ip = address(&b, "clock", "web");
        answers(&format!("http://{ip}:9210/"), "cluster=tenant-b");

        // Now it starts with that clock.
        let logs = format!("-n {NAMESPACE} logs -l app.kubernetes.io/component=agent --tail=-1");
        let says = "by this node's clock";
        let before = kubectl(&b, &logs);
        assert!(!before.contains(says), "{before}");
        kubectl(&b, &format!("-n {NAMESPACE} rollout restart deployment/fairlead-agent"));
        until(&b, &logs, |said| said.contains(says));
        answers(&format!("http://{ip}:9210/"), "cluster=tenant-b");
    }
    everybody_anew(86_400);
    let conditions = "get tenant b -o jsonpath={.status.conditions[*].type}";
    until(&hub(), conditions, |types| !types.contains("ClockSkewed"));
    connected("b", Duration::from_secs(30));
}
