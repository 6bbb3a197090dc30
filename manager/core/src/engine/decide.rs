//! What becomes of one Route: its address, its host names, what it serves.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_api::claim::HostKey;
use fairlead_api::condition::{Reason, Verdict};
use fairlead_api::few::Few;
use fairlead_api::http::ANY_HOST;
use fairlead_api::{RouteId, Uid};

use super::{Effects, Engine, Entry, Serving, binding};
use crate::allocate::{Allocation, Ask, Place, usable};
use crate::claims::{Claim, Claims, Leaving};
use crate::health::Wanted;
use crate::hosts::{HostClaim, Standing};
use crate::http::web::Served;
use crate::model::{Listener, Wish};
use crate::nodes::Nodes;
use crate::publish::Owner;
use crate::status::some;
use crate::translate::{members, resolve, translate, transport_socket};

impl Engine {
    pub(super) fn decide(&mut self, id: &RouteId, effects: &mut Effects) {
        let kept: Vec<_> = self.claims.promised_to(id).collect();
        self.decide_alone(id, effects);
        if kept.iter().any(|key| self.claims.is_open(key)) {
            // It takes another, or none: who was refused because of that may have it.
            self.retry_for_promises();
        }
    }

    fn decide_alone(&mut self, id: &RouteId, effects: &mut Effects) {
        let Some(entry) = self.routes.get_mut(id) else { return };
        if self.tentative.contains_key(id) {
            return;
        }
        self.waiting.over(id);
        let Some(tenant) = self.tenants.get(&id.tenant) else {
            let message = format!("the hub has no Tenant {:?}", id.tenant.as_str());
            entry.accepted = Some(Verdict::no(Reason::UnknownTenant, message));
            entry.undecided = false;
            self.claims.break_promises(id);
            self.stale.extend(self.claims.of(id).map(|claim| claim.key));
            return self.serve(id, None, effects);
        };
        let wish = match &entry.wish {
            Ok(wish) => wish.clone(),
            Err(verdict) => {
                entry.accepted = Some(verdict.clone());
                entry.undecided = false;
                self.claims.break_promises(id);
                let serving = entry.serving.clone();
                return self.serve(id, serving, effects);
            }
        };
        let (uid, seat) = (entry.meta.uid.clone(), entry.seat());
        let group = self.group_of(id, seat.is_some());
        let allocation = self.allocate(Ask {
            route: id,
            uid: &uid,
            wish: &wish,
            seat,
            group: &group,
            tenant,
            pools: &self.pools,
            claims: &self.claims,
            own_first: None,
        });
        self.claims.break_promises(id);
        self.balancers.satisfied(id);
        let undecided = matches!(allocation, Ok(Allocation::Claim(_) | Allocation::Wait { .. }));
        if let Some(entry) = self.routes.get_mut(id) {
            entry.undecided = undecided;
        }
        match allocation {
            Ok(Allocation::Held { place, surplus }) => {
                self.stale.extend(surplus);
                self.accept(id, &wish, place, effects);
            }
            Ok(Allocation::Wait { reclaim }) => {
                self.claims.promise(id, &reclaim);
                for key in reclaim {
                    self.resting.remove(&key);
                    self.stale.insert(key);
                }
                let serving = self.standing(id, &wish);
                self.waiting.add(id, None);
                self.serve(id, serving, effects);
            }
            // Until they are persisted, what was served before is served.
            Ok(Allocation::Claim(claims)) => self.claim_all(id, &wish, claims, effects),
            Ok(Allocation::Open { pool, family }) => {
                let both = wish.families.len() > 1 && !wish.prefer_dual_stack;
                self.balancers.want(&pool, family, both, id);
                let message = format!(
                    "pool {pool:?} asks the hub's own load balancer for one more address; see the Services \
                     of the manager's namespace"
                );
                self.refuse(id, &wish, Verdict::no(Reason::AddressPending, message), effects);
            }
            Err(verdict) => self.refuse(id, &wish, verdict, effects),
        }
    }

