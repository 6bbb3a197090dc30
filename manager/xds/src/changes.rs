//! A map with an ordered log of its changes: a reader with a cursor sees what is new since then.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// How many removals are remembered; a reader that is further behind compares everything.
const TOMBSTONES: usize = 4_096;

/// A map whose every key has the sequence number of its last change.
#[derive(Debug)]
pub struct ChangeLog<K, V> {
    entries: HashMap<K, Entry<V>>,
    order: BTreeMap<u64, K>,
    tombstones: BTreeMap<u64, K>,
    /// Removals up to here are forgotten.
    floor: u64,
    last: u64,
}

#[derive(Debug)]
struct Entry<V> {
    sequence: u64,
    value: V,
}

impl<K, V> Default for ChangeLog<K, V> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            order: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            floor: 0,
            last: 0,
        }
    }
}

impl<K: Hash + Eq + Ord + Clone, V> ChangeLog<K, V> {
    /// Sets a value; always a change.
    pub fn put(&mut self, key: K, value: V) {
        self.forget(&key);
        self.last += 1;
        self.order.insert(self.last, key.clone());
        self.entries.insert(key, Entry { sequence: self.last, value });
    }

    /// Takes a key away; a change if it was there.
    pub fn remove(&mut self, key: &K) {
        if !self.entries.contains_key(key) {
            return;
        }
        self.forget(key);
        self.last += 1;
        self.tombstones.insert(self.last, key.clone());
        if self.tombstones.len() > TOMBSTONES
            && let Some((sequence, _)) = self.tombstones.pop_first()
        {
            self.floor = sequence;
        }
    }

    fn forget(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.sequence);
        }
    }

    /// The value of a key.
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        Some(&self.entries.get(key)?.value)
    }

    /// A key as it is in the map: where it is shared text, whoever keeps it shares it.
    pub fn key<Q>(&self, key: &Q) -> Option<&K>
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.entries.get_key_value(key).map(|(key, _)| key)
    }

    /// All keys and values.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, entry)| (key, &entry.value))
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The cursor of a reader that has seen everything.
    pub fn cursor(&self) -> u64 {
        self.last
    }

    /// The keys set or removed after `cursor`; a key that was removed and set again may come
    /// twice. `None` when the reader is so far behind that removals are forgotten.
    pub fn since(&self, cursor: u64) -> Option<impl Iterator<Item = &K>> {
        let after = cursor + 1..;
        let removed = self.tombstones.range(after.clone()).map(|(_, key)| key);
        let set = self.order.range(after).map(|(_, key)| key);
        (cursor >= self.floor).then(|| removed.chain(set))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_each_key_that_changed_since_its_cursor() {
        let mut log = ChangeLog::default();
        log.put("a", 1);
        log.put("b", 1);
        let cursor = log.cursor();
        log.put("a", 2);
        log.put("a", 3);
        log.remove(&"b");
        log.remove(&"never there");
        let mut seen: Vec<_> = log.since(cursor).unwrap().copied().collect();
        seen.sort_unstable();
        assert_eq!(seen, ["a", "b"]);
        assert_eq!(log.get("a"), Some(&3));
        assert_eq!(log.since(log.cursor()).unwrap().count(), 0);
    }

    #[test]
    fn a_reader_far_behind_is_told_to_compare_everything() {
        let mut log = ChangeLog::default();
        for n in 0..TOMBSTONES + 2 {
            log.put(n, ());
            log.remove(&n);
        }
        assert!(log.since(0).is_none());
        assert!(log.since(log.cursor()).is_some());
    }
}
