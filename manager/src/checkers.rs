//! Envoy's Health Discovery Service: Envoys are told what to check, and tell what they found.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use envoy_types::pb::envoy::config::core::v3::address::Address;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{HealthStatus, SocketAddress};
use envoy_types::pb::envoy::service::health::v3::health_check_request_or_endpoint_health_response::RequestType;
use envoy_types::pb::envoy::service::health::v3::health_discovery_service_server::HealthDiscoveryService;
use envoy_types::pb::envoy::service::health::v3::{
    EndpointHealth, EndpointHealthResponse, HealthCheckRequestOrEndpointHealthResponse as Said,
    HealthCheckSpecifier,
};
use fairlead_core::fleet::EnvoyId;
use fairlead_core::health::{Endpoint, Report};
use fairlead_process::locks::lock;
use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;

use crate::fleet::admitted;

/// What an Envoy that checks did.
#[derive(Debug)]
pub(crate) enum Checked {
    /// It can be asked.
    Connected(EnvoyId),
    /// It can be asked no more.
    Disconnected(EnvoyId),
    /// What it found.
    Found(EnvoyId, Report),
}

/// What an Envoy was told to check last; `None`: nothing yet.
type Told = Option<HealthCheckSpecifier>;

/// The stream of one Envoy.
#[derive(Debug)]
struct Checker {
    number: u64,
    tell: watch::Sender<Told>,
    /// What it says next counts, though it says the same as before: what was known of it may be forgotten.
    told_anew: Arc<AtomicBool>,
}

/// The Envoys that can be asked, and what each is to check.
#[derive(Debug)]
pub(crate) struct Checkers {
    to: mpsc::UnboundedSender<Checked>,
    streams: Mutex<HashMap<EnvoyId, Checker>>,
    count: AtomicU64,
}

impl Checkers {
    pub(crate) fn new(to: mpsc::UnboundedSender<Checked>) -> Self {
        Self { to, streams: Mutex::default(), count: AtomicU64::new(0) }
    }

    /// Tells an Envoy what to check from now on.
    pub(crate) fn ask(&self, envoy: &EnvoyId, specifier: HealthCheckSpecifier) {
        if let Some(checker) = lock(&self.streams).get(envoy) {
            checker.tell.send_replace(Some(specifier));
            checker.told_anew.store(true, Ordering::Relaxed);
        }
    }

    /// A stream of an Envoy began; what ends it comes back.
    fn begin(&self, envoy: &EnvoyId) -> (u64, watch::Receiver<Told>, Arc<AtomicBool>) {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let (tell, receive) = watch::channel(None);
        let told_anew = Arc::new(AtomicBool::new(false));
        let checker = Checker { number, tell, told_anew: told_anew.clone() };
        lock(&self.streams).insert(envoy.clone(), checker);
        // At shutdown nobody listens any more.
        let _ = self.to.send(Checked::Connected(envoy.clone()));
        (number, receive, told_anew)
    }

    fn end(&self, envoy: &EnvoyId, number: u64) {
        let mut streams = lock(&self.streams);
        if streams.get(envoy).is_some_and(|checker| checker.number == number) {
            streams.remove(envoy);
            let _ = self.to.send(Checked::Disconnected(envoy.clone()));
        }
    }
}

/// The service, as tonic wants it.
#[derive(Debug, Clone)]
pub(crate) struct Service(pub(crate) Arc<Checkers>);

type Specifiers = Pin<Box<dyn Stream<Item = Result<HealthCheckSpecifier, Status>> + Send>>;

#[tonic::async_trait]
impl HealthDiscoveryService for Service {
    type StreamHealthCheckStream = Specifiers;

    async fn stream_health_check(
        &self,
        request: Request<Streaming<Said>>,
    ) -> Result<Response<Specifiers>, Status> {
        let (_, extensions, mut said) = request.into_parts();
        let first = said.message().await?.and_then(|said| said.request_type);
        let Some(RequestType::HealthCheckRequest(hello)) = first else {
            return Err(Status::invalid_argument("the first message must be a HealthCheckRequest"));
        };
        let node = hello.node.map(|node| node.id).unwrap_or_default();
        let envoy = admitted(&extensions, &node)?;
        let (number, specifiers, told_anew) = self.0.begin(&envoy);
        let checkers = self.0.clone();
        tokio::spawn(async move {
            info!(%envoy, "asked for health checks");
            // What was said last: an Envoy repeats all of it each second.
            let mut last = EndpointHealthResponse::default();
            while let Ok(Some(said)) = said.message().await {
                let Some(RequestType::EndpointHealthResponse(found)) = said.request_type else {
                    continue;
                };
                if told_anew.swap(false, Ordering::Relaxed) || found != last {
                    let _ = checkers.to.send(Checked::Found(envoy.clone(), report(&found)));
                    last = found;
                }
            }
            checkers.end(&envoy, number);
        });
        let specifiers = WatchStream::new(specifiers).filter_map(|one| async { one.map(Ok) });
        Ok(Response::new(Box::pin(specifiers)))
    }

    async fn fetch_health_check(
        &self,
        _: Request<Said>,
    ) -> Result<Response<HealthCheckSpecifier>, Status> {
        Err(Status::unimplemented("only the stream is served"))
    }
}

fn report(found: &EndpointHealthResponse) -> Report {
    let clusters = found.cluster_endpoints_health.iter().map(|cluster| {
        let localities = cluster.locality_endpoints_health.iter();
        let endpoints = localities.flat_map(|locality| &locality.endpoints_health);
        (cluster.cluster_name.clone(), endpoints.filter_map(endpoint).collect())
    });
    clusters.collect()
}

fn endpoint(health: &EndpointHealth) -> Option<(Endpoint, bool)> {
    let address = health.endpoint.as_ref()?.address.as_ref()?.address.as_ref()?;
    let Address::SocketAddress(SocketAddress { address, port_specifier, .. }) = address else {
        return None;
    };
    let Some(PortSpecifier::PortValue(port)) = port_specifier else { return None };
    let ip: IpAddr = address.parse().ok()?;
    let healthy = health.health_status == i32::from(HealthStatus::Healthy);
    Some(((ip, u16::try_from(*port).ok()?), healthy))
}
