//! One change for one client, among 100 and 10,000 resources; and a client that comes back with all of them.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use fairlead_xds::{Key, Resource, ResourceType, Session, State};

fn cluster(index: usize, version: u64) -> Resource {
    let name = format!("c{index}");
    let alt_stat_name = format!("v{version}");
    let message = Cluster { name: name.clone(), alt_stat_name, ..Cluster::default() };
    Resource::new(Key::new(ResourceType::Cluster, name), &message, [])
}

fn state(count: usize) -> State {
    let mut state = State::default();
    state.apply((0..count).map(|index| cluster(index, 0).into()).collect());
    state.complete();
    state
}

fn request() -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: ResourceType::Cluster.url().into(), ..Default::default() }
}

/// Answers until nothing is due.
fn settle(session: &mut Session, state: &State, first: DeltaDiscoveryRequest) {
    let mut events = Vec::new();
    let mut due = session.on_request(first, state, &mut events);
    while let Some(response) = due.pop() {
        let ack = DeltaDiscoveryRequest { response_nonce: response.nonce, ..request() };
        due.extend(session.on_request(ack, state, &mut events));
    }
    black_box(events);
}

fn one_change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("one change");
    for count in [100, 10_000] {
        let (mut state, mut session, mut version) = (state(count), Session::default(), 0);
        settle(&mut session, &state, request());
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                version += 1;
                state.apply(vec![cluster(count / 2, version).into()]);
                for response in session.pump(&state) {
                    let ack = DeltaDiscoveryRequest { response_nonce: response.nonce, ..request() };
                    black_box(session.on_request(ack, &state, &mut Vec::new()));
                }
            });
        });
    }
    group.finish();
}

fn come_back(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("come back with everything");
    for count in [100, 10_000] {
        let state = state(count);
        let has = state.of(ResourceType::Cluster).iter();
        let has = has.map(|(name, one)| (name.to_string(), format!("{:016x}", one.version)));
        let first = DeltaDiscoveryRequest { initial_resource_versions: has.collect(), ..request() };
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| settle(&mut Session::default(), &state, first.clone()));
        });
    }
    group.finish();
}

criterion_group!(benches, one_change, come_back);
criterion_main!(benches);
