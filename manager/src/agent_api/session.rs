//! One agent's stream as a state machine: messages and records in, actions out.
//!
//! Level-triggered: `wanted` is what the agent wants as far as it has said; what the hub has beyond
//! that is deleted, once the inventory is complete.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use fairlead_api::{NodeSetSpec, RouteName, RouteSpec};
use fairlead_proto::v1::agent_message::Message as From;
use fairlead_proto::v1::hub_message::Message as To;
use fairlead_proto::v1::put::Object;
use fairlead_proto::{MAX_ITEMS, v1};
use fairlead_xds::ChangeLog;
use prost::Message;
use tonic::Status;

use super::convert;
use crate::hub::SecretContent;
use crate::records::{Item, Record};

/// What the shell has to do.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    /// Send to the agent.
    Send(To),
    /// Store on the hub; [`Session::on_stored`] takes the outcome.
    Store(Item, Upload),
}

/// What is stored.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Upload {
    Route(Box<str>, Box<RouteSpec>),
    Nodes(Box<str>, NodeSetSpec),
    Secret(Box<str>, SecretContent),
    /// Delete it; `told` when the agent waits for the outcome.
    Gone {
        told: bool,
    },
}

/// One agent's stream after its `Hello`.
#[derive(Debug)]
pub(super) struct Session {
    max_routes: usize,
    complete: bool,
    wanted: Wanted,
    /// The report that the agent was sent last.
    reported: HashMap<RouteName, Arc<Record>>,
    /// Deletions whose outcome the agent waits for.
    deleting: HashSet<Item>,
    /// What the hub has of another content and asked for, until the agent says something of it: an agent that has just
    /// begun may not know yet that it is the same.
    asked: HashSet<Item>,
    /// What was found to be the same, and so was not written on this stream. Should a write of an earlier stream change it
    /// after that, it is asked for again.
    kept: HashSet<Item>,
}

/// The hash of what the agent wants of each item.
#[derive(Debug, Default)]
struct Wanted {
    all: HashMap<Item, Box<str>>,
    routes: usize,
    secrets: usize,
}

impl Wanted {
    fn insert(&mut self, item: Item, hash: Box<str>) {
        let new = !self.all.contains_key(&item);
        if new && let Some(count) = self.count(&item) {
            *count += 1;
        }
        self.all.insert(item, hash);
    }

    fn remove(&mut self, item: &Item) -> Option<Box<str>> {
        let hash = self.all.remove(item)?;
        if let Some(count) = self.count(item) {
            *count -= 1;
        }
        Some(hash)
    }

    /// How many items of this one's kind there are, where they are counted.
    fn count(&mut self, like: &Item) -> Option<&mut usize> {
        match like {
            Item::Nodes => None,
            Item::Route(_) => Some(&mut self.routes),
            Item::Secret(_) => Some(&mut self.secrets),
        }
    }
}

impl Session {
    pub(super) fn new(max_routes: u32) -> Self {
        Self {
            max_routes: max_routes as usize,
            complete: false,
            wanted: Wanted::default(),
            reported: HashMap::new(),
            deleting: HashSet::new(),
            asked: HashSet::new(),
            kept: HashSet::new(),
        }
    }

    /// How many items the agent wants, once it has named all of them.
    pub(super) fn inventoried(&self) -> Option<usize> {
        self.complete.then_some(self.wanted.all.len())
    }

    /// Takes a message in. `records`: what the hub has.
    #[allow(clippy::result_large_err)] // tonic's own error type
    pub(super) fn on_message(
        &mut self,
        message: From,
        records: &ChangeLog<Item, Arc<Record>>,
    ) -> Result<Vec<Action>, Status> {
        match message {
            From::Hello(_) => Err(Status::invalid_argument("a second Hello")),
            From::Inventory(inventory) => self.inventory(inventory, records),
            From::Put(_) | From::Delete(_) if !self.complete => {
                Err(Status::invalid_argument("Put or Delete before the inventory was complete"))
            }
            From::Put(put) => Ok(self.put(put, records)),
            From::Delete(v1::Delete { key }) => {
                let item =
                    convert::item(&key.unwrap_or_default()).map_err(Status::invalid_argument)?;
                self.wanted.remove(&item);
                self.asked.remove(&item);
                self.kept.remove(&item);
                if let Item::Route(name) = &item {
                    self.reported.remove(name);
                }
                self.deleting.insert(item.clone());
                Ok(vec![Action::Store(item, Upload::Gone { told: true })])
            }
        }
    }

