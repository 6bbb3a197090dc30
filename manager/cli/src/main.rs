//! `fairlead`.

use clap::Parser;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    fairlead_cli::Args::parse().run().await
}
