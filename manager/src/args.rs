//! Settings, by flag and by environment variable.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use fairlead_process::logs::LogArgs;
use ipnet::IpNet;

use crate::identity::{IssuerKind, PkiSettings};

/// Who signs certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Issuer {
    /// The manager itself.
    Builtin,
    /// The manager, with a CA that somebody else makes and replaces.
    Files,
    /// An issuer of cert-manager.
    CertManager,
}

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
    /// Who signs certificates.
    #[arg(long, env = "FAIRLEAD_ISSUER", default_value = "builtin")]
    pub issuer: Issuer,
    /// For the issuers `files` (ca.crt, tls.crt, tls.key) and `cert-manager` (ca.crt): where they are.
    #[arg(long, env = "FAIRLEAD_ISSUER_FOLDER", default_value = "/etc/fairlead/issuer")]
    pub issuer_folder: PathBuf,
    /// For the issuer `cert-manager`: the kind, name and group of its issuer, with slashes between.
    #[arg(long, env = "FAIRLEAD_ISSUER_REF", default_value = "Issuer/fairlead/cert-manager.io")]
    pub issuer_ref: String,
    /// How long certificates are valid, in seconds.
    #[arg(long, env = "FAIRLEAD_CERTIFICATE_SECONDS", default_value_t = 86_400,
          value_parser = clap::value_parser!(u64).range(20..=31_536_000))]
    pub certificate_seconds: u64,
    /// How long a connection lives, in seconds; agents come back at once.
    #[arg(long, env = "FAIRLEAD_CONNECTION_SECONDS", default_value_t = 3_600,
          value_parser = clap::value_parser!(u64).range(20..=3_600))]
    pub connection_seconds: u64,
    /// The DNS names of the manager's certificate, with commas between.
    #[arg(
        long,
        env = "FAIRLEAD_SERVER_NAMES",
        default_value = "fairlead-manager",
        value_delimiter = ','
    )]
    pub server_names: Vec<String>,
    /// CAs of existing trust domains, for `Tenant.spec.spiffeIDs`; there may be no such file.
    #[arg(long, env = "FAIRLEAD_EXTERNAL_CA", default_value = "/etc/fairlead/external/ca.crt")]
    pub external_ca: PathBuf,
    /// Ranges that no tenant's node may be in, with commas between.
    #[arg(long, env = "FAIRLEAD_REFUSED_CIDRS", value_delimiter = ',', value_parser = refused)]
    pub refused_cidrs: Vec<Option<IpNet>>,
    /// This pod's own addresses: no tenant's node has one of them.
    #[arg(long, env = "FAIRLEAD_POD_IPS", value_delimiter = ',')]
    pub pod_ips: Vec<IpAddr>,
    /// The service account of the Envoys' pods, in the manager's namespace.
    #[arg(long, env = "FAIRLEAD_ENVOY_ACCOUNT", default_value = "fairlead-envoy")]
    pub envoy_account: String,
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

impl Args {
    pub(crate) fn pki(&self) -> anyhow::Result<PkiSettings> {
        let folder = self.issuer_folder.clone();
        let issuer = match self.issuer {
            Issuer::Builtin => IssuerKind::Builtin,
            Issuer::Files => IssuerKind::Files(folder),
            Issuer::CertManager => {
                let parts: Vec<&str> = self.issuer_ref.split('/').collect();
                let [kind, name, group] = parts.as_slice() else {
                    anyhow::bail!("--issuer-ref: must be like Issuer/fairlead/cert-manager.io");
                };
                let [kind, name, group] = [kind, name, group].map(|part| (*part).to_owned());
                IssuerKind::CertManager { kind, name, group, folder }
            }
        };
        Ok(PkiSettings {
            issuer,
            trust_domain: self.trust_domain.clone(),
            names: self.server_names.clone(),
            lifetime: Duration::from_secs(self.certificate_seconds),
            foreign: self.external_ca.clone(),
        })
    }
}

/// An empty text, as a chart without such ranges has it, is none.
fn refused(text: &str) -> Result<Option<IpNet>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| format!("{text:?} is no CIDR like 10.0.0.0/8"))
}
