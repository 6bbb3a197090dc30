//! Wiring.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use fairlead_process::lease::{self, Epoch};
use fairlead_process::locks::lock;
use fairlead_process::metrics::{self, Stages};
use fairlead_process::{lean, logs, probes, shutdown};
use fairlead_proto::v1;
use fairlead_proto::v1::put::Object;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::api::ListParams;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{Controller, WatchStreamExt, controller};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Args;
use crate::endpoints::{Endpoints, SERVICE, ServiceKey};
use crate::events::Events;
use crate::identity::{Hub, Keeper, Keys, Source};
use crate::ingress::users::Users;
use crate::ingress::{self};
use crate::link::Link;
use crate::nodes;
use crate::outbox::{Item, Outbox};
use crate::plan::{self, Duty};
use crate::reconcile::{self, Context};
use crate::secrets::Secrets;
use crate::shadow::{self, SHADOW_OF};

/// How often Services are looked for that went without a word.
const SWEEP: Duration = Duration::from_secs(60);
/// Reconciliations at the same time, of Services and of Ingresses each.
const RECONCILIATIONS: u16 = 16;

impl Args {
    /// Runs the agent until it is told to stop.
    pub async fn run(self) -> Result<()> {
        logs::init(&self.logs)?;
        let stop = shutdown::on_signal()?;
        let client =
            Client::try_default().await.context("no access to this cluster's apiserver")?;
        let (registry, stages) = metrics::registry();
        let readiness = probes::Readiness::default();
        let (mut leadership, standing) = lease::run(
            client.clone(),
            &self.namespace,
            "fairlead-agent",
            self.name.clone(),
            stop.clone(),
        );
        let probing =
            tokio::spawn(probes::serve(self.probe_address, registry, readiness, stop.clone()));
        let epoch = loop {
            tokio::select! {
                () = leadership.changed() => {}
                () = stop.cancelled() => return Ok(()),
            }
            if let Some(epoch) = leadership.epoch() {
                break epoch;
            }
        };
        let lost = async {
            while leadership.epoch().is_some() {
                tokio::select! {
                    () = leadership.changed() => {}
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                }
            }
        };
        tokio::select! {
            ended = self.lead(client, stages, epoch, &stop) => ended?,
            // The next one begins as a replica like any other.
            () = lost => {
                if !stop.is_cancelled() {
                    bail!("the lease was lost");
                }
            }
            ended = probing => ended??,
            () = stop.cancelled() => {}
        }
        standing.await?;
        Ok(())
    }

