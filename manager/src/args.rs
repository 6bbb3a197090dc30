//! Settings, by flag and by environment variable.

use std::net::SocketAddr;
use std::path::PathBuf;

use fairlead_process::logs::LogArgs;

/// The hub's manager.
#[derive(Debug, Clone, clap::Parser)]
#[command(version)]
pub struct Args {
    /// Where agents connect.
    #[arg(long, env = "FAIRLEAD_AGENT_ADDRESS", default_value = "0.0.0.0:8443")]
    pub agent_address: SocketAddr,
    /// Where Envoys connect.
    #[arg(long, env = "FAIRLEAD_XDS_ADDRESS", default_value = "0.0.0.0:18000")]
    pub xds_address: SocketAddr,
    /// Where /metrics, /livez and /readyz are served.
    #[arg(long, env = "FAIRLEAD_PROBE_ADDRESS", default_value = "0.0.0.0:8080")]
    pub probe_address: SocketAddr,
    /// A folder with ca.crt, tls.crt and tls.key.
    #[arg(long, env = "FAIRLEAD_TLS", default_value = "/etc/fairlead/tls")]
    pub tls: PathBuf,
    /// The trust domain of all SPIFFE ids.
    #[arg(long, env = "FAIRLEAD_TRUST_DOMAIN", default_value = "fairlead.local")]
    pub trust_domain: String,
    /// The namespace of the manager, of its Lease and of the Envoys.
    #[arg(long, env = "FAIRLEAD_NAMESPACE", default_value = "fairlead-system")]
    pub namespace: String,
    /// The label selector of the Envoys' pods.
    #[arg(
        long,
        env = "FAIRLEAD_ENVOY_SELECTOR",
        default_value = "app.kubernetes.io/component=envoy"
    )]
    pub envoy_selector: String,
    /// This replica's name.
    #[arg(long, env = "POD_NAME", default_value = "fairlead-manager")]
    pub name: String,
    /// How to log.
    #[command(flatten)]
    pub logs: LogArgs,
}