    #[allow(clippy::result_large_err)] // tonic's own error type
    fn inventory(
        &mut self,
        inventory: v1::Inventory,
        records: &ChangeLog<Item, Arc<Record>>,
    ) -> Result<Vec<Action>, Status> {
        if self.complete {
            return Err(Status::invalid_argument("an inventory after the complete one"));
        }
        for v1::inventory::Item { key, hash } in inventory.items {
            let item = convert::item(&key.unwrap_or_default()).map_err(Status::invalid_argument)?;
            let hash = convert::hash(&hash).map_err(Status::invalid_argument)?;
            self.wanted.insert(item, hash);
            // Far beyond the quota there is no use in naming each.
            if self.wanted.all.len() > self.max_routes * 3 + 1_000 {
                return Err(Status::resource_exhausted(self.quota()));
            }
        }
        if !inventory.last {
            return Ok(Vec::new());
        }
        self.complete = true;
        Ok(self.compare(records))
    }

    /// The inventory against what the hub has.
    fn compare(&mut self, there: &ChangeLog<Item, Arc<Record>>) -> Vec<Action> {
        let missing =
            |item: &Item, hash: &str| there.get(item).is_none_or(|record| *record.hash != *hash);
        let mut lacking: Vec<_> = self
            .wanted
            .all
            .iter()
            .filter(|(i, hash)| missing(i, hash))
            .map(|(item, _)| item)
            .collect();
        // The nodes first: no Route can be served without them.
        lacking.sort();
        let lacking: Vec<Item> = lacking.into_iter().cloned().collect();
        // What the hub has is kept; of the rest, what the quota has room for.
        let is_route = |item: &&Item| matches!(item, Item::Route(_));
        let all = there.iter().map(|(item, _)| item).filter(is_route);
        let kept = all.filter(|item| self.wanted.all.contains_key(*item));
        let mut room = self.max_routes.saturating_sub(kept.count());
        let (mut keys, mut actions) = (Vec::new(), Vec::new());
        for item in lacking {
            let is_there = there.get(&item).is_some();
            let new = is_route(&&item) && !is_there;
            if new && room == 0 {
                actions.extend(self.refuse(&item));
                continue;
            }
            room -= usize::from(new);
            keys.push(convert::key(&item));
            if is_there {
                self.asked.insert(item);
            }
        }
        let chunks = keys.chunks(MAX_ITEMS).map(<[v1::Key]>::to_vec);
        actions.extend(chunks.map(|keys| Action::Send(To::Want(v1::Want { keys }))));
        for (item, record) in there.iter() {
            actions.extend(self.on_record(item, Some(record)));
        }
        actions
    }

    /// There is no room for an item of the inventory.
    fn refuse(&mut self, item: &Item) -> Option<Action> {
        let hash = convert::hash_bytes(&self.wanted.remove(item)?);
        let (key, reason) = (Some(convert::key(item)), "TooManyRoutes".to_owned());
        Some(Action::Send(To::Refused(v1::Refused { key, hash, reason, message: self.quota() })))
    }

    fn quota(&self) -> String {
        format!(
            "the tenant may have {} Routes; a platform administrator raises Tenant.spec.quotas.routes",
            self.max_routes
        )
    }

    fn put(&mut self, put: v1::Put, records: &ChangeLog<Item, Arc<Record>>) -> Vec<Action> {
        let v1::Put { key, hash, object } = put;
        let key = key.unwrap_or_default();
        match self.read_put(&key, &hash, object) {
            Ok((item, upload)) => match records.get(&item) {
                Some(record) if self.keep(&item, record) => {
                    let stored = self.on_stored(&item, upload, None).map(Action::Send);
                    stored.into_iter().chain(self.on_record(&item, Some(record))).collect()
                }
                _ => vec![Action::Store(item, upload)],
            },
            Err((reason, message)) => {
                let reason = reason.to_owned();
                let refused = v1::Refused { key: Some(key), hash, reason, message };
                vec![Action::Send(To::Refused(refused))]
            }
        }
    }

