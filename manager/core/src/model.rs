//! The hub's objects as compact values: parsed once, so that everything after may rely on them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use fairlead_api::claim::ClaimKey;
use fairlead_api::condition::{Reason, Verdict};
use fairlead_api::few::Few;
use fairlead_api::http::{Host, Unresolved, Upstream};
use fairlead_api::route::{
    AddressRequest, IpFamily, NodePolicy, Protocol, RouteRule, Slot, Source,
};
use fairlead_api::tenant::Quotas;
use fairlead_api::{PortRange, RouteId, RouteSpec, TenantSpec, Uid};
use ipnet::{IpNet, Ipv4Net};

use crate::http::{check, upstream};
use crate::translate::backend_name;

/// Where plain HTTP is served.
pub const HTTP_PORT: u16 = 80;
/// Where HTTPS is served.
pub const HTTPS_PORT: u16 = 443;

/// A tenant's permissions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Pools in the order of preference.
    pub pools: Vec<String>,
    /// Where its nodes may be; `None`: anywhere. A range that cannot be read allows nothing.
    pub node_cidrs: Option<Vec<IpNet>>,
    /// Ports of its nodes that traffic may be sent to.
    pub node_ports: PortRange,
    /// Host names that it may publish; empty: any.
    pub domains: Vec<Box<str>>,
    /// Bounds on what it may hold.
    pub quotas: Quotas,
}

impl Tenant {
    /// Whether it may publish a host name, or a wildcard.
    pub fn may_publish(&self, hostname: &str) -> bool {
        let below = |domain: &str| match domain.strip_prefix('*') {
            // `*.example.com`: what ends in `.example.com`, itself included.
            Some(suffix) => hostname.len() > suffix.len() && hostname.ends_with(suffix),
            None => hostname == domain,
        };
        self.domains.is_empty() || self.domains.iter().any(|domain| below(domain))
    }
}

impl From<TenantSpec> for Tenant {
    fn from(spec: TenantSpec) -> Self {
        let TenantSpec { pools, node_cidrs, domains, node_ports, spiffe_ids: _, quotas } = spec;
        let readable = || node_cidrs.iter().filter_map(|text| text.parse().ok()).collect();
        let node_cidrs = (!node_cidrs.is_empty()).then(readable);
        let domains = domains.into_iter().map(Into::into).collect();
        Self { pools, node_cidrs, node_ports, domains, quotas }
    }
}

