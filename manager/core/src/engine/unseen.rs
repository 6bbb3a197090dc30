//! What this process wrote and its watch has yet to show. A watch tells of everything in order, but later than the answer
//! to a write: what it shows of a key before it shows that write is older, and was true once.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// A watch that has not shown a write for so long, in seconds, never will: it began anew after it.
const PATIENCE: i64 = 60;

/// Whether an object is there or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    There,
    Gone,
}

/// What a watch is yet to show of a kind, by key.
#[derive(Debug)]
pub(super) struct Unseen<K> {
    by_key: HashMap<K, (Box<str>, Fate, i64)>,
    order: VecDeque<(i64, K)>,
}

impl<K> Default for Unseen<K> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Hash + Eq + Clone> Unseen<K> {
    /// Notes a write: the object (`metadata.uid`) that came to be, or went.
    pub(super) fn expect(&mut self, key: K, object: &str, fate: Fate, now: i64) {
        self.order.push_back((now, key.clone()));
        self.by_key.insert(key, (object.into(), fate, now));
    }

    /// Whether what the watch shows is not older than what is known.
    pub(super) fn is_news(&mut self, key: &K, object: &str, fate: Fate) -> bool {
        let Some((expected, expected_fate, _)) = self.by_key.get(key) else { return true };
        let shown = **expected == *object && (*expected_fate == fate || fate == Fate::Gone);
        if shown {
            self.by_key.remove(key);
        }
        shown
    }

    /// The watch begins anew, with a list: all that was written before is in it.
    pub(super) fn forget(&mut self) {
        self.by_key.clear();
        self.order.clear();
    }

    /// Waits no longer for what should have come long ago.
    pub(super) fn expire(&mut self, now: i64) {
        while self.order.front().is_some_and(|(since, _)| since + PATIENCE <= now) {
            let Some((since, key)) = self.order.pop_front() else { return };
            // It may have been written again since.
            if self.by_key.get(&key).is_some_and(|one| one.2 == since) {
                self.by_key.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_watch_shows_before_a_write_is_no_news() {
        let mut unseen = Unseen::default();
        unseen.expect("key", "second", Fate::There, 0);
        assert!(!unseen.is_news(&"key", "first", Fate::There), "it was true once");
        assert!(!unseen.is_news(&"key", "first", Fate::Gone));
        assert!(unseen.is_news(&"other", "first", Fate::There), "nothing is known of that one");
        assert!(unseen.is_news(&"key", "second", Fate::There));
        assert!(unseen.is_news(&"key", "third", Fate::There), "from now on all is");
    }

    #[test]
    fn what_was_deleted_does_not_come_back() {
        let mut unseen = Unseen::default();
        unseen.expect("key", "first", Fate::Gone, 0);
        assert!(!unseen.is_news(&"key", "first", Fate::There));
        assert!(unseen.is_news(&"key", "first", Fate::Gone));
        assert!(unseen.is_news(&"key", "second", Fate::There));
    }

    #[test]
    fn a_watch_that_begins_anew_or_shows_nothing_is_believed() {
        let mut unseen = Unseen::default();
        unseen.expect("key", "first", Fate::There, 0);
        unseen.forget();
        assert!(unseen.is_news(&"key", "other", Fate::There));
        unseen.expect("key", "first", Fate::There, 10);
        unseen.expire(69);
        assert!(!unseen.is_news(&"key", "other", Fate::There));
        unseen.expire(70);
        assert!(unseen.is_news(&"key", "other", Fate::There));
    }
}
