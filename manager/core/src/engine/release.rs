//! What is given back: claims that nobody needs, or that a Route wants no more.

use std::collections::BTreeSet;

use fairlead_api::claim::ClaimKey;

use super::{Effects, Engine};
use crate::claims::{Claim, Holder, Leaving};

impl Engine {
    /// Gives back what nobody needs of these claims, or keeps it for its tenant for a while.
    pub(super) fn release(&mut self, stale: BTreeSet<ClaimKey>, now: i64, effects: &mut Effects) {
        for key in stale {
            let Some(claim) = self.claims.get(&key) else { continue };
            if claim.object.is_empty() {
                continue;
            }
            if self.is_needed(claim) && self.is_wanted(claim) {
                if self.claims.leaving(&key) == Some(Leaving::Resting) {
                    self.claims.leave(&key, None);
                }
                self.resting.remove(&key);
                continue;
            }
            let object = claim.object.clone();
            match self.claims.leaving(&key) {
                Some(Leaving::Releasing) => continue,
                Some(Leaving::Resting) if self.resting.until(&key).is_some_and(|t| t > now) => {
                    continue;
                }
                Some(Leaving::Resting) => {}
                None => {
                    if let Some(seconds) = self.hold(claim) {
                        self.resting.insert(key, now + seconds);
                        self.claims.leave(&key, Some(Leaving::Resting));
                        // Its tenant may have it.
                        continue;
                    }
                }
            }
            self.resting.remove(&key);
            self.claims.leave(&key, Some(Leaving::Releasing));
            effects.release.push((key, object));
        }
    }

    pub(super) fn release_hosts(&mut self, effects: &mut Effects) {
        for key in std::mem::take(&mut self.stale_hosts) {
            if let Some(object) = self.hosts.release(&key) {
                effects.release_hosts.push((key, object));
            }
        }
    }

    /// How long, in seconds, a claim is kept for its tenant.
    fn hold(&self, claim: &Claim) -> Option<i64> {
        let seconds = self.pools.get(&*claim.pool)?.hold_seconds;
        let kept = !claim.is_target() && claim.tenant().is_some() && seconds > 0;
        kept.then_some(seconds.into())
    }

    /// Whether the Route that holds a claim serves by it, or may come to.
    fn is_wanted(&self, claim: &Claim) -> bool {
        if claim.is_target() {
            return self.claims.of_target(&claim.key).is_some();
        }
        let Holder::Route { route, uid: _ } = &claim.holder else { return true };
        if !self.tenants.contains_key(&route.tenant) {
            return false;
        }
        let Some(entry) = self.routes.get(route) else { return false };
        if self.tentative.contains_key(route) {
            // What it let go before is not its own again by that.
            return self.claims.leaving(&claim.key).is_none();
        }
        match &entry.serving {
            Some(serving) => serving.keys().any(|key| key == claim.key),
            // Right after a restart nobody knows what a wish that cannot be read has held.
            None => entry.wish.is_err() && self.claims.leaving(&claim.key).is_none(),
        }
    }

    pub(super) fn is_needed(&self, claim: &Claim) -> bool {
        if claim.is_target() {
            // For as long as the port is that it is for.
            return self.claims.of_target(&claim.key).is_some()
                || self.tentative.values().flatten().any(|key| *key == claim.key);
        }
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
}
