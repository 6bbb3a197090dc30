//! Beside each Envoy: gets its certificate by the pod's service account token, renews it, and follows what is
//! trusted. Files are exchanged by a symbolic link, as a Secret's volume does it, which Envoy watches for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use fairlead_process::logs::{self, LogArgs};
use fairlead_process::retry::between;
use fairlead_process::tls::{self, Credentials};
use fairlead_process::{shutdown, token::sha256};
use fairlead_proto::v1;
use fairlead_proto::v1::enroll_request::Credential;
use fairlead_proto::v1::identity_client::IdentityClient;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tracing::{info, warn};

/// Keeps the certificate of an Envoy.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Only say whether there is a certificate: the startup probe.
    #[arg(long)]
    ready: bool,
    /// The manager's agent API, as host:port.
    #[arg(long, env = "FAIRLEAD_MANAGER", default_value = "fairlead-agents:8443")]
    manager: String,
    /// The name that the manager's certificate must be for.
    #[arg(long, env = "FAIRLEAD_MANAGER_NAME", default_value = "fairlead-manager")]
    manager_name: String,
    /// The CA to begin with.
    #[arg(long, default_value = "/etc/fairlead/trust/ca.crt")]
    ca: PathBuf,
    /// The pod's token for the audience `fairlead-manager`.
    #[arg(long, default_value = "/etc/fairlead/token/token")]
    token: PathBuf,
    /// Where `current/ca.crt`, `current/tls.crt` and `current/tls.key` are written.
    #[arg(long, default_value = "/run/fairlead-tls")]
    folder: PathBuf,
    #[command(flatten)]
    logs: LogArgs,
}

/// What Envoy has.
struct Kept {
    chain: String,
    key: String,
    roots: String,
    sequence: u64,
    /// When to get another one.
    due: Instant,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    if args.ready {
        let path = args.folder.join("current/tls.crt");
        return std::fs::metadata(&path).map(drop).with_context(|| path.display().to_string());
    }
    logs::init(&args.logs)?;
    let stop = shutdown::on_signal()?;
    tokio::select! {
        () = stop.cancelled() => {}
        () = args.keep() => {}
    }
    Ok(())
}

impl Args {
    async fn keep(&self) {
        let mut kept = None;
        let mut pause = Duration::from_millis(200);
        loop {
            match self.live(&mut kept).await {
                Ok(()) => pause = Duration::from_millis(200),
                Err(error) => {
                    let error = format!("{error:#}");
                    warn!(error, "no certificate, or no word of the hub's CA");
                    // What was trusted may be so no more: begin anew, with what the pod is given.
                    let words = ["certificate", "alert", "Unauthenticated"];
                    if words.iter().any(|word| error.contains(word)) {
                        kept = None;
                    }
                    tokio::time::sleep(between(pause / 2, pause * 3 / 2)).await;
                    pause = (pause * 2).min(Duration::from_secs(10));
                }
            }
        }
    }

    /// Gets a certificate if it is time for one, and follows what is trusted until it is.
    async fn live(&self, known: &mut Option<Kept>) -> Result<()> {
        if known.as_ref().is_none_or(|kept| kept.due <= Instant::now()) {
            let roots = match known.as_ref() {
                Some(kept) => kept.roots.clone().into_bytes(),
                None => tokio::fs::read(&self.ca).await.context("the CA")?,
            };
            let fresh = self.enroll(&roots).await?;
            write(&self.folder, &fresh)?;
            info!(sequence = fresh.sequence, "this Envoy has a new certificate");
            *known = Some(fresh);
        }
        let Some(kept) = known.as_mut() else { bail!("no certificate") };
        self.watch(kept).await
    }

    async fn channel(&self, credentials: &Credentials) -> Result<Channel> {
        tls::connect(&self.manager, &self.manager_name, credentials).await
    }

    async fn enroll(&self, roots: &[u8]) -> Result<Kept> {
        let channel = self.channel(&Credentials::from_pem(roots, None)?).await?;
        let mut client = IdentityClient::new(channel);
        let (mut key, mut csr) = tls::request(None)?;
        let mut issued = self.ask(&mut client, csr).await?;
        if issued.chain.is_empty() {
            // The hub's issuer takes names from requests only.
            (key, csr) = tls::request(Some(&issued.id))?;
            issued = self.ask(&mut client, csr).await?;
        }
        let v1::Issued { chain, trust, not_after, .. } = issued;
        let trust = trust.context("the hub did not say whom to trust")?;
        let hub_time = trust.hub_time.map_or(0, |time| time.seconds);
        let life = not_after.map_or(0, |end| end.seconds) - hub_time;
        let half = Duration::from_secs(life.max(2).unsigned_abs()) / 2;
        Ok(Kept {
            chain: String::from_utf8(chain)?,
            key,
            roots: String::from_utf8(trust.roots)?,
            sequence: trust.sequence,
            due: Instant::now() + between(half * 9 / 10, half * 11 / 10),
        })
    }

    async fn ask(&self, client: &mut IdentityClient<Channel>, csr: Vec<u8>) -> Result<v1::Issued> {
        let token = tokio::fs::read_to_string(&self.token).await.context("the pod's token")?;
        let credential = Some(Credential::ServiceAccountToken(token.trim().to_owned()));
        Ok(client.enroll(v1::EnrollRequest { csr, credential }).await?.into_inner())
    }

    async fn watch(&self, kept: &mut Kept) -> Result<()> {
        let own = (kept.chain.as_bytes(), kept.key.as_bytes());
        let credentials = Credentials::from_pem(kept.roots.as_bytes(), Some(own))?;
        let mut client = IdentityClient::new(self.channel(&credentials).await?);
        let (confirm, confirmed) = mpsc::channel(4);
        confirm.try_send(v1::Confirmed { sequence: kept.sequence })?;
        let mut stream = client.watch_trust(ReceiverStream::new(confirmed)).await?.into_inner();
        loop {
            tokio::select! {
                trust = stream.message() => {
                    // It closes old ones: then a new one is opened.
                    let Some(trust) = trust? else { return Ok(()) };
                    let roots = String::from_utf8(trust.roots)?;
                    if roots != kept.roots {
                        (kept.roots, kept.sequence) = (roots, trust.sequence);
                        write(&self.folder, kept)?;
                        info!(sequence = kept.sequence, "the hub's authority changed");
                    }
                    confirm.send(v1::Confirmed { sequence: trust.sequence }).await?;
                }
                () = tokio::time::sleep_until(kept.due) => return Ok(()),
            }
        }
    }
}

/// Exchanges all three files at once.
fn write(folder: &Path, kept: &Kept) -> Result<()> {
    let Kept { chain, key, roots, .. } = kept;
    let name =
        format!("set-{}", &sha256([chain, roots].map(String::as_str).concat().as_bytes())[..12]);
    let fresh = folder.join(&name);
    std::fs::create_dir_all(&fresh)?;
    for (file, text) in [("ca.crt", roots), ("tls.crt", chain), ("tls.key", key)] {
        std::fs::write(fresh.join(file), text)?;
    }
    let link = folder.join("next");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(&name, &link)?;
    std::fs::rename(&link, folder.join("current"))?;
    for old in std::fs::read_dir(folder)?.flatten() {
        let other = old.file_name().to_string_lossy().into_owned();
        if other.starts_with("set-") && other != name {
            let _ = std::fs::remove_dir_all(old.path());
        }
    }
    Ok(())
}
