//! [`State`] shared between one writer and the sessions.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::watch;

use crate::{Change, State};

/// [`State`] shared between one writer and the sessions.
#[derive(Debug)]
pub struct Cache {
    state: RwLock<State>,
    changed: watch::Sender<()>,
}

impl Default for Cache {
    fn default() -> Self {
        Self { state: RwLock::default(), changed: watch::Sender::new(()) }
    }
}

impl Cache {
    /// Carries changes out and wakes the sessions.
    pub fn publish(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        self.state.write().unwrap_or_else(PoisonError::into_inner).apply(changes);
        self.changed.send_replace(());
    }

    /// From now on clients are answered.
    pub fn complete(&self) {
        self.state.write().unwrap_or_else(PoisonError::into_inner).complete();
        self.changed.send_replace(());
    }

    /// The state; to be held for a moment, never across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of changes.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
