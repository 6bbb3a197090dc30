//! What is told of Routes and pools.

use std::net::IpAddr;

use fairlead_api::condition::{Reason, Verdict};
use fairlead_api::few::Few;
use fairlead_api::{AddressPoolStatus, RouteId};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Effects, Engine, Entry};
use crate::health::Health;
use crate::http::web::Web;
use crate::pool::Pool;
use crate::status::{Findings, status};
use crate::told::Told;

impl Engine {
    pub(super) fn report(&mut self, id: &RouteId, now: &Time, effects: &mut Effects) {
        let Some(entry) = self.routes.get_mut(id) else { return };
        if entry.undecided {
            return;
        }
        // Before the first verdict there is nothing to say.
        let Some(accepted) = entry.accepted.clone() else { return };
        let old = entry.sent.as_deref().or(entry.seen.as_deref());
        let verdict = match self.web.rejection(id) {
            Some(text) => Verdict::no(Reason::Rejected, text),
            None if entry.claiming_hosts => {
                Verdict::no(Reason::Pending, "host names are being claimed")
            }
            None if entry.published.is_empty() => self.fleet.verdict(&self.web.published(id)),
            None => self.fleet.verdict(&entry.published),
        };
        let programmed = programmed(entry, &accepted, verdict, old);
        if programmed.holds {
            // Of which it may be told later.
            entry.programmed = Some(entry.meta.generation);
            self.unprogrammed.remove(id);
        } else {
            self.unprogrammed.insert(id.clone());
        }
        if programmed.reason == Reason::Pending {
            if !self.patience.is_over(id, now.0.as_millisecond()) {
                // It takes Envoys a moment, and each word costs a write here and in the tenant's cluster.
                return;
            }
        } else {
            let since = self.patience.over(id);
            effects.programmed.extend(since.filter(|_| programmed.holds));
        }
        let resolved = entry.resolved.clone().map(|verdict| certified(verdict, &self.web, id));
        let on = entry.serving.iter().flat_map(|serving| &serving.addresses);
        let pool = |ip: &IpAddr| self.claims.on(*ip).next().map(|claim| claim.pool.clone());
        let draining = on
            .filter_map(pool)
            .find(|pool| self.pools.get(&**pool).is_some_and(|pool| pool.draining));
        let findings = Findings {
            generation: entry.meta.generation,
            source: &entry.source,
            wish: entry.wish.as_deref().ok(),
            addresses: entry.serving.as_ref().map_or(&[], |serving| &serving.addresses),
            served: entry.serving.as_ref().map(|serving| &*serving.wish),
            draining,
            healthy: healthy(&self.health, &entry.checked, old),
            unhealthy: self.health.told(entry.checked.iter()),
            accepted,
            resolved,
            programmed,
            conflicts: &entry.conflicts,
            shadowed: self.web.shadowed(id),
        };
        let new = status(findings, old, now);
        let told = Told::of(&new);
        if old == Some(&told) {
            return;
        }
        let is_news = old.is_none_or(|old| told.is_news(old));
        if is_news || self.pace.allows(id, now.0.as_millisecond()) {
            entry.sent = Some(Box::new(told));
            effects.statuses.push((id.clone(), new));
        }
    }

    pub(super) fn report_pools(&mut self, effects: &mut Effects) {
        if !std::mem::take(&mut self.pools_changed) {
            return;
        }
        let guards = &self.guards;
        self.guards_sent.retain(|name, _| guards.contains_key(name));
        for (name, pool) in &self.pools {
            let (used, claims) = self.claims.usage(name);
            if let Some(guard) = self.guards.get(name) {
                let wanted = !guard.leaving || claims > 0;
                if wanted != guard.there && self.guards_sent.get(name) != Some(&wanted) {
                    self.guards_sent.insert(name.clone(), wanted);
                    effects.guards.push((name.clone(), wanted));
                }
            }
            let gone = self.strays.get(name).map_or(0, |strays| strays.len() as u64);
            let addresses = pool.size();
            let free = addresses.saturating_sub(used.saturating_sub(gone));
            // Kubernetes' integers are signed.
            let bounded = |n: u64| n.min(i64::MAX as u64);
            let status = AddressPoolStatus {
                addresses: bounded(addresses),
                used: bounded(used),
                free: bounded(free),
                claims: bounded(claims),
                problem: problem(pool, gone),
            };
            if self.pool_statuses.get(name) != Some(&status) {
                self.pool_statuses.insert(name.clone(), status.clone());
                effects.pools.push((name.clone(), status));
            }
        }
    }
}

/// Verdict on `Healthy`. Until somebody asked, what was known before is said.
fn healthy(health: &Health, checked: &Few<String>, old: Option<&Told>) -> Option<Verdict> {
    let verdict = health.verdict(checked.iter())?;
    if verdict.reason != Reason::Pending {
        return Some(verdict);
    }
    Some(old?.healthy().cloned().unwrap_or(verdict))
}

/// What an administrator should know of a pool.
fn problem(pool: &Pool, gone: u64) -> String {
    let mut problems = Vec::new();
    if !pool.problem.is_empty() {
        problems.push(pool.problem.clone());
    }
    if gone > 0 {
        let (what, way_out) = match &pool.service {
            None => ("are not in spec.addresses any more", "they stay until their Routes go"),
            Some(_) => ("have no Service of the hub's any more", "their Routes are not reached"),
        };
        problems.push(format!("{gone} addresses with claims {what}; {way_out}"));
    }
    if pool.draining {
        problems.push("draining: nothing new is given out".into());
    }
    problems.join("; ")
}

/// What resolves but for a certificate that cannot be served.
fn certified(verdict: Verdict, web: &Web, id: &RouteId) -> Verdict {
    let missing = web.without_certificate(id);
    if !verdict.holds || missing.is_empty() {
        return verdict;
    }
    let message = format!(
        "no good certificate for {}: HTTPS to it does not work until its Secret has one",
        missing.join(", ")
    );
    Verdict::no(Reason::InvalidCertificate, message)
}

/// Verdict on `Programmed`. It is about a generation: once all ready Envoys have acknowledged it, an
/// Envoy that joins or reconnects does not take that back (it is not ready before it has it).
fn programmed(entry: &Entry, accepted: &Verdict, verdict: Verdict, old: Option<&Told>) -> Verdict {
    if !accepted.holds {
        let message = match entry.serving {
            Some(_) => "the last generation that was accepted is still served",
            None => "nothing is served",
        };
        return Verdict::no(Reason::NotAccepted, message);
    }
    let generation = entry.meta.generation;
    let once = old.is_some_and(|old| old.is_programmed(generation))
        || entry.programmed == Some(generation);
    if verdict.reason == Reason::Pending && once {
        Verdict::yes(Reason::Programmed)
    } else {
        verdict
    }
}