    /// What the one replica that leads does.
    async fn lead(
        &self,
        client: Client,
        stages: Stages,
        epoch: Epoch,
        stop: &CancellationToken,
    ) -> Result<()> {
        let cluster_version = client.apiserver_version().await?.git_version;
        let keys = Keys::new(client.clone(), &self.namespace, &self.identity_secret);
        let outbox = Arc::new(Outbox::default());
        let endpoints = Arc::new(Mutex::new(Endpoints::default()));
        let (again, to_look_at) = mpsc::unbounded_channel();
        let (nodes_read, nodes_ready) = oneshot::channel();
        let (slices_read, slices_ready) = oneshot::channel();
        let mut tasks: JoinSet<Result<()>> = JoinSet::new();
        tasks.spawn(watch_nodes(client.clone(), outbox.clone(), nodes_read));
        tasks.spawn(watch_endpoints(client.clone(), endpoints.clone(), again.clone(), slices_read));

        let users = Arc::new(Mutex::new(Users::default()));
        expect_all(&client, &outbox, &users, self.default_class).await?;
        // A plan without its nodes and endpoints would take traffic away.
        nodes_ready.await?;
        slices_ready.await?;
        let (services_again, services_due) = mpsc::unbounded_channel();
        let (ingresses_again, ingresses_due) = mpsc::unbounded_channel();
        tasks.spawn(distribute(to_look_at, services_again, ingresses_again, users.clone()));
        let events = Events::begin(client.clone(), self.name.clone(), &mut tasks);

        let Observed { events: service_events, store: services, read: services_read } =
            observe::<Service>(&client);
        let (class_changed, class_changes) = mpsc::unbounded_channel();
        let (named, told, all) = (users.clone(), again.clone(), class_changed.clone());
        let forgetful = endpoints.clone();
        let service_events = service_events.inspect_ok(move |event| match event {
            Event::Delete(service) => gone(service, &forgetful, &named, &told),
            // Some may have gone while nobody watched.
            Event::InitDone => drop(all.send(())),
            _ => {}
        });
        let controller = Controller::for_stream(service_events.applied_objects(), services.clone())
            .owns(Api::<Service>::all(client.clone()), watcher::Config::default().labels(SHADOW_OF))
            .reconcile_on(references::<Service>(services_due))
            .with_config(concurrency())
            .graceful_shutdown_on(stop.clone().cancelled_owned());
        let context = Arc::new(Context {
            client: client.clone(),
            services: services.clone(),
            endpoints: endpoints.clone(),
            users: users.clone(),
            outbox: outbox.clone(),
            events: events.clone(),
            stages: stages.clone(),
            default_class: self.default_class,
            unneeded: Mutex::default(),
            again: again.clone(),
        });
        let controlling = controller.run(reconcile::reconcile, reconcile::retry, context);
        tasks.spawn(async move {
            controlling.for_each(|_| async {}).await;
            Ok(())
        });

        let Observed { events: class_events, store: classes, read: classes_read } =
            observe::<IngressClass>(&client);
        tasks.spawn(async move {
            let mut changes = std::pin::pin!(class_events.touched_objects());
            while changes.next().await.is_some() {
                let _ = class_changed.send(());
            }
            Ok(())
        });
        let ingresses = Arc::new(ingress::reconcile::Context {
            client: client.clone(),
            classes,
            services: services.clone(),
            endpoints,
            users,
            secrets: Secrets::new(client.clone(), outbox.clone(), again.clone()),
            outbox: outbox.clone(),
            events,
            stages: stages.clone(),
            again: again.clone(),
            told: Mutex::default(),
        });
        let read = [services_read.clone(), classes_read];
        let due = (ingresses_due, class_changes);
        tasks.spawn(watch_ingresses(client, ingresses, read, due, stop.clone()));

        let hello = v1::Hello {
            agent_version: env!("CARGO_PKG_VERSION").into(),
            cluster_version,
            instance: self.name.clone(),
            epoch,
            time: None,
        };
        tasks.spawn(sweep(services, services_read, outbox.clone()));
        let (hub, hub_name) = (self.hub.clone(), self.hub_name.clone());
        let credentials = self.identity(keys, &outbox, &mut tasks);
        let link = Link { hub, hub_name, credentials, hello, outbox, stages, news: again };
        tasks.spawn(async move {
            link.run().await;
            Ok(())
        });
        match tasks.join_next().await {
            Some(ended) => ended?,
            None => Ok(()),
        }
    }
}

impl Args {
    /// Where this agent's credentials come from; begins to keep them, where nobody else does.
    fn identity(
        &self,
        store: Keys,
        outbox: &Arc<Outbox>,
        tasks: &mut JoinSet<Result<()>>,
    ) -> Source {
        if let Some(folder) = &self.tls {
            return Source::Folder(folder.clone());
        }
        let (credentials, kept) = watch::channel(None);
        let keeper = Keeper {
            hub: Hub {
                address: self.hub.clone(),
                name: self.hub_name.clone(),
                clock: Arc::default(),
            },
            token: self.join_token.clone(),
            store,
            outbox: outbox.clone(),
            credentials,
        };
        tasks.spawn(async move {
            keeper.run().await;
            Ok(())
        });
        Source::Kept(kept)
    }
}

/// A Service is gone. It has no finalizer for the Ingresses that name it, and no reconciliation either.
fn gone(
    service: &Service,
    endpoints: &Mutex<Endpoints>,
    users: &Mutex<Users>,
    again: &mpsc::UnboundedSender<Item>,
) {
    let key = (service.namespace().unwrap_or_default(), service.name_any());
    lock(endpoints).watch_closely(&key, false);
    let mut users = lock(users);
    users.set_shadow_failure(&key, None);
    // A shadow that somebody deletes is made anew.
    let owner = shadow::shadow_of(service).map(|owner| (key.0.clone(), owner.clone()));
    let ingresses = users.of_service(&key).into_iter().map(Item::Ingress);
    for item in ingresses.chain(owner.map(Item::Service)) {
        // Its receiver lives as long as the process.
        let _ = again.send(item);
    }
}

/// Notes everything that is ours as wanted, so that the first inventory names it all: what it does not
/// name, the hub deletes.
async fn expect_all(
    client: &Client,
    outbox: &Outbox,
    users: &Mutex<Users>,
    default_class: bool,
) -> Result<()> {
    for_all(client, |service: Service| {
        if plan::duty(&service, default_class) != Duty::Ignore {
            outbox.expect(reconcile::item(&service));
        }
    })
    .await?;
    let mut classes = HashMap::new();
    for_all(client, |class: IngressClass| drop(classes.insert(class.name_any(), Arc::new(class))))
        .await?;
    for_all(client, |ingress: Ingress| {
        if !ingress::is_ours(&ingress, &|name| classes.get(name).cloned()) {
            return;
        }
        let namespace = ingress.namespace().unwrap_or_default();
        for (name, _) in ingress::plan::secrets(&ingress) {
            outbox.expect(Item::Secret((namespace.clone(), name)));
        }
        let key = (namespace, ingress.name_any());
        outbox.expect(Item::Ingress(key.clone()));
        // Their shadows are needed, before the Ingress is planned.
        let services = ingress::plan::services(&ingress);
        let mut users = lock(users);
        users.set(&key, services, BTreeSet::new());
    })
    .await
}

