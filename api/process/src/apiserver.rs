//! A client of the cluster's apiserver.

use anyhow::{Context as _, Result};
use http::HeaderValue;
use http::header::USER_AGENT;
use kube::{Client, Config};

/// Connects to the apiserver of the pod's cluster, or of the kubeconfig. `program` is what audit logs name, and
/// `metadata.managedFields` as who wrote a field.
pub async fn client(program: &str) -> Result<Client> {
    let config = Config::infer().await.context("no access to this cluster's apiserver")?;
    client_of(config, program).context("no access to this cluster's apiserver")
}

/// As [`client`], of an apiserver that somebody chose.
pub fn client_of(mut config: Config, program: &str) -> Result<Client> {
    let name = format!("{program}/{}", env!("CARGO_PKG_VERSION"));
    config.headers.push((USER_AGENT, HeaderValue::from_str(&name)?));
    Ok(Client::try_from(config)?)
}
