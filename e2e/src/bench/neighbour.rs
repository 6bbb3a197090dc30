//! Another tenant that changes something a hundred times a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_process::token::Token;

use super::figures::{Neighbour, Spread};
use super::generate::{Change, Objects, Seeded};
use super::measure::received;
use super::one_change;
use crate::local::{Local, net};
use crate::peer::{Agent, Stream, tcp};
use crate::topology::{self, POOL};
use crate::{cluster, install, run};

/// Its Routes, each changed once a second.
const ROUTES: u16 = 100;
const NODE: &str = "172.18.0.43";

/// Changes of the tenant, one after another.
async fn propagation(objects: &mut Objects, seeded: &mut Seeded, count: usize) -> Result<Spread> {
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        samples.push(one_change(objects, seeded, Change::Endpoints).await?);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    Ok(Spread::of(&samples))
}

/// Changes its Routes in turn, until it is told to stop.
async fn noise(mut stream: Stream, stop: Arc<AtomicBool>, sent: Arc<AtomicU64>) -> Result<()> {
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let mut number: u64 = 0;
    while !stop.load(Ordering::Relaxed) {
        tokio::select! {
            // What the hub says is read, as by any agent.
            message = stream.receive.message() => drop(message?.context("the hub closed")?),
            _ = tick.tick() => {
                let route = u16::try_from(number % u64::from(ROUTES))?;
                let node_port = 30_000 + u16::try_from(number / u64::from(ROUTES) % 2)?;
                let spec = tcp(&format!("n{route}"), POOL, 64_000 + route, node_port);
                stream.put(&spec).await?;
                number += 1;
                sent.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(())
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
    let quiet = propagation(objects, seeded, count).await?;
    let (stop, sent) = <(Arc<AtomicBool>, Arc<AtomicU64>)>::default();
    let noise = tokio::spawn(noise(stream, stop.clone(), sent.clone()));
    // Its Routes are made first; what is measured is their change.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let bytes = received()?;
    let (start, before) = (Instant::now(), sent.load(Ordering::Relaxed));
    let noisy = propagation(objects, seeded, count).await?;
    let rate = (sent.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
    let each = (received()? - bytes) / rate / start.elapsed().as_secs_f64();
    ensure!(each > 50.0, "the neighbour's changes reach no Envoy: {each:.0} bytes each");
    stop.store(true, Ordering::Relaxed);
    noise.await??;
    net::outside(|| install::fairlead(&Local, &["tenant", "remove", "loud", "--yes"]))?;
    Ok(Neighbour { rate, quiet, noisy })
}
