//! Requests for certificates.

use anyhow::Result;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};

/// A fresh key (PKCS #8, PEM) and a certificate request for it (PKCS #10, DER), which asks for this SPIFFE id
/// or for no name at all.
///
/// # Errors
/// The system gives no random bytes, or the id is none.
pub fn request(id: Option<&str>) -> Result<(String, Vec<u8>)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(id) = id {
        params.subject_alt_names.push(SanType::URI(Ia5String::try_from(id)?));
    }
    let csr = params.serialize_request(&key)?;
    Ok((key.serialize_pem(), csr.der().to_vec()))
}
