//! One Route's change in the engine, among 100 and 10,000 Routes: decided, translated and encoded.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use fairlead_api::route::{
    Backend, Listener, NodePolicy, Nodes, Protocol, RouteRule, Source, SourceKind,
};
use fairlead_api::{AddressPoolSpec, Node, NodeSetSpec, RouteId, RouteName, RouteSpec, TenantSpec};
use fairlead_core::model::Meta;
use fairlead_core::{Effects, Engine};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

fn engine(count: usize) -> Engine {
    let mut engine = Engine::default();
    let mut tenant = TenantSpec { pools: vec!["public".into()], ..TenantSpec::default() };
    (tenant.quotas.routes, tenant.quotas.endpoints) = (1_000_000, 1_000_000);
    engine.tenant(&"blue".parse().unwrap(), Some(tenant.into()));
    let addresses = vec!["10.9.0.1-10.9.0.9".into()];
    engine.pool("public", Some(AddressPoolSpec { addresses, ..AddressPoolSpec::default() }));
    let node = |name: &str, ip: &str| Node { name: name.into(), addresses: vec![ip.into()] };
    let nodes = vec![node("n1", "10.0.0.1"), node("n2", "10.0.0.2")];
    let nodes = NodeSetSpec { content_hash: String::new(), nodes };
    engine.nodes(&"blue".parse().unwrap(), Some(nodes), None);
    engine.lead(true);
    engine.complete();
    for number in 0..count {
        put(&mut engine, number, 1, "n1");
    }
    settle(&mut engine);
    engine
}

fn put(engine: &mut Engine, number: usize, generation: i64, node: &str) {
    let (namespace, own, uid) = ("shop".into(), "any".into(), String::new());
    let source = Source { kind: SourceKind::Service, namespace, name: own, uid, created: 0 };
    let nodes = Nodes { policy: NodePolicy::Named, names: vec![node.into()] };
    let port = u16::try_from(10_000 + number).unwrap();
    let spec = RouteSpec {
        listeners: vec![Listener { name: "one".into(), protocol: Protocol::Tcp, port }],
        rules: vec![RouteRule { listener: "one".into(), backend: "web".into() }],
        backends: vec![Backend { nodes, ..Backend::new("web", 30_080) }],
        ..RouteSpec::new(source, "00")
    };
    let name = RouteName::new(SourceKind::Service, "shop", &format!("r{number}")).unwrap();
    let id = RouteId { tenant: "blue".parse().unwrap(), name };
    let meta = Meta { uid: id.to_string().into(), generation, created: 0 };
    engine.route(id, meta, spec, None);
}

fn settle(engine: &mut Engine) {
    loop {
        let effects = Effects { wake: None, ..engine.step(&Time(Timestamp::UNIX_EPOCH)) };
        if effects == Effects::default() {
            return;
        }
        for (route, mut claims) in effects.claim {
            for claim in &mut claims {
                claim.object = "o".into();
            }
            engine.claimed(&route, Some(claims));
        }
        black_box(effects.changes);
    }
}

fn one_change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("one change of endpoints");
    for count in [100, 10_000] {
        let (mut engine, mut generation) = (engine(count), 1);
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                generation += 1;
                let node = if generation % 2 == 0 { "n2" } else { "n1" };
                put(&mut engine, count / 2, generation, node);
                settle(&mut engine);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, one_change);
criterion_main!(benches);
