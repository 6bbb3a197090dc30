//! The hub's model and what is dirty in it. A change costs what changed: only dirty Routes are
//! allocated and translated, only resources that differ are published.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::service::health::v3::HealthCheckSpecifier;
use fairlead_api::claim::{ClaimKey, HostKey};
use fairlead_api::condition::{Reason, Verdict};
use fairlead_api::few::Few;
use fairlead_api::route::{Source, SourceKind};
use fairlead_api::{
    AddressPoolStatus, NodeSetSpec, NodeSetStatus, RouteId, RouteName, RouteSpec, RouteStatus,
    TenantId, Uid,
};
use fairlead_xds::Change;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::claims::{Claim, Claims, Holder};
use crate::fleet::{EnvoyId, Fleet};
use crate::health::Health;
use crate::hosts::{HostClaim, Hosts};
use crate::http::web::{Surroundings, Web};
use crate::http::{Secret, SecretId};
use crate::model::{Meta, NOBODY, Tenant, Wish};
use crate::nodes::Nodes;
use crate::owners::Owners;
use crate::pool::Pool;
use crate::publish::{Owner, Published, Publisher};
use crate::told::Told;
use crate::translate::Binding;
use crate::usage::Endpoints;

mod balancers;
mod claimed;
mod decide;
mod envoys;
mod groups;
mod isolation;
mod pace;
mod patience;
mod pools;
mod release;
mod report;
mod resting;
mod waiting;

use balancers::Balancers;
pub use balancers::{Balancer, BalancerPort, SeenBalancer};
use groups::Groups;
use isolation::Forbidden;
use pace::Pace;
use patience::Patience;
use resting::Resting;
use waiting::Waiting;

/// What a shell has to carry out.
#[derive(Debug, Default, PartialEq)]
pub struct Effects {
    /// Resources for the fleet.
    pub changes: Vec<Change>,
    /// Claims to create, all or none of each Route's; [`Engine::claimed`] takes the outcome.
    pub claim: Vec<(RouteId, Vec<Claim>)>,
    /// Claims to delete, with the uid of the object that is meant.
    pub release: Vec<(ClaimKey, Uid)>,
    /// Host names to claim; [`Engine::host_claimed`] takes the outcome.
    pub claim_hosts: Vec<HostClaim>,
    /// Host names to let go, with the uid of the object that is meant.
    pub release_hosts: Vec<(HostKey, Uid)>,
    /// Statuses to write.
    pub statuses: Vec<(RouteId, RouteStatus)>,
    /// Statuses of tenants' nodes to write.
    pub node_sets: Vec<(TenantId, NodeSetStatus)>,
    /// Statuses of pools to write.
    pub pools: Vec<(String, AddressPoolStatus)>,
    /// Pools that shall have the finalizer, or shall have it no more.
    pub guards: Vec<(String, bool)>,
    /// The hub's Services of pools to write; `None`: to delete.
    pub balancers: Vec<(String, Option<Balancer>)>,
    /// What Envoys shall check, each that is to be told anew.
    pub checks: Vec<(EnvoyId, HealthCheckSpecifier)>,
    /// Since when each Route was awaited that all Envoys have now, in milliseconds since 1970.
    pub programmed: Vec<i64>,
    /// When to step again though nothing happened, in seconds since 1970.
    pub wake: Option<i64>,
    /// More was to be decided than one step does: the next one is due at once.
    pub more: bool,
}

/// How often a step goes through what is dirty; what is left then is for the next.
const ROUNDS: usize = 4;
/// How many Routes a step looks at because of something that they have in common: a change of somebody else's waits
/// no longer than these take.
const SLICE: usize = 64;

