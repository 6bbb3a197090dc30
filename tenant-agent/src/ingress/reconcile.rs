//! Carrying plans of Ingresses out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fairlead_api::condition::PROGRAMMED;
use fairlead_process::locks::lock;
use fairlead_process::metrics::Stages;
use fairlead_process::retry::{absent_is_fine, between};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::class::is_ours;
use super::plan::{Around, Found, Part, Plan, plan};
use super::report;
use super::users::{Key, Users};
use crate::endpoints::{Endpoints, Ready, ServiceKey};
use crate::events::Events;
use crate::outbox::{Item, Outbox, pushed};
use crate::packed::{Objects, Packed};
use crate::reconcile::SILENCE;
use crate::report::Note;
use crate::secrets::Secrets;
use crate::shadow;

/// What a reconciliation needs.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) classes: Objects<IngressClass>,
    pub(crate) services: Objects<Service>,
    pub(crate) endpoints: Arc<Mutex<Endpoints>>,
    pub(crate) users: Arc<Mutex<Users>>,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) events: Events,
    pub(crate) stages: Stages,
    /// What to look at again.
    pub(crate) again: mpsc::UnboundedSender<Item>,
    /// What was told of each Ingress: an Ingress has no conditions that would remember it.
    pub(crate) told: Mutex<HashMap<Key, Told>>,
}

/// What was told of an Ingress.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// The hub has spoken of it since this agent began.
    heard: bool,
    /// Hashes of the Events.
    notes: HashSet<u64>,
}

/// Brings one Ingress to what it shall be.
pub(crate) async fn reconcile(
    ingress: Arc<Packed<Ingress>>,
    context: Arc<Context>,
) -> kube::Result<Action> {
    let ingress = ingress.unpack().map_err(kube::Error::SerdeError)?;
    let class = |name: &str| context.classes.of_cluster(name);
    if is_ours(&ingress, &class) && ingress.metadata.deletion_timestamp.is_none() {
        context.publish(&ingress).await
    } else {
        context.withdraw(&ingress).await
    }
}

/// What failed is tried again after a pause.
pub(crate) fn retry(ingress: Arc<Packed<Ingress>>, error: &kube::Error, _: Arc<Context>) -> Action {
    warn!(ingress = %ObjectRef::from_obj(&*ingress), %error, "not reconciled, trying again");
    Action::requeue(between(Duration::from_secs(1), Duration::from_secs(5)))
}

/// Forgets Ingresses that went without a word.
pub(crate) fn sweep(ingresses: &Objects<Ingress>, context: &Context) {
    for item in context.outbox.items() {
        if let Item::Ingress(key) = item
            && !ingresses.has(&key)
        {
            context.forget(&key);
        }
    }
}

fn key(ingress: &Ingress) -> Key {
    (ingress.namespace().unwrap_or_default(), ingress.name_any())
}

impl Around for Context {
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.services.get(key)
    }

    fn shadow(&self, key: &ServiceKey) -> Option<Service> {
        let found = self.services.get(&(key.0.clone(), shadow::name(&key.1)))?;
        (shadow::shadow_of(&found) == Some(&key.1)).then_some(found)
    }

    fn slots(&self, key: &ServiceKey) -> Vec<(Service, Ready)> {
        let slots = shadow::slots(&self.services, &key.0, &key.1);
        let with = |slot: Service| {
            let ready = self.ready(&(key.0.clone(), slot.name_any()));
            (slot, ready)
        };
        slots.map(with).collect()
    }

    fn shadow_failure(&self, key: &ServiceKey) -> Option<String> {
        self.users().shadow_failure(key)
    }

    fn ready(&self, key: &ServiceKey) -> Ready {
        lock(&self.endpoints).ready(key)
    }

    fn secret(&self, key: &ServiceKey, part: Part) -> Found {
        self.secrets.found(key, part)
    }
}

