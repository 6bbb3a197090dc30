//! Claims that are kept for their tenants for a while after their last use.

use std::collections::{BTreeSet, HashMap};

use fairlead_api::claim::ClaimKey;

/// Claims by when they may go, in seconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Resting {
    until: HashMap<ClaimKey, i64>,
    order: BTreeSet<(i64, ClaimKey)>,
}

impl Resting {
    /// Until when a claim is kept.
    pub(super) fn until(&self, key: &ClaimKey) -> Option<i64> {
        self.until.get(key).copied()
    }

    /// Keeps a claim until then.
    pub(super) fn insert(&mut self, key: ClaimKey, until: i64) {
        self.remove(&key);
        self.until.insert(key, until);
        self.order.insert((until, key));
    }

    /// Its tenant has it again, or it is gone.
    pub(super) fn remove(&mut self, key: &ClaimKey) {
        if let Some(until) = self.until.remove(key) {
            self.order.remove(&(until, *key));
        }
    }

    /// The claims whose time has come. They are looked at again.
    pub(super) fn due(&self, now: i64) -> Vec<ClaimKey> {
        self.order.iter().take_while(|(until, _)| *until <= now).map(|(_, key)| *key).collect()
    }

    /// When the next one's time comes.
    pub(super) fn next(&self) -> Option<i64> {
        self.order.first().map(|(until, _)| *until)
    }
}
