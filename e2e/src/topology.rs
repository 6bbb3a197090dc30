//! The clusters and hosts: the same for both drivers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// One cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// `hub`, `tenant-a`, …
    pub name: &'static str,
    /// Its nodes; the control plane runs on the first.
    pub nodes: Vec<Host>,
    /// Port on this machine's loopback that leads to its apiserver.
    pub api_port: u16,
}

/// A network namespace with an address of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// `hub-1`, `client`, …
    pub name: &'static str,
    /// Its address on the fabric. Its IPv6 address has the same last part.
    pub address: Ipv4Addr,
    /// Which /24 of the pod range is its own; every cluster has the same range.
    pub index: u8,
    /// Addresses of pools that it answers for.
    pub pool: Vec<IpAddr>,
}

/// The prefix of every host's network.
pub const FABRIC_PREFIX: u8 = 24;
/// Pods of every cluster, deliberately the same.
pub const POD_CIDR: &str = "10.244.0.0/16";
/// Services of every cluster, deliberately the same.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The cluster's DNS server.
pub const DNS_ADDRESS: &str = "10.96.0.10";
/// The `AddressPool` that both tenants may use.
pub const POOL: &str = "public";
/// The addresses of the pool, as the pool's spec has them.
pub const POOL_RANGE: &str = "172.18.0.200-172.18.0.209, \"fd00:18::200-fd00:18::203\"";

const fn host_address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 18, 0, last)
}

/// The IPv6 address of a host on the fabric.
pub fn host_address_v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, last)
}

fn host(name: &'static str, last: u8, index: u8) -> Host {
    Host { name, address: host_address(last), index, pool: Vec::new() }
}

/// The host that traffic comes from.
pub fn client() -> Host {
    host("client", 5, 0)
}

/// The management cluster. Each node answers for half of the pool.
pub fn hub() -> Cluster {
    let mut nodes = vec![host("hub-1", 11, 0), host("hub-2", 12, 1)];
    // Those of the pool, and some that tests make pools of.
    let held = |v4: &[RangeInclusive<u8>], v6: RangeInclusive<u16>| -> Vec<IpAddr> {
        let v4 = v4.iter().cloned().flatten().map(|last| host_address(last).into());
        v4.chain(v6.map(|last| host_address_v6(last).into())).collect()
    };
    nodes[0].pool = held(&[200..=204, 210..=214], 0x200..=0x201);
    nodes[1].pool = held(&[205..=209, 215..=219], 0x202..=0x203);
    Cluster { name: "hub", nodes, api_port: 16_440 }
}

/// The workload clusters.
pub fn tenants() -> Vec<Cluster> {
    vec![
        Cluster {
            name: "tenant-a",
            nodes: vec![host("tenant-a-1", 21, 0), host("tenant-a-2", 22, 1)],
            api_port: 16_441,
        },
        Cluster { name: "tenant-b", nodes: vec![host("tenant-b-1", 31, 0)], api_port: 16_442 },
    ]
}

/// A workload cluster that is not there until somebody asks for it, and that runs no Fairlead of its own accord.
pub fn spare() -> Cluster {
    Cluster { name: "tenant-c", nodes: vec![host("tenant-c-1", 41, 0)], api_port: 16_443 }
}

/// All clusters, the hub first.
pub fn clusters() -> Vec<Cluster> {
    std::iter::once(hub()).chain(tenants()).collect()
}

/// All hosts: the nodes, those of the spare cluster included, and the client.
pub fn hosts() -> Vec<Host> {
    let nodes = clusters().into_iter().chain([spare()]).flat_map(|cluster| cluster.nodes);
    nodes.chain(std::iter::once(client())).collect()
}

/// A cluster by its name.
pub fn cluster(name: &str) -> Option<Cluster> {
    clusters().into_iter().chain([spare()]).find(|cluster| cluster.name == name)
}

/// A host by its name.
pub fn find_host(name: &str) -> Option<Host> {
    hosts().into_iter().find(|host| host.name == name)
}

impl Cluster {
    /// The node that the control plane runs on.
    pub fn control_plane(&self) -> &Host {
        &self.nodes[0]
    }
}
