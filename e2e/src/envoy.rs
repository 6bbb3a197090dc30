//! A real Envoy by itself, and an xDS server in this process that tells it what to do.
//!
//! They meet at sockets in a folder. Envoy has a network of its own, so root is needed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, Pipe, address,
};
use envoy_types::pb::google::protobuf::Any;
use fairlead_process::locks::lock;
use fairlead_xds::{Cache, Event, Observer, Outcome, Server};
use http::Extensions;
use prost::{Message, Name};
use tokio::io::DuplexStream;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::binaries;
use crate::say::say;

/// An Envoy and its xDS server; both end with it.
#[derive(Debug)]
pub struct Envoy {
    /// What it is given.
    pub cache: Arc<Cache>,
    folder: PathBuf,
    process: Child,
    /// The xDS server, and what accepts connections.
    tasks: [JoinHandle<()>; 2],
    connections: Arc<Mutex<JoinSet<()>>>,
}

impl Envoy {
    /// Starts one with one worker, on the runtime that this is called on. `name`: of its folder. `more`: arguments.
    pub fn start<O: Observer>(name: &str, observer: O, more: &[&str]) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("fairlead-{name}-{}", std::process::id()));
        // What one with this name left behind.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        let cache = Arc::new(Cache::default());
        cache.complete();
        let server = Server::new(cache.clone(), Arc::new(observer));
        let (accepted, incoming) = mpsc::channel(1);
        let connections = Arc::default();
        let accepting =
            accept(UnixListener::bind(folder.join("xds"))?, accepted, Arc::clone(&connections));
        let serving = tonic::transport::Server::builder().add_service(server);
        let serving = async move {
            if let Err(error) = serving.serve_with_incoming(ReceiverStream::new(incoming)).await {
                say(&format!("the xDS server ended: {error}"));
            }
        };
        let tasks = [tokio::spawn(accepting), tokio::spawn(serving)];
        let config = folder.join("envoy.yaml");
        std::fs::write(&config, bootstrap(&folder))?;
        let process = Command::new("unshare")
            .args(["--net", "--"])
            .arg(binaries::envoy()?)
            .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"])
            .args(more)
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("envoy.log"))?)
            .spawn()
            .context("Envoy needs a network of its own: run this as root")?;
        Ok(Self { cache, folder, process, tasks, connections })
    }

    /// A file, or a socket, of its folder; `admin` is where it says what it counts.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Breaks its connection to the xDS server; it makes another.
    pub fn disconnect(&self) {
        lock(&self.connections).abort_all();
    }

    /// Its process: `unshare` becomes Envoy.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read(self.file("envoy.log")).unwrap_or_default();
            let end = log.len().saturating_sub(20_000);
            eprintln!("the end of Envoy's log:\n{}", String::from_utf8_lossy(&log[end..]));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.tasks.iter().for_each(JoinHandle::abort);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Accepts connections, and carries what is said on them until they are to break.
async fn accept(
    listener: UnixListener,
    accepted: mpsc::Sender<std::io::Result<DuplexStream>>,
    connections: Arc<Mutex<JoinSet<()>>>,
) {
    while let Ok((mut envoy, _)) = listener.accept().await {
        let (mut here, there) = tokio::io::duplex(64 * 1_024);
        if accepted.send(Ok(there)).await.is_err() {
            return;
        }
        let carry = async move {
            // However it ends: Envoy connects again.
            let _ = tokio::io::copy_bidirectional(&mut envoy, &mut here).await;
        };
        let mut connections = lock(&connections);
        while connections.try_join_next().is_some() {}
        connections.spawn(carry);
    }
}

/// Lets everybody in, and says what is not taken.
#[derive(Debug)]
pub struct Everybody;

impl Observer for Everybody {
    type Client = ();

    fn admit(&self, _: &Extensions, _: &str) -> Result<(), Status> {
        Ok(())
    }

    fn observe(&self, (): &(), events: Vec<Event>) {
        for event in events {
            if let Outcome::Rejected(_, why) = event.outcome {
                say(&format!("Envoy does not take {}: {why}", event.key));
            }
        }
    }
}

/// Lets everybody in, and passes on what is said.
#[derive(Debug)]
pub struct Listen(pub mpsc::UnboundedSender<Vec<Event>>);

impl Observer for Listen {
    type Client = ();

    fn admit(&self, _: &Extensions, _: &str) -> Result<(), Status> {
        Ok(())
    }

    fn observe(&self, (): &(), events: Vec<Event>) {
        let _ = self.0.send(events);
    }
}

/// A message with its type.
pub fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// What comes by the stream that everything comes by.
pub fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}

/// A socket in the file system.
pub fn pipe(path: String) -> Address {
    Address { address: Some(address::Address::Pipe(Pipe { path, ..Pipe::default() })) }
}

fn bootstrap(folder: &Path) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    format!(
        "
node: {{id: envoy-1, cluster: alone}}
admin: {{address: {{pipe: {{path: {admin}}}}}}}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]
  cds_config: {{ads: {{}}, resource_api_version: V3}}
  lds_config: {{ads: {{}}, resource_api_version: V3}}
layered_runtime:
  layers:
  - name: fairlead
    static_layer: {{re2.max_program_size.error_level: 1000}}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    connect_timeout: 2s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: xds
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: {xds}}}}}}}}}]}}]
",
        admin = at("admin"),
        xds = at("xds"),
    )
}
