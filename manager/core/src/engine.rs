//! The hub's model and what is dirty in it. A change costs what changed: only dirty Routes are
//! allocated and translated, only resources that differ are published.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_api::claim::{ClaimKey, HostKey};
use fairlead_api::condition::{Reason, Verdict};
use fairlead_api::route::{Source, SourceKind};
use fairlead_api::{
    AddressPoolSpec, AddressPoolStatus, NodeSetSpec, RouteId, RouteSpec, RouteStatus, TenantId,
};
use fairlead_xds::{Change, Event};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::claims::{Claim, Claims, Holder};
use crate::fleet::{EnvoyId, Fleet};
use crate::hosts::{HostClaim, Hosts};
use crate::http::web::{Surroundings, Web};
use crate::http::{Secret, SecretId};
use crate::model::{Meta, Tenant, Wish};
use crate::nodes::Nodes;
use crate::pool::Pool;
use crate::publish::{Owner, Published, Publisher};

mod decide;
mod report;

/// What a shell has to carry out.
#[derive(Debug, Default, PartialEq)]
pub struct Effects {
    /// Resources for the fleet.
    pub changes: Vec<Change>,
    /// Claims to create, all or none of each Route's; [`Engine::claimed`] takes the outcome.
    pub claim: Vec<(RouteId, Vec<Claim>)>,
    /// Claims to delete, with the uid of the object that is meant.
    pub release: Vec<(ClaimKey, Box<str>)>,
    /// Host names to claim; [`Engine::host_claimed`] takes the outcome.
    pub claim_hosts: Vec<HostClaim>,
    /// Host names to let go, with the uid of the object that is meant.
    pub release_hosts: Vec<(HostKey, Box<str>)>,
    /// Statuses to write.
    pub statuses: Vec<(RouteId, RouteStatus)>,
    /// Statuses of pools to write.
    pub pools: Vec<(String, AddressPoolStatus)>,
}

/// The hub's model. One writer feeds it and carries its effects out.
#[derive(Debug, Default)]
pub struct Engine {
    tenants: BTreeMap<TenantId, Tenant>,
    pools: BTreeMap<String, Pool>,
    pool_statuses: BTreeMap<String, AddressPoolStatus>,
    node_sets: BTreeMap<TenantId, NodeSetSpec>,
    nodes: BTreeMap<TenantId, Nodes>,
    routes: BTreeMap<RouteId, Entry>,
    claims: Claims,
    releasing: HashSet<ClaimKey>,
    hosts: Hosts,
    fleet: Fleet,
    web: Web,
    publisher: Publisher,
    /// Routes to look at, the oldest first.
    dirty: BTreeSet<(i64, RouteId)>,
    /// Routes that the allocator refused, or a host name: they try again when something was freed.
    waiting: BTreeSet<RouteId>,
    /// Routes whose status may have changed.
    unreported: BTreeSet<RouteId>,
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

#[derive(Debug)]
struct Entry {
    meta: Meta,
    source: Source,
    wish: Result<Arc<Wish>, Verdict>,
    /// The last wish that was accepted, and its address: this is what the fleet serves, whatever
    /// became of later wishes.
    serving: Option<(Arc<Wish>, IpAddr)>,
    /// Layer 4 only: what belongs to this Route alone.
    published: Published,
    /// Host names that it wants.
    wanted: BTreeSet<HostKey>,
    /// Host names that are another tenant's, each with what to do about it.
    conflicts: Vec<String>,
    /// Host names are being claimed for it.
    claiming_hosts: bool,
    accepted: Option<Verdict>,
    resolved: Option<Verdict>,
    /// As the hub's object has it.
    seen: Option<RouteStatus>,
    /// As it was last sent to be written.
    sent: Option<RouteStatus>,
}

impl Engine {
    /// Everything was read once. Nothing is decided before.
    pub fn complete(&mut self) {
        self.complete = true;
        self.look_at_all();
    }

