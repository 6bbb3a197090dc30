//! An `AddressPool` as ranges.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fairlead_api::pool::ServiceTemplate;
use fairlead_api::route::IpFamily;
use fairlead_api::{AddressPoolSpec, Exposure, Packing, PortRange, Sharing};
use ipnet::IpNet;

use crate::model::NOBODY;
use crate::runs::{address, number};

/// Addresses that may be given out, and who may share one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Who may share an address.
    pub sharing: Sharing,
    /// Which of several addresses that fit is taken.
    pub packing: Packing,
    /// What fits on one address.
    pub capacity: Capacity,
    /// Where ports that nobody named are taken from.
    pub any_ports: PortRange,
    /// Ports that are never given out.
    pub reserved: BTreeSet<u16>,
    /// How long, in seconds, a port is kept for its last tenant.
    pub hold_seconds: u32,
    /// Nothing new is given out.
    pub draining: bool,
    /// Set where the addresses come from the hub's own load balancer.
    pub service: Option<ServiceTemplate>,
    /// Balancers in front that speak the PROXY protocol.
    pub proxies: Vec<IpNet>,
    /// Proxies in front that are believed.
    pub trusted_hops: u32,
    /// What cannot be read, named; the rest works.
    pub problem: String,
    /// Numbers of addresses, in order.
    ranges: Vec<(u128, u128)>,
}

/// What fits on one address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Ports; `None`: all.
    pub ports: Option<u32>,
    /// Routes; `None`: any number.
    pub routes: Option<u32>,
}

impl Pool {
    /// Reads a spec.
    pub fn parse(spec: AddressPoolSpec) -> Self {
        let AddressPoolSpec {
            addresses,
            sharing,
            packing,
            max_ports_per_address,
            max_routes_per_address,
            any_ports,
            reserved_ports,
            hold_seconds,
            draining,
            exposure,
            service,
            proxy_protocol_from,
            trusted_hops,
        } = spec;
        let (mut ranges, mut problems) = (Vec::new(), Vec::new());
        for (index, text) in addresses.iter().enumerate() {
            match range(text) {
                Some(range) => ranges.push(range),
                None => problems.push(format!(
                    "spec.addresses[{index}]: {text:?} is no address, range (a-b) or CIDR"
                )),
            }
        }
        let mut proxies = Vec::new();
        for (index, text) in proxy_protocol_from.iter().enumerate() {
            match text.parse::<IpNet>() {
                Ok(net) => proxies.push(net.trunc()),
                Err(_) => {
                    problems.push(format!("spec.proxyProtocolFrom[{index}]: {text:?} is no CIDR"));
                }
            }
        }
        let service = (exposure == Exposure::Service).then_some(service);
        let target =
            service.as_ref().map(|service| ("spec.service.targetPorts", service.target_ports));
        for (field, ports) in [("spec.anyPorts", any_ports)].into_iter().chain(target) {
            if ports.first > ports.last {
                problems.push(format!("{field}: first is greater than last"));
            }
        }
        if !proxy_protocol_from.is_empty() && proxies.is_empty() {
            // A restriction that cannot be read lets nobody in.
            proxies.push(NOBODY);
        }
        Self {
            sharing,
            packing,
            capacity: Capacity { ports: max_ports_per_address, routes: max_routes_per_address },
            any_ports,
            reserved: reserved_ports.into_iter().collect(),
            hold_seconds,
            draining,
            service,
            proxies,
            trusted_hops,
            problem: problems.join("; "),
            ranges,
        }
    }

