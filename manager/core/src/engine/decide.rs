//! What becomes of one Route: its address, its host names, what it serves.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_api::RouteId;
use fairlead_api::claim::HostKey;
use fairlead_api::condition::{Reason, Verdict};
use fairlead_api::http::ANY_HOST;

use super::{Effects, Engine, Entry};
use crate::allocate::{Allocation, Held, allocate};
use crate::claims::{Claim, Holder};
use crate::hosts::{HostClaim, Standing};
use crate::http::web::Served;
use crate::model::{Listener, Wish};
use crate::publish::Owner;
use crate::translate::{resolve, translate};

impl Engine {
    pub(super) fn decide(&mut self, id: &RouteId, effects: &mut Effects) {
        let Some(entry) = self.routes.get_mut(id) else { return };
        if self.tentative.contains_key(id) {
            return;
        }
        let Some(tenant) = self.tenants.get(&id.tenant) else {
            let message = format!("the hub has no Tenant {:?}", id.tenant.as_str());
            entry.accepted = Some(Verdict::no(Reason::UnknownTenant, message));
            self.stale.extend(self.claims.of(id).map(|claim| claim.key));
            return self.serve(id, None, effects);
        };
        let wish = match &entry.wish {
            Ok(wish) => wish.clone(),
            Err(verdict) => {
                entry.accepted = Some(verdict.clone());
                let serving = entry.serving.clone();
                return self.serve(id, serving, effects);
            }
        };
        let held = Held { claims: &self.claims, releasing: &self.releasing };
        let uid = &entry.meta.uid;
        match allocate(id, uid, &wish, entry.seat(), tenant, &self.pools, held) {
            Ok(Allocation::Held { address, surplus }) => {
                entry.accepted = Some(Verdict::yes(Reason::Accepted));
                self.stale.extend(surplus);
                self.serve(id, Some((wish, address)), effects);
            }
            Ok(Allocation::Wait) => {
                let serving = entry.serving.clone();
                self.waiting.insert(id.clone());
                self.serve(id, serving, effects);
            }
            // Until they are persisted, what was served before is served.
            Ok(Allocation::Claim(claims)) => self.claim_all(id, claims, effects),
            Err(verdict) => {
                entry.accepted = Some(verdict);
                // What was served is served on, as far as it is held; also after a restart, when
                // only the claims and the status tell of it. A part of what was never served is of
                // no use, and others may want it.
                let before = entry.serving.clone().or_else(|| served_before(entry, &wish));
                let serving = before.and_then(|(wish, ip)| reduced(id, uid, wish, ip, held));
                self.stale.extend(self.claims.of(id).map(|claim| claim.key));
                self.waiting.insert(id.clone());
                self.serve(id, serving, effects);
            }
        }
    }

    fn claim_all(&mut self, id: &RouteId, claims: Vec<Claim>, effects: &mut Effects) {
        if self.leads {
            self.tentative.insert(id.clone(), claims.iter().map(|claim| claim.key).collect());
            for claim in &claims {
                self.claims.insert(claim.clone());
            }
            effects.claim.push((id.clone(), claims));
        }
        let serving = self.routes.get(id).and_then(|entry| entry.serving.clone());
        self.serve(id, serving, effects);
    }

    /// Translates what a Route serves and publishes what differs.
    fn serve(&mut self, id: &RouteId, serving: Option<(Arc<Wish>, IpAddr)>, effects: &mut Effects) {
        let served = self.served(id, serving.as_ref(), effects);
        let Some(entry) = self.routes.get_mut(id) else { return };
        let nodes = self.nodes.get(&id.tenant);
        let is_http = served.is_some();
        let resources = match &serving {
            Some((wish, address)) if !is_http => {
                let translation = translate(id, wish, *address, nodes);
                entry.resolved = Some(translation.resolved);
                translation.resources
            }
            Some((wish, _)) => {
                entry.resolved = Some(resolve(wish, nodes));
                Vec::new()
            }
            None => {
                entry.resolved = None;
                Vec::new()
            }
        };
        self.publisher.replace(&Owner::Route(id.clone()), &mut entry.published, resources);
        if entry.serving != serving
            && let Some((wish, address)) = &entry.serving
        {
            self.stale.extend(wish.listeners.iter().map(|listener| listener.key(*address)));
        }
        entry.serving = serving;
        self.web.serve(id, served);
        self.unreported.insert(id.clone());
    }

