//! Ports that nobody named, and ports at which Envoy listens for an address that others announce.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fairlead_api::PortRange;
use fairlead_api::claim::ClaimKey;
use fairlead_api::condition::{Reason, Verdict};
use fairlead_api::route::Protocol;

use super::{Ask, Spot};
use crate::claims::{Claim, Holder, unspecified};
use crate::model::Listener;

impl Ask<'_> {
    /// The ports of the listeners, in order: those that they name, or were given.
    pub(super) fn given_ports(self) -> Vec<Option<u16>> {
        let given = |listener: &Listener| {
            let mut mine = self.mine();
            mine.find(|claim| {
                *claim.listener == *listener.name
                    && claim.key.protocol == listener.protocol.transport()
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
        ports: &mut [Option<u16>],
        spots: &[Spot<'_>],
    ) -> Result<(), Verdict> {
        for index in 0..ports.len() {
            if ports[index].is_some() {
                continue;
            }
            let protocol = self.wish.listeners[index].protocol.transport();
            let listeners = self.wish.listeners.iter().zip(&*ports);
            let same = listeners.filter(|(listener, _)| listener.protocol.transport() == protocol);
            let mine: BTreeSet<u16> = same.filter_map(|(_, port)| *port).collect();
            ports[index] = Some(self.any_port(protocol, &mine, spots)?);
        }
        Ok(())
    }

    fn any_port(
        self,
        protocol: Protocol,
        mine: &BTreeSet<u16>,
        spots: &[Spot<'_>],
    ) -> Result<u16, Verdict> {
        let pool = spots.first().and_then(|spot| self.pools.get(spot.pool));
        let Some(pool) = pool else {
            return Err(Verdict::no(Reason::PoolExhausted, "the pool of its address is gone"));
        };
        let PortRange { first, last } = pool.any_ports;
        let mut port = first;
        while port <= last {
            // The first that is free at every address, or the next place to look.
            let next = spots
                .iter()
                .try_fold(port, |port, spot| self.claims.free_port(spot.address, protocol, port));
            let Some(next) = next else { break };
            if next == port && !mine.contains(&port) && !pool.reserved.contains(&port) {
                return Ok(port);
            }
            let after = if next == port { port.checked_add(1) } else { Some(next) };
            let Some(after) = after else { break };
            port = after;
        }
        let addresses: Vec<_> = spots.iter().map(|spot| spot.address.to_string()).collect();
        let message = format!(
            "no port from {first} to {last} of {} is free; name a port, or ask for another address",
            addresses.join(", ")
        );
        Err(Verdict::no(Reason::PoolExhausted, message))
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
                object: Box::default(),
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
                let alone = false;
                claims.push(Claim {
                    key: target,
                    target: None,
                    alone,
                    listener: Box::default(),
                    ..claim.clone()
                });
            }
            claims.push(claim);
        }
        Ok(claims)
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
