//! Whose each (address, protocol, port) is, as the claims on the hub say.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use fairlead_api::claim::ClaimKey;
use fairlead_api::{AddressClaimSpec, RouteId, RouteName};

/// One claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What is claimed.
    pub key: ClaimKey,
    /// The pool it was taken from.
    pub pool: Box<str>,
    /// Who holds it.
    pub route: RouteId,
    /// The holder's `metadata.uid`.
    pub uid: Box<str>,
    /// `metadata.uid` of the claim's own object; empty while it is not persisted.
    pub object: Box<str>,
}

impl Claim {
    /// Reads a claim from its object; `None` for one of no tenant.
    pub fn parse(spec: AddressClaimSpec, object: &str) -> Option<Self> {
        let key = spec.key();
        let tenant = spec.tenant.parse().ok()?;
        let route = RouteId { tenant, name: RouteName::of_object(&spec.route) };
        Some(Self {
            key,
            pool: spec.pool.into(),
            route,
            uid: spec.route_uid.into(),
            object: object.into(),
        })
    }

    /// The claim as the object's spec.
    pub fn spec(&self) -> AddressClaimSpec {
        AddressClaimSpec {
            address: self.key.address,
            protocol: self.key.protocol,
            port: self.key.port,
            pool: self.pool.to_string(),
            tenant: self.route.tenant.to_string(),
            route: self.route.name.to_string(),
            route_uid: self.uid.to_string(),
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
        self.by_route.entry(claim.route.clone()).or_default().insert(key);
        *self.by_pool.entry(claim.pool.clone()).or_default().entry(key.address).or_default() += 1;
        self.by_key.insert(key, claim);
    }

    /// Forgets a claim.
    pub fn remove(&mut self, key: &ClaimKey) -> Option<Claim> {
        let claim = self.by_key.remove(key)?;
        drop_from(&mut self.by_address, &key.address, key);
        drop_from(&mut self.by_route, &claim.route, key);
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

    /// The claims that a Route holds, in order.
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