/// All objects of a kind, a page at a time.
async fn for_all<K>(client: &Client, mut each: impl FnMut(K)) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api = Api::<K>::all(client.clone());
    let mut page = ListParams::default().limit(500);
    loop {
        let list = api.list(&page).await?;
        list.items.into_iter().for_each(&mut each);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(()),
        }
    }
}

/// Takes what is to be looked at to those who look.
async fn distribute(
    mut items: mpsc::UnboundedReceiver<Item>,
    services: mpsc::UnboundedSender<ServiceKey>,
    ingresses: mpsc::UnboundedSender<ServiceKey>,
    users: Arc<Mutex<Users>>,
) -> Result<()> {
    while let Some(item) = items.recv().await {
        // The receivers live as long as the process.
        match item {
            Item::Nodes => {}
            Item::Service(key) => drop(services.send(key)),
            Item::Ingress(key) => drop(ingresses.send(key)),
            Item::Secret(key) => {
                let naming = lock(&users).of_secret(&key);
                for key in naming {
                    let _ = ingresses.send(key);
                }
            }
        }
    }
    Ok(())
}

/// How much is done at a time. Each reconciliation waits for writes of its own, and may have a connection of its own:
/// all objects of a large cluster at once leave the apiserver no time for the lease.
fn concurrency() -> controller::Config {
    controller::Config::default().concurrency(RECONCILIATIONS)
}

fn references<K: Resource<DynamicType = ()>>(
    due: mpsc::UnboundedReceiver<ServiceKey>,
) -> impl Stream<Item = ObjectRef<K>> {
    UnboundedReceiverStream::new(due)
        .map(|(namespace, name)| ObjectRef::<K>::new(&name).within(&namespace))
}

/// All objects of a kind.
struct Observed<K: Resource<DynamicType = ()> + Clone + 'static> {
    /// To be polled, or nothing is read.
    events: BoxStream<'static, Result<Event<K>, watcher::Error>>,
    /// What [`slim`] leaves of them: not for writing back.
    store: Store<K>,
    /// Cancelled once all were read. `Store::wait_until_ready` wakes only the last of several tasks
    /// that wait for it.
    read: CancellationToken,
}

fn observe<K>(client: &Client) -> Observed<K>
where
    K: lean::Kind + Sync,
{
    let (store, writer) = reflector::store();
    let read = CancellationToken::new();
    let done = read.clone();
    let events = lean::watch::<K>(client.clone(), watcher::Config::default());
    let events = events.default_backoff().modify(slim);
    let events = reflector::reflector(writer, events).inspect(move |event| match event {
        Ok(Event::InitDone) => done.cancel(),
        Err(error) => warn!(kind = %K::kind(&()), %error, "watch interrupted"),
        Ok(_) => {}
    });
    Observed { events: events.boxed(), store, read }
}

/// Takes away what is of no use here and is much of an object in memory: kubectl's own copy of it, labels that nobody
/// here reads, and room in its lists (serde's have room for four).
fn slim<K: Resource + Clone>(object: &mut K) {
    let meta = object.meta_mut();
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    if let Some(labels) = &mut meta.labels {
        labels.retain(|label, _| label == SHADOW_OF);
    }
    meta.labels.take_if(|labels| labels.is_empty());
    meta.annotations.take_if(|annotations| annotations.is_empty());
    // A copy has no more room than it needs.
    *object = object.clone();
}

/// Watches Ingresses. They have no finalizer of ours: one that is deleted is noticed here, and one that
/// went while nobody watched by `sweep`, or by the next inventory.
async fn watch_ingresses(
    client: Client,
    context: Arc<ingress::reconcile::Context>,
    read: [CancellationToken; 2],
    (due, class_changes): (mpsc::UnboundedReceiver<ServiceKey>, mpsc::UnboundedReceiver<()>),
    stop: CancellationToken,
) -> Result<()> {
    // Without these every backend would be missing.
    for kind in read {
        kind.cancelled().await;
    }
    let Observed { events, store, read } = observe::<Ingress>(&client);
    let gone = context.clone();
    let stream = events.inspect_ok(move |event| {
        if let Event::Delete(ingress) = event {
            gone.forget(&(ingress.namespace().unwrap_or_default(), ingress.name_any()));
        }
    });
    let controlling = Controller::for_stream(stream.applied_objects(), store.clone())
        .reconcile_on(references::<Ingress>(due))
        // A class that changed may change whose any Ingress is.
        .reconcile_all_on(UnboundedReceiverStream::new(class_changes))
        .with_config(concurrency())
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(ingress::reconcile::reconcile, ingress::reconcile::retry, context.clone());
    let sweeping = async {
        // An empty store would take all away.
        read.cancelled().await;
        loop {
            tokio::time::sleep(SWEEP).await;
            ingress::reconcile::sweep(&store, &context);
        }
    };
    tokio::select! {
        () = controlling.for_each(|_| async {}) => Ok(()),
        () = sweeping => Ok(()),
    }
}

