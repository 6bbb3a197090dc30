//! Whose each (address, protocol, port) is, as the claims on the hub say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use fairlead_api::claim::ClaimKey;
use fairlead_api::few::Few;
use fairlead_api::route::Protocol;
use fairlead_api::{AddressClaimSpec, RouteId, RouteName, TenantId, Uid};

use crate::pool::Capacity;
use crate::runs::{Runs, number};
use crate::usage::Usage;

mod free;
mod leaving;
mod tally;

use tally::{Entries, Tally};

/// One claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What is claimed; its protocol is a transport.
    pub key: ClaimKey,
    /// The pool it was taken from.
    pub pool: Box<str>,
    /// Who holds it.
    pub holder: Holder,
    /// The listener that takes any port and was given this one; empty for one that names its port.
    pub listener: Box<str>,
    /// Nobody else is given a port of the address.
    pub alone: bool,
    /// The port at which Envoy listens, where that is not the claimed one. It is claimed, too, at the
    /// unspecified address.
    pub target: Option<u16>,
    /// `metadata.uid` of the claim's own object; empty while it is not persisted.
    pub object: Uid,
}

/// Who holds a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// One Route.
    Route {
        /// Which.
        route: RouteId,
        /// Its `metadata.uid`.
        uid: Uid,
    },
    /// All Routes that have a seat there: they share the port by host names.
    Shared {
        /// `Http` or `Https`.
        protocol: Protocol,
        /// Only this tenant's; `None`: any tenant's.
        tenant: Option<TenantId>,
    },
}

impl Claim {
    /// Reads a claim from its object; `None` for one that makes no sense.
    pub fn parse(spec: AddressClaimSpec, object: Uid) -> Option<Self> {
        let key = spec.key();
        let AddressClaimSpec {
            address: _,
            protocol: _,
            port: _,
            pool,
            shared,
            tenant,
            route,
            route_uid,
            listener,
            alone,
            target_port,
        } = spec;
        let holder = match shared {
            Some(protocol) => {
                let tenant = if tenant.is_empty() { None } else { Some(tenant.parse().ok()?) };
                Holder::Shared { protocol, tenant }
            }
            None => {
                let name = RouteName::of_object(&route);
                let route = RouteId { tenant: tenant.parse().ok()?, name };
                Holder::Route { route, uid: route_uid.into() }
            }
        };
        Some(Self {
            key,
            pool: pool.into(),
            holder,
            listener: listener.into(),
            alone,
            target: target_port,
            object,
        })
    }

    /// The claim as the object's spec.
    pub fn spec(&self) -> AddressClaimSpec {
        let ClaimKey { address, protocol, port } = self.key;
        let mut spec = AddressClaimSpec {
            address,
            protocol,
            port,
            pool: self.pool.to_string(),
            shared: None,
            tenant: String::new(),
            route: String::new(),
            route_uid: String::new(),
            listener: self.listener.to_string(),
            alone: self.alone,
            target_port: self.target,
        };
        match &self.holder {
            Holder::Route { route, uid } => {
                spec.tenant = route.tenant.to_string();
                spec.route = route.name.to_string();
                spec.route_uid = uid.to_string();
            }
            Holder::Shared { protocol, tenant } => {
                spec.shared = Some(*protocol);
                spec.tenant = tenant.as_ref().map(ToString::to_string).unwrap_or_default();
            }
        }
        spec
    }

    /// Whether it is of a port at which Envoy listens for an address that others announce.
    pub fn is_target(&self) -> bool {
        self.key.address.is_unspecified()
    }

    /// The claim of the port at which Envoy listens for this one.
    pub fn target_key(&self) -> Option<ClaimKey> {
        let address = unspecified(self.key.address);
        self.target.map(|port| ClaimKey { address, protocol: self.key.protocol, port })
    }

    /// The tenant that holds it; `None`: it is shared by any.
    pub fn tenant(&self) -> Option<&TenantId> {
        match &self.holder {
            Holder::Route { route, .. } => Some(&route.tenant),
            Holder::Shared { tenant, .. } => tenant.as_ref(),
        }
    }

    /// The one Route that holds it.
    pub fn route(&self) -> Option<&RouteId> {
        match &self.holder {
            Holder::Route { route, .. } => Some(route),
            Holder::Shared { .. } => None,
        }
    }
}

const ANY_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
const ANY_V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);

/// The address at which Envoy listens for one that others announce.
pub fn unspecified(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { ANY_V4 } else { ANY_V6 }
}

/// What becomes of a claim that its holder let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// It is kept for its tenant for a while.
    Resting,
    /// Its deletion is under way: the holder's no more, and nobody else's yet.
    Releasing,
}

/// What is given out of a pool.
#[derive(Debug, Default)]
struct Used {
    /// How many claims there are on each address.
    addresses: HashMap<IpAddr, u64>,
    claims: u64,
}

