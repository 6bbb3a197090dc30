//! The Secrets that Ingresses name: each is read and watched by its name, and by nothing else, so that
//! the agent needs no right to list Secrets.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fairlead_process::locks::lock;
use fairlead_process::retry::between;
use fairlead_process::secret as check;
use fairlead_proto::v1;
use fairlead_proto::v1::put::Object;
use futures::TryStreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{WatchEvent, WatchParams};
use kube::{Api, Client, ResourceExt};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tracing::warn;

use crate::ingress::plan::{Found, Part};
use crate::ingress::users::Key;
use crate::outbox::{Item, Outbox};

/// The Secrets that are watched.
pub(crate) struct Secrets {
    client: Client,
    outbox: Arc<Outbox>,
    /// Told of Secrets that changed.
    news: mpsc::UnboundedSender<Item>,
    state: Mutex<HashMap<Key, Watched>>,
}

struct Watched {
    wanted: BTreeSet<Part>,
    content: Content,
    /// What was good last: a Secret that is broken takes nothing away.
    good: v1::Secret,
    task: AbortHandle,
}

enum Content {
    Unread,
    Missing(String),
    /// It could not be read.
    Unreadable(String),
    There(BTreeMap<Part, (Found, v1::Secret)>),
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Secrets {
    pub(crate) fn new(
        client: Client,
        outbox: Arc<Outbox>,
        news: mpsc::UnboundedSender<Item>,
    ) -> Arc<Self> {
        Arc::new(Self { client, outbox, news, state: Mutex::default() })
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<Key, Watched>) -> T) -> T {
        work(&mut lock(&self.state))
    }

    /// What there is of a Secret.
    pub(crate) fn found(&self, key: &Key, part: Part) -> Found {
        self.with(|all| match all.get(key).map(|watched| &watched.content) {
            None | Some(Content::Unread) => Found::Unread,
            Some(Content::Missing(why) | Content::Unreadable(why)) => Found::Bad(why.clone()),
            Some(Content::There(parts)) => {
                parts.get(&part).map_or(Found::Unread, |(found, _)| found.clone())
            }
        })
    }

    /// These parts of a Secret are wanted now; none: it is forgotten, and the hub is told.
    pub(crate) fn want(self: &Arc<Self>, key: &Key, parts: BTreeSet<Part>) {
        if parts.is_empty() {
            self.with(|all| all.remove(key));
            return self.outbox.retract(&Item::Secret(key.clone()));
        }
        self.with(|all| match all.get_mut(key) {
            Some(watched) => {
                watched.wanted = parts;
                self.push(key, watched);
            }
            None => {
                self.outbox.expect(Item::Secret(key.clone()));
                let task = tokio::spawn(self.clone().watch(key.clone())).abort_handle();
                let (content, good) = (Content::Unread, v1::Secret::default());
                all.insert(key.clone(), Watched { wanted: parts, content, good, task });
            }
        });
    }

