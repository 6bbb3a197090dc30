//! What a wildcard host name costs a real Envoy, by the way in which Envoy finds the host of a request.
//!
//! Fairlead's own layouts are what its engine says, with the listener moved to a socket in the file system. Each host
//! answers with a redirect that names it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairlead_api::http::{Filters, Host, HttpMatch, HttpRule, RequestRedirect};
use fairlead_api::route::{Listener, Protocol, Source, SourceKind};
use fairlead_api::{AddressPoolSpec, RouteId, RouteName, RouteSpec, TenantSpec};
use fairlead_core::Engine;
use fairlead_core::model::Meta;
use fairlead_xds::Change;
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::config::{one_configuration, whole_table, with_listener_at};
use super::{CHANGES, COLUMNS, Cost, PATIENCE, RECEIVED, counted, mib};
use crate::bench::figures::Spread;
use crate::bench::measure::Process;
use crate::bench::probe::read;
use crate::envoy::{Envoy, Everybody};
use crate::hub::step;

const REQUESTS: u32 = 5_000;

/// How Envoy finds the host of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Fairlead's at a listener without wildcards: a scope for each host.
    Scopes,
    /// Fairlead's at a listener with them, one host of ten: filters have the scope looked for again.
    ScopesAndFilters,
    /// One `RouteConfiguration`, one host of ten a wildcard; Envoy looks for it by itself.
    OneConfiguration,
}

/// All of them.
pub const LAYOUTS: [Layout; 3] =
    [Layout::Scopes, Layout::ScopesAndFilters, Layout::OneConfiguration];

impl Layout {
    fn name(self) -> &'static str {
        match self {
            Self::Scopes => "a scope for each, no wildcards",
            Self::ScopesAndFilters => "a scope for each, filters for wildcards",
            Self::OneConfiguration => "one RouteConfiguration, with wildcards",
        }
    }

    fn is_wildcard(self, number: usize) -> bool {
        self != Self::Scopes && number.is_multiple_of(10)
    }

    /// The name of a host.
    pub fn host(self, number: usize) -> String {
        if self.is_wildcard(number) {
            format!("*.h{number}.bench.example")
        } else {
            format!("h{number}.bench.example")
        }
    }

    /// What a client calls it.
    fn asked(self, number: usize) -> String {
        self.host(number).replace('*', "any")
    }
}

/// One layout at one size.
#[derive(Debug, Serialize)]
pub struct Measured {
    layout: Layout,
    /// The one host more is a wildcard, where there are any.
    #[serde(flatten)]
    cost: Cost,
    /// Requests for a host by its own name.
    exact: Requests,
    /// Requests for a name under a wildcard.
    wildcard: Option<Requests>,
}

/// Requests, one after another on one connection.
#[derive(Debug, Serialize)]
struct Requests {
    /// Microseconds of Envoy's CPU for each.
    cpu_micros: f64,
    /// Milliseconds.
    latency: Spread,
}

