//! A set that has one element, or a few, most of the time.

use std::borrow::Borrow;

/// A sorted set in one piece of memory, of exactly the size that it needs while it is small. A `BTreeSet`'s first element
/// brings room for ten others, and of some sets there are several for each Route. To insert or remove costs what is
/// behind the place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Few<T>(Vec<T>);

/// From here on it grows as a `Vec` does.
const MANY: usize = 8;

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Ord> Few<T> {
    /// True if it was not there.
    pub(crate) fn insert(&mut self, element: T) -> bool {
        let Err(place) = self.0.binary_search(&element) else { return false };
        if self.0.len() < MANY {
            self.0.reserve_exact(1);
        }
        self.0.insert(place, element);
        true
    }

    /// True if it was there.
    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, element: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        let place = self.0.binary_search_by(|one| one.borrow().cmp(element));
        place.is_ok_and(|place| {
            self.0.remove(place);
            true
        })
    }

    pub(crate) fn contains<Q: Ord + ?Sized>(&self, element: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.0.binary_search_by(|one| one.borrow().cmp(element)).is_ok()
    }

    /// What is here and not there.
    pub(crate) fn difference<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a T> {
        self.0.iter().filter(|one| !other.contains(*one))
    }

    pub(crate) fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        self.0.retain(keep);
    }
}

impl<T> Few<T> {
    /// In order.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Ord> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        let mut all: Vec<T> = elements.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        all.shrink_to_fit();
        Self(all)
    }
}

impl<T: Ord> Extend<T> for Few<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, elements: I) {
        for one in elements {
            self.insert(one);
        }
    }
}

impl<T> IntoIterator for Few<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_what_a_tree_is(steps in prop::collection::vec((any::<bool>(), 0_u8..24), 0..64)) {
            let (mut few, mut tree) = (Few::default(), BTreeSet::new());
            for (insert, one) in steps {
                if insert {
                    prop_assert_eq!(few.insert(one), tree.insert(one));
                } else {
                    prop_assert_eq!(few.remove(&one), tree.remove(&one));
                }
                prop_assert!(few.iter().eq(&tree));
                prop_assert_eq!(few.contains(&one), tree.contains(&one));
            }
            let other: Few<u8> = (0..12).rev().chain(3..5).collect();
            prop_assert!(few.difference(&other).eq(tree.difference(&(0..12).collect())));
        }
    }

    #[test]
    fn while_it_is_small_it_has_no_more_room_than_it_needs() {
        let mut few = Few::default();
        few.insert(2);
        assert_eq!(few.0.capacity(), 1);
        few.insert(1);
        assert_eq!(few.0.capacity(), 2);
    }
}