/// The hub's model. One writer feeds it and carries its effects out.
#[derive(Debug, Default)]
pub struct Engine {
    tenants: BTreeMap<TenantId, Tenant>,
    pools: BTreeMap<String, Pool>,
    /// Pools that are gone while something of them is given out.
    retired: BTreeMap<String, Pool>,
    /// Addresses with claims that are not in their pools any more.
    strays: BTreeMap<String, BTreeSet<IpAddr>>,
    pool_statuses: BTreeMap<String, AddressPoolStatus>,
    guards: BTreeMap<String, Guard>,
    guards_sent: BTreeMap<String, bool>,
    node_sets: BTreeMap<TenantId, NodeSetSpec>,
    nodes: BTreeMap<TenantId, Nodes>,
    /// What is written of nodes on the hub.
    node_statuses: BTreeMap<TenantId, Option<NodeSetStatus>>,
    nodes_changed: BTreeSet<TenantId>,
    owners: Owners,
    forbidden: Forbidden,
    endpoints: Endpoints,
    routes: BTreeMap<RouteId, Box<Entry>>,
    claims: Claims,
    /// Claims that are kept for their tenants for a while, and until when.
    resting: Resting,
    groups: Groups,
    balancers: Balancers,
    hosts: Hosts,
    fleet: Fleet,
    health: Health,
    web: Web,
    publisher: Publisher,
    /// Routes to look at, the oldest first.
    dirty: BTreeSet<(i64, RouteId)>,
    /// Routes to look at because of something that many have in common, the oldest first.
    later: BTreeSet<(i64, RouteId)>,
    /// The last of them that was looked at: the next is whoever comes after it, so that all have their turn.
    turn: Option<(i64, RouteId)>,
    /// How many of these a step looks at; `None`: all, until each Route was looked at once.
    slice: Option<usize>,
    /// Routes that were refused an address or a host name: they try again when something was freed.
    waiting: Waiting,
    /// Routes whose status may have changed.
    unreported: BTreeSet<RouteId>,
    /// Routes that Envoys are about to have: nothing is said of that for a moment.
    patience: Patience,
    /// How often it is told that all is as it was.
    pace: Pace,
    /// Routes that are not programmed: what Envoys say of a listener that many share is about these.
    unprogrammed: BTreeSet<RouteId>,
    /// Routes whose claims are being created, and which.
    tentative: BTreeMap<RouteId, Vec<ClaimKey>>,
    /// Claims that nobody needs.
    stale: BTreeSet<ClaimKey>,
    /// Host names that nobody may need.
    stale_hosts: BTreeSet<HostKey>,
    pools_changed: bool,
    complete: bool,
    leads: bool,
}

/// What keeps a pool from going while something of it is given out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Guard {
    /// It has the finalizer.
    pub there: bool,
    /// Somebody deletes the pool.
    pub leaving: bool,
}

/// What is served of a Route, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Serving {
    /// With the ports that were given.
    wish: Arc<Wish>,
    addresses: Vec<IpAddr>,
}

impl Serving {
    /// The claims that it is served by.
    fn keys(&self) -> impl Iterator<Item = ClaimKey> {
        let listeners = |ip| self.wish.listeners.iter().map(move |one| one.key(ip));
        self.addresses.iter().copied().flat_map(listeners)
    }
}

#[derive(Debug)]
struct Entry {
    meta: Meta,
    source: Source,
    wish: Result<Arc<Wish>, Verdict>,
    /// The last wish that was accepted, and its addresses: this is what the fleet serves, whatever
    /// became of later wishes.
    serving: Option<Serving>,
    /// Layer 4 only: what belongs to this Route alone.
    published: Published,
    /// Its Clusters whose endpoints are checked.
    checked: Few<String>,
    /// Host names that it wants.
    wanted: Few<HostKey>,
    /// Host names that it cannot have, each with what to do about it.
    conflicts: Vec<(Reason, String)>,
    /// Host names are being claimed for it.
    claiming_hosts: bool,
    /// Its ports are being claimed, or given back for it: there is nothing to say of it yet.
    undecided: bool,
    accepted: Option<Verdict>,
    resolved: Option<Verdict>,
    /// The last generation that all Envoys had.
    programmed: Option<i64>,
    /// As the hub's object has it.
    seen: Option<Box<Told>>,
    /// As it was last sent to be written.
    sent: Option<Box<Told>>,
}

impl Entry {
    /// The status as the hub's object has it. What was sent and is there need not be kept twice. (A status that is sent,
    /// replaced and sent again before the hub's word of the first is written once more.)
    fn see(&mut self, seen: Option<Told>) {
        let seen = seen.map(Box::new);
        if self.sent == seen {
            self.sent = None;
        }
        self.seen = seen;
    }
}

impl Engine {
    /// Everything was read once. Nothing is decided before.
    pub fn complete(&mut self) {
        self.complete = true;
        self.sort_all_nodes();
        self.look_at_all();
    }

    /// Whether this process writes claims and statuses.
    pub fn lead(&mut self, leads: bool) {
        if leads && !self.leads {
            self.claims.forget_releases();
            self.resting = Resting::default();
            self.patience = Patience::default();
            self.pace = Pace::default();
            self.hosts.forget_releases();
            self.pool_statuses.clear();
            self.guards_sent.clear();
            self.balancers.forget_sent();
            for entry in self.routes.values_mut() {
                entry.sent = None;
            }
            self.leads = true;
            self.look_at_all();
        }
        self.leads = leads;
    }

    fn look_at_all(&mut self) {
        self.dirty =
            self.routes.iter().map(|(id, entry)| (entry.meta.created, id.clone())).collect();
        self.stale = self.claims.iter().map(|claim| claim.key).collect();
        self.stale_hosts = self.hosts.keys().cloned().collect();
        self.nodes_changed = self.nodes.keys().cloned().collect();
        self.pools_changed = true;
        self.touch_balancers();
    }

