//! Network namespaces: one per host, and a fabric with a bridge that joins them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use super::ip;
use crate::run;
use crate::topology::{self, Cluster, FABRIC_PREFIX, Host};

const FABRIC: &str = "fl-fabric";

fn namespace(host: &str) -> String {
    format!("fl-{host}")
}

fn file(host: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(namespace(host))
}

/// A command that runs in the network of `host`. Not `ip netns exec`, which would hide the cgroups.
pub fn enter(host: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", file(host).display())).arg("--").arg(program);
    command
}

/// Runs `work` on a thread of its own that is in the network of `host`.
pub fn within<T: Send>(host: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    inside(&file(host), host, work)
}

/// Runs `work` on a thread of its own that is in the machine's network, for those who are in a host's.
pub fn outside<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    // The first thread of a process enters no host's.
    inside(Path::new("/proc/self/ns/net"), "the machine", work)
}

fn inside<T: Send>(path: &Path, host: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let namespace = File::open(path).with_context(|| format!("{}", path.display()))?;
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread.join().map_err(|_| anyhow!("a thread in the network of {host} panicked"))?
    })
}

/// Makes the fabric and all hosts.
pub fn up() -> Result<()> {
    ip(&format!("netns add {FABRIC}"))?;
    ip(&format!("-n {FABRIC} link add br0 type bridge"))?;
    ip(&format!("-n {FABRIC} link set br0 up"))?;
    topology::hosts().iter().try_for_each(add_host)?;
    topology::clusters().iter().try_for_each(join_pod_ranges)
}

fn add_host(host: &Host) -> Result<()> {
    let Host { name, address, pool, .. } = host;
    let ns = namespace(name);
    ip(&format!("netns add {ns}"))?;
    // Interface names have at most 15 characters; the host's fits.
    ip(&format!("-n {ns} link add eth0 type veth peer name p-{name} netns {FABRIC}"))?;
    ip(&format!("-n {FABRIC} link set p-{name} master br0 up"))?;
    ip(&format!("-n {ns} link set lo up"))?;
    ip(&format!("-n {ns} link set eth0 up"))?;
    ip(&format!("-n {ns} addr add {address}/{FABRIC_PREFIX} dev eth0"))?;
    // kube-apiserver asks for a default route; nothing answers behind it.
    ip(&format!("-n {ns} route add default via 172.18.0.1 dev eth0"))?;
    // Nobody else could have these: they are there at once.
    let v6 = topology::host_address_v6(address.octets()[3].into());
    ip(&format!("-n {ns} addr add {v6}/64 dev eth0 nodad"))?;
    for held in pool {
        let (prefix, options) = if held.is_ipv4() { ("32", "") } else { ("128", "nodad") };
        ip(&format!("-n {ns} addr add {held}/{prefix} dev eth0 {options}"))?;
    }
    for setting in ["net.ipv4.ip_forward=1", "net.ipv4.conf.all.route_localnet=1"] {
        run::output(enter(name, "sysctl").args(["-q", "-w", setting]))?;
    }
    Ok(())
}

/// Each node's pods are reached by way of that node, within one cluster only.
fn join_pod_ranges(cluster: &Cluster) -> Result<()> {
    for from in &cluster.nodes {
        for to in cluster.nodes.iter().filter(|to| *to != from) {
            let (ns, range) = (namespace(from.name), pod_range(to));
            ip(&format!("-n {ns} route add {range} via {}", to.address))?;
        }
    }
    Ok(())
}

/// The pods of one node.
pub(super) fn pod_range(host: &Host) -> String {
    format!("10.244.{}.0/24", host.index)
}

/// Deletes every namespace of ours.
pub(super) fn down() -> Result<()> {
    let hosts = topology::hosts().into_iter().map(|host| namespace(host.name));
    for ns in hosts.chain([FABRIC.to_owned()]) {
        if PathBuf::from("/run/netns").join(&ns).exists() {
            ip(&format!("netns delete {ns}"))?;
        }
    }
    Ok(())
}
