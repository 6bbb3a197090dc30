//! What Routes become for Envoy, as text that a person can compare. Renew with
//! `UPDATE_GOLDENS=1 cargo test -p fairlead-core --test goldens`, and read the difference.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::path::Path;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, ScopedRouteConfiguration};
use fairlead_api::claim::ClaimKey;
use fairlead_api::condition::Verdict;
use fairlead_api::http::{Balancing, ProxyProtocol};
use fairlead_api::node_set::Node;
use fairlead_api::route::{
    Backend, Listener as Port, NodePolicy, Nodes as Names, Protocol, RouteRule, Slot, Source,
    SourceKind,
};
use fairlead_api::{AddressPoolSpec, NodeSetSpec, RouteId, RouteName, RouteSpec, TenantSpec};
use fairlead_core::Engine;
use fairlead_core::hosts::HostClaim;
use fairlead_core::http::{Pair, Secret, SecretId};
use fairlead_core::model::{Meta, Wish};
use fairlead_core::nodes::{Bounds, Nodes};
use fairlead_core::translate::{Binding, Translation, translate};
use fairlead_xds::{Change, Resource, ResourceType};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

fn spec(ports: &[(Protocol, u16)], nodes: &Names) -> RouteSpec {
    let name = |(protocol, port): &(Protocol, u16)| format!("{protocol}-{port}").to_lowercase();
    let source = Source {
        kind: SourceKind::Service,
        namespace: "shop".into(),
        name: "web".into(),
        uid: "u".into(),
        created: 0,
    };
    RouteSpec {
        listeners: ports.iter().map(|p| Port { name: name(p), protocol: p.0, port: p.1 }).collect(),
        rules: ports.iter().map(|p| RouteRule { listener: name(p), backend: name(p) }).collect(),
        backends: ports
            .iter()
            .map(|p| Backend { nodes: nodes.clone(), ..Backend::new(name(p), 30_000 + p.1) })
            .collect(),
        ..RouteSpec::new(source, "00")
    }
}

fn nodes(names: &[&str]) -> Nodes {
    let node = |name: &&str| Node {
        name: (*name).into(),
        addresses: vec![format!("10.0.0.{}", name.len())],
    };
    let spec = NodeSetSpec { content_hash: String::new(), nodes: names.iter().map(node).collect() };
    Nodes::parse(&spec, &Bounds::NONE)
}

/// Envoy binds what is claimed.
fn direct(key: ClaimKey) -> Binding {
    Binding { address: key.address, port: key.port, proxies: Vec::new() }
}

fn translated(spec: RouteSpec, nodes: Option<&Nodes>) -> Translation {
    at(spec, &["172.18.0.200"], nodes, &direct)
}

fn at(
    spec: RouteSpec,
    addresses: &[&str],
    nodes: Option<&Nodes>,
    bind: &dyn Fn(ClaimKey) -> Binding,
) -> Translation {
    let name = RouteName::of(&spec.source).unwrap();
    let route = RouteId { tenant: "blue".parse().unwrap(), name };
    let (_, wish) = Wish::parse(&route, spec).unwrap();
    let addresses: Vec<_> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
    let unhealthy = |_: &str| std::iter::once(("10.0.0.1".parse().unwrap(), 31_000)).collect();
    translate(&wish, &addresses, nodes, bind, &unhealthy)
}

/// Behind a balancer that speaks the PROXY protocol, at a target port.
fn behind(key: ClaimKey) -> Binding {
    let proxies = vec!["10.1.0.0/16".parse().unwrap()];
    Binding { address: [0, 0, 0, 0].into(), port: key.port + 12_000, proxies }
}

/// The resources without all that is unset.
fn render(Translation { resources, resolved }: &Translation) -> String {
    let Verdict { holds, reason, message } = resolved;
    let mut text = format!("ResolvedRefs {holds} {} {message}\n", reason.as_str());
    for resource in resources {
        let body = match resource.key.kind {
            ResourceType::Cluster => debug::<Cluster>(resource),
            ResourceType::Endpoints => debug::<ClusterLoadAssignment>(resource),
            _ => debug::<Listener>(resource),
        };
        let needs: Vec<_> = resource.needs.iter().map(ToString::to_string).collect();
        write!(text, "\n# {} needs {needs:?}\n{body}", resource.key).unwrap();
    }
    text
}

