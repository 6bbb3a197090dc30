//! Routes that did not get what they want: whatever is given back wakes them, a few at a time.

use std::collections::BTreeSet;
use std::ops::Bound::{Excluded, Unbounded};

use fairlead_api::condition::Reason;
use fairlead_api::{RouteId, TenantId};

use super::{Engine, first_of};

/// The Routes, by whether something that is given back may be of use.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// For a port, an address, a host name, or room in a quota.
    freed: BTreeSet<RouteId>,
    /// For another pool, or to ask for another.
    pools: BTreeSet<RouteId>,
    /// Also for its tenant to have fewer endpoints.
    endpoints: BTreeSet<RouteId>,
}

impl Waiting {
    /// For something, and why it is not there. `None`: it is about to be free.
    pub(super) fn add(&mut self, id: &RouteId, why: Option<Reason>) {
        match why {
            // Only its Tenant or another name helps, and either has it looked at.
            Some(Reason::HostnameNotAllowed) => {}
            Some(Reason::UnknownPool | Reason::NoPool | Reason::Invalid) => {
                self.pools.insert(id.clone());
            }
            _ => drop(self.freed.insert(id.clone())),
        }
    }

    /// It waits for its tenant to have fewer endpoints as well.
    pub(super) fn for_endpoints(&mut self, id: &RouteId) {
        self.endpoints.insert(id.clone());
    }

    /// It is decided again, or gone.
    pub(super) fn over(&mut self, id: &RouteId) {
        self.freed.remove(id);
        self.pools.remove(id);
        self.endpoints.remove(id);
    }
}

impl Engine {
    /// Something was given back, or is not taken after all.
    pub(super) fn retry_waiting(&mut self) {
        let all = std::mem::take(&mut self.waiting.freed);
        self.retry(all);
    }

    /// What was kept for a Route is kept no more: others may have it, or a Service of the hub is of no use.
    pub(super) fn retry_for_promises(&mut self) {
        self.retry_waiting();
        self.touch_balancers();
    }

    /// A tenant has fewer endpoints.
    pub(super) fn retry_for_endpoints(&mut self, tenant: &TenantId) {
        let all = self.waiting.endpoints.range(first_of(tenant)..);
        let own: BTreeSet<_> = all.take_while(|id| id.tenant == *tenant).cloned().collect();
        for id in &own {
            self.waiting.over(id);
        }
        self.retry(own);
    }

    /// Pools have changed.
    pub(super) fn retry_for_pools(&mut self) {
        self.retry_waiting();
        let all = std::mem::take(&mut self.waiting.pools);
        self.retry(all);
    }

    /// Who is decided again and gets nothing waits again.
    fn retry(&mut self, all: BTreeSet<RouteId>) {
        let aged = all.into_iter().filter_map(|id| Some((self.routes.get(&id)?.meta.created, id)));
        self.later.extend(aged);
    }

    /// The next of those that are looked at because of something that many have in common.
    pub(super) fn next_later(&mut self) -> Option<(i64, RouteId)> {
        let last = self.turn.take();
        let after = last.and_then(|last| self.later.range((Excluded(last), Unbounded)).next());
        let next = after.or_else(|| self.later.first()).cloned()?;
        self.later.remove(&next);
        // The oldest are the first again, once all have had their turn.
        self.turn = (!self.later.is_empty()).then(|| next.clone());
        Some(next)
    }
}
