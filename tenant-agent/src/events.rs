//! Events in the tenant cluster.

use anyhow::Result;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, Recorder, Reporter};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::report::Note;

/// An Event's note has at most 1,024 bytes.
const MAX_NOTE: usize = 1_000;

/// Events that wait to be written; what comes then is not told, as client-go's recorder drops it.
const WAITING: usize = 1_024;

/// After so many a new recorder begins: it keeps what it wrote for minutes, to fold what is written again into it.
const FOLDED: usize = 1_024;

/// Tells of what happens, without anybody waiting for it: an Event is a write as dear as a change of what is served.
#[derive(Debug, Clone)]
pub(crate) struct Events(mpsc::Sender<(Event, ObjectReference)>);

impl Events {
    /// Begins to write what is told, one after the other. `instance`: who tells it.
    pub(crate) fn begin(client: Client, instance: String, tasks: &mut JoinSet<Result<()>>) -> Self {
        let reporter = Reporter { controller: "fairlead-agent".into(), instance: Some(instance) };
        let (tell, mut told) = mpsc::channel::<(Event, ObjectReference)>(WAITING);
        tasks.spawn(async move {
            let mut recorder = Recorder::new(client.clone(), reporter.clone());
            let mut written = 0;
            while let Some((event, about)) = told.recv().await {
                written += 1;
                if written % FOLDED == 0 {
                    recorder = Recorder::new(client.clone(), reporter.clone());
                }
                if let Err(error) = recorder.publish(&event, &about).await {
                    warn!(%error, "Event not written");
                }
            }
            Ok(())
        });
        Self(tell)
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
        if self.0.try_send((event, about)).is_err() {
            debug!(reason = %note.reason, "too many Events wait; this one is not told");
        }
    }
}
