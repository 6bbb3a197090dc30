//! What the bench runs on: a hub with its manager and Envoys, installed with the chart; a tenant's apiserver, the
//! agent as a process, and two addresses that stand for the tenant's nodes.
//!
//! Behind every node port answers one workload, by a redirection of the kernel's: what is measured is Fairlead, not
//! how long kube-proxy takes.

use std::fmt::Write;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::jiff::{Timestamp, Unit};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

use super::figures::Resync;
use crate::driver::Driver;
use crate::install::{self, NAMESPACE};
use crate::local::{Local, net};
use crate::say::say;
use crate::topology::{self, Cluster};
use crate::{cluster, images, paths, run};

/// The tenant's nodes.
pub const NODES: [(&str, &str); 2] = [("n1", "172.18.0.41"), ("n2", "172.18.0.42")];
/// What the workload says on each of them.
pub const BACKENDS: [&str; 2] = ["port=8081", "port=8082"];
/// The tenant.
pub const TENANT: &str = "bench";
/// How many Routes it may have.
pub const ROUTES: usize = 30_000;
/// What each program on the hub requests of a processor.
pub const SHARE: &str = "500m";
/// Where the agent reaches the hub.
const HUB: &str = "172.18.0.11:30843";

/// Everything that runs.
#[derive(Debug)]
pub struct Stage {
    tenant: Cluster,
    token: String,
    agent: Option<Pid>,
    /// Workers of each Envoy.
    pub workers: u64,
}

impl Stage {
    /// Brings everything up from nothing, but the agent. `listeners`: how many each Envoy will have, at most.
    pub fn up(listeners: usize) -> Result<Self> {
        let tenant = Local.up_for_bench()?;
        let images = images::all()?;
        let hub = topology::hub();
        Local.load_image(&hub, &images.manager.archive)?;
        Local.load_image(&hub, &images.envoy.archive)?;
        // Their share of the processor, which they have to themselves: what they wait for otherwise is the machine's.
        let share = ["manager", "envoy"].map(|who| format!("{who}.resources.requests.cpu={SHARE}"));
        let workers = workers(listeners)?;
        let concurrency = format!("envoy.concurrency={workers}");
        install::hub(&Local, &images, &[&share[..], &[concurrency]].concat())?;
        let nodes = NODES.map(|(_, address)| format!("{address}/32")).join(",");
        let pool = topology::POOL;
        let add = ["tenant", "add", TENANT, "--node-cidr", &nodes, "--pool", pool];
        let token = install::fairlead(
            &Local,
            &[&add[..], &["--hub-address", HUB, "--token-only"]].concat(),
        )?;
        let spec = json!({"spec": {"nodePorts": {"first": 10000, "last": 32767}, "quotas": {
            "routes": ROUTES, "hostnames": 30000, "ports": 60000, "endpoints": 200_000, "changesPerSecond": 10000,
        }}});
        let spec = spec.to_string();
        let patch = ["patch", "tenant", TENANT, "--type=merge", "-p", &spec];
        cluster::kubectl(&Local, &hub, &patch)?;
        // The chart, for its Secret and its class. Nothing here makes pods: the agent itself is a process.
        let chart = paths::repository().join("deploy/fairlead-agent").display().to_string();
        let token = token.trim().to_owned();
        let address = format!("hub.address={HUB}");
        let line = ["upgrade", "--install", "fairlead-agent", &chart, "-n", NAMESPACE];
        let set = ["--create-namespace", "--set", &address];
        cluster::helm(&Local, &tenant, &[&line[..], &set[..]].concat())?;
        workload(&tenant)?;
        run::wait_for("the tenant's namespace", Duration::from_secs(30), || {
            cluster::kubectl(&Local, &hub, &["get", "namespace", "tenant-bench"])
        })?;
        say("the hub and the tenant's apiserver are ready");
        Ok(Self { tenant, token, agent: None, workers })
    }

    /// Starts the agent.
    pub fn start_agent(&mut self) -> Result<()> {
        let host = self.tenant.control_plane().name;
        let program = images::release()?.join("fairlead-agent");
        let kubeconfig = Local.direct_kubeconfig(&self.tenant)?.display().to_string();
        let variables = [
            ("KUBECONFIG", kubeconfig.as_str()),
            ("FAIRLEAD_HUB", HUB),
            ("FAIRLEAD_JOIN_TOKEN", self.token.as_str()),
            ("FAIRLEAD_LOG", "info"),
            ("POD_NAME", "bench"),
        ];
        let pid = Local.daemon(host, &program, &variables)?;
        self.agent = Some(Pid::from_raw(i32::try_from(pid)?));
        Ok(())
    }

