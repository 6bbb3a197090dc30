//! A client of the cluster's apiserver.

use anyhow::{Context as _, Result};
use http::HeaderValue;
use http::header::USER_AGENT;
use kube::{Client, Config};

/// Connects to the apiserver of the pod's cluster, or of the kubeconfig. `program` is what audit logs name, and
/// `metadata.managedFields` as who wrote a field.
pub async fn client(program: &'static str) -> Result<Client> {
    let mut config = Config::infer().await.context("no access to this cluster's apiserver")?;
    let name = format!("{program}/{}", env!("CARGO_PKG_VERSION"));
    config.headers.push((USER_AGENT, HeaderValue::from_str(&name)?));
    Client::try_from(config).context("no access to this cluster's apiserver")
}
