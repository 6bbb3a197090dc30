//! A real Envoy is given every golden by xDS: what it does not take, no hub may send.
//!
//! Envoy runs in a network of its own, and speaks to an xDS server in this process by a Unix socket.

#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fairlead_api::condition::PROGRAMMED;
use fairlead_api::http::{Balancing, ProxyProtocol};
use fairlead_api::route::{
    AddressRequest, Backend, IpFamily, Listener, Protocol, RouteRule, Slot, Source, SourceKind,
};
use fairlead_api::{
    AddressPoolSpec, Exposure, Node, NodeSetSpec, RouteId, RouteName, RouteSpec, RouteStatus,
    Sharing, TenantSpec,
};
use fairlead_core::Engine;
use fairlead_core::engine::SeenBalancer;
use fairlead_core::http::{Pair, Secret, SecretId};
use fairlead_core::model::Meta;
use fairlead_e2e::envoy::{Envoy, Listen};
use fairlead_e2e::hub::step;
use fairlead_xds::Event;
use tokio::sync::mpsc;

const NODE: &str = "envoy-1";

/// The hub's decisions with an apiserver that persists at once, and a real Envoy.
struct Hub {
    engine: Engine,
    envoy: Envoy,
    said: mpsc::UnboundedReceiver<Vec<Event>>,
    statuses: BTreeMap<RouteId, RouteStatus>,
    generation: i64,
}

impl Hub {
    fn start(name: &str) -> Self {
        let (send, said) = mpsc::unbounded_channel();
        let envoy = Envoy::start(name, Listen(send), &[]).unwrap();
        let mut hub = Self {
            engine: Engine::default(),
            envoy,
            said,
            statuses: BTreeMap::new(),
            generation: 0,
        };
        hub.fill();
        hub
    }

    /// One tenant, a pool in which each Route has an address for itself, and the Secrets of the goldens.
    fn fill(&mut self) {
        let pools = ["test", "proxied", "provided"].map(String::from).into();
        let tenant = TenantSpec { pools, ..TenantSpec::default() };
        self.engine.tenant(&"blue".parse().unwrap(), Some(tenant.into()));
        let pool = AddressPoolSpec {
            addresses: vec!["10.9.0.1-10.9.0.250".into(), "fd00::1-fd00::ff".into()],
            sharing: Sharing::Exclusive,
            ..AddressPoolSpec::default()
        };
        self.engine.pool("test", Some(pool));
        // Behind balancers that speak the PROXY protocol; and at addresses that others announce.
        let proxied = AddressPoolSpec {
            addresses: vec!["10.8.0.1-10.8.0.9".into()],
            sharing: Sharing::Any,
            proxy_protocol_from: vec!["10.1.0.0/16".into()],
            ..AddressPoolSpec::default()
        };
        self.engine.pool("proxied", Some(proxied));
        let provided = AddressPoolSpec {
            exposure: Exposure::Service,
            sharing: Sharing::Any,
            ..AddressPoolSpec::default()
        };
        self.engine.pool("provided", Some(provided));
        let addresses = vec!["192.0.2.1".parse().unwrap()];
        let (family, going) = (None, false);
        let seen = SeenBalancer { pool: "provided".into(), family, addresses, going };
        self.engine.balancer("fairlead-provided-1", Some(seen));
        let node = |name: &str, ip: &str| Node { name: name.into(), addresses: vec![ip.into()] };
        let nodes = vec![node("n1", "10.0.0.1"), node("n2", "10.0.0.2")];
        let nodes = NodeSetSpec { content_hash: String::new(), nodes };
        self.engine.nodes(&"blue".parse().unwrap(), Some(nodes), None);
        let made = rcgen::generate_simple_self_signed(vec!["example.com".to_owned()]).unwrap();
        let pair = Pair {
            chain: made.cert.pem().into_bytes(),
            key: made.signing_key.serialize_pem().into_bytes(),
        };
        for name in ["tls", "other", "old", "ca", "users"] {
            let id = SecretId {
                tenant: "blue".parse().unwrap(),
                namespace: "shop".into(),
                name: name.into(),
            };
            let secret = Secret {
                certificate: Some(Ok(pair.clone())),
                ca: Some(Ok(pair.chain.clone())),
                users: Some(Ok("ann:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=".into())),
            };
            self.engine.secret(&id, Some(secret));
        }
        self.engine.envoy_ready(&NODE.into(), true);
        self.engine.envoy_connected(&NODE.into(), 1);
        self.engine.lead(true);
        self.engine.complete();
    }