/// All claims, and what is free: each question costs the logarithm of the number of claims.
#[derive(Debug, Default)]
pub struct Claims {
    by_key: HashMap<ClaimKey, Claim>,
    by_address: HashMap<IpAddr, Few<ClaimKey>>,
    by_route: HashMap<RouteId, Few<ClaimKey>>,
    by_pool: HashMap<Box<str>, Used>,
    /// Whose target port it is.
    by_target: HashMap<ClaimKey, ClaimKey>,
    /// Addresses at which a port is taken.
    taken: HashMap<(Protocol, u16), Runs>,
    /// Ports that are taken at an address.
    ports: HashMap<(IpAddr, Protocol), Runs>,
    tallies: HashMap<IpAddr, Tally>,
    occupied: Runs,
    closed: Runs,
    /// Addresses on which one tenant is by itself.
    sole: HashMap<TenantId, BTreeSet<u128>>,
    /// Addresses with ports that host names share, by who may share them.
    shared: HashMap<Option<TenantId>, BTreeSet<u128>>,
    capacities: HashMap<Box<str>, Capacity>,
    full: HashMap<Box<str>, Runs>,
    loads: HashMap<Box<str>, BTreeSet<(u32, u128)>>,
    leaving: HashMap<ClaimKey, Leaving>,
    /// The same for each tenant, by port.
    left: BTreeSet<(TenantId, Protocol, u16, IpAddr)>,
    /// Ports that are being given back so that a Route of the same tenant can have them.
    promised: HashMap<ClaimKey, RouteId>,
    promises: HashMap<RouteId, BTreeSet<ClaimKey>>,
    by_tenant: HashMap<TenantId, Usage>,
}

impl Claims {
    /// Notes a claim; what was known of its key before is forgotten.
    pub fn insert(&mut self, claim: Claim) {
        self.remove(&claim.key);
        let key = claim.key;
        if let Some(route) = claim.route() {
            self.by_route.entry(route.clone()).or_default().insert(key);
        }
        self.ports.entry((key.address, key.protocol)).or_default().insert(key.port.into());
        if !claim.is_target() {
            self.note(&claim);
        }
        self.by_key.insert(key, claim);
    }

    fn note(&mut self, claim: &Claim) {
        let key = claim.key;
        let at = number(key.address);
        if let Some(route) = claim.route() {
            let usage = self.by_tenant.entry(route.tenant.clone()).or_default();
            usage.ports += 1;
            usage.come(key.address);
        }
        self.by_address.entry(key.address).or_default().insert(key);
        self.taken.entry((key.protocol, key.port)).or_default().insert(at);
        let used = self.by_pool.entry(claim.pool.clone()).or_default();
        *used.addresses.entry(key.address).or_default() += 1;
        used.claims += 1;
        if let Some(target) = claim.target_key() {
            self.by_target.insert(target, key);
        }
        if let Holder::Shared { tenant, .. } = &claim.holder {
            self.shared.entry(tenant.clone()).or_default().insert(at);
        }
        self.change(key.address, |tally| {
            if tally.ports == 0 {
                tally.pool.clone_from(&claim.pool);
            }
            tally.ports += 1;
            tally.alone += u32::from(claim.alone);
            *tally.tenants.entry(claim.tenant().cloned()).or_default() += 1;
            if let Some(route) = claim.route() {
                *tally.routes.entry(route.clone()).or_default() += 1;
            }
        });
    }

    /// Forgets a claim.
    pub fn remove(&mut self, key: &ClaimKey) -> Option<Claim> {
        let claim = self.by_key.remove(key)?;
        self.set_leaving(&claim, None);
        if let Some(route) = claim.route() {
            drop_from(&mut self.by_route, route, key);
        }
        clear(&mut self.ports, &(key.address, key.protocol), key.port.into());
        if !claim.is_target() {
            self.unnote(&claim);
        }
        Some(claim)
    }

    fn unnote(&mut self, claim: &Claim) {
        let key = &claim.key;
        if let Some(usage) = claim.route().and_then(|one| self.by_tenant.get_mut(&one.tenant)) {
            usage.ports -= 1;
            usage.go(key.address);
        }
        drop_from(&mut self.by_address, &key.address, key);
        clear(&mut self.taken, &(key.protocol, key.port), number(key.address));
        if let Some(used) = self.by_pool.get_mut(&claim.pool) {
            subtract(&mut used.addresses, &key.address);
            used.claims -= 1;
        }
        if let Some(target) = claim.target_key() {
            self.by_target.remove(&target);
        }
        if let Holder::Shared { tenant, .. } = &claim.holder {
            let shares = |one: &Claim| matches!(&one.holder, Holder::Shared { tenant: t, .. } if t == tenant);
            if !self.on(key.address).any(shares)
                && let Some(addresses) = self.shared.get_mut(tenant)
            {
                addresses.remove(&number(key.address));
            }
        }
        self.change(key.address, |tally| {
            tally.ports -= 1;
            tally.alone -= u32::from(claim.alone);
            reduce(&mut tally.tenants, &claim.tenant().cloned());
            if let Some(route) = claim.route() {
                reduce(&mut tally.routes, route);
            }
        });
    }

