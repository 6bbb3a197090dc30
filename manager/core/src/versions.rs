//! Which news of an object are old: a watch tells of everything in order, but later than the answers to this process'
//! own writes. What it shows of a key was true once, and may be so no longer.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// For how long, in seconds, old news of an object that is gone may come: a watch whose connection is dead is noticed
/// after five minutes, and goes on where it was.
const LAG: i64 = 900;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    version: u64,
    /// Since when it is gone, in seconds since 1970.
    gone: Option<i64>,
}

/// The newest version (`metadata.resourceVersion`, which grows with each write: KEP-5504) that is known of each key.
#[derive(Debug)]
pub struct Versions<K> {
    known: HashMap<K, Known>,
    gone: VecDeque<(i64, K)>,
}

impl<K> Default for Versions<K> {
    fn default() -> Self {
        Self { known: HashMap::new(), gone: VecDeque::new() }
    }
}

impl<K: Hash + Eq + Clone> Versions<K> {
    /// Whether an object that a watch shows is not older than what is known; 0 is a version that cannot be read.
    pub fn is_news(&mut self, key: &K, version: u64) -> bool {
        let is_news = version == 0
            || self.known.get(key).is_none_or(|known| {
                version > known.version || version == known.version && known.gone.is_none()
            });
        if is_news {
            self.note(key, version);
        }
        is_news
    }

    /// An object was written, or read, by this process.
    pub fn note(&mut self, key: &K, version: u64) {
        if self.known.get(key).is_none_or(|known| version > known.version) {
            self.known.insert(key.clone(), Known { version, gone: None });
        }
    }

    /// An object of this version at most is gone. `now`: in seconds since 1970.
    pub fn gone(&mut self, key: &K, version: u64, now: i64) {
        if let Some(known) = self.known.get_mut(key)
            && known.version <= version
        {
            known.gone = Some(now);
            self.gone.push_back((now, key.clone()));
        }
        while self.gone.front().is_some_and(|(since, _)| since + LAG <= now) {
            let Some((since, key)) = self.gone.pop_front() else { return };
            if self.known.get(&key).is_some_and(|known| known.gone == Some(since)) {
                self.known.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_an_own_write_is_no_news() {
        let mut versions = Versions::default();
        versions.note(&"key", 5);
        assert!(!versions.is_news(&"key", 4), "it was there before");
        assert!(versions.is_news(&"key", 5), "the write itself");
        assert!(versions.is_news(&"key", 6), "somebody else's");
        assert!(!versions.is_news(&"key", 5));
        assert!(versions.is_news(&"other", 1) && versions.is_news(&"key", 0));
    }

    #[test]
    fn what_is_gone_does_not_come_back_and_another_may_come() {
        let mut versions = Versions::default();
        assert!(versions.is_news(&"key", 5));
        versions.gone(&"key", 5, 0);
        assert!(!versions.is_news(&"key", 5));
        assert!(versions.is_news(&"key", 7));
        versions.gone(&"key", 5, 1);
        assert!(versions.is_news(&"key", 7), "the end of an older one says nothing of this");
    }

    #[test]
    fn what_is_gone_is_forgotten_and_what_is_there_is_not() {
        let mut versions = Versions::default();
        versions.note(&"gone", 5);
        versions.note(&"again", 5);
        versions.gone(&"gone", 5, 0);
        versions.gone(&"again", 5, 0);
        versions.note(&"again", 6);
        versions.gone(&"other", 1, LAG);
        assert!(versions.known.keys().eq([&"again"]));
    }
}
