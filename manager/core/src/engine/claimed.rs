//! What is known of claims: what the watch shows, and what was answered to this process' own writes. Which of it is old
//! news is the caller's to know (`versions.rs`).

use fairlead_api::claim::{ClaimKey, HostKey};
use fairlead_api::{RouteId, Uid};

use super::Engine;
use crate::claims::{Claim, Leaving};
use crate::hosts::HostClaim;

impl Engine {
    /// A claim as the hub has it.
    pub fn claim(&mut self, claim: Claim) {
        let key = claim.key;
        // Whether its holder needs it is looked at once all Routes are known.
        if self.complete && !self.is_needed(&claim) {
            self.stale.insert(key);
        }
        self.touch_holder(&claim);
        // Whoever held it before holds it no more.
        let before = self.claims.get(&key).filter(|old| old.object != claim.object).cloned();
        if let Some(before) = &before {
            self.touch_holder(before);
            // A Route's own claim, which the watch shows before its answer is here, frees nothing.
            if before.holder != claim.holder {
                self.retry_waiting();
            }
        }
        self.balancers.touch(&claim.pool);
        // What was let go is let go, unless this is another object of that name.
        let leaving = self.claims.leaving(&key).filter(|_| before.is_none());
        if leaving.is_none() {
            self.resting.remove(&key);
        }
        let pool = claim.pool.clone();
        self.claims.insert(claim);
        self.claims.leave(&key, leaving);
        self.note_stray(&pool, key.address);
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
        self.resting.remove(key);
        self.stale.remove(key);
        let Some(claim) = self.claims.remove(key) else { return };
        self.stale.extend(claim.target_key());
        self.note_stray(&claim.pool, key.address);
        self.balancers.touch(&claim.pool);
        self.pools_changed = true;
        self.touch_holder(&claim);
        self.retry_waiting();
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
        let tentative = self.hosts.get(key).filter(|claim| claim.object.is_empty());
        let tentative = tentative.map(|claim| claim.tenant.clone());
        self.hosts.remove(key, &Uid::default());
        let now = claim.as_ref().map(|claim| claim.tenant.clone());
        match claim {
            Some(claim) => self.host(claim),
            None => self.touch_hosts(key),
        }
        if tentative.is_some_and(|tenant| now.as_ref() != Some(&tenant)) {
            self.retry_waiting();
        }
    }

    /// A host name's claim is gone: others may have it.
    pub fn host_released(&mut self, key: &HostKey, object: &Uid) {
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
        let tentative = self.tentative.remove(id).unwrap_or_default();
        for key in &tentative {
            if self.claims.get(key).is_some_and(|claim| claim.object.is_empty()) {
                self.claims.remove(key);
            }
        }
        for claim in persisted.into_iter().flatten() {
            // Looked at again: the Route may be gone by now.
            self.stale.insert(claim.key);
            self.claim(claim);
        }
        self.touch(id);
        // Who was refused because of one that is not given out after all may have it.
        if tentative.iter().any(|key| self.claims.get(key).is_none()) {
            self.retry_waiting();
        }
    }

    /// A claim's object was deleted, or was gone already.
    pub fn released(&mut self, key: &ClaimKey, object: &Uid) {
        if self.claims.get(key).is_some_and(|claim| claim.object == *object) {
            self.claim_gone(key);
        }
    }

    /// A claim could not be deleted; it is tried again with the next step.
    pub fn not_released(&mut self, key: &ClaimKey) {
        // It rests no longer, and goes with the next look.
        self.claims.leave(key, Some(Leaving::Resting));
        self.stale.insert(*key);
    }
}
