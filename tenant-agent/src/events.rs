//! Events in the tenant cluster.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, Recorder};
use sha2::{Digest, Sha256};
use tracing::warn;

use crate::report::Note;

/// An Event's note has at most 1,024 bytes.
const MAX_NOTE: usize = 1_000;

/// Writes Events.
#[derive(Clone)]
pub(crate) struct Events(pub(crate) Recorder);

impl Events {
    /// Tells of something, on an object. One that cannot be written is logged.
    pub(crate) async fn tell(&self, about: &ObjectReference, note: &Note) {
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
        if let Err(error) = self.0.publish(&event, about).await {
            warn!(%error, "Event not written");
        }
    }
}
