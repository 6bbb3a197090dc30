//! Settings, by flag and by environment variable.

use std::net::SocketAddr;
use std::path::PathBuf;

use fairlead_process::logs::LogArgs;

/// A tenant cluster's agent.
#[derive(Debug, Clone, clap::Parser)]
#[command(version)]
pub struct Args {
    /// The hub's agent API, as host:port.
    #[arg(long, env = "FAIRLEAD_HUB")]
    pub hub: String,
    /// The name that the hub's certificate must be for.
    #[arg(long, env = "FAIRLEAD_HUB_NAME", default_value = "fairlead-manager")]
    pub hub_name: String,
    /// The join token, needed until this agent has joined.
    #[arg(long, env = "FAIRLEAD_JOIN_TOKEN", hide_env_values = true)]
    pub join_token: Option<String>,
    /// The Secret, in the agent's namespace, in which it keeps its keys and certificate.
    #[arg(long, env = "FAIRLEAD_IDENTITY_SECRET", default_value = "fairlead-agent-identity")]
    pub identity_secret: String,
    /// A folder with ca.crt, tls.crt and tls.key that somebody else renews; then nothing is joined.
    #[arg(long, env = "FAIRLEAD_TLS")]
    pub tls: Option<PathBuf>,
    /// Publish Services of type `LoadBalancer` without a class, too.
    #[arg(long, env = "FAIRLEAD_DEFAULT_CLASS")]
    pub default_class: bool,
    /// Where /metrics, /livez and /readyz are served.
    #[arg(long, env = "FAIRLEAD_PROBE_ADDRESS", default_value = "0.0.0.0:8080")]
    pub probe_address: SocketAddr,
    /// The namespace of the agent and its Lease.
    #[arg(long, env = "FAIRLEAD_NAMESPACE", default_value = "fairlead-system")]
    pub namespace: String,
    /// This replica's name.
    #[arg(long, env = "POD_NAME", default_value = "fairlead-agent")]
    pub name: String,
    /// How to log.
    #[command(flatten)]
    pub logs: LogArgs,
}
