//! Ports that were let go: kept for their tenants for a while, being given back, or promised to a Route.

use std::net::IpAddr;

use fairlead_api::claim::ClaimKey;
use fairlead_api::route::Protocol;
use fairlead_api::{RouteId, TenantId};

use super::{ANY_V4, Claim, Claims, Leaving};

impl Claims {
    /// Notes what becomes of a claim that its holder let go; `None`: it is held again.
    pub fn leave(&mut self, key: &ClaimKey, leaving: Option<Leaving>) {
        if let Some(claim) = self.by_key.remove(key) {
            self.set_leaving(&claim, leaving);
            self.by_key.insert(*key, claim);
        }
    }

    pub(super) fn set_leaving(&mut self, claim: &Claim, leaving: Option<Leaving>) {
        let ClaimKey { address, protocol, port } = claim.key;
        let of = |tenant: &TenantId| (tenant.clone(), protocol, port, address);
        let left = claim.tenant().filter(|_| !claim.is_target()).map(of);
        match leaving {
            Some(leaving) => {
                self.leaving.insert(claim.key, leaving);
                self.left.extend(left);
            }
            None => {
                self.leaving.remove(&claim.key);
                if let Some(left) = left {
                    self.left.remove(&left);
                }
            }
        }
    }

    /// Keeps ports that are being given back for a Route, until it is looked at again.
    pub fn promise(&mut self, route: &RouteId, keys: &[ClaimKey]) {
        self.promised.extend(keys.iter().map(|key| (*key, route.clone())));
        self.promises.entry(route.clone()).or_default().extend(keys);
    }

    /// A Route chooses anew.
    pub fn break_promises(&mut self, route: &RouteId) {
        for key in self.promises.remove(route).into_iter().flatten() {
            self.promised.remove(&key);
        }
    }

    /// Ports that are kept for a Route.
    pub fn promised_to(&self, route: &RouteId) -> impl Iterator<Item = ClaimKey> {
        self.promises.get(route).into_iter().flatten().copied()
    }

    /// Whether a port is nobody's, and kept for nobody.
    pub fn is_open(&self, key: &ClaimKey) -> bool {
        !self.by_key.contains_key(key) && !self.promised.contains_key(key)
    }

    /// Whether a free port is kept for another Route.
    pub fn is_promised_away(&self, route: &RouteId, key: &ClaimKey) -> bool {
        self.promised.get(key).is_some_and(|to| to != route)
    }

    /// Whether a port of one of these addresses is kept for somebody.
    pub fn is_promised_at(&self, addresses: &[IpAddr]) -> bool {
        self.promised.keys().any(|key| addresses.contains(&key.address))
    }

    /// Nothing is being deleted any more.
    pub fn forget_releases(&mut self) {
        let keys: Vec<_> = self.leaving.keys().copied().collect();
        for key in keys {
            self.leave(&key, None);
        }
    }

    /// What becomes of a claim that its holder let go; `None`: it is held.
    pub fn leaving(&self, key: &ClaimKey) -> Option<Leaving> {
        self.leaving.get(key).copied()
    }

    /// Addresses at which a port was let go by a tenant, and is nobody else's yet.
    pub fn left_by(
        &self,
        tenant: &TenantId,
        protocol: Protocol,
        port: u16,
    ) -> impl Iterator<Item = IpAddr> {
        let from = (tenant.clone(), protocol, port, ANY_V4);
        let same = move |one: &&(TenantId, Protocol, u16, IpAddr)| {
            (&one.0, one.1, one.2) == (&from.0, from.1, from.2)
        };
        let start = (tenant.clone(), protocol, port, ANY_V4);
        self.left.range(start..).take_while(same).map(|one| one.3)
    }
}
