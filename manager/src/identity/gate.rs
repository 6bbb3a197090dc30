//! Who may call what: one check in front of every method of every port. What is not named here is nobody's.

use std::convert::Infallible;
use std::task::{Context, Poll};

use fairlead_process::identity::Identity;
use fairlead_process::tls::Peer;
use futures::future::BoxFuture;
use prometheus_client::metrics::counter::Counter;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::warn;

use crate::refused::Refused;

/// Whether the bearer of `identity` may call the method at `path`; `None` is one without a certificate.
#[allow(clippy::result_large_err)] // tonic's own error type
pub(crate) fn may_call(path: &str, identity: Option<&Identity>) -> Result<(), Status> {
    let allowed = match path {
        "/fairlead.v1.Identity/Enroll" | "/fairlead.v1.Identity/Recover" => true,
        "/fairlead.v1.Identity/Renew" | "/fairlead.v1.Hub/Sync" => {
            matches!(identity, Some(Identity::Agent { .. }))
        }
        "/fairlead.v1.Identity/WatchTrust" => {
            matches!(identity, Some(Identity::Agent { .. } | Identity::Envoy { .. }))
        }
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
        | "/envoy.service.health.v3.HealthDiscoveryService/StreamHealthCheck" => {
            matches!(identity, Some(Identity::Envoy { .. }))
        }
        _ => false,
    };
    match (allowed, identity) {
        (true, _) => Ok(()),
        (false, None) => Err(Status::unauthenticated("a client certificate is needed here")),
        (false, Some(_)) => {
            Err(Status::permission_denied("this certificate's bearer may not call this"))
        }
    }
}

/// Puts the check in front of a server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate {
    /// Calls of methods that are not the caller's.
    pub(crate) denied: Counter,
    /// Calls that got an error for what was asked.
    pub(crate) refused: Refused,
}

impl<S> Layer<S> for Gate {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, gate: self.clone() }
    }
}

/// A server behind the check.
#[derive(Debug, Clone)]
pub(crate) struct Guarded<S> {
    inner: S,
    gate: Gate,
}

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let peer = request.extensions().get::<Peer>();
        let identity = peer.and_then(|peer| peer.identity.as_ref());
        match may_call(request.uri().path(), identity) {
            Ok(()) => {
                let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
                let (refused, call) = (self.gate.refused.clone(), self.inner.call(request));
                Box::pin(async move {
                    let response = call.await?;
                    // One that is an error from the start has its status in the headers.
                    if let Some(status) = Status::from_header_map(response.headers()) {
                        refused.note(&method, &status);
                    }
                    Ok(response)
                })
            }
            Err(status) => {
                let status = match peer.and_then(|peer| peer.refusal.as_ref()) {
                    Some(why) => Status::unauthenticated(why.as_str()),
                    None => status,
                };
                let path: String = request.uri().path().chars().take(100).collect();
                let address = peer.map(|peer| peer.address);
                warn!(?address, ?identity, path, error = status.message(), "call refused");
                self.gate.denied.inc();
                Box::pin(std::future::ready(Ok(status.into_http())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHODS: [&str; 6] = [
        "/fairlead.v1.Identity/Enroll",
        "/fairlead.v1.Identity/Recover",
        "/fairlead.v1.Identity/Renew",
        "/fairlead.v1.Hub/Sync",
        "/fairlead.v1.Identity/WatchTrust",
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
    ];

    #[test]
    fn each_may_call_its_own_and_nobody_what_is_not_named() {
        let agent = Identity::Agent {
            tenant: "blue".parse().unwrap(),
            agent: "abcdefghij".parse().unwrap(),
        };
        let envoy = Identity::Envoy { pod: "envoy-1".into() };
        for (identity, allowed) in [
            (None, [true, true, false, false, false, false]),
            (Some(&agent), [true, true, true, true, true, false]),
            (Some(&envoy), [true, true, false, false, true, true]),
            (Some(&Identity::Manager), [true, true, false, false, false, false]),
        ] {
            for (method, allowed) in METHODS.iter().zip(allowed) {
                assert_eq!(may_call(method, identity).is_ok(), allowed, "{identity:?} {method}");
            }
            for other in [
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
                "/envoy.service.discovery.v3.ClusterDiscoveryService/FetchClusters",
                "/envoy.service.health.v3.HealthDiscoveryService/FetchHealthCheck",
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                "/fairlead.v1.Hub/sync",
                "/",
                "",
            ] {
                assert!(may_call(other, identity).is_err(), "{identity:?} {other}");
            }
        }
    }
}