    /// Where the oldest other Route of a Route's group is. For one that is somewhere itself only the older
    /// ones count: they were there first.
    fn group_of(&self, id: &RouteId, seated: bool) -> Vec<(IpAddr, Box<str>)> {
        let holds = seated || self.claims.of(id).next().is_some();
        let age = |id: &RouteId| self.routes.get(id).map(|entry| (entry.meta.created, id.clone()));
        let mine = age(id);
        for other in self.groups.others(id) {
            if holds && age(other) > mine {
                break;
            }
            let stays =
                |claim: &&Claim| !claim.is_target() && self.claims.leaving(&claim.key).is_none();
            let claims = self.claims.of(other).filter(stays);
            let mut places: Vec<_> =
                claims.map(|claim| (claim.key.address, claim.pool.clone())).collect();
            let serving = self.routes.get(other).and_then(|entry| entry.serving.as_ref());
            for address in serving.iter().flat_map(|serving| &serving.addresses) {
                let pool = self.claims.on(*address).next().map(|claim| claim.pool.clone());
                places.extend(pool.map(|pool| (*address, pool)));
            }
            if !places.is_empty() {
                return places;
            }
        }
        Vec::new()
    }

    /// It holds all it needs, and is served there.
    fn accept(&mut self, id: &RouteId, wish: &Arc<Wish>, place: Place, effects: &mut Effects) {
        let Place { addresses, ports } = place;
        if let Some(why) = self.lacks_preferred(id, wish, &addresses) {
            self.waiting.add(id, Some(why));
        }
        let Some(entry) = self.routes.get_mut(id) else { return };
        entry.accepted = Some(Verdict::yes(Reason::Accepted));
        let serving = Serving { wish: with_ports(wish, &ports), addresses };
        for key in serving.keys() {
            // What it let go a moment ago, it has again.
            if self.claims.leaving(&key) == Some(Leaving::Resting) {
                self.claims.leave(&key, None);
                self.resting.remove(&key);
            }
        }
        let before = self.routes.get(id).and_then(|entry| entry.serving.as_ref());
        let moved = before.is_some_and(|before| before.addresses != serving.addresses);
        if moved {
            // They are where it was.
            let others: Vec<_> = self.groups.others(id).cloned().collect();
            for other in &others {
                self.touch(other);
            }
        }
        self.serve(id, Some(serving), effects);
    }

    /// Why it is served at one family only and would like another: no pool of its tenant's has that, or no room.
    fn lacks_preferred(&self, id: &RouteId, wish: &Wish, at: &[IpAddr]) -> Option<Reason> {
        // Who shares a port by names is at one address, whatever it prefers.
        let prefers = wish.prefer_dual_stack && !wish.is_http();
        let family = wish.families.get(at.len()).filter(|_| prefers)?;
        let mut pools = self.tenants.get(&id.tenant)?.pools.iter().filter(|name| {
            let asked = wish.pool.as_ref().is_none_or(|pool| pool == *name);
            asked && self.pools.get(*name).is_some_and(|pool| pool.has(*family))
        });
        Some(if pools.next().is_some() { Reason::PoolExhausted } else { Reason::NoPool })
    }

    /// What of a Route was served and is held still; also after a restart, when only the claims and the
    /// status tell of it.
    fn standing(&self, id: &RouteId, wish: &Arc<Wish>) -> Option<Serving> {
        let entry = self.routes.get(id)?;
        let before = entry.serving.clone().or_else(|| served_before(entry, wish))?;
        reduced(id, &entry.meta.uid, before, &self.claims)
    }

