//! The one task that owns the engine: observations in, effects carried out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_api::claim::{ClaimKey, HostKey};
use fairlead_api::{
    AddressPoolStatus, NodeSetStatus, Route, RouteId, RouteStatus, SecretName, TenantId, Uid,
};
use fairlead_core::claims::Claim;
use fairlead_core::engine::Balancer;
use fairlead_core::hosts::HostClaim;
use fairlead_core::http::{Secret, SecretId};
use fairlead_core::model::Meta;
use fairlead_core::{Effects, Engine};
use fairlead_process::lease::Leadership;
use fairlead_process::metrics::Stages;
use fairlead_process::probes::Guard;
use fairlead_xds::Cache;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::checkers::{Checked, Checkers};
use crate::fleet::Said;
use crate::hub::{Hub, Obstacle, pause_after_failure};
use crate::identity::AllowList;
use crate::queue::{Laned, Queue};
use crate::records::{Existing, Item, Record, Records};
use crate::watch::{KINDS, Kind, Observed, uid};

/// Writes to the apiserver under way at the same time.
const WRITES: usize = 32;
/// Of them for one tenant: enough for some hundred a second. More would be no faster where the apiserver is busy, and
/// slower for all others.
const WRITES_PER_TENANT: usize = 2;
/// A connection that hangs must not hold its place for ever.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two writes of pools' statuses: each port that is given out changes one.
const POOLS: Duration = Duration::from_secs(1);
/// Observations that are taken in before the engine decides: bounds the delay of the first.
const BATCH: usize = 512;

/// What surrounds the engine.
pub(crate) struct Around {
    pub(crate) hub: Hub,
    pub(crate) cache: Arc<Cache>,
    pub(crate) checkers: Arc<Checkers>,
    pub(crate) records: Arc<Records>,
    pub(crate) allowed: Arc<AllowList>,
    pub(crate) leadership: Leadership,
    pub(crate) stages: Stages,
}

/// The engine and what surrounds it.
pub(crate) struct Conductor {
    engine: Engine,
    around: Around,
    /// Dropped once everything was read.
    unready: Option<Guard>,
    complete: HashSet<Kind>,
    writes: Queue<Object, Write>,
    under_way: FuturesUnordered<BoxFuture<'static, (Object, Done)>>,
    /// What failed, and is known as that only after a pause; others may write meanwhile.
    paused: FuturesUnordered<BoxFuture<'static, (Object, Done)>>,
    /// Statuses of pools that are yet to be written, and when they may be.
    pools: HashMap<String, AddressPoolStatus>,
    pools_due: Instant,
    /// When the engine wants to decide again though nothing happened, in seconds since 1970.
    wake: Option<i64>,
    /// There is more to decide, at once: what others have to say comes in between.
    more: bool,
}

/// What is written; one write of an object at a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Object {
    Status(RouteId),
    Claims(RouteId),
    Claim(ClaimKey),
    /// With the tenant that claims it; `None`: it is given back.
    Host(HostKey, Option<TenantId>),
    Nodes(TenantId),
    Pool(String),
    Guard(String),
    Balancer(String),
}

/// Tenants take turns, and so do the hub's own things.
impl Laned for Object {
    type Lane = Option<TenantId>;

    fn lane(&self) -> Option<TenantId> {
        match self {
            Self::Status(id) | Self::Claims(id) => Some(id.tenant.clone()),
            Self::Nodes(tenant) => Some(tenant.clone()),
            Self::Host(_, tenant) => tenant.clone(),
            Self::Claim(_) | Self::Pool(_) | Self::Guard(_) | Self::Balancer(_) => None,
        }
    }

    fn is_bounded(lane: &Option<TenantId>) -> bool {
        lane.is_some()
    }

    /// What is served comes before what is said of it. Not so what is said of nodes: whose one is, is on record there.
    fn can_wait(&self) -> bool {
        matches!(self, Self::Status(_) | Self::Pool(_))
    }
}

