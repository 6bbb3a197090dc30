//! A hub and a client, for what one change costs: the example counts it, and the bench takes its time.

use std::collections::VecDeque;

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use fairlead_api::http::{BackendRef, Host, HttpMatch, HttpRule, PathMatch, PathMatchType};
use fairlead_api::route::{
    Backend, Listener, NodePolicy, Nodes, Protocol, RouteRule, Source, SourceKind,
};
use fairlead_api::{AddressPoolSpec, Node, NodeSetSpec, RouteId, RouteName, RouteSpec, TenantSpec};
use fairlead_core::model::Meta;
use fairlead_core::{Effects, Engine};
use fairlead_xds::{ResourceType, Response, Session, State};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

const ENVOY: &str = "envoy";

/// A hub whose apiserver persists at once, and one client that takes all.
pub struct Hub {
    engine: Engine,
    state: State,
    session: Session,
    /// How much of resources the client was sent.
    pub bytes: usize,
    /// The response that it was sent last.
    wire: Vec<u8>,
}

fn hub() -> Hub {
    let mut engine = Engine::default();
    let mut tenant = TenantSpec { pools: vec!["public".into()], ..TenantSpec::default() };
    let quotas = &mut tenant.quotas;
    for quota in
        [&mut quotas.routes, &mut quotas.hostnames, &mut quotas.ports, &mut quotas.endpoints]
    {
        *quota = 1_000_000;
    }
    engine.tenant(&"blue".parse().unwrap(), Some(tenant.into()));
    let addresses = vec!["10.9.0.1-10.9.0.9".into()];
    engine.pool("public", Some(AddressPoolSpec { addresses, ..AddressPoolSpec::default() }));
    let node = |name: &str, ip: &str| Node { name: name.into(), addresses: vec![ip.into()] };
    let nodes = vec![node("n1", "10.0.0.1"), node("n2", "10.0.0.2")];
    let nodes = NodeSetSpec { content_hash: String::new(), nodes };
    engine.nodes(&"blue".parse().unwrap(), Some(nodes), None);
    engine.envoy_ready(&ENVOY.into(), true);
    engine.envoy_connected(&ENVOY.into(), 1);
    engine.lead(true);
    engine.complete();
    let mut state = State::default();
    state.complete();
    let mut hub = Hub { engine, state, session: Session::default(), bytes: 0, wire: Vec::new() };
    for kind in ResourceType::ALL {
        let request = DeltaDiscoveryRequest { type_url: kind.url().into(), ..Default::default() };
        hub.ask(request);
    }
    hub
}

/// With that many Routes.
pub fn filled(layout: &str, count: usize) -> Hub {
    let mut hub = hub();
    for number in 0..count {
        hub.put(layout, number, 1, "add");
    }
    hub.settle();
    hub
}

impl Hub {
    fn ask(&mut self, request: DeltaDiscoveryRequest) {
        let due = self.hear(request);
        self.answer(due);
    }

    fn hear(&mut self, request: DeltaDiscoveryRequest) -> Vec<Response> {
        let mut events = Vec::new();
        let due = self.session.on_request(request, &self.state, &mut events);
        self.engine.envoy_said(&ENVOY.into(), 1, &events);
        due
    }

    /// The client takes all that it is sent, and what it is sent for that.
    fn answer(&mut self, due: Vec<Response>) {
        let mut due = VecDeque::from(due);
        while let Some(response) = due.pop_front() {
            self.bytes += response.resources.iter().map(fairlead_xds::Wire::size).sum::<usize>();
            self.wire.clear();
            response.encode(&mut self.wire);
            let ack = DeltaDiscoveryRequest {
                type_url: response.kind.url().into(),
                response_nonce: response.nonce,
                ..Default::default()
            };
            due.extend(self.hear(ack));
        }
    }

    /// Until nothing is left to do.
    pub fn settle(&mut self) {
        loop {
            let now = Time(Timestamp::UNIX_EPOCH);
            let effects = Effects { wake: None, ..self.engine.step(&now) };
            if effects == Effects::default() {
                return;
            }
            let Effects { changes, claim, claim_hosts, .. } = effects;
            self.state.apply(changes);
            for (route, mut claims) in claim {
                for claim in &mut claims {
                    claim.object = "o".into();
                }
                self.engine.claimed(&route, Some(claims));
            }
            for mut claim in claim_hosts {
                claim.object = "o".into();
                self.engine.host_claimed(&claim.key.clone(), Some(claim));
            }
            let due = self.session.pump(&self.state);
            self.answer(due);
        }
    }

    /// A Route as it is now.
    pub fn put(&mut self, layout: &str, number: usize, generation: i64, kind: &str) {
        let edited = kind == "edit";
        let node = if kind == "endpoints" { "n2" } else { "n1" };
        let spec = match layout {
            "hosts" => hosts(number, node, edited),
            _ => layer_4(number, node, edited),
        };
        let name = RouteName::new(spec.source.kind, "shop", &format!("r{number}")).unwrap();
        let id = RouteId { tenant: "blue".parse().unwrap(), name };
        let meta = Meta { uid: id.to_string().into(), generation, created: 0 };
        self.engine.route(id, meta, spec, None);
    }
}

fn route(kind: SourceKind, node_port: u16, node: &str) -> RouteSpec {
    let (namespace, name, uid) = ("shop".into(), "any".into(), String::new());
    let source = Source { kind, namespace, name, uid, created: 0 };
    let nodes = Nodes { policy: NodePolicy::Named, names: vec![node.into()] };
    let backends = vec![Backend { nodes, ..Backend::new("web:80", node_port) }];
    RouteSpec { backends, ..RouteSpec::new(source, "00") }
}

fn node_port(number: usize) -> u16 {
    30_000 + u16::try_from(number % 2_700).unwrap()
}

fn layer_4(number: usize, node: &str, edited: bool) -> RouteSpec {
    let port = u16::try_from(10_000 + number + if edited { 30_000 } else { 0 }).unwrap();
    RouteSpec {
        listeners: vec![Listener { name: "one".into(), protocol: Protocol::Tcp, port }],
        rules: vec![RouteRule { listener: "one".into(), backend: "web:80".into() }],
        ..route(SourceKind::Service, node_port(number), node)
    }
}

fn hosts(number: usize, node: &str, edited: bool) -> RouteSpec {
    let rule = |path: &str| HttpRule {
        name: path.into(),
        matches: vec![HttpMatch {
            path: PathMatch { kind: PathMatchType::PathPrefix, value: path.into() },
            headers: Vec::new(),
        }],
        backends: vec![BackendRef { name: "web:80".into(), weight: 1 }],
        ..HttpRule::default()
    };
    let last = if edited { "/after" } else { "/before" };
    let hostname = format!("h{number}.bench.example");
    let rules = vec![rule("/shop"), rule("/api"), rule(last)];
    RouteSpec {
        listeners: vec![Listener { name: "http".into(), protocol: Protocol::Http, port: 80 }],
        hosts: vec![Host { hostname, rules, ..Host::default() }],
        ..route(SourceKind::Ingress, node_port(number), node)
    }
}
