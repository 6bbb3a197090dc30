//! Wiring.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use envoy_types::pb::envoy::service::health::v3::health_discovery_service_server::HealthDiscoveryServiceServer;
use fairlead_core::Engine;
use fairlead_process::tls::{Connection, ServerTls};
use fairlead_process::{apiserver, lease, logs, metrics, probes, shutdown, tls};
use fairlead_proto::MAX_MESSAGE_BYTES;
use fairlead_proto::v1::hub_server::HubServer;
use fairlead_xds::Cache;
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::ListParams;
use kube::{Api, Client};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tower::layer::util::{Identity, Stack};
use tracing::{info, warn};

use crate::Args;
use crate::agent_api::{AgentApi, Sessions};
use crate::checkers::{self, Checkers};
use crate::conduct::{Around, Conductor};
use crate::fleet::Fleet;
use crate::hub::Hub;
use crate::identity::{AllowList, Gate, Identities};
use crate::records::Records;
use crate::shares::Shares;
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
        let client = apiserver::client("fairlead-manager").await?;
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
        let sessions = Arc::new(Sessions::default());
        let hub = Hub::new(client.clone(), &self.namespace, &self.envoy_selector);
        let identities = Identities::start(&client, &self).await?;
        let allowed = identities.allowed.clone();
        let gate = Gate::default();
        let refused = gate.refused.clone();
        register(&mut registry, &sessions, &allowed, &gate);

        let (observe, observed) = mpsc::channel(OBSERVED);
        let (say, said) = mpsc::unbounded_channel();
        let (find, checked) = mpsc::unbounded_channel();
        let checkers = Arc::new(Checkers::new(find));
        watch::all(&client, &self.namespace, &self.envoy_selector, &observe);
        let around = Around {
            hub: hub.clone(),
            cache: cache.clone(),
            checkers: checkers.clone(),
            records: records.clone(),
            allowed: allowed.clone(),
            leadership: leadership.clone(),
            stages: stages.clone(),
        };
        let conductor = Conductor::new(self.engine(&client).await?, around, unread);
        let shares = Arc::<Shares>::default();
        let tenants = Tenants {
            client,
            hub: hub.clone(),
            records: records.clone(),
            sessions: sessions.clone(),
            allowed,
            shares: shares.clone(),
            leadership: leadership.clone(),
        };
        let (life, end) = (self.life(), stop.clone());
        let events = identities.events.clone();
        let agents = bounded(AgentApi {
            hub,
            records,
            sessions,
            shares,
            stages,
            events,
            refused,
            life,
            stop: end,
        });
        let (from_agents, from_envoys) = self.accept(&identities, &stop).await?;
        let for_agents =
            server(gate.clone(), life).add_service(agents).add_service(identities.server());
        let envoys = fairlead_xds::Server::new(cache, Arc::new(Fleet::new(say)));
        let health = HealthDiscoveryServiceServer::new(checkers::Service(checkers))
            .max_decoding_message_size(MAX_REPORT_BYTES);
        let for_envoys = server(gate, life).add_service(envoys).add_service(health);

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
        tasks.spawn(async move {
            Box::pin(identities.keep(leadership)).await;
            Ok("certificates")
        });
        let ended = stop.clone().cancelled_owned();
        tasks.spawn(async move {
            for_agents.serve_with_incoming_shutdown(from_agents, ended).await?;
            Ok("agent API")
        });
        let ended = stop.clone().cancelled_owned();
        tasks.spawn(async move {
            for_envoys.serve_with_incoming_shutdown(from_envoys, ended).await?;
            Ok("xDS")
        });
        let (address, ended) = (self.probe_address, stop.clone());
        tasks.spawn(async move {
            probes::serve(address, registry, readiness, ended).await?;
            Ok("probes")
        });
        until_one_ends(&mut tasks, &stop).await?;
        // The lease is let go, so that another manager takes over at once.
        standing.await?;
        Ok(())
    }
}

