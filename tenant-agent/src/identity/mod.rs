//! Who this agent is to the hub: `store` keeps its keys and certificate in one Secret, `join` gets the first
//! certificate by a token, and a new one after the last expired, `keeper` renews it and follows what is
//! trusted.

mod join;
mod keeper;
mod store;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use fairlead_process::tls::Credentials;
use tokio::sync::watch;

pub(crate) use keeper::{Hub, Keeper};
pub(crate) use store::Keys;

/// Where the credentials of a connection come from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// Files that somebody else renews; read anew each time.
    Folder(PathBuf),
    /// The keeper's; none until this agent has joined.
    Kept(watch::Receiver<Option<Arc<Credentials>>>),
}

impl Source {
    /// Those to use now. Waits for the first.
    pub(crate) async fn now(&mut self) -> Result<Arc<Credentials>> {
        match self {
            Self::Folder(folder) => Credentials::from_folder(folder).map(Arc::new),
            Self::Kept(kept) => {
                let first = kept.wait_for(Option::is_some).await.context("the keeper ended")?;
                first.clone().context("no credentials")
            }
        }
    }
}
