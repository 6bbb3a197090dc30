//! The hub's manager.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    fairlead_manager::Args::parse().run().await
}
