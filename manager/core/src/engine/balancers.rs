//! The hub's Services of type `LoadBalancer`: one for each shared address of a pool whose addresses come
//! from the hub's own provider.
//!
//! A Service is opened when a Route fits on no address, one at a time for each pool and family; its ports are those
//! that are claimed on its address; it is deleted when none is, and nobody waits.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairlead_api::RouteId;
use fairlead_api::pool::ServiceTemplate;
use fairlead_api::route::{IpFamily, Protocol};

use crate::claims::Claims;
use crate::pool::Pool;

/// A Service as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balancer {
    /// Whose addresses it gives.
    pub pool: Box<str>,
    /// What it is like.
    pub template: ServiceTemplate,
    /// Of which family its address is to be; `None`: whichever the hub has first.
    pub family: Option<IpFamily>,
    /// Its ports, in order; none: its address was not claimed yet.
    pub ports: Vec<BalancerPort>,
}

/// A port of a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BalancerPort {
    /// Transport.
    pub protocol: Protocol,
    /// Where clients connect.
    pub port: u16,
    /// Where Envoy listens.
    pub target: u16,
}

/// A Service as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenBalancer {
    /// Whose addresses it gives.
    pub pool: Box<str>,
    /// The family that its spec says.
    pub family: Option<IpFamily>,
    /// Addresses that the provider gave it.
    pub addresses: Vec<IpAddr>,
    /// It is being deleted.
    pub going: bool,
}

/// The address that a Route waits for.
#[derive(Debug, Clone, Copy)]
struct Lack {
    /// Of this family; `None`: of any.
    family: Option<IpFamily>,
    /// It needs one of the other family as well.
    both: bool,
}

/// All of them, by name.
#[derive(Debug, Default)]
pub(super) struct Balancers {
    seen: BTreeMap<String, SeenBalancer>,
    /// As they were last sent to be written.
    sent: BTreeMap<String, Option<Balancer>>,
    /// Routes that wait for one more address.
    waiting: BTreeMap<Box<str>, BTreeMap<RouteId, Lack>>,
    /// Pools to look at.
    dirty: BTreeSet<Box<str>>,
}

impl Balancers {
    /// The addresses of a pool, in the order of its Services' names.
    pub(super) fn addresses(&self, pool: &str) -> Vec<IpAddr> {
        let of_pool = self.seen.iter().filter(|(_, seen)| *seen.pool == *pool);
        // One that is being deleted gives no address any more.
        let stays = of_pool.filter(|(name, _)| self.sent.get(*name) != Some(&None));
        stays.flat_map(|(_, seen)| seen.addresses.iter().copied()).collect()
    }

    /// A Service as it is now. The pools whose addresses changed come back.
    pub(super) fn see(&mut self, name: &str, seen: Option<SeenBalancer>) -> BTreeSet<Box<str>> {
        let old = match seen.clone() {
            Some(seen) => self.seen.insert(name.to_owned(), seen),
            None => {
                // Whoever deleted it: it is made anew while its address is claimed.
                self.sent.remove(name);
                self.seen.remove(name)
            }
        };
        if old == seen {
            return BTreeSet::new();
        }
        let pools: BTreeSet<_> = old.into_iter().chain(seen).map(|seen| seen.pool).collect();
        self.dirty.extend(pools.iter().cloned());
        pools
    }

    /// What another leader wrote is not known here.
    pub(super) fn forget_sent(&mut self) {
        self.sent.clear();
        self.dirty.extend(self.seen.values().map(|seen| seen.pool.clone()));
    }

    /// Something of a pool changed.
    pub(super) fn touch(&mut self, pool: &str) {
        self.dirty.insert(pool.into());
    }

    /// A Route needs one more address of a pool.
    pub(super) fn want(
        &mut self,
        pool: &str,
        family: Option<IpFamily>,
        both: bool,
        route: &RouteId,
    ) {
        let lack = Lack { family, both };
        self.waiting.entry(pool.into()).or_default().insert(route.clone(), lack);
        self.dirty.insert(pool.into());
    }

    /// A Route needs no more addresses.
    pub(super) fn satisfied(&mut self, route: &RouteId) {
        let Self { waiting, dirty, .. } = self;
        waiting.retain(|pool, routes| {
            if routes.remove(route).is_some() {
                dirty.insert(pool.clone());
            }
            !routes.is_empty()
        });
    }

    /// A Service could not be written.
    pub(super) fn not_written(&mut self, name: &str) {
        let seen = self.pool_of(name);
        let sent = self.sent.remove(name).flatten().map(|balancer| balancer.pool);
        self.dirty.extend(seen.into_iter().chain(sent));
    }

    /// Whose a Service is.
    pub(super) fn pool_of(&self, name: &str) -> Option<Box<str>> {
        self.seen.get(name).map(|seen| seen.pool.clone())
    }

