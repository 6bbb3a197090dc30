//! What is free: each question costs the logarithm of the number of claims.

use std::net::IpAddr;

use fairlead_api::route::Protocol;
use fairlead_api::{RouteId, TenantId};

use super::Claims;
use super::tally::Tally;
use crate::pool::Capacity;
use crate::runs::number;

impl Claims {
    /// The first address from `from` on at which a port is free.
    pub fn next_with(&self, protocol: Protocol, port: u16, from: u128) -> Option<u128> {
        match self.taken.get(&(protocol, port)) {
            Some(taken) => taken.next_free(from),
            None => Some(from),
        }
    }

    /// The first address from `from` on on which nobody is.
    pub fn next_empty(&self, from: u128) -> Option<u128> {
        self.occupied.next_free(from)
    }

    /// The first address from `from` on that nobody has for itself.
    pub fn next_open(&self, from: u128) -> Option<u128> {
        self.closed.next_free(from)
    }

    /// The first address from `from` on on which a tenant is by itself, and others of it may be.
    pub fn next_sole(&self, tenant: &TenantId, from: u128) -> Option<u128> {
        self.sole.get(tenant)?.range(from..).next().copied()
    }

    /// The first address from `from` on with ports that the tenant's host names may share.
    pub fn next_shared(&self, tenant: &TenantId, from: u128) -> Option<u128> {
        let of = |who: Option<TenantId>| self.shared.get(&who)?.range(from..).next().copied();
        let (own, any) = (of(Some(tenant.clone())), of(None));
        own.into_iter().chain(any).min()
    }

    /// The first address from `from` on that a pool's capacity leaves room on.
    pub fn next_roomy(&self, pool: &str, from: u128) -> Option<u128> {
        match self.full.get(pool) {
            Some(full) => full.next_free(from),
            None => Some(from),
        }
    }

    /// Addresses of a pool on which somebody is, those with the fewest Routes first.
    pub fn by_load(&self, pool: &str) -> impl Iterator<Item = u128> {
        self.loads.get(pool).into_iter().flatten().map(|(_, at)| *at)
    }

    /// How many Routes are on the address of a pool that has the most.
    pub fn most_routes(&self, pool: &str) -> u32 {
        self.loads.get(pool).and_then(|loads| loads.last()).map_or(0, |(load, _)| *load)
    }

    /// The first port of a range that is free at an address.
    pub fn free_port(&self, address: IpAddr, protocol: Protocol, from: u16) -> Option<u16> {
        let free = match self.ports.get(&(address, protocol)) {
            Some(taken) => taken.next_free(from.into()),
            None => Some(from.into()),
        };
        free.and_then(|port| u16::try_from(port).ok())
    }

    /// Whether so many ports of a Route have room on an address.
    pub fn has_room(&self, route: &RouteId, address: IpAddr, ports: u32, most: Capacity) -> bool {
        let none = Tally::default();
        let tally = self.tallies.get(&address).unwrap_or(&none);
        let routes = tally.routes() + u32::from(!tally.routes.contains_key(route));
        most.ports.is_none_or(|most| tally.ports.saturating_add(ports) <= most)
            && most.routes.is_none_or(|most| routes <= most)
    }

    /// Whether nobody but a Route is on an address.
    pub fn is_alone(&self, route: &RouteId, address: IpAddr) -> bool {
        self.tallies.get(&address).is_none_or(|tally| {
            tally.routes.keys().all(|one| one == route)
                && tally.tenants.keys().all(|one| one.as_ref() == Some(&route.tenant))
                && tally.routes.get(route).copied().unwrap_or(0) >= tally.ports
        })
    }

    /// Whether nobody but a tenant is on an address.
    pub fn is_within(&self, tenant: &TenantId, address: IpAddr) -> bool {
        self.tallies
            .get(&address)
            .is_none_or(|tally| tally.tenants.keys().all(|one| one.as_ref() == Some(tenant)))
    }

    /// Whether somebody else has the address for itself.
    pub fn is_closed_to(&self, route: &RouteId, address: IpAddr) -> bool {
        self.closed.contains(number(address))
            && self.on(address).any(|claim| claim.alone && claim.route() != Some(route))
    }
}