    fn apply(&mut self, name: &str, spec: RouteSpec) -> RouteId {
        self.generation += 1;
        let name = RouteName::new(spec.source.kind, "shop", name).unwrap();
        let id = RouteId { tenant: "blue".parse().unwrap(), name };
        let meta = Meta { uid: id.to_string().into(), generation: self.generation, created: 0 };
        self.engine.route(id.clone(), meta, spec, None);
        id
    }

    /// Carries effects out until `done`, or for too long.
    async fn until(&mut self, done: impl Fn(&BTreeMap<RouteId, RouteStatus>) -> bool) {
        let start = Instant::now();
        loop {
            if let Some(step) = step(&mut self.engine) {
                self.envoy.cache.publish(step.changes);
                self.statuses.extend(step.statuses);
                continue;
            }
            if done(&self.statuses) || start.elapsed() > Duration::from_secs(60) {
                return;
            }
            let wait = tokio::time::timeout(Duration::from_secs(1), self.said.recv());
            if let Ok(Some(events)) = wait.await {
                self.engine.envoy_said(&NODE.into(), 1, &events);
            }
        }
    }

    fn programmed(&self, id: &RouteId) -> Result<(), String> {
        let Some(status) = self.statuses.get(id) else { return Err("no status".into()) };
        match status.conditions.iter().find(|condition| condition.type_ == PROGRAMMED) {
            Some(condition) if condition.status == "True" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }
}

fn source(kind: SourceKind) -> Source {
    Source { kind, namespace: "shop".into(), name: "any".into(), uid: String::new(), created: 0 }
}

fn layer_4(protocol: Protocol) -> RouteSpec {
    RouteSpec {
        listeners: vec![Listener { name: "one".into(), protocol, port: 53 }],
        rules: vec![RouteRule { listener: "one".into(), backend: "one".into() }],
        backends: vec![Backend::new("one", 30_053)],
        ..RouteSpec::new(source(SourceKind::Service), "00")
    }
}

/// Everything that can be said of a Service.
fn all_of_layer_4() -> Vec<(&'static str, RouteSpec)> {
    let mut cases = Vec::new();
    let mut add = |name, protocol, change: fn(&mut RouteSpec)| {
        let mut spec = layer_4(protocol);
        change(&mut spec);
        cases.push((name, spec));
    };
    for (name, protocol) in [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)] {
        add(name, protocol, |_| {});
        add(name, protocol, |spec| {
            spec.clients.source_ranges = vec!["10.0.0.0/8".into(), "fd00::/8".into()];
            spec.clients.idle_millis = Some(5_000);
        });
        add(name, protocol, |spec| spec.clients.idle_millis = Some(0));
        add(name, protocol, |spec| {
            spec.clients.source_affinity = true;
            spec.backends[0].slots = vec![Slot { node_port: 31_000, nodes: vec!["n1".into()] }];
        });
        add(name, protocol, |spec| {
            let upstream = &mut spec.backends[0].upstream;
            upstream.connect_millis = Some(300);
            upstream.max_connections = Some(10);
            upstream.balancing = Balancing::LeastRequest;
        });
        add(name, protocol, |spec| {
            spec.address.families = vec![IpFamily::V4, IpFamily::V6];
            spec.listeners[0].port = 0;
        });
        add(name, protocol, |spec| spec.address.pool = Some("proxied".into()));
        add(name, protocol, |spec| spec.address.pool = Some("provided".into()));
    }
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let mut spec = layer_4(Protocol::Tcp);
        spec.backends[0].upstream.proxy_protocol = Some(version);
        cases.push(("proxy protocol", spec));
    }
    cases
}

