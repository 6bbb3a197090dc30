//! A workload that says who answers and what was asked: HTTP/1.1 and HTTP/2 in plain text on each port
//! of `HTTP_PORTS`, over TLS on each of `HTTPS_PORTS`, after a PROXY protocol header of either version on
//! each of `PROXY_PORTS`, UDP on each of `UDP_PORTS` (an answer is as long as the question).
//!
//! Of HTTP, what a test can ask for by the query: `status=503`, `sleep=2000` (milliseconds before the
//! answer), `header=64` (KiB of an answer header), `lines=5` (that many lines, one a second),
//! `once=word` (503, but only to the first who sends this word). The path
//! `/healthy` answers 200, or 503 after `/healthy?set=false` was asked; gRPC's health protocol says the
//! same. `/auth` lets in who sends `authorization: letmein`; an `upgrade` header is answered, and what comes
//! after that is sent back as it is.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// What `/healthy` says.
static HEALTHY: AtomicBool = AtomicBool::new(true);

type Body = BoxBody<Bytes, Infallible>;

fn who() -> String {
    let var = |name| std::env::var(name).unwrap_or_default();
    format!("pod={} node={} cluster={}", var("POD"), var("NODE"), var("CLUSTER"))
}

fn ports(name: &str) -> Vec<u16> {
    let list = std::env::var(name).unwrap_or_default();
    list.split(',').filter_map(|port| port.trim().parse().ok()).collect()
}

fn word<'a>(request: &'a Request<Incoming>, name: &str) -> Option<&'a str> {
    let mut pairs = request.uri().query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn asked(request: &Request<Incoming>, name: &str) -> Option<u64> {
    word(request, name)?.parse().ok()
}

/// Whether nobody sent this word before.
fn is_first(word: &str) -> bool {
    static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    SEEN.lock().is_ok_and(|mut seen| seen.insert(word.to_owned()))
}

fn text(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed()
}

/// What was asked, a line for each header.
fn described(request: &Request<Incoming>, port: u16, peer: SocketAddr) -> String {
    let mut said = format!("{} port={port} client={}\n", who(), peer.ip());
    let (method, path) = (request.method(), request.uri().path_and_query());
    let path = path.map_or("/", |path| path.as_str());
    // Writing to a String cannot fail.
    let _ = writeln!(said, "request: {method} {path} {:?}", request.version());
    let _ = writeln!(said, "authority: {}", request.uri().authority().map_or("", |a| a.as_str()));
    for (name, value) in request.headers() {
        let _ = writeln!(said, "{name}: {}", String::from_utf8_lossy(value.as_bytes()));
    }
    said
}

async fn answer(
    mut request: Request<Incoming>,
    port: u16,
    peer: SocketAddr,
) -> Result<Response<Body>, Infallible> {
    let mut response = Response::new(text(described(&request, port, peer)));
    if request.headers().contains_key("upgrade") {
        upgrade(&mut request);
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.body_mut() = text("");
        response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
        response.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
        return Ok(response);
    }
    if request.uri().path() == "/healthy" {
        if let Some(set) = word(&request, "set") {
            HEALTHY.store(set == "true", Ordering::Relaxed);
        }
        if !HEALTHY.load(Ordering::Relaxed) {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        return Ok(response);
    }
    if request.uri().path() == "/grpc.health.v1.Health/Check" {
        // HealthCheckResponse: field 1 is the status, 1 is SERVING, 2 NOT_SERVING.
        // Read first: a question that is not heard out is answered with a reset.
        request.body_mut().fold_length().await;
        let status = if HEALTHY.load(Ordering::Relaxed) { 1 } else { 2 };
        let said = Bytes::from(vec![0, 0, 0, 0, 2, 8, status]);
        return Ok(grpc(response, said));
    }
    if request.uri().path().starts_with("/auth") {
        let good = request.headers().get("authorization").is_some_and(|value| value == "letmein");
        *response.status_mut() = if good { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
        response.headers_mut().insert("x-user", HeaderValue::from_static("ann"));
        return Ok(response);
    }
    if let Some(millis) = asked(&request, "sleep") {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
    if word(&request, "once").is_some_and(is_first) {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let status = asked(&request, "status").and_then(|code| u16::try_from(code).ok());
    if let Some(status) = status.and_then(|code| StatusCode::from_u16(code).ok()) {
        *response.status_mut() = status;
    }
    let kib = asked(&request, "header").and_then(|kib| usize::try_from(kib).ok()).unwrap_or(0);
    if kib > 0
        && let Ok(value) = HeaderValue::from_str(&"x".repeat(kib * 1024))
    {
        response.headers_mut().insert("x-large", value);
    }
    if let Some(count) = asked(&request, "lines") {
        *response.body_mut() = lines(count);
        return Ok(response);
    }
    let is_grpc =
        request.headers().get("content-type").is_some_and(|kind| kind == "application/grpc");
    let length = request.body_mut().fold_length().await;
    if is_grpc {
        response = grpc(response, Bytes::from(format!("{} body={length}\n", who())));
    } else if length > 0 {
        *response.body_mut() = text(format!("{} body={length}\n", who()));
    }
    Ok(response)
}

fn grpc(mut response: Response<Body>, said: Bytes) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(said)), Ok(Frame::trailers(trailers))];
    *response.body_mut() = BodyExt::boxed(StreamBody::new(stream::iter(frames)));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

/// A line a second.
fn lines(count: u64) -> Body {
    let line = |number| async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(Frame::data(Bytes::from(format!("line {number}\n"))))
    };
    BodyExt::boxed(StreamBody::new(stream::iter(0..count).then(line)))
}

trait Length {
    async fn fold_length(&mut self) -> u64;
}

impl Length for Incoming {
    async fn fold_length(&mut self) -> u64 {
        let mut length = 0;
        while let Some(Ok(frame)) = self.frame().await {
            length += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        length
    }
}

/// Sends back what comes after the handshake.
fn upgrade(request: &mut Request<Incoming>) {
    let upgraded = hyper::upgrade::on(request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgraded.await {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    });
}

async fn serve<S>(stream: S, port: u16, peer: SocketAddr)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| answer(request, port, peer));
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().max_buf_size(512 * 1024);
    builder.http2().max_header_list_size(512 * 1024);
    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

/// Connections that begin with a PROXY protocol header; one that does not is closed.
async fn proxied(port: u16) -> std::io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    loop {
        let (mut stream, peer) = listener.accept().await?;
        tokio::spawn(async move {
            if let Ok(client) = client(&mut stream, peer).await {
                serve(stream, port, client).await;
            }
        });
    }
}

