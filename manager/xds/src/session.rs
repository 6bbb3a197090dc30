//! The delta protocol with one client, as a state machine.
//!
//! At most one response per type is under way (of `RouteConfiguration`s, which go out one by one, a
//! few); what changes meanwhile waits and goes out together.
//! When a client rejects a response with several resources, each is sent again alone, so that one
//! bad resource is named and the others arrive.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::num::NonZeroU64;
use std::ops::Bound;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use crate::resource::Version;
use crate::{Key, KeyMap, Resource, ResourceType, Response, State, Wire};

/// Bounds one response, as [`ResourceType::per_response`] does, so that a bulk load does not stall a
/// client's main thread.
const MAX_BYTES: usize = 1 << 20;

/// What the client made of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It has this version.
    Acked(u64),
    /// It refused this version, in its own words.
    Rejected(u64, Arc<str>),
    /// It has it no more.
    Removed,
}

/// What became of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Which one.
    pub key: Key,
    /// What the client said.
    pub outcome: Outcome,
}

/// The protocol with one client. Feed it requests, and wake it with [`Session::pump`] after the
/// state has changed; send what comes back.
#[derive(Debug, Default)]
pub struct Session {
    types: [Type; ResourceType::ALL.len()],
    /// How many resources that the client has, or is being sent, need this one.
    uses: KeyMap<u32>,
    nonce: u64,
}

#[derive(Debug, Default)]
struct Type {
    started: bool,
    wildcard: bool,
    names: HashSet<Arc<str>>,
    known: HashMap<Arc<str>, Known>,
    /// Names to look at again: changed, asked for, or held back until what they need is there.
    pending: BTreeSet<Arc<str>>,
    /// Names that the client asked for: it is told also when there is no such resource.
    asked: HashSet<Arc<str>>,
    /// Names that go out alone, since a response with several was rejected.
    alone: BTreeSet<Arc<str>>,
    cursor: u64,
    in_flight: VecDeque<InFlight>,
    /// Something was sent already. A wildcard subscriber is sent its first response even when there
    /// is nothing to send: Envoy's start-up waits for it.
    greeted: bool,
}

#[derive(Debug, Default)]
struct Known {
    acked: Option<Held>,
    rejected: Option<NonZeroU64>,
    /// Send it even if the client has this version.
    renew: bool,
    /// The version of what it is to be sent again with, as the client was sent that last.
    with: Option<NonZeroU64>,
    /// It was in a response of several that the client refused, or did not answer: it may have taken it all the same,
    /// and does not say so, until it says something of this one alone.
    unsure: bool,
}

#[derive(Debug, Clone)]
struct Held {
    version: Version,
    needs: Arc<[Key]>,
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    items: Vec<Item>,
}

#[derive(Debug)]
struct Item {
    name: Arc<str>,
    /// `None`: taken away.
    sent: Option<Held>,
}

impl Type {
    fn subscribed(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    fn is_under_way(&self, name: &str) -> bool {
        self.in_flight.iter().any(|sent| sent.items.iter().any(|item| *item.name == *name))
    }
}

impl Session {
    /// A session with a client of which this was left open by the one before: see [`Session::left_open`].
    pub fn after(left_open: Vec<Key>) -> Self {
        let mut session = Self::default();
        for Key { kind, name } in left_open {
            session.types[kind as usize].known.entry(name).or_default().unsure = true;
        }
        session
    }

    /// What the client may have other than it will say when it connects again: it applies what is good of a response with
    /// several resources that it refuses, and notes no versions of that.
    pub fn left_open(&self) -> Vec<Key> {
        let mut open = Vec::new();
        for (kind, ty) in ResourceType::ALL.into_iter().zip(&self.types) {
            let unsure = ty.known.iter().filter(|(_, known)| known.unsure).map(|(name, _)| name);
            let several = ty.in_flight.iter().filter(|sent| sent.items.len() > 1);
            let sent = several.flat_map(|sent| &sent.items).map(|item| &item.name);
            open.extend(unsure.chain(sent).map(|name| Key { kind, name: name.clone() }));
        }
        open
    }

    /// Takes a request in. What the client said about earlier responses goes to `events`; the
    /// responses that are due now come back.
    pub fn on_request(
        &mut self,
        request: DeltaDiscoveryRequest,
        state: &State,
        events: &mut Vec<Event>,
    ) -> Vec<Response> {
        let Some(kind) = ResourceType::of_url(&request.type_url) else { return Vec::new() };
        self.answer(kind, &request, events);
        self.subscribe(kind, request, state, events);
        self.pump(state)
    }

