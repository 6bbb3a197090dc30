//! Requests through the fleet, and through an Envoy with a configuration written by hand: the same program, workload
//! and client, in turns.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::figures::{DataPath, Spread};
use super::generate::Objects;
use super::measure::{Envoy, Process};
use super::probe::{Target, Wanted, is_whole, until};
use super::stage::{NODES, SHARE};
use crate::install::NAMESPACE;
use crate::local::{Local, net};
use crate::{cluster, images, topology};

/// Connections of the client, each with one request after another.
const CONNECTIONS: usize = 16;

const NAME: &str = "by-hand";

/// An Envoy of its own on the hub's first node; ended with this.
struct ByHand {
    target: Target,
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let delete = ["-n", NAMESPACE, "delete", "pod", NAME, "--now", "--wait=false"];
        // The clusters are taken down anyway.
        let _ = net::outside(|| cluster::kubectl(&Local, &topology::hub(), &delete));
    }
}

/// As short as it can be, for the one and the other layer.
fn config(target: &Target, http: bool) -> String {
    let node = NODES[0].1;
    let filter = if http {
        format!(
            r#"name: envoy.filters.network.http_connection_manager
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
            stat_prefix: x
            route_config: {{virtual_hosts: [{{name: x, domains: [{host:?}], routes: [{{match: {{prefix: /}}, route: {{cluster: x}}}}]}}]}}
            http_filters: [{{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]"#,
            host = target.host
        )
    } else {
        r#"name: envoy.filters.network.tcp_proxy
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
            stat_prefix: x
            cluster: x"#
            .to_owned()
    };
    format!(
        r"
static_resources:
  listeners:
  - address: {{socket_address: {{address: {ip}, port_value: {port}}}}}
    filter_chains:
    - filters:
        - {filter}
  clusters:
  - name: x
    type: STATIC
    load_assignment:
      cluster_name: x
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {node}, port_value: 20000}}}}}}}}]}}]
",
        ip = target.address.ip(),
        port = target.address.port(),
    )
}

impl ByHand {
    /// A pod beside the fleet's, with the same image and the same bounds on what it may do: what the kernel checks of
    /// each system call is a part of what a request costs.
    async fn start(ours: &Target, workers: u64, http: bool) -> Result<Self> {
        let address: SocketAddr = "172.18.0.11:9080".parse()?;
        let made = Self { target: Target { address, ..ours.clone() } };
        let image = images::all()?.envoy.reference;
        let arguments = ["--disable-hot-restart", "--log-level", "warning", "--config-yaml"];
        let mut arguments: Vec<_> = arguments.map(str::to_owned).into();
        arguments.push(config(&made.target, http));
        arguments.extend(["--concurrency".to_owned(), workers.to_string()]);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": {
                "nodeName": "hub-1", "hostNetwork": true, "terminationGracePeriodSeconds": 0,
                "securityContext": {"runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "envoy", "image": image, "imagePullPolicy": "IfNotPresent",
                    "command": ["/usr/local/bin/envoy"], "args": arguments,
                    "resources": {"requests": {"cpu": SHARE}},
                    "securityContext": {
                        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
                    },
                }],
            },
        });
        let pod = pod.to_string();
        net::outside(|| cluster::apply(&Local, &topology::hub(), &pod))?;
        until(&made.target, &Wanted::Good("port=")).await.context("Envoy by hand")?;
        Ok(made)
    }
}

/// One connection's requests until `end`: how long each took.
async fn requests(target: Target, end: Instant) -> Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(target.address).await?;
    stream.set_nodelay(true)?;
    let Target { host, path, .. } = &target;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let (mut samples, mut buffer) = (Vec::with_capacity(10_000), vec![0; 8_192]);
    while Instant::now() < end {
        let start = Instant::now();
        stream.write_all(request.as_bytes()).await?;
        let mut read = 0;
        loop {
            let count = stream.read(&mut buffer[read..]).await?;
            anyhow::ensure!(count > 0, "the connection was closed");
            read += count;
            if is_whole(&buffer[..read]) {
                let said = &buffer[..read];
                anyhow::ensure!(
                    said.starts_with(b"HTTP/1.1 200"),
                    "{}",
                    String::from_utf8_lossy(said)
                );
                break;
            }
        }
        samples.push(start.elapsed());
    }
    Ok(samples)
}

struct Round {
    per_second: f64,
    cpu_micros: f64,
    samples: Vec<Duration>,
}

async fn round(target: &Target, envoys: &[Process], seconds: u64) -> Result<Round> {
    let cpu = || envoys.iter().map(|one| Ok(one.cpu()?.all)).collect::<Result<Vec<Duration>>>();
    let (before, start) = (cpu()?, Instant::now());
    let end = start + Duration::from_secs(seconds);
    let all = (0..CONNECTIONS).map(|_| tokio::spawn(requests(target.clone(), end)));
    let mut samples = Vec::new();
    for one in all.collect::<Vec<_>>() {
        samples.extend(one.await??);
    }
    // The one that these requests lead to: the others of the fleet have nothing to do.
    let spent = cpu()?.into_iter().zip(before).map(|(now, was)| now.saturating_sub(was)).max();
    let (spent, count) = (spent.unwrap_or_default(), samples.len() as f64);
    let per_second = count / start.elapsed().as_secs_f64();
    Ok(Round { per_second, cpu_micros: spent.as_secs_f64() * 1e6 / count, samples })
}

fn median(rounds: &[Round], of: impl Fn(&Round) -> f64) -> f64 {
    let mut all: Vec<f64> = rounds.iter().map(of).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Measures both, in turns.
pub(super) async fn measure(objects: &Objects, workers: u64, quick: bool) -> Result<DataPath> {
    let ours = objects.target(0)?;
    let by_hand = ByHand::start(&ours, workers, ours.address.port() == 80).await?;
    let fleet: Vec<_> = Envoy::fleet().into_iter().map(|envoy| envoy.0).collect();
    let other = Envoy::others();
    let (count, seconds) = if quick { (3, 2) } else { (7, 3) };
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for _ in 0..count {
        first.push(round(&ours, &fleet, seconds).await?);
        second.push(round(&by_hand.target, &other, seconds).await?);
    }
    let latency = |rounds: &[Round]| {
        Spread::of(&rounds.iter().flat_map(|one| one.samples.iter().copied()).collect::<Vec<_>>())
    };
    let pair = |of: fn(&Round) -> f64| (median(&first, of), median(&second, of));
    Ok(DataPath {
        requests_per_second: pair(|one| one.per_second),
        cpu_micros: pair(|one| one.cpu_micros),
        latency: (latency(&first), latency(&second)),
    })
}
