//! A tenant's nodes, less those whose addresses it may not send traffic to.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fairlead_api::{NodeSetSpec, PortRange};
use ipnet::IpNet;

/// Nodes by name, and what was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes {
    /// The addresses that traffic is sent to, one at least and at most one of each family.
    pub addresses: BTreeMap<Box<str>, Vec<IpAddr>>,
    /// Nodes without an address that is allowed, with the reason.
    pub refused: BTreeMap<Box<str>, String>,
    /// Ports of the nodes that traffic may be sent to.
    pub ports: PortRange,
}

impl Default for Nodes {
    fn default() -> Self {
        let ports = PortRange { first: 1, last: u16::MAX };
        Self { addresses: BTreeMap::new(), refused: BTreeMap::new(), ports }
    }
}

/// What a tenant's nodes have to keep to.
pub struct Bounds<'a> {
    /// `Tenant.spec.nodeCIDRs`; `None`: none given.
    pub ranges: Option<&'a [IpNet]>,
    /// `Tenant.spec.nodePorts`.
    pub ports: PortRange,
    /// Why an address can be no tenant's.
    pub forbidden: &'a dyn Fn(IpAddr) -> Option<&'static str>,
    /// Whether an address is another tenant's.
    pub taken: &'a dyn Fn(IpAddr) -> bool,
}

impl Bounds<'_> {
    /// Those of a tenant that may have any address and port.
    pub const NONE: Bounds<'static> = Bounds {
        ranges: None,
        ports: PortRange { first: 1, last: u16::MAX },
        forbidden: &|_| None,
        taken: &|_| false,
    };
}

impl Nodes {
    /// Sorts a `NodeSet` into what may be used and what not.
    pub fn parse(spec: &NodeSetSpec, bounds: &Bounds<'_>) -> Self {
        let mut nodes = Self { ports: bounds.ports, ..Self::default() };
        for node in &spec.nodes {
            let name: Box<str> = node.name.as_str().into();
            let mut why = "it has no address".to_owned();
            let mut usable: Vec<IpAddr> = Vec::with_capacity(2);
            for text in &node.addresses {
                match permit(text, bounds) {
                    Ok(address) => usable.push(address),
                    Err(reason) => why = reason,
                }
            }
            if usable.is_empty() {
                nodes.refused.insert(name, why);
            } else {
                nodes.addresses.insert(name, usable);
            }
        }
        nodes
    }

    /// All addresses that traffic is sent to.
    pub fn all(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.values().flatten().copied()
    }

    /// Whether traffic may be sent to this port of the nodes.
    pub fn allows(&self, port: u16) -> bool {
        (self.ports.first..=self.ports.last).contains(&port)
    }
}

/// An address that the fleet may send this tenant's traffic to. Some are refused always: they would
/// lead to the hub's own hosts or to everybody.
fn permit(text: &str, bounds: &Bounds<'_>) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    if is_never_allowed(address) {
        return Err(format!("{address} is loopback, link-local, multicast or unspecified"));
    }
    if let Some(why) = (bounds.forbidden)(address) {
        return Err(format!("{address} is {why}"));
    }
    if bounds.ranges.is_some_and(|ranges| !ranges.iter().any(|range| range.contains(&address))) {
        return Err(format!("{address} is outside Tenant.spec.nodeCIDRs"));
    }
    if (bounds.taken)(address) {
        return Err(format!(
            "{address} is another tenant's node; ask the platform team whose it is"
        ));
    }
    Ok(address)
}

fn is_never_allowed(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets()[0] == 0
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.to_ipv4().is_some()
        }
    }
}

#[cfg(test)]
mod tests {
    use fairlead_api::Node;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_addresses_inside_the_tenants_ranges_are_used() {
        let allowed = ["172.18.0.0/24".parse().unwrap()];
        let within = Bounds { ranges: Some(&allowed), ..Bounds::NONE };
        for (address, good) in [
            ("172.18.0.21", true),
            ("172.18.1.21", false),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("::ffff:172.18.0.21", false),
            ("nonsense", false),
        ] {
            assert_eq!(permit(address, &within).is_ok(), good, "{address}");
        }
        for address in [
            "127.0.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "0.0.0.0",
            "::1",
            "fe80::1",
            "::ffff:1.2.3.4",
        ] {
            assert!(permit(address, &Bounds::NONE).is_err(), "{address}");
        }
    }

    #[test]
    fn a_refused_node_leaves_the_others() {
        let node =
            |name: &str, address: &str| Node { name: name.into(), addresses: vec![address.into()] };
        let spec = NodeSetSpec {
            content_hash: String::new(),
            nodes: vec![node("a", "10.0.0.1"), node("b", "127.0.0.1")],
        };
        let nodes = Nodes::parse(&spec, &Bounds::NONE);
        assert_eq!(nodes.addresses.len(), 1);
        assert!(nodes.refused["b"].contains("127.0.0.1"));
    }

    proptest! {
        /// Whatever a tenant writes: what is let through is one of its own addresses, and nobody else's.
        #[test]
        fn only_the_tenants_own_addresses_get_through(text in address_text()) {
            let ranges: Vec<IpNet> =
                ["10.1.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "::/0"].map(|r| r.parse().unwrap()).into();
            let (hub, other): (IpAddr, IpAddr) =
                ("10.1.0.1".parse().unwrap(), "10.1.0.2".parse().unwrap());
            let bounds = Bounds {
                ranges: Some(&ranges),
                forbidden: &|ip| (ip == hub).then_some("the hub's own"),
                taken: &|ip| ip == other,
                ..Bounds::NONE
            };
            if let Ok(ip) = permit(&text, &bounds) {
                prop_assert!(ip != hub && ip != other);
                prop_assert!(ranges.iter().any(|range| range.contains(&ip)));
                let plain = match ip {
                    IpAddr::V4(v4) => v4,
                    // Neither form of an IPv4 address leads around the checks.
                    IpAddr::V6(v6) => {
                        prop_assert!(v6.to_ipv4().is_none() && !v6.is_loopback() && !v6.is_multicast());
                        return Ok(());
                    }
                };
                prop_assert!(!plain.is_loopback() && !plain.is_link_local() && !plain.is_unspecified());
                prop_assert_eq!(plain.octets()[..2].to_vec(), vec![10, 1]);
            }
        }
    }

    fn address_text() -> impl Strategy<Value = String> {
        let special = proptest::sample::select(vec![
            "127.0.0.1",
            "169.254.169.254",
            "10.1.0.1",
            "10.1.0.2",
            "10.1.0.3",
            "::1",
            "::",
            "0.0.0.0",
            "::ffff:10.1.0.1",
            "::10.1.0.1",
            "::ffff:127.0.0.1",
            "fe80::1",
            "ff02::1",
            "224.0.0.1",
            "255.255.255.255",
            "2001:db8::1",
            "010.1.0.3",
            "10.1.3",
            "0x0a.1.0.3",
            "10.1.0.3 ",
            "",
        ]);
        prop_oneof![
            special.prop_map(str::to_owned),
            any::<std::net::Ipv4Addr>().prop_map(|ip| ip.to_string()),
            (any::<u8>(), any::<u8>()).prop_map(|(a, b)| format!("10.1.{a}.{b}")),
            any::<std::net::Ipv6Addr>().prop_map(|ip| ip.to_string()),
            any::<std::net::Ipv4Addr>().prop_map(|ip| ip.to_ipv6_mapped().to_string()),
            ".{0,20}",
        ]
    }
}
