//! Whose each (address, protocol, port) is, as the claims on the hub say.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use fairlead_api::claim::ClaimKey;
use fairlead_api::route::Protocol;
use fairlead_api::{AddressClaimSpec, RouteId, RouteName, TenantId};

/// One claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What is claimed; its protocol is a transport.
    pub key: ClaimKey,
    /// The pool it was taken from.
    pub pool: Box<str>,
    /// Who holds it.
    pub holder: Holder,
    /// `metadata.uid` of the claim's own object; empty while it is not persisted.
    pub object: Box<str>,
}

/// Who holds a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// One Route.
    Route {
        /// Which.
        route: RouteId,
        /// Its `metadata.uid`.
        uid: Box<str>,
    },
    /// All Routes that have a seat there: they share the port by host names.
    Shared {
        /// `Http` or `Https`.
        protocol: Protocol,
        /// Only this tenant's; `None`: any tenant's.
        tenant: Option<TenantId>,
    },
}

impl Holder {
    /// Whether it is, or may be, somebody else's than this tenant's.
    pub fn is_strange(&self, tenant: &TenantId) -> bool {
        match self {
            Self::Route { route, .. } => route.tenant != *tenant,
            Self::Shared { tenant: holder, .. } => holder.as_ref() != Some(tenant),
        }
    }
}

impl Claim {
    /// Reads a claim from its object; `None` for one that makes no sense.
    pub fn parse(spec: AddressClaimSpec, object: &str) -> Option<Self> {
        let key = spec.key();
        let AddressClaimSpec { pool, shared, tenant, route, route_uid, .. } = spec;
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
        Some(Self { key, pool: pool.into(), holder, object: object.into() })
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

    /// The one Route that holds it.
    pub fn route(&self) -> Option<&RouteId> {
        match &self.holder {
            Holder::Route { route, .. } => Some(route),
            Holder::Shared { .. } => None,
        }
    }
}

/// All claims, by key, by address and by holder.
#[derive(Debug, Default)]
pub struct Claims {
    by_key: HashMap<ClaimKey, Claim>,
    by_address: HashMap<IpAddr, BTreeSet<ClaimKey>>,
    by_route: HashMap<RouteId, BTreeSet<ClaimKey>>,
    by_pool: HashMap<Box<str>, HashMap<IpAddr, u64>>,
}

impl Claims {
    /// Notes a claim; what was known of its key before is forgotten.
    pub fn insert(&mut self, claim: Claim) {
        self.remove(&claim.key);
        let key = claim.key;
        self.by_address.entry(key.address).or_default().insert(key);
        if let Some(route) = claim.route() {
            self.by_route.entry(route.clone()).or_default().insert(key);
        }
        *self.by_pool.entry(claim.pool.clone()).or_default().entry(key.address).or_default() += 1;
        self.by_key.insert(key, claim);
    }

    /// Forgets a claim.
    pub fn remove(&mut self, key: &ClaimKey) -> Option<Claim> {
        let claim = self.by_key.remove(key)?;
        drop_from(&mut self.by_address, &key.address, key);
        if let Some(route) = claim.route() {
            drop_from(&mut self.by_route, route, key);
        }
        if let Some(addresses) = self.by_pool.get_mut(&claim.pool)
            && let Some(count) = addresses.get_mut(&key.address)
        {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&key.address);
            }
        }
        Some(claim)
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

    /// Addresses of a pool with at least one claim, and claims on them.
    pub fn usage(&self, pool: &str) -> (u64, u64) {
        let Some(addresses) = self.by_pool.get(pool) else { return (0, 0) };
        (addresses.len() as u64, addresses.values().sum())
    }
}

fn drop_from<K: std::hash::Hash + Eq>(
    index: &mut HashMap<K, BTreeSet<ClaimKey>>,
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
