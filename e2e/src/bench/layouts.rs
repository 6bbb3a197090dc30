//! `cargo e2e layouts`: what a host name with a certificate of its own costs a real Envoy, by the way in which Envoy finds
//! the certificate, and what a wildcard costs it. No cluster is needed: Envoy and an xDS server in this process, and
//! sockets in the file system.

// Counts are far below 2^52.
#![allow(clippy::cast_precision_loss)]

mod config;
mod wildcards;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairlead_xds::Change;
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use self::config::{Authority, LAYOUTS, Layout, Pair, host};
use super::figures::Spread;
use super::measure::{Process, stats_of};
use super::probe::read;
use crate::envoy::{Envoy, Everybody};
use crate::run;
use crate::say::say;

/// Changes of each kind at each size.
const CHANGES: usize = 20;
/// Bytes of xDS.
const RECEIVED: &str = "cluster.xds.upstream_cx_rx_bytes_total";
const DRAINING: &str = "listener_manager.total_filter_chains_draining";
const PATIENCE: Duration = Duration::from_secs(120);

/// How it is run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How many host names.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,4000")]
    hosts: Vec<usize>,
    /// Where layouts.json is written.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

/// What hosts cost, however Envoy finds them.
#[derive(Debug, Serialize)]
struct Cost {
    hosts: usize,
    /// Seconds until the last host answered.
    load_seconds: f64,
    /// MiB (proportional set size), once each host was asked for.
    mib: f64,
    /// Milliseconds until one host more answers.
    add: Spread,
    /// Bytes of xDS for one host more.
    add_bytes: f64,
    /// CPU milliseconds of Envoy's main thread for one host more.
    add_cpu_ms: f64,
}

/// The first columns of a table.
const COLUMNS: &str = "layout | hosts | load s | MiB | one more: ms p50, p99 | bytes | CPU ms";

impl Cost {
    fn columns(&self, layout: &str) -> String {
        let Self { hosts, load_seconds, mib, add, add_bytes, add_cpu_ms } = self;
        format!(
            "{layout} | {hosts} | {load_seconds:.1} | {mib:.0} | {:.1}, {:.1} | {add_bytes:.0} | {add_cpu_ms:.1}",
            add.p50, add.p99
        )
    }
}

/// One layout at one size.
#[derive(Debug, Serialize)]
struct Measured {
    layout: Layout,
    #[serde(flatten)]
    cost: Cost,
    /// Milliseconds until a new certificate of a host is shown.
    rotate: Spread,
    /// Milliseconds of a handshake with a host that was asked for before.
    handshake: Spread,
    /// Connections that were open while hosts were added, and how many of them answered after it.
    connections: (usize, usize),
}

/// What the file holds.
#[derive(Debug, Serialize)]
struct Figures {
    certificates: Vec<Measured>,
    wildcards: Vec<wildcards::Measured>,
}

/// Runs it, prints the tables and writes the file.
pub fn run(options: &Options) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut figures = Figures { certificates: Vec::new(), wildcards: Vec::new() };
    for layout in LAYOUTS {
        for hosts in options.hosts.iter().filter(|hosts| **hosts <= layout.most()) {
            let measured = runtime.block_on(measure(layout, *hosts))?;
            say(&format!("{} at {hosts}: {measured:?}", layout.name()));
            figures.certificates.push(measured);
        }
    }
    for layout in wildcards::LAYOUTS {
        for hosts in &options.hosts {
            let measured = runtime.block_on(wildcards::measure(layout, *hosts))?;
            say(&format!("{measured:?}"));
            figures.wildcards.push(measured);
        }
    }
    std::fs::create_dir_all(&options.out)?;
    let file = options.out.join("layouts.json");
    std::fs::write(&file, serde_json::to_string_pretty(&figures)?)?;
    println!("{}\n{}", table(&figures.certificates), wildcards::table(&figures.wildcards));
    say(&format!("figures are in {}", file.display()));
    Ok(())
}

/// MiB of memory (proportional set size).
fn mib(process: &Process) -> Result<f64> {
    Ok(process.memory()? as f64 / f64::from(1 << 20))
}

fn table(all: &[Measured]) -> String {
    let head = format!(
        "| {COLUMNS} | rotated: ms p50 | handshake: ms p50 | connections kept |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    );
    let row = |one: &Measured| {
        format!(
            "| {} | {:.1} | {:.1} | {} of {} |\n",
            one.cost.columns(one.layout.name()),
            one.rotate.p50,
            one.handshake.p50,
            one.connections.1,
            one.connections.0,
        )
    };
    head + &all.iter().map(row).collect::<String>()
}

async fn measure(layout: Layout, hosts: usize) -> Result<Measured> {
    let mut stage = Stage::start(layout, hosts + CHANGES)?;
    let load_seconds = load(&mut stage, hosts).await?;
    let mut open = Vec::new();
    for number in 0..hosts.min(10) {
        open.push((host(number), stage.connect(number).await?.0));
    }
    let (bytes, cpu) = (stage.counted(RECEIVED)?, stage.process.cpu()?.main);
    let add = add(&mut stage).await?;
    let add_bytes = stage.counted(RECEIVED)?.saturating_sub(bytes) as f64 / CHANGES as f64;
    let add_cpu = stage.process.cpu()?.main.saturating_sub(cpu);
    // What a change of the listener drains is closed by now, or says that it will be.
    run::wait_for("the end of draining", PATIENCE, || match stage.counted(DRAINING)? {
        0 => Ok(()),
        left => bail!("{left} filter chains drain"),
    })?;
    let (connections, mut kept) = (open.len(), 0);
    for (host, stream) in &mut open {
        kept += usize::from(answers(stream, host).await.is_ok());
    }
    let cost = Cost {
        hosts,
        load_seconds,
        mib: mib(&stage.process)?,
        add: Spread::of(&add),
        add_bytes,
        add_cpu_ms: add_cpu.as_secs_f64() * 1e3 / CHANGES as f64,
    };
    Ok(Measured {
        layout,
        cost,
        rotate: Spread::of(&rotate(&mut stage, hosts).await?),
        handshake: Spread::of(&handshake(&stage, hosts).await?),
        connections: (connections, kept),
    })
}

/// Publishes all; the seconds until the last host answers. Then each of them is asked for once.
async fn load(stage: &mut Stage, hosts: usize) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..hosts {
        stage.add();
    }
    stage.publish_listener();
    stage.until_shown(hosts - 1).await?;
    let seconds = start.elapsed().as_secs_f64();
    for number in 0..hosts {
        stage.until_shown(number).await?;
    }
    Ok(seconds)
}

