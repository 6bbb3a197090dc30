//! Requests through the fleet, and through an Envoy with a configuration written by hand: the same program, workload
//! and client, in turns.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::figures::{DataPath, Spread};
use super::generate::{Layout, Objects};
use super::measure::{Envoy, Process};
use super::probe::{Target, Wanted, is_whole, until};
use super::stage::{NODES, SHARE};
use crate::install::NAMESPACE;
use crate::local::{Local, net};
use crate::{cluster, images, paths, topology};

/// Connections of the client, each with one request after another.
const CONNECTIONS: usize = 16;

const NAME: &str = "by-hand";
/// What it may take to be ready, with thousands of listeners.
const START: Duration = Duration::from_secs(180);

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

/// As short as it can be, with as many listeners, host names and Clusters as the fleet has: what an Envoy has to look
/// through for a request, and what it does at rest, is a part of what a request costs. Only the listener at `target` is
/// asked.
fn config(target: &Target, objects: &Objects) -> Result<Value> {
    let others = objects.all().skip(1).map(|index| objects.target(index));
    let others = others.collect::<Result<Vec<_>>>()?;
    let all: Vec<_> = std::iter::once(target).chain(&others).collect();
    let listeners = match objects.layout() {
        Layout::Hosts => vec![listener(target.address, &hosts(&all))],
        Layout::Layer4 => {
            // At an address of the node's own: nobody asks there.
            let aside = |port| SocketAddr::from(([127, 0, 0, 2], port));
            let first = listener(target.address, &proxy(0));
            let rest = (1..).zip(&others);
            let rest = rest.map(|(n, one)| listener(aside(one.address.port()), &proxy(n)));
            std::iter::once(first).chain(rest).collect()
        }
    };
    let clusters: Vec<_> = (0..all.len()).map(backend).collect();
    Ok(json!({"static_resources": {"listeners": listeners, "clusters": clusters}}))
}

fn listener(address: SocketAddr, filter: &Value) -> Value {
    json!({
        "address": {"socket_address": {"address": address.ip(), "port_value": address.port()}},
        "filter_chains": [{"filters": [filter]}],
    })
}

fn backend(number: usize) -> Value {
    let socket = json!({"address": NODES[0].1, "port_value": 20_000});
    let endpoint = json!({"endpoint": {"address": {"socket_address": socket}}});
    let endpoints = json!([{"lb_endpoints": [endpoint]}]);
    let name = format!("x{number}");
    json!({
        "name": name, "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    })
}

/// A host name to each Cluster.
fn hosts(all: &[&Target]) -> Value {
    let host = |(number, target): (usize, &&Target)| {
        let name = format!("x{number}");
        let route = json!({"match": {"prefix": "/"}, "route": {"cluster": name}});
        json!({"name": name, "domains": [target.host], "routes": [route]})
    };
    let hosts: Vec<_> = all.iter().enumerate().map(host).collect();
    let router = extension("http.router.v3.Router", json!({}));
    let manager = json!({
        "stat_prefix": "x",
        "route_config": {"virtual_hosts": hosts},
        "http_filters": [{"name": "router", "typed_config": router}],
    });
    filter("network.http_connection_manager.v3.HttpConnectionManager", manager)
}

fn proxy(number: usize) -> Value {
    let proxy = json!({"stat_prefix": "x", "cluster": format!("x{number}")});
    filter("network.tcp_proxy.v3.TcpProxy", proxy)
}

fn filter(kind: &str, content: Value) -> Value {
    json!({"name": kind, "typed_config": extension(kind, content)})
}

fn extension(kind: &str, mut content: Value) -> Value {
    content["@type"] = format!("type.googleapis.com/envoy.extensions.filters.{kind}").into();
    content
}

impl ByHand {
    /// A pod beside the fleet's, with the same image and the same bounds on what it may do: what the kernel checks of
    /// each system call is a part of what a request costs.
    async fn start(ours: &Target, workers: u64, objects: &Objects) -> Result<Self> {
        let address: SocketAddr = "172.18.0.11:9080".parse()?;
        let made = Self { target: Target { address, ..ours.clone() } };
        let image = images::all()?.envoy.reference;
        // More than a ConfigMap, or an argument, has room for.
        let file = paths::state().join("by-hand.json");
        std::fs::write(&file, config(&made.target, objects)?.to_string())?;
        let workers = workers.to_string();
        let arguments = [
            ["--log-level", "warning"],
            ["--config-path", "/by-hand.json"],
            ["--concurrency", &workers],
        ];
        let arguments = [&["--disable-hot-restart"][..], arguments.as_flattened()].concat();
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
                    "volumeMounts": [{"name": "config", "mountPath": "/by-hand.json", "readOnly": true}],
                    "securityContext": {
                        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
                    },
                }],
                "volumes": [{"name": "config", "hostPath": {"path": file, "type": "File"}}],
            },
        });
        let pod = pod.to_string();
        net::outside(|| cluster::apply(&Local, &topology::hub(), &pod))?;
        // It listens once it has read all of it.
        let listens = async { while until(&made.target, &Wanted::Good("port=")).await.is_err() {} };
        tokio::time::timeout(START, listens).await.context("Envoy by hand")?;
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
    let by_hand = ByHand::start(&ours, workers, objects).await?;
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