    /// A Tenant as it is now; `None`: it is gone.
    pub fn tenant(&mut self, id: &TenantId, tenant: Option<Tenant>) {
        if self.tenants.get(id) == tenant.as_ref() {
            return;
        }
        match tenant {
            Some(tenant) => drop(self.tenants.insert(id.clone(), tenant)),
            None => drop(self.tenants.remove(id)),
        }
        self.sort_nodes(id);
        self.touch_tenant(id);
    }

    /// Whether the hub has this tenant, and what it may have.
    pub fn find_tenant(&self, id: &TenantId) -> Option<&Tenant> {
        self.tenants.get(id)
    }

    fn touch_tenant(&mut self, tenant: &TenantId) {
        let mine = routes_of(&self.routes, tenant);
        self.later.extend(mine.map(|(id, entry)| (entry.meta.created, id.clone())));
    }

    /// A Route as it is now.
    pub fn route(&mut self, id: RouteId, meta: Meta, spec: RouteSpec, seen: Option<RouteStatus>) {
        let seen = seen.as_ref().map(Told::of);
        if let Some(entry) = self.routes.get_mut(&id)
            && entry.meta == meta
        {
            entry.see(seen);
            return;
        }
        if self.routes.get(&id).is_some_and(|old| old.meta.uid != meta.uid) {
            self.route_gone(&id);
        }
        let (source, wish) = match Wish::parse(&id, spec) {
            Ok((source, mut wish)) => {
                if let Some(Ok(old)) = self.routes.get(&id).map(|entry| &entry.wish) {
                    wish.share(old);
                }
                (source, Ok(Arc::new(wish)))
            }
            Err((source, verdict)) => (source, Err(verdict)),
        };
        self.dirty.insert((meta.created, id.clone()));
        let group = wish.as_ref().ok().and_then(|wish| wish.group.clone());
        let moved = self.groups.set(&id, meta.created, group);
        for id in &moved {
            self.touch(id);
        }
        let entry = self.routes.entry(id).or_insert_with(|| {
            Box::new(Entry {
                meta: meta.clone(),
                source: source.clone(),
                wish: Err(Verdict::no(Reason::Pending, "")),
                serving: None,
                published: Vec::new(),
                checked: Few::default(),
                wanted: Few::default(),
                conflicts: Vec::new(),
                claiming_hosts: false,
                undecided: false,
                accepted: None,
                resolved: None,
                programmed: None,
                seen: None,
                sent: None,
            })
        });
        (entry.meta, entry.source, entry.wish) = (meta, source, wish);
        entry.see(seen);
    }

    /// A Route is gone: so is what it published, and its claims may go.
    pub fn route_gone(&mut self, id: &RouteId) {
        let Some(mut entry) = self.routes.remove(id) else { return };
        self.waiting.over(id);
        self.unreported.remove(id);
        self.patience.over(id);
        self.unprogrammed.remove(id);
        let aged = (entry.meta.created, id.clone());
        self.dirty.remove(&aged);
        self.later.remove(&aged);
        let group = self.groups.set(id, entry.meta.created, None);
        for id in &group {
            self.touch(id);
        }
        self.balancers.satisfied(id);
        self.count(id, 0);
        if self.claims.promised_to(id).next().is_some() {
            self.retry_for_promises();
        }
        self.claims.break_promises(id);
        self.stale.extend(self.claims.of(id).map(|claim| claim.key));
        self.stand_up(id, entry.serving.as_ref());
        for cluster in &entry.checked {
            self.health.set(cluster, None, &[]);
        }
        for key in &entry.wanted {
            self.hosts.unwant(key, entry.meta.created, id);
        }
        self.stale_hosts.extend(entry.wanted);
        self.web.serve(id, None);
        self.publisher.withdraw(&Owner::Route(id.clone()), &mut entry.published);
    }

    /// A Secret as it is now; `None`: it is gone.
    pub fn secret(&mut self, id: &SecretId, secret: Option<Secret>) {
        self.web.secret(id, secret, &mut self.publisher);
    }

    /// A status could not be written; it is tried again with the next step.
    pub fn not_reported(&mut self, id: &RouteId) {
        if let Some(entry) = self.routes.get_mut(id) {
            entry.sent = None;
            self.unreported.insert(id.clone());
        }
    }

    fn touch(&mut self, id: &RouteId) {
        if let Some(entry) = self.routes.get(id) {
            self.dirty.insert((entry.meta.created, id.clone()));
        }
    }