    /// Keeps what the hub has of an item, if that is what the agent wants. Only at the first word of it after it was asked
    /// for: then this stream has no write of it under way, after which the hub would have something else.
    fn keep(&mut self, item: &Item, record: &Record) -> bool {
        let same = self.wanted.all.get(item) == Some(&record.hash);
        let kept = self.asked.remove(item) && same;
        if kept {
            self.kept.insert(item.clone());
        } else {
            self.kept.remove(item);
        }
        kept
    }

    fn read_put(
        &mut self,
        key: &v1::Key,
        hash: &[u8],
        object: Option<Object>,
    ) -> Result<(Item, Upload), (&'static str, String)> {
        let invalid = |message| ("Invalid", message);
        let item = convert::item(key).map_err(invalid)?;
        let hash = convert::hash(hash).map_err(invalid)?;
        // A Secret is of use to a Route, so there are not more of them.
        let new = !self.wanted.all.contains_key(&item);
        if new && self.wanted.count(&item).is_some_and(|count| *count >= self.max_routes) {
            return Err(("TooManyRoutes", self.quota()));
        }
        let upload = match (&item, object) {
            (Item::Route(name), Some(Object::Route(route))) => Upload::Route(
                hash.clone(),
                Box::new(convert::route(name, &hash, &route).map_err(invalid)?),
            ),
            (Item::Secret(_), Some(Object::Secret(secret))) => {
                let bad = |message| ("InvalidCertificate", message);
                Upload::Secret(hash.clone(), convert::secret(&hash, secret).map_err(bad)?)
            }
            (Item::Nodes, Some(Object::Nodes(nodes))) => {
                Upload::Nodes(hash.clone(), convert::nodes(&hash, nodes).map_err(invalid)?)
            }
            _ => return Err(invalid("object: is not of the kind that the key names".into())),
        };
        self.deleting.remove(&item);
        self.wanted.insert(item.clone(), hash);
        Ok((item, upload))
    }

    /// A record of the hub changed; `None`: it is gone.
    pub(super) fn on_record(
        &mut self,
        item: &Item,
        record: Option<&Arc<Record>>,
    ) -> Option<Action> {
        if !self.complete {
            return None;
        }
        let want = || Action::Send(To::Want(v1::Want { keys: vec![convert::key(item)] }));
        let Some(record) = record else {
            if let Item::Route(name) = item {
                self.reported.remove(name);
            }
            // Somebody else deleted it: the agent still wants it.
            return self.wanted.all.contains_key(item).then(want);
        };
        let Some(hash) = self.wanted.all.get(item) else {
            // The agent waits for the deletion that is under way: another must not take its place.
            let gone = || Action::Store(item.clone(), Upload::Gone { told: false });
            return (!self.deleting.contains(item)).then(gone);
        };
        if record.hash != *hash && self.kept.remove(item) {
            return Some(want());
        }
        let (Item::Route(name), Some(report)) = (item, &record.report) else { return None };
        if record.hash != *hash || self.reported.get(name).is_some_and(|old| old == record) {
            return None;
        }
        self.reported.insert(name.clone(), record.clone());
        let hash = convert::hash_bytes(&record.hash);
        let key = Some(convert::key(item));
        Some(Action::Send(To::Status(v1::Status { key, hash, ..report.unpack() })))
    }

    /// An upload was stored, or was refused by the apiserver with this reason.
    pub(super) fn on_stored(
        &mut self,
        item: &Item,
        upload: Upload,
        refused: Option<String>,
    ) -> Option<To> {
        if upload == (Upload::Gone { told: true }) {
            self.deleting.remove(item);
        }
        let key = Some(convert::key(item));
        let hash = match upload {
            Upload::Route(hash, _) | Upload::Nodes(hash, _) | Upload::Secret(hash, _) => {
                convert::hash_bytes(&hash)
            }
            Upload::Gone { told: true } => Vec::new(),
            Upload::Gone { told: false } => return None,
        };
        Some(match refused {
            None => To::Stored(v1::Stored { key, hash }),
            Some(message) => {
                To::Refused(v1::Refused { key, hash, reason: "Invalid".into(), message })
            }
        })
    }
}

/// Takes messages in, each behind its length, as a stream with good framing brings them. For fuzzing: whatever
/// the bytes are, nothing panics.
pub fn fuzz_stream(mut bytes: &[u8]) {
    let mut session = Session::new(10);
    while let Ok(message) = v1::AgentMessage::decode_length_delimited(&mut bytes) {
        let Some(message) = message.message else { continue };
        if session.on_message(message, &ChangeLog::default()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
