//! The pre-stop hook of an Envoy: readiness fails first, then connections are asked to end, and the
//! hook returns when none is left or time is up. Envoy's image has no shell and no curl.
//!
//! Source: Envoy's admin interface, `/healthcheck/fail` and `/drain_listeners`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use http::{Method, Request};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// Drains an Envoy by its admin socket.
#[derive(Debug, Parser)]
struct Args {
    /// The admin socket.
    #[arg(long, default_value = "/run/fairlead/admin.sock")]
    admin: PathBuf,
    /// Only say whether Envoy is alive: its liveness probe.
    #[arg(long)]
    alive: bool,
    /// Wait at least this long, in seconds, so that those who route to this Envoy notice.
    #[arg(long, default_value_t = 3)]
    least: u64,
    /// Wait at most this long, in seconds.
    #[arg(long, default_value_t = 45)]
    most: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    if args.alive {
        return args.ask(Method::GET, "/server_info").await.map(drop);
    }
    let start = Instant::now();
    args.ask(Method::POST, "/healthcheck/fail").await?;
    args.ask(Method::POST, "/drain_listeners?graceful&skip_exit").await?;
    while start.elapsed() < Duration::from_secs(args.most) {
        // Envoy tells nobody when its last connection ends; it has to be asked.
        tokio::time::sleep(Duration::from_secs(1)).await;
        if start.elapsed() >= Duration::from_secs(args.least) && args.active().await? == 0 {
            return Ok(());
        }
    }
    Ok(())
}

impl Args {
    /// Connections of clients, those of the probes and of this very question aside.
    async fn active(&self) -> Result<u64> {
        let stats =
            self.ask(Method::GET, "/stats?filter=^listener\\..*\\.downstream_cx_active$").await?;
        let lines = stats.lines().filter(|line| {
            !["worker_", "probes", "listener.admin."].iter().any(|own| line.contains(own))
        });
        Ok(lines.filter_map(|line| line.rsplit_once(": ")?.1.parse::<u64>().ok()).sum())
    }

    async fn ask(&self, method: Method, path: &str) -> Result<String> {
        let socket = UnixStream::connect(&self.admin).await;
        let socket = socket.with_context(|| self.admin.display().to_string())?;
        let (mut client, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "admin")
            .body(Empty::<Bytes>::new())?;
        let response = client.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{path}: {status}");
        }
        Ok(String::from_utf8_lossy(&body).into_owned())
    }
}