    /// Fails once the agent that was started has ended.
    pub fn expect_agent(&mut self) -> Result<()> {
        let pid = self.agent.context("no agent was started")?;
        match waitpid(pid, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::StillAlive => Ok(()),
            ended => {
                self.agent = None;
                bail!("the agent has ended ({ended:?}); its log tells why")
            }
        }
    }

    /// Ends the agent; what it published stays.
    pub fn stop_agent(&mut self) -> Result<()> {
        let Some(pid) = self.agent.take() else { return Ok(()) };
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        waitpid(pid, None)?;
        Ok(())
    }

    /// A client of the tenant's apiserver, for a thread on the fabric.
    pub async fn client(&self) -> Result<Client> {
        client(&self.tenant).await
    }
}

/// A client of a cluster's apiserver, for a thread on the fabric.
pub async fn client(cluster: &Cluster) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(Local.direct_kubeconfig(cluster)?)?;
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    config.read_timeout = Some(Duration::from_secs(60));
    Ok(Client::try_from(config)?)
}

/// Answers at every node port.
fn workload(tenant: &Cluster) -> Result<()> {
    let host = tenant.control_plane().name;
    let second = NODES[1].1;
    let mut script = format!(
        "ip addr replace {second}/24 dev eth0; nft add table ip bench; \
        nft 'add chain ip bench in {{ type nat hook prerouting priority dstnat; }}'"
    );
    for ((_, address), backend) in NODES.iter().zip(BACKENDS) {
        let port = backend.trim_start_matches("port=");
        let rule = format!("ip daddr {address} tcp dport 10000-32767 redirect to :{port}");
        // Writing to a String cannot fail.
        let _ = write!(script, "; nft add rule ip bench in {rule}");
    }
    run::output(net::enter(host, "sh").args(["-ec", &script]))?;
    let ports = BACKENDS.map(|backend| backend.trim_start_matches("port=").to_owned()).join(",");
    let program = images::release()?.join("echo");
    Local.daemon(host, &program, &[("HTTP_PORTS", &ports)]).map(drop)
}

/// Envoy's workers: as many as there are cores, unless that needs more files than this machine lets a process have. Each
/// worker has a socket for each listener, and an Envoy that cannot have another one ends itself.
fn workers(listeners: usize) -> Result<u64> {
    let cores = std::thread::available_parallelism()?.get() as u64;
    let (_, files) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Some are on their way out when others come.
    let needed = listeners as u64 * 6 / 5 + 1_000;
    let workers = cores.min(files / needed).max(1);
    if workers < cores {
        say(&format!(
            "Envoy has {workers} of {cores} workers, since a process may open {files} files"
        ));
    }
    Ok(workers)
}

/// Ends the manager's pod, whose Deployment starts another.
pub fn restart_manager() -> Result<()> {
    let delete = ["-n", NAMESPACE, "delete", "pod", "--wait=false", "-l"];
    let line = [&delete[..], &["app.kubernetes.io/component=manager"]].concat();
    net::outside(|| cluster::kubectl(&Local, &topology::hub(), &line)).map(drop)
}

/// What the manager's pod said.
pub fn manager_log() -> Result<String> {
    let logs = ["-n", NAMESPACE, "logs", "-l", "app.kubernetes.io/component=manager", "--tail=-1"];
    net::outside(|| cluster::kubectl(&Local, &topology::hub(), &logs))
}

/// Each time that the tenant's agent told what it has, as the manager's pod said.
pub fn resyncs() -> Result<Vec<Resync>> {
    let (mut all, mut connected) = (Vec::new(), None);
    for line in manager_log()?.lines().filter(|line| line.contains(&format!("tenant={TENANT} "))) {
        let at: Option<Timestamp> = line.split(' ').next().and_then(|at| at.parse().ok());
        let number = |name: &str| -> Option<usize> {
            line.split(' ').find_map(|word| word.strip_prefix(name)?.parse().ok())
        };
        if line.contains("agent connected") {
            connected = at;
        } else if line.contains("inventory compared")
            && let (Some(from), Some(to)) = (connected.take(), at)
            && let (Some(items), Some(asked)) = (number("items="), number("asked="))
        {
            let seconds = (to - from).total(Unit::Second)?;
            all.push(Resync { seconds, items, asked });
        }
    }
    Ok(all)
}

/// What the machine is, for a report.
pub fn machine() -> Result<String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("a CPU");
    let cores = std::thread::available_parallelism()?;
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let kib = memory.split_whitespace().nth(1).context("meminfo")?.parse::<u64>()?;
    let kernel = run::output(Command::new("uname").arg("-r"))?;
    let model = model.trim_start_matches([' ', '\t', ':']);
    Ok(format!("{cores} cores ({model}), {} GiB, Linux {}", kib >> 20, kernel.trim()))
}
