//! Who signs certificates.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fairlead_identity::Authority;
use fairlead_identity::authority::{Issued, Subject};
use fairlead_process::identity::Bearer;
use fairlead_process::token::{random, sha256};
use k8s_openapi::ByteString;
use kube::api::{DeleteParams, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use rcgen::SubjectPublicKeyInfo;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use x509_parser::prelude::{FromDer, X509Certificate};

/// cert-manager signs within a second or so; an issuer outside of the cluster takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IssuerKind {
    /// The manager's own authority, in a Secret.
    Builtin,
    /// An authority in a folder (`ca.crt`, `tls.crt`, `tls.key`), which somebody else replaces.
    Files(PathBuf),
    /// An issuer of cert-manager: (kind, name, group); the folder has its `ca.crt`.
    CertManager { kind: String, name: String, group: String, folder: PathBuf },
}

/// Reads the authority of a folder. `tls.crt` and `tls.key` are the one that signs, `ca.crt` all that are
/// trusted.
pub(crate) fn authority_of(folder: &Path, sequence: u64) -> Result<Authority> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let (certificate, key) = (read("tls.crt")?, read("tls.key")?);
    let roots = roots_of(folder)?;
    Ok(Authority::of_files(&certificate, &key, &roots, sequence)?)
}

/// The certificates in a folder's `ca.crt`, each PEM.
pub(crate) fn roots_of(folder: &Path) -> Result<Vec<String>> {
    let path = folder.join("ca.crt");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let end = "-----END CERTIFICATE-----";
    let all = text.split_inclusive(end).filter(|part| part.contains(end));
    Ok(all.map(|part| format!("{}\n", part.trim())).collect())
}

/// A lifetime as the authority counts it.
pub(crate) fn seconds(lifetime: Duration) -> i64 {
    i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX / 4)
}

/// Signs with an authority that this process has.
pub(crate) fn sign(
    authority: &Authority,
    subject: &Subject<'_>,
    key: &SubjectPublicKeyInfo,
    lifetime: Duration,
) -> Result<Issued> {
    let now = jiff::Timestamp::now().as_second();
    Ok(authority.issue(subject, key, random()?, now, seconds(lifetime))?)
}

/// cert-manager's `CertificateRequest` (<https://cert-manager.io/docs/usage/certificaterequest/>).
#[derive(Clone)]
pub(crate) struct CertManager {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) group: String,
}

impl CertManager {
    /// Has a request signed. cert-manager takes all names from the request: it must ask for exactly the
    /// subject's.
    pub(crate) async fn sign(
        &self,
        subject: &Subject<'_>,
        csr: &[u8],
        lifetime: Duration,
    ) -> Result<Issued> {
        let kind = GroupVersionKind::gvk("cert-manager.io", "v1", "CertificateRequest");
        let api: Api<DynamicObject> = Api::namespaced_with(
            self.client.clone(),
            &self.namespace,
            &ApiResource::from_gvk(&kind),
        );
        let name = format!("fairlead-{}", &sha256(csr)[..20]);
        let usages: &[&str] = if subject.names.is_empty() {
            &["digital signature", "client auth"]
        } else {
            &["digital signature", "client auth", "server auth"]
        };
        let request = json!({
            "apiVersion": "cert-manager.io/v1",
            "kind": "CertificateRequest",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "fairlead"}},
            "spec": {
                "request": ByteString(pem(csr).into_bytes()),
                "issuerRef": {"kind": self.kind, "name": self.name, "group": self.group},
                "duration": format!("{}s", lifetime.as_secs()),
                "isCA": false,
                "usages": usages,
            },
        });
        match api.create(&PostParams::default(), &serde_json::from_value(request)?).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            made => drop(made.context("CertificateRequest")?),
        }
        let ended = await_condition(api.clone(), &name, |object: Option<&DynamicObject>| {
            object.is_none_or(|object| outcome(object).is_some())
        });
        let ended = tokio::time::timeout(PATIENCE, ended).await;
        let object = ended.with_context(|| {
            format!("CertificateRequest {name} was not answered within 30 s; see its conditions")
        })??;
        let outcome = object.as_ref().and_then(outcome);
        // It was answered: it is of no use any more.
        let _ = api.delete(&name, &DeleteParams::default()).await;
        match outcome {
            Some(Ok(chain)) => issued(chain, subject.id, subject.names.len()),
            Some(Err(why)) => bail!("CertificateRequest {name}: {why}"),
            None => bail!("CertificateRequest {name} was deleted"),
        }
    }
}

/// What became of a request: the chain (PEM), or why there is none.
fn outcome(object: &DynamicObject) -> Option<Result<String, String>> {
    let status = object.data.get("status")?;
    let conditions = status.get("conditions")?.as_array()?;
    let text = |value: &serde_json::Value, name: &str| {
        value.get(name).and_then(|text| text.as_str()).unwrap_or_default().to_owned()
    };
    for condition in conditions {
        let (kind, holds) = (text(condition, "type"), text(condition, "status") == "True");
        let ready = kind == "Ready";
        if (holds && matches!(kind.as_str(), "Denied" | "InvalidRequest"))
            || (ready && !holds && text(condition, "reason") == "Failed")
        {
            return Some(Err(text(condition, "message")));
        }
        if ready && holds {
            let bytes: ByteString =
                serde_json::from_value(status.get("certificate")?.clone()).ok()?;
            return Some(String::from_utf8(bytes.0).map_err(|error| error.to_string()));
        }
    }
    None
}

/// An issuer may do otherwise than it was asked: what it signed is looked at.
fn issued(chain: String, id: &str, more: usize) -> Result<Issued> {
    let first = CertificateDer::from_pem_slice(chain.as_bytes())
        .map_err(|error| anyhow::anyhow!("cert-manager's certificate: {error}"))?;
    let Bearer { id: is, serial, not_after } = Bearer::of(&first)?;
    let (_, parsed) = X509Certificate::from_der(&first)?;
    let names =
        parsed.subject_alternative_name()?.map_or(0, |names| names.value.general_names.len());
    if parsed.is_ca() || names != 1 + more {
        bail!("cert-manager's issuer signed a certificate with other names, or a CA's");
    }
    if is != id {
        bail!("cert-manager's issuer signed for {is:?}, not for {id:?}");
    }
    Ok(Issued { chain, serial, not_after })
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> =
        text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect();
    format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        lines.join("\n")
    )
}
