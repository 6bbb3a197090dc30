//! What each Envoy of the fleet has acknowledged.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use fairlead_api::condition::{Reason, Verdict};
use fairlead_xds::{Event, Key, KeyMap, Outcome};

/// An Envoy's node id: the name of its pod.
pub type EnvoyId = Arc<str>;

/// The Envoys that are ready, and what the connected ones said.
#[derive(Debug, Default)]
pub struct Fleet {
    ready: BTreeSet<EnvoyId>,
    clients: HashMap<EnvoyId, Client>,
}

#[derive(Debug)]
struct Client {
    stream: u64,
    connected: bool,
    /// The version that it has of each resource: it keeps what it took when it refuses what came after.
    acked: KeyMap<u64>,
    /// The version that it refused last, and why.
    rejected: HashMap<Key, (u64, Arc<str>)>,
}

impl Fleet {
    /// Sets whether an Envoy is ready to serve; true when that was news.
    pub fn set_ready(&mut self, envoy: &EnvoyId, ready: bool) -> bool {
        if ready {
            return self.ready.insert(envoy.clone());
        }
        if self.clients.get(envoy).is_some_and(|client| !client.connected) {
            self.clients.remove(envoy);
        }
        self.ready.remove(envoy)
    }

    /// An Envoy opened a stream: what it has it will tell anew.
    pub fn connected(&mut self, envoy: &EnvoyId, stream: u64) {
        let (acked, rejected) = (KeyMap::default(), HashMap::new());
        self.clients.insert(envoy.clone(), Client { stream, connected: true, acked, rejected });
    }

    /// A stream ended. The Envoy serves on with what it has, so that is remembered while its pod is
    /// ready.
    pub fn disconnected(&mut self, envoy: &EnvoyId, stream: u64) {
        if let Some(client) = self.clients.get_mut(envoy)
            && client.stream == stream
        {
            client.connected = false;
            if !self.ready.contains(envoy) {
                self.clients.remove(envoy);
            }
        }
    }

    /// Notes what an Envoy said on a stream.
    pub fn observe(&mut self, envoy: &EnvoyId, stream: u64, event: &Event) {
        let Some(client) = self.clients.get_mut(envoy).filter(|client| client.stream == stream)
        else {
            return;
        };
        let key = event.key.clone();
        match &event.outcome {
            Outcome::Acked(version) => {
                client.rejected.remove(&key);
                client.acked.insert(key, *version);
            }
            Outcome::Rejected(version, text) => {
                client.rejected.insert(key, (*version, text.clone()));
            }
            Outcome::Removed => {
                client.rejected.remove(&key);
                client.acked.remove(&key);
            }
        }
    }

    /// Whether every ready Envoy has acknowledged exactly these resources.
    pub fn verdict(&self, resources: &[(Key, u64)]) -> Verdict {
        if self.ready.is_empty() {
            let message =
                "no Envoy of the fleet is ready; see the pods of the hub's Envoy DaemonSet";
            return Verdict::no(Reason::NoEnvoy, message);
        }
        if let Some((envoy, text)) = self.rejection(resources) {
            return Verdict::no(Reason::Rejected, format!("{envoy} refused it: {text}"));
        }
        let waiting: Vec<_> =
            self.ready.iter().filter(|envoy| !self.has(envoy, resources)).collect();
        match waiting.as_slice() {
            [] => Verdict::yes(Reason::Programmed),
            [first, rest @ ..] => {
                let gone = !self.clients.get(*first).is_some_and(|client| client.connected);
                let note = if gone { ", which is not connected to the manager" } else { "" };
                let more = match rest.len() {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                Verdict::no(Reason::Pending, format!("waiting for Envoy {first}{note}{more}"))
            }
        }
    }

    fn rejection(&self, resources: &[(Key, u64)]) -> Option<(&EnvoyId, &str)> {
        self.ready.iter().find_map(|envoy| {
            let rejected = &self.clients.get(envoy)?.rejected;
            resources.iter().find_map(|(key, version)| {
                let (refused, text) = rejected.get(key)?;
                (refused == version).then_some((envoy, &**text))
            })
        })
    }

    fn has(&self, envoy: &EnvoyId, resources: &[(Key, u64)]) -> bool {
        let Some(client) = self.clients.get(envoy) else { return false };
        resources.iter().all(|(key, version)| client.acked.get(key) == Some(version))
    }
}
