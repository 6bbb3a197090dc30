use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::service::discovery::v3::Resource as Proto;
use envoy_types::pb::google::rpc::Status;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::Change;
use crate::ResourceType as Ty;

/// A client that behaves like Envoy: wildcard for clusters and listeners, endpoints by the name of
/// each cluster it has; refuses what its rules refuse.
#[derive(Default)]
struct Client {
    session: Session,
    has: BTreeMap<Key, u64>,
    events: Vec<Event>,
    responses: u32,
    refuses: HashSet<u64>,
    /// Clusters that were replaced, and are used once their endpoints have come since.
    warming: BTreeSet<Arc<str>>,
    /// What it says that it has: like Envoy it notes no versions of a response that it refuses, though it applies what is
    /// good of it.
    said: BTreeMap<Key, Version>,
    /// How many listeners the largest response had.
    most_listeners: usize,
}

impl Client {
    fn connect(state: &State, has: BTreeMap<Key, u64>, refuses: HashSet<u64>) -> Self {
        Self { has, refuses, ..Self::default() }.connected(state)
    }

    /// With what it has and waits for, on a new stream.
    fn again(self, state: &State) -> Self {
        let Self { has, refuses, warming, said, session, .. } = self;
        let session = Session::after(session.left_open());
        Self { session, has, refuses, warming, said, ..Self::default() }.connected(state)
    }

    fn connected(mut self, state: &State) -> Self {
        for kind in [Ty::Cluster, Ty::Endpoints, Ty::Listener] {
            let hello = self.hello(kind);
            if kind == Ty::Endpoints && hello.resource_names_subscribe.is_empty() {
                continue;
            }
            self.talk(hello, state);
        }
        self
    }

    /// The first request of a type on a stream.
    fn hello(&self, kind: Ty) -> DeltaDiscoveryRequest {
        let names = if kind == Ty::Endpoints { self.names(Ty::Cluster) } else { Vec::new() };
        let mine = self.said.iter().filter(|(key, _)| key.kind == kind);
        let text = |(key, version): (&Key, &Version)| (key.name.to_string(), version.to_string());
        DeltaDiscoveryRequest {
            type_url: kind.url().into(),
            resource_names_subscribe: names,
            initial_resource_versions: mine.map(text).collect(),
            ..Default::default()
        }
    }

    fn names(&self, kind: Ty) -> Vec<String> {
        self.has.keys().filter(|key| key.kind == kind).map(|key| key.name.to_string()).collect()
    }

    fn wake(&mut self, state: &State) {
        let due = self.session.pump(state);
        self.take(due, state);
    }

    fn talk(&mut self, request: DeltaDiscoveryRequest, state: &State) {
        let due = self.session.on_request(request, state, &mut self.events);
        self.take(due, state);
    }

    fn take(&mut self, due: Vec<Response>, state: &State) {
        for response in due {
            self.responses += 1;
            let answer = self.apply(&response, state);
            self.talk(answer, state);
        }
    }

