//! Work by key: the latest wish of a key counts, and a key is worked on by one at a time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;

/// What is to be done, and for which keys something is being done.
#[derive(Debug)]
pub(crate) struct Queue<K, V> {
    order: VecDeque<K>,
    waiting: HashMap<K, V>,
    busy: HashSet<K>,
    limit: usize,
}

impl<K: Hash + Eq + Clone, V> Queue<K, V> {
    /// At most `limit` keys are worked on at the same time.
    pub(crate) fn new(limit: usize) -> Self {
        Self { order: VecDeque::new(), waiting: HashMap::new(), busy: HashSet::new(), limit }
    }

    /// Replaces what was waiting for the key.
    pub(crate) fn push(&mut self, key: K, work: V) {
        if self.waiting.insert(key.clone(), work).is_none() {
            self.order.push_back(key);
        }
    }

    /// Puts work back that could not be done; what came meanwhile is newer, and counts.
    pub(crate) fn put_back(&mut self, key: K, work: V) {
        if !self.waiting.contains_key(&key) {
            self.push(key, work);
        }
    }

    /// The next key that nobody works on; to be followed by [`Queue::done`].
    pub(crate) fn next(&mut self) -> Option<(K, V)> {
        if self.busy.len() >= self.limit {
            return None;
        }
        let index = self.order.iter().position(|key| !self.busy.contains(key))?;
        let key = self.order.remove(index)?;
        let work = self.waiting.remove(&key)?;
        self.busy.insert(key.clone());
        Some((key, work))
    }

    /// The work on a key ended.
    pub(crate) fn done(&mut self, key: &K) {
        self.busy.remove(key);
    }

    /// How many keys wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_wish_counts_and_a_key_has_one_worker() {
        let mut queue = Queue::new(2);
        queue.push("a", 1);
        queue.push("a", 2);
        assert_eq!(queue.next(), Some(("a", 2)));
        queue.push("a", 3);
        queue.push("b", 1);
        queue.push("c", 1);
        assert_eq!(queue.next(), Some(("b", 1)), "a is being worked on");
        assert_eq!(queue.next(), None, "two at a time");
        queue.done(&"a");
        assert_eq!(queue.next(), Some(("a", 3)));
        assert_eq!(queue.len(), 1);
    }
}
