//! Metrics in the Prometheus text format.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// A stage of the way of one change: watch, plan, apply, push, store, allocate, translate, publish,
/// report.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stage {
    stage: &'static str,
}

/// How long each stage takes: `fairlead_stage_duration_seconds{stage=…}`.
#[derive(Debug, Clone)]
pub struct Stages(Family<Stage, Histogram, fn() -> Histogram>);

impl Stages {
    /// Registers the histogram.
    pub fn new(registry: &mut Registry) -> Self {
        // 50 µs to 26 s.
        let family = Family::new_with_constructor(
            (|| Histogram::new(exponential_buckets(0.000_05, 3.0, 13))) as fn() -> Histogram,
        );
        let help = "Time that one stage of the way of a change took";
        registry.register("stage_duration_seconds", help, family.clone());
        Self(family)
    }

    /// Notes that `stage` began at `start` and ends now.
    pub fn observe(&self, stage: &'static str, start: Instant) {
        self.note(stage, start.elapsed());
    }

    /// Notes that `stage` took this long.
    pub fn note(&self, stage: &'static str, took: Duration) {
        self.0.get_or_create(&Stage { stage }).observe(took.as_secs_f64());
    }
}

/// A registry with the prefix `fairlead`, and the stages in it.
pub fn registry() -> (Registry, Stages) {
    let mut registry = Registry::with_prefix("fairlead");
    let stages = Stages::new(&mut registry);
    (registry, stages)
}

/// The metrics as text.
pub fn render(registry: &Arc<Registry>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, registry);
    text
}
