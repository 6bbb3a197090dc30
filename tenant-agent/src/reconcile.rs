//! Carrying plans out in the tenant cluster: finalizers, shadows, statuses, Events.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fairlead_process::metrics::Stages;
use fairlead_process::retry::{absent_is_fine, between};
use fairlead_proto::v1::put::Object;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, Recorder};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::endpoints::{Endpoints, ServiceKey};
use crate::outbox::{Item, Outbox};
use crate::plan::{self, CLEANUP, Duty, FINALIZER, Ports};
use crate::report::{Note, report};
use crate::shadow;

/// The field manager of shadows.
const MANAGER: &str = "fairlead-agent";
/// A hub that says nothing for this long is worth an Event.
const SILENCE: Duration = Duration::from_secs(15);

/// What a reconciliation needs.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) services: Store<Service>,
    pub(crate) endpoints: Arc<Mutex<Endpoints>>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) recorder: Recorder,
    pub(crate) stages: Stages,
    pub(crate) default_class: bool,
    /// Services to look at again.
    pub(crate) again: mpsc::UnboundedSender<ServiceKey>,
}

/// Brings one Service to what it shall be.
pub(crate) async fn reconcile(
    service: Arc<Service>,
    context: Arc<Context>,
) -> kube::Result<Action> {
    if let Some(owner) = shadow::shadow_of(&service) {
        // A shadow that was changed or deleted is its Service's concern.
        let _ = context.again.send((service.namespace().unwrap_or_default(), owner.clone()));
        return Ok(Action::await_change());
    }
    match plan::duty(&service, context.default_class) {
        Duty::Ignore => {
            // Never ours, or somebody took our finalizer away.
            context.outbox.retract(&item(&service));
            Ok(Action::await_change())
        }
        Duty::Publish => context.publish(&service).await,
        Duty::Withdraw => context.withdraw(&service).await,
    }
}

/// What failed is tried again after a pause.
pub(crate) fn retry(service: Arc<Service>, error: &kube::Error, _: Arc<Context>) -> Action {
    warn!(service = %ObjectRef::from_obj(&*service), %error, "not reconciled, trying again");
    Action::requeue(between(Duration::from_secs(1), Duration::from_secs(5)))
}

fn key(service: &Service) -> ServiceKey {
    (service.namespace().unwrap_or_default(), service.name_any())
}

/// Retracts what is wanted for Services that are gone without having been withdrawn: somebody took
/// the finalizer away, and a deletion is no reconciliation.
pub(crate) fn sweep(services: &Store<Service>, outbox: &Outbox) {
    for (namespace, name) in outbox.services() {
        if services.get(&ObjectRef::new(&name).within(&namespace)).is_none() {
            outbox.retract(&Item::Service((namespace, name)));
        }
    }
}

/// The item of a Service's Route.
pub(crate) fn item(service: &Service) -> Item {
    Item::Service(key(service))
}

impl Context {
    fn api(&self, service: &Service) -> Api<Service> {
        Api::namespaced(self.client.clone(), &service.namespace().unwrap_or_default())
    }

    async fn publish(&self, service: &Service) -> kube::Result<Action> {
        let start = Instant::now();
        let ports = plan::ports(service);
        if !ports.served.is_empty() && !plan::has_finalizer(service) {
            self.hold(service).await?;
            self.tell(service, &Note::normal("EnsuringLoadBalancer", "Publishing through the hub"))
                .await;
        }
        let node_ports = self.node_ports(service, &ports).await?;
        let ready =
            self.endpoints.lock().unwrap_or_else(PoisonError::into_inner).ready(&key(service));
        let route = plan::route(service, &ports, &node_ports, &ready);
        self.stages.observe("plan", start);
        let item = item(service);
        match route {
            Some(route) => self.outbox.put(item.clone(), Object::Route(route)),
            None => self.outbox.retract(&item),
        }
        self.report(service, &ports, &item).await
    }

    async fn report(&self, service: &Service, ports: &Ports, item: &Item) -> kube::Result<Action> {
        let word = self.outbox.word(item);
        let report = report(service, ports, word.as_ref(), &Time(jiff::Timestamp::now()));
        let status = service.status.clone().unwrap_or_default();
        let shown = status.load_balancer.and_then(|lb| lb.ingress).unwrap_or_default();
        if report.conditions != status.conditions.unwrap_or_default() || report.ingress != shown {
            let start = Instant::now();
            let status = json!({
                "loadBalancer": {"ingress": report.ingress},
                "conditions": report.conditions,
            });
            let patch = Patch::Merge(json!({ "status": status }));
            self.api(service)
                .patch_status(&service.name_any(), &PatchParams::default(), &patch)
                .await?;
            self.stages.observe("report", start);
        }
        for note in &report.events {
            self.tell(service, note).await;
        }
        if word.is_some() || ports.served.is_empty() {
            return Ok(Action::await_change());
        }
        // The hub has not spoken yet. It wakes us when it does; if it cannot, somebody should know.
        if let Some(why) = self.outbox.down() {
            let message = format!("HubUnreachable: the hub cannot be reached, trying again: {why}");
            self.tell(service, &Note::warning("SyncLoadBalancerFailed", message)).await;
        }
        Ok(Action::requeue(SILENCE))
    }