/// What is printed.
pub fn table(all: &[Measured]) -> String {
    let head = format!(
        "| {COLUMNS} | a request by name: CPU µs | under a wildcard: CPU µs |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    );
    let row = |one: &Measured| {
        let wildcard = one.wildcard.as_ref().map(|some| format!("{:.0}", some.cpu_micros));
        format!(
            "| {} | {:.0} | {} |\n",
            one.cost.columns(one.layout.name()),
            one.exact.cpu_micros,
            wildcard.as_deref().unwrap_or("–"),
        )
    };
    head + &all.iter().map(row).collect::<String>()
}

/// Measures one layout at one size.
pub async fn measure(layout: Layout, hosts: usize) -> Result<Measured> {
    let mut stage = Stage::start(layout)?;
    let load_seconds = load(&mut stage, hosts).await?;
    let mib = mib(&stage.process)?;
    let exact = requests(&stage, 1).await?;
    let wildcard = if layout.is_wildcard(0) { Some(requests(&stage, 0).await?) } else { None };
    let (bytes, cpu) = (counted(&stage.envoy, RECEIVED)?, stage.process.cpu()?.main);
    let mut took = Vec::new();
    for more in 0..CHANGES {
        let number = hosts.next_multiple_of(10) + 10 * more;
        let changes = stage.add(&[number])?;
        let start = Instant::now();
        stage.envoy.cache.publish(changes);
        stage.until_found(number).await?;
        took.push(start.elapsed());
    }
    let count = f64::from(u32::try_from(CHANGES)?);
    let cost = Cost {
        hosts,
        load_seconds,
        mib,
        add: Spread::of(&took),
        add_bytes: counted(&stage.envoy, RECEIVED)?.saturating_sub(bytes) as f64 / count,
        add_cpu_ms: stage.process.cpu()?.main.saturating_sub(cpu).as_secs_f64() * 1e3 / count,
    };
    Ok(Measured { layout, cost, exact, wildcard })
}

/// Publishes all; the seconds until the last host answers. Then each of them is asked for once.
async fn load(stage: &mut Stage, hosts: usize) -> Result<f64> {
    let changes = stage.add(&(0..hosts).collect::<Vec<_>>())?;
    let start = Instant::now();
    stage.envoy.cache.publish(changes);
    stage.until_found(hosts - 1).await?;
    let seconds = start.elapsed().as_secs_f64();
    for number in 0..hosts {
        stage.until_found(number).await?;
    }
    Ok(seconds)
}

async fn requests(stage: &Stage, number: usize) -> Result<Requests> {
    let mut stream = stage.connect().await?;
    let (mut samples, cpu) = (Vec::new(), stage.process.cpu()?.all);
    for _ in 0..REQUESTS {
        let start = Instant::now();
        stage.ask(&mut stream, number).await?;
        samples.push(start.elapsed());
    }
    let spent = stage.process.cpu()?.all.saturating_sub(cpu);
    let cpu_micros = spent.as_secs_f64() * 1e6 / f64::from(REQUESTS);
    Ok(Requests { cpu_micros, latency: Spread::of(&samples) })
}

/// An Envoy, and what it is given.
struct Stage {
    layout: Layout,
    envoy: Envoy,
    process: Process,
    engine: Engine,
    /// The hosts that are published.
    hosts: Vec<usize>,
}

impl Stage {
    fn start(layout: Layout) -> Result<Self> {
        let envoy = Envoy::start("wildcards", Everybody, &[])?;
        let process = Process::of(envoy.pid());
        Ok(Self { layout, envoy, process, engine: engine()?, hosts: Vec::new() })
    }

    /// What Envoy has to be told for these hosts to be there as well.
    fn add(&mut self, numbers: &[usize]) -> Result<Vec<Change>> {
        let first = self.hosts.is_empty();
        self.hosts.extend(numbers);
        let at = self.envoy.file("http");
        if self.layout != Layout::OneConfiguration {
            let changes = routes(&mut self.engine, self.layout, numbers)?;
            return changes.into_iter().map(|change| with_listener_at(change, &at)).collect();
        }
        let mut changes = vec![whole_table(self.layout, &self.hosts)];
        if first {
            // The same listener but for where it finds hosts.
            let listener = routes(&mut self.engine, Layout::Scopes, &[0])?;
            let listener = listener.into_iter().filter_map(|change| one_configuration(change, &at));
            changes.extend(listener.collect::<Result<Vec<_>>>()?);
        }
        Ok(changes)
    }

    async fn connect(&self) -> Result<UnixStream> {
        Ok(UnixStream::connect(self.envoy.file("http")).await?)
    }

    /// One request: its answer names the host.
    async fn ask(&self, stream: &mut UnixStream, number: usize) -> Result<()> {
        let host = self.layout.asked(number);
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let said = tokio::time::timeout(Duration::from_secs(10), read(stream)).await??;
        if !said.contains(&format!("location: http://{}/", answer(number))) {
            bail!("{host} answers {said:?}");
        }
        Ok(())
    }

    async fn until_found(&self, number: usize) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let found = async { self.ask(&mut self.connect().await?, number).await };
            match found.await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

/// Where a host's requests are sent.
pub fn answer(number: usize) -> String {
    format!("to-{number}.example")
}

/// A hub with one tenant, who may have as much as it likes at one address.
fn engine() -> Result<Engine> {
    let mut engine = Engine::default();
    let mut tenant = TenantSpec { pools: vec!["public".into()], ..TenantSpec::default() };
    (tenant.quotas.routes, tenant.quotas.hostnames) = (1_000_000, 1_000_000);
    engine.tenant(&"blue".parse()?, Some(tenant.into()));
    let addresses = vec!["10.9.0.1".into()];
    engine.pool("public", Some(AddressPoolSpec { addresses, ..AddressPoolSpec::default() }));
    engine.envoy_ready(&"envoy".into(), true);
    engine.envoy_connected(&"envoy".into(), 1);
    engine.lead(true);
    engine.complete();
    Ok(engine)
}

/// What the engine says to a Route for each of these hosts.
fn routes(engine: &mut Engine, layout: Layout, numbers: &[usize]) -> Result<Vec<Change>> {
    for number in numbers {
        let name = RouteName::new(SourceKind::Ingress, "shop", &format!("h{number}"))
            .context("a Route's name")?;
        let id = RouteId { tenant: "blue".parse()?, name };
        let meta = Meta { uid: id.to_string().into(), generation: 1, created: 0 };
        engine.route(id, meta, route(layout.host(*number), *number), None);
    }
    let mut changes = Vec::new();
    while let Some(step) = step(engine) {
        changes.extend(step.changes);
    }
    Ok(changes)
}

fn route(hostname: String, number: usize) -> RouteSpec {
    let redirect = RequestRedirect {
        hostname: Some(answer(number)),
        status_code: 302,
        ..RequestRedirect::default()
    };
    let filters = Filters { request_redirect: Some(redirect), ..Filters::default() };
    let rule = HttpRule {
        name: "/".into(),
        matches: vec![HttpMatch::default()],
        filters: filters.into(),
        ..HttpRule::default()
    };
    let (namespace, name, uid) = ("shop".into(), "any".into(), String::new());
    let source = Source { kind: SourceKind::Ingress, namespace, name, uid, created: 0 };
    RouteSpec {
        listeners: vec![Listener { name: "http".into(), protocol: Protocol::Http, port: 80 }],
        hosts: vec![Host { hostname, rules: vec![rule], ..Host::default() }],
        ..RouteSpec::new(source, "00")
    }
}
