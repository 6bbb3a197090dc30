//! What is watched in the tenant's cluster, and what of it is kept.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::{Result, bail};
use fairlead_process::lean;
use fairlead_process::locks::lock;
use fairlead_proto::v1::put::Object;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::reflector;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{Controller, WatchStreamExt, controller};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::endpoints::{Changed, Endpoints, SERVICE};
use crate::nodes;
use crate::outbox::{Item, Outbox};
use crate::packed::{Kind, Objects, Packed};
use crate::shadow::SHADOW_OF;

/// Reconciliations of a kind at the same time. Each waits for writes of its own, and may have a connection of its own: all
/// objects of a large cluster at once leave the apiserver no time for the lease.
const RECONCILIATIONS: u16 = 16;

type Events<K> = BoxStream<'static, watcher::Result<Event<K>>>;

/// All objects of a kind.
pub(crate) struct Observed<K: Kind> {
    /// To be polled, or nothing is read.
    pub(crate) events: Events<Packed<K>>,
    /// What [`slim`] leaves of them: not for writing back.
    pub(crate) objects: Objects<K>,
}

impl<K: Kind> Observed<K> {
    /// Reads all that there are. They are in the store then, and `events` begins after them.
    ///
    /// # Errors
    /// The watch ended, which it never does: what was not read is not gone.
    pub(crate) async fn read(&mut self) -> Result<()> {
        // Errors were told of, and are tried again.
        while let Some(event) = self.events.next().await {
            if matches!(event, Ok(Event::InitDone)) {
                return Ok(());
            }
        }
        bail!("the watch of {} ended", K::plural(&()))
    }

    /// What reconciles each object: all that were read, what changes, and all again once a list was read anew, for
    /// only then the store has what came and went meanwhile. `note` sees each event before.
    pub(crate) fn controlled(
        self,
        mut note: impl FnMut(&Event<Packed<K>>) + Send + 'static,
    ) -> Controller<Packed<K>> {
        let (all, read) = mpsc::unbounded_channel();
        // The receiver lives as long as the controller.
        let _ = all.send(());
        let events = self.events.inspect_ok(move |event| {
            note(event);
            if matches!(event, Event::InitDone) {
                let _ = all.send(());
            }
        });
        Controller::for_stream(events.applied_objects(), self.objects.store())
            .reconcile_on(self.objects.each_time(read))
            .with_config(controller::Config::default().concurrency(RECONCILIATIONS))
    }
}

/// Begins to watch a kind.
pub(crate) fn observe<K: Kind>(client: &Client) -> Observed<K> {
    let (store, writer) = reflector::store();
    let events = lean::watch::<K>(client.clone(), watcher::Config::default());
    let events = events.default_backoff().modify(slim);
    let events = events.map_ok(|event| lean::map(event, |object| Packed::of(&object)));
    let events = reflector::reflector(writer, events).inspect(|event| {
        if let Err(error) = event {
            warn!(kind = %K::kind(&()), %error, "watch interrupted");
        }
    });
    Observed { events: events.boxed(), objects: Objects::new(store) }
}

/// Tells when objects of a kind changed: once a list was read anew as well, for one may have gone.
pub(crate) async fn tell_changes<K>(
    mut events: Events<K>,
    changed: mpsc::UnboundedSender<()>,
) -> Result<()> {
    while let Some(event) = events.next().await {
        if matches!(event, Ok(Event::Apply(_) | Event::Delete(_) | Event::InitDone)) {
            // Its receiver lives as long as the process.
            let _ = changed.send(());
        }
    }
    Ok(())
}

/// Takes away what is of no use here and is much of an object in memory: kubectl's own copy of it, labels that nobody
/// here reads.
fn slim<K: Resource>(object: &mut K) {
    let meta = object.meta_mut();
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    if let Some(labels) = &mut meta.labels {
        labels.retain(|label, _| label == SHADOW_OF);
    }
    meta.labels.take_if(|labels| labels.is_empty());
    meta.annotations.take_if(|annotations| annotations.is_empty());
}

/// Tells the hub of nodes, from the first complete list on.
pub(crate) async fn watch_nodes(
    client: Client,
    outbox: Arc<Outbox>,
    read: oneshot::Sender<()>,
) -> Result<()> {
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
pub(crate) async fn watch_endpoints(
    client: Client,
    endpoints: Arc<Mutex<Endpoints>>,
    to: mpsc::UnboundedSender<Changed>,
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
        for changed in changed {
            // Its receiver lives as long as the process.
            let _ = to.send(changed);
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;

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
    }
}