    /// The responses that are due after the state has changed.
    pub fn pump(&mut self, state: &State) -> Vec<Response> {
        if !state.is_complete() {
            return Vec::new();
        }
        for kind in ResourceType::ALL {
            self.collect(kind, state);
        }
        let mut due = Vec::new();
        for kind in ResourceType::ALL {
            while let Some(response) = self.respond(kind, state) {
                due.push(response);
            }
        }
        due
    }

    /// ACK or NACK of the response under way.
    fn answer(
        &mut self,
        kind: ResourceType,
        request: &DeltaDiscoveryRequest,
        events: &mut Vec<Event>,
    ) {
        let sent = &mut self.types[kind as usize].in_flight;
        let place = sent.iter().position(|sent| sent.nonce == request.response_nonce);
        let Some(done) = place.and_then(|place| sent.remove(place)) else { return };
        match &request.error_detail {
            None => self.acked(kind, done.items, events),
            Some(error) => self.rejected(kind, done.items, &error.message, events),
        }
    }

    fn acked(&mut self, kind: ResourceType, items: Vec<Item>, events: &mut Vec<Event>) {
        for Item { name, sent } in items {
            let key = Key { kind, name: name.clone() };
            let ty = &mut self.types[kind as usize];
            let Some(held) = sent else {
                let old = ty.known.remove(&name).and_then(|known| known.acked);
                self.release(old);
                events.push(Event { key, outcome: Outcome::Removed });
                continue;
            };
            events.push(Event { key, outcome: Outcome::Acked(held.version.own) });
            if !ty.subscribed(&name) {
                // It let go of the name while the response was under way.
                self.release(Some(held));
                continue;
            }
            let known = ty.known.entry(name).or_default();
            (known.rejected, known.unsure) = (None, false);
            let old = known.acked.replace(held);
            self.release(old);
        }
    }

    fn rejected(
        &mut self,
        kind: ResourceType,
        items: Vec<Item>,
        error: &str,
        events: &mut Vec<Event>,
    ) {
        let single = items.len() == 1;
        for Item { name, sent } in items {
            let ty = &mut self.types[kind as usize];
            if !ty.subscribed(&name) {
                // It let go of the name while the response was under way.
            } else if !single {
                ty.known.entry(name.clone()).or_default().unsure = true;
                ty.alone.insert(name.clone());
                ty.pending.insert(name);
            } else if let Some(held) = &sent {
                ty.known.entry(name.clone()).or_default().rejected =
                    NonZeroU64::new(held.version.own);
                let outcome = Outcome::Rejected(held.version.own, error.into());
                events.push(Event { key: Key { kind, name }, outcome });
            }
            self.release(sent);
        }
    }

