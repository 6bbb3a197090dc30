//! Connections that are opened.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::clock::Clock;
use super::credentials::{Credentials, configuration, spki_hash};
use crate::locks::lock;

/// Connects to a gRPC server.
///
/// `address` is `host:port`; the server's certificate must be for `server_name`.
///
/// # Errors
/// What keeps the two apart.
pub async fn connect(
    address: &str,
    server_name: &str,
    credentials: &Credentials,
) -> Result<Channel> {
    open(address, server_name, credentials.client()?).await
}

/// As [`connect`], with a configuration that was made already.
///
/// # Errors
/// What keeps the two apart.
pub async fn open(address: &str, server_name: &str, config: Arc<ClientConfig>) -> Result<Channel> {
    let connector = TlsConnector::from(config);
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

/// A client that believes one certificate of a CA: the one whose public key has this SHA-256 and that the
/// server itself sends. Which one that was is read after the handshake.
///
/// # Errors
/// The cryptography of this build is of no use.
pub fn pinned(pin: [u8; 32], clock: &Arc<Clock>) -> Result<(Arc<ClientConfig>, Arc<Pinned>)> {
    let verifier = Arc::new(Pinned { pin, believed: Mutex::default() });
    let mut config = configuration(clock)?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok((Arc::new(config), verifier))
}

/// Believes one public key of a CA.
#[derive(Debug)]
pub struct Pinned {
    pin: [u8; 32],
    believed: Mutex<Option<CertificateDer<'static>>>,
}

impl Pinned {
    /// The CA's certificate that was believed.
    pub fn believed(&self) -> Option<CertificateDer<'static>> {
        lock(&self.believed).clone()
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // Not the end entity itself: the pin is a CA's.
        let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let mut ours = intermediates.iter().filter(|one| spki_hash(one) == Some(self.pin));
        let anchor = ours.next().ok_or_else(unknown)?.clone().into_owned();
        let mut roots = RootCertStore::empty();
        roots.add(anchor.clone())?;
        let provider = Arc::new(default_provider());
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let verified =
            inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        *lock(&self.believed) = Some(anchor);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = default_provider().signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = default_provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}