impl Context {
    fn users(&self) -> std::sync::MutexGuard<'_, Users> {
        lock(&self.users)
    }

    async fn publish(&self, ingress: &Ingress) -> kube::Result<Action> {
        let start = Instant::now();
        let (key, now) = (key(ingress), jiff::Timestamp::now().as_second());
        let Plan { route, services, secrets, notes, expires } = plan(ingress, self, now);
        self.stages.observe("plan", start);
        self.name(&key, services, secrets);
        let item = Item::Ingress(key.clone());
        match route {
            Some(route) => self.outbox.put(item.clone(), pushed(&route)),
            // Something is being read or made, and wakes us.
            None => self.outbox.expect(item.clone()),
        }
        let silent = self.report(ingress, &key, &item, notes).await?;
        if silent {
            return Ok(Action::requeue(SILENCE));
        }
        let wait = expires.and_then(|end| u64::try_from(end - now).ok());
        Ok(wait.map_or_else(Action::await_change, |wait| {
            Action::requeue(Duration::from_secs(wait.clamp(1, 86_400)))
        }))
    }

    /// Notes what an Ingress names, and has that looked at.
    fn name(
        &self,
        key: &Key,
        services: BTreeMap<String, super::plan::Need>,
        secrets: BTreeSet<(String, Part)>,
    ) {
        let touched = self.users().set(key, services, secrets);
        for service in touched.services {
            // Its receiver lives as long as the process.
            let _ = self.again.send(Item::Service(service));
        }
        for secret in touched.secrets {
            let parts = self.users().parts(&secret);
            self.secrets.want(&secret, parts);
        }
    }

    /// True when the hub has said nothing yet.
    async fn report(
        &self,
        ingress: &Ingress,
        key: &Key,
        item: &Item,
        mut notes: Vec<Note>,
    ) -> kube::Result<bool> {
        let word = self.outbox.word(item);
        let addresses = report::addresses(ingress, word.as_ref());
        let is_shown = addresses == report::shown(ingress);
        if !is_shown {
            let start = Instant::now();
            self.show(ingress, json!(addresses)).await?;
            self.stages.observe("report", start);
        }
        notes.extend(report::notes(word.as_ref()));
        let silent = word.is_none();
        if let Some(why) = self.outbox.down().filter(|_| silent) {
            let message = format!("the hub cannot be reached, trying again: {why}");
            notes.push(Note::warning("HubUnreachable", message));
        }
        for note in self.news(key, notes, silent, is_shown) {
            self.events.tell(ingress.object_ref(&()), &note);
        }
        Ok(silent)
    }

    /// What was not told before. While the hub has yet to speak of a change, what it said before counts
    /// as told. So does, in the first word since this agent began, that it is served where it is shown to be.
    fn news(&self, key: &Key, notes: Vec<Note>, silent: bool, is_shown: bool) -> Vec<Note> {
        let mut told = lock(&self.told);
        let before = told.entry(key.clone()).or_default();
        let is_old = |note: &Note| {
            before.notes.contains(&hash(note))
                || !before.heard && is_shown && note.reason == PROGRAMMED
        };
        let new = notes.iter().filter(|note| !is_old(note)).cloned().collect();
        let now = notes.iter().map(hash);
        if silent {
            before.notes.extend(now);
        } else {
            *before = Told { heard: true, notes: now.collect() };
        }
        new
    }

    async fn show(&self, ingress: &Ingress, addresses: serde_json::Value) -> kube::Result<()> {
        let api: Api<Ingress> =
            Api::namespaced(self.client.clone(), &ingress.namespace().unwrap_or_default());
        let patch = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": addresses}}}));
        let params = PatchParams::default();
        absent_is_fine(api.patch_status(&ingress.name_any(), &params, &patch).await.map(drop))
    }

    /// It is deleted, or another's. What it showed of us goes.
    async fn withdraw(&self, ingress: &Ingress) -> kube::Result<Action> {
        let key = key(ingress);
        if self.forget(&key) && ingress.metadata.deletion_timestamp.is_none() {
            self.show(ingress, serde_json::Value::Null).await?;
            info!(ingress = %ObjectRef::from_obj(ingress), "withdrawn");
        }
        Ok(Action::await_change())
    }

    /// An Ingress is published no more; true if it was.
    pub(crate) fn forget(&self, key: &Key) -> bool {
        self.outbox.retract(&Item::Ingress(key.clone()));
        self.name(key, BTreeMap::new(), BTreeSet::new());
        lock(&self.told).remove(key).is_some()
    }
}

/// Of its words; collisions cost an Event.
fn hash(note: &Note) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&note.reason, &note.message).hash(&mut hasher);
    hasher.finish()
}
