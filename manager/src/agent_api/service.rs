//! The tonic shell of the agents' stream.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fairlead_api::{RouteId, TenantId};
use fairlead_process::identity::Identity;
use fairlead_process::locks::lock;
use fairlead_process::metrics::Stages;
use fairlead_process::retry::between;
use fairlead_process::tls::Peer;
use fairlead_proto::v1::agent_message::Message as From;
use fairlead_proto::v1::hub_message::Message as To;
use fairlead_proto::v1::hub_server::Hub as HubService;
use fairlead_proto::{MAX_MESSAGE_BYTES, OLD_CONNECTION, v1};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::session::{Action, Session, Upload};
use super::text::is_unprintable;
use crate::events::Events;
use crate::hub::{Hub, pause_after_failure};
use crate::limits::{Bucket, Rate};
use crate::queue::{Laned, Queue};
use crate::records::{Existing, Item, Record, Records};
use crate::refused::Refused;
use crate::shares::{Shares, Turn, Write, Written};

/// Uploads of one agent under way at the same time.
const UPLOADS: usize = 2;
/// Uploads that wait before the agent is read no further.
const WAITING: usize = 256;
/// Messages that wait for the transport.
const OUTBOUND: usize = 64;
/// A connection that hangs must not hold its place for ever.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
/// A stream that has not said Hello by then is closed.
const HELLO: Duration = Duration::from_secs(10);
/// A clock that differs by more is told of, in seconds.
pub(crate) const MAX_SKEW: i64 = 60;
/// How many seconds' worth of changes may come at once.
const BURST: f64 = 4.0;

/// Which agent of each tenant is connected.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    all: Mutex<HashMap<TenantId, Connected>>,
    /// How much of its rate each tenant has left, whichever stream it uses.
    buckets: Mutex<HashMap<TenantId, Arc<Mutex<Bucket>>>>,
    /// How many there are.
    pub(crate) count: Gauge,
}

/// A connected agent.
#[derive(Debug, Clone)]
pub(crate) struct Connected {
    epoch: u64,
    pub(crate) agent_version: String,
    pub(crate) cluster_version: String,
    /// How far its clock is ahead of the hub's, in seconds.
    pub(crate) skew: i64,
    end: CancellationToken,
}

impl Sessions {
    /// The agent of a tenant, if one is connected.
    pub(crate) fn get(&self, tenant: &TenantId) -> Option<Connected> {
        lock(&self.all).get(tenant).cloned()
    }

    fn bucket(&self, tenant: &TenantId, rate: Rate) -> Arc<Mutex<Bucket>> {
        let full = || Arc::new(Mutex::new(Bucket::full(rate, Instant::now())));
        lock(&self.buckets).entry(tenant.clone()).or_insert_with(full).clone()
    }

    /// A tenant is gone.
    pub(crate) fn forget(&self, tenant: &TenantId) {
        lock(&self.buckets).remove(tenant);
    }

    /// Lets an agent in, and ends the stream of an earlier one.
    #[allow(clippy::result_large_err)] // tonic's own error type
    fn enter(&self, tenant: &TenantId, new: Connected) -> Result<(), Status> {
        let mut all = lock(&self.all);
        if let Some(old) = all.get(tenant) {
            if old.epoch > new.epoch {
                return Err(Status::aborted("a newer agent of this tenant is connected"));
            }
            old.end.cancel();
        }
        all.insert(tenant.clone(), new);
        self.count(&all);
        Ok(())
    }

    fn leave(&self, tenant: &TenantId, end: &CancellationToken) {
        // A later stream may have taken the place already; its token is not cancelled.
        end.cancel();
        let mut all = lock(&self.all);
        if all.get(tenant).is_some_and(|current| current.end.is_cancelled()) {
            all.remove(tenant);
        }
        self.count(&all);
    }

    fn count(&self, all: &HashMap<TenantId, Connected>) {
        self.count.set(i64::try_from(all.len()).unwrap_or(i64::MAX));
    }
}

