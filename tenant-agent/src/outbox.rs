//! What the hub shall have, and what it said: written by the reconciler, read by the link.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::Instant;

use fairlead_api::RouteSpec;
use fairlead_process::locks::lock;
use fairlead_proto::v1::put::Object;
use fairlead_proto::{PackedStatus, v1};
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::endpoints::ServiceKey;

/// What is pushed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Item {
    /// The nodes; before all Routes.
    Nodes,
    /// What Routes need of a Secret; before the Routes.
    Secret(ServiceKey),
    /// The Route of a Service.
    Service(ServiceKey),
    /// The Route of an Ingress.
    Ingress(ServiceKey),
}

impl Item {
    /// The item as it is sent.
    pub(crate) fn key(&self) -> v1::Key {
        match self {
            Self::Nodes => v1::Key::nodes(),
            Self::Secret((namespace, name)) => v1::Key::secret(namespace, name),
            Self::Service((namespace, name)) => v1::Key::service(namespace, name),
            Self::Ingress((namespace, name)) => v1::Key::ingress(namespace, name),
        }
    }

    /// The item of a key; `None` for one that this agent never sends.
    pub(crate) fn of(key: &v1::Key) -> Option<Self> {
        let named = || (key.namespace.clone(), key.name.clone());
        match key.kind() {
            v1::Kind::Nodes => Some(Self::Nodes),
            v1::Kind::Secret => Some(Self::Secret(named())),
            v1::Kind::Service => Some(Self::Service(named())),
            v1::Kind::Ingress => Some(Self::Ingress(named())),
            v1::Kind::Unspecified => None,
        }
    }
}

/// A hash of what is pushed.
pub(crate) type Hash = Vec<u8>;

/// The hash in an inventory of what is wanted but not planned yet: it is kept as it is.
const UNPLANNED: [u8; 1] = [0];

/// What a message has room for, beside its key.
const MAX_OBJECT_BYTES: usize = fairlead_proto::MAX_MESSAGE_BYTES - 4_096;

/// What the hub said last about an item.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Word {
    /// What became of it; without its key and hash.
    Status(v1::Status),
    /// It was refused.
    Refused(v1::Refused),
}

/// A word as it is kept.
#[derive(Debug)]
enum Kept {
    Status(PackedStatus),
    Refused(v1::Refused),
}

impl From<Word> for Kept {
    fn from(word: Word) -> Self {
        match word {
            Word::Status(status) => Self::Status(PackedStatus::of(status)),
            Word::Refused(refused) => Self::Refused(refused),
        }
    }
}

impl Kept {
    fn word(&self) -> Word {
        match self {
            Self::Status(status) => Word::Status(status.unpack()),
            Self::Refused(refused) => Word::Refused(refused.clone()),
        }
    }
}

/// What the hub shall have of an item that is wanted.
#[derive(Debug)]
enum Content {
    /// Not known yet, or not for now: what the hub has stays.
    Unplanned,
    /// More than a message has room for: what the hub has stays.
    TooLarge,
    /// This; it is sent when it is new, and when the hub asks.
    Planned(Hash, Box<Object>),
    /// The Route that has this hash. The hub said what became of it, so it has it, and thousands of them are a tenth of this
    /// process. Should the hub ask for it all the same, it is planned anew.
    Forgotten(Hash),
}

impl Content {
    fn hash(&self) -> &[u8] {
        match self {
            Self::Unplanned | Self::TooLarge => &UNPLANNED,
            Self::Planned(hash, _) | Self::Forgotten(hash) => hash,
        }
    }