    /// Takes these addresses instead: those that the hub's load balancer gave.
    pub fn set_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.ranges = addresses.into_iter().map(|ip| (number(ip), number(ip))).collect();
    }

    /// Takes one more address.
    pub fn add_address(&mut self, address: IpAddr) {
        self.ranges.push((number(address), number(address)));
    }

    /// Whether the address is one of the pool's.
    pub fn contains(&self, address: IpAddr) -> bool {
        let wanted = number(address);
        self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&wanted))
    }

    /// Ranges of numbers of addresses, in order; with a family only those.
    pub fn ranges(&self, family: Option<IpFamily>) -> impl Iterator<Item = (u128, u128)> {
        let fits = move |(first, _): &(u128, u128)| IpFamily::fits(family, address(*first));
        self.ranges.iter().copied().filter(fits)
    }

    /// The family of its first address.
    pub fn family(&self) -> Option<IpFamily> {
        self.ranges.first().map(|(first, _)| IpFamily::of(address(*first)))
    }

    /// Whether there are addresses of a family.
    pub fn has(&self, family: IpFamily) -> bool {
        self.ranges(Some(family)).next().is_some()
    }

    /// How many addresses there are.
    pub fn size(&self) -> u64 {
        let count = |&(first, last): &(u128, u128)| {
            u64::try_from(last - first).unwrap_or(u64::MAX).saturating_add(1)
        };
        self.ranges.iter().map(count).fold(0, u64::saturating_add)
    }
}

fn range(text: &str) -> Option<(u128, u128)> {
    let (first, last) = if let Ok(net) = text.parse::<IpNet>() {
        (net.network(), net.broadcast())
    } else {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        (first.trim().parse::<IpAddr>().ok()?, last.trim().parse::<IpAddr>().ok()?)
    };
    // The mapped form of IPv4 is a second name of the same address.
    let mapped = |ip: IpAddr| matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let nobodys = |ip: IpAddr| ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
    let one_family = first.is_ipv4() == last.is_ipv4() && !mapped(first) && !mapped(last);
    if nobodys(first) || nobodys(last) {
        return None;
    }
    let covers_mapped = first.is_ipv6() && number(first) < MAPPED && MAPPED <= number(last);
    (one_family && first <= last && !covers_mapped).then(|| (number(first), number(last)))
}

/// `::ffff:0:0`, where IPv6 has IPv4.
const MAPPED: u128 = 0xffff_0000_0000;

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
        let shown = |(first, last)| format!("{}-{}", address(first), address(last));
        let all: Vec<String> = pool.ranges(None).map(shown).collect();
        assert_eq!(
            all,
            ["10.0.0.9-10.0.0.9", "10.0.0.1-10.0.0.2", "10.1.0.0-10.1.0.1", "fd00::1-fd00::1"]
        );
        assert_eq!(pool.size(), 6);
        assert!(pool.contains("10.0.0.2".parse().unwrap()));
        assert!(!pool.contains("10.0.0.3".parse().unwrap()));
        assert!(!pool.contains("::a00:2".parse().unwrap()), "families do not mix");
        assert_eq!(pool.ranges(Some(IpFamily::V6)).count(), 1);
        assert!(pool.has(IpFamily::V4) && pool.has(IpFamily::V6));
    }

    #[test]
    fn a_bad_entry_is_named_and_the_others_work() {
        let pool = pool(&[
            "10.0.0.1",
            "10.0.0.5-10.0.0.2",
            "what",
            "::ffff:10.0.0.1",
            "::/0",
            "10.0.0.1-fd00::1",
        ]);
        assert_eq!(pool.size(), 1);
        for index in 1..6 {
            let named = format!("spec.addresses[{index}]");
            assert!(pool.problem.contains(&named), "{}", pool.problem);
        }
    }

    #[test]
    fn a_huge_range_costs_nothing() {
        assert_eq!(pool(&["fd00::/64"]).size(), u64::MAX);
    }

    #[test]
    fn proxies_that_cannot_be_read_let_nobody_in() {
        let spec = AddressPoolSpec {
            proxy_protocol_from: vec!["what".into()],
            ..AddressPoolSpec::default()
        };
        let pool = Pool::parse(spec);
        assert_eq!(pool.proxies.len(), 1);
        assert!(pool.problem.contains("spec.proxyProtocolFrom[0]"), "{}", pool.problem);
    }
}
