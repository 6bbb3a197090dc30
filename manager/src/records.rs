//! What the hub has of each tenant, as its agents are told: read by many sessions, written by one.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use fairlead_api::{Route, RouteName, RouteStatus, SecretName, TenantId};
use fairlead_process::locks::lock;
use fairlead_proto::{PackedStatus, v1};
use fairlead_xds::ChangeLog;
use tokio::sync::{Notify, watch};

/// What an agent pushes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Item {
    /// The tenant's nodes.
    Nodes,
    /// A Secret that Routes name; before the Routes, so that these find it.
    Secret(SecretName),
    /// A Route.
    Route(RouteName),
}

/// The hub's record of an item.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    /// The agent's hash of what it pushed, hexadecimal.
    pub(crate) hash: Box<str>,
    /// What became of exactly this content; `None` while that is open.
    pub(crate) report: Option<PackedStatus>,
}

/// What became of a Route, as its agent is told it.
pub(crate) fn told(status: &RouteStatus) -> PackedStatus {
    let conditions = status.conditions.iter().map(|condition| v1::Condition {
        r#type: condition.type_.clone(),
        holds: condition.status == "True",
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    });
    let ports = status
        .ports
        .iter()
        .map(|given| v1::GivenPort { listener: given.listener.clone(), port: given.port.into() });
    PackedStatus::of(v1::Status {
        key: None,
        hash: Vec::new(),
        addresses: status.addresses.clone(),
        conditions: conditions.collect(),
        ports: ports.collect(),
    })
}

impl Record {
    /// The record of a Route object.
    pub(crate) fn of(route: &Route) -> Self {
        let hash = route.spec.content_hash.as_str().into();
        let status = route.status.as_ref();
        let current = status.filter(|s| s.observed_generation == route.metadata.generation);
        Self { hash, report: current.map(told) }
    }
}

/// One tenant's records.
#[derive(Debug, Default)]
pub(crate) struct Tenant {
    /// The records, with the log of their changes.
    pub(crate) items: ChangeLog<Item, Arc<Record>>,
    /// How many nodes there are.
    pub(crate) nodes: u32,
    /// How many Secrets there are.
    pub(crate) secrets: usize,
    /// Its object; `None` while the hub has no such Tenant.
    pub(crate) tenant: Option<Existing>,
    changed: watch::Sender<()>,
}

impl Tenant {
    /// How many Routes there are.
    pub(crate) fn routes(&self) -> usize {
        self.items.len() - self.secrets - usize::from(self.items.get(&Item::Nodes).is_some())
    }
}

/// What is needed of a Tenant object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Existing {
    /// `metadata.uid`.
    pub(crate) uid: String,
    /// How many Routes it may have.
    pub(crate) max_routes: u32,
    /// How many changes a second its agent may push.
    pub(crate) changes_per_second: u32,
    /// Host names that it may publish.
    pub(crate) domains: Vec<String>,
}

/// All tenants' records.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// Tells of Tenants that come, change or go.
    pub(crate) tenants_changed: Notify,
    tenants: RwLock<HashMap<TenantId, Tenant>>,
    leaving: Mutex<BTreeSet<TenantId>>,
    complete: std::sync::atomic::AtomicBool,
}

impl Records {
    /// Everything was read once: agents may be answered.
    pub(crate) fn complete(&self) {
        self.complete.store(true, std::sync::atomic::Ordering::Release);
    }

    /// Whether agents may be answered.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Changes a tenant's records and wakes its sessions.
    pub(crate) fn change(&self, id: &TenantId, work: impl FnOnce(&mut Tenant)) {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        let tenant = tenants.entry(id.clone()).or_default();
        work(tenant);
        tenant.changed.send_replace(());
    }

    /// Reads a tenant's records; `None` where there are none.
    pub(crate) fn read<T>(&self, id: &TenantId, work: impl FnOnce(&Tenant) -> T) -> Option<T> {
        self.tenants.read().unwrap_or_else(PoisonError::into_inner).get(id).map(work)
    }

    /// Tells of changes of a tenant's records.
    pub(crate) fn subscribe(&self, id: &TenantId) -> Option<watch::Receiver<()>> {
        self.read(id, |tenant| tenant.changed.subscribe())
    }
}

impl Records {
    /// A Tenant object came, changed or went.
    pub(crate) fn change_tenant(&self, id: &TenantId, tenant: Option<Existing>) {
        self.change(id, |records| records.tenant = tenant);
        self.tenants_changed.notify_one();
    }

    /// Whether a Tenant is being deleted.
    pub(crate) fn change_leaving(&self, id: &TenantId, leaving: bool) {
        let mut all = lock(&self.leaving);
        if leaving {
            all.insert(id.clone());
        } else {
            all.remove(id);
        }
    }

    /// Tenants that are being deleted.
    pub(crate) fn leaving(&self) -> Vec<TenantId> {
        lock(&self.leaving).iter().cloned().collect()
    }

    /// The tenants that the hub has.
    pub(crate) fn tenants(&self) -> Vec<(TenantId, Existing)> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let existing =
            |(id, tenant): (&TenantId, &Tenant)| Some((id.clone(), tenant.tenant.clone()?));
        tenants.iter().filter_map(existing).collect()
    }
}
