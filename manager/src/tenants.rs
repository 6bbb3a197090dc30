//! Tenants' namespaces and statuses, written by the leader.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_api::condition::{CLOCK_SKEWED, CONNECTED, Reason, Verdict};
use fairlead_api::{TenantId, TenantStatus};
use fairlead_process::lease::Leadership;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::Client;
use tracing::{info, warn};

use crate::agent_api::{MAX_SKEW, Sessions};
use crate::hub::Hub;
use crate::identity::AllowList;
use crate::records::{Existing, Records};
use crate::removal::{self, Step};
use crate::shares::Shares;

/// How often statuses are looked at.
const EVERY: Duration = Duration::from_secs(2);
/// What was deleted is gone after so long, mostly.
const NEXT_STEP: Duration = Duration::from_millis(300);
/// How often a tenant's namespace is made sure of.
const ENSURE_EVERY: Duration = Duration::from_secs(20);
/// How often `lastSeen` of a connected tenant is written anew.
const SEEN_EVERY: i64 = 30;

pub(crate) struct Tenants {
    pub(crate) client: Client,
    pub(crate) hub: Hub,
    pub(crate) records: Arc<Records>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) allowed: Arc<AllowList>,
    pub(crate) shares: Arc<Shares>,
    pub(crate) leadership: Leadership,
}

impl Tenants {
    /// Runs for ever: makes namespaces as Tenants appear, and keeps statuses.
    pub(crate) async fn run(self) {
        // The Tenant that a namespace was made for, and the status written last.
        let mut made: HashMap<TenantId, (Existing, Instant)> = HashMap::new();
        let mut written: HashMap<TenantId, TenantStatus> = HashMap::new();
        let mut pause = EVERY;
        loop {
            tokio::select! {
                () = self.records.tenants_changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            if self.leadership.epoch().is_none() {
                made.clear();
                written.clear();
                continue;
            }
            let leaving = self.records.leaving();
            pause = if leaving.is_empty() { EVERY } else { NEXT_STEP };
            for tenant in leaving {
                made.remove(&tenant);
                self.remove(&tenant).await;
                self.report(tenant, &mut written).await;
            }
            for (tenant, existing) in self.records.tenants() {
                self.make(&tenant, existing, &mut made).await;
                self.report(tenant, &mut written).await;
            }
        }
    }

    async fn make(
        &self,
        tenant: &TenantId,
        existing: Existing,
        made: &mut HashMap<TenantId, (Existing, Instant)>,
    ) {
        // Looked at again now and then: somebody may have deleted it.
        let same = |(old, _): &(Existing, Instant)| *old == existing;
        let last = made.get(tenant).filter(|last| same(last));
        if last.is_some_and(|(_, at)| at.elapsed() < ENSURE_EVERY) {
            return;
        }
        let guarded = removal::guard(&self.client, tenant, true).await;
        let Existing { uid, domains, .. } = &existing;
        match guarded.and(self.hub.ensure_namespace(tenant, uid, domains).await) {
            Ok(()) => drop(made.insert(tenant.clone(), (existing, Instant::now()))),
            Err(error) => warn!(%tenant, %error, "namespace not made, trying again"),
        }
    }

    async fn remove(&self, tenant: &TenantId) {
        match removal::advance(&self.client, tenant).await {
            Ok(Step::Done) => {
                self.records.change_leaving(tenant, false);
                self.shares.forget(tenant);
                self.sessions.forget(tenant);
                info!(%tenant, "tenant removed");
            }
            Ok(step) => info!(%tenant, ?step, "removing a tenant"),
            Err(error) => warn!(%tenant, %error, "tenant not removed, trying again"),
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
        let before = old.map_or(&[][..], |old| old.conditions.as_slice());
        let connected = match &agent {
            Some(_) => Verdict::yes(Reason::Connected),
            None => Verdict::no(Reason::NotConnected, "no agent is connected"),
        };
        let mut conditions = vec![condition(connected, CONNECTED, before, &now)];
        let skew = agent.as_ref().map(|agent| agent.skew).filter(|skew| skew.abs() > MAX_SKEW);
        if let Some(skew) = skew {
            let side = if skew > 0 { "ahead of" } else { "behind" };
            let message = format!(
                "the agent's clock is {} s {side} the hub's; set the one that is wrong: an agent that starts with it \
                 cannot judge the hub's certificate",
                skew.abs()
            );
            let verdict = Verdict { message, ..Verdict::yes(Reason::ClockSkewed) };
            conditions.push(condition(verdict, CLOCK_SKEWED, before, &now));
        }
        let seen = old.and_then(|old| old.last_seen.clone());
        let stale =
            seen.as_ref().is_none_or(|at| now.0.as_second() - at.0.as_second() >= SEEN_EVERY);
        let end = self.allowed.certificate_end(tenant);
        let end = end.and_then(|end| jiff::Timestamp::from_second(end).ok());
        TenantStatus {
            conditions,
            last_seen: if agent.is_some() && stale { Some(now) } else { seen },
            agent_version: agent.as_ref().map(|agent| agent.agent_version.clone()),
            cluster_version: agent.map(|agent| agent.cluster_version),
            certificate_not_after: end.map(Time),
            nodes,
            routes: u32::try_from(routes).unwrap_or(u32::MAX),
        }
    }
}

/// A verdict as a condition, whose time is that of before while its status is.
fn condition(verdict: Verdict, kind: &str, before: &[Condition], now: &Time) -> Condition {
    let same = |old: &&Condition| old.type_ == kind && (old.status == "True") == verdict.holds;
    let since = before.iter().find(same).map_or(now, |old| &old.last_transition_time).clone();
    verdict.condition(kind, None, since)
}