#[derive(Debug)]
enum Write {
    Status(RouteStatus),
    Claim(Vec<Claim>),
    Release(Uid),
    ClaimHost(HostClaim),
    ReleaseHost(Uid),
    Nodes(NodeSetStatus),
    Pool(AddressPoolStatus),
    Guard(bool),
    Balancer(Option<Balancer>),
}

/// How a write ended.
enum Done {
    Written,
    /// The claim with this object is gone.
    Released(Uid),
    Claimed(Vec<Claim>),
    /// The host name's claim that is there now.
    HostClaimed(HostClaim),
    /// The host name was not claimed.
    HostNotClaimed,
    /// Not claimed, and whose the claim in the way is.
    Obstructed(Box<Claim>),
    Failed,
}

impl Done {
    /// It is to be tried again.
    fn is_failure(&self) -> bool {
        matches!(self, Self::Failed | Self::HostNotClaimed)
    }
}

impl Conductor {
    pub(crate) fn new(engine: Engine, around: Around, unready: Guard) -> Self {
        Self {
            engine,
            around,
            unready: Some(unready),
            complete: HashSet::new(),
            writes: Queue::new(WRITES, WRITES_PER_TENANT),
            under_way: FuturesUnordered::new(),
            paused: FuturesUnordered::new(),
            pools: HashMap::new(),
            pools_due: Instant::now(),
            wake: None,
            more: false,
        }
    }

