//! What was measured: as a table, and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::generate::{Change, Layout};

/// One run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What it ran on.
    pub machine: String,
    /// The commit, where this is a checkout.
    pub commit: String,
    /// What the generator began with.
    pub seed: u64,
    /// Each layout at each size.
    pub sizes: Vec<AtSize>,
    /// What was done once, at the largest size of each layout.
    pub largest: Vec<Largest>,
    /// One change for several clients.
    pub fan_out: Vec<FanOut>,
}

/// One layout at one size.
#[derive(Debug, Serialize)]
pub struct AtSize {
    /// What is published.
    pub layout: Layout,
    /// How many Routes there are.
    pub routes: usize,
    /// How many were added at once, and the seconds from the agent's start until all of them were in every Envoy, and
    /// until each of them had answered (which takes a while to ask).
    pub loaded: (usize, f64, f64),
    /// Milliseconds of two writes one after the other, to the tenant's apiserver and the hub's, by the same client.
    pub two_writes: Spread,
    /// The share of the processors' time that the hypervisor gave to others while changes were made.
    pub stolen: f64,
    /// Milliseconds from a source's change to the first good answer.
    pub propagation: Spread,
    /// The same for each kind of change: (kind, how many, spread).
    pub by_kind: Vec<(Change, usize, Spread)>,
    /// CPU milliseconds of the manager for each change.
    pub manager_cpu_ms: f64,
    /// CPU milliseconds of the agent for each change.
    pub agent_cpu_ms: f64,
    /// CPU milliseconds of each Envoy's main thread for each change.
    pub envoy_main_cpu_ms: f64,
    /// Bytes of xDS for each Envoy and change.
    pub xds_bytes: f64,
    /// MiB (proportional set size) of the manager.
    pub manager_mib: f64,
    /// MiB of the agent.
    pub agent_mib: f64,
    /// MiB of an Envoy.
    pub envoy_mib: f64,
    /// Requests to a Route that did not change meanwhile, and how many of them were lost.
    pub requests: (u64, u64),
}

/// What was done once, at the largest size.
#[derive(Debug, Serialize)]
pub struct Largest {
    /// What is published.
    pub layout: Layout,
    /// How many Routes there are.
    pub routes: usize,
    /// The manager's restart.
    pub restart: Restart,
    /// The agent's stream ended, and it opened another.
    pub resync: Resync,
    /// Seconds from the agent's start until a change of the tenant is served.
    pub agent_restart_seconds: f64,
    /// A node that goes and comes back.
    pub node_change: NodeChange,
    /// Another tenant's changes, 100 a second.
    pub neighbour: Neighbour,
    /// Requests a second against a configuration written by hand.
    pub data_path: DataPath,
}

/// A stream that follows another one of the same agent.
#[derive(Debug, Serialize)]
pub struct Resync {
    /// From the agent's Hello until the hub has compared what it has, and has told what became of it.
    pub seconds: f64,
    /// What the agent named by its hash.
    pub items: usize,
    /// What of it the hub asked for.
    pub asked: usize,
}

/// The manager's restart.
#[derive(Debug, Serialize)]
pub struct Restart {
    /// Seconds from the old manager's end until a change made then is served.
    pub seconds_to_serving: f64,
    /// Clusters and Listeners that Envoys took to be others than before.
    pub resources_changed: u64,
    /// Bytes of xDS for each Envoy until that change was served: the stream's beginning, and what it was sent.
    pub bytes: f64,
    /// Bytes of xDS that each Envoy had been sent before.
    pub bytes_before: f64,
    /// Requests meanwhile, and how many of them were lost.
    pub requests: (u64, u64),
}

/// A node that goes and comes back.
#[derive(Debug, Serialize)]
pub struct NodeChange {
    /// Clusters that it is in.
    pub clusters: usize,
    /// Milliseconds until the last of a sample of them had it back.
    pub millis: f64,
    /// CPU milliseconds of the manager, for both changes.
    pub manager_cpu_ms: f64,
    /// CPU milliseconds of each Envoy's main thread, for both changes.
    pub envoy_main_cpu_ms: f64,
    /// Bytes of xDS for each Envoy, for both changes.
    pub bytes: f64,
    /// Listeners and clusters that were touched by it.
    pub others_touched: u64,
}

/// Another tenant that changes much.
#[derive(Debug, Serialize)]
pub struct Neighbour {
    /// Changes a second.
    pub rate: f64,
    /// Propagation with the neighbour quiet.
    pub quiet: Spread,
    /// Propagation with the neighbour noisy.
    pub noisy: Spread,
}

/// Requests through the fleet, and through an Envoy with a configuration written by hand.
#[derive(Debug, Serialize)]
pub struct DataPath {
    /// Requests a second, medians of the rounds.
    pub requests_per_second: (f64, f64),
    /// CPU microseconds of Envoy for each request.
    pub cpu_micros: (f64, f64),
    /// Latencies in milliseconds.
    pub latency: (Spread, Spread),
}

/// One change for several clients of the xDS server.
#[derive(Debug, Serialize)]
pub struct FanOut {
    /// How many there are.
    pub clients: usize,
    /// Milliseconds from the change to the last of them.
    pub millis: Spread,
    /// CPU microseconds of the server for each change and client.
    pub cpu_micros_each: f64,
}

/// A distribution, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Spread {
    /// Half were at most this.
    pub p50: f64,
    /// 90 of 100 were at most this.
    pub p90: f64,
    /// 99 of 100 were at most this.
    pub p99: f64,
    /// All were at most this.
    pub max: f64,
}

