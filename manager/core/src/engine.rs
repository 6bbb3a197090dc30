//! The hub's model and what is dirty in it. A change costs what changed: only dirty Routes are
//! allocated and translated, only resources that differ are published.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_api::claim::ClaimKey;
use fairlead_api::condition::{PROGRAMMED, Reason, Verdict};
use fairlead_api::route::Source;
use fairlead_api::{
    AddressPoolSpec, AddressPoolStatus, NodeSetSpec, RouteId, RouteSpec, RouteStatus, TenantId,
};
use fairlead_xds::{Change, Event, Key};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::allocate::{Allocation, Held, allocate};
use crate::claims::{Claim, Claims};
use crate::fleet::{EnvoyId, Fleet};
use crate::model::{Listener, Meta, Tenant, Wish};
use crate::nodes::Nodes;
use crate::pool::Pool;
use crate::status::{Findings, status};
use crate::translate::translate;

/// What a shell has to carry out.
#[derive(Debug, Default, PartialEq)]
pub struct Effects {
    /// Resources for the fleet.
    pub changes: Vec<Change>,
    /// Claims to create, all or none of each Route's; [`Engine::claimed`] takes the outcome.
    pub claim: Vec<(RouteId, Vec<Claim>)>,
    /// Claims to delete, with the uid of the object that is meant.
    pub release: Vec<(ClaimKey, Box<str>)>,
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
    fleet: Fleet,
    owners: HashMap<Key, RouteId>,
    /// Routes to look at, the oldest first.
    dirty: BTreeSet<(i64, RouteId)>,
    /// Routes that the allocator refused: they try again when something was freed.
    waiting: BTreeSet<RouteId>,
    /// Routes whose status may have changed.
    unreported: BTreeSet<RouteId>,
    /// Claims that nobody needs.
    stale: BTreeSet<ClaimKey>,
    /// Resources whose Route is gone.
    withdrawn: BTreeSet<Key>,
    pools_changed: bool,
    complete: bool,
    leads: bool,
}

