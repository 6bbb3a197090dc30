//! Carrying plans out in the tenant cluster: finalizers, shadows, statuses, Events.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fairlead_process::locks::lock;
use fairlead_process::metrics::Stages;
use fairlead_process::retry::{absent_is_fine, between};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::endpoints::{self, Endpoints, SERVICE, ServiceKey};
use crate::events::Events;
use crate::ingress::users::Users;
use crate::mirror;
use crate::outbox::{Item, Outbox, pushed};
use crate::packed::{Objects, Packed};
use crate::plan::{self, CLEANUP, Duty, FINALIZER, Ports, Ways};
use crate::report::{Note, given_ports, report};
use crate::settings::{GIVEN_PORTS, Settings};
use crate::{shadow, slots};

/// The field manager of shadows.
const MANAGER: &str = "fairlead-agent";
/// A hub that says nothing for this long is worth an Event.
pub(crate) const SILENCE: Duration = Duration::from_secs(15);

/// Events are kept for an hour: what lasts is told again meanwhile.
const TOLD_AGAIN: Duration = Duration::from_secs(1_800);

/// How long a shadow outlives its need: until then Envoys know what came in its place.
const GRACE: Duration = Duration::from_secs(10);

/// What a reconciliation needs.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) services: Objects<Service>,
    pub(crate) endpoints: Arc<Mutex<Endpoints>>,
    pub(crate) users: Arc<Mutex<Users>>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) events: Events,
    pub(crate) stages: Stages,
    pub(crate) default_class: bool,
    /// Shadows that nobody needs, and since when.
    pub(crate) unneeded: Mutex<HashMap<ServiceKey, Instant>>,
    /// Services of which the apiserver refuses something, and when that was told.
    pub(crate) refused: Mutex<HashMap<ServiceKey, Instant>>,
    /// What to look at again.
    pub(crate) again: mpsc::UnboundedSender<Item>,
}

/// Brings one Service to what it shall be.
pub(crate) async fn reconcile(
    service: Arc<Packed<Service>>,
    context: Arc<Context>,
) -> kube::Result<Action> {
    let service = service.unpack().map_err(kube::Error::SerdeError)?;
    if let Some(owner) = shadow::shadow_of(&service) {
        // A shadow that was changed or deleted is its Service's concern.
        let owner = (service.namespace().unwrap_or_default(), owner.clone());
        let _ = context.again.send(Item::Service(owner));
        return Ok(Action::await_change());
    }
    // Ingresses may name any Service.
    let ended = context.attend(&service).await;
    context.wake_users(&service);
    context.tell_refusal(&service, ended.as_ref().err().and_then(refusal));
    ended
}

/// What an apiserver said that somebody has to mend: a quota, an admission policy. `None`: it may go by itself.
fn refusal(error: &kube::Error) -> Option<&str> {
    match error {
        kube::Error::Api(status) if [400, 403, 422].contains(&status.code) => Some(&status.message),
        _ => None,
    }
}

impl Context {
    async fn attend(&self, service: &Service) -> kube::Result<Action> {
        match plan::duty(service, self.default_class) {
            Duty::Ignore => {
                // Never ours, or somebody took our finalizer away.
                self.outbox.retract(&item(service));
                self.slots(service, false).await?;
                self.shadow(service, false).await?;
                Ok(Action::await_change())
            }
            Duty::Publish => self.publish(service).await,
            Duty::Withdraw => self.withdraw(service).await,
        }
    }

    fn users(&self) -> std::sync::MutexGuard<'_, Users> {
        lock(&self.users)
    }

    /// Says why a Service cannot be published: now, and again while that lasts.
    fn tell_refusal(&self, service: &Service, why: Option<&str>) {
        let mut refused = lock(&self.refused);
        let Some(why) = why else {
            refused.remove(&key(service));
            return;
        };
        let now = Instant::now();
        if refused.get(&key(service)).is_some_and(|told| now - *told < TOLD_AGAIN) {
            return;
        }
        refused.insert(key(service), now);
        let message = format!(
            "Refused: this cluster's apiserver refuses what it takes to publish the Service, trying again: {why}"
        );
        self.tell(service, &Note::warning("SyncLoadBalancerFailed", message));
    }

    /// The Ingresses that name a Service look at it again.
    fn wake_users(&self, service: &Service) {
        for ingress in self.users().of_service(&key(service)) {
            let _ = self.again.send(Item::Ingress(ingress));
        }
    }
}

