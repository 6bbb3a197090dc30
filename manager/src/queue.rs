//! Work by key: the latest wish of a key counts, and a key is worked on by one at a time. Keys belong to
//! lanes, which take turns: who wishes much waits behind itself, and not before others.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;

/// Whose a key is.
pub(crate) trait Laned {
    /// Lanes take turns.
    type Lane: Hash + Eq + Clone + std::fmt::Debug;

    /// The lane of this key.
    fn lane(&self) -> Self::Lane;

    /// Whether a lane has a bound of its own.
    fn is_bounded(_: &Self::Lane) -> bool {
        true
    }

    /// Whether it can wait until the lane has nothing else to do: for as long as it has, if need be.
    fn can_wait(&self) -> bool {
        false
    }
}

/// The keys of a lane, in the order in which they came.
#[derive(Debug)]
struct Keys<K> {
    first: VecDeque<K>,
    /// Those that can wait.
    then: VecDeque<K>,
}

impl<K: Laned> Keys<K> {
    fn is_empty(&self) -> bool {
        self.first.is_empty() && self.then.is_empty()
    }

    fn push(&mut self, key: K) {
        if key.can_wait() { self.then.push_back(key) } else { self.first.push_back(key) }
    }

    /// Which is the next one that is free.
    fn position(&self, is_free: impl Fn(&K) -> bool) -> Option<usize> {
        self.first.iter().chain(&self.then).position(is_free)
    }

    fn remove(&mut self, index: usize) -> Option<K> {
        match index.checked_sub(self.first.len()) {
            None => self.first.remove(index),
            Some(index) => self.then.remove(index),
        }
    }
}

impl<K> Default for Keys<K> {
    fn default() -> Self {
        Self { first: VecDeque::new(), then: VecDeque::new() }
    }
}

/// What is to be done, and for which keys something is being done.
#[derive(Debug)]
pub(crate) struct Queue<K: Laned, V> {
    lanes: HashMap<K::Lane, Keys<K>>,
    /// Lanes with keys, the next one first.
    turns: VecDeque<K::Lane>,
    waiting: HashMap<K, V>,
    busy: HashSet<K>,
    busy_lanes: HashMap<K::Lane, usize>,
    limit: usize,
    per_lane: usize,
}

impl<K: Laned + Hash + Eq + Clone, V> Queue<K, V> {
    /// At most `limit` keys are worked on at the same time, and `per_lane` of one lane: who has much under way
    /// slows down whatever all share, such as the apiserver.
    pub(crate) fn new(limit: usize, per_lane: usize) -> Self {
        Self {
            lanes: HashMap::new(),
            turns: VecDeque::new(),
            waiting: HashMap::new(),
            busy: HashSet::new(),
            busy_lanes: HashMap::new(),
            limit,
            per_lane,
        }
    }

    /// Replaces what was waiting for the key.
    pub(crate) fn push(&mut self, key: K, work: V) {
        if self.waiting.insert(key.clone(), work).is_some() {
            return;
        }
        let lane = key.lane();
        let keys = self.lanes.entry(lane.clone()).or_default();
        if keys.is_empty() {
            self.turns.push_back(lane);
        }
        keys.push(key);
    }

    /// Puts work back that could not be done; what came meanwhile is newer, and counts.
    pub(crate) fn put_back(&mut self, key: K, work: V) {
        if !self.waiting.contains_key(&key) {
            self.push(key, work);
        }
    }

    /// The next key that nobody works on, of the next lane that has one; to be followed by [`Queue::done`].
    pub(crate) fn next(&mut self) -> Option<(K, V)> {
        if self.busy.len() >= self.limit {
            return None;
        }
        let free = |keys: &Keys<K>| keys.position(|key| !self.busy.contains(key));
        let has_room = |lane: &K::Lane| {
            !K::is_bounded(lane)
                || self.busy_lanes.get(lane).is_none_or(|count| *count < self.per_lane)
        };
        let mut lanes = self.turns.iter().enumerate().filter(|(_, lane)| has_room(lane));
        let found = lanes.find_map(|(turn, lane)| Some((turn, free(self.lanes.get(lane)?)?)));
        let (turn, index) = found?;
        let lane = self.turns.remove(turn)?;
        let keys = self.lanes.get_mut(&lane)?;
        let key = keys.remove(index)?;
        if keys.is_empty() {
            self.lanes.remove(&lane);
        } else {
            self.turns.push_back(lane);
        }
        let work = self.waiting.remove(&key)?;
        *self.busy_lanes.entry(key.lane()).or_default() += 1;
        self.busy.insert(key.clone());
        Some((key, work))
    }

    /// The work on a key ended.
    pub(crate) fn done(&mut self, key: &K) {
        if !self.busy.remove(key) {
            return;
        }
        let lane = key.lane();
        if let Some(count) = self.busy_lanes.get_mut(&lane) {
            *count -= 1;
            if *count == 0 {
                self.busy_lanes.remove(&lane);
            }
        }
    }

    /// How many keys wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Laned for &str {
        type Lane = u8;

        fn lane(&self) -> u8 {
            self.as_bytes()[0]
        }

        fn can_wait(&self) -> bool {
            self.ends_with("later")
        }
    }

    fn push(queue: &mut Queue<&'static str, u8>, keys: &[&'static str]) {
        for key in keys {
            queue.push(key, 0);
        }
    }

    /// What may be worked on now, in this order.
    fn begun(queue: &mut Queue<&'static str, u8>) -> Vec<&'static str> {
        std::iter::from_fn(|| queue.next()).map(|(key, _)| key).collect()
    }

    #[test]
    fn what_can_wait_lets_all_others_of_its_lane_go_first() {
        let mut queue = Queue::new(10, 10);
        push(&mut queue, &["a-later", "b-later", "a1", "a2"]);
        assert_eq!(begun(&mut queue), ["a1", "b-later", "a2", "a-later"]);
    }

    #[test]
    fn the_latest_wish_counts_and_a_key_has_one_worker() {
        let mut queue = Queue::new(2, 2);
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

    #[test]
    fn who_wishes_much_waits_behind_itself() {
        let mut queue = Queue::new(10, 10);
        push(&mut queue, &["noisy1", "noisy2", "noisy3", "noisy4", "quiet1", "quiet2"]);
        assert_eq!(begun(&mut queue), ["noisy1", "quiet1", "noisy2", "quiet2", "noisy3", "noisy4"]);
    }

    #[test]
    fn a_lane_has_so_much_under_way_and_no_more() {
        let mut queue = Queue::new(10, 2);
        push(&mut queue, &["noisy1", "noisy2", "noisy3", "quiet1"]);
        assert_eq!(begun(&mut queue), ["noisy1", "quiet1", "noisy2"]);
        queue.done(&"noisy1");
        assert_eq!(queue.next(), Some(("noisy3", 0)));
    }
}