    /// It does not get what it wants. What was served is served on, as far as it is held. A part of what was
    /// never served is of no use, and others may want it.
    fn refuse(&mut self, id: &RouteId, wish: &Arc<Wish>, verdict: Verdict, effects: &mut Effects) {
        let serving = self.standing(id, wish);
        let too_many =
            verdict.reason == Reason::QuotaReached && self.too_many_endpoints(id, wish).is_some();
        let Some(entry) = self.routes.get_mut(id) else { return };
        self.waiting.add(id, Some(verdict.reason));
        if too_many {
            self.waiting.for_endpoints(id);
        }
        entry.accepted = Some(verdict);
        self.stale.extend(self.claims.of(id).map(|claim| claim.key));
        self.serve(id, serving, effects);
    }

    fn claim_all(
        &mut self,
        id: &RouteId,
        wish: &Arc<Wish>,
        claims: Vec<Claim>,
        effects: &mut Effects,
    ) {
        if self.leads {
            self.tentative.insert(id.clone(), claims.iter().map(|claim| claim.key).collect());
            for claim in &claims {
                self.claims.insert(claim.clone());
            }
            effects.claim.push((id.clone(), claims));
        }
        let serving = self.standing(id, wish);
        self.serve(id, serving, effects);
    }

    /// Translates what a Route serves and publishes what differs.
    fn serve(&mut self, id: &RouteId, serving: Option<Serving>, effects: &mut Effects) {
        let served = self.served(id, serving.as_ref(), effects);
        let count = serving.as_ref().map_or(0, |serving| self.count_endpoints(id, &serving.wish));
        self.count(id, count);
        self.check_health(id, serving.as_ref());
        let Some(entry) = self.routes.get_mut(id) else { return };
        let nodes = self.nodes.get(&id.tenant);
        let is_http = served.is_some();
        let resources = match &serving {
            Some(Serving { wish, addresses }) if !is_http => {
                let bind = |key| binding(&self.claims, &self.pools, &self.retired, key);
                let unhealthy = |cluster: &str| self.health.unhealthy(cluster);
                let translation = translate(wish, addresses, nodes, &bind, &unhealthy);
                entry.resolved = Some(translation.resolved);
                translation.resources
            }
            Some(Serving { wish, .. }) => {
                entry.resolved = Some(resolve(wish, nodes));
                Vec::new()
            }
            None => {
                entry.resolved = None;
                Vec::new()
            }
        };
        self.publisher.replace(&Owner::Route(id.clone()), &mut entry.published, resources);
        if entry.serving != serving {
            let old = std::mem::replace(&mut entry.serving, serving);
            self.sit_down(id);
            self.stand_up(id, old.as_ref());
        }
        self.web.serve(id, served);
        self.unreported.insert(id.clone());
    }

    /// Has the backends of a Route of layer 4 checked that ask for it.
    fn check_health(&mut self, id: &RouteId, serving: Option<&Serving>) {
        let none = Nodes::default();
        let nodes = self.nodes.get(&id.tenant).unwrap_or(&none);
        let wish = serving.map(|serving| &serving.wish).filter(|wish| !wish.is_http());
        let source = self.routes.get(id).map(|entry| &entry.source);
        let host = source.map(|source| format!("{}.{}", source.name, source.namespace));
        let mut wanted = BTreeMap::new();
        for backend in wish.iter().flat_map(|wish| &wish.backends) {
            let Some(check) = backend.upstream.health_check.clone() else { continue };
            let one = Wanted {
                tenant: id.tenant.clone(),
                check,
                host: host.clone().unwrap_or_default(),
                socket: transport_socket(&backend.upstream, None),
                endpoints: members(backend, nodes).collect(),
            };
            wanted.insert(backend.cluster.to_string(), one);
        }
        let Some(entry) = self.routes.get_mut(id) else { return };
        let now: Few<String> = wanted.keys().cloned().collect();
        for gone in
            std::mem::replace(&mut entry.checked, now).iter().filter(|c| !wanted.contains_key(*c))
        {
            self.health.set(gone, None, &[]);
        }
        let before = match &entry.serving {
            // Only a process that has just begun believes what is written.
            None => entry.seen.as_ref().map(|seen| seen.unhealthy.clone()).unwrap_or_default(),
            Some(_) => Box::default(),
        };
        for (cluster, one) in wanted {
            self.health.set(&cluster, Some(one), &before);
        }
    }

