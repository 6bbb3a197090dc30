//! Looking for an address that has all ports free.

use std::net::IpAddr;

use fairlead_api::claim::ClaimKey;
use fairlead_api::condition::{Reason, Verdict};
use fairlead_api::route::IpFamily;
use fairlead_api::{Packing, Sharing};

use super::refuse::{group_conflict, taken};
use super::{Ask, Found, Named, Spot, key};
use crate::claims::Leaving;
use crate::pool::Pool;
use crate::runs::{address, number};

/// The port for which an address cannot be had, and why.
type Obstacle = (ClaimKey, &'static str);

impl<'a> Ask<'a> {
    /// An address by name: that or an error.
    pub(super) fn take(
        self,
        ip: IpAddr,
        ports: &[Option<u16>],
        pools: &[Named<'a>],
    ) -> Result<Found<'a>, Verdict> {
        let (pool, details) = find(ip, pools)?;
        if details.draining {
            return Err(self.exhausted(None, &[(pool, details)]));
        }
        let spot = Spot { address: ip, pool };
        self.reach(spot, details, ports).map_err(|(key, why)| taken(&key, why))
    }

    /// The address of the Route's group: that or an error.
    pub(super) fn join_group(
        self,
        ip: IpAddr,
        pool: &str,
        ports: &[Option<u16>],
        pools: &[Named<'a>],
    ) -> Result<Found<'a>, Verdict> {
        let Some((name, details)) = pools.iter().find(|(name, _)| *name == pool).copied() else {
            let why = format!(
                "of pool {pool:?}, which is not the one asked for, or no longer the tenant's"
            );
            return Err(group_conflict(self.wish, &ip, &why));
        };
        if details.draining {
            return Err(group_conflict(self.wish, &ip, "of a pool that is being drained"));
        }
        self.reach(Spot { address: ip, pool: name }, details, ports).map_err(|(key, why)| {
            let why = format!("where port {}/{} {why}", key.port, key.protocol);
            group_conflict(self.wish, &ip, &why)
        })
    }

    /// The first address, in the order of pools and of their packing, that has all ports free.
    pub(super) fn search(
        self,
        family: Option<IpFamily>,
        ports: &[Option<u16>],
        pools: &[Named<'a>],
    ) -> Result<Found<'a>, Verdict> {
        if let Some(found) = self.favoured(family, ports, pools) {
            return Ok(found);
        }
        for (name, pool) in self.open_pools(pools) {
            if let Some(found) = self.left(family, ports, name, pool) {
                return Ok(found);
            }
            if !self.has_targets(pool, family) {
                continue;
            }
            let first = || self.first(family, ports, name, pool);
            let found = match pool.packing {
                Packing::Fill => first(),
                Packing::Spread => first().map(|ip| self.emptiest(family, ports, name, pool, ip)),
            };
            if let Some(address) = found {
                return Ok(Found::Spot(Spot { address, pool: name }));
            }
            if self.may_open_more(pool, family, ports) {
                return Ok(Found::Open(name));
            }
        }
        Err(self.exhausted(family, pools))
    }

    /// What goes before the order of pools: what is being given back for the Route, and then the tenant's own addresses
    /// where those come first.
    fn favoured(
        self,
        family: Option<IpFamily>,
        ports: &[Option<u16>],
        pools: &[Named<'a>],
    ) -> Option<Found<'a>> {
        let promised = self.open_pools(pools).find_map(|(name, pool)| {
            let mut promised = self.claims.promised_to(self.route);
            promised.find_map(|key| self.reached(key.address, family, ports, name, pool))
        });
        promised.or_else(|| {
            let mut own = self.own(pools, family);
            let free = own.find(|(spot, pool)| self.is_free(*spot, pool, ports));
            free.map(|(spot, _)| Found::Spot(spot))
        })
    }

    /// Whether one more address of the hub's own load balancer would help: there may be more, this Route would
    /// fit on it, and there is none on which nobody is.
    pub(super) fn may_open_more(
        self,
        pool: &Pool,
        family: Option<IpFamily>,
        ports: &[Option<u16>],
    ) -> bool {
        let most = pool.service.as_ref().map_or(0, |service| u64::from(service.max_addresses));
        pool.size() < most
            && self.fits_empty(pool, family, ports)
            && self.empty(pool, family).is_none()
    }

    pub(super) fn is_reserved(self, pool: &Pool) -> bool {
        self.wish.listeners.iter().any(|listener| pool.reserved.contains(&listener.port))
    }

    /// An address where the tenant let a wanted port go a moment ago: what is made anew keeps it.
    fn left(
        self,
        family: Option<IpFamily>,
        ports: &[Option<u16>],
        name: &'a str,
        pool: &Pool,
    ) -> Option<Found<'a>> {
        let mut wanted = self.wish.listeners.iter().zip(ports);
        let (listener, port) = wanted.find_map(|(l, port)| Some((l, (*port)?)))?;
        let protocol = listener.protocol.transport();
        let mut left = self.claims.left_by(&self.route.tenant, protocol, port);
        left.find_map(|address| self.reached(address, family, ports, name, pool))
    }

    /// An address, if it is the pool's and can be had.
    fn reached(
        self,
        address: IpAddr,
        family: Option<IpFamily>,
        ports: &[Option<u16>],
        name: &'a str,
        pool: &Pool,
    ) -> Option<Found<'a>> {
        let here = pool.contains(address) && IpFamily::fits(family, address);
        here.then(|| self.reach(Spot { address, pool: name }, pool, ports))?.ok()
    }

    /// The first address of a pool that fits.
    fn first(
        self,
        family: Option<IpFamily>,
        ports: &[Option<u16>],
        name: &'a str,
        pool: &Pool,
    ) -> Option<IpAddr> {
        pool.ranges(family).find_map(|range| self.first_within(range, ports, name, pool))
    }

    /// The first address of a range that fits. Each index leaps over all addresses that do not.
    pub(super) fn first_within(
        self,
        (first, last): (u128, u128),
        ports: &[Option<u16>],
        name: &'a str,
        pool: &Pool,
    ) -> Option<IpAddr> {
        let mut at = first;
        loop {
            let start = at;
            for (listener, port) in self.wish.listeners.iter().zip(ports) {
                if let Some(port) = port {
                    at = self.claims.next_with(listener.protocol.transport(), *port, at)?;
                }
            }
            at = self.claims.next_roomy(name, at)?;
            at = self.next_allowed(pool, at)?;
            if at > last {
                return None;
            }
            if at == start {
                let spot = Spot { address: address(at), pool: name };
                if self.is_free(spot, pool, ports) {
                    return Some(spot.address);
                }
                at = at.checked_add(1)?;
            }
        }
    }

    /// The first address from `from` on whose neighbours the pool, and the Route, let it have.
    fn next_allowed(self, pool: &Pool, from: u128) -> Option<u128> {
        match self.sharing(pool) {
            Sharing::Exclusive => self.claims.next_empty(from),
            Sharing::Tenant => {
                let own = self.claims.next_sole(&self.route.tenant, from);
                self.claims.next_empty(from).into_iter().chain(own).min()
            }
            Sharing::Any => self.claims.next_open(from),
        }
    }

    /// Of the addresses that fit, the one with the fewest Routes: `first` fits.
    fn emptiest(
        self,
        family: Option<IpFamily>,
        ports: &[Option<u16>],
        name: &'a str,
        pool: &Pool,
        first: IpAddr,
    ) -> IpAddr {
        // Nobody is there, so all ports are free.
        if let Some(empty) = self.empty(pool, family) {
            return empty;
        }
        let fits = |ip: &IpAddr| {
            IpFamily::fits(family, *ip)
                && pool.contains(*ip)
                && self.is_free(Spot { address: *ip, pool: name }, pool, ports)
        };
        self.claims.by_load(name).map(address).find(fits).unwrap_or(first)
    }

    /// The first address of a pool on which nobody is.
    fn empty(self, pool: &Pool, family: Option<IpFamily>) -> Option<IpAddr> {
        pool.ranges(family).find_map(|(first, last)| within(self.claims.next_empty(first), last))
    }

    /// Whether the Route can have an address at once.
    fn is_free(self, spot: Spot<'a>, pool: &Pool, ports: &[Option<u16>]) -> bool {
        matches!(self.reach(spot, pool, ports), Ok(Found::Spot(_)))
    }

    /// An address if the Route can have it, at once or when ports that its tenant let go, and that nobody
    /// else has, were given back.
    fn reach(
        self,
        spot: Spot<'a>,
        pool: &Pool,
        ports: &[Option<u16>],
    ) -> Result<Found<'a>, Obstacle> {
        let ip = spot.address;
        let mut reclaim = Vec::new();
        let wanted = self.wish.listeners.iter().zip(ports);
        let keys: Vec<_> = wanted.filter_map(|(l, port)| Some(key(ip, l, (*port)?))).collect();
        for key in &keys {
            if pool.reserved.contains(&key.port) {
                return Err((*key, "is reserved by the pool"));
            }
            if self.claims.is_promised_away(self.route, key) {
                return Err((*key, "is taken"));
            }
            let Some(claim) = self.claims.get(key) else { continue };
            match (self.claims.leaving(key), claim.tenant() == Some(&self.route.tenant)) {
                (Some(_), true) => reclaim.push(*key),
                (Some(Leaving::Resting), false) => {
                    return Err((*key, "is on hold since its last user let it go"));
                }
                _ => return Err((*key, "is taken")),
            }
        }
        let named = self.wish.listeners.first().map(|listener| listener.key(ip));
        let Some(one) = keys.first().copied().or(named) else { return Ok(Found::Spot(spot)) };
        if self.is_strange(ip, pool) && reclaim.is_empty() {
            return Err((one, "is on an address that may not be shared with this Route"));
        }
        if self.any_ports(ports, &[ip], pool).is_none() {
            return Err((one, "is on an address whose ports for any use are taken"));
        }
        let count = u32::try_from(ports.len()).unwrap_or(u32::MAX);
        if reclaim.is_empty() && !self.claims.has_room(self.route, ip, count, pool.capacity) {
            return Err((one, "is on an address that is full"));
        }
        Ok(if reclaim.is_empty() { Found::Spot(spot) } else { Found::Wait(reclaim) })
    }
}

/// The pool that has an address.
pub(super) fn find<'a>(ip: IpAddr, pools: &[Named<'a>]) -> Result<Named<'a>, Verdict> {
    pools.iter().find(|(_, pool)| pool.contains(ip)).copied().ok_or_else(|| {
        let names: Vec<_> = pools.iter().map(|(name, _)| *name).collect();
        let message = format!("address {ip} is in none of the pools: {}", names.join(", "));
        Verdict::no(Reason::AddressNotInPool, message)
    })
}

/// The first of a pool's addresses in a range that a search names.
pub(super) fn within(found: Option<u128>, last: u128) -> Option<IpAddr> {
    found.filter(|at| *at <= last).map(address)
}

/// An address as the searches count.
pub(super) fn after(ip: IpAddr) -> Option<u128> {
    number(ip).checked_add(1)
}
