//! Clusters in network namespaces of this machine: real etcd, apiservers, kubelets, containerd and
//! kube-proxies. `../shared/real-clusters.md` of the project tells where the settings come from.

mod control_plane;
mod down;
pub mod forward;
pub mod net;
mod node;
mod pki;
mod process;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::driver::Driver;
use crate::say::say;
use crate::topology::{self, Cluster};
use crate::{binaries, cluster, images, packages, paths, run};

/// The local driver.
#[derive(Debug, Clone, Copy)]
pub struct Local;

/// Written when everything is up: without it, `up` starts from nothing.
fn marker() -> PathBuf {
    paths::state().join("up")
}

fn folder(cluster: &Cluster) -> PathBuf {
    paths::state().join(cluster.name)
}

impl Driver for Local {
    fn up(&self) -> Result<()> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the local driver needs root; use sudo, or `--driver kind` where Docker runs");
        }
        packages::ensure()?;
        binaries::ensure()?;
        if marker().exists() && self.status().iter().all(|(_, state)| state.is_ok()) {
            say("the clusters are up");
            return Ok(());
        }
        down::all()?;
        net::up()?;
        let clusters = topology::clusters();
        let pause = images::pause()?;
        let coredns = images::coredns()?;
        std::thread::scope(|scope| {
            let bring_up = |cluster| start(cluster, &pause, &coredns);
            let threads: Vec<_> =
                clusters.iter().map(|cluster| scope.spawn(move || bring_up(cluster))).collect();
            threads.into_iter().try_for_each(|thread| {
                thread.join().map_err(|_| anyhow!("bringing a cluster up panicked"))?
            })
        })?;
        std::fs::write(marker(), "")?;
        say("the clusters are up");
        Ok(())
    }

    fn down(&self) -> Result<()> {
        down::all()
    }

    fn status(&self) -> Vec<(String, Result<()>)> {
        let mut lines = process::status();
        for cluster in topology::clusters() {
            let ready = cluster::kubectl(self, &cluster, &["get", "--raw", "/readyz"]);
            lines.push((format!("{} apiserver", cluster.name), ready.map(drop)));
        }
        lines
    }

    fn kubeconfig(&self, cluster: &Cluster) -> PathBuf {
        folder(cluster).join("admin.kubeconfig")
    }

    fn load_image(&self, cluster: &Cluster, archive: &Path) -> Result<()> {
        cluster.nodes.iter().try_for_each(|host| node::import(cluster, host, archive))
    }

    fn on_host(&self, host: &str, command: &[String]) -> Result<Command> {
        let host = topology::find_host(host).with_context(|| format!("no host {host:?}"))?;
        let (program, arguments) = command.split_first().context("no command given")?;
        let mut entered = net::enter(host.name, program);
        entered.args(arguments);
        Ok(entered)
    }

    fn hub_address(&self) -> Result<String> {
        Ok(topology::hub().control_plane().address.to_string())
    }
}

impl Local {
    /// Brings the spare cluster up, unless it is; the others are.
    pub fn up_spare(self) -> Result<Cluster> {
        let spare = topology::spare();
        if cluster::kubectl(&self, &spare, &["get", "--raw", "/readyz"]).is_err() {
            start(&spare, &images::pause()?, &images::coredns()?)?;
        }
        Ok(spare)
    }
}

/// One cluster from nothing to working DNS.
fn start(cluster: &Cluster, pause: &Path, coredns: &images::Image) -> Result<()> {
    let folder = folder(cluster);
    std::fs::create_dir_all(&folder)?;
    let pki = pki::make(cluster, &folder)?;
    control_plane::start(cluster, &folder, &pki)?;
    for host in &cluster.nodes {
        node::start(cluster, host, &folder, &pki)?;
    }
    for host in &cluster.nodes {
        node::import(cluster, host, pause)?;
        node::import(cluster, host, &coredns.archive)?;
    }
    let dns = include_str!("../../manifests/coredns.yaml")
        .replace("${IMAGE}", &coredns.reference)
        .replace("${ADDRESS}", topology::DNS_ADDRESS);
    cluster::apply(&Local, cluster, &dns)?;
    let ready = ["wait", "node", "--all", "--for=condition=Ready", "--timeout=120s"];
    // A kubelet that is slow has not registered its node yet: there is nothing to wait for then.
    run::wait_for("the nodes", Duration::from_secs(120), || {
        cluster::kubectl(&Local, cluster, &ready).map(drop)
    })?;
    let rolled = ["-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s"];
    cluster::kubectl(&Local, cluster, &rolled)?;
    say(&format!("{} is ready ({} nodes)", cluster.name, cluster.nodes.len()));
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn ip(arguments: &str) -> Result<()> {
    run::output(Command::new("ip").args(arguments.split_whitespace())).map(drop)
}
