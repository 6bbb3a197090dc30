//! A tenant's nodes, less those whose addresses it may not send traffic to.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fairlead_api::NodeSetSpec;
use ipnet::IpNet;

/// Nodes by name, and what was refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// The addresses that traffic is sent to, one at least and at most one of each family.
    pub addresses: BTreeMap<Box<str>, Vec<IpAddr>>,
    /// Nodes without an address that is allowed, with the reason.
    pub refused: BTreeMap<Box<str>, String>,
}

impl Nodes {
    /// Sorts a `NodeSet` into what may be used and what not.
    pub fn parse(spec: NodeSetSpec, allowed: Option<&[IpNet]>) -> Self {
        let mut nodes = Self::default();
        for node in spec.nodes {
            let name: Box<str> = node.name.into();
            let mut why = "it has no address".to_owned();
            let mut usable: Vec<IpAddr> = Vec::with_capacity(2);
            for text in &node.addresses {
                match permit(text, allowed) {
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
}

/// An address that the fleet may send this tenant's traffic to. Some are refused always: they would
/// lead to the hub's own hosts or to everybody.
fn permit(text: &str, allowed: Option<&[IpNet]>) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    if is_never_allowed(address) {
        return Err(format!("{address} is loopback, link-local, multicast or unspecified"));
    }
    if allowed.is_some_and(|ranges| !ranges.iter().any(|range| range.contains(&address))) {
        return Err(format!("{address} is outside Tenant.spec.nodeCIDRs"));
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

    use super::*;

    #[test]
    fn only_addresses_inside_the_tenants_ranges_are_used() {
        let allowed = ["172.18.0.0/24".parse().unwrap()];
        for (address, good) in [
            ("172.18.0.21", true),
            ("172.18.1.21", false),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("::ffff:172.18.0.21", false),
            ("nonsense", false),
        ] {
            assert_eq!(permit(address, Some(&allowed)).is_ok(), good, "{address}");
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
            assert!(permit(address, None).is_err(), "{address}");
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
        let nodes = Nodes::parse(spec, None);
        assert_eq!(nodes.addresses.len(), 1);
        assert!(nodes.refused["b"].contains("127.0.0.1"));
    }
}
