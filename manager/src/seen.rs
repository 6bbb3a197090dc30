//! [`Versions`] of claims, which those who write them and the one who watches them share.

use std::hash::Hash;
use std::sync::{Arc, Mutex};

use fairlead_core::versions::Versions;
use fairlead_process::locks::lock;

/// The newest versions that are known.
#[derive(Debug, Clone)]
pub(crate) struct Seen<K>(Arc<Mutex<Versions<K>>>);

impl<K> Default for Seen<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Hash + Eq + Clone> Seen<K> {
    /// Whether what the watch shows is not older than what is known.
    pub(crate) fn is_news(&self, key: &K, version: u64) -> bool {
        lock(&self.0).is_news(key, version)
    }

    /// This process wrote or read an object.
    pub(crate) fn note(&self, key: &K, version: u64) {
        lock(&self.0).note(key, version);
    }

    /// The watch shows that an object of this version is gone.
    pub(crate) fn gone(&self, key: &K, version: u64) {
        lock(&self.0).gone(key, version, jiff::Timestamp::now().as_second());
    }

    /// This process deleted what it knew to be there.
    pub(crate) fn deleted(&self, key: &K) {
        self.gone(key, u64::MAX);
    }
}