async fn sweep(
    services: Store<Service>,
    read: CancellationToken,
    outbox: Arc<Outbox>,
) -> Result<()> {
    read.cancelled().await;
    info!(services = services.len(), "this cluster was read");
    loop {
        tokio::time::sleep(SWEEP).await;
        reconcile::sweep(&services, &outbox);
    }
}

/// Tells the hub of nodes, from the first complete list on.
async fn watch_nodes(client: Client, outbox: Arc<Outbox>, read: oneshot::Sender<()>) -> Result<()> {
    let stream = watcher::watcher(Api::<Node>::all(client), watcher::Config::default());
    let mut stream = std::pin::pin!(stream.default_backoff());
    let (mut all, mut listing) = (BTreeMap::new(), None);
    let mut read = Some(read);
    loop {
        match stream.try_next().await {
            Ok(None) => return Ok(()),
            Ok(Some(Event::Init)) => listing = Some(BTreeMap::new()),
            Ok(Some(Event::InitApply(node))) => note(listing.get_or_insert_default(), &node),
            Ok(Some(Event::InitDone)) => {
                all = listing.take().unwrap_or_default();
                read.take().map(|read| read.send(()));
            }
            Ok(Some(Event::Apply(node))) => note(&mut all, &node),
            Ok(Some(Event::Delete(node))) => drop(all.remove(&node.name_any())),
            Err(error) => {
                warn!(%error, "watch of nodes interrupted");
                continue;
            }
        }
        if listing.is_none() {
            outbox.put(Item::Nodes, Object::Nodes(nodes::node_set(&all)));
        }
    }
}

fn note(nodes: &mut BTreeMap<String, Vec<String>>, node: &Node) {
    match nodes::addresses(node) {
        Some(addresses) => drop(nodes.insert(node.name_any(), addresses)),
        None => drop(nodes.remove(&node.name_any())),
    }
}

/// Keeps the endpoints, and tells which Services they changed.
async fn watch_endpoints(
    client: Client,
    endpoints: Arc<Mutex<Endpoints>>,
    again: mpsc::UnboundedSender<Item>,
    read: oneshot::Sender<()>,
) -> Result<()> {
    let config = watcher::Config::default().labels(SERVICE);
    let stream = lean::watch::<EndpointSlice>(client, config);
    let mut stream = std::pin::pin!(stream.default_backoff());
    let mut read = Some(read);
    loop {
        let mut changed = Vec::new();
        match stream.try_next().await {
            Ok(None) => return Ok(()),
            Ok(Some(Event::Init)) => lock(&endpoints).begin_list(),
            Ok(Some(Event::InitApply(slice) | Event::Apply(slice))) => {
                changed.extend(lock(&endpoints).apply(&slice));
            }
            Ok(Some(Event::InitDone)) => {
                changed = lock(&endpoints).end_list();
                read.take().map(|read| read.send(()));
            }
            Ok(Some(Event::Delete(slice))) => changed.extend(lock(&endpoints).delete(&slice)),
            Err(error) => warn!(%error, "watch of EndpointSlices interrupted"),
        }
        for service in changed {
            // Its receiver lives as long as the process.
            let _ = again.send(Item::Service(service));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_object_stays_what_is_read_here() {
        let mut service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": "web",
                "finalizers": ["example.com/other"],
                "labels": {"app": "web", SHADOW_OF: "shop"},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
            },
            "spec": {"ports": [{"port": 80}]},
        }))
        .unwrap();
        slim(&mut service);
        assert_eq!(service.metadata.labels, Some([(SHADOW_OF.into(), "shop".into())].into()));
        assert_eq!(service.metadata.annotations, None);
        assert_eq!(service.metadata.finalizers.as_deref().map(<[_]>::len), Some(1));
        let ports = service.spec.and_then(|spec| spec.ports).unwrap();
        assert_eq!((ports.len(), ports.capacity()), (1, 1));
    }
}