    /// What is to be written. `more`: not all Routes were looked at that may need what there is.
    pub(super) fn step<'a>(
        &mut self,
        pools: &dyn Fn(&str) -> Option<&'a Pool>,
        claims: &Claims,
        more: bool,
    ) -> Vec<(String, Option<Balancer>)> {
        let mut writes = Vec::new();
        for name in std::mem::take(&mut self.dirty) {
            let template = pools(&name).and_then(|pool| pool.service.clone());
            let wanted = self.wanted(&name, template.as_ref(), claims, more);
            if more && (self.waiting.contains_key(&name) || !wanted.is_empty()) {
                self.dirty.insert(name);
            }
            for (service, balancer) in wanted {
                let there = self.seen.contains_key(&service);
                let sent = self.sent.get(&service);
                if sent == Some(&balancer) || (sent.is_none() && !there && balancer.is_none()) {
                    continue;
                }
                self.sent.insert(service.clone(), balancer.clone());
                writes.push((service, balancer));
            }
        }
        writes
    }

    /// The Services of a pool: those that there are, and one more of each family for which somebody waits.
    fn wanted(
        &self,
        pool: &str,
        template: Option<&ServiceTemplate>,
        claims: &Claims,
        more: bool,
    ) -> BTreeMap<String, Option<Balancer>> {
        if template.is_none() && self.seen.values().all(|seen| *seen.pool != *pool) {
            return BTreeMap::new();
        }
        let waiting = self.waiting.get(pool).filter(|_| template.is_some());
        let lacks = || waiting.into_iter().flat_map(BTreeMap::values);
        let mut lacking: BTreeSet<_> = lacks().map(|one| one.family).collect();
        // Who waits for an address of one family needs that of the other besides.
        let beside: BTreeSet<_> = lacks().filter(|one| one.both).map(|one| one.family).collect();
        let mut wanted = BTreeMap::new();
        let orphans = self.orphans(pool, claims);
        let balancer = |family, ports| {
            let template = template.cloned();
            template.map(|template| Balancer { pool: pool.into(), template, family, ports })
        };
        let mut coming: BTreeSet<_> = self.unseen(pool).collect();
        let mut unused: Vec<_> = self.unseen(pool).collect();
        for (name, seen) in self.seen.iter().filter(|(_, seen)| *seen.pool == *pool) {
            let ports = ports(seen, claims);
            let used = !ports.is_empty() || claims.is_promised_at(&seen.addresses);
            let sent = self.sent.get(name);
            if seen.going || (!used && sent == Some(&None)) {
                // Made anew it would have another address.
                wanted.insert(name.clone(), None);
                continue;
            }
            let asked = sent.map_or(seen.family, |sent| sent.as_ref().and_then(|one| one.family));
            let has = |family| seen.addresses.iter().any(|ip| IpFamily::fits(family, *ip));
            // What was asked for has not come, or not everybody has looked at it.
            let comes = !has(asked);
            if comes || (more && !used) {
                coming.insert(asked);
            }
            let family = asked.or(seen.addresses.first().map(|ip| IpFamily::of(*ip)));
            unused.extend((!used).then_some(family));
            // A new one is kept until its address came, and everybody looked at it who may not have yet. While claimed
            // addresses have no Service, none is given back: the provider may give them again.
            let hopes = (comes && lacking.contains(&asked))
                || more
                || beside.iter().any(|family| !has(*family));
            let kept = used || hopes || !orphans.is_empty();
            wanted.insert(name.clone(), if kept { balancer(family, ports) } else { None });
        }
        // What comes may be of any family if none was asked for; and who takes any takes what the hub gave before.
        let usual = self.addresses(pool).first().map(|ip| IpFamily::of(*ip));
        lacking.retain(|family| !coming.contains(&None) && !coming.contains(&family.or(usual)));
        if lacking.is_empty() {
            lacking.extend(without(orphans, unused).map(Some));
        }
        let most = template.map_or(0, |template| template.max_addresses);
        let free = (1..=most).map(|n| format!("fairlead-{pool}-{n}"));
        let free =
            free.filter(|name| !self.seen.contains_key(name) && !self.sent.contains_key(name));
        wanted.extend(free.zip(lacking).map(|(name, family)| (name, balancer(family, Vec::new()))));
        wanted
    }

    /// Families of Services that were sent to be written, and of which nothing was seen yet.
    fn unseen(&self, pool: &str) -> impl Iterator<Item = Option<IpFamily>> {
        let unseen = self.sent.iter().filter(|(name, _)| !self.seen.contains_key(*name));
        let sent = unseen.filter_map(|(_, sent)| sent.as_ref());
        sent.filter(move |one| *one.pool == *pool).map(|one| one.family)
    }

    /// Families of the claimed addresses that have no Service any more.
    fn orphans(&self, pool: &str, claims: &Claims) -> Vec<IpFamily> {
        let there = self.addresses(pool);
        claims.used(pool).filter(|ip| !there.contains(ip)).map(IpFamily::of).collect()
    }
}

/// Families of which there are more orphans than Services that nobody uses, one of which may get an orphan's address.
fn without(
    orphans: Vec<IpFamily>,
    mut unused: Vec<Option<IpFamily>>,
) -> impl Iterator<Item = IpFamily> {
    orphans.into_iter().filter(move |family| {
        let place = unused.iter().position(|one| one.is_none_or(|one| one == *family));
        place.map(|place| unused.swap_remove(place)).is_none()
    })
}

fn ports(seen: &SeenBalancer, claims: &Claims) -> Vec<BalancerPort> {
    let here = seen.addresses.iter().flat_map(|ip| claims.on(*ip));
    let port = |claim: &crate::claims::Claim| {
        let (protocol, port) = (claim.key.protocol, claim.key.port);
        claim.target.map(|target| BalancerPort { protocol, port, target })
    };
    let ports: BTreeSet<_> = here.filter_map(port).collect();
    ports.into_iter().collect()
}