    fn apply(&mut self, response: &Response, state: &State) -> DeltaDiscoveryRequest {
        let kind = response.kind;
        if kind == Ty::Listener {
            self.most_listeners = self.most_listeners.max(response.resources.len());
        }
        let (mut bad, mut noted) = (Vec::new(), Vec::new());
        for sent in &response.resources {
            let mut bytes = Vec::new();
            sent.resource.encode(&mut Vec::new(), &mut bytes);
            let wire = Proto::decode(&*bytes).unwrap();
            let version = Version::parse(&sent.version).unwrap();
            let key = Key::new(kind, wire.name.as_str());
            noted.push((key.clone(), version));
            let version = version.own;
            if self.refuses.contains(&version) {
                bad.push(wire.name);
                continue;
            }
            if kind == Ty::Listener {
                let needs = &state.of(kind).get(&*key.name).unwrap().needs;
                assert!(
                    needs.iter().all(|need| self.has.contains_key(need)),
                    "{key} came too early"
                );
            }
            let new = self.has.insert(key.clone(), version).is_none();
            if kind == Ty::Cluster {
                self.warming.insert(key.name.clone());
            }
            if kind == Ty::Endpoints {
                self.warming.remove(&key.name);
            }
            if kind == Ty::Cluster && new {
                self.subscribe_endpoints(&key.name, state);
            }
        }
        if bad.is_empty() {
            self.said.extend(noted);
        }
        for name in &response.removed {
            self.said.remove(&Key { kind, name: name.clone() });
            self.warming.remove(name);
            self.has.remove(&Key { kind, name: name.clone() });
            if kind == Ty::Cluster {
                self.unsubscribe_endpoints(name, state);
            }
        }
        DeltaDiscoveryRequest {
            type_url: kind.url().into(),
            response_nonce: response.nonce.clone(),
            error_detail: (!bad.is_empty())
                .then(|| Status { message: format!("bad: {bad:?}"), ..Default::default() }),
            ..Default::default()
        }
    }

    fn subscribe_endpoints(&mut self, name: &str, state: &State) {
        self.talk(
            DeltaDiscoveryRequest {
                type_url: Ty::Endpoints.url().into(),
                resource_names_subscribe: vec![name.into()],
                ..Default::default()
            },
            state,
        );
    }

    fn unsubscribe_endpoints(&mut self, name: &Arc<str>, state: &State) {
        self.has.remove(&Key { kind: Ty::Endpoints, name: name.clone() });
        self.said.remove(&Key { kind: Ty::Endpoints, name: name.clone() });
        self.talk(
            DeltaDiscoveryRequest {
                type_url: Ty::Endpoints.url().into(),
                resource_names_unsubscribe: vec![name.to_string()],
                ..Default::default()
            },
            state,
        );
    }
}

fn key(kind: Ty, name: &str) -> Key {
    Key::new(kind, name)
}

fn resource(kind: Ty, name: &str, content: u32, needs: &[Key]) -> Resource {
    let alt_stat_name = format!("{kind:?} {content}");
    let message = Cluster { name: name.into(), alt_stat_name, ..Default::default() };
    Resource::new(key(kind, name), &message, needs)
}

fn put(resource: Resource) -> Change {
    resource.into()
}

/// A service as the translator publishes it: cluster, endpoints, and a listener that needs both.
fn service(name: &str, content: u32) -> Vec<Change> {
    service_at(name, content, content)
}

/// With endpoints that need not change when the rest does.
fn service_at(name: &str, content: u32, endpoints: u32) -> Vec<Change> {
    let needs = [key(Ty::Cluster, name), key(Ty::Endpoints, name)];
    vec![
        put(resource(Ty::Cluster, name, content, &[]).renewing(key(Ty::Endpoints, name))),
        put(resource(Ty::Endpoints, name, endpoints, &[])),
        put(resource(Ty::Listener, name, content, &needs)),
    ]
}

fn gone(name: &str) -> Vec<Change> {
    [Ty::Listener, Ty::Cluster, Ty::Endpoints].map(|kind| Change::Remove(key(kind, name))).into()
}

fn state(changes: Vec<Change>) -> State {
    let mut state = State::default();
    state.apply(changes);
    state.complete();
    state
}

fn wanted(state: &State) -> BTreeMap<Key, u64> {
    let all = [Ty::Cluster, Ty::Endpoints, Ty::Listener].into_iter();
    all.flat_map(|kind| state.of(kind).iter())
        .map(|(_, resource)| (resource.key.clone(), resource.version))
        .collect()
}

#[test]
fn a_client_is_brought_to_the_state_and_kept_there() {
    let mut state = state(service("blue", 1));
    let mut client = Client::connect(&state, BTreeMap::new(), HashSet::new());
    assert_eq!(client.has, wanted(&state));

    state.apply(service("red", 1));
    client.wake(&state);
    assert_eq!(client.has, wanted(&state));

    state.apply(gone("blue"));
    client.wake(&state);
    assert_eq!(client.has, wanted(&state));
    assert_eq!(client.has.len(), 3);
}

