//! What one side of a connection shows, and whose certificates it believes.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ring::digest::{SHA256, digest};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::clock::Clock;

/// Certificates and a key.
#[derive(Debug)]
pub struct Credentials {
    /// Whose certificates are believed.
    pub roots: Vec<CertificateDer<'static>>,
    /// The own certificate with its intermediates, and its key.
    pub own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    /// By which a client judges the other side's certificate.
    pub clock: Arc<Clock>,
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        let own = self.own.as_ref().map(|(chain, key)| (chain.clone(), key.clone_key()));
        Self { roots: self.roots.clone(), own, clock: self.clock.clone() }
    }
}

/// Which clients a server takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Those with a certificate alone.
    WithCertificate,
    /// Those without one, too.
    Any,
}

impl Credentials {
    /// Reads PEM texts; `own` are a chain and its key.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn from_pem(roots: &[u8], own: Option<(&[u8], &[u8])>) -> Result<Self> {
        let own = own.map(|(chain, key)| {
            let key = PrivateKeyDer::from_pem_slice(key).context("tls.key")?;
            Ok::<_, anyhow::Error>((certificates(chain).context("tls.crt")?, key))
        });
        let roots = certificates(roots).context("ca.crt")?;
        Ok(Self { roots, own: own.transpose()?, clock: Arc::default() })
    }

    /// Reads `ca.crt`, `tls.crt` and `tls.key` of a folder, as a Secret of type `kubernetes.io/tls` mounts
    /// them.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).with_context(|| path.display().to_string())
        };
        let (roots, chain, key) = (read("ca.crt")?, read("tls.crt")?, read("tls.key")?);
        Self::from_pem(&roots, Some((&chain, &key))).with_context(|| folder.display().to_string())
    }

    /// Further certificates to believe.
    pub fn believe(&mut self, roots: &[CertificateDer<'static>]) {
        self.roots.extend_from_slice(roots);
    }

    /// A server's side.
    ///
    /// # Errors
    /// A certificate cannot be used, or there is none.
    pub fn server(&self, clients: Clients) -> Result<Arc<ServerConfig>> {
        let verifier = WebPkiClientVerifier::builder(Arc::new(store(&self.roots)?));
        let verifier = match clients {
            Clients::WithCertificate => verifier.build()?,
            Clients::Any => verifier.allow_unauthenticated().build()?,
        };
        let (chain, key) = self.own.as_ref().context("a server needs a certificate")?;
        let builder = ServerConfig::builder().with_client_cert_verifier(verifier);
        let mut config = builder.with_single_cert(chain.clone(), key.clone_key())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// A client's side.
    ///
    /// # Errors
    /// A certificate cannot be used.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        let builder = configuration(&self.clock)?.with_root_certificates(store(&self.roots)?);
        let mut config = match &self.own {
            Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key())?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

/// A client's configuration that goes by this clock.
pub(super) fn configuration(
    clock: &Arc<Clock>,
) -> Result<ConfigBuilder<ClientConfig, WantsVerifier>> {
    let builder = ClientConfig::builder_with_details(default_provider().into(), clock.clone());
    Ok(builder.with_safe_default_protocol_versions()?)
}

pub(super) fn store(roots: &[CertificateDer<'static>]) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    Ok(store)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let list = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    if list.is_empty() {
        bail!("holds no certificate");
    }
    Ok(list)
}

/// SHA-256 of a certificate's `SubjectPublicKeyInfo` (RFC 7469's pin); `None` where it cannot be read.
pub fn spki_hash(certificate: &[u8]) -> Option<[u8; 32]> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    digest(&SHA256, parsed.public_key().raw).as_ref().try_into().ok()
}
