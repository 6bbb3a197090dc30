//! Events on Tenants: what a platform team can act on. The same one at most once a minute.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fairlead_api::{Tenant, TenantId};
use fairlead_process::locks::lock;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use tracing::warn;

/// Whoever knocks all day is told of once a minute.
const AGAIN: Duration = Duration::from_secs(60);

/// Writes Events, a few at a time.
#[derive(Clone)]
pub(crate) struct Events {
    recorder: Recorder,
    told: Arc<Mutex<HashMap<(TenantId, &'static str), Instant>>>,
}

impl Events {
    pub(crate) fn new(client: Client, instance: &str) -> Self {
        let reporter =
            Reporter { controller: "fairlead-manager".into(), instance: Some(instance.to_owned()) };
        Self { recorder: Recorder::new(client, reporter), told: Arc::default() }
    }

    /// Warns of something about a tenant.
    pub(crate) fn warn(&self, tenant: &TenantId, reason: &'static str, note: &str) {
        let now = Instant::now();
        {
            let mut told = lock(&self.told);
            told.retain(|_, at| now.duration_since(*at) < AGAIN);
            if told.contains_key(&(tenant.clone(), reason)) {
                return;
            }
            told.insert((tenant.clone(), reason), now);
        }
        let reference = ObjectReference {
            api_version: Some(Tenant::api_version(&()).into()),
            kind: Some(Tenant::kind(&()).into()),
            name: Some(tenant.as_str().to_owned()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: reason.into(),
            // The apiserver refuses longer ones.
            note: Some(note.chars().take(1_000).collect()),
            action: "Connecting".into(),
            secondary: None,
        };
        let (recorder, tenant) = (self.recorder.clone(), tenant.clone());
        tokio::spawn(async move {
            if let Err(error) = recorder.publish(&event, &reference).await {
                warn!(%tenant, %error, "Event not written");
            }
        });
    }
}
