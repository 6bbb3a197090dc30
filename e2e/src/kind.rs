//! The same clusters by the `kind` command, for people who have Docker. Not part of CI, whose
//! machine has none.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::driver::Driver;
use crate::say::say;
use crate::topology::{self, Cluster, POD_CIDR, SERVICE_CIDR};
use crate::{binaries, cluster, paths, run};

/// A network of its own, so that the pool's addresses are in it.
const NETWORK: &str = "fairlead";
const CLIENT: &str = "fairlead-client";
const CLIENT_IMAGE: &str = "docker.io/curlimages/curl:8.16.0";

/// The kind driver.
#[derive(Debug, Clone, Copy)]
pub struct Kind;

impl Driver for Kind {
    fn up(&self) -> Result<()> {
        docker(&["version"]).context("the kind driver needs Docker")?;
        kind(&["version"]).context("the kind driver needs the `kind` command")?;
        binaries::ensure_clients()?;
        std::fs::create_dir_all(folder())?;
        if docker(&["network", "inspect", NETWORK]).is_err() {
            docker(&["network", "create", "--subnet", "172.18.0.0/24", NETWORK])?;
        }
        let existing = kind(&["get", "clusters"])?;
        for cluster in topology::clusters() {
            if !existing.lines().any(|name| name == cluster.name) {
                create(*self, &cluster)?;
            }
            for host in &cluster.nodes {
                // Its network has IPv4 only.
                let mut v4 = host.pool.iter().filter(|held| held.is_ipv4());
                v4.try_for_each(|held| hold(&container(host.name), *held))?;
            }
        }
        if docker(&["inspect", CLIENT]).is_err() {
            docker(&[
                "run",
                "--detach",
                "--name",
                CLIENT,
                "--network",
                NETWORK,
                "--entrypoint",
                "sleep",
                CLIENT_IMAGE,
                "infinity",
            ])?;
        }
        say("the clusters are up");
        Ok(())
    }

    fn down(&self) -> Result<()> {
        for cluster in topology::clusters() {
            kind(&["delete", "cluster", "--name", cluster.name])?;
        }
        if docker(&["inspect", CLIENT]).is_ok() {
            docker(&["rm", "--force", CLIENT])?;
        }
        if docker(&["network", "inspect", NETWORK]).is_ok() {
            docker(&["network", "rm", NETWORK])?;
        }
        Ok(())
    }

    fn status(&self) -> Vec<(String, Result<()>)> {
        let ask = |cluster: Cluster| {
            let ready = cluster::kubectl(self, &cluster, &["get", "--raw", "/readyz"]);
            (format!("{} apiserver", cluster.name), ready.map(drop))
        };
        topology::clusters().into_iter().map(ask).collect()
    }

    fn kubeconfig(&self, cluster: &Cluster) -> PathBuf {
        folder().join(format!("{}.kubeconfig", cluster.name))
    }

    fn load_image(&self, cluster: &Cluster, archive: &Path) -> Result<()> {
        let archive = archive.display().to_string();
        kind(&["load", "image-archive", &archive, "--name", cluster.name]).map(drop)
    }

    fn on_host(&self, host: &str, command: &[String]) -> Result<Command> {
        topology::find_host(host).with_context(|| format!("no host {host:?}"))?;
        let mut docker = Command::new("docker");
        docker.args(["exec", "--interactive", &container(host)]).args(command);
        Ok(docker)
    }

    fn hub_address(&self) -> Result<String> {
        let node = container(topology::hub().control_plane().name);
        let format = format!("{{{{(index .NetworkSettings.Networks {NETWORK:?}).IPAddress}}}}");
        let address = docker(&["inspect", "--format", &format, &node])?;
        if address.trim().is_empty() {
            bail!("{node} has no address in the network {NETWORK}");
        }
        Ok(address.trim().to_owned())
    }
}

fn create(driver: Kind, cluster: &Cluster) -> Result<()> {
    say(&format!("creating the kind cluster {}", cluster.name));
    let workers = "- role: worker\n".repeat(cluster.nodes.len() - 1);
    let config = format!(
        "kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking: {{podSubnet: {POD_CIDR}, serviceSubnet: {SERVICE_CIDR}}}
nodes:
- role: control-plane
{workers}"
    );
    let file = folder().join(format!("{}.yaml", cluster.name));
    std::fs::write(&file, config)?;
    let (file, kubeconfig) =
        (file.display().to_string(), driver.kubeconfig(cluster).display().to_string());
    kind(&[
        "create",
        "cluster",
        "--name",
        cluster.name,
        "--config",
        &file,
        "--kubeconfig",
        &kubeconfig,
        "--wait",
        "180s",
    ])?;
    // Its one control-plane node works, too: the local driver's first nodes do.
    let untaint = ["taint", "node", "--all", "node-role.kubernetes.io/control-plane-"];
    cluster::kubectl(&driver, cluster, &untaint).map(drop)
}

fn hold(container: &str, address: IpAddr) -> Result<()> {
    let address = format!("{address}/32");
    docker(&["exec", container, "ip", "addr", "replace", &address, "dev", "eth0"]).map(drop)
}

/// kind names nodes by role: `hub-1` is `hub-control-plane`, `hub-2` is `hub-worker`.
fn container(host: &str) -> String {
    match host.rsplit_once('-') {
        Some((cluster, "1")) => format!("{cluster}-control-plane"),
        Some((cluster, "2")) => format!("{cluster}-worker"),
        _ => CLIENT.to_owned(),
    }
}

fn folder() -> PathBuf {
    paths::cache().join("kind")
}

fn docker(arguments: &[&str]) -> Result<String> {
    run::output(Command::new("docker").args(arguments))
}

fn kind(arguments: &[&str]) -> Result<String> {
    run::output(
        Command::new("kind").env("KIND_EXPERIMENTAL_DOCKER_NETWORK", NETWORK).args(arguments),
    )
}
