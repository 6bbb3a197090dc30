//! Wiring.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use fairlead_process::lease::{self, Epoch};
use fairlead_process::locks::lock;
use fairlead_process::metrics::{self, Stages};
use fairlead_process::{apiserver, logs, probes, shutdown};
use fairlead_proto::v1;
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::Event;
use kube::{Client, ResourceExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::Args;
use crate::endpoints::{Endpoints, ServiceKey};
use crate::events::Events;
use crate::identity::{Hub, Keeper, Keys, Source};
use crate::ingress::users::Users;
use crate::ingress::{self};
use crate::link::Link;
use crate::outbox::{Item, Outbox};
use crate::packed::{Kind, Objects, Packed, unpacked};
use crate::plan::{self, Duty};
use crate::reconcile::{self, Context};
use crate::secrets::Secrets;
use crate::shadow;
use crate::turns::Turns;
use crate::watches::{Observed, observe, tell_changes, watch_endpoints, watch_nodes};

/// How often Services are looked for that went without a word.
const SWEEP: Duration = Duration::from_secs(60);
/// A cluster that was not read for so long is another replica's to try.
const READ_WITHIN: Duration = Duration::from_secs(300);

impl Args {
    /// Runs the agent until it is told to stop.
    pub async fn run(self) -> Result<()> {
        logs::init(&self.logs)?;
        let stop = shutdown::on_signal()?;
        let client = apiserver::client("fairlead-agent").await?;
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
        let (moved, endpoints_moved) = mpsc::unbounded_channel();
        let (nodes_read, nodes_ready) = oneshot::channel();
        let (slices_read, slices_ready) = oneshot::channel();
        let mut tasks: JoinSet<Result<()>> = JoinSet::new();
        tasks.spawn(watch_nodes(client.clone(), outbox.clone(), nodes_read));
        tasks.spawn(watch_endpoints(client.clone(), endpoints.clone(), moved, slices_read));

        let (mut services, mut classes, mut ingresses) =
            (observe::<Service>(&client), observe::<IngressClass>(&client), observe(&client));
        let read = async {
            tokio::try_join!(services.read(), classes.read(), ingresses.read())?;
            // A plan without its nodes and endpoints would take traffic away.
            nodes_ready.await?;
            slices_ready.await?;
            anyhow::Ok(())
        };
        let read = tokio::time::timeout(READ_WITHIN, read).await;
        read.context("this cluster cannot be read; see the warnings before")??;
        let users = Arc::new(Mutex::new(Users::default()));
        let all = (&services.objects, &classes.objects, &ingresses.objects);
        expect_all(all, &outbox, &users, self.default_class);
        let (services_again, services_due) = mpsc::unbounded_channel();
        let (ingresses_again, ingresses_due) = mpsc::unbounded_channel();
        let to = (services_again, ingresses_again);
        tasks.spawn(Turns::new(to, &users, &outbox).distribute(to_look_at, endpoints_moved));
        let events = Events::begin(client.clone(), self.name.clone(), &mut tasks);

        let (class_changed, class_changes) = mpsc::unbounded_channel();
        let (named, told, all) = (users.clone(), again.clone(), class_changed.clone());
        let (forgetful, objects) = (endpoints.clone(), services.objects.clone());
        let controller = services
            .controlled(move |event| match event {
                Event::Delete(service) => gone(service, &forgetful, &named, &told),
                // Some may have gone while nobody watched.
                Event::InitDone => drop(all.send(())),
                _ => {}
            })
            .reconcile_on(references::<Service>(services_due))
            .graceful_shutdown_on(stop.clone().cancelled_owned());
        let services = objects;
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
            refused: Mutex::default(),
            again: again.clone(),
        });
        let controlling = controller.run(reconcile::reconcile, reconcile::retry, context);
        tasks.spawn(async move {
            controlling.for_each(|_| async {}).await;
            Ok(())
        });

        let Observed { events: class_events, objects: classes } = classes;
        tasks.spawn(tell_changes(class_events, class_changed));
        let context = Arc::new(ingress::reconcile::Context {
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
        let due = (ingresses_due, class_changes);
        tasks.spawn(keep_ingresses(ingresses, context, due, stop.clone()));

        let hello = v1::Hello {
            agent_version: env!("CARGO_PKG_VERSION").into(),
            cluster_version,
            instance: self.name.clone(),
            epoch,
            time: None,
        };
        tasks.spawn(sweep(services, outbox.clone()));
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
    service: &Packed<Service>,
    endpoints: &Mutex<Endpoints>,
    users: &Mutex<Users>,
    again: &mpsc::UnboundedSender<Item>,
) {
    let key = (service.namespace().unwrap_or_default(), service.name_any());
    lock(endpoints).watch_closely(&key, false);
    let mut users = lock(users);
    users.set_shadow_failure(&key, None);
    // A shadow that somebody deletes is made anew.
    let owner = unpacked(service).and_then(|service| shadow::shadow_of(&service).cloned());
    let owner = owner.map(|owner| (key.0.clone(), owner));
    let ingresses = users.of_service(&key).into_iter().map(Item::Ingress);
    for item in ingresses.chain(owner.map(Item::Service)) {
        // Its receiver lives as long as the process.
        let _ = again.send(item);
    }
}

/// Notes everything that is ours as wanted, so that the first inventory names it all: what it does not
/// name, the hub deletes.
fn expect_all(
    (services, classes, ingresses): (&Objects<Service>, &Objects<IngressClass>, &Objects<Ingress>),
    outbox: &Outbox,
    users: &Mutex<Users>,
    default_class: bool,
) {
    for service in services.iter() {
        if plan::duty(&service, default_class) != Duty::Ignore {
            outbox.expect(reconcile::item(&service));
        }
    }
    let class = |name: &str| classes.of_cluster(name);
    for ingress in ingresses.iter() {
        if !ingress::is_ours(&ingress, &class) {
            continue;
        }
        let namespace = ingress.namespace().unwrap_or_default();
        for (name, _) in ingress::plan::secrets(&ingress) {
            outbox.expect(Item::Secret((namespace.clone(), name)));
        }
        let key = (namespace, ingress.name_any());
        outbox.expect(Item::Ingress(key.clone()));
        // Their shadows are needed, before the Ingress is planned.
        lock(users).set(&key, ingress::plan::services(&ingress), BTreeSet::new());
    }
    info!(services = services.len(), ingresses = ingresses.len(), "this cluster was read");
}

fn references<K: Kind>(
    due: mpsc::UnboundedReceiver<ServiceKey>,
) -> impl Stream<Item = ObjectRef<Packed<K>>> {
    UnboundedReceiverStream::new(due)
        .map(|(namespace, name)| ObjectRef::new(&name).within(&namespace))
}

/// Runs what reconciles Ingresses. They have no finalizer of ours: one that is deleted is noticed here, and one that
/// went while nobody watched by `sweep`, or by the next inventory.
async fn keep_ingresses(
    ingresses: Observed<Ingress>,
    context: Arc<ingress::reconcile::Context>,
    (due, class_changes): (mpsc::UnboundedReceiver<ServiceKey>, mpsc::UnboundedReceiver<()>),
    stop: CancellationToken,
) -> Result<()> {
    let (gone, objects) = (context.clone(), ingresses.objects.clone());
    let controlling = ingresses
        .controlled(move |event| {
            if let Event::Delete(ingress) = event {
                gone.forget(&(ingress.namespace().unwrap_or_default(), ingress.name_any()));
            }
        })
        .reconcile_on(references::<Ingress>(due))
        // A class that changed may change whose any Ingress is.
        .reconcile_on(objects.each_time(class_changes))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(ingress::reconcile::reconcile, ingress::reconcile::retry, context.clone());
    let sweeping = async {
        loop {
            tokio::time::sleep(SWEEP).await;
            ingress::reconcile::sweep(&objects, &context);
        }
    };
    tokio::select! {
        () = controlling.for_each(|_| async {}) => Ok(()),
        () = sweeping => Ok(()),
    }
}

async fn sweep(services: Objects<Service>, outbox: Arc<Outbox>) -> Result<()> {
    loop {
        tokio::time::sleep(SWEEP).await;
        reconcile::sweep(&services, &outbox);
    }
}
