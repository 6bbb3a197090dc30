//! A tenant cluster's agent.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    fairlead_agent::Args::parse().run().await
}
