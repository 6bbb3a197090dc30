//! Another tenant that changes something a hundred times a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_process::token::Token;
use tokio::time::MissedTickBehavior;

use super::figures::{Neighbour, Spread};
use super::generate::{Change, Objects, Seeded};
use super::{measure, one_change};
use crate::local::{Local, net};
use crate::peer::{Agent, Stream, tcp};
use crate::topology::{self, POOL};
use crate::{cluster, install, run};

/// Its Routes, each changed once a second.
const ROUTES: u16 = 100;
const NODE: &str = "172.18.0.43";

/// Quiet and noisy take turns: what the apiservers do now and then is in both.
const TURNS: usize = 4;

/// Changes of the tenant, one after another.
async fn propagation(
    objects: &mut Objects,
    seeded: &mut Seeded,
    count: usize,
) -> Result<Vec<Duration>> {
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        samples.push(one_change(objects, seeded, Change::Endpoints).await?);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    Ok(samples)
}

/// Whether there is noise, and how many changes it was.
#[derive(Default)]
struct Noise {
    on: AtomicBool,
    over: AtomicBool,
    sent: AtomicU64,
}

impl Noise {
    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn set(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    /// Changes the neighbour's Routes in turn while it is on.
    async fn make(self: Arc<Self>, mut stream: Stream) -> Result<()> {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut number: u64 = 0;
        while !self.over.load(Ordering::Relaxed) {
            tokio::select! {
                // What the hub says is read, as by any agent.
                message = stream.receive.message() => drop(message?.context("the hub closed")?),
                _ = tick.tick(), if self.on.load(Ordering::Relaxed) => {
                    let route = u16::try_from(number % u64::from(ROUTES))?;
                    let node_port = 30_000 + u16::try_from(number / u64::from(ROUTES) % 2)?;
                    let spec = tcp(&format!("n{route}"), POOL, 64_000 + route, node_port);
                    stream.put(&spec).await?;
                    number += 1;
                    self.sent.fetch_add(1, Ordering::Relaxed);
                }
                // Looks again whether it is on.
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
        Ok(())
    }
}

/// Measures the tenant's propagation beside a quiet and a noisy neighbour.
pub(super) async fn measure(
    objects: &mut Objects,
    seeded: &mut Seeded,
    count: usize,
) -> Result<Neighbour> {
    let cidr = format!("{NODE}/32");
    let add = ["tenant", "add", "loud", "--node-cidr", &cidr, "--pool", POOL];
    let join = ["--hub-address", "x:1", "--token-only"];
    let token = net::outside(|| install::fairlead(&Local, &[&add[..], &join[..]].concat()))?;
    let token: Token = token.trim().parse().map_err(|error| anyhow::anyhow!("{error}"))?;
    net::outside(|| {
        run::wait_for("the neighbour's namespace", Duration::from_secs(30), || {
            cluster::kubectl(&Local, &topology::hub(), &["get", "namespace", "tenant-loud"])
        })
    })?;
    let agent = Agent::join(&token).await?;
    let stream = agent.stream().await?;
    stream.nodes(&[NODE.to_owned()]).await?;
    let noise = Arc::new(Noise::default());
    let making = tokio::spawn(noise.clone().make(stream));
    // Its Routes are made first; what is measured is their change.
    noise.set(true);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (mut quiet, mut noisy) = (Vec::new(), Vec::new());
    let (mut changes, mut seconds, mut bytes) = (0, 0.0, 0.0);
    for _ in 0..TURNS {
        noise.set(false);
        super::quiet().await?;
        quiet.extend(propagation(objects, seeded, count / TURNS).await?);
        noise.set(true);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (start, sent, received) = (Instant::now(), noise.sent(), measure::received()?);
        noisy.extend(propagation(objects, seeded, count / TURNS).await?);
        seconds += start.elapsed().as_secs_f64();
        changes += noise.sent() - sent;
        bytes += measure::received()? - received;
    }
    let each = bytes / changes as f64;
    ensure!(each > 50.0, "the neighbour's changes reach no Envoy: {each:.0} bytes each");
    noise.over.store(true, Ordering::Relaxed);
    making.await??;
    net::outside(|| install::fairlead(&Local, &["tenant", "remove", "loud", "--yes"]))?;
    let rate = changes as f64 / seconds;
    Ok(Neighbour { rate, quiet: Spread::of(&quiet), noisy: Spread::of(&noisy) })
}