fn debug<M: prost::Message + Default + std::fmt::Debug>(resource: &Resource) -> String {
    let unset = [": None,", ": [],", ": \"\",", ": 0,", ": false,", ": {},"];
    let whole = format!("{:#?}\n", resource.decode::<M>().unwrap());
    let lines = whole.lines().filter(|line| !unset.iter().any(|end| line.ends_with(end)));
    lines.fold(String::new(), |text, line| text + line + "\n")
}

/// Some clients only, and not for long.
fn restricted(mut spec: RouteSpec) -> RouteSpec {
    spec.clients.source_ranges = vec!["10.0.0.0/8".into(), "fd00::/8".into()];
    spec.clients.idle_millis = Some(5_000);
    spec
}

/// All that can be said of a backend.
fn spoken_to(mut spec: RouteSpec) -> RouteSpec {
    let upstream = &mut spec.backends[0].upstream;
    upstream.proxy_protocol = Some(ProxyProtocol::V2);
    upstream.balancing = Balancing::LeastRequest;
    upstream.connect_millis = Some(300);
    upstream.max_connections = Some(10);
    spec
}

/// A client keeps to one pod.
fn sticky(mut spec: RouteSpec) -> RouteSpec {
    spec.clients.source_affinity = true;
    spec.backends[0].slots = vec![Slot { node_port: 31_000, nodes: vec!["a".into(), "bb".into()] }];
    spec
}

#[test]
fn goldens() {
    let all = Names::default();
    let named = Names { policy: NodePolicy::Named, names: vec!["bb".into()] };
    let none = Names { policy: NodePolicy::Named, names: Vec::new() };
    let two = nodes(&["a", "bb"]);
    let both = [(Protocol::Tcp, 53), (Protocol::Udp, 53)];
    let cases = [
        ("tcp", translated(spec(&[(Protocol::Tcp, 80)], &all), Some(&two))),
        ("udp", translated(spec(&[(Protocol::Udp, 53)], &all), Some(&two))),
        (
            "two-ports",
            translated(spec(&[(Protocol::Tcp, 80), (Protocol::Tcp, 443)], &all), Some(&two)),
        ),
        ("named-nodes", translated(spec(&[(Protocol::Tcp, 80)], &named), Some(&two))),
        ("no-endpoints", translated(spec(&[(Protocol::Tcp, 80)], &none), Some(&two))),
        ("no-nodes", translated(spec(&[(Protocol::Tcp, 80)], &all), None)),
        ("clients", translated(restricted(spec(&both, &all)), Some(&two))),
        ("upstream", translated(spoken_to(spec(&both, &all)), Some(&two))),
        ("slots", translated(sticky(spec(&[(Protocol::Tcp, 80)], &named)), Some(&two))),
        (
            "dual-stack",
            at(
                spec(&[(Protocol::Tcp, 80)], &all),
                &["172.18.0.200", "fd00::1"],
                Some(&two),
                &direct,
            ),
        ),
        ("behind", at(restricted(spec(&both, &all)), &["172.18.0.200"], Some(&two), &behind)),
    ];
    for (name, translation) in cases {
        compare(name, &render(&translation));
    }
}

fn compare(name: &str, now: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let file = folder.join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(&file, now).unwrap();
    }
    let stored = std::fs::read_to_string(&file).unwrap_or_default();
    for (number, (old, new)) in stored.lines().zip(now.lines()).enumerate() {
        assert_eq!(old, new, "{name}.txt, line {}", number + 1);
    }
    assert_eq!(stored.lines().count(), now.lines().count(), "{name}.txt");
}