    /// Runs until the watches end.
    pub(crate) async fn run(
        mut self,
        mut observed: mpsc::Receiver<Observed>,
        mut said: mpsc::UnboundedReceiver<Said>,
        mut checked: mpsc::UnboundedReceiver<Checked>,
    ) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut leadership = self.around.leadership.clone();
        loop {
            tokio::select! {
                count = observed.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    batch.drain(..).for_each(|one| self.observe(one));
                }
                Some(first) = said.recv() => {
                    self.hear(first);
                    while let Ok(more) = said.try_recv() {
                        self.hear(more);
                    }
                }
                Some(first) = checked.recv() => {
                    self.learn(first);
                    while let Ok(more) = checked.try_recv() {
                        self.learn(more);
                    }
                }
                Some((object, done)) = self.under_way.next() => {
                    self.written(object, done);
                    // What ended at the same time is one step's work.
                    while let Some(Some((object, done))) = self.under_way.next().now_or_never() {
                        self.written(object, done);
                    }
                }
                Some((object, done)) = self.paused.next() => self.ended(&object, done),
                () = leadership.changed() => {}
                () = until(self.wake) => {}
                () = tokio::task::yield_now(), if self.more => {}
                () = tokio::time::sleep_until(self.pools_due.into()), if !self.pools.is_empty() => {}
            }
            self.engine.lead(self.around.leadership.epoch().is_some());
            self.step();
        }
    }

    fn observe(&mut self, observed: Observed) {
        let engine = &mut self.engine;
        match observed {
            Observed::Tenant(id, tenant) => {
                let existing = tenant.as_deref().map(|(uid, spec)| Existing {
                    uid: uid.clone(),
                    max_routes: spec.quotas.routes,
                    changes_per_second: spec.quotas.changes_per_second,
                    domains: spec.domains.clone(),
                });
                self.around.records.change_leaving(&id, false);
                self.around.records.change_tenant(&id, existing);
                let ids = tenant.as_deref().map(|(_, spec)| spec.spiffe_ids.as_slice());
                self.around.allowed.tenant(&id, ids);
                engine.tenant(&id, tenant.map(|tenant| tenant.1.into()));
            }
            // For all that is decided it is gone already.
            Observed::Leaving(id) => {
                self.around.records.change_leaving(&id, true);
                self.around.records.change_tenant(&id, None);
                self.around.allowed.tenant(&id, None);
                engine.tenant(&id, None);
            }
            Observed::Pool(name, pool) => {
                let (spec, guard) = pool.map(|pool| *pool).unzip();
                engine.guard(&name, guard);
                engine.pool(&name, spec);
            }
            Observed::Nodes(id, nodes) => {
                let (spec, seen) = nodes.map(|nodes| *nodes).unzip();
                self.around.records.change(&id, |records| match &spec {
                    Some(spec) => {
                        let record =
                            Record { hash: spec.content_hash.as_str().into(), report: None };
                        records.nodes = u32::try_from(spec.nodes.len()).unwrap_or(u32::MAX);
                        records.items.put(Item::Nodes, Arc::new(record));
                    }
                    None => {
                        records.nodes = 0;
                        records.items.remove(&Item::Nodes);
                    }
                });
                engine.nodes(&id, spec, seen.flatten());
            }
            Observed::Route(id, Some(route)) => self.route(id, *route),
            Observed::Route(id, None) => {
                let item = Item::Route(id.name.clone());
                self.around.records.change(&id.tenant, |records| records.items.remove(&item));
                engine.route_gone(&id);
            }
            Observed::Claim(claim, version) => {
                if self.around.hub.claims.is_news(&claim.key, version) {
                    engine.claim(*claim);
                }
            }
            Observed::ClaimGone(key, object, version) => {
                self.around.hub.claims.gone(&key, version);
                engine.released(&key, &object);
            }
            Observed::Host(claim, version) => {
                if self.around.hub.hosts.is_news(&claim.key, version) {
                    engine.host(*claim);
                }
            }
            Observed::HostGone(key, object, version) => {
                self.around.hub.hosts.gone(&key, version);
                engine.host_released(&key, &object);
            }
            Observed::Secret(tenant, name, secret) => {
                self.secret(&tenant, name, secret.map(|secret| *secret));
            }
            Observed::Balancer(name, seen) => engine.balancer(&name, seen.map(|seen| *seen)),
            Observed::Envoy(name, ready) => {
                self.around.allowed.envoy(&name, ready.is_some());
                engine.envoy_ready(&name.into(), ready.unwrap_or_default());
            }
            Observed::Node(name, ranges) => engine.hub_network(&format!("node/{name}"), ranges),
            Observed::Agent(tenant, id, agent) => {
                let agent = agent.as_deref();
                let agent = agent.map(|(spec, status, version)| (spec, status.as_ref(), *version));
                self.around.allowed.agent(&tenant, &id, agent);
            }
            Observed::Complete(kind) => {
                self.complete.insert(kind);
                if self.complete.len() == KINDS && self.unready.is_some() {
                    engine.complete();
                }
            }
        }
    }

    fn secret(&mut self, tenant: &TenantId, name: SecretName, secret: Option<(Box<str>, Secret)>) {
        let Some((namespace, own)) = name.parts() else { return };
        let id = SecretId::new(tenant, namespace, own);
        let (hash, content) = secret.unzip();
        self.around.records.change(tenant, |records| {
            let item = Item::Secret(name);
            match hash {
                Some(hash) => {
                    if records.items.get(&item).is_none() {
                        records.secrets += 1;
                    }
                    records.items.put(item, Arc::new(Record { hash, report: None }));
                }
                None => {
                    if records.items.get(&item).is_some() {
                        records.secrets -= 1;
                    }
                    records.items.remove(&item);
                }
            }
        });
        self.engine.secret(&id, content);
    }

    fn route(&mut self, id: RouteId, route: Route) {
        let item = Item::Route(id.name.clone());
        let record = Record::of(&route);
        self.around.records.change(&id.tenant, |records| {
            if records.items.get(&item).is_none_or(|old| **old != record) {
                records.items.put(item, Arc::new(record));
            }
        });
        let created = route.metadata.creation_timestamp.as_ref();
        let meta = Meta {
            uid: uid(&route),
            generation: route.metadata.generation.unwrap_or(0),
            created: created.map_or(0, |time| time.0.as_second()),
        };
        self.engine.route(id, meta, route.spec, route.status);
    }

    fn hear(&mut self, said: Said) {
        match said {
            Said::Connected(envoy, stream) => self.engine.envoy_connected(&envoy, stream),
            Said::Disconnected(envoy, stream) => self.engine.envoy_disconnected(&envoy, stream),
            Said::Answered(envoy, stream, events) => {
                self.engine.envoy_said(&envoy, stream, &events);
            }
        }
    }

    fn learn(&mut self, checked: Checked) {
        match checked {
            Checked::Connected(envoy) => self.engine.checker(&envoy, true),
            Checked::Disconnected(envoy) => self.engine.checker(&envoy, false),
            Checked::Found(envoy, report) => {
                self.engine.checked(&envoy, report, &Time(jiff::Timestamp::now()));
            }
        }
    }

    fn step(&mut self) {
        let start = Instant::now();
        let Effects {
            changes,
            claim,
            release,
            claim_hosts,
            release_hosts,
            statuses,
            node_sets,
            pools,
            guards,
            balancers,
            checks,
            programmed,
            wake,
            more,
        } = self.engine.step(&Time(jiff::Timestamp::now()));
        (self.wake, self.more) = (wake, more);
        if !changes.is_empty() {
            self.around.stages.observe("translate", start);
        }
        self.around.cache.publish(changes);
        for (envoy, specifier) in checks {
            self.around.checkers.ask(&envoy, specifier);
        }
        if self.complete.len() == KINDS && self.unready.take().is_some() {
            // Envoys and agents are answered only now: an empty answer would take things away.
            self.around.cache.complete();
            self.around.records.complete();
            self.around.allowed.complete();
            info!("all objects were read");
        }
        for (id, claims) in claim {
            self.writes.push(Object::Claims(id), Write::Claim(claims));
        }
        for (key, object) in release {
            self.writes.push(Object::Claim(key), Write::Release(object));
        }
        for claim in claim_hosts {
            let object = Object::Host(claim.key.clone(), Some(claim.tenant.clone()));
            self.writes.push(object, Write::ClaimHost(claim));
        }
        for (key, object) in release_hosts {
            self.writes.push(Object::Host(key, None), Write::ReleaseHost(object));
        }
        for (id, status) in statuses {
            self.writes.push(Object::Status(id), Write::Status(status));
        }
        let now = jiff::Timestamp::now().as_millisecond();
        for since in programmed {
            let took = u64::try_from(now - since).unwrap_or(0);
            self.around.stages.note("publish", Duration::from_millis(took));
        }
        for (tenant, status) in node_sets {
            self.writes.push(Object::Nodes(tenant), Write::Nodes(status));
        }
        self.pools.extend(pools);
        if !self.pools.is_empty() && self.pools_due <= Instant::now() {
            self.pools_due = Instant::now() + POOLS;
            for (name, status) in self.pools.drain() {
                self.writes.push(Object::Pool(name), Write::Pool(status));
            }
        }
        for (name, there) in guards {
            self.writes.push(Object::Guard(name), Write::Guard(there));
        }
        for (name, balancer) in balancers {
            self.writes.push(Object::Balancer(name), Write::Balancer(balancer));
        }
        while let Some((object, write)) = self.writes.next() {
            self.under_way.push(self.write(object, write));
        }
    }

    fn write(&self, object: Object, write: Write) -> BoxFuture<'static, (Object, Done)> {
        let (hub, stages, leadership) =
            (self.around.hub.clone(), self.around.stages.clone(), self.around.leadership.clone());
        async move {
            let start = Instant::now();
            // Who was stopped for a while may have lost the lease without knowing.
            let failed = match &write {
                Write::ClaimHost(_) => Done::HostNotClaimed,
                _ => Done::Failed,
            };
            let done = if leadership.epoch().is_some() {
                let written = tokio::time::timeout(WRITE_TIMEOUT, carry_out(&hub, &object, write));
                written.await.unwrap_or(failed)
            } else {
                failed
            };
            match &object {
                _ if done.is_failure() => {}
                Object::Status(_) => stages.observe("report", start),
                Object::Claims(_) | Object::Host(..) => stages.observe("allocate", start),
                _ => {}
            }
            (object, done)
        }
        .boxed()
    }

    /// A write ended, in whatever way: its place is free.
    fn written(&mut self, object: Object, done: Done) {
        self.writes.done(&object);
        if !done.is_failure() {
            return self.ended(&object, done);
        }
        let later = async move {
            pause_after_failure().await;
            (object, done)
        };
        self.paused.push(later.boxed());
    }

    fn ended(&mut self, object: &Object, done: Done) {
        match (object, done) {
            (Object::Claims(id), Done::Claimed(claims)) => self.engine.claimed(id, Some(claims)),
            (Object::Claims(id), Done::Obstructed(held)) => {
                self.engine.claim(*held);
                self.engine.claimed(id, None);
            }
            (Object::Claims(id), _) => self.engine.claimed(id, None),
            (Object::Claim(key), Done::Released(object)) => self.engine.released(key, &object),
            (Object::Status(id), Done::Failed) => self.engine.not_reported(id),
            (Object::Host(key, _), Done::HostClaimed(claim)) => {
                self.engine.host_claimed(key, Some(claim));
            }
            (Object::Host(key, _), Done::HostNotClaimed) => self.engine.host_claimed(key, None),
            (Object::Host(key, _), Done::Released(object)) => {
                self.engine.host_released(key, &object);
            }
            (Object::Host(key, _), Done::Failed) => self.engine.host_not_released(key),
            (Object::Claim(key), Done::Failed) => self.engine.not_released(key),
            (Object::Guard(name), Done::Failed) => self.engine.not_guarded(name),
            (Object::Balancer(name), Done::Failed) => self.engine.balancer_not_written(name),
            (Object::Nodes(id), Done::Failed) => self.engine.nodes_not_reported(id),
            (Object::Pool(name), Done::Failed) => self.engine.pool_not_reported(name),
            _ => {}
        }
    }
}

