//! A tenant's Secret → what Envoy is sent of it, by SDS only.

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret as EnvoySecret, TlsCertificate, secret,
};
use fairlead_api::TenantId;
use fairlead_xds::{Key, Resource, ResourceType};

use crate::pb::inline_bytes;

/// A Secret by tenant, namespace and name in the tenant cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretId {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its namespace there.
    pub namespace: Box<str>,
    /// Its name there.
    pub name: Box<str>,
}

impl SecretId {
    /// A tenant's Secret.
    pub fn new(tenant: &TenantId, namespace: &str, name: &str) -> Self {
        Self { tenant: tenant.clone(), namespace: namespace.into(), name: name.into() }
    }
}

/// What there is of a Secret, checked: of each part its content, or what is wrong with it. A part that
/// is not there is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Secret {
    /// `tls.crt` and `tls.key`: a chain, and the key that belongs to its first certificate.
    pub certificate: Option<Result<Pair, String>>,
    /// `ca.crt`: certificates to trust.
    pub ca: Option<Result<Vec<u8>, String>>,
    /// `auth`: lines of `user:{SHA}…`.
    pub users: Option<Result<String, String>>,
}

/// A certificate chain and its key, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The chain.
    pub chain: Vec<u8>,
    /// The key.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pair")
    }
}

/// The name by which Envoy asks for a certificate.
pub(crate) fn certificate_name(id: &SecretId) -> String {
    format!("{}/{}/{}", id.tenant, id.namespace, id.name)
}

/// The name by which Envoy asks for the certificates to trust.
pub(crate) fn ca_name(tenant: &TenantId, namespace: &str, name: &str) -> String {
    format!("{tenant}/{namespace}/{name}/ca")
}

/// What Envoy may ask for.
pub(crate) fn translate(id: &SecretId, secret: &Secret) -> Vec<Resource> {
    let Secret { certificate, ca, users: _ } = secret;
    let mut resources = Vec::new();
    if let Some(Ok(Pair { chain, key })) = certificate {
        let certificate = TlsCertificate {
            certificate_chain: Some(inline_bytes(chain)),
            private_key: Some(inline_bytes(key)),
            ..TlsCertificate::default()
        };
        resources.push(named(certificate_name(id), secret::Type::TlsCertificate(certificate)));
    }
    if let Some(Ok(trusted)) = ca {
        let context = CertificateValidationContext {
            trusted_ca: Some(inline_bytes(trusted)),
            ..CertificateValidationContext::default()
        };
        let name = ca_name(&id.tenant, &id.namespace, &id.name);
        resources.push(named(name, secret::Type::ValidationContext(context)));
    }
    resources
}

fn named(name: String, content: secret::Type) -> Resource {
    let key = Key::new(ResourceType::Secret, name.as_str());
    Resource::new(key, &EnvoySecret { name, r#type: Some(content) }, [])
}