    /// A Route of layer 7 is counted where it is served, though it holds no claim of its own.
    fn sit_down(&mut self, id: &RouteId) {
        let serving = self.routes.get(id).and_then(|entry| entry.serving.as_ref());
        for address in serving.filter(|one| one.wish.is_http()).iter().flat_map(|s| &s.addresses) {
            self.claims.sit(id, *address);
        }
    }

    /// A Route is no longer served so: claims may go.
    pub(super) fn stand_up(&mut self, id: &RouteId, serving: Option<&Serving>) {
        let Some(serving) = serving else { return };
        self.stale.extend(serving.keys());
        if serving.wish.is_http() {
            let mut left = false;
            for address in &serving.addresses {
                left |= self.claims.rise(id, *address);
            }
            if left {
                // It held no claim of its own, and there is room where it was all the same.
                self.retry_waiting();
            }
        }
    }

    /// What layer 7 serves of a Route; `None` for one of layer 4, or that is not served.
    fn served(
        &mut self,
        id: &RouteId,
        serving: Option<&Serving>,
        effects: &mut Effects,
    ) -> Option<Box<Served>> {
        let http = serving.filter(|serving| serving.wish.is_http());
        let http = http.and_then(|serving| Some((&serving.wish, serving.addresses.first()?)));
        let entry = self.routes.get_mut(id)?;
        // What it wanted before keeps its text, which others share.
        let known = |key: HostKey| entry.wanted.get(&key).cloned().unwrap_or(key);
        let keys: Few<HostKey> = http
            .into_iter()
            .flat_map(|(wish, ip)| wish.hosts.iter().map(|one| HostKey::new(&one.hostname, *ip)))
            .map(known)
            .collect();
        let mut wanted = keys.clone();
        if let (Ok(wish), true) = (&entry.wish, self.tenants.contains_key(&id.tenant)) {
            // What a Route without an address holds by name, it keeps until it has one.
            let tenant = self.tenants.get(&id.tenant);
            let may = |name: &str| tenant.is_some_and(|tenant| tenant.may_publish(name));
            wanted.retain(|key| may(&key.hostname));
            let named = wish.hosts.iter().filter(|host| host.hostname != ANY_HOST);
            let named = named.filter(|host| may(&host.hostname));
            wanted.extend(
                named
                    .map(|host| HostKey { hostname: host.hostname.as_str().into(), address: None }),
            );
        }
        let before = std::mem::replace(&mut entry.wanted, wanted.clone());
        let (created, namespace) = (entry.meta.created, entry.source.namespace.as_str().into());
        for key in before.difference(&wanted) {
            self.hosts.unwant(key, created, id);
            self.stale_hosts.insert(key.clone());
        }
        for key in wanted.difference(&before) {
            self.hosts.want(key.clone(), created, id.clone());
        }
        let (hosts, conflicts) = self.claim_hosts(id, &keys, effects);
        let (wish, address) = http?;
        let entry = self.routes.get_mut(id)?;
        if !conflicts.is_empty() {
            for (why, _) in &conflicts {
                self.waiting.add(id, Some(*why));
            }
            if conflicts.len() == keys.len() && entry.accepted.as_ref().is_some_and(|v| v.holds) {
                let what: Vec<_> = conflicts.iter().map(|(_, what)| what.as_str()).collect();
                entry.accepted = Some(Verdict::no(conflicts[0].0, some(&what)));
            }
        }
        entry.claiming_hosts = hosts.len() + conflicts.len() < keys.len();
        entry.conflicts = conflicts;
        // What the tenant says of its own objects' age counts among these only.
        let created = entry.source.created;
        Some(Box::new(Served { created, namespace, wish: wish.clone(), address: *address, hosts }))
    }

