//! A set that has one element, or a few, most of the time.

use std::borrow::Borrow;
use std::collections::{BTreeSet, btree_set};
use std::iter::Chain;
use std::{mem, slice, vec};

/// A sorted set in one piece of memory, of exactly the size that it needs, while it is small; a tree once it is not. A
/// `BTreeSet`'s first element brings room for ten others, and of some sets there are several for each Route; yet one
/// Service, or one certificate, may be that of thousands.
#[derive(Debug, Clone)]
pub struct Few<T>(Kept<T>);

#[derive(Debug, Clone)]
enum Kept<T> {
    Few(Vec<T>),
    // In a box the whole is no larger than a `Vec`.
    #[expect(clippy::box_collection)]
    Many(Box<BTreeSet<T>>),
}

/// Up to here it has no room that it does not need.
const EXACT: usize = 8;
/// More than this are many.
const MANY: usize = 32;

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Kept::Few(Vec::new()))
    }
}

impl<T: Ord> Few<T> {
    /// True if it was not there.
    pub fn insert(&mut self, element: T) -> bool {
        let few = match &mut self.0 {
            Kept::Few(few) => few,
            Kept::Many(many) => return many.insert(element),
        };
        let Err(place) = few.binary_search(&element) else { return false };
        if few.len() < EXACT {
            few.reserve_exact(1);
        }
        few.insert(place, element);
        if few.len() > MANY {
            self.0 = Kept::Many(Box::new(mem::take(few).into_iter().collect()));
        }
        true
    }

    /// True if it was there.
    pub fn remove(&mut self, element: &T) -> bool {
        match &mut self.0 {
            Kept::Few(few) => {
                let place = few.binary_search(element);
                place.is_ok_and(|place| {
                    few.remove(place);
                    true
                })
            }
            Kept::Many(many) => {
                let was_there = many.remove(element);
                self.settle();
                was_there
            }
        }
    }

    /// What became few is kept as such. Not at once: one that comes and goes would have everything moved each time.
    fn settle(&mut self) {
        if let Kept::Many(many) = &mut self.0
            && many.len() <= MANY / 2
        {
            self.0 = Kept::Few(mem::take(&mut **many).into_iter().collect());
        }
    }

    /// The one that is there and equal: where it is shared text, whoever keeps it shares it.
    pub fn get<Q: Ord + ?Sized>(&self, element: &Q) -> Option<&T>
    where
        T: Borrow<Q>,
    {
        match &self.0 {
            Kept::Few(few) => {
                let place = few.binary_search_by(|one| one.borrow().cmp(element));
                place.ok().map(|place| &few[place])
            }
            Kept::Many(many) => many.get(element),
        }
    }

    /// Whether it is there.
    pub fn contains<Q: Ord + ?Sized>(&self, element: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.get(element).is_some()
    }

    /// The last that is not greater.
    pub fn up_to(&self, bound: &T) -> Option<&T> {
        match &self.0 {
            Kept::Few(few) => few[..few.partition_point(|one| one <= bound)].last(),
            Kept::Many(many) => many.range(..=bound).next_back(),
        }
    }

    /// What is here and not there.
    pub fn difference<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a T> {
        self.iter().filter(|one| !other.contains(*one))
    }

    /// Keeps what is to be kept.
    pub fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        match &mut self.0 {
            Kept::Few(few) => few.retain(keep),
            Kept::Many(many) => many.retain(keep),
        }
        self.settle();
    }
}

impl<T> Few<T> {
    /// All of it, in order.
    pub fn iter(&self) -> Iter<'_, T> {
        match &self.0 {
            Kept::Few(few) => few.iter().chain(btree_set::Iter::default()),
            Kept::Many(many) => [].iter().chain(&**many),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Kept::Few(few) => few.len(),
            Kept::Many(many) => many.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What [`Few::iter`] goes through.
pub type Iter<'a, T> = Chain<slice::Iter<'a, T>, btree_set::Iter<'a, T>>;

impl<T: PartialEq> PartialEq for Few<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other)
    }
}

impl<T: Eq> Eq for Few<T> {}

impl<T: Ord> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        let mut few: Vec<T> = elements.into_iter().collect();
        few.sort_unstable();
        few.dedup();
        if few.len() > MANY {
            return Self(Kept::Many(Box::new(few.into_iter().collect())));
        }
        few.shrink_to_fit();
        Self(Kept::Few(few))
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
    type IntoIter = Chain<vec::IntoIter<T>, btree_set::IntoIter<T>>;

    fn into_iter(self) -> Self::IntoIter {
        match self.0 {
            Kept::Few(few) => few.into_iter().chain(btree_set::IntoIter::default()),
            Kept::Many(many) => Vec::new().into_iter().chain(*many),
        }
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_what_a_tree_is(
            // The more are inserted than taken away the larger it becomes, and the other way about.
            steps in prop::collection::vec((0.2..0.8, 0_usize..100), 0..5).prop_flat_map(|phases| {
                let steps = |(weight, count)| prop::collection::vec((prop::bool::weighted(weight), 0_u8..100), count);
                phases.into_iter().map(steps).collect::<Vec<_>>()
            }).prop_map(|phases| phases.concat()),
            rest in prop::collection::btree_set(0_u8..100, 0..60),
        ) {
            let (mut few, mut tree) = (Few::default(), BTreeSet::new());
            for (insert, one) in steps {
                if insert {
                    prop_assert_eq!(few.insert(one), tree.insert(one));
                } else {
                    prop_assert_eq!(few.remove(&one), tree.remove(&one));
                }
                prop_assert_eq!(few.contains(&one), tree.contains(&one));
                prop_assert_eq!(few.get(&one), tree.get(&one));
                prop_assert_eq!(few.len(), tree.len());
                prop_assert_eq!(few.up_to(&one), tree.range(..=one).next_back());
            }
            prop_assert!(few.iter().eq(&tree));
            // However it became what it is.
            prop_assert_eq!(&few, &tree.iter().copied().collect());
            let other: Few<u8> = rest.iter().copied().collect();
            prop_assert!(few.difference(&other).eq(tree.difference(&rest)));
            for third in 0..3 {
                few.retain(|one| one % 3 != third);
                tree.retain(|one| one % 3 != third);
                prop_assert_eq!((few.len(), few.insert(third)), (tree.len(), tree.insert(third)));
                prop_assert_eq!(few.up_to(&100), tree.last());
            }
            prop_assert!(few.into_iter().eq(tree));
        }
    }

    #[test]
    fn while_it_is_small_it_has_no_more_room_than_it_needs() {
        let room = |set: &Few<i32>| match &set.0 {
            Kept::Few(few) => Some(few.capacity()),
            Kept::Many(_) => None,
        };
        let mut set = Few::default();
        set.insert(2);
        assert_eq!(room(&set), Some(1));
        set.insert(1);
        assert_eq!(room(&set), Some(2));
        set.extend(0..100);
        assert_eq!((room(&set), set.len()), (None, 100));
        assert_eq!(mem::size_of_val(&set), mem::size_of::<Vec<i32>>());
    }
}
