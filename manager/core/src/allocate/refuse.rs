//! Why a Route gets nothing, in words that name the port, the pool and the way out.

use std::net::IpAddr;

use fairlead_api::claim::ClaimKey;
use fairlead_api::condition::{Reason, Verdict};
use fairlead_api::route::IpFamily;

use super::search::within;
use super::{Ask, Named, may_use};
use crate::model::{Listener, Wish};

pub(super) fn taken(key: &ClaimKey, why: &str) -> Verdict {
    let ClaimKey { address, protocol, port } = key;
    let message = format!("port {port}/{protocol} of {address} {why}; use another port or address");
    Verdict::no(Reason::PortTaken, message)
}

/// What was asked is not where the Route is.
pub(super) fn address_held(address: IpAddr, pool: &str, wanted: &str) -> Verdict {
    let message = format!(
        "it asks for {wanted} and holds {address} of pool {pool:?}, where it stays: clients know it. To \
         move, delete the object and create it again, or ask for an address by fairlead.dev/address"
    );
    Verdict::no(Reason::AddressHeld, message)
}

/// The group's address cannot take the Route.
pub(super) fn group_conflict(wish: &Wish, at: &IpAddr, why: &str) -> Verdict {
    let group = wish.group.as_deref().unwrap_or_default();
    let message = format!(
        "group {group:?} is at {at}, {why}; a group is on one address: change what is asked for, or \
         leave the group"
    );
    Verdict::no(Reason::GroupConflict, message)
}

impl Ask<'_> {
    /// No address of these pools fits.
    pub(super) fn exhausted(self, family: Option<IpFamily>, pools: &[Named<'_>]) -> Verdict {
        let open: Vec<_> = pools.iter().filter(|(_, pool)| !pool.draining).collect();
        let names = |of: &mut dyn Iterator<Item = &str>| {
            of.map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
        };
        if open.is_empty() {
            let names = names(&mut pools.iter().map(|(name, _)| *name));
            let message = format!(
                "pool {names} is being drained and gives out nothing new; ask for another pool"
            );
            return Verdict::no(Reason::PoolDraining, message);
        }
        let names = names(&mut open.iter().map(|(name, _)| *name));
        if open.iter().all(|(_, pool)| pool.service.is_none() && pool.size() == 0) {
            let message = format!(
                "pool {names} has no address that can be read; a platform administrator looks at its \
                 PROBLEM in kubectl get pools"
            );
            return Verdict::no(Reason::PoolExhausted, message);
        }
        if let Some(family) =
            family.filter(|f| !open.iter().any(|(_, p)| p.has(*f) || p.service.is_some()))
        {
            let message = format!(
                "pool {names} has no {family} addresses; ask for another pool, or set spec.ipFamilies or \
                 the annotation fairlead.dev/ip-families"
            );
            return Verdict::no(Reason::PoolExhausted, message);
        }
        if open.iter().all(|(_, pool)| !self.has_targets(pool, family)) {
            let message = format!(
                "pool {names} has no target port left; ask for another pool, or a platform administrator widens its \
                 spec.service.targetPorts"
            );
            return Verdict::no(Reason::PoolExhausted, message);
        }
        let fixed = || self.wish.listeners.iter().filter(|listener| listener.port > 0);
        let reserved =
            fixed().find(|l| open.iter().all(|(_, pool)| pool.reserved.contains(&l.port)));
        if let Some(l) = reserved {
            let message = format!(
                "port {}/{} is reserved by pool {names}; ask for another port",
                l.port,
                l.protocol.transport()
            );
            return Verdict::no(Reason::PoolExhausted, message);
        }
        let everywhere = |listener: &&Listener| {
            let (port, protocol) = (listener.port, listener.protocol.transport());
            let mut ranges = open.iter().flat_map(|(_, pool)| pool.ranges(family)).peekable();
            ranges.peek().is_some()
                && ranges.all(|(first, last)| {
                    !self.is_shared(listener, (first, last))
                        && self
                            .claims
                            .next_with(protocol, port, first)
                            .is_none_or(|free| free > last)
                })
        };
        if let Some(l) = fixed().find(everywhere) {
            let message = format!(
                "port {}/{} of every address in pool {names} is taken; ask for another port, or for more \
                 addresses",
                l.port,
                l.protocol.transport()
            );
            return Verdict::no(Reason::PoolExhausted, message);
        }
        let ports: Vec<_> = self.wish.listeners.iter().map(shown).collect();
        let full = |(name, pool): &&&Named<'_>| {
            pool.capacity.routes.is_some_and(|most| self.claims.most_routes(name) >= most)
        };
        let most = open.iter().find(full).and_then(|(_, pool)| pool.capacity.routes);
        let most =
            most.map(|most| format!(" (an address takes {most} Routes: maxRoutesPerAddress)"));
        let message = format!(
            "no address of pool {names} that this Route may be on has room for port {}{}; ask for another \
             port, or for more addresses",
            ports.join(" and "),
            most.unwrap_or_default(),
        );
        Verdict::no(Reason::PoolExhausted, message)
    }

    /// Whether the port of a listener is shared by host names at the first such address of a range: then it is not the
    /// port that is in the way.
    fn is_shared(self, listener: &Listener, (first, last): (u128, u128)) -> bool {
        let next = self.claims.next_shared(&self.route.tenant, first);
        let claim = within(next, last).and_then(|ip| self.claims.get(&listener.key(ip)));
        claim.is_some_and(|one| may_use(&one.holder, self.route, self.uid, listener.protocol))
    }
}

fn shown(listener: &Listener) -> String {
    match listener.port {
        0 => format!("any/{}", listener.protocol.transport()),
        port => format!("{port}/{}", listener.protocol.transport()),
    }
}