    /// Lets go of a Route. Nodes and Secrets are few, and nobody could be asked to plan them anew.
    fn forget(&mut self) {
        if let Self::Planned(hash, object) = self
            && matches!(**object, Object::Route(_))
        {
            *self = Self::Forgotten(std::mem::take(hash));
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// All that the hub shall have.
    wanted: BTreeMap<Item, Content>,
    /// Those of them that nobody has looked at yet.
    unseen: BTreeSet<Item>,
    /// To be deleted, until the hub says that it is.
    deleting: BTreeSet<Item>,
    /// Deletions that somebody waits for.
    awaited: BTreeSet<Item>,
    /// The hub has let go of these, until somebody asks.
    gone: BTreeSet<Item>,
    /// To be sent on the present stream.
    unsent: BTreeSet<Item>,
    /// When an item was sent, until it is stored.
    sent: HashMap<Item, Instant>,
    words: HashMap<Item, (Hash, Kept)>,
    /// Why there is no stream.
    down: Option<String>,
}

/// What the hub shall have, and what it said.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Something is to be sent.
    pub(crate) changed: Notify,
    /// All that was expected was looked at.
    seen: Notify,
}

/// What is to be sent of an item.
#[derive(Debug, PartialEq)]
pub(crate) enum Letter {
    Put(v1::Put),
    Delete(v1::Delete),
}

impl From<Letter> for v1::agent_message::Message {
    fn from(letter: Letter) -> Self {
        match letter {
            Letter::Put(put) => Self::Put(put),
            Letter::Delete(delete) => Self::Delete(delete),
        }
    }
}

impl Outbox {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut lock(&self.state))
    }

    /// Somebody has looked at an item, whatever came of it.
    fn see(&self, state: &mut State, item: &Item) {
        if state.unseen.remove(item) && state.unseen.is_empty() {
            self.seen.notify_one();
        }
    }

    /// Notes that an item is wanted, before anybody has looked at it.
    pub(crate) fn expect(&self, item: Item) {
        self.with(|state| {
            if !state.wanted.contains_key(&item) {
                state.unseen.insert(item.clone());
                state.wanted.insert(item, Content::Unplanned);
            }
        });
    }

    /// An item is wanted and cannot be planned for now: what the hub has of it stays.
    pub(crate) fn keep(&self, item: Item) {
        self.with(|state| {
            self.see(state, &item);
            state.wanted.entry(item).or_insert(Content::Unplanned);
        });
    }

    /// The hub shall have this. One that no message can hold is not sent, and answered by a refusal; the
    /// hub keeps what it has.
    pub(crate) fn put(&self, item: Item, object: Object) {
        let (hash, size) = (hash(&object), size(&object));
        if size > MAX_OBJECT_BYTES {
            let message = format!(
                "its Route has {size} bytes and a message has room for {MAX_OBJECT_BYTES}; publish \
                 fewer rules in one object"
            );
            let refused = v1::Refused { reason: "TooLarge".into(), message, ..Default::default() };
            return self.with(|state| {
                self.see(state, &item);
                state.deleting.remove(&item);
                state.wanted.insert(item.clone(), Content::TooLarge);
                state.unsent.remove(&item);
                state.words.insert(item, (UNPLANNED.to_vec(), Kept::Refused(refused)));
            });
        }
        self.with(|state| {
            self.see(state, &item);
            state.deleting.remove(&item);
            state.awaited.remove(&item);
            state.gone.remove(&item);
            if state.wanted.get(&item).is_none_or(|old| old.hash() != hash) {
                state.wanted.insert(item.clone(), Content::Planned(hash, Box::new(object)));
                state.unsent.insert(item);
                self.changed.notify_one();
            }
        });
    }

    /// The hub shall not have this any more. True once it said so, and then it is forgotten here: what
    /// an earlier life of this agent pushed is not known, so the hub is always asked.
    pub(crate) fn delete(&self, item: &Item) -> bool {
        self.with(|state| {
            self.see(state, item);
            state.words.remove(item);
            state.wanted.remove(item);
            if state.gone.remove(item) {
                return true;
            }
            state.awaited.insert(item.clone());
            if state.deleting.insert(item.clone()) {
                state.unsent.insert(item.clone());
                self.changed.notify_one();
            }
            false
        })
    }

    /// The hub shall not have this any more, and nobody waits for its word.
    pub(crate) fn retract(&self, item: &Item) {
        self.with(|state| {
            self.see(state, item);
            state.words.remove(item);
            if state.wanted.remove(item).is_some() {
                state.deleting.insert(item.clone());
                state.unsent.insert(item.clone());
                self.changed.notify_one();
            }
        });
    }

    /// Waits until somebody has looked at all that was expected: of what an inventory only names, the hub asks for all.
    pub(crate) async fn seen(&self) {
        while self.with(|state| !state.unseen.is_empty()) {
            self.seen.notified().await;
        }
    }

    /// Whether an item is wanted.
    pub(crate) fn wants(&self, item: &Item) -> bool {
        self.with(|state| state.wanted.contains_key(item))
    }

    /// What is wanted.
    pub(crate) fn items(&self) -> Vec<Item> {
        self.with(|state| state.wanted.keys().cloned().collect())
    }

    /// What the hub said about what is wanted now.
    pub(crate) fn word(&self, item: &Item) -> Option<Word> {
        self.with(|state| {
            let content = state.wanted.get(item)?;
            let (about, word) = state.words.get(item)?;
            let is = !matches!(content, Content::Unplanned) && content.hash() == about;
            is.then(|| word.word())
        })
    }

    /// Why the hub cannot be reached; `None` while it can.
    pub(crate) fn down(&self) -> Option<String> {
        self.with(|state| state.down.clone())
    }

    /// A stream could not be opened, or ended.
    pub(crate) fn set_down(&self, why: Option<String>) {
        self.with(|state| state.down = why);
    }

    /// A stream begins: everything that is wanted. What is unsent is named by it; deletions are told
    /// again.
    pub(crate) fn inventory(&self) -> Vec<v1::inventory::Item> {
        self.with(|state| {
            state.unsent = state.deleting.clone();
            state.sent.clear();
            let item = |(item, content): (&Item, &Content)| v1::inventory::Item {
                key: Some(item.key()),
                hash: content.hash().to_vec(),
            };
            state.wanted.iter().map(item).collect()
        })
    }

    /// The hub asks for these; those come back that have to be planned anew.
    pub(crate) fn wanted_by_hub(&self, keys: &[v1::Key]) -> Vec<Item> {
        let forgotten = self.with(|state| {
            let mut forgotten = Vec::new();
            for item in keys.iter().filter_map(Item::of) {
                if let Some(content @ Content::Forgotten(_)) = state.wanted.get_mut(&item) {
                    *content = Content::Unplanned;
                    forgotten.push(item);
                } else {
                    state.unsent.insert(item);
                }
            }
            forgotten
        });
        self.changed.notify_one();
        forgotten
    }

    /// Whether there is something to send.
    pub(crate) fn has_unsent(&self) -> bool {
        self.with(|state| !state.unsent.is_empty())
    }

    /// The next letter to send.
    pub(crate) fn next(&self) -> Option<Letter> {
        self.with(|state| {
            while let Some(item) = state.unsent.pop_first() {
                if state.deleting.contains(&item) {
                    return Some(Letter::Delete(v1::Delete { key: Some(item.key()) }));
                }
                if let Some(Content::Planned(hash, object)) = state.wanted.get(&item) {
                    let (key, hash, object) =
                        (Some(item.key()), hash.clone(), Some((**object).clone()));
                    state.sent.insert(item, Instant::now());
                    return Some(Letter::Put(v1::Put { key, hash, object }));
                }
            }
            None
        })
    }

    /// The hub stored an item, or let go of it; when it was sent comes back.
    pub(crate) fn stored(&self, item: &Item, stored: &v1::Stored) -> Option<Instant> {
        self.with(|state| {
            // An answer to an earlier deletion says nothing about one that was not sent yet.
            let answers = stored.hash.is_empty() && !state.unsent.contains(item);
            if answers && state.deleting.remove(item) && state.awaited.remove(item) {
                state.gone.insert(item.clone());
            }
            state.sent.remove(item)
        })
    }

    /// The hub said something about an item.
    pub(crate) fn heard(&self, item: Item, hash: Hash, word: Word) {
        self.with(|state| {
            let has = matches!(word, Word::Status(_)) && !state.unsent.contains(&item);
            if has
                && let Some(content) = state.wanted.get_mut(&item)
                && content.hash() == hash
            {
                content.forget();
            }
            state.words.insert(item, (hash, word.into()));
        });
    }
}