    /// The host names that are the tenant's, claiming those that are free; and what is in the way of
    /// the others.
    fn claim_hosts(
        &mut self,
        id: &RouteId,
        keys: &Few<HostKey>,
        effects: &mut Effects,
    ) -> (Few<Arc<str>>, Vec<(Reason, String)>) {
        let (mut hosts, mut conflicts) = (Few::default(), Vec::new());
        for key in keys {
            if let Some(refused) = self.host_refused(&id.tenant, key) {
                conflicts.push(refused);
                continue;
            }
            match self.hosts.standing(key, &id.tenant) {
                Standing::Held => drop(hosts.insert(key.hostname.clone())),
                Standing::Free if self.leads => {
                    let (key, tenant) = (key.clone(), id.tenant.clone());
                    let claim = HostClaim { key, tenant, object: Uid::default() };
                    self.hosts.insert(claim.clone());
                    effects.claim_hosts.push(claim);
                }
                Standing::Wait | Standing::Free => {}
                Standing::Taken(by) => {
                    conflicts.push((Reason::HostnameConflict, conflict(key, &by)));
                }
            }
        }
        (hosts, conflicts)
    }
}

impl Entry {
    /// The address at which a Route of layer 7 is served, or was before this process began.
    fn seat(&self) -> Option<IpAddr> {
        let told = || self.seen.as_ref()?.addresses.first().copied();
        let serving = self.serving.as_ref().and_then(|serving| serving.addresses.first().copied());
        serving.or_else(told)
    }
}

fn conflict(key: &HostKey, by: &HostKey) -> String {
    let name = &key.hostname;
    if key == by {
        return format!("host {name:?} is another tenant's; use another, or ask the platform team");
    }
    format!("host {name:?} overlaps a name that is another tenant's; name hosts one by one")
}

/// What a Route's status says that it was served at, for a Route of which this process knows no more.
fn served_before(entry: &Entry, wish: &Arc<Wish>) -> Option<Serving> {
    let seen = entry.seen.as_ref()?;
    let addresses = seen.addresses.to_vec();
    let given = |name: &str| seen.ports.iter().find(|one| one.listener == name).map(|one| one.port);
    let port = |listener: &Listener| match listener.port {
        0 => given(&listener.name).unwrap_or(0),
        port => port,
    };
    let ports: Vec<_> = wish.listeners.iter().map(port).collect();
    (!addresses.is_empty()).then(|| Serving { wish: with_ports(wish, &ports), addresses })
}

/// A wish whose listeners have these ports.
fn with_ports(wish: &Arc<Wish>, ports: &[u16]) -> Arc<Wish> {
    if wish.listeners.iter().zip(ports).all(|(listener, port)| listener.port == *port) {
        return wish.clone();
    }
    let mut resolved = (**wish).clone();
    for (listener, port) in resolved.listeners.iter_mut().zip(ports) {
        listener.port = *port;
    }
    Arc::new(resolved)
}

/// The part of what was served that is held at all addresses; `None` when that is nothing.
fn reduced(id: &RouteId, uid: &Uid, before: Serving, claims: &Claims) -> Option<Serving> {
    let Serving { wish, addresses } = before;
    let held =
        |address: &IpAddr| wish.listeners.iter().any(|one| usable(claims, id, uid, *address, one));
    let addresses: Vec<_> = addresses.into_iter().filter(held).collect();
    let mine = |listener: &&Listener| {
        addresses.iter().all(|address| usable(claims, id, uid, *address, listener))
    };
    let listeners: Vec<_> = wish.listeners.iter().filter(mine).cloned().collect();
    if listeners.is_empty() || addresses.is_empty() {
        return None;
    }
    let whole = listeners.len() == wish.listeners.len();
    let wish = if whole { wish } else { Arc::new(Wish { listeners, ..(*wish).clone() }) };
    Some(Serving { wish, addresses })
}