/// The plans that the agent's goldens hold, by case.
fn goldens() -> Vec<(String, RouteSpec)> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tenant-agent/goldens/plans.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    let documents = text.split("\n---\n").skip(1);
    let golden = |document: &str| {
        let all: serde_json::Value = serde_saphyr::from_str(document).unwrap();
        let part = serde_json::from_value(all["route"].clone()).unwrap();
        (all["case"].as_str().unwrap().to_owned(), part)
    };
    documents.map(golden).collect()
}

#[tokio::test]
async fn envoy_takes_every_golden() {
    let mut hub = Hub::start("goldens");
    let mut cases: BTreeMap<RouteId, String> = BTreeMap::new();
    let goldens = goldens();
    assert!(goldens.len() > 80, "only {} goldens", goldens.len());
    for (number, (case, mut spec)) in goldens.into_iter().enumerate() {
        // Each golden has names and an address of its own: they are claimed once.
        spec.address = AddressRequest::default();
        for host in &mut spec.hosts {
            host.hostname = host.hostname.replace("example", &format!("g{number}.example"));
        }
        cases.insert(hub.apply(&format!("g{number}"), spec), case);
    }
    for (number, (case, spec)) in all_of_layer_4().into_iter().enumerate() {
        cases.insert(hub.apply(&format!("l{number}"), spec), format!("{case} {number}"));
    }
    // An Ingress, too, may be behind a balancer, or at an address that others announce.
    for pool in ["proxied", "provided"] {
        let (case, mut spec) = self::goldens().swap_remove(0);
        spec.address.pool = Some(pool.into());
        spec.hosts[0].hostname = format!("{pool}.example");
        cases.insert(hub.apply(pool, spec), format!("{case} {pool}"));
    }
    let wanted = cases.len();
    let all = |statuses: &BTreeMap<RouteId, RouteStatus>| {
        let good = statuses.values().filter(|status| {
            status.conditions.iter().any(|c| c.type_ == PROGRAMMED && c.status == "True")
        });
        good.count() == wanted
    };
    hub.until(all).await;
    let bad: Vec<_> = cases
        .iter()
        .filter_map(|(id, case)| Some(format!("{case}: {}", hub.programmed(id).err()?)))
        .collect();
    assert!(bad.is_empty(), "{} of {wanted}:\n{}", bad.len(), bad.join("\n"));
}

#[tokio::test]
async fn what_envoy_refuses_all_the_same_is_taken_back_and_told() {
    let mut hub = Hub::start("poison");
    let (_, good) = goldens().into_iter().next().unwrap();
    let named = |name: &str| {
        let mut part = good.clone();
        part.hosts[0].hostname = format!("{name}.example.com");
        part
    };
    // RE2 has no such escape; nobody checks for it.
    let poison = |name: &str| {
        let mut part = named(name);
        let path = &mut part.hosts[0].rules[0].matches[0].path;
        path.kind = fairlead_api::http::PathMatchType::RegularExpression;
        path.value = r"/\u{61}poison".into();
        part
    };
    let one = hub.apply("one", named("one"));
    hub.until(|statuses| ready(statuses, &[&one])).await;
    hub.programmed(&one).unwrap();

    hub.apply("one", poison("one"));
    let two = hub.apply("two", named("two"));
    hub.until(|statuses| ready(statuses, &[&two]) && told(statuses, &one).contains("refused"))
        .await;
    hub.programmed(&two).expect("another's change goes on");
    let message = told(&hub.statuses, &one);
    assert!(message.contains("invalid escape sequence"), "Envoy's own words: {message}");

    hub.apply("one", named("one"));
    hub.until(|statuses| ready(statuses, &[&one])).await;
    hub.programmed(&one).expect("cured");
}

fn told(statuses: &BTreeMap<RouteId, RouteStatus>, id: &RouteId) -> String {
    let conditions = statuses.get(id).map(|status| status.conditions.clone()).unwrap_or_default();
    let found = conditions.into_iter().find(|condition| condition.type_ == PROGRAMMED);
    found.map(|condition| condition.message).unwrap_or_default()
}

fn ready(statuses: &BTreeMap<RouteId, RouteStatus>, ids: &[&RouteId]) -> bool {
    ids.iter().all(|id| {
        statuses.get(id).is_some_and(|status| {
            status.conditions.iter().any(|c| c.type_ == PROGRAMMED && c.status == "True")
        })
    })
}