/// Waits until the process is told to stop. A task that ends before ends the others as well.
async fn until_one_ends(
    tasks: &mut JoinSet<Result<&'static str>>,
    stop: &CancellationToken,
) -> Result<()> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        Some(ended) = tasks.join_next() => {
            stop.cancel();
            let what = ended??;
            bail!("{what} ended");
        }
    }
}

type Incoming = ReceiverStream<std::io::Result<Connection>>;

impl Args {
    /// How long a connection lives at most.
    pub(crate) fn life(&self) -> Duration {
        Duration::from_secs(self.connection_seconds)
    }

    /// The engine, with the ranges that no tenant's node may be in. Those of the hub's Services are read once: they
    /// hardly ever change.
    async fn engine(&self, client: &Client) -> Result<Engine> {
        let mut engine = Engine::default();
        engine.forbid(self.refused_cidrs.iter().flatten().copied().collect());
        let ranges = match Api::<ServiceCIDR>::all(client.clone())
            .list(&ListParams::default())
            .await
        {
            Ok(list) => list.items,
            Err(kube::Error::Api(status)) if status.code == 404 => {
                warn!(
                    "before Kubernetes 1.33 the hub does not tell the ranges of its Services: name them in refusedCIDRs"
                );
                Vec::new()
            }
            Err(error) => return Err(error).context("reading the ranges of the hub's Services"),
        };
        let ranges = ranges.into_iter().filter_map(|range| range.spec?.cidrs).flatten();
        engine.hub_network("manager", self.pod_ips.iter().copied().map(IpNet::from).collect());
        engine.hub_network("Services", ranges.filter_map(|text| text.parse().ok()).collect());
        Ok(engine)
    }

    /// Listens for agents and for Envoys. Whoever comes before everything was read waits.
    async fn accept(
        &self,
        identities: &Identities,
        stop: &CancellationToken,
    ) -> Result<(Incoming, Incoming)> {
        let Identities { pki, allowed, .. } = identities;
        let listen = |address| async move {
            TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))
        };
        let accept = |listener, tls: &ServerTls| {
            tls::accept(listener, tls.clone(), allowed.clone(), allowed.read.clone(), stop.clone())
        };
        let from_agents = accept(listen(self.agent_address).await?, &pki.agents);
        let from_envoys = accept(listen(self.xds_address).await?, &pki.envoys);
        info!(agents = %self.agent_address, xds = %self.xds_address, "serving");
        Ok((from_agents, from_envoys))
    }
}

/// What agents speak to, with messages no larger than they may be.
fn bounded(api: AgentApi) -> HubServer<AgentApi> {
    HubServer::new(api)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// What a client may have under way that was not read: bounds what it costs.
const STREAMS: u32 = 8;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;
const HEADER_BYTES: u32 = 16 << 10;
/// A client that has said nothing for so long is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// One that has not answered for so long is gone. An Envoy that takes thousands of listeners at once on a busy node is
/// silent for seconds; to close its connection makes it begin again.
const SILENCE: Duration = Duration::from_secs(20);

/// A connection is asked to end after four fifths of `life` (tonic makes that 10 % more or less), and is closed
/// a tenth of it later.
fn server(gate: Gate, life: Duration) -> Server<Stack<Gate, Identity>> {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(SILENCE))
        .max_connection_age(life * 4 / 5)
        .max_connection_age_grace(life / 10)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(HEADER_BYTES)
        .layer(gate)
}

fn register(registry: &mut Registry, sessions: &Sessions, allowed: &AllowList, gate: &Gate) {
    let help = "Connections that were not let in";
    registry.register("connections_refused", help, allowed.refused.clone());
    let help = "Calls of methods that are not the caller's";
    registry.register("calls_refused", help, gate.denied.clone());
    let help = "Calls that got an error for what was asked, by method and gRPC status";
    registry.register("requests_refused", help, gate.refused.0.clone());
    registry.register("agents_connected", "Agents with a stream open", sessions.count.clone());
    let version: ConstGauge<i64> = ConstGauge::new(1);
    let labels = [("version".into(), env!("CARGO_PKG_VERSION").into())].into_iter();
    registry.sub_registry_with_labels(labels).register(
        "build_info",
        "The version of this program",
        version,
    );
}
