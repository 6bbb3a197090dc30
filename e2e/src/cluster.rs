//! Talking to a cluster with `kubectl` and `helm`, as a user does.

use std::process::Command;

use anyhow::Result;

use crate::driver::Driver;
use crate::topology::Cluster;
use crate::{binaries, run};

/// `kubectl` for a cluster's administrator.
pub fn kubectl_command(driver: &dyn Driver, cluster: &Cluster) -> Command {
    let mut command = Command::new(binaries::path("kubectl"));
    command.arg("--kubeconfig").arg(driver.kubeconfig(cluster));
    command
}

/// Runs `kubectl` and returns what it prints.
pub fn kubectl(driver: &dyn Driver, cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    run::output(kubectl_command(driver, cluster).args(arguments))
}

/// `kubectl apply` of a text.
pub fn apply(driver: &dyn Driver, cluster: &Cluster, manifest: &str) -> Result<String> {
    run::feed(kubectl_command(driver, cluster).args(["apply", "-f", "-"]), manifest)
}

/// Runs `helm` and returns what it prints.
pub fn helm(driver: &dyn Driver, cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(binaries::path("helm"));
    command.arg("--kubeconfig").arg(driver.kubeconfig(cluster)).args(arguments);
    run::output(&mut command)
}