#[test]
fn one_change_sends_one_response_with_one_resource() {
    let mut state = state((0..100).flat_map(|n| service(&format!("s{n}"), 1)).collect());
    let mut client = Client::connect(&state, BTreeMap::new(), HashSet::new());
    state.apply(vec![put(resource(Ty::Endpoints, "s7", 2, &[]))]);
    let due = client.session.pump(&state);
    assert_eq!(due.len(), 1);
    assert_eq!((due[0].kind, due[0].resources.len()), (Ty::Endpoints, 1));
}

#[test]
fn listeners_come_few_at_a_time_to_a_client_that_serves_already() {
    let mut state = state(service("first", 1));
    let mut client = Client::connect(&state, BTreeMap::new(), HashSet::new());
    state.apply((0..120).flat_map(|n| service(&format!("s{n}"), 1)).collect());
    client.wake(&state);
    assert_eq!(client.has, wanted(&state));
    assert_eq!(client.most_listeners, 50);
    // So does one that connects again, and serves what it has.
    state.apply((0..120).flat_map(|n| service(&format!("s{n}"), 2)).collect());
    state.apply((0..120).flat_map(|n| service(&format!("t{n}"), 1)).collect());
    let client = client.again(&state);
    assert_eq!(client.has, wanted(&state));
    assert_eq!(client.most_listeners, 50);
    // One that begins is not ready with a part of them.
    let client = Client::connect(&state, BTreeMap::new(), HashSet::new());
    assert_eq!(client.most_listeners, 241);
}

#[test]
fn nobody_is_answered_before_the_state_is_complete() {
    let mut state = State::default();
    state.apply(service("blue", 1));
    let mut client = Client::connect(&state, BTreeMap::new(), HashSet::new());
    assert_eq!(client.responses, 0);
    state.complete();
    client.wake(&state);
    assert_eq!(client.has, wanted(&state));
}

#[test]
fn an_empty_state_is_answered_too() {
    let client = Client::connect(&state(Vec::new()), BTreeMap::new(), HashSet::new());
    assert_eq!(client.responses, 2, "one each for clusters and listeners");
}

#[test]
fn a_client_that_comes_back_is_sent_nothing_that_it_has() {
    let state = state((0..9).flat_map(|n| service(&format!("s{n}"), 1)).collect());
    let before = Client::connect(&state, BTreeMap::new(), HashSet::new());
    let had = before.has.clone();
    let after = before.again(&state);
    let sent: Vec<_> = after.events.iter().map(|event| &event.key).collect();
    assert_eq!(sent.len(), had.len(), "each is told as acknowledged");
    assert_eq!(after.responses, 2, "the two empty greetings");
    assert_eq!(after.has, had);
}

#[test]
fn endpoints_come_again_for_a_cluster_that_was_replaced_just_before_the_connection_broke() {
    let mut state = state(service_at("blue", 1, 1));
    let mut client = Client::connect(&state, BTreeMap::new(), HashSet::new());
    state.apply(service_at("blue", 2, 1));
    // The Cluster arrives, and nothing after it.
    let due = client.session.pump(&state);
    assert_eq!(due[0].kind, Ty::Cluster);
    let answer = client.apply(&due[0], &state);
    assert!(answer.error_detail.is_none() && !client.warming.is_empty());
    let client = client.again(&state);
    assert_eq!(client.warming, BTreeSet::new());
    let client = client.again(&state);
    assert_eq!(client.responses, 2, "nothing but greetings, once it has them");
}

