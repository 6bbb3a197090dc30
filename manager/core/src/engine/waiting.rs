//! Routes that did not get what they want, by what may change that: what is given back is of use to some, and
//! thousands that it is of no use to cost nothing.

use std::collections::BTreeSet;

use fairlead_api::claim::HostKey;
use fairlead_api::condition::Reason;
use fairlead_api::{RouteId, RouteName, TenantId};

use super::Engine;
use crate::hosts::overlap;

/// The Routes by what they wait for.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// A port, or an address.
    ports: BTreeSet<RouteId>,
    /// Room in their tenants' quotas.
    quotas: BTreeSet<RouteId>,
    /// Another pool, or to ask for another: nothing that is given back is of use.
    pools: BTreeSet<RouteId>,
    /// A host name that is another tenant's.
    names: BTreeSet<RouteId>,
}

impl Waiting {
    /// For an address or a port, and why there is none. `None`: it is about to be free.
    pub(super) fn for_place(&mut self, id: &RouteId, why: Option<Reason>) {
        let set = match why {
            Some(Reason::QuotaReached) => &mut self.quotas,
            Some(Reason::UnknownPool | Reason::NoPool | Reason::Invalid) => &mut self.pools,
            _ => &mut self.ports,
        };
        set.insert(id.clone());
    }

    /// For a host name, and why it is not the tenant's. A name outside of its domains waits for the Tenant alone.
    pub(super) fn for_name(&mut self, id: &RouteId, why: Reason) {
        match why {
            Reason::HostnameConflict => drop(self.names.insert(id.clone())),
            Reason::QuotaReached => drop(self.quotas.insert(id.clone())),
            _ => {}
        }
    }

    /// It is decided again, or gone.
    pub(super) fn over(&mut self, id: &RouteId) {
        for set in [&mut self.ports, &mut self.quotas, &mut self.pools, &mut self.names] {
            set.remove(id);
        }
    }
}

/// One tenant's, of those of all.
fn of_tenant(all: &BTreeSet<RouteId>, tenant: &TenantId) -> Vec<RouteId> {
    let first = RouteId { tenant: tenant.clone(), name: RouteName::of_object("") };
    all.range(first..).take_while(|id| id.tenant == *tenant).cloned().collect()
}

impl Engine {
    /// Pools have changed: whoever waits for an address may have one.
    pub(super) fn retry_for_pools(&mut self) {
        self.retry_for_ports();
        let Waiting { quotas, pools, .. } = &self.waiting;
        let all: Vec<_> = quotas.union(pools).cloned().collect();
        self.retry(all);
    }

    /// A port is free.
    pub(super) fn retry_for_ports(&mut self) {
        let all = self.waiting.ports.iter().cloned().collect();
        self.retry(all);
    }

    /// A tenant has given something back.
    pub(super) fn retry_for_quota(&mut self, tenant: &TenantId) {
        let all = of_tenant(&self.waiting.quotas, tenant);
        self.retry(all);
    }

    /// A host name is free. Those that want just this one are known to `Hosts`.
    pub(super) fn retry_for_name(&mut self, key: &HostKey) {
        let wants = |id: &&RouteId| {
            self.routes
                .get(*id)
                .is_some_and(|entry| entry.wanted.iter().any(|one| overlap(one, key)))
        };
        let all = self.waiting.names.iter().filter(wants).cloned().collect();
        self.retry(all);
    }

    fn retry(&mut self, all: Vec<RouteId>) {
        let aged = all.into_iter().filter_map(|id| Some((self.routes.get(&id)?.meta.created, id)));
        self.later.extend(aged);
    }
}
