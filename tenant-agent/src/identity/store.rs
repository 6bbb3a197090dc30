//! The Secret with this agent's keys. The chart makes it, empty; this agent may read and change that one alone.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use fairlead_process::identity::Bearer;
use fairlead_process::proof::BoundKey;
use fairlead_process::tls::Credentials;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// The key that this agent has for as long as it exists (PEM).
    pub(crate) bound_key: String,
    /// The SPIFFE id that the hub gave it.
    pub(crate) id: String,
    /// The certificate with its chain, and its key (PEM).
    pub(crate) chain: String,
    pub(crate) key: String,
    /// What is trusted (PEM), and the hub's number for that.
    pub(crate) roots: String,
    pub(crate) sequence: u64,
    /// The token by which it is about to join anew, and the key for that.
    pub(crate) next_id: String,
    pub(crate) next_key: String,
}

/// When a certificate begins and ends, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) from: i64,
    pub(crate) until: i64,
}

impl Kept {
    /// For a connection; `None` before this agent has joined.
    pub(crate) fn credentials(&self) -> Result<Option<Credentials>> {
        if self.chain.is_empty() {
            return Ok(None);
        }
        let own = (self.chain.as_bytes(), self.key.as_bytes());
        Credentials::from_pem(self.roots.as_bytes(), Some(own)).map(Some)
    }

    pub(crate) fn bound_key(&self) -> Result<BoundKey> {
        BoundKey::from_pem(&self.bound_key)
    }

    /// How long the certificate is valid.
    pub(crate) fn validity(&self) -> Result<Validity> {
        let der = CertificateDer::from_pem_slice(self.chain.as_bytes()).context("tls.crt")?;
        let (_, parsed) = X509Certificate::from_der(&der).context("tls.crt")?;
        let validity = parsed.validity();
        Ok(Validity {
            from: validity.not_before.timestamp(),
            until: validity.not_after.timestamp(),
        })
    }

    /// The certificate's serial number.
    pub(crate) fn serial(&self) -> String {
        let der = CertificateDer::from_pem_slice(self.chain.as_bytes());
        let bearer = der.ok().and_then(|der| Bearer::of(&der).ok());
        bearer.map(|bearer| bearer.serial).unwrap_or_default()
    }
}

/// The Secret.
#[derive(Clone)]
pub(crate) struct Keys {
    api: Api<Secret>,
    name: String,
}

impl Keys {
    pub(crate) fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), name: name.to_owned() }
    }

    /// Reads what is kept.
    pub(crate) async fn load(&self) -> Result<Kept> {
        let secret = self.api.get(&self.name).await;
        let secret = secret.with_context(|| {
            format!("Secret {} cannot be read; the chart fairlead-agent makes it", self.name)
        })?;
        let data = secret.data.unwrap_or_default();
        let text = |name: &str| {
            data.get(name)
                .map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())
                .unwrap_or_default()
        };
        Ok(Kept {
            bound_key: text("bound.key"),
            id: text("id"),
            chain: text("tls.crt"),
            key: text("tls.key"),
            roots: text("ca.crt"),
            sequence: text("sequence").parse().unwrap_or(0),
            next_id: text("next.id"),
            next_key: text("next.key"),
        })
    }

    /// Keeps it.
    pub(crate) async fn save(&self, kept: &Kept) -> Result<()> {
        let Kept { bound_key, id, chain, key, roots, sequence, next_id, next_key } = kept;
        let sequence = sequence.to_string();
        let data: BTreeMap<&str, ByteString> = [
            ("bound.key", bound_key),
            ("id", id),
            ("tls.crt", chain),
            ("tls.key", key),
            ("ca.crt", roots),
            ("sequence", &sequence),
            ("next.id", next_id),
            ("next.key", next_key),
        ]
        .map(|(name, text)| (name, ByteString(text.clone().into_bytes())))
        .into();
        let patch = Patch::Merge(json!({ "data": data }));
        let saved = self.api.patch(&self.name, &PatchParams::default(), &patch).await;
        saved.map(drop).with_context(|| format!("Secret {} cannot be written", self.name))
    }
}