    fn release(&mut self, held: Option<Held>) {
        for key in held.iter().flat_map(|held| held.needs.iter()) {
            if let Some(count) = self.uses.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    self.uses.remove(key);
                }
            }
        }
    }

    fn retain(&mut self, held: &Held) {
        for key in held.needs.iter() {
            *self.uses.or_default(key) += 1;
        }
    }

    fn subscribe(
        &mut self,
        kind: ResourceType,
        request: DeltaDiscoveryRequest,
        state: &State,
        events: &mut Vec<Event>,
    ) {
        let first = !std::mem::replace(&mut self.types[kind as usize].started, true);
        if first {
            self.start(kind, &request, state, events);
        }
        for name in request.resource_names_unsubscribe {
            self.unsubscribe(kind, &name);
        }
        let ty = &mut self.types[kind as usize];
        for name in request.resource_names_subscribe {
            if name == "*" {
                ty.wildcard = true;
                ty.pending.extend(state.of(kind).iter().map(|(name, _)| name.clone()));
                continue;
            }
            let name = state.shared(kind, &name);
            // A name that is asked for again is sent again, whatever the client had, unless it
            // told its version with this very request.
            if !first && let Some(known) = ty.known.get_mut(&name) {
                known.renew = true;
            }
            ty.asked.insert(name.clone());
            ty.pending.insert(name.clone());
            ty.names.insert(name);
        }
    }

    /// The first request of a type: what the client brings from an earlier stream counts.
    fn start(
        &mut self,
        kind: ResourceType,
        request: &DeltaDiscoveryRequest,
        state: &State,
        events: &mut Vec<Event>,
    ) {
        self.types[kind as usize].wildcard = request.resource_names_subscribe.is_empty();
        for (name, version) in &request.initial_resource_versions {
            let Some(version) = Version::parse(version) else { continue };
            let name = state.shared(kind, name);
            let now = state.of(kind).get(&*name).filter(|now| now.version == version.own);
            let needs = now.map_or_else(Arc::default, |now| now.needs.clone());
            if let Some(Key { kind, name }) = now.and_then(|now| now.renews.as_ref()) {
                let renewed = self.types[*kind as usize].known.entry(name.clone()).or_default();
                renewed.with = NonZeroU64::new(version.own);
            }
            let held = Held { version, needs };
            self.retain(&held);
            let key = Key { kind, name: name.clone() };
            events.push(Event { key, outcome: Outcome::Acked(version.own) });
            self.types[kind as usize].known.entry(name).or_default().acked = Some(held);
        }
        self.compare_all(kind, state);
    }

    fn unsubscribe(&mut self, kind: ResourceType, name: &str) {
        let ty = &mut self.types[kind as usize];
        if name == "*" {
            ty.wildcard = false;
        }
        ty.names.remove(name);
        ty.asked.remove(name);
        if !ty.subscribed(name) {
            ty.pending.remove(name);
            let old = ty.known.remove(name).and_then(|known| known.acked);
            self.release(old);
        }
    }

    /// Adds what changed since the cursor to `pending`.
    fn collect(&mut self, kind: ResourceType, state: &State) {
        let log = state.of(kind);
        let ty = &mut self.types[kind as usize];
        if !ty.started || ty.cursor == log.cursor() {
            return;
        }
        match log.since(ty.cursor) {
            Some(changed) => {
                let Type { wildcard, names, pending, .. } = ty;
                pending.extend(changed.filter(|name| *wildcard || names.contains(*name)).cloned());
            }
            None => self.compare_all(kind, state),
        }
        self.types[kind as usize].cursor = log.cursor();
    }

    fn compare_all(&mut self, kind: ResourceType, state: &State) {
        let Type { wildcard, names, pending, known, .. } = &mut self.types[kind as usize];
        pending.extend(known.keys().cloned());
        let all = state.of(kind).iter().map(|(name, _)| name);
        pending.extend(all.filter(|name| *wildcard || names.contains(*name)).cloned());
    }

    fn respond(&mut self, kind: ResourceType, state: &State) -> Option<Response> {
        let ty = &self.types[kind as usize];
        let greet = ty.wildcard && !ty.greeted;
        if ty.in_flight.len() >= kind.window()
            || (ty.pending.is_empty() && !greet)
            || self.too_early(kind, state)
        {
            return None;
        }
        let (puts, removals) = self.due(kind, state);
        if puts.is_empty() && removals.is_empty() && !greet {
            return None;
        }
        // Never both in one response: a NACK of the one would leave the other in the dark.
        let removed = if puts.is_empty() { removals } else { Vec::new() };
        Some(self.send(kind, puts, removed))
    }

    /// An Envoy is ready once it has the first listeners: all that these need goes before them, so
    /// that it is not ready with a part of the listeners only.
    fn too_early(&self, kind: ResourceType, state: &State) -> bool {
        // A removal that is held until the listeners let go must not hold the listeners.
        let awaited = |(kind, ty): (&ResourceType, &Type)| {
            ty.pending.iter().any(|name| state.of(*kind).get(&**name).is_some())
        };
        let before = ResourceType::ALL.iter().zip(&self.types).take(kind as usize);
        let mut busy = before.map(|(kind, ty)| !ty.in_flight.is_empty() || awaited((kind, ty)));
        kind == ResourceType::Listener
            && !self.types[kind as usize].greeted
            && busy.any(|busy| busy)
    }

    /// What can go out now. Names that need nothing more leave `pending`; those that are held back
    /// stay.
    fn due(&mut self, kind: ResourceType, state: &State) -> (Vec<Arc<Resource>>, Vec<Arc<str>>) {
        let (mut puts, mut removals, mut bytes) = (Vec::new(), Vec::new(), 0);
        // An Envoy that has none is ready once it has the first: all at once. One that brings some serves meanwhile.
        let ty = &self.types[kind as usize];
        let whole = kind == ResourceType::Listener && !ty.greeted && ty.known.is_empty();
        let mut next = ty.pending.first().cloned();
        while let Some(name) = next {
            let after = (Bound::Excluded(name.clone()), Bound::Unbounded);
            next = self.types[kind as usize].pending.range(after).next().cloned();
            match self.decide(kind, &name, state) {
                Step::Hold => {}
                Step::Done => {
                    self.refresh(kind, &name, state);
                    self.done(kind, &name);
                }
                Step::Remove => removals.push(name),
                Step::Put(resource) if self.types[kind as usize].alone.contains(&name) => {
                    // Alone; the rest stays pending for the next turn.
                    return (vec![resource], Vec::new());
                }
                Step::Put(resource) => {
                    bytes += resource.size();
                    puts.push(resource);
                }
            }
            if !whole && (puts.len() >= kind.per_response() || bytes >= MAX_BYTES) {
                break;
            }
        }
        (puts, removals)
    }

    fn decide(&self, kind: ResourceType, name: &Arc<str>, state: &State) -> Step {
        let ty = &self.types[kind as usize];
        let known = ty.known.get(name);
        let acked = known.and_then(|known| known.acked.as_ref());
        let is_unsure = known.is_some_and(|known| known.unsure);
        match state.of(kind).get(&**name) {
            _ if ty.is_under_way(name) => Step::Hold,
            Some(_) if !ty.subscribed(name) => Step::Done,
            Some(now) => {
                let renew = known.is_some_and(|known| known.renew);
                let with = known.and_then(|known| known.with);
                let version = Version { own: now.version, with };
                let has = acked.is_some_and(|held| held.version == version) && !is_unsure;
                let refused = known
                    .and_then(|known| known.rejected)
                    .is_some_and(|version| version.get() == now.version);
                if (has || refused) && !renew {
                    Step::Done
                } else if now.needs.iter().all(|key| self.has(key)) {
                    Step::Put(now.clone())
                } else {
                    Step::Hold
                }
            }
            None if acked.is_none() && !is_unsure && !ty.asked.contains(name) => Step::Done,
            None if self.uses.contains_key(&Key { kind, name: name.clone() }) => Step::Hold,
            None => Step::Remove,
        }
    }

    /// A resource may need others now though its content is the same: what it needed before may go.
    fn refresh(&mut self, kind: ResourceType, name: &Arc<str>, state: &State) {
        let Some(now) = state.of(kind).get(&**name) else { return };
        let known = self.types[kind as usize].known.get_mut(name);
        let held = known.and_then(|known| known.acked.as_mut());
        let Some(held) = held.filter(|h| h.version.own == now.version && h.needs != now.needs)
        else {
            return;
        };
        let (version, needs) = (held.version, now.needs.clone());
        let new = Held { version, needs };
        let old = std::mem::replace(held, new.clone());
        self.retain(&new);
        self.release(Some(old));
    }

    fn has(&self, key: &Key) -> bool {
        let known = self.types[key.kind as usize].known.get(&key.name);
        known.is_some_and(|known| known.acked.is_some())
    }

    fn done(&mut self, kind: ResourceType, name: &Arc<str>) {
        let ty = &mut self.types[kind as usize];
        ty.pending.remove(name);
        ty.alone.remove(name);
        ty.asked.remove(name);
        // A name that is not there, and was never told: nothing to remember.
        let is_nothing = |known: &Known| {
            let Known { acked, rejected, renew: _, with, unsure } = known;
            acked.is_none() && rejected.is_none() && with.is_none() && !unsure
        };
        if ty.known.get(name).is_some_and(is_nothing) {
            ty.known.remove(name);
        }
    }

    fn send(
        &mut self,
        kind: ResourceType,
        puts: Vec<Arc<Resource>>,
        removed: Vec<Arc<str>>,
    ) -> Response {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let mut items = Vec::with_capacity(puts.len() + removed.len());
        let mut resources = Vec::with_capacity(puts.len());
        for resource in puts {
            let known = self.types[kind as usize].known.get(&resource.key.name);
            let with = known.and_then(|known| known.with);
            let version = Version { own: resource.version, with };
            let held = Held { version, needs: resource.needs.clone() };
            self.retain(&held);
            self.renew(&resource);
            items.push(Item { name: resource.key.name.clone(), sent: Some(held) });
            resources.push(Wire { version: version.to_string(), resource });
        }
        items.extend(removed.iter().map(|name| Item { name: name.clone(), sent: None }));
        for item in &items {
            self.done(kind, &item.name);
            if let Some(known) = self.types[kind as usize].known.get_mut(&item.name) {
                known.renew = false;
            }
        }
        let ty = &mut self.types[kind as usize];
        ty.in_flight.push_back(InFlight { nonce: nonce.clone(), items });
        ty.greeted = true;
        Response { kind, nonce, resources, removed }
    }

    /// What is to be sent again with a resource that is sent: at once, or when the client asks for it. (One that connects
    /// again may be sent a Cluster before it says which endpoints it has; that it has them does not help the Cluster.)
    fn renew(&mut self, sent: &Resource) {
        let Some(Key { kind, name }) = &sent.renews else { return };
        let ty = &mut self.types[*kind as usize];
        let known = ty.known.entry(name.clone()).or_default();
        (known.renew, known.with) = (true, NonZeroU64::new(sent.version));
        if ty.subscribed(name) {
            ty.pending.insert(name.clone());
        }
    }
}

enum Step {
    /// Not yet: it needs what the client lacks, or is needed by what the client has.
    Hold,
    /// Nothing to say.
    Done,
    Put(Arc<Resource>),
    Remove,
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