#[test]
fn what_a_client_took_of_a_response_that_it_refused_is_put_right_even_by_what_it_had_before() {
    let mut state = state([service("blue", 1), service("red", 1)].concat());
    let listener = |name, content| resource(Ty::Listener, name, content, &[]);
    let bad = listener("red", 2);
    let mut client = Client::connect(&state, BTreeMap::new(), HashSet::from([bad.version]));
    state.apply(vec![put(listener("blue", 2)), put(bad)]);
    let due = client.session.pump(&state);
    assert_eq!(due[0].resources.len(), 2);
    let answer = client.apply(&due[0], &state);
    assert!(answer.error_detail.is_some(), "and it has taken the good one");
    // Until that is heard the good one is again what it was.
    state.apply(vec![put(listener("blue", 1)), put(listener("red", 1))]);
    client.talk(answer, &state);
    client.wake(&state);
    assert_eq!(client.has, wanted(&state));
}

#[test]
fn a_client_that_comes_back_with_too_much_is_relieved_of_it() {
    let full = state([service("blue", 1), service("red", 1)].concat());
    let before = Client::connect(&full, BTreeMap::new(), HashSet::new());
    let now = state(service("blue", 1));
    let after = before.again(&now);
    assert_eq!(after.has, wanted(&now));
}

#[test]
fn a_replaced_cluster_is_followed_by_its_endpoints_though_they_are_unchanged() {
    let mut state = state(service("blue", 1));
    let mut client = Client::connect(&state, BTreeMap::new(), HashSet::new());
    let cluster = resource(Ty::Cluster, "blue", 2, &[]).renewing(key(Ty::Endpoints, "blue"));
    state.apply(vec![put(cluster)]);
    let due = client.session.pump(&state);
    let kinds: Vec<_> = due.iter().map(|response| response.kind).collect();
    assert_eq!(kinds, [Ty::Cluster, Ty::Endpoints]);
}

#[test]
fn one_bad_resource_is_named_and_the_others_arrive() {
    let state = state((0..20).flat_map(|n| service(&format!("s{n}"), n)).collect());
    let bad = state.of(Ty::Listener).get("s7").unwrap().version;
    let client = Client::connect(&state, BTreeMap::new(), HashSet::from([bad]));
    let mut wanted = wanted(&state);
    wanted.remove(&key(Ty::Listener, "s7"));
    assert_eq!(client.has, wanted);
    let rejected: Vec<_> =
        client.events.iter().filter(|e| matches!(e.outcome, Outcome::Rejected(..))).collect();
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].key, key(Ty::Listener, "s7"));
}

#[test]
fn a_cluster_that_a_held_back_listener_still_uses_is_not_taken_away() {
    let mut state = state(service("old", 1));
    let mut client = Client::connect(&state, BTreeMap::new(), HashSet::new());
    // The listener moves to a new cluster, which the client refuses.
    let new = resource(Ty::Cluster, "new", 1, &[]);
    client.refuses.insert(new.version);
    let needs = [key(Ty::Cluster, "new"), key(Ty::Endpoints, "new")];
    state.apply(vec![
        put(new),
        put(resource(Ty::Endpoints, "new", 1, &[])),
        put(resource(Ty::Listener, "old", 2, &needs)),
        Change::Remove(key(Ty::Cluster, "old")),
        Change::Remove(key(Ty::Endpoints, "old")),
    ]);
    client.wake(&state);
    assert!(client.has.contains_key(&key(Ty::Cluster, "old")));
    // Once the listener is gone, so is what it needed.
    state.apply(vec![Change::Remove(key(Ty::Listener, "old"))]);
    client.wake(&state);
    assert!(!client.has.contains_key(&key(Ty::Cluster, "old")));
}

#[test]
fn what_a_resource_needed_before_goes_though_its_content_is_the_same() {
    let mut state = state(service("old", 1));
    let mut client = Client::connect(&state, BTreeMap::new(), HashSet::new());
    let needs = [key(Ty::Cluster, "new"), key(Ty::Endpoints, "new")];
    state.apply(vec![
        put(resource(Ty::Cluster, "new", 1, &[])),
        put(resource(Ty::Endpoints, "new", 1, &[])),
        // The same version as before.
        put(resource(Ty::Listener, "old", 1, &needs)),
        Change::Remove(key(Ty::Cluster, "old")),
        Change::Remove(key(Ty::Endpoints, "old")),
    ]);
    client.wake(&state);
    assert!(!client.has.contains_key(&key(Ty::Cluster, "old")), "nothing needs it any more");
    assert!(client.has.contains_key(&key(Ty::Cluster, "new")));
    // And what it needs now stays until it goes.
    state.apply(vec![Change::Remove(key(Ty::Cluster, "new"))]);
    client.wake(&state);
    assert!(client.has.contains_key(&key(Ty::Cluster, "new")));
}

