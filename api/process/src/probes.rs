//! `/livez`, `/readyz` and `/metrics`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::locks::lock;
use crate::metrics;

/// What is still missing before the process is ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeSet<&'static str>>>);

impl Readiness {
    /// The process is not ready until the guard is dropped.
    pub fn wait_for(&self, what: &'static str) -> Guard {
        self.change(|missing| missing.insert(what));
        Guard { readiness: self.clone(), what }
    }

    fn change<T>(&self, work: impl FnOnce(&mut BTreeSet<&'static str>) -> T) -> T {
        work(&mut lock(&self.0))
    }

    fn missing(&self) -> Vec<&'static str> {
        self.change(|missing| missing.iter().copied().collect())
    }
}

/// Holds readiness back while it lives.
#[derive(Debug)]
pub struct Guard {
    readiness: Readiness,
    what: &'static str,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.readiness.change(|missing| missing.remove(self.what));
    }
}

/// Serves the probes until `stop`.
pub async fn serve(
    address: SocketAddr,
    registry: Registry,
    readiness: Readiness,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let registry = Arc::new(registry);
    let ready = move || {
        let missing = readiness.missing();
        async move {
            if missing.is_empty() {
                return (StatusCode::OK, "ready\n".to_owned());
            }
            (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n", missing.join(", ")))
        }
    };
    let router = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(move || async move { metrics::render(&registry) }));
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await?;
    Ok(())
}