/// What failed is tried again after a pause.
pub(crate) fn retry(service: Arc<Packed<Service>>, error: &kube::Error, _: Arc<Context>) -> Action {
    let service = ObjectRef::from_obj(&*service);
    match error {
        // As it is now it is on its way here.
        kube::Error::Api(status) if status.code == 409 => debug!(%service, "changed meanwhile"),
        error => warn!(%service, %error, "not reconciled, trying again"),
    }
    Action::requeue(between(Duration::from_secs(1), Duration::from_secs(5)))
}

/// It goes, or nothing is behind it that a node port could lead to.
fn cannot_have_shadows(service: &Service) -> bool {
    let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
    service.metadata.deletion_timestamp.is_some() || kind == Some("ExternalName")
}

fn key(service: &Service) -> ServiceKey {
    (service.namespace().unwrap_or_default(), service.name_any())
}

/// Retracts what is wanted for Services that are gone without having been withdrawn: somebody took
/// the finalizer away, and a deletion is no reconciliation.
pub(crate) fn sweep(services: &Objects<Service>, outbox: &Outbox) {
    for item in outbox.items() {
        if let Item::Service(key) = &item
            && !services.has(key)
        {
            outbox.retract(&item);
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
        let (settings, complaints) = Settings::parse(service);
        let ports = plan::ports(service);
        let is_new = !ports.served.is_empty() && !plan::has_finalizer(service);
        if is_new {
            self.hold(service).await?;
        }
        let sticky = plan::is_sticky(&settings) && !ports.served.is_empty();
        let ways = self.ways(service, &ports, sticky).await?;
        let ready = lock(&self.endpoints).ready(&key(service));
        let route = plan::route(service, &settings, &complaints, &ports, &ways, &ready);
        self.stages.observe("plan", start);
        let item = item(service);
        match route {
            Some(route) => self.outbox.put(item.clone(), pushed(&route)),
            // A node port is yet to be had: what the hub has stays.
            None if !ports.served.is_empty() => self.outbox.keep(item.clone()),
            None => self.outbox.retract(&item),
        }
        if is_new {
            self.tell(service, &Note::normal("EnsuringLoadBalancer", "Publishing through the hub"));
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
            self.tell(service, note);
        }
        self.tell_ports(service, given_ports(word.as_ref())).await?;
        if word.is_some() || ports.served.is_empty() {
            return Ok(Action::await_change());
        }
        // The hub has not spoken yet. It wakes us when it does; if it cannot, somebody should know.
        if let Some(why) = self.outbox.down() {
            let message = format!("HubUnreachable: the hub cannot be reached, trying again: {why}");
            self.tell(service, &Note::warning("SyncLoadBalancerFailed", message));
        }
        Ok(Action::requeue(SILENCE))
    }

    /// Says in an annotation which ports were given, for those who read objects.
    async fn tell_ports(&self, service: &Service, given: Option<String>) -> kube::Result<()> {
        let Some(given) = given else { return Ok(()) };
        let shown = service.annotations().get(GIVEN_PORTS).map_or("", String::as_str);
        if shown == given {
            return Ok(());
        }
        let value = if given.is_empty() { json!(null) } else { json!(given) };
        let patch = Patch::Merge(json!({"metadata": {"annotations": {GIVEN_PORTS: value}}}));
        let params = PatchParams::default();
        absent_is_fine(
            self.api(service).patch(&service.name_any(), &params, &patch).await.map(drop),
        )
    }

    /// How what is served is reached: by the node ports of the Service itself, of its shadow, or of its
    /// slots.
    async fn ways(&self, service: &Service, ports: &Ports, sticky: bool) -> kube::Result<Ways> {
        let slots = match self.slots(service, sticky).await {
            Err(kube::Error::Api(status)) if [403, 422].contains(&status.code) => {
                // Node ports, or leave to have some, are used up: clients keep to a node.
                let message = format!(
                    "AffinityToNode: clients keep to a node and not to a pod, since a slot cannot be made: {}",
                    status.message
                );
                self.tell(service, &Note::warning("SyncLoadBalancerFailed", message));
                Vec::new()
            }
            slots => slots?,
        };
        // Slots may be an Ingress's alone.
        let slots = if sticky { slots } else { Vec::new() };
        let own = ports.needs_shadow && slots.is_empty();
        let shadow = self.shadow(service, own).await?.filter(|_| own);
        let of = |shadow: Option<&Service>| -> Vec<i32> {
            let port = |port: &ServicePort| match shadow {
                Some(made) => {
                    let protocol = port.protocol.as_deref().unwrap_or("TCP");
                    shadow::node_port(made, port.port, protocol).unwrap_or(0)
                }
                None => port.node_port.unwrap_or(0),
            };
            ports.served.iter().map(port).collect()
        };
        let slots = slots.into_iter().map(|(made, nodes)| (of(Some(&made)), nodes)).collect();
        Ok(Ways { node_ports: of(shadow.as_ref()), slots })
    }

    /// Makes the shadow of a Service that needs one, for itself (`own`) or for an Ingress; deletes the
    /// one that nobody needs.
    async fn shadow(&self, service: &Service, own: bool) -> kube::Result<Option<Service>> {
        let key = key(service);
        let need = self.users().need(&key).unwrap_or_default();
        let spec = service.spec.as_ref();
        let mut ports = spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        let lacks = ports.any(|port| port.node_port.unwrap_or(0) == 0);
        if cannot_have_shadows(service) || !(own || (need.shadow && lacks)) {
            self.retire(service, &shadow::name(&service.name_any())).await?;
            return Ok(None);
        }
        let made = self.apply(service, shadow::shadow(service)).await?;
        if mirror::needs_mirror(service) {
            self.mirror(service, &made).await?;
        }
        Ok(Some(made))
    }

    /// Makes a shadow as it shall be.
    async fn apply(&self, service: &Service, wanted: Service) -> kube::Result<Service> {
        let there = (service.namespace().unwrap_or_default(), wanted.name_any());
        let start = Instant::now();
        lock(&self.unneeded).remove(&there);
        let made = match self.services.get(&there) {
            Some(there) if shadow::is_as_wanted(&there, &wanted) => Ok(there),
            _ => {
                let params = PatchParams::apply(MANAGER).force();
                self.api(service).patch(&wanted.name_any(), &params, &Patch::Apply(&wanted)).await
            }
        };
        self.stages.observe("apply", start);
        let why = made.as_ref().err().map(ToString::to_string);
        if self.users().set_shadow_failure(&key(service), why) {
            // The Ingresses say so.
            self.wake_users(service);
        }
        made
    }

    /// Makes the slots of a Service whose clients keep to one pod, for itself (`own`) or for an Ingress,
    /// each with the nodes that have a ready pod in it; deletes those that nobody needs.
    async fn slots(
        &self,
        service: &Service,
        own: bool,
    ) -> kube::Result<Vec<(Service, BTreeSet<String>)>> {
        let (namespace, name) = key(service);
        let wanted = own || self.users().need(&key(service)).is_some_and(|need| need.slots);
        let wanted = wanted && !cannot_have_shadows(service);
        let closely = wanted || mirror::needs_mirror(service);
        lock(&self.endpoints).watch_closely(&key(service), closely);
        let there: Vec<_> = shadow::slots(&self.services, &namespace, &name).collect();
        if !wanted {
            for slot in there {
                self.retire(service, &slot.name_any()).await?;
            }
            return Ok(Vec::new());
        }
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &namespace);
        let of = |label: &str| ListParams::default().labels(&format!("{label}={name}"));
        let slices = api.list(&of(SERVICE)).await?.items;
        let mut mirrored = api.list(&of(shadow::SHADOW_OF)).await?.items;
        if !slots::are_possible(&slices) {
            for slot in there {
                self.retire(service, &slot.name_any()).await?;
            }
            return Ok(Vec::new());
        }
        // Those of the shadow of all are another matter.
        let number = |slice: &EndpointSlice| {
            let of = slice.labels().get(SERVICE)?;
            (0..slots::MAX).find(|number| *of == shadow::slot_name(&name, *number))
        };
        mirrored.retain(|slice| number(slice).is_some());
        let mut before = vec![BTreeSet::new(); there.len()];
        for slice in &mirrored {
            let number = number(slice).unwrap_or_default();
            before.resize(before.len().max(number + 1), BTreeSet::new());
            before[number].extend(slots::pods([slice]));
        }
        let assigned = slots::assign(&before, &slots::pods(&slices));
        let (mut made, mut kept) = (Vec::with_capacity(assigned.len()), Vec::new());
        for (number, pods) in assigned.iter().enumerate() {
            let shadow = self.apply(service, shadow::slot(service, number)).await?;
            for slice in &slices {
                let Some(wanted) = mirror::slot(slice, &shadow, number, pods) else { continue };
                self.write_slice(&api, &mirrored, &wanted).await?;
                kept.push(wanted.name_any());
            }
            let ready = slices.iter().flat_map(endpoints::ready);
            let ready = ready.filter_map(slots::pod).filter(|pod| pods.contains(pod));
            made.push((shadow, ready.map(|(node, _)| node).collect()));
        }
        for old in mirrored.iter().filter(|old| !kept.contains(&old.name_any())) {
            let params = DeleteParams::default();
            absent_is_fine(api.delete(&old.name_any(), &params).await.map(drop))?;
        }
        Ok(made)
    }

    /// Writes a slice, unless it is there already.
    async fn write_slice(
        &self,
        api: &Api<EndpointSlice>,
        there: &[EndpointSlice],
        wanted: &EndpointSlice,
    ) -> kube::Result<()> {
        let same = |old: &&EndpointSlice| {
            old.name_any() == wanted.name_any()
                && (&old.endpoints, &old.ports) == (&wanted.endpoints, &wanted.ports)
        };
        if there.iter().find(same).is_some() {
            return Ok(());
        }
        let params = PatchParams::apply(MANAGER).force();
        api.patch(&wanted.name_any(), &params, &Patch::Apply(wanted)).await.map(drop)
    }

    /// Gives the shadow of a Service without a selector the Service's endpoints.
    async fn mirror(&self, service: &Service, shadow: &Service) -> kube::Result<()> {
        let namespace = service.namespace().unwrap_or_default();
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &namespace);
        let of = |name: &str| ListParams::default().labels(&format!("{SERVICE}={name}"));
        let slices = api.list(&of(&service.name_any())).await?;
        let mirrored = api.list(&of(&shadow.name_any())).await?;
        let wanted: Vec<_> =
            slices.items.iter().map(|slice| mirror::mirror(slice, shadow)).collect();
        for slice in &wanted {
            self.write_slice(&api, &mirrored.items, slice).await?;
        }
        for old in mirrored {
            if !wanted.iter().any(|slice| slice.metadata.name == old.metadata.name) {
                let params = DeleteParams::default();
                absent_is_fine(api.delete(&old.name_any(), &params).await.map(drop))?;
            }
        }
        Ok(())
    }

    /// Deletes a shadow that nobody needs any more. Where its Service lives on, what came in its place
    /// reaches the Envoys first.
    async fn retire(&self, service: &Service, name: &str) -> kube::Result<()> {
        let shadow = (service.namespace().unwrap_or_default(), name.to_owned());
        let Some(found) = self.services.get(&shadow) else { return Ok(()) };
        if shadow::shadow_of(&found) != Some(&service.name_any()) {
            return Ok(());
        }
        if !cannot_have_shadows(service)
            && plan::duty(service, self.default_class) != Duty::Withdraw
        {
            let now = Instant::now();
            let since = *lock(&self.unneeded).entry(shadow.clone()).or_insert(now);
            if now - since < GRACE || self.outbox.down().is_some() {
                if since == now || now - since >= GRACE {
                    self.look_again(key(service));
                }
                return Ok(());
            }
        }
        lock(&self.unneeded).remove(&shadow);
        absent_is_fine(self.api(service).delete(name, &DeleteParams::default()).await.map(drop))
    }

    /// Has a Service looked at again after the grace time.
    fn look_again(&self, key: ServiceKey) {
        let again = self.again.clone();
        tokio::spawn(async move {
            tokio::time::sleep(GRACE + Duration::from_millis(100)).await;
            let _ = again.send(Item::Service(key));
        });
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
                self.tell(service, &Note::warning("SyncLoadBalancerFailed", message));
            } else {
                self.tell(
                    service,
                    &Note::normal("DeletingLoadBalancer", "Withdrawing from the hub"),
                );
            }
            return Ok(Action::requeue(SILENCE));
        }
        self.slots(service, false).await?;
        self.shadow(service, false).await?;
        if service.metadata.deletion_timestamp.is_none() {
            self.clear_status(service).await?;
            self.tell_ports(service, Some(String::new())).await?;
        }
        let left: Vec<_> = service
            .finalizers()
            .iter()
            .filter(|one| ![FINALIZER, CLEANUP].contains(&one.as_str()))
            .cloned()
            .collect();
        self.set_finalizers(service, &left).await?;
        info!(service = %ObjectRef::from_obj(service), forced, "withdrawn");
        self.tell(service, &Note::normal("DeletedLoadBalancer", "Withdrawn from the hub"));
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

    fn tell(&self, service: &Service, note: &Note) {
        self.events.tell(service.object_ref(&()), note);
    }
}