/// What an agent's plans become: those of its own goldens, each at an address of its own.
#[test]
fn goldens_of_layer_7() {
    let plans = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tenant-agent/goldens/plans.yaml");
    let plans = std::fs::read_to_string(plans).unwrap();
    let mut text = String::new();
    for document in plans.split("\n---\n").skip(1) {
        let plan: serde_json::Value = serde_saphyr::from_str(document).unwrap();
        let spec: RouteSpec = serde_json::from_value(plan["route"].clone()).unwrap();
        // The listeners of an address say nothing of rules: the cases without annotations show them.
        let bare = plan["annotations"].as_object().is_none_or(serde_json::Map::is_empty);
        writeln!(text, "\n## {}", plan["case"].as_str().unwrap()).unwrap();
        for change in published(spec) {
            let Change::Put(resource) = change else { panic!("nothing was there") };
            let body = match resource.key.kind {
                ResourceType::Routes => debug::<RouteConfiguration>(&resource),
                ResourceType::Cluster => debug::<Cluster>(&resource),
                ResourceType::ScopedRoutes if bare => debug::<ScopedRouteConfiguration>(&resource),
                ResourceType::Listener if bare => debug::<Listener>(&resource),
                _ => String::new(),
            };
            let needs: Vec<_> = resource.needs.iter().map(ToString::to_string).collect();
            write!(text, "# {} needs {needs:?}\n{}", resource.key, folded(&body)).unwrap();
        }
    }
    compare("http", &text);
}

/// What a hub with one tenant publishes for an Ingress.
fn published(spec: RouteSpec) -> Vec<Change> {
    let tenant = "blue".parse().unwrap();
    let mut engine = Engine::default();
    let allowed = TenantSpec { pools: vec!["public".into()], ..TenantSpec::default() };
    engine.tenant(&tenant, Some(allowed.into()));
    let pool = AddressPoolSpec { addresses: vec!["172.18.0.200".into()], ..Default::default() };
    engine.pool("public", Some(pool));
    for name in ["tls", "other", "old", "ca", "users"] {
        let id = SecretId { tenant: tenant.clone(), namespace: "shop".into(), name: name.into() };
        let pair = Pair { chain: b"chain".to_vec(), key: b"key".to_vec() };
        let secret = Secret {
            certificate: Some(Ok(pair)),
            ca: Some(Ok(b"ca".to_vec())),
            users: Some(Ok("ann:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=".into())),
        };
        engine.secret(&id, Some(secret));
    }
    engine.lead(true);
    engine.complete();
    let name = RouteName::of(&spec.source).unwrap();
    let meta = Meta { uid: "u".into(), generation: 1, created: 0 };
    engine.route(RouteId { tenant, name }, meta, spec, None);
    let mut changes = Vec::new();
    for _ in 0..4 {
        let effects = engine.step(&Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        changes.extend(effects.changes);
        for (route, mut claims) in effects.claim {
            for claim in &mut claims {
                claim.object = "o".into();
            }
            engine.claimed(&route, Some(claims));
        }
        for claim in effects.claim_hosts {
            engine
                .host_claimed(&claim.key.clone(), Some(HostClaim { object: "o".into(), ..claim }));
        }
    }
    // Secrets of the whole tenant are no part of a case.
    changes
        .retain(|change| !matches!(change, Change::Put(r) if r.key.kind == ResourceType::Secret));
    changes
}

/// The bytes of what is nested, as their hash: a change of them shows.
fn folded(text: &str) -> String {
    let (mut out, mut bytes) = (String::new(), None::<String>);
    for line in text.lines() {
        match &mut bytes {
            None if line.trim_end().ends_with("value: [") => bytes = Some(String::new()),
            None => writeln!(out, "{line}").unwrap(),
            Some(list) if line.trim() == "]," => {
                let hash = fairlead_xds::hash(list.as_bytes());
                let count = list.matches(',').count();
                writeln!(out, "  <{count} bytes, {hash:016x}>").unwrap();
                bytes = None;
            }
            Some(list) => list.push_str(line.trim()),
        }
    }
    out
}

#[test]
fn equal_values_give_equal_bytes_whatever_the_order_of_nodes() {
    let spec = || spec(&[(Protocol::Tcp, 80)], &Names::default());
    let versions = |names: &[&str]| -> Vec<u64> {
        translated(spec(), Some(&nodes(names))).resources.iter().map(|r| r.version).collect()
    };
    assert_eq!(versions(&["a", "bb", "ccc"]), versions(&["ccc", "a", "bb"]));
    assert_ne!(versions(&["a"]), versions(&["bb"]));
}