#[derive(Debug)]
struct Entry {
    meta: Meta,
    source: Source,
    wish: Result<Arc<Wish>, Verdict>,
    /// Claims of this Route are being created.
    claiming: bool,
    /// The last wish that was accepted, and its address: this is what the fleet serves, whatever
    /// became of later wishes.
    serving: Option<(Arc<Wish>, IpAddr)>,
    published: Vec<(Key, u64)>,
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
            claiming: false,
            serving: None,
            published: Vec::new(),
            accepted: None,
            resolved: None,
            seen: None,
            sent: None,
        });
        (entry.meta, entry.source, entry.wish, entry.seen) = (meta, source, wish, seen);
    }

    /// A Route is gone: so is what it published, and its claims may go.
    pub fn route_gone(&mut self, id: &RouteId) {
        let Some(entry) = self.routes.remove(id) else { return };
        self.waiting.remove(id);
        self.unreported.remove(id);
        self.dirty.remove(&(entry.meta.created, id.clone()));
        self.stale.extend(self.claims.of(id).map(|claim| claim.key));
        for (key, _) in entry.published {
            if self.owners.get(&key) == Some(id) {
                self.owners.remove(&key);
                self.withdrawn.insert(key);
            }
        }
    }

    /// A claim as the hub has it.
    pub fn claim(&mut self, claim: Claim) {
        let key = claim.key;
        // Whether its holder needs it is looked at once all Routes are known.
        if self.complete && !self.is_needed(&claim) {
            self.stale.insert(key);
        }
        self.touch(&claim.route);
        self.claims.insert(claim);
        self.pools_changed = true;
    }

    /// A claim is gone: others may have what it was for.
    pub fn claim_gone(&mut self, key: &ClaimKey) {
        self.releasing.remove(key);
        self.stale.remove(key);
        let Some(claim) = self.claims.remove(key) else { return };
        self.pools_changed = true;
        self.touch(&claim.route);
        self.retry_waiting();
    }

    fn is_needed(&self, claim: &Claim) -> bool {
        self.routes.get(&claim.route).is_some_and(|entry| entry.meta.uid == claim.uid)
    }

    /// The outcome of [`Effects::claim`]: the claims as they were persisted, or none of them.
    pub fn claimed(&mut self, id: &RouteId, persisted: Option<Vec<Claim>>) {
        let tentative: Vec<_> =
            self.claims.of(id).filter(|c| c.object.is_empty()).map(|c| c.key).collect();
        for key in tentative {
            self.claims.remove(&key);
        }
        if let Some(entry) = self.routes.get_mut(id) {
            entry.claiming = false;
        }
        for claim in persisted.into_iter().flatten() {
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
            if let Some(route) = self.owners.get(&event.key) {
                self.unreported.insert(route.clone());
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
        let gone = std::mem::take(&mut self.withdrawn).into_iter();
        effects
            .changes
            .extend(gone.filter(|key| !self.owners.contains_key(key)).map(Change::Remove));
        if self.leads {
            self.release(&mut effects);
            for id in std::mem::take(&mut self.unreported) {
                self.report(&id, now, &mut effects);
            }
            self.report_pools(&mut effects);
        }
        effects
    }

    fn decide(&mut self, id: &RouteId, effects: &mut Effects) {
        let Some(entry) = self.routes.get_mut(id) else { return };
        if entry.claiming {
            return;
        }
        let Some(tenant) = self.tenants.get(&id.tenant) else {
            let message = format!("the hub has no Tenant {:?}", id.tenant.as_str());
            entry.accepted = Some(Verdict::no(Reason::UnknownTenant, message));
            entry.serving = None;
            self.stale.extend(self.claims.of(id).map(|claim| claim.key));
            return self.publish(id, effects);
        };
        let wish = match &entry.wish {
            Ok(wish) => wish.clone(),
            Err(verdict) => {
                entry.accepted = Some(verdict.clone());
                return self.publish(id, effects);
            }
        };
        let held = Held { claims: &self.claims, releasing: &self.releasing };
        match allocate(id, &entry.meta.uid, &wish, tenant, &self.pools, held) {
            Ok(Allocation::Held { address, surplus }) => {
                entry.accepted = Some(Verdict::yes(Reason::Accepted));
                entry.serving = Some((wish, address));
                self.stale.extend(surplus);
            }
            // Until they are persisted, what was served before is served.
            Ok(Allocation::Claim(claims)) if self.leads => {
                entry.claiming = true;
                for claim in &claims {
                    self.claims.insert(claim.clone());
                }
                effects.claim.push((id.clone(), claims));
            }
            Ok(Allocation::Claim(_)) => {}
            Err(verdict) => {
                entry.accepted = Some(verdict);
                // What was served is served on, as far as it is held; also after a restart, when
                // only the claims and the status tell of it. A part of what was never served is of
                // no use, and others may want it.
                let before = entry.serving.take().or_else(|| served_before(entry, &wish));
                entry.serving =
                    before.and_then(|(wish, ip)| reduced(id, &entry.meta.uid, wish, ip, held));
                self.stale.extend(self.claims.of(id).map(|claim| claim.key));
                self.waiting.insert(id.clone());
            }
        }
        self.publish(id, effects);
    }

    /// Translates what a Route serves and publishes what differs.
    fn publish(&mut self, id: &RouteId, effects: &mut Effects) {
        let Some(entry) = self.routes.get_mut(id) else { return };
        let resources = match &entry.serving {
            Some((wish, address)) => {
                let translation = translate(id, wish, *address, self.nodes.get(&id.tenant));
                entry.resolved = Some(translation.resolved);
                translation.resources
            }
            None => {
                entry.resolved = None;
                Vec::new()
            }
        };
        let new: Vec<_> = resources.iter().map(|r| (r.key.clone(), r.version)).collect();
        let old = std::mem::replace(&mut entry.published, new);
        for resource in resources {
            self.owners.insert(resource.key.clone(), id.clone());
            if !old.contains(&(resource.key.clone(), resource.version)) {
                effects.changes.push(Change::Put(resource));
            }
        }
        for (key, _) in old {
            if !entry.published.iter().any(|(now, _)| *now == key)
                && self.owners.get(&key) == Some(id)
            {
                self.owners.remove(&key);
                self.withdrawn.insert(key);
            }
        }
        self.unreported.insert(id.clone());
    }

    fn release(&mut self, effects: &mut Effects) {
        for key in std::mem::take(&mut self.stale) {
            let Some(claim) = self.claims.get(&key) else { continue };
            if claim.object.is_empty() || (self.is_needed(claim) && self.is_wanted(claim)) {
                continue;
            }
            if self.releasing.insert(key) {
                effects.release.push((key, claim.object.clone()));
            }
        }
    }

    /// Whether the Route that holds a claim serves by it, or may come to.
    fn is_wanted(&self, claim: &Claim) -> bool {
        if !self.tenants.contains_key(&claim.route.tenant) {
            return false;
        }
        let Some(entry) = self.routes.get(&claim.route) else { return false };
        if entry.claiming || entry.wish.is_err() {
            return true;
        }
        entry.serving.as_ref().is_some_and(|(wish, address)| {
            let key = |listener: &Listener| (*address, listener.protocol, listener.port);
            let ClaimKey { address, protocol, port } = claim.key;
            wish.listeners.iter().any(|listener| key(listener) == (address, protocol, port))
        })
    }

    fn report(&mut self, id: &RouteId, now: &Time, effects: &mut Effects) {
        let Some(entry) = self.routes.get_mut(id) else { return };
        // Before the first verdict there is nothing to say.
        let Some(accepted) = entry.accepted.clone() else { return };
        let old = entry.sent.as_ref().or(entry.seen.as_ref());
        let programmed = programmed(entry, &accepted, &self.fleet, old);
        let findings = Findings {
            generation: entry.meta.generation,
            source: &entry.source,
            wish: entry.wish.as_deref().ok(),
            address: entry.serving.as_ref().map(|(_, address)| *address),
            accepted,
            resolved: entry.resolved.clone(),
            programmed,
        };
        let new = status(findings, old, now);
        if old != Some(&new) {
            entry.sent = Some(new.clone());
            effects.statuses.push((id.clone(), new));
        }
    }

    fn report_pools(&mut self, effects: &mut Effects) {
        if !std::mem::take(&mut self.pools_changed) {
            return;
        }
        for (name, pool) in &self.pools {
            let (used, claims) = self.claims.usage(name);
            let addresses = pool.size();
            let free = addresses.saturating_sub(used);
            // Kubernetes' integers are signed.
            let bounded = |n: u64| n.min(i64::MAX as u64);
            let status = AddressPoolStatus {
                addresses: bounded(addresses),
                used: bounded(used),
                free: bounded(free),
                claims: bounded(claims),
                problem: pool.problem.clone(),
            };
            if self.pool_statuses.get(name) != Some(&status) {
                self.pool_statuses.insert(name.clone(), status.clone());
                effects.pools.push((name.clone(), status));
            }
        }
    }
}

/// What a Route's status says that it was served at, for a Route of which this process knows no more.
fn served_before(entry: &Entry, wish: &Arc<Wish>) -> Option<(Arc<Wish>, IpAddr)> {
    let address = entry.seen.as_ref()?.addresses.first()?;
    Some((wish.clone(), address.parse().ok()?))
}

/// The part of a wish that is held; `None` when that is nothing.
fn reduced(
    id: &RouteId,
    uid: &str,
    wish: Arc<Wish>,
    address: IpAddr,
    held: Held<'_>,
) -> Option<(Arc<Wish>, IpAddr)> {
    let mine = |listener: &&Listener| {
        let Listener { protocol, port, backend: _ } = **listener;
        held.by(id, uid, &ClaimKey { address, protocol, port })
    };
    let listeners: Vec<_> = wish.listeners.iter().filter(mine).cloned().collect();
    if listeners.is_empty() {
        return None;
    }
    let whole = listeners.len() == wish.listeners.len();
    let wish = if whole { wish } else { Arc::new(Wish { listeners, ..(*wish).clone() }) };
    Some((wish, address))
}

/// Verdict on `Programmed`. It is about a generation: once all ready Envoys have acknowledged it, an
/// Envoy that joins or reconnects does not take that back (it is not ready before it has it).
fn programmed(
    entry: &Entry,
    accepted: &Verdict,
    fleet: &Fleet,
    old: Option<&RouteStatus>,
) -> Verdict {
    if !accepted.holds {
        let message = match entry.serving {
            Some(_) => "the last generation that was accepted is still served",
            None => "nothing is served",
        };
        return Verdict::no(Reason::NotAccepted, message);
    }
    let verdict = fleet.verdict(&entry.published);
    let was = old.and_then(|status| status.conditions.iter().find(|c| c.type_ == PROGRAMMED));
    let once = was.is_some_and(|condition| {
        condition.status == "True" && condition.observed_generation == Some(entry.meta.generation)
    });
    if verdict.reason == Reason::Pending && once {
        Verdict::yes(Reason::Programmed)
    } else {
        verdict
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