/// A Route as it is pushed. Maps in it are ordered, so equal Routes are equal bytes.
pub(crate) fn pushed(route: &RouteSpec) -> Object {
    // Every key of its maps is text: it can be written.
    let mut spec = serde_json::to_vec(route).unwrap_or_default();
    // It is kept for as long as the Route is.
    spec.shrink_to_fit();
    Object::Route(v1::Route { spec })
}

fn size(object: &Object) -> usize {
    match object {
        Object::Route(route) => route.encoded_len(),
        Object::Nodes(nodes) => nodes.encoded_len(),
        Object::Secret(secret) => secret.encoded_len(),
    }
}

/// The first 16 bytes of SHA-256 of the encoded object: messages without maps encode equally.
fn hash(object: &Object) -> Hash {
    let bytes = match object {
        Object::Route(route) => route.encode_to_vec(),
        Object::Nodes(nodes) => nodes.encode_to_vec(),
        Object::Secret(secret) => secret.encode_to_vec(),
    };
    Sha256::digest(bytes)[..16].to_vec()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn web() -> Item {
        Item::Service(("shop".into(), "web".into()))
    }

    fn route(ip: &str) -> Object {
        Object::Route(v1::Route { spec: ip.into() })
    }

    fn sent(outbox: &Outbox) -> Vec<&'static str> {
        std::iter::from_fn(|| outbox.next())
            .map(|letter| match letter {
                Letter::Put(_) => "put",
                Letter::Delete(_) => "delete",
            })
            .collect()
    }

    #[test]
    fn only_changes_are_sent() {
        let outbox = Outbox::default();
        outbox.put(web(), route("1"));
        outbox.put(web(), route("1"));
        assert_eq!(sent(&outbox), ["put"]);
        outbox.put(web(), route("1"));
        assert!(sent(&outbox).is_empty());
        outbox.put(web(), route("2"));
        assert_eq!(sent(&outbox), ["put"]);
    }

    #[test]
    fn what_is_not_planned_yet_is_named_so_that_the_hub_keeps_it() {
        let outbox = Outbox::default();
        outbox.expect(web());
        let inventory = outbox.inventory();
        assert_eq!(inventory[0].hash, UNPLANNED);
        outbox.wanted_by_hub(&[web().key()]);
        assert!(sent(&outbox).is_empty(), "there is nothing to send yet");
        outbox.put(web(), route("1"));
        assert_eq!(sent(&outbox), ["put"]);
    }

    #[test]
    fn what_no_message_can_hold_is_refused_here_and_stops_nothing_else() {
        let outbox = Outbox::default();
        outbox.put(web(), Object::Route(v1::Route { spec: vec![0; 2 << 20] }));
        assert!(matches!(outbox.word(&web()), Some(Word::Refused(r)) if r.reason == "TooLarge"));
        assert_eq!(outbox.inventory()[0].hash, UNPLANNED, "the hub keeps what it has");
        outbox.wanted_by_hub(&[web().key()]);
        assert!(sent(&outbox).is_empty());
        outbox.put(web(), route("1"));
        assert_eq!(sent(&outbox), ["put"]);
    }

    #[test]
    fn what_the_hub_has_is_not_kept_and_planned_anew_should_it_ask() {
        let outbox = Outbox::default();
        let status = || Word::Status(v1::Status::default());
        outbox.put(web(), route("1"));
        outbox.heard(web(), hash(&route("1")), status());
        assert_eq!(sent(&outbox), ["put"], "the word is about what an earlier life sent");
        outbox.heard(web(), hash(&route("2")), status());
        assert!(outbox.wanted_by_hub(&[web().key()]).is_empty(), "the word was about another");
        assert_eq!(sent(&outbox), ["put"]);
        outbox.heard(web(), hash(&route("1")), status());
        assert_eq!(outbox.inventory()[0].hash, hash(&route("1")));
        assert_eq!(outbox.wanted_by_hub(&[web().key()]), [web()]);
        assert_eq!(outbox.inventory()[0].hash, UNPLANNED, "until it is planned anew");
        outbox.put(web(), route("1"));
        assert_eq!(sent(&outbox), ["put"]);
        assert!(outbox.word(&web()).is_some(), "what was said of it still holds");
    }

    #[test]
    fn nodes_are_kept_for_a_hub_that_asks() {
        let outbox = Outbox::default();
        let nodes = || Object::Nodes(v1::NodeSet::default());
        outbox.put(Item::Nodes, nodes());
        assert_eq!(sent(&outbox), ["put"]);
        outbox.heard(Item::Nodes, hash(&nodes()), Word::Status(v1::Status::default()));
        assert!(outbox.wanted_by_hub(&[v1::Key::nodes()]).is_empty());
        assert_eq!(sent(&outbox), ["put"]);
    }

    #[tokio::test]
    async fn the_first_inventory_waits_until_all_was_looked_at() {
        let outbox = Arc::new(Outbox::default());
        outbox.seen().await;
        let [api, old, lost] =
            ["api", "old", "lost"].map(|name| Item::Service(("shop".into(), name.into())));
        for item in [&web(), &web(), &api, &old, &lost] {
            outbox.expect(item.clone());
        }
        let waiting = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.seen().await }
        });
        outbox.put(web(), route("1"));
        outbox.put(web(), route("2"));
        outbox.delete(&old);
        outbox.retract(&lost);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "one is left");
        // It has no node port; that must not hold everything else up.
        outbox.keep(api.clone());
        waiting.await.unwrap();
        let hashes: Vec<_> = outbox.inventory().into_iter().map(|item| item.hash).collect();
        assert_eq!(hashes, [UNPLANNED.to_vec(), hash(&route("2"))]);
    }

    #[test]
    fn a_deletion_is_told_on_every_stream_until_the_hub_confirms_it() {
        let outbox = Outbox::default();
        outbox.put(web(), route("1"));
        sent(&outbox);
        assert!(!outbox.delete(&web()));
        assert_eq!(sent(&outbox), ["delete"]);
        assert!(outbox.inventory().is_empty());
        assert_eq!(sent(&outbox), ["delete"]);
        outbox.stored(&web(), &v1::Stored::default());
        assert!(outbox.delete(&web()));
        assert!(sent(&outbox).is_empty());
    }

    #[test]
    fn what_an_earlier_life_may_have_pushed_is_asked_for_too() {
        let outbox = Outbox::default();
        assert!(!outbox.delete(&web()));
        assert_eq!(sent(&outbox), ["delete"]);
    }

    #[test]
    fn a_word_counts_only_for_the_content_that_it_is_about() {
        let outbox = Outbox::default();
        outbox.put(web(), route("1"));
        let old = hash(&route("1"));
        outbox.heard(web(), old, Word::Status(v1::Status::default()));
        assert!(outbox.word(&web()).is_some());
        outbox.put(web(), route("2"));
        assert_eq!(outbox.word(&web()), None);
    }
}