/// Who the header says the client is; the peer itself where it says nobody (LOCAL, UNKNOWN).
async fn client(stream: &mut TcpStream, peer: SocketAddr) -> std::io::Result<SocketAddr> {
    let bad = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let mut start = [0; 12];
    stream.read_exact(&mut start).await?;
    if start == *b"\r\n\r\n\0\r\nQUIT\n" {
        let mut rest = [0; 4];
        stream.read_exact(&mut rest).await?;
        let mut body = vec![0; usize::from(u16::from_be_bytes([rest[2], rest[3]]))];
        stream.read_exact(&mut body).await?;
        let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
        return match (rest[0], rest[1] >> 4) {
            (0x20, _) => Ok(peer),
            (0x21, 1) if body.len() >= 12 => {
                Ok(([body[0], body[1], body[2], body[3]], port(8)).into())
            }
            (0x21, 2) if body.len() >= 36 => {
                let mut octets = [0; 16];
                octets.copy_from_slice(&body[..16]);
                Ok((octets, port(32)).into())
            }
            _ => Err(bad()),
        };
    }
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") && line.len() < 108 {
        line.push(stream.read_u8().await?);
    }
    let line = String::from_utf8(line).map_err(|_| bad())?;
    let words: Vec<_> = line.split_whitespace().collect();
    match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => Ok(peer),
        ["PROXY", _, ip, _, port, _] => {
            Ok((ip.parse::<IpAddr>().map_err(|_| bad())?, port.parse().map_err(|_| bad())?).into())
        }
        _ => Err(bad()),
    }
}

async fn http(port: u16, tls: Option<TlsAcceptor>) -> std::io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    loop {
        let (stream, peer) = listener.accept().await?;
        let tls = tls.clone();
        tokio::spawn(async move {
            match tls {
                None => serve(stream, port, peer).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, port, peer).await;
                    }
                }
            }
        });
    }
}

async fn udp(port: u16) -> std::io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", port)).await?;
    let mut buffer = vec![0; 65_535];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).await?;
        let mut answer = format!("{} port={port} client={peer}\n", who()).into_bytes();
        answer.resize(answer.len().max(length), b'.');
        socket.send_to(&answer, peer).await?;
    }
}

/// TLS with the certificate of `TLS_FOLDER`, or with one of its own making.
fn tls() -> anyhow::Result<TlsAcceptor> {
    let made = rcgen::generate_simple_self_signed(vec!["backend.example".to_owned()])?;
    let key =
        PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let (mut chain, mut private) = (vec![made.cert.der().clone()], key);
    if let Ok(folder) = std::env::var("TLS_FOLDER") {
        use tokio_rustls::rustls::pki_types::pem::PemObject;
        let certificates = tokio_rustls::rustls::pki_types::CertificateDer::pem_file_iter(
            format!("{folder}/tls.crt"),
        )?;
        chain = certificates.collect::<Result<_, _>>()?;
        private = PrivateKeyDer::from_pem_file(format!("{folder}/tls.key"))?;
    }
    let mut config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(chain, private)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    // The only provider that is built in.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let mut servers = tokio::task::JoinSet::new();
    for port in ports("HTTP_PORTS") {
        servers.spawn(http(port, None));
    }
    for port in ports("HTTPS_PORTS") {
        servers.spawn(http(port, Some(tls()?)));
    }
    for port in ports("PROXY_PORTS") {
        servers.spawn(proxied(port));
    }
    for port in ports("UDP_PORTS") {
        servers.spawn(udp(port));
    }
    let mut stop = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = stop.recv() => Ok(()),
        ended = servers.join_next() => Ok(ended.map_or(Ok(()), |result| result?)?),
    }
}