    /// The node ports of what is served, in order: the Service's own, or those of its shadow.
    async fn node_ports(&self, service: &Service, ports: &Ports) -> kube::Result<Vec<i32>> {
        if !ports.needs_shadow {
            self.drop_shadow(service).await?;
            return Ok(ports.served.iter().map(|port| port.node_port.unwrap_or(0)).collect());
        }
        let wanted = shadow::shadow(service);
        let start = Instant::now();
        let name = wanted.name_any();
        let params = PatchParams::apply(MANAGER).force();
        let made = self.api(service).patch(&name, &params, &Patch::Apply(&wanted)).await?;
        self.stages.observe("apply", start);
        let made = made.spec.and_then(|spec| spec.ports).unwrap_or_default();
        let of = |port: i32, protocol: &Option<String>| {
            let same = made.iter().find(|made| made.port == port && made.protocol == *protocol);
            same.and_then(|made| made.node_port).unwrap_or(0)
        };
        Ok(ports.served.iter().map(|port| of(port.port, &port.protocol)).collect())
    }

    async fn drop_shadow(&self, service: &Service) -> kube::Result<()> {
        let name = shadow::name(&service.name_any());
        let reference = ObjectRef::new(&name).within(&service.namespace().unwrap_or_default());
        let Some(found) = self.services.get(&reference) else { return Ok(()) };
        if shadow::shadow_of(&found) != Some(&service.name_any()) {
            return Ok(());
        }
        absent_is_fine(self.api(service).delete(&name, &DeleteParams::default()).await.map(drop))
    }

    /// Sets the finalizers, before anything is made on the hub.
    async fn hold(&self, service: &Service) -> kube::Result<()> {
        let mut all = service.finalizers().to_vec();
        for ours in [FINALIZER, CLEANUP] {
            if !all.iter().any(|one| one == ours) {
                all.push(ours.to_owned());
            }
        }
        self.set_finalizers(service, &all).await
    }

    async fn set_finalizers(&self, service: &Service, all: &[String]) -> kube::Result<()> {
        // With the version that was read: somebody else's finalizer is never lost.
        let metadata = json!({"finalizers": all, "resourceVersion": service.resource_version()});
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        absent_is_fine(
            self.api(service)
                .patch(&service.name_any(), &PatchParams::default(), &patch)
                .await
                .map(drop),
        )
    }

    /// First the hub lets go, then the shadow, the status and the finalizers go.
    async fn withdraw(&self, service: &Service) -> kube::Result<Action> {
        let item = item(service);
        let forced = plan::is_forced(service);
        if forced {
            // Told when that is possible, and not waited for.
            self.outbox.retract(&item);
        } else if !self.outbox.delete(&item) {
            if let Some(why) = self.outbox.down() {
                let message = format!(
                    "HubUnreachable: the Service goes once the hub has let go of it, and the hub cannot be \
                     reached: {why}. To let it go at once: kubectl annotate service {} {}=true",
                    service.name_any(),
                    plan::FORCE,
                );
                self.tell(service, &Note::warning("SyncLoadBalancerFailed", message)).await;
            } else {
                self.tell(
                    service,
                    &Note::normal("DeletingLoadBalancer", "Withdrawing from the hub"),
                )
                .await;
            }
            return Ok(Action::requeue(SILENCE));
        }
        self.drop_shadow(service).await?;
        if service.metadata.deletion_timestamp.is_none() {
            self.clear_status(service).await?;
        }
        let left: Vec<_> = service
            .finalizers()
            .iter()
            .filter(|one| ![FINALIZER, CLEANUP].contains(&one.as_str()))
            .cloned()
            .collect();
        self.set_finalizers(service, &left).await?;
        info!(service = %ObjectRef::from_obj(service), forced, "withdrawn");
        self.tell(service, &Note::normal("DeletedLoadBalancer", "Withdrawn from the hub")).await;
        Ok(Action::await_change())
    }

    async fn clear_status(&self, service: &Service) -> kube::Result<()> {
        let conditions =
            service.status.clone().and_then(|status| status.conditions).unwrap_or_default();
        let kept: Vec<_> = conditions.into_iter().filter(|c| !crate::report::is_ours(c)).collect();
        let status = json!({"loadBalancer": {"ingress": null}, "conditions": kept});
        let patch = Patch::Merge(json!({ "status": status }));
        absent_is_fine(
            self.api(service)
                .patch_status(&service.name_any(), &PatchParams::default(), &patch)
                .await
                .map(drop),
        )
    }

    async fn tell(&self, service: &Service, note: &Note) {
        // An Event's note has at most 1,024 bytes.
        let text: String = note.message.chars().take(1_000).collect();
        let event = Event {
            type_: note.kind,
            reason: note.reason.to_owned(),
            note: Some(text),
            // Events of one reason are folded into the first by kube's Recorder; the word before the
            // colon keeps different ones apart.
            action: note
                .message
                .split(':')
                .next()
                .filter(|word| !word.contains(' '))
                .unwrap_or("Publish")
                .into(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &service.object_ref(&())).await {
            warn!(%error, "Event not written");
        }
    }
}