    /// A Route that holds no claim of its own is served at an address.
    pub fn sit(&mut self, route: &RouteId, address: IpAddr) {
        self.by_tenant.entry(route.tenant.clone()).or_default().come(address);
        self.change(address, |tally| *tally.routes.entry(route.clone()).or_default() += 1);
    }

    /// It is served there once less; whether that was the last time.
    pub fn rise(&mut self, route: &RouteId, address: IpAddr) -> bool {
        if let Some(usage) = self.by_tenant.get_mut(&route.tenant) {
            usage.go(address);
        }
        self.change(address, |tally| reduce(&mut tally.routes, route));
        self.tallies.get(&address).is_none_or(|tally| !tally.routes.contains_key(route))
    }

    /// Changes what is on an address, and the indexes with it.
    fn change(&mut self, address: IpAddr, change: impl FnOnce(&mut Tally)) {
        let tally = self.tallies.entry(address).or_default();
        let capacity = |pool: &str| self.capacities.get(pool).copied().unwrap_or_default();
        let before = tally.entries(capacity(&tally.pool));
        change(tally);
        let after = tally.entries(capacity(&tally.pool));
        if tally.ports == 0 && tally.routes.is_empty() {
            self.tallies.remove(&address);
        }
        self.index(number(address), &before, &after);
    }

    fn index(&mut self, at: u128, before: &Entries, after: &Entries) {
        if before == after {
            return;
        }
        set(&mut self.occupied, at, after.occupied);
        set(&mut self.closed, at, after.closed);
        if before.sole != after.sole {
            if let Some(addresses) = before.sole.as_ref().and_then(|sole| self.sole.get_mut(sole)) {
                addresses.remove(&at);
            }
            if let Some(sole) = &after.sole {
                self.sole.entry(sole.clone()).or_default().insert(at);
            }
        }
        if before.occupied {
            set(self.full.entry(before.pool.clone()).or_default(), at, false);
            self.loads.entry(before.pool.clone()).or_default().remove(&(before.load, at));
        }
        if after.occupied {
            set(self.full.entry(after.pool.clone()).or_default(), at, after.full);
            self.loads.entry(after.pool.clone()).or_default().insert((after.load, at));
        }
    }

    /// What fits on an address of a pool.
    pub fn set_capacity(&mut self, pool: &str, capacity: Capacity) {
        if self.capacities.insert(pool.into(), capacity) == Some(capacity) {
            return;
        }
        let full = self.full.entry(pool.into()).or_default();
        for address in self.by_pool.get(pool).into_iter().flat_map(|used| used.addresses.keys()) {
            let tally = self.tallies.get(address).filter(|tally| *tally.pool == *pool);
            let is = tally.is_some_and(|tally| tally.is_full(capacity));
            set(full, number(*address), is);
        }
    }

    /// What a tenant holds.
    pub fn usage_of(&self, tenant: &TenantId) -> Option<&Usage> {
        self.by_tenant.get(tenant)
    }

    /// The claim of a key.
    pub fn get(&self, key: &ClaimKey) -> Option<&Claim> {
        self.by_key.get(key)
    }

    /// The claims on an address.
    pub fn on(&self, address: IpAddr) -> impl Iterator<Item = &Claim> {
        self.by_address.get(&address).into_iter().flatten().filter_map(|key| self.by_key.get(key))
    }

    /// The claims that a Route alone holds, in order.
    pub fn of<'a>(&'a self, route: &RouteId) -> impl Iterator<Item = &'a Claim> + use<'a> {
        self.by_route.get(route).into_iter().flatten().filter_map(|key| self.by_key.get(key))
    }

    /// All claims.
    pub fn iter(&self) -> impl Iterator<Item = &Claim> {
        self.by_key.values()
    }

    /// The claim that a target port is for.
    pub fn of_target(&self, target: &ClaimKey) -> Option<&Claim> {
        self.by_target.get(target).and_then(|key| self.by_key.get(key))
    }

    /// Addresses of a pool with at least one claim, and claims on them.
    pub fn usage(&self, pool: &str) -> (u64, u64) {
        self.by_pool.get(pool).map_or((0, 0), |used| (used.addresses.len() as u64, used.claims))
    }

    /// The addresses of a pool with at least one claim.
    pub fn used(&self, pool: &str) -> impl Iterator<Item = IpAddr> {
        self.by_pool.get(pool).into_iter().flat_map(|used| used.addresses.keys()).copied()
    }
}

fn set(runs: &mut Runs, at: u128, is: bool) {
    if is {
        runs.insert(at);
    } else {
        runs.remove(at);
    }
}

fn clear<K: std::hash::Hash + Eq>(index: &mut HashMap<K, Runs>, key: &K, at: u128) {
    if let Some(runs) = index.get_mut(key) {
        runs.remove(at);
        if runs.is_empty() {
            index.remove(key);
        }
    }
}

fn subtract<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u64>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn reduce<K: Ord>(counts: &mut BTreeMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn drop_from<K: std::hash::Hash + Eq>(
    index: &mut HashMap<K, Few<ClaimKey>>,
    at: &K,
    key: &ClaimKey,
) {
    if let Some(keys) = index.get_mut(at) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(at);
        }
    }
}