/// What the hub's apiserver says of a Route object itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// `metadata.uid`.
    pub uid: Uid,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.creationTimestamp` in seconds: the older Route wins.
    pub created: i64,
}

/// A Route's wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The pool that was asked for.
    pub pool: Option<String>,
    /// The addresses that were asked for, at most one of each family.
    pub ips: Vec<IpAddr>,
    /// The tenant's Routes of this group belong on one address.
    pub group: Option<Box<str>>,
    /// The address is shared with nobody.
    pub alone: bool,
    /// Families of addresses; empty: any one.
    pub families: Vec<IpFamily>,
    /// The second family only where the pools have it.
    pub prefer_dual_stack: bool,
    /// Listeners with the backend that each leads to.
    pub listeners: Vec<Listener>,
    /// Backends by name. Of layer 7 each is shared with the Cluster that is made of it.
    pub backends: Vec<Arc<Backend>>,
    /// Layer 7: what can be served of the hosts.
    pub hosts: Vec<Host>,
    /// Layer 7: what cannot, naming the field.
    pub invalid: Vec<String>,
    /// Layer 4: who is let in, and for how long.
    pub clients: Clients,
    /// What the source names and the agent did not find.
    pub unresolved: Vec<Unresolved>,
}

/// Who is let in, and for how long.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clients {
    /// Where clients may be; empty: anywhere.
    pub source_ranges: Vec<IpNet>,
    /// How long nothing may move, in milliseconds; 0: for ever.
    pub idle_millis: Option<u32>,
    /// A client's address decides where it is sent.
    pub source_affinity: bool,
}

/// One port of a Route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Unique in the Route.
    pub name: Box<str>,
    /// Transport.
    pub protocol: Protocol,
    /// The port on the address; 0: any.
    pub port: u16,
    /// Index into `backends`; `None` where host names lead on.
    pub backend: Option<usize>,
}

impl Listener {
    /// What it claims of an address.
    pub fn key(&self, address: IpAddr) -> ClaimKey {
        ClaimKey { address, protocol: self.protocol.transport(), port: self.port }
    }
}

/// One `NodePort` of a Route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Unique in the Route.
    pub name: Box<str>,
    /// The name of its Cluster, which all resources that name it share.
    pub cluster: Arc<str>,
    /// The port on the nodes.
    pub node_port: u16,
    /// Node names; `None` for all.
    pub nodes: Option<Few<Box<str>>>,
    /// Further ports, each with its nodes.
    pub slots: Vec<(u16, Few<Box<str>>)>,
    /// The family of the nodes' addresses; `None`: whichever a node has first.
    pub family: Option<IpFamily>,
    /// How it is spoken to.
    pub upstream: Upstream,
}

impl Wish {
    /// Whether host names lead on.
    pub fn is_http(&self) -> bool {
        self.listeners.iter().any(|listener| listener.protocol.is_http())
    }

    /// Whether it has a listener of this protocol.
    pub fn serves(&self, protocol: Protocol) -> bool {
        self.listeners.iter().any(|listener| listener.protocol == protocol)
    }

    /// The same without the second family, where that is only preferred.
    pub fn of_one_family(&self) -> Option<Self> {
        let spare = self.prefer_dual_stack && self.families.len() > 1 && self.ips.len() < 2;
        let families = self.families.iter().take(1).copied().collect();
        spare.then(|| Self { families, prefer_dual_stack: false, ..self.clone() })
    }

    /// Takes over what an older wish of this Route has the same of backends: resources of theirs that stay share its text.
    pub(crate) fn share(&mut self, old: &Self) {
        for backend in &mut self.backends {
            let Some(known) = old.backends.iter().find(|one| one.cluster == backend.cluster) else {
                continue;
            };
            if known == backend {
                backend.clone_from(known);
            } else {
                Arc::make_mut(backend).cluster = known.cluster.clone();
            }
        }
    }

    /// Gives back what lists have room for: those that were read from text have it for four, and of Routes there are
    /// thousands.
    fn tighten(&mut self) {
        let Self { ips, families, listeners, backends, hosts, invalid, unresolved, .. } = self;
        ips.shrink_to_fit();
        families.shrink_to_fit();
        listeners.shrink_to_fit();
        backends.shrink_to_fit();
        invalid.shrink_to_fit();
        unresolved.shrink_to_fit();
        hosts.shrink_to_fit();
        for host in hosts {
            host.rules.shrink_to_fit();
            for rule in &mut host.rules {
                rule.matches.shrink_to_fit();
                rule.backends.shrink_to_fit();
            }
        }
    }

    /// Reads a Route's spec. What cannot be served comes back as a verdict on `Accepted` that names the field.
    pub fn parse(id: &RouteId, spec: RouteSpec) -> Result<(Source, Self), (Source, Verdict)> {
        let source = spec.source.clone();
        match read(id, spec) {
            Ok(wish) => Ok((source, wish)),
            Err(message) => Err((source, Verdict::no(Reason::Invalid, message))),
        }
    }
}

fn read(id: &RouteId, spec: RouteSpec) -> Result<Wish, String> {
    let RouteSpec {
        source,
        content_hash: _,
        address,
        listeners,
        rules,
        backends,
        hosts,
        clients,
        unresolved,
    } = spec;
    let AddressRequest { pool, ips, group, alone, families, prefer_dual_stack } = address;
    let ips = read_ips(&ips)?;
    if families.len() > 2 || (families.len() == 2 && families[0] == families[1]) {
        return Err("spec.address.families: each family at most once".into());
    }
    let mut invalid = Vec::new();
    let clients = read_clients(clients, &mut invalid);
    let mut backends: Vec<_> = backends.into_iter().map(backend).collect();
    for backend in &mut backends {
        // One that Envoy would refuse would keep all others from being made.
        let check = backend.upstream.health_check.as_ref();
        if let Some(why) = check.and_then(|check| check::health_check(check).err()) {
            invalid.push(format!("backend {:?}: {why}", backend.name));
            backend.upstream.health_check = None;
        }
    }
    let mut names = BTreeSet::new();
    if let Some(twice) = backends.iter().find(|backend| !names.insert(&backend.name)) {
        return Err(format!("spec.backends: {:?} is there twice", twice.name));
    }
    let listeners = read_listeners(listeners, &rules, &backends)?;
    let http = listeners.iter().any(|listener| listener.protocol.is_http());
    if let Some((bad, why)) = backends
        .iter()
        .filter(|_| !http)
        .find_map(|one| Some((one, check::upstream(&one.upstream).err()?)))
    {
        return Err(format!("spec.backends: {:?}: {why}", bad.name));
    }
    let mut unusable = Vec::new();
    backends.retain(|Backend { name, upstream, .. }| match check::upstream(upstream) {
        Ok(()) => true,
        Err(why) => {
            unusable.push(format!("backend {name:?}: {why}"));
            false
        }
    });
    // A port that names share knows no ranges: it is closed rather than open to everybody.
    let shut = http && !clients.source_ranges.is_empty();
    if shut && invalid.is_empty() {
        invalid.push(
            "spec.clients.sourceRanges: cannot be kept at a port that names share, so nobody is let in; \
             leave out fairlead.dev/tls-hostnames, or the ranges"
                .into(),
        );
    }
    let (hosts, unusable_rules) = check::hosts(if shut { Vec::new() } else { hosts }, &backends);
    invalid.extend(unusable_rules);
    invalid.append(&mut unusable);
    // What was asked for and cannot be had, from what was named and is not there.
    let (asked, unresolved): (Vec<_>, Vec<_>) =
        unresolved.into_iter().partition(|one| one.reason == "InvalidAnnotation");
    invalid.extend(asked.into_iter().map(|one| one.message));
    let mut wish = Wish {
        pool,
        ips,
        group: group.map(Into::into),
        alone,
        families,
        prefer_dual_stack,
        listeners,
        backends: backends.into_iter().map(|one| named(id, &source, http, one)).collect(),
        hosts,
        invalid,
        clients,
        unresolved,
    };
    wish.tighten();
    Ok(wish)
}

fn read_ips(texts: &[String]) -> Result<Vec<IpAddr>, String> {
    let mut ips: Vec<IpAddr> = Vec::with_capacity(texts.len());
    for text in texts {
        let ip: IpAddr =
            text.parse().map_err(|_| format!("spec.address.ips: {text:?} is not an IP address"))?;
        if ips.iter().any(|other| IpFamily::of(*other) == IpFamily::of(ip)) {
            return Err("spec.address.ips: at most one of each family can be asked for".into());
        }
        ips.push(ip);
    }
    Ok(ips)
}

/// A restriction that cannot be read lets nobody in, rather than everybody.
fn read_clients(clients: fairlead_api::route::Clients, invalid: &mut Vec<String>) -> Clients {
    let fairlead_api::route::Clients { mut closed, source_ranges, idle_millis, source_affinity } =
        clients;
    let mut ranges = Vec::with_capacity(source_ranges.len());
    for text in source_ranges {
        let net: Option<IpNet> = text.parse().ok();
        match net.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from)) {
            Some(net) => ranges.push(net.trunc()),
            None => {
                closed = true;
                invalid.push(format!(
                    "spec.clients.sourceRanges: {text:?} is no CIDR like 10.0.0.0/8, so nobody is let in"
                ));
            }
        }
    }
    if closed {
        ranges = vec![NOBODY];
    }
    Clients { source_ranges: ranges, idle_millis, source_affinity }
}

/// No client has the unspecified address.
pub(crate) const NOBODY: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 32));

fn read_listeners(
    listeners: Vec<fairlead_api::route::Listener>,
    rules: &[RouteRule],
    backends: &[Backend],
) -> Result<Vec<Listener>, String> {
    let mut taken = BTreeSet::new();
    let mut ports = Vec::with_capacity(listeners.len());
    let http = listeners.iter().any(|listener| listener.protocol.is_http());
    for (index, listener) in listeners.into_iter().enumerate() {
        let at = |what: &str| format!("spec.listeners[{index}] ({}): {what}", listener.name);
        let (protocol, port) = (listener.protocol, listener.port);
        if port > 0 && !taken.insert((protocol.transport(), port)) {
            return Err(at("another listener has this protocol and port"));
        }
        if let Some(only) = fixed_port(protocol).filter(|only| *only != port) {
            return Err(at(&format!("{protocol} is served on port {only}")));
        }
        if protocol.is_http() != http {
            return Err(at("a Route has listeners of layer 4 or of layer 7, not of both"));
        }
        let backend = if http { None } else { Some(leads_to(&listener.name, rules, backends)) };
        let backend = backend.transpose().map_err(at)?;
        ports.push(Listener { name: listener.name.into(), protocol, port, backend });
    }
    if ports.is_empty() {
        return Err("spec.listeners: at least one is needed".into());
    }
    Ok(ports)
}

/// Ports that are shared by host names are the well-known ones.
fn fixed_port(protocol: Protocol) -> Option<u16> {
    match protocol {
        Protocol::Http => Some(HTTP_PORT),
        Protocol::Https => Some(HTTPS_PORT),
        Protocol::Tcp | Protocol::Udp => None,
    }
}

fn leads_to(
    listener: &str,
    rules: &[RouteRule],
    backends: &[Backend],
) -> Result<usize, &'static str> {
    let rule = rules.iter().find(|rule| rule.listener == listener);
    let rule = rule.ok_or("no rule leads it to a backend")?;
    let place = backends.iter().position(|backend| *backend.name == *rule.backend);
    place.ok_or("its rule names no backend")
}

/// Names a backend's Cluster: how it is spoken to is a part of that.
fn named(id: &RouteId, source: &Source, http: bool, mut backend: Backend) -> Arc<Backend> {
    let name = if http {
        upstream::name(&id.tenant, &source.namespace, &backend)
    } else {
        backend_name(id, &backend)
    };
    backend.cluster = name.into();
    Arc::new(backend)
}

fn backend(backend: fairlead_api::route::Backend) -> Backend {
    let fairlead_api::route::Backend { name, node_port, nodes, slots, family, upstream } = backend;
    let nodes = match nodes.policy {
        NodePolicy::All => None,
        NodePolicy::Named => Some(nodes.names.into_iter().map(Into::into).collect()),
    };
    let slot = |slot: Slot| (slot.node_port, slot.nodes.into_iter().map(Into::into).collect());
    let slots = slots.into_iter().map(slot).collect();
    // See `named`.
    let cluster = Arc::default();
    Backend { name: name.into(), cluster, node_port, nodes, slots, family, upstream }
}
