//! Ports that nobody named, and ports at which Envoy listens for an address that others announce.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fairlead_api::claim::ClaimKey;
use fairlead_api::condition::{Reason, Verdict};
use fairlead_api::route::{IpFamily, Protocol};
use fairlead_api::{PortRange, Uid};

use super::{Ask, Spot};
use crate::claims::{Claim, Holder, unspecified};
use crate::model::Listener;
use crate::pool::Pool;

impl Ask<'_> {
    /// The ports of the listeners, in order: those that they name, or were given where the Route is, or
    /// asks to be.
    pub(super) fn given_ports(self) -> Vec<Option<u16>> {
        let ips = &self.wish.ips;
        let given = |listener: &Listener| {
            let mut mine = self.mine();
            mine.find(|claim| {
                *claim.listener == *listener.name
                    && claim.key.protocol == listener.protocol.transport()
                    && (ips.is_empty() || ips.contains(&claim.key.address))
            })
        };
        let port = |listener: &Listener| match listener.port {
            0 => given(listener).map(|claim| claim.key.port),
            port => Some(port),
        };
        self.wish.listeners.iter().map(port).collect()
    }

    /// Gives the listeners that take any port one that is free at all addresses.
    pub(super) fn fill_ports(
        self,
        ports: &[Option<u16>],
        spots: &[Spot<'_>],
    ) -> Result<Vec<u16>, Verdict> {
        let Some(pool) = spots.first().and_then(|spot| self.pools.get(spot.pool)) else {
            // An incumbent, whatever became of its pool.
            let known: Option<Vec<u16>> = ports.iter().copied().collect();
            return known.ok_or_else(|| {
                Verdict::no(Reason::PoolExhausted, "the pool of its address is gone")
            });
        };
        let addresses: Vec<IpAddr> = spots.iter().map(|spot| spot.address).collect();
        self.any_ports(ports, &addresses, pool).ok_or_else(|| {
            let shown: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            let PortRange { first, last } = pool.any_ports;
            let message = format!(
                "no port from {first} to {last} of {} is free; name a port, or ask for another address",
                shown.join(", ")
            );
            Verdict::no(Reason::PoolExhausted, message)
        })
    }

    /// All ports, those that nobody named with one that is free at all addresses; `None`: there is none.
    pub(super) fn any_ports(
        self,
        ports: &[Option<u16>],
        addresses: &[IpAddr],
        pool: &Pool,
    ) -> Option<Vec<u16>> {
        let protocol = |index: usize| self.wish.listeners[index].protocol.transport();
        let mut all = ports.to_vec();
        for index in 0..all.len() {
            if all[index].is_none() {
                let same = all.iter().enumerate().filter(|(n, _)| protocol(*n) == protocol(index));
                let mine: BTreeSet<u16> = same.filter_map(|(_, port)| *port).collect();
                all[index] = Some(self.any_port(protocol(index), &mine, addresses, pool)?);
            }
        }
        all.into_iter().collect()
    }

    fn any_port(
        self,
        protocol: Protocol,
        mine: &BTreeSet<u16>,
        addresses: &[IpAddr],
        pool: &Pool,
    ) -> Option<u16> {
        let PortRange { first, last } = pool.any_ports;
        let promised = |port: u16| {
            addresses.iter().any(|ip| {
                let key = ClaimKey { address: *ip, protocol, port };
                self.claims.is_promised_away(self.route, &key)
            })
        };
        let mut port = first;
        while port <= last {
            // The first that is free at every address, or the next place to look.
            let next = addresses
                .iter()
                .try_fold(port, |port, ip| self.claims.free_port(*ip, protocol, port))?;
            let usable = !mine.contains(&next) && !pool.reserved.contains(&next) && !promised(next);
            let everywhere =
                addresses.iter().all(|ip| self.claims.free_port(*ip, protocol, next) == Some(next));
            if next <= last && usable && everywhere {
                return Some(next);
            }
            port = next.checked_add(1)?;
        }
        None
    }

    /// The claims of a Route's new ports; where the pool's addresses are announced by others, with those of
    /// the ports at which Envoy listens. `before`: claims of the same Route that are no claims yet.
    pub(super) fn claims_for(
        self,
        spot: Spot<'_>,
        fresh: &[(&Listener, ClaimKey)],
        holder: Holder,
        before: &[Claim],
    ) -> Result<Vec<Claim>, Verdict> {
        let mut claims: Vec<Claim> = Vec::with_capacity(fresh.len());
        for (listener, key) in fresh {
            let mut claim = Claim {
                key: *key,
                pool: spot.pool.into(),
                holder: holder.clone(),
                listener: if listener.port == 0 { listener.name.clone() } else { Box::default() },
                alone: self.wish.alone && matches!(holder, Holder::Route { .. }),
                target: None,
                object: Uid::default(),
            };
            let service = self.pools.get(spot.pool).and_then(|pool| pool.service.as_ref());
            if let Some(service) = service {
                let taken: BTreeSet<u16> =
                    before.iter().chain(&claims).filter_map(|claim| claim.target).collect();
                claim.target =
                    self.target(spot.address, key.protocol, service.target_ports, &taken);
                let Some(target) = claim.target_key() else {
                    let message = format!(
                        "pool {:?} has no target port left; a platform administrator widens \
                         spec.service.targetPorts",
                        spot.pool
                    );
                    return Err(Verdict::no(Reason::PoolExhausted, message));
                };
                // Before the port that it is for: a crash between the two leaves nothing unguarded.
                // Its listener is the port that it is for: no other claim is the same.
                claims.push(Claim {
                    key: target,
                    target: None,
                    alone: false,
                    listener: key.object_name().into(),
                    ..claim.clone()
                });
            }
            claims.push(claim);
        }
        Ok(claims)
    }

    /// Whether the Route would fit on an address on which nobody is: only then another one is of use.
    pub(super) fn fits_empty(
        self,
        pool: &Pool,
        family: Option<IpFamily>,
        ports: &[Option<u16>],
    ) -> bool {
        let count = u32::try_from(ports.len()).unwrap_or(u32::MAX);
        pool.service.is_some()
            && pool.capacity.ports.is_none_or(|most| count <= most)
            && self.has_targets(pool, family)
            && self.any_ports(ports, &[nowhere(pool, family)], pool).is_some()
    }

    /// Whether Envoy has a port for each listener, where the pool's addresses are announced by others.
    pub(super) fn has_targets(self, pool: &Pool, family: Option<IpFamily>) -> bool {
        let Some(service) = &pool.service else { return true };
        let (address, mut taken) = (nowhere(pool, family), BTreeSet::new());
        self.wish.listeners.iter().all(|listener| {
            let protocol = listener.protocol.transport();
            self.target(address, protocol, service.target_ports, &taken)
                .is_some_and(|port| taken.insert(port))
        })
    }

    fn target(
        self,
        address: IpAddr,
        protocol: Protocol,
        range: PortRange,
        taken: &BTreeSet<u16>,
    ) -> Option<u16> {
        let any = unspecified(address);
        let mut port = range.first;
        loop {
            port = self.claims.free_port(any, protocol, port)?;
            if port > range.last {
                return None;
            }
            if !taken.contains(&port) {
                return Some(port);
            }
            port = port.checked_add(1)?;
        }
    }
}

/// An address on which nobody is: one of those that are kept for documentation (RFC 5737, RFC 3849). `None`: of the
/// family of the pool's first address.
pub(super) fn nowhere(pool: &Pool, family: Option<IpFamily>) -> IpAddr {
    match family.or(pool.family()) {
        Some(IpFamily::V6) => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xffff]),
        Some(IpFamily::V4) | None => IpAddr::from([192, 0, 2, 255]),
    }
}
