//! What is on one address, and what the indexes say of it.

use std::collections::BTreeMap;

use fairlead_api::{RouteId, TenantId};

use crate::pool::Capacity;

/// What is on one address.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) pool: Box<str>,
    pub(super) ports: u32,
    /// Routes with claims, or with a seat, and how many of them.
    pub(super) routes: BTreeMap<RouteId, u32>,
    /// Tenants with claims; `None`: ports that any share.
    pub(super) tenants: BTreeMap<Option<TenantId>, u32>,
    /// Claims that let nobody else be there.
    pub(super) alone: u32,
}

/// What indexes say of an address.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Entries {
    pub(super) pool: Box<str>,
    pub(super) occupied: bool,
    pub(super) closed: bool,
    pub(super) full: bool,
    pub(super) sole: Option<TenantId>,
    pub(super) load: u32,
}

impl Tally {
    pub(super) fn is_full(&self, capacity: Capacity) -> bool {
        capacity.ports.is_some_and(|most| self.ports >= most)
            || capacity.routes.is_some_and(|most| self.routes() >= most)
    }

    pub(super) fn routes(&self) -> u32 {
        u32::try_from(self.routes.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn entries(&self, capacity: Capacity) -> Entries {
        let sole = (self.tenants.len() == 1 && self.alone == 0)
            .then(|| self.tenants.keys().next().cloned().flatten())
            .flatten();
        Entries {
            pool: self.pool.clone(),
            occupied: self.ports > 0,
            closed: self.alone > 0,
            full: self.ports > 0 && self.is_full(capacity),
            sole,
            load: self.routes(),
        }
    }
}
