//! Events in the tenant cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::warn;

use crate::report::Note;

/// An Event's note has at most 1,024 bytes.
const MAX_NOTE: usize = 1_000;

/// News that wait to be written; what comes then is not told, as client-go's recorder drops it. Warnings are never dropped.
const WAITING: usize = 1_024;
/// After so many a new recorder begins: it keeps what it wrote for minutes, to fold what is written again into it.
const FOLDED: u32 = 128;

type Told = (Event, ObjectReference);

/// Tells of what happens, without anybody waiting for it: an Event is a write as dear as a change of what is served.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    news: mpsc::Sender<Told>,
    warnings: mpsc::UnboundedSender<Told>,
    dropped: Arc<AtomicU64>,
}

impl Events {
    /// Begins to write what is told, one after the other. `instance`: who tells it.
    pub(crate) fn begin(client: Client, instance: String, tasks: &mut JoinSet<Result<()>>) -> Self {
        let (news, mut some) = mpsc::channel(WAITING);
        let (warnings, mut others) = mpsc::unbounded_channel();
        let events = Self { news, warnings, dropped: Arc::default() };
        let dropped = events.dropped.clone();
        let reporter = Reporter { controller: "fairlead-agent".into(), instance: Some(instance) };
        let new = move || Recorder::new(client.clone(), reporter.clone());
        tasks.spawn(async move {
            let (mut recorder, mut written) = (new(), 0);
            loop {
                let told = tokio::select! {
                    biased;
                    told = others.recv() => told,
                    told = some.recv() => told,
                };
                let Some((event, about)) = told else { return Ok(()) };
                if let Err(error) = recorder.publish(&event, &about).await {
                    warn!(%error, "Event not written");
                }
                written += 1;
                if written == FOLDED {
                    (recorder, written) = (new(), 0);
                }
                if some.is_empty() {
                    let count = dropped.swap(0, Ordering::Relaxed);
                    if count > 0 {
                        warn!(count, "Events were not told, since too many waited");
                    }
                }
            }
        });
        events
    }

    /// Tells of something, on an object. One that cannot be written is logged.
    pub(crate) fn tell(&self, about: ObjectReference, note: &Note) {
        let mut end = note.message.len().min(MAX_NOTE);
        while !note.message.is_char_boundary(end) {
            end -= 1;
        }
        // kube's Recorder folds Events of one reason and action into the first: what says something
        // else is another action.
        let digest = Sha256::digest(&note.message);
        let event = Event {
            type_: note.kind,
            reason: note.reason.to_string(),
            note: Some(note.message[..end].to_owned()),
            action: format!("Publish-{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2]),
            secondary: None,
        };
        match note.kind {
            // What receives them lives as long as the process.
            EventType::Warning => drop(self.warnings.send((event, about))),
            EventType::Normal => {
                if self.news.try_send((event, about)).is_err() {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}
