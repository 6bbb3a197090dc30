//! Mutual TLS from files: `ca.crt`, `tls.crt` and `tls.key` of a folder, as a Secret of type
//! `kubernetes.io/tls` mounts them.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::{TlsAcceptor, TlsConnector, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};
use tracing::{info, warn};

use crate::identity::Identity;

/// Handshakes under way at the same time; further connections wait.
const HANDSHAKES: usize = 64;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client that is refused may take to read why, and how much it may still send.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_READS: usize = 16;
const RELOAD: Duration = Duration::from_secs(30);

/// A folder with `ca.crt`, `tls.crt` and `tls.key`.
#[derive(Debug, Clone)]
pub struct Files(PathBuf);

struct Material {
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Files {
    /// The files in `folder`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    fn load(&self) -> Result<Material> {
        let path = |name: &str| self.0.join(name);
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&path("ca.crt"))? {
            roots.add(certificate).with_context(|| path("ca.crt").display().to_string())?;
        }
        let key = PrivateKeyDer::from_pem_file(path("tls.key"));
        let key = key.with_context(|| path("tls.key").display().to_string())?;
        Ok(Material { roots, chain: certificates(&path("tls.crt"))?, key })
    }

    /// What a server presents, and whose certificates it accepts; clients must have one.
    pub fn server(&self) -> Result<Arc<ServerConfig>> {
        let Material { roots, chain, key } = self.load()?;
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
        let builder = ServerConfig::builder().with_client_cert_verifier(verifier);
        let mut config = builder.with_single_cert(chain, key).context("tls.crt and tls.key")?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// What a client presents, and whose certificates it accepts.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        let Material { roots, chain, key } = self.load()?;
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let mut config =
            builder.with_client_auth_cert(chain, key).context("tls.crt and tls.key")?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let name = || path.display().to_string();
    let read = CertificateDer::pem_file_iter(path).with_context(name)?;
    let list = read.collect::<Result<Vec<_>, _>>().with_context(name)?;
    if list.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(list)
}

/// Who is at the other end of a connection; among the extensions of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Its certificate's identity.
    pub identity: Identity,
}

/// A connection whose client has shown its certificate.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

/// Accepts connections with mutual TLS until `stop`. A client that fails is told so, costs one line
/// in the log, and keeps nobody else waiting. Changed files are taken up without a restart.
pub fn accept(
    listener: TcpListener,
    files: Files,
    trust_domain: String,
    stop: CancellationToken,
) -> Result<ReceiverStream<io::Result<Connection>>> {
    let config = Arc::new(ArcSwap::new(files.server()?));
    tokio::spawn(reload(files, config.clone(), stop.clone()));
    let (send, receive) = mpsc::channel(16);
    let free = Arc::new(Semaphore::new(HANDSHAKES));
    tokio::spawn(async move {
        loop {
            let Ok(permit) = free.clone().acquire_owned().await else { return };
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
            let (acceptor, send) = (TlsAcceptor::from(config.load_full()), send.clone());
            let trust_domain = trust_domain.clone();
            tokio::spawn(async move {
                match handshake(acceptor, tcp, address, &trust_domain).await {
                    Ok(connection) => drop(send.send(Ok(connection)).await),
                    Err(error) => {
                        warn!(%address, error = format!("{error:#}"), "connection refused");
                    }
                }
                drop(permit);
            });
        }
    });
    Ok(ReceiverStream::new(receive))
}

async fn handshake(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    address: SocketAddr,
    trust_domain: &str,
) -> Result<Connection> {
    tcp.set_nodelay(true)?;
    let shaking = acceptor.accept(tcp).into_fallible();
    let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, shaking).await;
    let stream = match shaken.context("no TLS handshake within 10 s")? {
        Ok(stream) => stream,
        Err((error, tcp)) => {
            linger(tcp).await;
            return Err(error.into());
        }
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certificate = certificate.context("no client certificate")?;
    let identity = Identity::of_certificate(certificate, trust_domain)?;
    Ok(Connection { stream, peer: Peer { address, identity } })
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

async fn reload(files: Files, config: Arc<ArcSwap<ServerConfig>>, stop: CancellationToken) {
    let mut last = fingerprint(&files).await;
    loop {
        tokio::select! {
            () = tokio::time::sleep(RELOAD) => {}
            () = stop.cancelled() => return,
        }
        let now = fingerprint(&files).await;
        if now == last {
            continue;
        }
        match files.server() {
            Ok(fresh) => {
                info!(folder = %files.0.display(), "certificates reloaded");
                config.store(fresh);
                last = now;
            }
            Err(error) => warn!(error = format!("{error:#}"), "certificates not reloaded"),
        }
    }
}

async fn fingerprint(files: &Files) -> Vec<Option<Vec<u8>>> {
    let mut all = Vec::new();
    for name in ["ca.crt", "tls.crt", "tls.key"] {
        all.push(tokio::fs::read(files.0.join(name)).await.ok());
    }
    all
}

/// Connects to a gRPC server with mutual TLS. The files are read anew each time.
///
/// `address` is `host:port`; the server's certificate must be for `server_name`.
pub async fn connect(address: &str, server_name: &str, files: &Files) -> Result<Channel> {
    let connector = TlsConnector::from(files.client()?);
    let name = ServerName::try_from(server_name.to_owned()).context("server name")?;
    let target = address.to_owned();
    let dial = tower::service_fn(move |_| {
        let (connector, name, target) = (connector.clone(), name.clone(), target.clone());
        async move {
            let tcp = TcpStream::connect(target).await?;
            tcp.set_nodelay(true)?;
            connector.connect(name, tcp).await.map(TokioIo::new)
        }
    });
    let endpoint = Endpoint::from_static("http://hub")
        .connect_timeout(Duration::from_secs(10))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector(dial).await?)
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