    /// Decides on everything that is dirty.
    pub fn step(&mut self, now: &Time) -> Effects {
        let mut effects = Effects::default();
        if !self.complete {
            return effects;
        }
        let seconds = now.0.as_second();
        let known = self.health.due(now.0.as_millisecond());
        self.touch_checked(&known);
        self.stale.extend(self.resting.due(seconds));
        if self.leads {
            // Their tenants' other Routes can have them in this same step.
            let all = std::mem::take(&mut self.stale);
            let (orphans, rest) =
                all.into_iter().partition(|key| is_orphan(&self.claims, &self.routes, key));
            self.stale = rest;
            self.release(orphans, seconds, &mut effects);
        }
        // What one decides may be about another that was decided before it.
        let mut room = self.slice.replace(SLICE).unwrap_or(usize::MAX);
        for _ in 0..ROUNDS {
            while room > 0
                && let Some(one) = self.next_later()
            {
                room -= usize::from(self.dirty.insert(one));
            }
            for one in std::mem::take(&mut self.dirty) {
                self.later.remove(&one);
                self.decide(&one.1, &mut effects);
            }
        }
        effects.more = !self.later.is_empty();
        self.translate_web();
        effects.changes = self.publisher.take();
        effects.checks = self.health.take(now.0.as_millisecond());
        // Rounded up: not before its time.
        let second = |millis: i64| millis.div_euclid(1_000) + 1;
        let findings = self.health.next().map(second);
        effects.wake = findings;
        if self.leads {
            let stale = std::mem::take(&mut self.stale);
            self.release(stale, seconds, &mut effects);
            self.release_hosts(&mut effects);
            self.write_balancers(&mut effects);
            self.unreported.extend(self.patience.due(now.0.as_millisecond()));
            self.unreported.extend(self.pace.due(now.0.as_millisecond()));
            for id in std::mem::take(&mut self.unreported) {
                self.report(&id, now, &mut effects);
            }
            self.report_pools(&mut effects);
            self.report_nodes(&mut effects);
            let awaited = self.patience.next().into_iter().chain(self.pace.next()).map(second);
            effects.wake = self.resting.next().into_iter().chain(findings).chain(awaited).min();
        }
        effects
    }

    fn translate_web(&mut self) {
        let trusted_hops = |address: IpAddr| {
            // Pools may overlap: what counts is where the ports were taken from.
            let mut claims = self.claims.on(address).filter(|claim| {
                claim.route().is_none_or(|route| {
                    route.name.parts().is_some_and(|p| p.0 == SourceKind::Ingress)
                })
            });
            let pool = claims.find_map(|claim| self.pools.get(&*claim.pool));
            pool.map_or(0, |pool| pool.trusted_hops)
        };
        let bind = |key: ClaimKey| binding(&self.claims, &self.pools, &self.retired, key);
        let around = Surroundings { nodes: &self.nodes, trusted_hops: &trusted_hops, bind: &bind };
        let touched = self.web.step(&around, &mut self.publisher);
        self.unreported.extend(touched);
    }
}

/// The Routes of a tenant.
fn routes_of<'a>(
    routes: &'a BTreeMap<RouteId, Box<Entry>>,
    tenant: &'a TenantId,
) -> impl Iterator<Item = (&'a RouteId, &'a Box<Entry>)> {
    routes.range(first_of(tenant)..).take_while(move |(id, _)| id.tenant == *tenant)
}

/// A tenant's Routes, in order, begin here.
fn first_of(tenant: &TenantId) -> RouteId {
    RouteId { tenant: tenant.clone(), name: RouteName::of_object("") }
}

/// Whether the Route that a port is claimed for is gone.
fn is_orphan(claims: &Claims, routes: &BTreeMap<RouteId, Box<Entry>>, key: &ClaimKey) -> bool {
    let claim = claims.get(key).filter(|claim| !claim.is_target());
    claim.is_some_and(|claim| match &claim.holder {
        Holder::Route { route, uid } => {
            routes.get(route).is_none_or(|entry| entry.meta.uid != *uid)
        }
        Holder::Shared { .. } => false,
    })
}

/// Where Envoy listens for a claimed port, and who may be in front of it.
fn binding(
    claims: &Claims,
    pools: &BTreeMap<String, Pool>,
    retired: &BTreeMap<String, Pool>,
    key: ClaimKey,
) -> Binding {
    let claim = claims.get(&key);
    let pool = claim.and_then(|claim| pools.get(&*claim.pool).or(retired.get(&*claim.pool)));
    let at = claim.and_then(Claim::target_key).unwrap_or(key);
    // Who may be in front of a pool that nobody knows, nobody knows.
    let proxies = pool.map_or_else(|| vec![NOBODY], |pool| pool.proxies.clone());
    Binding { address: at.address, port: at.port, proxies }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