    /// Whether this process writes claims and statuses.
    pub fn lead(&mut self, leads: bool) {
        if leads && !self.leads {
            self.releasing.clear();
            self.hosts.forget_releases();
            self.pool_statuses.clear();
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
        self.pools_changed = true;
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

    /// A pool as it is now; `None`: it is gone.
    pub fn pool(&mut self, name: &str, spec: Option<AddressPoolSpec>) {
        let pool = spec.map(Pool::parse);
        if self.pools.get(name) == pool.as_ref() {
            return;
        }
        match pool {
            Some(pool) => drop(self.pools.insert(name.to_owned(), pool)),
            None => {
                self.pools.remove(name);
                self.pool_statuses.remove(name);
            }
        }
        self.pools_changed = true;
        self.web.touch_fronts();
        self.retry_waiting();
    }

    /// A tenant's nodes as they are now; `None`: it has told of none.
    pub fn nodes(&mut self, id: &TenantId, spec: Option<NodeSetSpec>) {
        if self.node_sets.get(id) == spec.as_ref() {
            return;
        }
        match spec {
            Some(spec) => drop(self.node_sets.insert(id.clone(), spec)),
            None => drop(self.node_sets.remove(id)),
        }
        self.sort_nodes(id);
        self.touch_tenant(id);
    }

    fn sort_nodes(&mut self, id: &TenantId) {
        let tenant = self.tenants.get(id);
        let allowed = tenant.and_then(|tenant| tenant.node_cidrs.as_deref());
        match self.node_sets.get(id) {
            Some(spec) => drop(self.nodes.insert(id.clone(), Nodes::parse(spec.clone(), allowed))),
            None => drop(self.nodes.remove(id)),
        }
    }

    fn touch_tenant(&mut self, tenant: &TenantId) {
        let mine = self.routes.iter().filter(|(id, _)| id.tenant == *tenant);
        self.dirty.extend(mine.map(|(id, entry)| (entry.meta.created, id.clone())));
    }

    /// A Route as it is now.
    pub fn route(&mut self, id: RouteId, meta: Meta, spec: RouteSpec, seen: Option<RouteStatus>) {
        if let Some(entry) = self.routes.get_mut(&id)
            && entry.meta == meta
        {
            entry.seen = seen;
            return;
        }
        if self.routes.get(&id).is_some_and(|old| old.meta.uid != meta.uid) {
            self.route_gone(&id);
        }
        let (source, wish) = match Wish::parse(spec) {
            Ok((source, wish)) => (source, Ok(Arc::new(wish))),
            Err((source, verdict)) => (source, Err(verdict)),
        };
        self.dirty.insert((meta.created, id.clone()));
        let entry = self.routes.entry(id).or_insert_with(|| Entry {
            meta: meta.clone(),
            source: source.clone(),
            wish: Err(Verdict::no(Reason::Pending, "")),
            serving: None,
            published: Vec::new(),
            wanted: BTreeSet::new(),
            conflicts: Vec::new(),
            claiming_hosts: false,
            accepted: None,
            resolved: None,
            seen: None,
            sent: None,
        });
        (entry.meta, entry.source, entry.wish, entry.seen) = (meta, source, wish, seen);
    }

    /// A Route is gone: so is what it published, and its claims may go.
    pub fn route_gone(&mut self, id: &RouteId) {
        let Some(mut entry) = self.routes.remove(id) else { return };
        self.waiting.remove(id);
        self.unreported.remove(id);
        self.unprogrammed.remove(id);
        self.dirty.remove(&(entry.meta.created, id.clone()));
        self.stale.extend(self.claims.of(id).map(|claim| claim.key));
        if let Some((wish, address)) = &entry.serving {
            self.stale.extend(wish.listeners.iter().map(|listener| listener.key(*address)));
        }
        for key in &entry.wanted {
            self.hosts.unwant(key, entry.meta.created, id);
        }
        self.stale_hosts.extend(entry.wanted);
        self.web.serve(id, None);
        self.publisher.replace(&Owner::Route(id.clone()), &mut entry.published, Vec::new());
    }

    /// A Secret as it is now; `None`: it is gone.
    pub fn secret(&mut self, id: &SecretId, secret: Option<Secret>) {
        self.web.secret(id, secret, &mut self.publisher);
    }

    /// A claim as the hub has it.
    pub fn claim(&mut self, claim: Claim) {
        let key = claim.key;
        // Whether its holder needs it is looked at once all Routes are known.
        if self.complete && !self.is_needed(&claim) {
            self.stale.insert(key);
        }
        self.touch_holder(&claim);
        self.claims.insert(claim);
        self.pools_changed = true;
    }

    fn touch_holder(&mut self, claim: &Claim) {
        match claim.route() {
            Some(route) => self.touch(&route.clone()),
            None => {
                let seated: Vec<_> = self.web.seated(claim.key.address).cloned().collect();
                for id in &seated {
                    self.touch(id);
                }
                self.retry_waiting();
            }
        }
    }

    /// A claim is gone: others may have what it was for.
    pub fn claim_gone(&mut self, key: &ClaimKey) {
        self.releasing.remove(key);
        self.stale.remove(key);
        let Some(claim) = self.claims.remove(key) else { return };
        self.pools_changed = true;
        self.touch_holder(&claim);
        self.retry_waiting();
    }

    fn is_needed(&self, claim: &Claim) -> bool {
        match &claim.holder {
            Holder::Route { route, uid } => {
                self.routes.get(route).is_some_and(|entry| entry.meta.uid == *uid)
            }
            Holder::Shared { .. } => {
                // Whoever is claiming now may be about to sit down there.
                self.tentative.values().flatten().any(|key| *key == claim.key)
                    || self.web.is_seated(claim.key.address)
            }
        }
    }

    /// A host name's claim as the hub has it.
    pub fn host(&mut self, claim: HostClaim) {
        let key = claim.key.clone();
        self.hosts.insert(claim);
        self.stale_hosts.insert(key.clone());
        self.touch_hosts(&key);
    }

    /// The outcome of [`Effects::claim_hosts`]: the claim that is there now, perhaps another's; `None`:
    /// there is none.
    pub fn host_claimed(&mut self, key: &HostKey, claim: Option<HostClaim>) {
        // What was only about to be claimed.
        self.hosts.remove(key, "");
        match claim {
            Some(claim) => self.host(claim),
            None => self.touch_hosts(key),
        }
    }

    /// A host name's claim is gone: others may have it.
    pub fn host_released(&mut self, key: &HostKey, object: &str) {
        if self.hosts.remove(key, object) {
            self.touch_hosts(key);
            // A name that overlaps may be free now.
            self.retry_waiting();
        }
    }

    /// A host name's claim could not be deleted; it is tried again with the next step.
    pub fn host_not_released(&mut self, key: &HostKey) {
        self.hosts.not_released(key);
        self.touch_hosts(key);
        self.stale_hosts.insert(key.clone());
    }

    fn touch_hosts(&mut self, key: &HostKey) {
        self.dirty.extend(self.hosts.wanting(key).cloned());
    }

    /// The outcome of [`Effects::claim`]: the claims as they were persisted, or none of them.
    pub fn claimed(&mut self, id: &RouteId, persisted: Option<Vec<Claim>>) {
        for key in self.tentative.remove(id).unwrap_or_default() {
            if self.claims.get(&key).is_some_and(|claim| claim.object.is_empty()) {
                self.claims.remove(&key);
            }
        }
        for claim in persisted.into_iter().flatten() {
            // Looked at again: the Route may be gone by now.
            self.stale.insert(claim.key);
            self.claim(claim);
        }
        self.touch(id);
        self.retry_waiting();
    }

    /// A claim's object was deleted, or was gone already.
    pub fn released(&mut self, key: &ClaimKey, object: &str) {
        if self.claims.get(key).is_some_and(|claim| *claim.object == *object) {
            self.claim_gone(key);
        }
    }

    /// A claim could not be deleted; it is tried again with the next step.
    pub fn not_released(&mut self, key: &ClaimKey) {
        self.releasing.remove(key);
        self.stale.insert(*key);
    }

    /// A status could not be written; it is tried again with the next step.
    pub fn not_reported(&mut self, id: &RouteId) {
        if let Some(entry) = self.routes.get_mut(id) {
            entry.sent = None;
            self.unreported.insert(id.clone());
        }
    }

    /// A pool's status could not be written; it is tried again with the next step.
    pub fn pool_not_reported(&mut self, name: &str) {
        self.pool_statuses.remove(name);
        self.pools_changed = true;
    }

    /// An Envoy's pod is ready, or is not.
    pub fn envoy_ready(&mut self, envoy: &EnvoyId, ready: bool) {
        if self.fleet.set_ready(envoy, ready) {
            self.unreported.extend(self.routes.keys().cloned());
        }
    }

    /// An Envoy opened a stream.
    pub fn envoy_connected(&mut self, envoy: &EnvoyId, stream: u64) {
        self.fleet.connected(envoy, stream);
    }

    /// An Envoy's stream ended.
    pub fn envoy_disconnected(&mut self, envoy: &EnvoyId, stream: u64) {
        self.fleet.disconnected(envoy, stream);
    }

    /// What an Envoy made of resources.
    pub fn envoy_said(&mut self, envoy: &EnvoyId, stream: u64, events: &[Event]) {
        for event in events {
            self.fleet.observe(envoy, stream, event);
            let Some(owner) = self.publisher.owner(&event.key) else { continue };
            match owner.clone() {
                Owner::Route(id) => drop(self.unreported.insert(id)),
                Owner::Site(key) => {
                    self.web.observe(&key, &event.key, &event.outcome);
                    self.unreported.extend(self.web.members(&key).cloned());
                }
                Owner::Upstream(name) => self.unreported.extend(self.web.users(&name).cloned()),
                Owner::Front(address) => {
                    let open = |id: &&RouteId| self.unprogrammed.contains(*id);
                    self.unreported.extend(self.web.seated(address).filter(open).cloned());
                }
                Owner::Secret(id) => {
                    self.unreported.extend(self.web.observe_secret(&id, &event.outcome));
                }
            }
        }
    }

    fn touch(&mut self, id: &RouteId) {
        if let Some(entry) = self.routes.get(id) {
            self.dirty.insert((entry.meta.created, id.clone()));
        }
    }

    fn retry_waiting(&mut self) {
        for id in std::mem::take(&mut self.waiting) {
            self.touch(&id);
        }
    }

    /// Decides on everything that is dirty.
    pub fn step(&mut self, now: &Time) -> Effects {
        let mut effects = Effects::default();
        if !self.complete {
            return effects;
        }
        for (_, id) in std::mem::take(&mut self.dirty) {
            self.decide(&id, &mut effects);
        }
        self.translate_web();
        effects.changes = self.publisher.take();
        if self.leads {
            self.release(&mut effects);
            for id in std::mem::take(&mut self.unreported) {
                self.report(&id, now, &mut effects);
            }
            self.report_pools(&mut effects);
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
        let around = Surroundings { nodes: &self.nodes, trusted_hops: &trusted_hops };
        let touched = self.web.step(&around, &mut self.publisher);
        self.unreported.extend(touched);
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
