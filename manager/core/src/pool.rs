//! An `AddressPool` as ranges.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fairlead_api::{AddressPoolSpec, Sharing};
use ipnet::IpNet;

/// Addresses that may be given out, and who may share one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Who may share an address.
    pub sharing: Sharing,
    /// Ports that are never given out.
    pub reserved: BTreeSet<u16>,
    /// Proxies in front that are believed.
    pub trusted_hops: u32,
    /// Entries that cannot be read, named; the others work.
    pub problem: String,
    ranges: Vec<(IpAddr, IpAddr)>,
}

impl Pool {
    /// Reads a spec.
    pub fn parse(spec: AddressPoolSpec) -> Self {
        let AddressPoolSpec { addresses, sharing, reserved_ports, trusted_hops } = spec;
        let (mut ranges, mut problems) = (Vec::new(), Vec::new());
        for (index, text) in addresses.iter().enumerate() {
            match range(text) {
                Some(range) => ranges.push(range),
                None => problems.push(format!(
                    "spec.addresses[{index}]: {text:?} is no address, range (a-b) or CIDR"
                )),
            }
        }
        let reserved = reserved_ports.into_iter().collect();
        Self { sharing, reserved, trusted_hops, problem: problems.join("; "), ranges }
    }

    /// Whether the address is one of the pool's.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|(first, last)| {
            first.is_ipv4() == address.is_ipv4() && *first <= address && address <= *last
        })
    }

    /// All addresses, in order.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ranges.iter().flat_map(|&(first, last)| {
            (number(first)..=number(last)).map(move |n| address(n, first.is_ipv4()))
        })
    }

    /// How many addresses there are.
    pub fn size(&self) -> u64 {
        let count = |&(first, last): &(IpAddr, IpAddr)| {
            u64::try_from(number(last) - number(first)).unwrap_or(u64::MAX).saturating_add(1)
        };
        self.ranges.iter().map(count).fold(0, u64::saturating_add)
    }
}

fn range(text: &str) -> Option<(IpAddr, IpAddr)> {
    if let Ok(net) = text.parse::<IpNet>() {
        return Some((net.network(), net.broadcast()));
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (IpAddr, IpAddr) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first.is_ipv4() == last.is_ipv4() && first <= last).then_some((first, last))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(bits) if v4 => Ipv4Addr::from_bits(bits).into(),
        _ => Ipv6Addr::from_bits(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(entries: &[&str]) -> Pool {
        let addresses = entries.iter().map(|text| (*text).to_owned()).collect();
        Pool::parse(AddressPoolSpec { addresses, ..AddressPoolSpec::default() })
    }

    #[test]
    fn entries_are_addresses_ranges_and_cidrs() {
        let pool = pool(&["10.0.0.9", "10.0.0.1-10.0.0.2", "10.1.0.0/31", "fd00::1"]);
        let all: Vec<String> = pool.addresses().map(|address| address.to_string()).collect();
        assert_eq!(all, ["10.0.0.9", "10.0.0.1", "10.0.0.2", "10.1.0.0", "10.1.0.1", "fd00::1"]);
        assert_eq!(pool.size(), 6);
        assert!(pool.contains("10.0.0.2".parse().unwrap()));
        assert!(!pool.contains("10.0.0.3".parse().unwrap()));
        assert!(!pool.contains("::a00:2".parse().unwrap()), "families do not mix");
    }

    #[test]
    fn a_bad_entry_is_named_and_the_others_work() {
        let pool = pool(&["10.0.0.1", "10.0.0.5-10.0.0.2", "what"]);
        assert_eq!(pool.size(), 1);
        assert!(pool.problem.contains("spec.addresses[1]"), "{}", pool.problem);
        assert!(pool.problem.contains("spec.addresses[2]"), "{}", pool.problem);
    }

    #[test]
    fn a_huge_range_costs_nothing() {
        assert_eq!(pool(&["fd00::/64"]).size(), u64::MAX);
    }
}
