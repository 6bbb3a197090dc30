//! Connections that are taken in.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;
use tracing::warn;

use crate::identity::Identity;
use crate::locks::lock;

/// Handshakes under way at the same time. One more ends the oldest: who says nothing makes way for who
/// does.
const HANDSHAKES: usize = 512;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client that is refused may take to read why, and how much it may still send.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_READS: usize = 16;

/// What a server shows, exchanged while it runs.
pub type ServerTls = Arc<ArcSwap<ServerConfig>>;

/// Who may come in, beyond the certificate being valid.
pub trait Admission: Send + Sync + 'static {
    /// Looks at a client's certificate (its chain, verified), or at the absence of one.
    ///
    /// # Errors
    /// Why it may not come in.
    fn admit(&self, chain: &[CertificateDer<'_>], address: SocketAddr) -> Result<Admitted>;

    /// Somebody was not let in, or did not even get so far.
    fn refused(&self) {}
}

/// A connection that may come in.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// Whose; `None`: it has shown no certificate, or none that counts.
    pub identity: Option<Identity>,
    /// Why the certificate that it has shown does not count. Told to whoever calls something.
    pub refusal: Option<String>,
    /// Closes it.
    pub end: CancellationToken,
}

/// Who is at the other end of a connection; among the extensions of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Its certificate's identity; `None`: it has shown none, or none that counts.
    pub identity: Option<Identity>,
    /// Why the certificate that it has shown does not count.
    pub refusal: Option<String>,
    /// Cancelled when the connection is over, or has to be.
    pub end: CancellationToken,
}

/// A connection that was let in.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.peer.end.cancel();
    }
}

/// Handshakes under way, the oldest first.
#[derive(Debug, Default)]
struct Pending {
    next: u64,
    all: BTreeMap<u64, CancellationToken>,
}

impl Pending {
    fn begin(&mut self) -> (u64, CancellationToken) {
        if self.all.len() >= HANDSHAKES
            && let Some((_, oldest)) = self.all.pop_first()
        {
            oldest.cancel();
        }
        let (number, end) = (self.next, CancellationToken::new());
        self.next += 1;
        self.all.insert(number, end.clone());
        (number, end)
    }
}

/// Accepts connections from `begin` until `stop`. A client that fails is told so, costs one line in the log, and keeps
/// nobody else waiting.
pub fn accept(
    listener: TcpListener,
    tls: ServerTls,
    admission: Arc<dyn Admission>,
    begin: CancellationToken,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<Connection>> {
    let (send, receive) = mpsc::channel(16);
    let pending = Arc::new(Mutex::new(Pending::default()));
    tokio::spawn(async move {
        // Who comes earlier waits in the listener's queue.
        begin.cancelled().await;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let (tcp, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: give others time to close theirs.
                    warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let acceptor = TlsAcceptor::from(tls.load_full());
            let (send, admission, pending) = (send.clone(), admission.clone(), pending.clone());
            let (number, displaced) = lock(&pending).begin();
            tokio::spawn(async move {
                let shaking = handshake(acceptor, tcp, address, &*admission);
                let shaken = tokio::select! {
                    shaken = shaking => shaken,
                    () = displaced.cancelled() => {
                        Err(anyhow::anyhow!("no TLS handshake before {HANDSHAKES} others came"))
                    }
                };
                lock(&pending).all.remove(&number);
                match shaken {
                    Ok(connection) => drop(send.send(Ok(connection)).await),
                    Err(error) => {
                        admission.refused();
                        warn!(%address, error = format!("{error:#}"), "connection refused");
                    }
                }
            });
        }
    });
    ReceiverStream::new(receive)
}

async fn handshake(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    address: SocketAddr,
    admission: &dyn Admission,
) -> Result<Connection> {
    tcp.set_nodelay(true)?;
    let shaking = acceptor.accept(tcp).into_fallible();
    let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, shaking).await;
    let mut stream = match shaken.context("no TLS handshake within 10 s")? {
        Ok(stream) => stream,
        Err((error, tcp)) => {
            linger(tcp).await;
            return Err(error.into());
        }
    };
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        // Only HTTP/2 is spoken here: whoever does not offer it is not one of ours.
        let _ = tokio::time::timeout(LINGER, stream.shutdown()).await;
        bail!("the client did not offer HTTP/2 (ALPN h2)");
    }
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    match admission.admit(chain, address) {
        Ok(Admitted { identity, refusal, end }) => {
            let until = Box::pin(end.clone().cancelled_owned());
            Ok(Connection { stream, peer: Peer { address, identity, refusal, end }, end: until })
        }
        Err(error) => {
            let _ = tokio::time::timeout(LINGER, stream.shutdown()).await;
            Err(error)
        }
    }
}

/// Lets a client read why it is refused: with TLS 1.3 it speaks before it knows, and a connection that is
/// closed with something unread is reset, alert and all.
async fn linger(mut tcp: TcpStream) {
    let rest = async {
        tcp.shutdown().await?;
        let mut unread = [0; 4_096];
        for _ in 0..LINGER_READS {
            if tcp.read(&mut unread).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    // Whoever does not close in time is reset.
    let _ = tokio::time::timeout(LINGER, rest).await;
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

fn over() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection may not go on")
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(over()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.peer.end.is_cancelled() {
            return Poll::Ready(Err(over()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
