//! `cargo e2e bench`: what a change costs, at 100, 1,000 and 10,000 Routes, on real apiservers and real Envoys.
//!
//! `stage` is what runs, `generate` what is published and changed, `probe` the client, `measure` what it costs,
//! `figures` and `chart` what is said of it.

// Counts are far below 2^52.
#![allow(clippy::cast_precision_loss)]

mod chart;
mod datapath;
mod fanout;
mod figures;
mod generate;
pub mod layouts;
pub mod measure;
mod neighbour;
mod probe;
mod stage;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairlead_api::Tenant;
use futures::{StreamExt, TryStreamExt, stream};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use self::figures::{AtSize, Largest, NodeChange, Report, Restart, Resync, Spread};
use self::generate::{Change, Layout, Objects, Seeded};
use self::measure::{Cost, Envoy, Machine, Process, Spent};
use self::probe::Background;
use self::stage::Stage;
use crate::driver::Driver;
use crate::local::{Local, net};
use crate::say::say;
use crate::{images, paths, run, topology};

/// How the bench is run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// 100 and 1,000 Routes, and fewer changes: less than 5 min once everything is built.
    #[arg(long)]
    quick: bool,
    /// The numbers of Routes, growing; instead of 100, 1,000 and 10,000.
    #[arg(long, value_delimiter = ',')]
    sizes: Vec<usize>,
    /// What is published; both unless given.
    #[arg(long, value_enum)]
    layout: Option<Layout>,
    /// Changes at each size.
    #[arg(long)]
    changes: Option<usize>,
    /// Services of layer 4 are asked at their `healthCheckNodePort` whether they are healthy, as they are unless
    /// they say otherwise.
    #[arg(long)]
    checked: bool,
    /// What the generator begins with.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leave the clusters of the last layout up, to be looked at.
    #[arg(long)]
    keep: bool,
    /// Where bench.json and bench.svg are written.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

impl Options {
    fn sizes(&self) -> Vec<usize> {
        match (self.sizes.as_slice(), self.quick) {
            ([], true) => vec![100, 1_000],
            ([], false) => vec![100, 1_000, 10_000],
            (given, _) => given.to_vec(),
        }
    }

    fn changes(&self) -> usize {
        self.changes.unwrap_or(if self.quick { 100 } else { 300 })
    }
}

/// Runs it, prints the table and writes the files.
pub fn run(options: &Options) -> Result<()> {
    if cfg!(debug_assertions) {
        // The client is a part of what is measured.
        let mut release = Command::new(images::release()?.join("e2e"));
        return run::show(release.args(std::env::args_os().skip(1)));
    }
    let layouts = match options.layout {
        Some(layout) => vec![layout],
        None => Layout::ALL.into(),
    };
    let mut report = Report {
        machine: stage::machine()?,
        commit: commit(),
        seed: options.seed,
        sizes: Vec::new(),
        largest: Vec::new(),
        fan_out: Vec::new(),
    };
    for layout in layouts {
        let listeners = match layout {
            Layout::Layer4 => options.sizes().into_iter().max().unwrap_or(0),
            Layout::Hosts => 2,
        };
        let mut stage = Stage::up(listeners)?;
        let measured = net::within("client", || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(measure_layout(&mut stage, layout, options, &mut report))
        });
        if measured.is_err() {
            say(
                "the clusters are left as they are, to be looked at; `cargo e2e down` takes them down",
            );
        }
        measured?;
        // Should the next layout fail, this one was measured.
        save(&report, options)?;
        if !options.keep {
            stage.stop_agent()?;
            Local.down()?;
        }
    }
    report.fan_out = fanout::measure(options.quick)?;
    save(&report, options)?;
    println!("{}", report.table());
    say(&format!("bench.json and bench.svg are in {}", options.out.display()));
    Ok(())
}

fn save(report: &Report, options: &Options) -> Result<()> {
    std::fs::create_dir_all(&options.out)?;
    std::fs::write(options.out.join("bench.json"), serde_json::to_string_pretty(report)?)?;
    std::fs::write(options.out.join("bench.svg"), chart::draw(report))?;
    Ok(())
}

