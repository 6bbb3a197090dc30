//! Routes of layer 7: their ports are shared, by host names.

use std::net::IpAddr;

use fairlead_api::Sharing;
use fairlead_api::condition::Verdict;
use fairlead_api::route::{IpFamily, Protocol};

use super::refuse::{address_held, group_conflict, taken};
use super::search::{after, find, within};
use super::{Allocation, Ask, Place, Spot, may_use, usable};
use crate::claims::{Holder, Leaving};
use crate::pool::Pool;
use crate::runs::number;

impl<'a> Ask<'a> {
    /// An incumbent stays, another one goes to the first address where all its ports are shared, or can
    /// be.
    pub(super) fn sit(self) -> Result<Allocation, Verdict> {
        let candidates = self.candidates()?;
        // One address: of the first family that is wanted.
        let family = self.wish.families.first().copied();
        if let Some(ip) = self.wish.ips.first() {
            let (name, pool) = find(*ip, &candidates)?;
            return self.join(*ip, name, pool);
        }
        // Where nobody shares the address, the ports are the Route's own.
        let own = self.mine().next().map(|claim| claim.key.address);
        if let Some(address) = self.seat.or(own) {
            let listeners = &self.wish.listeners;
            if listeners.iter().all(|one| usable(self.claims, self.route, self.uid, address, one)) {
                // Whatever became of the pool: an incumbent never moves.
                self.may_remain(address)?;
                return Ok(self.seated(address));
            }
            if let Ok((name, pool)) = find(address, &candidates) {
                return self.join(address, name, pool);
            }
        }
        if let Some((ip, pool)) = self.group.first() {
            let named = candidates.iter().find(|(name, _)| *name == &**pool).copied();
            let Some((name, pool)) = named else {
                return Err(group_conflict(
                    self.wish,
                    ip,
                    "of a pool that is not the one asked for",
                ));
            };
            return self.join(*ip, name, pool);
        }
        let ports: Vec<_> = self.wish.listeners.iter().map(|one| Some(one.port)).collect();
        let mut own = self.own(&candidates, family);
        if let Some(allocation) =
            own.find_map(|(spot, pool)| self.join(spot.address, spot.pool, pool).ok())
        {
            return Ok(allocation);
        }
        for (name, pool) in self.open_pools(&candidates) {
            if let Some(allocation) = self.first_to_share(name, pool, family, &ports) {
                return Ok(allocation);
            }
            if self.may_open_more(pool, family, &ports) {
                return Ok(Allocation::Open { pool: (*name).into(), family });
            }
        }
        Err(self.exhausted(family, &candidates))
    }

    fn may_remain(self, address: IpAddr) -> Result<(), Verdict> {
        let claim = self.claims.on(address).next();
        let other =
            claim.filter(|claim| self.wish.pool.as_ref().is_some_and(|pool| **pool != *claim.pool));
        match (other, &self.wish.pool) {
            (Some(claim), Some(pool)) => {
                Err(address_held(address, &claim.pool, &format!("pool {pool:?}")))
            }
            _ => Ok(()),
        }
    }

    fn seated(self, address: IpAddr) -> Allocation {
        let ports = self.wish.listeners.iter().map(|listener| listener.port).collect();
        Allocation::Held { place: Place { addresses: vec![address], ports }, surplus: Vec::new() }
    }

    /// The first address of a pool that others share already, or that has the ports free.
    fn first_to_share(
        self,
        name: &'a str,
        pool: &'a Pool,
        family: Option<IpFamily>,
        ports: &[Option<u16>],
    ) -> Option<Allocation> {
        for (first, last) in pool.ranges(family) {
            let tenant = &self.route.tenant;
            let mut next = within(self.claims.next_shared(tenant, first), last);
            let mut shared = None;
            while let Some(ip) = next {
                shared = self.join(ip, name, pool).ok().map(|allocation| (ip, allocation));
                if shared.is_some() {
                    break;
                }
                next = after(ip).and_then(|at| within(self.claims.next_shared(tenant, at), last));
            }
            let free = self.first_within((first, last), ports, name, pool);
            let free = free.and_then(|ip| Some((ip, self.join(ip, name, pool).ok()?)));
            let found = shared.into_iter().chain(free).min_by_key(|(ip, _)| number(*ip));
            if let Some((_, allocation)) = found {
                return Some(allocation);
            }
        }
        None
    }

    /// What it takes to share an address.
    fn join(self, address: IpAddr, name: &'a str, pool: &Pool) -> Result<Allocation, Verdict> {
        let (mut missing, mut wait, mut reclaim) = (Vec::new(), false, Vec::new());
        for listener in &self.wish.listeners {
            let key = listener.key(address);
            if usable(self.claims, self.route, self.uid, address, listener) {
                continue;
            }
            if self.claims.is_promised_away(self.route, &key) {
                return Err(taken(&key, "is taken"));
            }
            let Some(claim) = self.claims.get(&key) else {
                if pool.reserved.contains(&key.port) {
                    return Err(taken(&key, "is reserved by the pool"));
                }
                missing.push((listener, key));
                continue;
            };
            let own = claim.tenant() == Some(&self.route.tenant);
            if may_use(&claim.holder, self.route, self.uid, listener.protocol) {
                wait = true;
            } else if own && self.claims.leaving(&key) == Some(Leaving::Resting) {
                reclaim.push(key);
            } else if own && self.claims.leaving(&key).is_some() {
                wait = true;
            } else {
                return Err(taken(&key, "is taken"));
            }
        }
        if wait || !reclaim.is_empty() {
            return Ok(Allocation::Wait { reclaim });
        }
        if self.seat != Some(address) {
            self.may_sit(address, missing.len(), pool)?;
        }
        if missing.is_empty() {
            return Ok(self.seated(address));
        }
        let mut claims = Vec::with_capacity(missing.len());
        for (listener, key) in missing {
            let holder = self.sharer(pool, listener.protocol);
            let spot = Spot { address, pool: name };
            claims.extend(self.claims_for(spot, &[(listener, key)], holder, &claims)?);
        }
        Ok(Allocation::Claim(claims))
    }

    /// Whether a Route that is not there yet may come to an address. `count`: ports that it would claim.
    fn may_sit(self, address: IpAddr, count: usize, pool: &Pool) -> Result<(), Verdict> {
        let Some(first) = &self.wish.listeners.first().map(|one| one.key(address)) else {
            return Ok(());
        };
        if pool.draining {
            return Err(taken(first, "is of a pool that is being drained"));
        }
        if self.is_strange(address, pool) {
            return Err(taken(first, "is on an address that may not be shared with this Route"));
        }
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if !self.claims.has_room(self.route, address, count, pool.capacity) {
            return Err(taken(first, "is on an address that is full"));
        }
        Ok(())
    }

    /// Who holds a port for all that share it.
    fn sharer(self, pool: &Pool, protocol: Protocol) -> Holder {
        match self.sharing(pool) {
            Sharing::Exclusive => self.as_holder(),
            Sharing::Tenant => Holder::Shared { protocol, tenant: Some(self.route.tenant.clone()) },
            Sharing::Any => Holder::Shared { protocol, tenant: None },
        }
    }
}
