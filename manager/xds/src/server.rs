//! The tonic shell: bytes in and out of [`Session`], nothing decided here.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use futures::{Stream, StreamExt};
use http::Extensions;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::{Body, BoxFuture, StdError};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Status, Streaming};
use tracing::{info, warn};

use crate::codec::DeltaCodec;
use crate::{Cache, Event, Key, Response, Session};

const METHOD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// A client that reconnects names all that it has in one request.
const MAX_REQUEST_BYTES: usize = 64 << 20;
/// Responses that wait for the transport; each type has at most one under way.
const QUEUE: usize = 8;

/// Who may connect, and who is told what clients say.
pub trait Observer: Send + Sync + 'static {
    /// One stream of one client; the end of the stream drops it.
    type Client: Send + 'static;

    /// Lets a client in by what the transport knows of it and the node id that it gives itself.
    #[allow(clippy::result_large_err)] // tonic's own error type
    fn admit(&self, transport: &Extensions, node_id: &str) -> Result<Self::Client, Status>;

    /// Tells what a client made of resources. Must not block.
    fn observe(&self, client: &Self::Client, events: Vec<Event>);
}

/// `AggregatedDiscoveryService`, its delta method only.
#[derive(Debug)]
pub struct Server<O> {
    cache: Arc<Cache>,
    observer: Arc<O>,
    left_open: Arc<LeftOpen>,
}

/// What sessions that ended left open, by node id.
#[derive(Debug, Default)]
struct LeftOpen(Mutex<HashMap<String, Vec<Key>>>);

impl LeftOpen {
    fn take(&self, node_id: &str) -> Vec<Key> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(node_id).unwrap_or_default()
    }

    fn put(&self, node_id: &str, keys: Vec<Key>) {
        if !keys.is_empty() {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.entry(node_id.to_owned()).or_default().extend(keys);
        }
    }
}

impl<O> Server<O> {
    /// Serves `cache`.
    pub fn new(cache: Arc<Cache>, observer: Arc<O>) -> Self {
        Self { cache, observer, left_open: Arc::default() }
    }
}

impl<O> Clone for Server<O> {
    fn clone(&self) -> Self {
        let Self { cache, observer, left_open } = self;
        let (cache, observer, left_open) = (cache.clone(), observer.clone(), left_open.clone());
        Self { cache, observer, left_open }
    }
}

impl<O> NamedService for Server<O> {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<O, B> tower_service::Service<http::Request<B>> for Server<O>
where
    O: Observer,
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            if request.uri().path() != METHOD {
                return Ok(Status::unimplemented("only delta ADS is served").into_http());
            }
            let mut grpc = Grpc::new(DeltaCodec).max_decoding_message_size(MAX_REQUEST_BYTES);
            Ok(grpc.streaming(server, request).await)
        })
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<Response, Status>> + Send>>;

impl<O: Observer> StreamingService<DeltaDiscoveryRequest> for Server<O> {
    type Response = Response;
    type ResponseStream = Responses;
    type Future = BoxFuture<tonic::Response<Responses>, Status>;

    fn call(&mut self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        let Self { cache, observer, left_open } = self.clone();
        Box::pin(async move {
            let (_, extensions, mut requests) = request.into_parts();
            let Some(first) = requests.message().await? else {
                return Err(Status::cancelled("no request"));
            };
            let node_id = first.node.as_ref().map_or("", |node| node.id.as_str()).to_owned();
            let client = observer.admit(&extensions, &node_id)?;
            let (send, receive) = mpsc::channel(QUEUE);
            let changed = cache.subscribe();
            let session = Session::after(left_open.take(&node_id));
            let mut stream = Connection { cache, observer, client, session, send };
            tokio::spawn(async move {
                info!(node_id, "xDS stream opened");
                let ended = stream.run(first, requests, changed).await;
                left_open.put(&node_id, stream.session.left_open());
                match ended {
                    Ok(()) => info!(node_id, "xDS stream closed"),
                    Err(error) => warn!(node_id, error = error.message(), "xDS stream failed"),
                }
            });
            let responses: Responses = Box::pin(ReceiverStream::new(receive).map(Ok));
            Ok(tonic::Response::new(responses))
        })
    }
}

struct Connection<O: Observer> {
    cache: Arc<Cache>,
    observer: Arc<O>,
    client: O::Client,
    session: Session,
    send: mpsc::Sender<Response>,
}

impl<O: Observer> Connection<O> {
    #[allow(clippy::result_large_err)] // tonic's own error type
    async fn run(
        &mut self,
        first: DeltaDiscoveryRequest,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        mut changed: watch::Receiver<()>,
    ) -> Result<(), Status> {
        let mut due = self.on_request(first);
        loop {
            for response in due {
                if self.send.send(response).await.is_err() {
                    return Ok(());
                }
            }
            due = tokio::select! {
                request = requests.message() => match request? {
                    Some(request) => self.on_request(request),
                    None => return Ok(()),
                },
                wake = changed.changed() => match wake {
                    Ok(()) => self.session.pump(&self.cache.read()),
                    Err(_) => return Ok(()),
                },
                () = self.send.closed() => return Ok(()),
            };
        }
    }

    fn on_request(&mut self, request: DeltaDiscoveryRequest) -> Vec<Response> {
        let mut events = Vec::new();
        let due = self.session.on_request(request, &self.cache.read(), &mut events);
        if !events.is_empty() {
            self.observer.observe(&self.client, events);
        }
        due
    }
}
