//! Tenants' namespaces and statuses, written by the leader.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_api::condition::{CONNECTED, Reason};
use fairlead_api::{TenantId, TenantStatus};
use fairlead_process::lease::Leadership;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use tracing::warn;

use crate::agent_api::Sessions;
use crate::hub::Hub;
use crate::records::Records;

/// How often statuses are looked at.
const EVERY: Duration = Duration::from_secs(2);
/// How often a tenant's namespace is made sure of.
const ENSURE_EVERY: Duration = Duration::from_secs(20);
/// How often `lastSeen` of a connected tenant is written anew.
const SEEN_EVERY: i64 = 30;

pub(crate) struct Tenants {
    pub(crate) hub: Hub,
    pub(crate) records: Arc<Records>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) leadership: Leadership,
}

impl Tenants {
    /// Runs for ever: makes namespaces as Tenants appear, and keeps statuses.
    pub(crate) async fn run(self) {
        // The uid of the Tenant that a namespace was made for, and the status written last.
        let mut made: HashMap<TenantId, (String, Instant)> = HashMap::new();
        let mut written: HashMap<TenantId, TenantStatus> = HashMap::new();
        loop {
            tokio::select! {
                () = self.records.tenants_changed.notified() => {}
                () = tokio::time::sleep(EVERY) => {}
            }
            if self.leadership.epoch().is_none() {
                made.clear();
                written.clear();
                continue;
            }
            for (tenant, uid) in self.records.tenants() {
                self.make(&tenant, uid, &mut made).await;
                self.report(tenant, &mut written).await;
            }
        }
    }

    async fn make(
        &self,
        tenant: &TenantId,
        uid: String,
        made: &mut HashMap<TenantId, (String, Instant)>,
    ) {
        // Looked at again now and then: somebody may have deleted it.
        let fresh = |(old, at): &(String, Instant)| *old == uid && at.elapsed() < ENSURE_EVERY;
        if made.get(tenant).is_some_and(fresh) {
            return;
        }
        match self.hub.ensure_namespace(tenant, &uid).await {
            Ok(()) => drop(made.insert(tenant.clone(), (uid, Instant::now()))),
            Err(error) => warn!(%tenant, %error, "namespace not made, trying again"),
        }
    }

    async fn report(&self, tenant: TenantId, written: &mut HashMap<TenantId, TenantStatus>) {
        let new = self.status(&tenant, written.get(&tenant));
        if written.get(&tenant) == Some(&new) {
            return;
        }
        match self.hub.report_tenant(&tenant, &new).await {
            Ok(()) => drop(written.insert(tenant, new)),
            Err(error) => warn!(%tenant, %error, "tenant's status not written"),
        }
    }

    fn status(&self, tenant: &TenantId, old: Option<&TenantStatus>) -> TenantStatus {
        let now = Time(jiff::Timestamp::now());
        let counts = self.records.read(tenant, |records| (records.nodes, records.routes()));
        let (nodes, routes) = counts.unwrap_or_default();
        let agent = self.sessions.get(tenant);
        let status = if agent.is_some() { "True" } else { "False" };
        let before = old.and_then(|old| old.conditions.iter().find(|c| c.status == status));
        let condition = Condition {
            type_: CONNECTED.into(),
            status: status.into(),
            reason: if agent.is_some() {
                CONNECTED.into()
            } else {
                Reason::NotConnected.as_str().into()
            },
            message: if agent.is_some() { String::new() } else { "no agent is connected".into() },
            last_transition_time: before
                .map_or_else(|| now.clone(), |c| c.last_transition_time.clone()),
            observed_generation: None,
        };
        let seen = old.and_then(|old| old.last_seen.clone());
        let stale =
            seen.as_ref().is_none_or(|at| now.0.as_second() - at.0.as_second() >= SEEN_EVERY);
        TenantStatus {
            conditions: vec![condition],
            last_seen: if agent.is_some() && stale { Some(now) } else { seen },
            agent_version: agent.as_ref().map(|agent| agent.agent_version.clone()),
            cluster_version: agent.map(|agent| agent.cluster_version),
            nodes,
            routes: u32::try_from(routes).unwrap_or(u32::MAX),
        }
    }
}