/// Waits until then; for ever where there is no then.
async fn until(seconds: Option<i64>) {
    let Some(seconds) = seconds else { return std::future::pending().await };
    let millis = seconds * 1_000 - jiff::Timestamp::now().as_millisecond();
    tokio::time::sleep(Duration::from_millis(u64::try_from(millis).unwrap_or(0))).await;
}

async fn carry_out(hub: &Hub, object: &Object, write: Write) -> Done {
    let result = match (object, write) {
        (Object::Claims(_), Write::Claim(claims)) => match hub.claim(claims).await {
            Ok(claims) => return Done::Claimed(claims),
            Err(Obstacle::Held(Some(held))) => return Done::Obstructed(held),
            Err(Obstacle::Held(None)) => {
                warn!(?object, "a claim in the way cannot be read; an administrator deletes it");
                return Done::Failed;
            }
            Err(Obstacle::Failed(error)) => Err(error),
        },
        (Object::Claim(key), Write::Release(uid)) => match hub.release(key, &uid).await {
            Ok(()) => return Done::Released(uid),
            Err(error) => Err(error),
        },
        (Object::Host(..), Write::ClaimHost(claim)) => match hub.claim_host(&claim).await {
            Ok(there) => return Done::HostClaimed(there),
            Err(obstacle) => {
                warn!(?object, ?obstacle, "host name not claimed, trying again");
                return Done::HostNotClaimed;
            }
        },
        (Object::Host(key, _), Write::ReleaseHost(uid)) => {
            match hub.release_host(key, &uid).await {
                Ok(()) => return Done::Released(uid),
                Err(error) => Err(error),
            }
        }
        (Object::Status(id), Write::Status(status)) => hub.report(id, &status).await,
        (Object::Guard(name), Write::Guard(there)) => hub.guard_pool(name, there).await,
        (Object::Balancer(name), Write::Balancer(balancer)) => {
            hub.balance(name, balancer.as_ref()).await
        }
        (Object::Nodes(id), Write::Nodes(status)) => hub.report_nodes(id, &status).await,
        (Object::Pool(name), Write::Pool(status)) => hub.report_pool(name, &status).await,
        // Objects and writes are paired in `step`.
        _ => Ok(()),
    };
    match result {
        Ok(()) => Done::Written,
        Err(error) => {
            warn!(?object, %error, "not written");
            Done::Failed
        }
    }
}
