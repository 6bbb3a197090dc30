//! Requests as a client's: one more until the answer is the wanted one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Between two requests that wait for a change: what is measured is no finer.
const PAUSE: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(30);
const REQUEST: Duration = Duration::from_secs(5);

/// What is asked for, and where.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where Envoy listens.
    pub address: SocketAddr,
    /// The `host` header.
    pub host: String,
    /// The path.
    pub path: String,
}

/// What an answer must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// 200, with this in the body.
    Good(&'static str),
    /// No connection, or 404.
    Gone,
}

/// One request on a connection of its own: the status and the body.
pub async fn ask(target: &Target) -> Result<(u16, String)> {
    let asked = async {
        let mut stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let Target { host, path, .. } = target;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let answer = read(&mut stream).await?;
        let status = answer.split(' ').nth(1).context("no answer")?.parse()?;
        Ok::<_, anyhow::Error>((status, answer))
    };
    tokio::time::timeout(REQUEST, asked).await?
}

/// Reads an answer, not until the connection is closed: Envoy gives its client a second to do that.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<String> {
    let mut answer = Vec::with_capacity(1_024);
    while !is_whole(&answer) && stream.read_buf(&mut answer).await? > 0 {}
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Whether this is all of an answer.
pub fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length
        .and_then(|length| length.parse::<usize>().ok())
        .is_some_and(|length| body.len() >= length)
}

/// Asks until the answer is as wanted.
pub async fn until(target: &Target, wanted: &Wanted) -> Result<Instant> {
    let end = Instant::now() + PATIENCE;
    loop {
        let said = ask(target).await;
        let good = match (&said, wanted) {
            (Ok((200, body)), Wanted::Good(part)) => body.contains(part),
            (Ok((404, _)), Wanted::Gone) => true,
            // Refused, or closed without a word; not an answer that does not come.
            (Err(error), Wanted::Gone) => !error.is::<tokio::time::error::Elapsed>(),
            _ => false,
        };
        if good {
            return Ok(Instant::now());
        }
        if Instant::now() > end {
            bail!("{target:?}: {said:?} after {PATIENCE:?}, not {wanted:?}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Requests to something that does not change, while other things do.
#[derive(Debug)]
pub struct Background {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Background {
    /// Begins.
    pub fn start(target: Target, pause: Duration) -> Self {
        let (stop, sent, lost) = <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let (stopped, counted, failed) = (stop.clone(), sent.clone(), lost.clone());
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let good = matches!(ask(&target).await, Ok((200, _)));
                counted.fetch_add(1, Ordering::Relaxed);
                failed.fetch_add(u64::from(!good), Ordering::Relaxed);
                tokio::time::sleep(pause).await;
            }
        });
        Self { stop, sent, lost, task }
    }

    /// Ends; how many were sent, and how many of them failed.
    pub async fn stop(self) -> Result<(u64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?;
        Ok((self.sent.load(Ordering::Relaxed), self.lost.load(Ordering::Relaxed)))
    }
}
