//! Wiring.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use envoy_types::pb::envoy::service::health::v3::health_discovery_service_server::HealthDiscoveryServiceServer;
use fairlead_process::tls::Files;
use fairlead_process::{lease, logs, metrics, probes, shutdown, tls};
use fairlead_proto::MAX_MESSAGE_BYTES;
use fairlead_proto::v1::hub_server::HubServer;
use fairlead_xds::Cache;
use kube::Client;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::transport::Server;
use tracing::info;

use crate::Args;
use crate::agent_api::{AgentApi, Sessions};
use crate::checkers::{self, Checkers};
use crate::conduct::Conductor;
use crate::fleet::Fleet;
use crate::hub::Hub;
use crate::records::Records;
use crate::tenants::Tenants;
use crate::watch;

/// What an Envoy says of all that it checks, at once.
const MAX_REPORT_BYTES: usize = 16 << 20;
/// Observations that wait for the engine.
const OBSERVED: usize = 1_024;

impl Args {
    /// Runs the manager until it is told to stop.
    pub async fn run(self) -> Result<()> {
        logs::init(&self.logs)?;
        let stop = shutdown::on_signal()?;
        let client = Client::try_default().await.context("no access to the hub's apiserver")?;
        let files = Files::new(&self.tls);
        let (mut registry, stages) = metrics::registry();
        let readiness = probes::Readiness::default();
        let unread = readiness.wait_for("the hub's objects");

        let (leadership, standing) = lease::run(
            client.clone(),
            &self.namespace,
            "fairlead-manager",
            self.name.clone(),
            stop.clone(),
        );
        let (cache, records) = (Arc::new(Cache::default()), Arc::new(Records::default()));
        let (sessions, hub) = (
            Arc::new(Sessions::default()),
            Hub::new(client.clone(), &self.namespace, &self.envoy_selector),
        );
        register(&mut registry, &sessions);

        let (observe, observed) = mpsc::channel(OBSERVED);
        let (say, said) = mpsc::unbounded_channel();
        let (find, checked) = mpsc::unbounded_channel();
        let checkers = Arc::new(Checkers::new(find));
        watch::all(&client, &self.namespace, &self.envoy_selector, &observe);
        let conductor = Conductor::new(
            hub.clone(),
            cache.clone(),
            checkers.clone(),
            records.clone(),
            leadership.clone(),
            stages.clone(),
            unread,
        );
        let tenants = Tenants {
            hub: hub.clone(),
            records: records.clone(),
            sessions: sessions.clone(),
            leadership,
        };

        let api = AgentApi { hub, records, sessions, stages, stop: stop.clone() };
        let agents = HubServer::new(api)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let envoys = fairlead_xds::Server::new(cache, Arc::new(Fleet::new(say)));
        let listen = |address| async move {
            TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))
        };
        let trust = || self.trust_domain.clone();
        let from_agents =
            tls::accept(listen(self.agent_address).await?, files.clone(), trust(), stop.clone())?;
        let from_envoys =
            tls::accept(listen(self.xds_address).await?, files, trust(), stop.clone())?;
        info!(agents = %self.agent_address, xds = %self.xds_address, "serving");

        // Each runs until `stop`; one that ends before ends the process.
        let mut tasks: JoinSet<Result<&'static str>> = JoinSet::new();
        tasks.spawn(async move {
            conductor.run(observed, said, checked).await;
            Ok("engine")
        });
        tasks.spawn(async move {
            tenants.run().await;
            Ok("tenants")
        });
        let stopped = stop.clone();
        tasks.spawn(async move {
            let ended = stopped.cancelled_owned();
            server().add_service(agents).serve_with_incoming_shutdown(from_agents, ended).await?;
            Ok("agent API")
        });
        let stopped = stop.clone();
        tasks.spawn(async move {
            let ended = stopped.cancelled_owned();
            let health = HealthDiscoveryServiceServer::new(checkers::Service(checkers))
                .max_decoding_message_size(MAX_REPORT_BYTES);
            let server = server().add_service(envoys).add_service(health);
            server.serve_with_incoming_shutdown(from_envoys, ended).await?;
            Ok("xDS")
        });
        tasks.spawn({
            let (address, stop) = (self.probe_address, stop.clone());
            async move {
                probes::serve(address, registry, readiness, stop).await?;
                Ok("probes")
            }
        });
        tokio::select! {
            () = stop.cancelled() => {}
            Some(ended) = tasks.join_next() => {
                stop.cancel();
                let what = ended??;
                bail!("{what} ended");
            }
        }
        // The lease is let go, so that another manager takes over at once.
        standing.await?;
        Ok(())
    }
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(15)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .max_concurrent_streams(16)
}

fn register(registry: &mut Registry, sessions: &Sessions) {
    registry.register("agents_connected", "Agents with a stream open", sessions.count.clone());
    let version: ConstGauge<i64> = ConstGauge::new(1);
    let labels = [("version".into(), env!("CARGO_PKG_VERSION").into())].into_iter();
    registry.sub_registry_with_labels(labels).register(
        "build_info",
        "The version of this program",
        version,
    );
}
