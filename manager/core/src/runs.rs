//! Sets of numbers, kept as runs: the next number that is not in the set is found in the logarithm of
//! the number of runs, however many numbers there are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fairlead_api::few::Few;

/// A set of numbers.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Runs {
    /// First and last, apart from each other by at least one number.
    runs: Few<(u128, u128)>,
}

impl Runs {
    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether a number is in the set.
    pub fn contains(&self, number: u128) -> bool {
        self.run_of(number).is_some()
    }

    /// The run that a number is in.
    fn run_of(&self, number: u128) -> Option<(u128, u128)> {
        let (first, last) = self.runs.up_to(&(number, u128::MAX))?;
        (number <= *last).then_some((*first, *last))
    }

    /// Adds a number.
    pub fn insert(&mut self, number: u128) {
        if self.contains(number) {
            return;
        }
        let before = number.checked_sub(1).and_then(|n| self.run_of(n));
        let after = number.checked_add(1).and_then(|n| self.run_of(n));
        for run in before.iter().chain(&after) {
            self.runs.remove(run);
        }
        let first = before.map_or(number, |(first, _)| first);
        let last = after.map_or(number, |(_, last)| last);
        self.runs.insert((first, last));
    }

    /// Takes a number out.
    pub fn remove(&mut self, number: u128) {
        let Some((first, last)) = self.run_of(number) else { return };
        self.runs.remove(&(first, last));
        if first < number {
            self.runs.insert((first, number - 1));
        }
        if number < last {
            self.runs.insert((number + 1, last));
        }
    }

    /// The first number from `from` on that is not in the set; `None`: there is none.
    pub fn next_free(&self, from: u128) -> Option<u128> {
        match self.run_of(from) {
            Some((_, last)) => last.checked_add(1),
            None => Some(from),
        }
    }
}

/// An address as a number: IPv4 where IPv6 has its mapped addresses, so that families do not meet.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address of a number.
pub fn address(number: u128) -> IpAddr {
    let v6 = Ipv6Addr::from_bits(number);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), |v4: Ipv4Addr| IpAddr::V4(v4))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_numbers_and_back() {
        for text in ["10.0.0.1", "255.255.255.255", "fd00::1", "::1"] {
            let given: IpAddr = text.parse().unwrap();
            assert_eq!(address(number(given)), given);
        }
    }

    proptest! {
        #[test]
        fn runs_are_a_set(steps in prop::collection::vec((any::<bool>(), 0..24_u128), 0..80)) {
            let (mut runs, mut set) = (Runs::default(), BTreeSet::new());
            for (add, number) in steps {
                if add {
                    runs.insert(number);
                    set.insert(number);
                } else {
                    runs.remove(number);
                    set.remove(&number);
                }
                for from in 0..26 {
                    prop_assert_eq!(runs.contains(from), set.contains(&from));
                    let next = (from..60).find(|n| !set.contains(n));
                    prop_assert_eq!(runs.next_free(from), next);
                }
                let mut ends = runs.runs.iter().zip(runs.runs.iter().skip(1));
                prop_assert!(ends.all(|((_, last), (next, _))| last + 1 < *next));
                prop_assert_eq!(runs.is_empty(), set.is_empty());
            }
        }
    }
}