    async fn watch(self: Arc<Self>, key: Key) {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &key.0);
        loop {
            if let Err(error) = self.follow(&api, &key).await {
                warn!(secret = key.1, namespace = key.0, %error, "watch of a Secret interrupted");
                self.note_error(&key, &error);
            }
            tokio::time::sleep(between(Duration::from_millis(500), Duration::from_secs(3))).await;
        }
    }

    /// Reads it, then notes its changes until the watch ends.
    async fn follow(&self, api: &Api<Secret>, key: &Key) -> kube::Result<()> {
        let there = api.get_opt(&key.1).await?;
        let version = there.as_ref().and_then(ResourceExt::resource_version);
        self.note(key, there.as_ref());
        let only = WatchParams::default().fields(&format!("metadata.name={}", key.1));
        let stream = api.watch(&only, version.as_deref().unwrap_or("0")).await?;
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.try_next().await? {
            match event {
                WatchEvent::Added(secret) | WatchEvent::Modified(secret) => {
                    self.note(key, Some(&secret));
                }
                WatchEvent::Deleted(_) => self.note(key, None),
                WatchEvent::Bookmark(_) => {}
                // Too old: it is read anew.
                WatchEvent::Error(_) => return Ok(()),
            }
        }
        Ok(())
    }

    fn note(&self, key: &Key, secret: Option<&Secret>) {
        let content = match secret {
            None => Content::Missing("does not exist".into()),
            Some(secret) => {
                let (none, parts) = (BTreeMap::new(), Part::ALL.into_iter());
                let data = secret.data.as_ref().unwrap_or(&none);
                Content::There(parts.map(|part| (part, read(data, part))).collect())
            }
        };
        self.update(key, content);
    }

    /// What could not be read at all; what was read before stays.
    fn note_error(&self, key: &Key, error: &kube::Error) {
        let forbidden = matches!(error, kube::Error::Api(status) if status.code == 403);
        let unread = self.with(|all| {
            all.get(key).is_some_and(|watched| matches!(watched.content, Content::Unread))
        });
        if unread && forbidden {
            let why = "the agent may not read it; see secrets in the chart's RBAC";
            self.update(key, Content::Unreadable(why.into()));
        }
    }

    fn update(&self, key: &Key, content: Content) {
        self.with(|all| {
            // Forgotten meanwhile.
            let Some(watched) = all.get_mut(key) else { return };
            watched.content = content;
            self.push(key, watched);
        });
        // Its receiver lives as long as the process.
        let _ = self.news.send(Item::Secret(key.clone()));
    }

    /// Tells the hub of the parts that are wanted.
    fn push(&self, key: &Key, watched: &mut Watched) {
        let item = Item::Secret(key.clone());
        let parts = match &watched.content {
            Content::Unread => return,
            // The hub may have it from before.
            Content::Unreadable(_) => return self.outbox.keep(item),
            Content::Missing(_) => {
                watched.good = v1::Secret::default();
                return self.outbox.retract(&item);
            }
            Content::There(parts) => parts,
        };
        for part in Part::ALL {
            let wanted = watched.wanted.contains(&part);
            match parts.get(&part) {
                Some((Found::Good(_), content)) if wanted => {
                    merge(&mut watched.good, part, content);
                }
                // Broken: a certificate that was good stays. Users and authorities do not: who was
                // taken out must not be let in any longer.
                _ if wanted && part == Part::Certificate => {}
                _ => merge(&mut watched.good, part, &v1::Secret::default()),
            }
        }
        if watched.good == v1::Secret::default() {
            // Of a certificate the hub may have a good one from before.
            return if watched.wanted.contains(&Part::Certificate) {
                self.outbox.keep(item);
            } else {
                self.outbox.retract(&item);
            };
        }
        self.outbox.put(item, Object::Secret(watched.good.clone()));
    }
}

fn read(data: &BTreeMap<String, ByteString>, part: Part) -> (Found, v1::Secret) {
    let bytes = |name: &str| data.get(name).map(|bytes| bytes.0.clone()).unwrap_or_default();
    let mut secret = v1::Secret::default();
    let checked = match part {
        Part::Certificate => {
            (secret.tls_crt, secret.tls_key) = (bytes("tls.crt"), bytes("tls.key"));
            let pair = check::pair(&secret.tls_crt, &secret.tls_key);
            pair.map(|certificate| Some(certificate.not_after))
        }
        Part::Ca => {
            secret.ca_crt = bytes("ca.crt");
            check::trusted(&secret.ca_crt).map(|()| None)
        }
        Part::Users => {
            secret.auth = bytes("auth");
            check::users(&secret.auth).map(|_| None)
        }
    };
    (checked.map_or_else(Found::Bad, Found::Good), secret)
}

fn merge(into: &mut v1::Secret, part: Part, from: &v1::Secret) {
    match part {
        Part::Certificate => {
            into.tls_crt.clone_from(&from.tls_crt);
            into.tls_key.clone_from(&from.tls_key);
        }
        Part::Ca => into.ca_crt.clone_from(&from.ca_crt),
        Part::Users => into.auth.clone_from(&from.auth),
    }
}
