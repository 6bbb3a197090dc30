//! One Route's change, among 100 and 10,000 Routes: decided, translated, encoded, sent and acknowledged.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../examples/change/hub.rs"]
mod hub;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

fn one_change(criterion: &mut Criterion) {
    for layout in ["layer-4", "hosts"] {
        let mut group = criterion.benchmark_group(format!("{layout}: one change of endpoints"));
        for count in [100, 10_000] {
            let (mut hub, mut generation) = (hub::filled(layout, count), 1);
            group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
                bencher.iter(|| {
                    generation += 1;
                    // To the other node, and back.
                    let kind = if generation % 2 == 0 { "endpoints" } else { "add" };
                    hub.put(layout, count / 2, generation, kind);
                    hub.settle();
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, one_change);
criterion_main!(benches);
