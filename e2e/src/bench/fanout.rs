//! One change for 1, 10 and 100 xDS clients: a resource is encoded once, whatever their number.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use fairlead_xds::{Cache, Change, Key, Resource, ResourceType, Server};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use super::figures::{FanOut, Spread};
use super::measure::spent;
use crate::envoy::Everybody;

const METHOD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Resources that are there.
const CLUSTERS: usize = 10_000;

fn cluster(index: usize, version: usize) -> Change {
    let name = format!("c{index}");
    let alt_stat_name = format!("v{version}");
    let cluster = Cluster { name: name.clone(), alt_stat_name, ..Cluster::default() };
    Resource::new(Key::new(ResourceType::Cluster, name), &cluster, []).into()
}

/// The server, on a thread of its own, whose CPU time is its own then.
struct Hub {
    cache: Arc<Cache>,
    address: std::net::SocketAddr,
    thread: i32,
}

impl Hub {
    fn start() -> Result<Self> {
        let cache = Arc::new(Cache::default());
        cache.publish((0..CLUSTERS).map(|index| cluster(index, 0)).collect());
        cache.complete();
        let (told, at) = blocking::channel();
        let served = cache.clone();
        std::thread::spawn(move || {
            let serve = async {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                told.send((listener.local_addr()?, nix::unistd::gettid().as_raw()))?;
                let server = Server::new(served, Arc::new(Everybody));
                let incoming = TcpListenerStream::new(listener);
                let mut builder = tonic::transport::Server::builder().tcp_nodelay(true);
                builder.add_service(server).serve_with_incoming(incoming).await?;
                Ok::<_, anyhow::Error>(())
            };
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve)
        });
        let (address, thread) = at.recv()?;
        Ok(Self { cache, address, thread })
    }

    fn cpu(&self) -> Result<Duration> {
        spent(Path::new(&format!("/proc/self/task/{}", self.thread)))
    }
}

/// One client: acknowledges all, and tells of each resource.
async fn client(address: std::net::SocketAddr, seen: mpsc::UnboundedSender<usize>) -> Result<()> {
    let channel = Channel::from_shared(format!("http://{address}"))?.connect().await?;
    let mut grpc = Grpc::new(channel).max_decoding_message_size(64 << 20);
    grpc.ready().await?;
    let (send, requests) = mpsc::channel(16);
    let first = DeltaDiscoveryRequest {
        node: Some(Node { id: "bench".into(), ..Node::default() }),
        type_url: ResourceType::Cluster.url().into(),
        ..DeltaDiscoveryRequest::default()
    };
    send.send(first).await?;
    let codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default();
    let request = tonic::Request::new(ReceiverStream::new(requests));
    let answer = grpc.streaming(request, PathAndQuery::from_static(METHOD), codec).await?;
    let mut responses = answer.into_inner();
    while let Some(response) = responses.message().await? {
        let count = response.resources.len();
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        send.send(ack).await?;
        if seen.send(count).is_err() {
            break;
        }
    }
    Ok(())
}

async fn with_clients(hub: &Hub, clients: usize, changes: usize) -> Result<FanOut> {
    let (seen, mut told) = mpsc::unbounded_channel();
    let tasks: Vec<_> =
        (0..clients).map(|_| tokio::spawn(client(hub.address, seen.clone()))).collect();
    drop(seen);
    let mut all = 0;
    while all < clients * CLUSTERS {
        all += told.recv().await.context("a client ended")?;
    }
    let before = hub.cpu()?;
    let mut samples = Vec::with_capacity(changes);
    for version in 1..=changes {
        let start = Instant::now();
        hub.cache.publish(vec![cluster(version % CLUSTERS, version * 1_000 + clients)]);
        for _ in 0..clients {
            told.recv().await.context("a client ended")?;
        }
        samples.push(start.elapsed());
    }
    let spent = hub.cpu()?.saturating_sub(before);
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    let each = spent.as_secs_f64() * 1e6 / (changes * clients) as f64;
    Ok(FanOut { clients, millis: Spread::of(&samples), cpu_micros_each: each })
}

/// Measures with 1, 10 and 100 clients.
pub(super) fn measure(quick: bool) -> Result<Vec<FanOut>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let changes = if quick { 100 } else { 300 };
    runtime.block_on(async {
        let mut all = Vec::new();
        for clients in [1, 10, 100] {
            // Anew each time: nobody else is connected.
            all.push(with_clients(&Hub::start()?, clients, changes).await?);
        }
        Ok(all)
    })
}