/// The commit of the checkout, with a mark where there are changes beside it.
fn commit() -> String {
    let mut git = Command::new("git");
    git.current_dir(paths::repository()).args(["describe", "--always", "--dirty"]);
    run::output(&mut git).map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

async fn measure_layout(
    stage: &mut Stage,
    layout: Layout,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let mut objects = Objects::new(layout, options.checked, stage.client().await?).await?;
    let hub = stage::client(&topology::hub()).await?;
    let mut seeded = Seeded::new(options.seed);
    for size in options.sizes() {
        let loaded = load(stage, &mut objects, size).await?;
        let at = measure_size(&mut objects, &hub, &mut seeded, options, loaded).await?;
        report.sizes.push(at);
    }
    let routes = objects.count();
    let restart = restart(&mut objects, &mut seeded).await?;
    let node_change = node_change(&objects).await?;
    quiet().await?;
    let neighbour = neighbour::measure(&mut objects, &mut seeded, options.changes()).await?;
    quiet().await?;
    let data_path = datapath::measure(&objects, stage.workers, options.quick).await?;
    quiet().await?;
    let resync = resync(&hub).await?;
    let agent_restart_seconds = agent_restart(stage, &mut objects, &mut seeded).await?;
    report.largest.push(Largest {
        layout,
        routes,
        restart,
        resync,
        agent_restart_seconds,
        node_change,
        neighbour,
        data_path,
    });
    Ok(())
}

/// Makes what is missing while the agent is away, then lets the agent find it: how many, and the seconds until all
/// of them are in every Envoy, and until each of them has answered.
async fn load(stage: &mut Stage, objects: &mut Objects, size: usize) -> Result<(usize, f64, f64)> {
    stage.stop_agent()?;
    let before = objects.count();
    objects.fill(size).await?;
    say(&format!("{size} objects are there; the agent begins"));
    let (start, missing) = (Instant::now(), size - before);
    let clusters = || -> Result<u64> {
        let fleet = Envoy::fleet();
        let counts = fleet.iter().map(|envoy| envoy.counted("cluster_manager.active_clusters"));
        counts.collect::<Result<Vec<u64>>>()?.into_iter().min().context("no Envoy")
    };
    let wanted = clusters()? + missing as u64;
    stage.start_agent()?;
    while clusters()? < wanted {
        if start.elapsed() > Duration::from_secs(600) {
            bail!("{} of {wanted} clusters after 10 min", clusters()?);
        }
        stage.expect_agent()?;
        // To be asked costs them something, too.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let everywhere = start.elapsed().as_secs_f64();
    objects.wait_for_address().await?;
    let objects = &*objects;
    let answers = objects.all().skip(before).map(|index| async move {
        probe::until(&objects.target(index)?, &objects.wanted(index)).await
    });
    let last: Vec<Instant> = stream::iter(answers).buffer_unordered(8).try_collect().await?;
    let seconds = last.into_iter().max().map_or(0.0, |at| (at - start).as_secs_f64());
    say(&format!(
        "{missing} more are in every Envoy after {everywhere:.1} s; all have answered after {seconds:.1} s"
    ));
    settle().await?;
    Ok((missing, everywhere, seconds))
}

/// Waits until the manager and the agent have no more to do: statuses, Events.
async fn settle() -> Result<()> {
    // Envoys are not asked what they count: with thousands of listeners that is work, too.
    let mut quiet = 0;
    for _ in 0..600 {
        let [was_manager, was_agent, _] = measure::cpu()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let [manager, agent, _] = measure::cpu()?;
        // An apiserver that is busy with itself for a second lets both rest for so long.
        let is_quiet = manager - was_manager + agent - was_agent < 0.04;
        quiet = if is_quiet { quiet + 1 } else { 0 };
        if quiet == 5 {
            return Ok(());
        }
    }
    bail!("it does not come to rest")
}

/// Waits until this machine has nothing else to do: what apiservers do after the last phase, Go's collector and
/// Kubernetes' own controllers included, is no part of the next.
async fn quiet() -> Result<()> {
    for _ in 0..120 {
        let before = Machine::now()?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (idle, _) = Machine::now()?.shares_since(before);
        if idle > 0.75 {
            return Ok(());
        }
    }
    say("this machine has other work, all the time: what follows is measured beside it");
    Ok(())
}

async fn idle(seconds: u64) -> Result<Cost> {
    let before = Spent::now()?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    before.until_now()
}

/// Makes one change, and waits until it is served.
async fn one_change(
    objects: &mut Objects,
    seeded: &mut Seeded,
    change: Change,
) -> Result<Duration> {
    let index = objects.pick(change, seeded);
    // A port that was left is another's no more; its own target is asked where it is now.
    let before = if change == Change::Delete { Some(objects.target(index)?) } else { None };
    let (target, wanted) = objects.change(change, index)?;
    let target = before.unwrap_or(target);
    let start = Instant::now();
    let (written, served) =
        tokio::join!(objects.write(change, index), probe::until(&target, &wanted));
    written.with_context(|| format!("{change:?} of {index}"))?;
    Ok(served.with_context(|| format!("{change:?} of {index}"))? - start)
}

async fn measure_size(
    objects: &mut Objects,
    hub: &Client,
    seeded: &mut Seeded,
    options: &Options,
    loaded: (usize, f64, f64),
) -> Result<AtSize> {
    let (routes, layout) = (objects.count(), objects.layout());
    let mut writes = Vec::new();
    for number in 0..50 {
        writes.push(objects.two_writes(hub, number).await?);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let at_rest = idle(if options.quick { 4 } else { 10 }).await?;
    let background = Background::start(objects.target(0)?, Duration::from_millis(20));
    let (before, machine) = (Spent::now()?, Machine::now()?);
    let mut samples = Vec::new();
    for _ in 0..options.changes() {
        let change = Change::draw(seeded);
        samples.push((change, one_change(objects, seeded, change).await?));
        // What follows a change, its statuses, is not in the way of the next.
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let (_, stolen) = Machine::now()?.shares_since(machine);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let cost = before.until_now()?.each(samples.len(), &at_rest);
    let requests = background.stop().await?;
    let all: Vec<_> = samples.iter().map(|(_, took)| *took).collect();
    let kinds = [Change::Endpoints, Change::Edit, Change::Add, Change::Delete];
    let by_kind = kinds.into_iter().filter_map(|kind| {
        let took: Vec<_> = samples.iter().filter(|s| s.0 == kind).map(|s| s.1).collect();
        (!took.is_empty()).then(|| (kind, took.len(), Spread::of(&took)))
    });
    let mib =
        |process: &Process| Ok::<_, anyhow::Error>(process.memory()? as f64 / f64::from(1 << 20));
    let envoys = Envoy::fleet();
    let envoy: f64 = envoys.iter().map(|envoy| mib(&envoy.0)).sum::<Result<f64>>()?;
    let measured = AtSize {
        layout,
        routes,
        loaded,
        two_writes: Spread::of(&writes),
        stolen,
        propagation: Spread::of(&all),
        by_kind: by_kind.collect(),
        manager_cpu_ms: cost.manager * 1e3,
        agent_cpu_ms: cost.agent * 1e3,
        envoy_main_cpu_ms: cost.envoy * 1e3,
        xds_bytes: cost.bytes,
        manager_mib: mib(&Process::the("fairlead-manager")?)?,
        agent_mib: mib(&Process::the("fairlead-agent")?)?,
        envoy_mib: envoy / envoys.len().max(1) as f64,
        requests,
    };
    let Spread { p50, p99, .. } = measured.propagation;
    say(&format!(
        "{} at {routes}: p50 {p50:.1} ms, p99 {p99:.1} ms (two writes alone {:.1}); manager {:.2} ms, {:.0} bytes a \
         change",
        layout.name(),
        measured.two_writes.p50,
        measured.manager_cpu_ms,
        measured.xds_bytes
    ));
    for (kind, count, spread) in &measured.by_kind {
        say(&format!("  {count} {kind:?}: {spread:?}"));
    }
    Ok(measured)
}

/// Resources of which an Envoy was sent another version.
fn touched(envoy: &Envoy) -> Result<u64> {
    let stats = envoy.stats()?;
    let kinds = ["added", "modified", "removed"];
    let of = |what: &str| {
        kinds.iter().filter_map(|kind| stats.get(&format!("{what}_{kind}"))).sum::<u64>()
    };
    Ok(of("cluster_manager.cluster") + of("listener_manager.listener"))
}

fn touched_by_all() -> Result<u64> {
    Envoy::fleet().iter().map(touched).sum()
}

async fn restart(objects: &mut Objects, seeded: &mut Seeded) -> Result<Restart> {
    settle().await?;
    let background = Background::start(objects.target(0)?, Duration::from_millis(10));
    let (before, had) = (touched_by_all()?, measure::received()?);
    let old = Process::the("fairlead-manager")?;
    // On another thread: requests go on meanwhile.
    let ended = tokio::task::spawn_blocking(move || {
        stage::restart_manager()?;
        run::wait_for("the manager's end", Duration::from_secs(60), || {
            anyhow::ensure!(!Process::find("fairlead-manager").contains(&old), "it runs");
            Ok(())
        })
    });
    ended.await??;
    let start = Instant::now();
    // Endpoints touch no Cluster and no Listener: whatever else is changed was sent again.
    one_change(objects, seeded, Change::Endpoints).await?;
    let seconds_to_serving = start.elapsed().as_secs_f64();
    settle().await?;
    let (resources_changed, bytes) = (touched_by_all()? - before, measure::received()? - had);
    let requests = background.stop().await?;
    let log = tokio::task::spawn_blocking(stage::manager_log).await??;
    for line in log.lines().filter(|line| line.contains("read") || line.contains("connected")) {
        say(line);
    }
    Ok(Restart { seconds_to_serving, resources_changed, bytes, bytes_before: had, requests })
}

async fn agent_restart(
    stage: &mut Stage,
    objects: &mut Objects,
    seeded: &mut Seeded,
) -> Result<f64> {
    stage.stop_agent()?;
    let start = Instant::now();
    stage.start_agent()?;
    one_change(objects, seeded, Change::Endpoints).await?;
    Ok(start.elapsed().as_secs_f64())
}

/// Has the agent's stream end, and finds out how long it takes the next one to tell what the agent has.
async fn resync(hub: &Client) -> Result<Resync> {
    let before = stage::resyncs()?.len();
    // A quota that changes ends the stream.
    let quotas = json!({"spec": {"quotas": {"routes": stage::ROUTES + 1}}});
    let tenants: Api<Tenant> = Api::all(hub.clone());
    tenants.patch(stage::TENANT, &PatchParams::default(), &Patch::Merge(quotas)).await?;
    let found = tokio::task::spawn_blocking(move || {
        run::wait_for("another inventory", Duration::from_secs(60), || {
            stage::resyncs()?.into_iter().nth(before).context("none yet")
        })
    });
    found.await?
}

async fn node_change(objects: &Objects) -> Result<NodeChange> {
    settle().await?;
    let at_rest = idle(3).await?;
    let there: Vec<usize> = objects.all().filter(|index| objects.is_on_second(*index)).collect();
    let step = there.len() / 20 + 1;
    let sample: Vec<usize> = there.iter().copied().step_by(step).collect();
    let touched_before = touched_by_all()?;
    let before = Spent::now()?;
    objects.exclude_node(true).await?;
    for index in &sample {
        // An Envoy without endpoints answers 503, or closes the connection.
        let target = objects.target(*index)?;
        let end = Instant::now() + Duration::from_secs(30);
        while matches!(probe::ask(&target).await, Ok((200, _))) {
            if Instant::now() > end {
                bail!("a node that was taken out is sent traffic still");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let start = Instant::now();
    objects.exclude_node(false).await?;
    for index in &sample {
        probe::until(&objects.target(*index)?, &objects.wanted(*index)).await?;
    }
    let took = start.elapsed();
    settle().await?;
    let cost = before.until_now()?.each(1, &at_rest);
    Ok(NodeChange {
        clusters: there.len(),
        millis: took.as_secs_f64() * 1e3,
        manager_cpu_ms: cost.manager * 1e3,
        envoy_main_cpu_ms: cost.envoy * 1e3,
        bytes: cost.bytes,
        others_touched: touched_by_all()? - touched_before,
    })
}