impl Spread {
    /// Of these.
    pub fn of(samples: &[Duration]) -> Self {
        let mut millis: Vec<f64> = samples.iter().map(|one| one.as_secs_f64() * 1e3).collect();
        millis.sort_by(f64::total_cmp);
        let at = |share: usize| {
            let index = (millis.len() * share).div_ceil(100).saturating_sub(1);
            millis.get(index).copied().unwrap_or_default()
        };
        Self { p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }
}

impl Report {
    /// What was measured of a layout, at growing sizes.
    pub fn of(&self, layout: Layout) -> impl DoubleEndedIterator<Item = &AtSize> {
        self.sizes.iter().filter(move |one| one.layout == layout)
    }

    /// The figures in a row for each size.
    pub fn table(&self) -> String {
        let mut text = format!("{}\ncommit {}, seed {}\n\n", self.machine, self.commit, self.seed);
        text += "layout      routes  loaded          writes stolen   p50   p99    max   manager  agent  Envoy   bytes  manager agent Envoy  lost\n";
        text += "                    s (routes)      ms          %    ms    ms     ms    ms       ms     ms             MiB     MiB   MiB\n";
        for one in &self.sizes {
            let (added, seconds, _) = one.loaded;
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{:<11} {:>6}  {:<14} {:>5.1}  {:>5.1} {:>5.1} {:>5.1} {:>6.1} {:>7.2} {:>6.2} {:>6.2} {:>7.0} {:>7.1} {:>5.1} {:>5.0}  {} of {}",
                one.layout.name(),
                one.routes,
                format!("{seconds:.1} (+{added})"),
                one.two_writes.p50,
                one.stolen * 100.0,
                one.propagation.p50,
                one.propagation.p99,
                one.propagation.max,
                one.manager_cpu_ms,
                one.agent_cpu_ms,
                one.envoy_main_cpu_ms,
                one.xds_bytes,
                one.manager_mib,
                one.agent_mib,
                one.envoy_mib,
                one.requests.1,
                one.requests.0,
            );
            for (kind, count, spread) in &one.by_kind {
                let _ = writeln!(
                    text,
                    "              {count:>4} {:<10} p50 {:.1}, p90 {:.1}, max {:.1} ms",
                    format!("{kind:?}").to_lowercase(),
                    spread.p50,
                    spread.p90,
                    spread.max
                );
            }
        }
        for layout in Layout::ALL {
            let mut sizes = self.of(layout);
            if let Some((first, last)) = sizes.next().zip(sizes.next_back()) {
                first.grow(last, &mut text);
            }
        }
        for one in &self.largest {
            one.describe(&mut text);
        }
        for one in &self.fan_out {
            let _ = writeln!(
                text,
                "fan-out: {:>3} clients  p50 {:.2}, p99 {:.2} ms to the last; {:.1} µs of CPU each",
                one.clients, one.millis.p50, one.millis.p99, one.cpu_micros_each
            );
        }
        text
    }
}

impl AtSize {
    /// What more Routes cost: budgets are ratios first.
    fn grow(&self, to: &Self, text: &mut String) {
        let more = to.routes.saturating_sub(self.routes).max(1) as f64;
        let each = |from: f64, to: f64| (to - from) * 1_024.0 / more;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{} from {} to {}: p50 × {:.2}, manager's CPU × {:.2}; a Route more: manager {:.1}, agent {:.1}, Envoy {:.1} KiB",
            self.layout.name(),
            self.routes,
            to.routes,
            to.propagation.p50 / self.propagation.p50,
            to.manager_cpu_ms / self.manager_cpu_ms,
            each(self.manager_mib, to.manager_mib),
            each(self.agent_mib, to.agent_mib),
            each(self.envoy_mib, to.envoy_mib),
        );
    }
}

impl Largest {
    fn describe(&self, text: &mut String) {
        let _ = writeln!(text, "\n{} at {} routes:", self.layout.name(), self.routes);
        let Restart { seconds_to_serving, resources_changed, bytes, bytes_before, requests } =
            &self.restart;
        let _ = writeln!(
            text,
            "  manager restarted: a change is served after {seconds_to_serving:.1} s; {resources_changed} Clusters or \
             Listeners changed by it, {bytes:.0} bytes for each Envoy ({bytes_before:.0} before); {} of {} requests lost",
            requests.1, requests.0
        );
        let Resync { seconds, items, asked } = &self.resync;
        let _ = writeln!(
            text,
            "  agent connects again: {items} hashes are compared after {seconds:.2} s, {asked} Routes are asked for"
        );
        let seconds = self.agent_restart_seconds;
        let _ = writeln!(text, "  agent restarted: a change is served after {seconds:.1} s");
        let node = &self.node_change;
        let _ = writeln!(
            text,
            "  a node of {} clusters goes and comes back: {:.0} ms until they have it; manager {:.0} ms, Envoy {:.0} ms \
             of CPU, {:.0} bytes for each Envoy; {} listeners or clusters touched",
            node.clusters,
            node.millis,
            node.manager_cpu_ms,
            node.envoy_main_cpu_ms,
            node.bytes,
            node.others_touched
        );
        let Neighbour { rate, quiet, noisy } = &self.neighbour;
        let _ = writeln!(
            text,
            "  another tenant makes {rate:.0} changes/s: p50 {:.1} → {:.1}, p99 {:.1} → {:.1} ms",
            quiet.p50, noisy.p50, quiet.p99, noisy.p99
        );
        let DataPath { requests_per_second: (ours, by_hand), cpu_micros, latency } =
            &self.data_path;
        let _ = writeln!(
            text,
            "  data path: {ours:.0} requests/s, {by_hand:.0} with a configuration by hand ({:.2}); CPU {:.1} and {:.1} µs \
             a request; p99 {:.2} and {:.2} ms",
            ours / by_hand,
            cpu_micros.0,
            cpu_micros.1,
            latency.0.p99,
            latency.1.p99
        );
    }
}
