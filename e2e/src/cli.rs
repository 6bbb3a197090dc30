//! `cargo e2e …` and `cargo demo`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use crate::driver::{Driver, Which};
use crate::topology::{self, Cluster};
use crate::{bench, cluster, demo, images, install, local, run};

/// Fairlead on real clusters on this machine.
#[derive(Debug, Parser)]
#[command(name = "cargo e2e", disable_version_flag = true)]
pub struct Args {
    /// How the clusters are made.
    #[arg(long, env = "FAIRLEAD_E2E_DRIVER", default_value = "local", global = true)]
    driver: Which,
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Bring the clusters up and install Fairlead on them.
    Up {
        /// The clusters only, without Fairlead.
        #[arg(long)]
        bare: bool,
    },
    /// Take everything down.
    Down,
    /// Show whether each part works.
    Status,
    /// Print the kubeconfigs' paths as shell variables.
    Env,
    /// Run kubectl on a cluster: hub, tenant-a or tenant-b.
    #[command(trailing_var_arg = true)]
    Kubectl {
        /// The cluster.
        cluster: String,
        /// kubectl's arguments.
        #[arg(allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a command in the network of a host: client, hub-1, tenant-a-2, …
    Exec {
        /// The host.
        host: String,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Build the images and give them to the clusters.
    Images {
        #[command(subcommand)]
        what: ImagesWhat,
    },
    /// Two tenants publish a Service each; both are fetched through Envoy.
    Demo {
        /// Take everything down at the end.
        #[arg(long)]
        exit: bool,
    },
    /// Measure what a change costs at 100, 1,000 and 10,000 Routes. Clusters that are up are taken down.
    Bench(bench::Options),
    /// Measure what a host name with a certificate costs Envoy, by the layout of its configuration. No cluster is used.
    Layouts(bench::layouts::Options),
    #[command(hide = true)]
    Forward {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        host: String,
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        state: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum ImagesWhat {
    /// Build and import every image.
    Load,
}

impl Args {
    /// Does what was asked.
    pub fn run(self) -> Result<()> {
        let driver = &*self.driver.driver();
        match self.command {
            What::Up { bare: true } => driver.up(),
            What::Up { bare: false } => install::up(driver).map(drop),
            What::Down => driver.down(),
            What::Status => status(driver),
            What::Env => {
                env(driver);
                Ok(())
            }
            What::Kubectl { cluster: name, arguments } => {
                let mut command = cluster::kubectl_command(driver, &known(&name)?);
                finish(command.args(arguments))
            }
            What::Exec { host, command } => finish(&mut driver.on_host(&host, &command)?),
            What::Images { what: ImagesWhat::Load } => install::load(driver, &images::all()?),
            What::Demo { exit } => demo::run(driver, exit),
            What::Bench(options) => bench::run(&options),
            What::Layouts(options) => bench::layouts::run(&options),
            What::Forward { listen, host, to, state: _ } => {
                local::forward::serve(listen, &host, to)
            }
        }
    }
}

fn known(name: &str) -> Result<Cluster> {
    let names =
        || topology::clusters().iter().map(|cluster| cluster.name).collect::<Vec<_>>().join(", ");
    topology::cluster(name).with_context(|| format!("no cluster {name:?}; there are {}", names()))
}

/// Ends this program as the command ends.
fn finish(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { std::process::exit(status.code().unwrap_or(1)) }
}

fn status(driver: &dyn Driver) -> Result<()> {
    let lines = driver.status();
    for (name, state) in &lines {
        match state {
            Ok(()) => println!("{name:<40} ok"),
            Err(error) => {
                let text = error.to_string();
                println!("{name:<40} {}", text.lines().next().unwrap_or("failed"));
            }
        }
    }
    if lines.iter().any(|(_, state)| state.is_err()) {
        bail!("not everything is up; `cargo e2e up` brings it up");
    }
    let (hub, all) = (topology::hub(), ["get", "tenants,routes,addresspools", "-A"]);
    run::show(cluster::kubectl_command(driver, &hub).args(all))
}

fn env(driver: &dyn Driver) {
    for cluster in topology::clusters() {
        let name = cluster.name.replace('-', "_").to_uppercase();
        println!("export KUBECONFIG_{name}={}", driver.kubeconfig(&cluster).display());
    }
    println!("export KUBECONFIG={}", driver.kubeconfig(&topology::hub()).display());
}
