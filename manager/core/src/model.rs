//! The hub's objects as compact values: parsed once, so that everything after may rely on them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fairlead_api::condition::{Reason, Verdict};
use fairlead_api::route::{NodePolicy, Protocol, Source};
use fairlead_api::{RouteSpec, TenantSpec};
use ipnet::IpNet;

/// A tenant's permissions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Pools in the order of preference.
    pub pools: Vec<String>,
    /// Where its nodes may be; `None`: anywhere. A range that cannot be read allows nothing.
    pub node_cidrs: Option<Vec<IpNet>>,
    /// How many Routes it may have.
    pub max_routes: u32,
}

impl From<TenantSpec> for Tenant {
    fn from(spec: TenantSpec) -> Self {
        let TenantSpec { pools, node_cidrs, quotas } = spec;
        let readable = || node_cidrs.iter().filter_map(|text| text.parse().ok()).collect();
        let node_cidrs = (!node_cidrs.is_empty()).then(readable);
        Self { pools, node_cidrs, max_routes: quotas.routes }
    }
}

/// What the hub's apiserver says of a Route object itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// `metadata.uid`.
    pub uid: Box<str>,
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
    /// The address that was asked for.
    pub ip: Option<IpAddr>,
    /// Listeners with the backend that each leads to.
    pub listeners: Vec<Listener>,
    /// Backends by name.
    pub backends: Vec<Backend>,
}

/// One port of a Route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Transport.
    pub protocol: Protocol,
    /// The port on the address.
    pub port: u16,
    /// Index into `backends`.
    pub backend: usize,
}

/// One `NodePort` of a Route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Unique in the Route.
    pub name: Box<str>,
    /// The port on the nodes.
    pub node_port: u16,
    /// Node names; `None` for all.
    pub nodes: Option<BTreeSet<Box<str>>>,
}

impl Wish {
    /// Reads a spec. What cannot be served comes back as a verdict on `Accepted` that names the field.
    pub fn parse(spec: RouteSpec) -> Result<(Source, Self), (Source, Verdict)> {
        let RouteSpec { source, content_hash: _, address, listeners, rules, backends } = spec;
        let invalid = |message: String| Verdict::no(Reason::Invalid, message);
        let parsed = (|| {
            let ip = match &address.ip {
                Some(text) => Some(text.parse().map_err(|_| {
                    invalid(format!("spec.address.ip: {text:?} is not an IP address"))
                })?),
                None => None,
            };
            let backends: Vec<_> = backends.into_iter().map(backend).collect();
            let mut names = BTreeSet::new();
            if let Some(twice) = backends.iter().find(|backend| !names.insert(&backend.name)) {
                return Err(invalid(format!("spec.backends: {:?} is there twice", twice.name)));
            }
            let mut taken = BTreeSet::new();
            let mut ports = Vec::with_capacity(listeners.len());
            for (index, listener) in listeners.into_iter().enumerate() {
                let at =
                    |what: &str| format!("spec.listeners[{index}] ({}): {what}", listener.name);
                if listener.port == 0 {
                    return Err(invalid(at("port must be 1 to 65535")));
                }
                if !taken.insert((listener.protocol, listener.port)) {
                    return Err(invalid(at("another listener has this protocol and port")));
                }
                let rule = rules.iter().find(|rule| rule.listener == listener.name);
                let rule = rule.ok_or_else(|| invalid(at("no rule leads it to a backend")))?;
                let backend = backends.iter().position(|b| *b.name == *rule.backend);
                let backend = backend.ok_or_else(|| invalid(at("its rule names no backend")))?;
                ports.push(Listener { protocol: listener.protocol, port: listener.port, backend });
            }
            if ports.is_empty() {
                return Err(invalid("spec.listeners: at least one is needed".into()));
            }
            Ok(Self { pool: address.pool, ip, listeners: ports, backends })
        })();
        match parsed {
            Ok(wish) => Ok((source, wish)),
            Err(verdict) => Err((source, verdict)),
        }
    }
}

fn backend(backend: fairlead_api::route::Backend) -> Backend {
    let fairlead_api::route::Backend { name, node_port, nodes } = backend;
    let nodes = match nodes.policy {
        NodePolicy::All => None,
        NodePolicy::Named => Some(nodes.names.into_iter().map(Into::into).collect()),
    };
    Backend { name: name.into(), node_port, nodes }
}
