//! The platform team's commands on the hub. Everything that they do can be seen, and done, with `kubectl`, but
//! for one thing: a token's secret is made here, shown once, and kept nowhere.

mod agents;
mod ca;
mod tenants;
mod tokens;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use fairlead_process::apiserver;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Tenants of a Fairlead hub, their agents, and the hub's CA.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// The context of the kubeconfig that leads to the hub.
    #[arg(long, global = true)]
    context: Option<String>,
    /// The kubeconfig.
    #[arg(long, global = true)]
    kubeconfig: Option<std::path::PathBuf>,
    /// The manager's namespace.
    #[arg(long, global = true, env = "FAIRLEAD_NAMESPACE", default_value = "fairlead-system")]
    system_namespace: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Workload clusters.
    #[command(subcommand)]
    Tenant(tenants::Command),
    /// What lets an agent join.
    #[command(subcommand)]
    Token(tokens::Command),
    /// Agents that have joined.
    #[command(subcommand)]
    Agent(agents::Command),
    /// The hub's certificate authority.
    #[command(subcommand)]
    Ca(ca::Command),
}

impl Args {
    /// Runs the command.
    ///
    /// # Errors
    /// What went wrong, and what to do.
    pub async fn run(self) -> Result<()> {
        let client = self.client().await.context("no access to the hub's apiserver")?;
        match self.command {
            Command::Tenant(command) => command.run(&client, &self.system_namespace).await,
            Command::Token(command) => command.run(&client, &self.system_namespace).await,
            Command::Agent(command) => command.run(&client).await,
            Command::Ca(command) => command.run(&client, &self.system_namespace).await,
        }
    }

    async fn client(&self) -> Result<Client> {
        let options =
            KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let config = match &self.kubeconfig {
            Some(path) => {
                Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?
            }
            None if self.context.is_some() => Config::from_kubeconfig(&options).await?,
            None => Config::infer().await?,
        };
        apiserver::client_of(config, "fairlead")
    }
}

/// Rows with their columns below each other, as kubectl prints them.
fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let header = header.iter().map(|cell| (*cell).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&header).chain(rows) {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// A time as people read it: how long ago, or until then.
fn age(seconds: i64) -> String {
    let amount = seconds.abs();
    let text = match amount {
        0..=119 => format!("{amount}s"),
        120..=7_199 => format!("{}m", amount / 60),
        7_200..=172_799 => format!("{}h", amount / 3_600),
        _ => format!("{}d", amount / 86_400),
    };
    if seconds < 0 { format!("in {text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows =
            vec![vec!["a".to_owned(), "long one".to_owned()], vec!["bbb".into(), "c".into()]];
        assert_eq!(table(&["X", "Y"], &rows), "X     Y\na     long one\nbbb   c\n");
        assert_eq!(table(&["X"], &[]), "X\n");
    }

    #[test]
    fn times_are_short() {
        assert_eq!([age(5), age(-600), age(90_000), age(400_000)], ["5s", "in 10m", "25h", "4d"]);
    }
}