async fn add(stage: &mut Stage) -> Result<Vec<Duration>> {
    let mut took = Vec::new();
    for _ in 0..CHANGES {
        let start = Instant::now();
        let number = stage.add();
        if stage.layout.touches_listener() {
            stage.publish_listener();
        }
        stage.until_shown(number).await?;
        took.push(start.elapsed());
    }
    Ok(took)
}

async fn rotate(stage: &mut Stage, hosts: usize) -> Result<Vec<Duration>> {
    let mut took = Vec::new();
    for number in 0..CHANGES.min(hosts) {
        stage.pairs[number] = stage.authority.issue(&host(number))?;
        let start = Instant::now();
        stage.publish_certificate(number);
        stage.until_shown(number).await?;
        took.push(start.elapsed());
    }
    Ok(took)
}

async fn handshake(stage: &Stage, hosts: usize) -> Result<Vec<Duration>> {
    let mut took = Vec::new();
    for number in 0..hosts.min(200) {
        let start = Instant::now();
        stage.connect(number).await?;
        took.push(start.elapsed());
    }
    Ok(took)
}

/// An Envoy, and what it is given.
struct Stage {
    layout: Layout,
    envoy: Envoy,
    process: Process,
    authority: Authority,
    client: TlsConnector,
    /// Of all hosts, also of those that are not published yet.
    pairs: Vec<Pair>,
    published: usize,
}

impl Stage {
    fn start(layout: Layout, hosts: usize) -> Result<Self> {
        let authority = Authority::new()?;
        let issue = |number| authority.issue(&host(number));
        let pairs = (0..hosts).map(issue).collect::<Result<_>>()?;
        let client = client(&authority)?;
        let draining = ["--drain-time-s", "1", "--drain-strategy", "immediate"];
        let envoy = Envoy::start("layouts", Everybody, &draining)?;
        let process = Process::of(envoy.pid());
        Ok(Self { layout, envoy, process, authority, client, pairs, published: 0 })
    }

    /// Publishes the certificate of one host more; its number.
    fn add(&mut self) -> usize {
        self.published += 1;
        self.publish_certificate(self.published - 1);
        self.published - 1
    }

    fn publish_certificate(&self, number: usize) {
        self.publish(config::certificate(&host(number), &self.pairs[number]));
    }

    fn publish_listener(&self) {
        self.publish(config::listener(self.layout, self.published, &self.envoy.file("tls")));
    }

    fn publish(&self, change: Change) {
        self.envoy.cache.publish(vec![change]);
    }

    /// Connects to a host; with the certificate that it shows.
    async fn connect(&self, number: usize) -> Result<(TlsStream<UnixStream>, Vec<u8>)> {
        let stream = UnixStream::connect(self.envoy.file("tls")).await?;
        let stream = self.client.connect(host(number).try_into()?, stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let shown = shown.context("no certificate")?.to_vec();
        Ok((stream, shown))
    }

    /// Waits until a host answers with the certificate that was published last.
    async fn until_shown(&self, number: usize) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let why =
                match tokio::time::timeout(Duration::from_secs(10), self.connect(number)).await {
                    Ok(Ok((mut stream, shown))) if shown == self.pairs[number].der => {
                        return answers(&mut stream, &host(number)).await;
                    }
                    Ok(Ok(_)) => "it shows another certificate".to_owned(),
                    Ok(Err(error)) => format!("{error:#}"),
                    Err(_) => "no answer".to_owned(),
                };
            if Instant::now() > end {
                bail!("{}: {why}", host(number));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn counted(&self, name: &str) -> Result<u64> {
        counted(&self.envoy, name)
    }
}

/// What an Envoy counts by this name.
fn counted(envoy: &Envoy, name: &str) -> Result<u64> {
    Ok(stats_of(&envoy.file("admin"))?.get(name).copied().unwrap_or(0))
}

/// One request on a connection.
async fn answers(stream: &mut TlsStream<UnixStream>, host: &str) -> Result<()> {
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await?;
    let said = tokio::time::timeout(Duration::from_secs(10), read(stream)).await??;
    if !said.starts_with("HTTP/1.1 200") || said.contains("connection: close") {
        bail!("{host} answers {said:?}");
    }
    Ok(())
}

/// A client that begins anew with each connection: one that resumes a session is shown no certificate.
fn client(authority: &Authority) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate())?;
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}