    /// What layer 7 serves of a Route; `None` for one of layer 4, or that is not served.
    fn served(
        &mut self,
        id: &RouteId,
        serving: Option<&(Arc<Wish>, IpAddr)>,
        effects: &mut Effects,
    ) -> Option<Served> {
        let http = serving.filter(|(wish, _)| wish.is_http());
        let keys: BTreeSet<HostKey> = http
            .into_iter()
            .flat_map(|(wish, ip)| wish.hosts.iter().map(|one| HostKey::new(&one.hostname, *ip)))
            .collect();
        let entry = self.routes.get_mut(id)?;
        let mut wanted = keys.clone();
        if let (Ok(wish), true) = (&entry.wish, self.tenants.contains_key(&id.tenant)) {
            // What a Route without an address holds by name, it keeps until it has one.
            let named = wish.hosts.iter().filter(|host| host.hostname != ANY_HOST);
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
            self.waiting.insert(id.clone());
            if conflicts.len() == keys.len() && entry.accepted.as_ref().is_some_and(|v| v.holds) {
                let verdict = Verdict::no(Reason::HostnameConflict, conflicts.join("; "));
                entry.accepted = Some(verdict);
            }
        }
        entry.claiming_hosts = hosts.len() + conflicts.len() < keys.len();
        entry.conflicts = conflicts;
        // What the tenant says of its own objects' age counts among these only.
        let created = entry.source.created;
        Some(Served { created, namespace, wish: wish.clone(), address: *address, hosts })
    }

    /// The host names that are the tenant's, claiming those that are free; and what is in the way of
    /// the others.
    fn claim_hosts(
        &mut self,
        id: &RouteId,
        keys: &BTreeSet<HostKey>,
        effects: &mut Effects,
    ) -> (BTreeSet<Box<str>>, Vec<String>) {
        let (mut hosts, mut conflicts) = (BTreeSet::new(), Vec::new());
        for key in keys {
            match self.hosts.standing(key, &id.tenant) {
                Standing::Held => drop(hosts.insert(key.hostname.clone())),
                Standing::Free if self.leads => {
                    let (key, tenant) = (key.clone(), id.tenant.clone());
                    let claim = HostClaim { key, tenant, object: Box::default() };
                    self.hosts.insert(claim.clone());
                    effects.claim_hosts.push(claim);
                }
                Standing::Wait | Standing::Free => {}
                Standing::Taken(by) => conflicts.push(conflict(key, &by)),
            }
        }
        (hosts, conflicts)
    }

    pub(super) fn release(&mut self, effects: &mut Effects) {
        for key in std::mem::take(&mut self.stale) {
            let Some(claim) = self.claims.get(&key) else { continue };
            if claim.object.is_empty() || (self.is_needed(claim) && self.is_wanted(claim)) {
                continue;
            }
            if self.releasing.insert(key) {
                effects.release.push((key, claim.object.clone()));
            }
        }
        for key in std::mem::take(&mut self.stale_hosts) {
            if let Some(object) = self.hosts.release(&key) {
                effects.release_hosts.push((key, object));
            }
        }
    }

    /// Whether the Route that holds a claim serves by it, or may come to.
    fn is_wanted(&self, claim: &Claim) -> bool {
        let Holder::Route { route, uid: _ } = &claim.holder else { return true };
        if !self.tenants.contains_key(&route.tenant) {
            return false;
        }
        let Some(entry) = self.routes.get(route) else { return false };
        if self.tentative.contains_key(route) || entry.wish.is_err() {
            return true;
        }
        entry.serving.as_ref().is_some_and(|(wish, address)| {
            wish.listeners.iter().any(|listener| listener.key(*address) == claim.key)
        })
    }
}

impl Entry {
    /// The address at which a Route of layer 7 is served, or was before this process began.
    fn seat(&self) -> Option<IpAddr> {
        let told = || self.seen.as_ref()?.addresses.first()?.parse().ok();
        self.serving.as_ref().map(|(_, address)| *address).or_else(told)
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
    let mine = |listener: &&Listener| held.usable(id, uid, address, listener);
    let listeners: Vec<_> = wish.listeners.iter().filter(mine).cloned().collect();
    if listeners.is_empty() {
        return None;
    }
    let whole = listeners.len() == wish.listeners.len();
    let wish = if whole { wish } else { Arc::new(Wish { listeners, ..(*wish).clone() }) };
    Some((wish, address))
}
