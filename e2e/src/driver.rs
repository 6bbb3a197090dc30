//! Two ways to have clusters behind one interface.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::kind::Kind;
use crate::local::Local;
use crate::topology::Cluster;

/// Makes clusters and gives access to them.
pub trait Driver {
    /// Brings everything up; what is up already stays.
    fn up(&self) -> Result<()>;
    /// Takes everything down; nothing there is fine.
    fn down(&self) -> Result<()>;
    /// A line for each part: (what, whether it works or why not).
    fn status(&self) -> Vec<(String, Result<()>)>;
    /// The kubeconfig of a cluster's administrator.
    fn kubeconfig(&self, cluster: &Cluster) -> PathBuf;
    /// Makes an image archive known to every node of a cluster.
    fn load_image(&self, cluster: &Cluster, archive: &std::path::Path) -> Result<()>;
    /// A command that runs in a host's network.
    fn on_host(&self, host: &str, command: &[String]) -> Result<Command>;
    /// The address at which agents reach the hub.
    fn hub_address(&self) -> Result<String>;
}

/// Which driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// Network namespaces on this machine: Linux as root.
    Local,
    /// The `kind` command, where Docker runs.
    Kind,
}

impl Which {
    /// The driver.
    pub fn driver(self) -> Box<dyn Driver> {
        match self {
            Self::Local => Box::new(Local),
            Self::Kind => Box::new(Kind),
        }
    }
}
