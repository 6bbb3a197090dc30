//! What Routes become for Envoy, as text that a person can compare. Renew with
//! `UPDATE_GOLDENS=1 cargo test -p fairlead-core --test goldens`, and read the difference.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::path::Path;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use fairlead_api::condition::Verdict;
use fairlead_api::http::Upstream;
use fairlead_api::node_set::Node;
use fairlead_api::route::{
    AddressRequest, Backend, Listener as Port, NodePolicy, Nodes as Names, Protocol, RouteRule,
    Source, SourceKind,
};
use fairlead_api::{NodeSetSpec, RouteId, RouteName, RouteSpec};
use fairlead_core::model::Wish;
use fairlead_core::nodes::Nodes;
use fairlead_core::translate::{Translation, translate};
use fairlead_xds::{Resource, ResourceType};

fn spec(ports: &[(Protocol, u16)], nodes: &Names) -> RouteSpec {
    let name = |(protocol, port): &(Protocol, u16)| format!("{protocol}-{port}").to_lowercase();
    let source = Source {
        kind: SourceKind::Service,
        namespace: "shop".into(),
        name: "web".into(),
        uid: "u".into(),
    };
    RouteSpec {
        source,
        content_hash: "00".into(),
        address: AddressRequest::default(),
        listeners: ports.iter().map(|p| Port { name: name(p), protocol: p.0, port: p.1 }).collect(),
        rules: ports.iter().map(|p| RouteRule { listener: name(p), backend: name(p) }).collect(),
        backends: ports
            .iter()
            .map(|p| Backend {
                name: name(p),
                node_port: 30_000 + p.1,
                nodes: nodes.clone(),
                upstream: Upstream::default(),
            })
            .collect(),
        hosts: Vec::new(),
        unresolved: Vec::new(),
    }
}

fn nodes(names: &[&str]) -> Nodes {
    let node = |name: &&str| Node {
        name: (*name).into(),
        addresses: vec![format!("10.0.0.{}", name.len())],
    };
    let spec = NodeSetSpec { content_hash: String::new(), nodes: names.iter().map(node).collect() };
    Nodes::parse(spec, None)
}

fn translated(spec: RouteSpec, nodes: Option<&Nodes>) -> Translation {
    let name = RouteName::of(&spec.source).unwrap();
    let route = RouteId { tenant: "blue".parse().unwrap(), name };
    let (_, wish) = Wish::parse(spec).unwrap();
    translate(&route, &wish, "172.18.0.200".parse().unwrap(), nodes)
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

#[test]
fn goldens() {
    let all = Names::default();
    let named = Names { policy: NodePolicy::Named, names: vec!["bb".into()] };
    let none = Names { policy: NodePolicy::Named, names: Vec::new() };
    let two = nodes(&["a", "bb"]);
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
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    for (name, translation) in cases {
        let (file, now) = (folder.join(format!("{name}.txt")), render(&translation));
        if std::env::var_os("UPDATE_GOLDENS").is_some() {
            std::fs::write(&file, &now).unwrap();
        }
        let stored = std::fs::read_to_string(&file).unwrap_or_default();
        for (number, (old, new)) in stored.lines().zip(now.lines()).enumerate() {
            assert_eq!(old, new, "{name}.txt, line {}", number + 1);
        }
        assert_eq!(stored.lines().count(), now.lines().count(), "{name}.txt");
    }
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
