//! A tenant cluster's agent.

use clap::Parser;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

// One thread: a change passes through many small tasks, and to wake another thread for each costs more than the
// work itself. What takes long is the apiserver's.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    fairlead_agent::Args::parse().run().await
}