/// The agents' API.
#[derive(Clone)]
pub(crate) struct AgentApi {
    pub(crate) hub: Hub,
    pub(crate) records: Arc<Records>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) shares: Arc<Shares>,
    pub(crate) stages: Stages,
    pub(crate) events: Events,
    pub(crate) refused: Refused,
    /// How long a connection lives at most.
    pub(crate) life: Duration,
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl HubService for AgentApi {
    type SyncStream = ReceiverStream<Result<v1::HubMessage, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let Some(Peer { identity: Some(Identity::Agent { tenant, .. }), address, .. }) = peer
        else {
            warn!(?peer, "agent refused: no agent's certificate");
            return Err(Status::unauthenticated("a certificate of a tenant's agent is needed"));
        };
        if !self.records.is_complete() {
            return Err(Status::unavailable("the manager is starting"));
        }
        let Existing { max_routes, changes_per_second, .. } = self.existing(&tenant)?;
        let mut inbound = request.into_inner();
        let hello = tokio::time::timeout(HELLO, inbound.message()).await;
        let hello = hello.map_err(|_| Status::deadline_exceeded("no Hello"))??;
        let Some(From::Hello(hello)) = hello.and_then(|message| message.message) else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        let end = self.stop.child_token();
        let v1::Hello { agent_version, cluster_version, instance, epoch, time } = hello;
        let clip = |text: String| {
            text.chars().filter(|c| !is_unprintable(*c)).take(64).collect::<String>()
        };
        let (agent_version, cluster_version) = (clip(agent_version), clip(cluster_version));
        let instance = clip(instance);
        let now = jiff::Timestamp::now().as_second();
        let skew = time.map_or(0, |time| time.seconds.saturating_sub(now));
        if skew.abs() > MAX_SKEW {
            warn!(%tenant, skew, "the agent's clock differs from the hub's, in seconds");
        }
        let connected = Connected { epoch, agent_version, cluster_version, skew, end: end.clone() };
        self.sessions.enter(&tenant, connected)?;
        info!(%tenant, %address, instance, epoch, "agent connected");

        let (send, receive) = mpsc::channel(OUTBOUND);
        let stream = Stream {
            api: self.clone(),
            tenant: tenant.clone(),
            session: Session::new(max_routes),
            send: send.clone(),
            uploads: Queue::new(UPLOADS, UPLOADS),
            cursor: 0,
            pace: Pace::new(&self.sessions, &tenant, changes_per_second),
        };
        let api = self.clone();
        tokio::spawn(async move {
            let ended = stream.run(inbound, &end, max_routes).await;
            api.sessions.leave(&tenant, &end);
            match ended {
                Ok(()) => info!(%tenant, instance, "agent disconnected"),
                Err(status) if status.message() == OLD_CONNECTION => {
                    info!(%tenant, instance, "an old connection ends");
                    let _ = send.try_send(Err(status));
                }
                Err(status) => {
                    warn!(%tenant, instance, error = status.message(), "agent's stream ended");
                    if api.refused.note("Sync", &status) {
                        let note = format!("agent {instance:?}: {}", status.message());
                        api.events.warn(&tenant, "StreamRefused", &note);
                    }
                    // The agent may be gone already.
                    let _ = send.try_send(Err(status));
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }
}

impl AgentApi {
    #[allow(clippy::result_large_err)] // tonic's own error type
    fn existing(&self, tenant: &TenantId) -> Result<Existing, Status> {
        let existing = self.records.read(tenant, |records| records.tenant.clone());
        existing.flatten().ok_or_else(|| {
            let message = format!(
                "the hub has no tenant {:?}; a platform administrator creates the Tenant",
                tenant.as_str()
            );
            warn!(%tenant, "agent refused: no such tenant");
            Status::not_found(message)
        })
    }
}

/// An upload under way.
type Storing = BoxFuture<'static, (Item, Upload, Outcome)>;

struct Stream {
    api: AgentApi,
    tenant: TenantId,
    session: Session,
    send: mpsc::Sender<Result<v1::HubMessage, Status>>,
    uploads: Queue<Item, Upload>,
    cursor: u64,
    pace: Pace,
}

fn rate(changes_per_second: u32) -> Rate {
    let per_second = f64::from(changes_per_second.max(1));
    Rate { burst: per_second * BURST, per_second }
}

/// For so many seconds changes wait before it is told: a cluster that joins has many at once.
const TOLD_AFTER: f64 = 30.0;

/// How fast an agent is read.
struct Pace {
    rate: Rate,
    bucket: Arc<Mutex<Bucket>>,
    /// Nothing is read before.
    next: Instant,
    /// How many changes in a row had to wait.
    late: u32,
}

impl Pace {
    fn new(sessions: &Sessions, tenant: &TenantId, changes_per_second: u32) -> Self {
        let rate = rate(changes_per_second);
        let mut pace =
            Self { rate, bucket: sessions.bucket(tenant, rate), next: Instant::now(), late: 0 };
        // What an earlier stream owes, this one waits for.
        pace.wait(pace.next);
        pace
    }

    /// A change was read. Whether so many had to wait that it is worth telling.
    fn note(&mut self, now: Instant) -> bool {
        lock(&self.bucket).spend(self.rate, 1.0, now);
        if !self.wait(now) {
            self.late = 0;
            return false;
        }
        self.late += 1;
        let told = f64::from(self.late) >= TOLD_AFTER * self.rate.per_second;
        if told {
            self.late = 0;
        }
        told
    }

    /// Whether the next has to wait, and until when.
    fn wait(&mut self, now: Instant) -> bool {
        let left = lock(&self.bucket).left(self.rate, now);
        if left < 0.0 {
            self.next = now + Duration::from_secs_f64(-left / self.rate.per_second);
        }
        left < 0.0
    }

    fn is_due(&self) -> bool {
        self.next <= Instant::now()
    }
}

impl Stream {
    fn tell_of_pace(&self) {
        let note = format!(
            "its agent changes more than Tenant.spec.quotas.changesPerSecond allows ({}): what is more waits for its \
             turn",
            self.pace.rate.per_second
        );
        self.api.events.warn(&self.tenant, "TooManyChanges", &note);
    }

    #[allow(clippy::result_large_err)] // tonic's own error type
    async fn run(
        mut self,
        mut inbound: Streaming<v1::AgentMessage>,
        end: &CancellationToken,
        max_routes: u32,
    ) -> Result<(), Status> {
        let Some(mut changed) = self.api.records.subscribe(&self.tenant) else { return Ok(()) };
        // Before the transport asks for the end, which would be an error to the agent.
        let life = self.api.life;
        let old = tokio::time::sleep(between(life * 3 / 5, life * 2 / 3));
        let mut old = std::pin::pin!(old);
        let mut under_way = FuturesUnordered::new();
        let mut inventoried = false;
        self.send(To::Welcome(welcome(max_routes))).await?;
        loop {
            let turn = self.begin(&mut under_way);
            let (due, next) = (self.pace.is_due(), self.pace.next);
            let actions = tokio::select! {
                message = inbound.message(), if due && self.uploads.len() < WAITING => {
                    let Some(message) = message?.and_then(|message| message.message) else {
                        return Ok(());
                    };
                    if matches!(message, From::Put(_) | From::Delete(_))
                        && self.pace.note(Instant::now())
                    {
                        self.tell_of_pace();
                    }
                    self.take(message)?
                }
                () = tokio::time::sleep_until(next.into()), if !due => Vec::new(),
                () = tokio::time::sleep(turn.unwrap_or_default()), if turn.is_some() => Vec::new(),
                woken = changed.changed() => {
                    if woken.is_err() {
                        return Ok(());
                    }
                    let now = self.api.existing(&self.tenant)?;
                    if now.max_routes != max_routes
                        || rate(now.changes_per_second) != self.pace.rate
                    {
                        return Err(Status::aborted("the tenant's quota changed; connect again"));
                    }
                    self.news()
                }
                Some((item, upload, outcome)) = under_way.next() => self.stored(item, upload, outcome),
                () = &mut old => return Err(Status::cancelled(OLD_CONNECTION)),
                () = end.cancelled() => {
                    return Err(Status::aborted("the manager ends, or a newer agent took over"));
                }
            };
            let asked = actions.iter().map(asked).sum::<usize>();
            for action in actions {
                match action {
                    Action::Send(message) => self.send(message).await?,
                    Action::Store(item, upload) => self.uploads.push(item, upload),
                }
            }
            if let Some(items) = self.session.inventoried().filter(|_| !inventoried) {
                inventoried = true;
                info!(tenant = %self.tenant, items, asked, "inventory compared");
            }
        }
    }

    /// Begins the uploads that may begin; how long the next one has to wait for its turn.
    fn begin(&mut self, under_way: &mut FuturesUnordered<Storing>) -> Option<Duration> {
        while self.uploads.len() > 0 {
            match self.api.shares.turn(&self.tenant, Instant::now()) {
                // It is looked at again when that one ends.
                Turn::OneAtATime if !under_way.is_empty() => return None,
                Turn::Now | Turn::OneAtATime => {}
                Turn::After(wait) => return Some(wait),
            }
            let (item, upload) = self.uploads.next()?;
            under_way.push(self.store(item, upload).boxed());
        }
        None
    }

    #[allow(clippy::result_large_err)] // tonic's own error type
    fn take(&mut self, message: From) -> Result<Vec<Action>, Status> {
        let Self { api, tenant, session, cursor, .. } = self;
        let taken = api.records.read(tenant, |records| {
            if session.inventoried().is_none() {
                // With an inventory all is compared as it is now; changes count from here.
                *cursor = records.items.cursor();
            }
            session.on_message(message, &records.items)
        });
        taken.unwrap_or_else(|| Ok(Vec::new()))
    }

    /// An upload ended.
    fn stored(&mut self, item: Item, upload: Upload, outcome: Outcome) -> Vec<Action> {
        self.uploads.done(&item);
        let refused = match outcome {
            Outcome::Stored => None,
            Outcome::Refused(message) => Some(message),
            Outcome::Failed => {
                self.uploads.put_back(item, upload);
                return Vec::new();
            }
        };
        let answer = self.session.on_stored(&item, upload, refused).map(Action::Send);
        // Stored again as it was, it changes no record: what is known of it is told anyway.
        let record = self.api.records.read(&self.tenant, |all| all.items.get(&item).cloned());
        let told = record.flatten().and_then(|record| self.session.on_record(&item, Some(&record)));
        answer.into_iter().chain(told).collect()
    }

    /// What changed of the tenant's records.
    fn news(&mut self) -> Vec<Action> {
        let Self { api, tenant, session, cursor, .. } = self;
        let news = api.records.read(tenant, |records| {
            let changed: Vec<(Item, Option<Arc<Record>>)> = match records.items.since(*cursor) {
                Some(items) => {
                    items.map(|item| (item.clone(), records.items.get(item).cloned())).collect()
                }
                None => records.items.iter().map(|(i, r)| (i.clone(), Some(r.clone()))).collect(),
            };
            *cursor = records.items.cursor();
            changed
        });
        let news = news.unwrap_or_default();
        news.iter().filter_map(|(item, record)| session.on_record(item, record.as_ref())).collect()
    }

    #[allow(clippy::result_large_err)] // tonic's own error type
    async fn send(&self, message: To) -> Result<(), Status> {
        let message = v1::HubMessage { message: Some(message) };
        self.send.send(Ok(message)).await.map_err(|_| Status::cancelled("the agent is gone"))
    }

    /// Stores once. What the apiserver cannot do now goes back to the queue after a pause.
    fn store(
        &self,
        item: Item,
        upload: Upload,
    ) -> impl Future<Output = (Item, Upload, Outcome)> + Send + use<> {
        let AgentApi { hub, shares, stages, .. } = &self.api;
        let (hub, shares, stages) = (hub.clone(), shares.clone(), stages.clone());
        let tenant = self.tenant.clone();
        let there = self.api.records.read(&self.tenant, |all| all.items.get(&item).is_some());
        let known = there.unwrap_or(false);
        async move {
            let is_route = matches!((&item, &upload), (Item::Route(_), Upload::Route(..)));
            let counted = Write::begin(shares, tenant.clone(), is_route);
            let written = write(&hub, &tenant, &item, upload.clone(), known);
            let written = tokio::time::timeout(WRITE_TIMEOUT, written).await;
            let start = counted.end(match written {
                Ok(Ok(())) if is_route && known => Written::Route,
                Ok(Ok(())) if is_route => Written::NewRoute,
                _ => Written::Other,
            });
            let outcome = match written {
                Ok(Ok(())) => {
                    stages.observe("store", start);
                    Outcome::Stored
                }
                Ok(Err(kube::Error::Api(s))) if matches!(s.code, 400 | 403 | 413 | 422) => {
                    warn!(%tenant, ?item, error = s.message, "refused by the apiserver");
                    Outcome::Refused(s.message)
                }
                Ok(Err(error)) => {
                    warn!(%tenant, ?item, %error, "not stored, trying again");
                    pause_after_failure().await;
                    Outcome::Failed
                }
                Err(_) => Outcome::Failed,
            };
            (item, upload, outcome)
        }
    }
}

/// How many items an agent is asked for.
fn asked(action: &Action) -> usize {
    match action {
        Action::Send(To::Want(want)) => want.keys.len(),
        _ => 0,
    }
}

/// One agent's: it waits behind itself anyway.
impl Laned for Item {
    type Lane = ();

    fn lane(&self) {}
}

/// How an upload ended.
enum Outcome {
    Stored,
    /// The apiserver will not have it as it is.
    Refused(String),
    /// It may work later.
    Failed,
}

/// `known`: the item is there already.
async fn write(
    hub: &Hub,
    tenant: &TenantId,
    item: &Item,
    upload: Upload,
    known: bool,
) -> kube::Result<()> {
    match (item, upload) {
        (Item::Route(name), Upload::Route(_, spec)) => {
            let id = RouteId { tenant: tenant.clone(), name: name.clone() };
            hub.store_route(&id, &spec, known).await
        }
        (Item::Route(name), _) => {
            hub.delete_route(&RouteId { tenant: tenant.clone(), name: name.clone() }).await
        }
        (Item::Secret(name), Upload::Secret(_, content)) => {
            hub.store_secret(tenant, name, &content).await
        }
        (Item::Secret(name), _) => hub.delete_secret(tenant, name).await,
        (Item::Nodes, Upload::Nodes(_, spec)) => hub.store_nodes(tenant, spec).await,
        (Item::Nodes, _) => hub.delete_nodes(tenant).await,
    }
}

fn welcome(max_routes: u32) -> v1::Welcome {
    v1::Welcome {
        hub_time: Some(std::time::SystemTime::now().into()),
        max_message_bytes: u32::try_from(MAX_MESSAGE_BYTES).unwrap_or(u32::MAX),
        max_routes,
    }
}
