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

use control_plane::Settings;

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
            let bring_up = |cluster| start(cluster, &pause, &coredns, Settings::default());
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
            start(&spare, &images::pause()?, &images::coredns()?, Settings::default())?;
        }
        Ok(spare)
    }

    /// Brings up, from nothing, what the bench needs: the hub, and of the spare cluster etcd and the apiserver
    /// alone. Both etcds wait for the disk. What was there before is taken down.
    pub fn up_for_bench(self) -> Result<Cluster> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the bench needs root; use sudo");
        }
        packages::ensure()?;
        binaries::ensure()?;
        down::all()?;
        net::up()?;
        let synced = Settings { synced: true, ..Settings::default() };
        start(&topology::hub(), &images::pause()?, &images::coredns()?, synced)?;
        let spare = topology::spare();
        // A node port for each Service, and the ports that a Service with `Local` has beside them.
        let settings = Settings { node_ports: Some("10000-32767"), controllers: false, ..synced };
        start_control_plane(&spare, settings)?;
        Ok(spare)
    }

    /// A kubeconfig for hosts on the fabric: it leads to the apiserver itself, and not through the way from the
    /// machine's loopback.
    pub fn direct_kubeconfig(self, cluster: &Cluster) -> Result<PathBuf> {
        let path = folder(cluster).join("direct.kubeconfig");
        let text = std::fs::read_to_string(self.kubeconfig(cluster))?;
        let direct = format!("https://{}:6443", cluster.control_plane().address);
        let loopback = format!("https://127.0.0.1:{}", cluster.api_port);
        std::fs::write(&path, text.replace(&loopback, &direct))?;
        Ok(path)
    }

    /// Starts a program of this workspace as a daemon in the network of `host`. It is copied beside the clusters'
    /// state: by that [`Driver::down`] knows it for ours.
    pub fn daemon(self, host: &str, program: &Path, variables: &[(&str, &str)]) -> Result<u32> {
        let name = program.file_name().context("a program")?.to_string_lossy().into_owned();
        let copy = paths::state().join("programs").join(&name);
        if !copy.exists() {
            std::fs::create_dir_all(paths::state().join("programs"))?;
            std::fs::copy(program, &copy)?;
        }
        let mut command = net::enter(host, &copy.display().to_string());
        command.envs(variables.iter().copied());
        let name = format!("{host}-{name}");
        process::spawn(command, &name, &paths::state().join(format!("{name}.log")))
    }
}

/// A cluster's apiserver from nothing; its folder and what it was given of keys come back.
fn start_control_plane(cluster: &Cluster, settings: Settings) -> Result<(PathBuf, pki::Pki)> {
    let folder = folder(cluster);
    std::fs::create_dir_all(&folder)?;
    let pki = pki::make(cluster, &folder)?;
    control_plane::start(cluster, &folder, &pki, settings)?;
    Ok((folder, pki))
}

/// One cluster from nothing to working DNS.
fn start(
    cluster: &Cluster,
    pause: &Path,
    coredns: &images::Image,
    settings: Settings,
) -> Result<()> {
    let (folder, pki) = start_control_plane(cluster, settings)?;
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