#[test]
fn listeners_go_also_when_their_route_goes_while_the_client_is_greeted() {
    let mut state = state(service("blue", 1));
    let before = Client::connect(&state, BTreeMap::new(), HashSet::new());
    // It comes back, and the first answer to it is still under way when the service goes.
    let mut client = Client { session: Session::default(), ..before };
    let mut events = Vec::new();
    let hellos = [Ty::Cluster, Ty::Endpoints, Ty::Listener].map(|kind| client.hello(kind));
    let mut answers = hellos.map(|hello| client.session.on_request(hello, &state, &mut events));
    let greeting = std::mem::take(&mut answers[0]);
    state.apply(gone("blue"));
    client.wake(&state);
    client.take(greeting, &state);
    client.wake(&state);
    assert_eq!(client.has, BTreeMap::new());
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u32),
    Gone(u8),
    Wake,
    Reconnect,
    /// So many of the responses that are due arrive, and no answer.
    Break(usize),
    /// Something changes before what is due is answered.
    Late(u8, u32),
    Refuse(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..6_u8, 0..4_u32).prop_map(|(name, content)| Step::Put(name, content)),
        2 => (0..6_u8).prop_map(Step::Gone),
        3 => Just(Step::Wake),
        1 => Just(Step::Reconnect),
        1 => (0..4_usize).prop_map(Step::Break),
        2 => (0..6_u8, 0..4_u32).prop_map(|(name, content)| Step::Late(name, content)),
        1 => (0..6_u8).prop_map(Step::Refuse),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    /// Whatever happens in whatever order, the client ends with the state, less what it refuses.
    #[test]
    fn any_interleaving_ends_at_the_state(steps in steps()) {
        let mut state = state(Vec::new());
        let mut client = Client::connect(&state, BTreeMap::new(), HashSet::new());
        for step in steps {
            match step {
                Step::Put(name, content) => {
                    state.apply(service_at(&name.to_string(), content, content % 2));
                }
                Step::Gone(name) => state.apply(gone(&name.to_string())),
                Step::Wake => client.wake(&state),
                Step::Reconnect => client = client.again(&state),
                Step::Break(count) => {
                    for response in client.session.pump(&state).iter().take(count) {
                        client.apply(response, &state);
                    }
                    client = client.again(&state);
                }
                Step::Late(name, content) => {
                    let due = client.session.pump(&state);
                    let answers: Vec<_> =
                        due.iter().map(|response| client.apply(response, &state)).collect();
                    state.apply(service_at(&name.to_string(), content, content % 2));
                    for answer in answers {
                        client.talk(answer, &state);
                    }
                }
                Step::Refuse(name) => {
                    if let Some(listener) = state.of(Ty::Listener).get(&*name.to_string())
                        && client.has.get(&listener.key) != Some(&listener.version) {
                        client.refuses.insert(listener.version);
                    }
                }
            }
        }
        client.wake(&state);
        let mut wanted = wanted(&state);
        wanted.retain(|key, version| {
            !client.refuses.contains(version) || client.has.get(key) == Some(version)
        });
        let mut has = client.has.clone();
        // A refused listener leaves the client with its last good one.
        has.retain(|key, _| wanted.contains_key(key) || state.of(key.kind).get(&*key.name).is_none());
        prop_assert_eq!(has, wanted);
        prop_assert_eq!(client.warming, BTreeSet::new(), "not used until an answer for their endpoints");
    }
}
