//! What is in a tenant's Secret, checked as Envoy would: agents say early what is wrong, and the
//! manager believes no agent.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

/// Envoy refuses less.
const RSA_BITS: usize = 2_048;
const MAX_USERS: usize = 1_000;

/// What a certificate says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certificate {
    /// When it ends, in seconds since 1970.
    pub not_after: i64,
}

/// Reads a chain (`tls.crt`) with its key (`tls.key`), both PEM.
///
/// # Errors
/// What is wrong, naming the key of the Secret.
pub fn pair(chain: &[u8], key: &[u8]) -> Result<Certificate, String> {
    let certificates = certificates("tls.crt", chain)?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| "tls.key: holds no PEM private key".to_owned())?;
    let provider = rustls::crypto::ring::default_provider();
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| format!("tls.key: this private key cannot be used: {error}"))?;
    let first = certificates[0].clone();
    CertifiedKey::new(certificates, key)
        .keys_match()
        .map_err(|_| "tls.key: is not the key of the first certificate in tls.crt".to_owned())?;
    let (_, parsed) = X509Certificate::from_der(&first)
        .map_err(|_| "tls.crt: the first certificate cannot be read".to_owned())?;
    strong_enough(&parsed)?;
    Ok(Certificate { not_after: parsed.validity().not_after.timestamp() })
}

fn strong_enough(certificate: &X509Certificate<'_>) -> Result<(), String> {
    match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) if key.key_size() < RSA_BITS => {
            Err(format!("tls.crt: its RSA key has {} bits, {RSA_BITS} are needed", key.key_size()))
        }
        Ok(PublicKey::RSA(_) | PublicKey::EC(_)) => Ok(()),
        _ => Err("tls.crt: only RSA and ECDSA certificates can be served".into()),
    }
}

fn certificates(field: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| format!("{field}: {error}"))?;
    for one in &all {
        X509Certificate::from_der(one).map_err(|_| format!("{field}: a certificate is broken"))?;
    }
    if all.is_empty() { Err(format!("{field}: holds no PEM certificate")) } else { Ok(all) }
}

/// Reads certificates to trust (`ca.crt`, PEM).
///
/// # Errors
/// What is wrong, naming the key of the Secret.
pub fn trusted(ca: &[u8]) -> Result<(), String> {
    certificates("ca.crt", ca).map(drop)
}

/// Reads users and passwords (`auth`), as `htpasswd -s` writes them: the one hash that Envoy knows.
/// The lines come back without comments.
///
/// # Errors
/// What is wrong, naming the key of the Secret and the line.
pub fn users(auth: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(auth).map_err(|_| "auth: is not text".to_owned())?;
    let (mut lines, mut names) = (Vec::new(), std::collections::BTreeSet::new());
    for (number, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = |what: &str| format!("auth: line {}: {what}", number + 1);
        let (name, hash) = line.split_once(':').ok_or_else(|| at("is not user:hash"))?;
        let hash = hash.strip_prefix("{SHA}").ok_or_else(|| {
            at("only {SHA} hashes can be checked here; write it with htpasswd -s")
        })?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
        if name.is_empty() || hash.len() != 28 || !hash.bytes().all(plain) {
            return Err(at("is not a {SHA} hash of 28 characters"));
        }
        if !names.insert(name) {
            return Err(at("this user is there twice"));
        }
        lines.push(line);
    }
    match lines.len() {
        0 => Err("auth: names no user".into()),
        1..=MAX_USERS => Ok(lines.join("\n")),
        _ => Err(format!("auth: at most {MAX_USERS} users")),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    use super::*;

    fn certificate() -> (String, String) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(vec!["shop.example.com".to_owned()]).unwrap();
        (cert.pem(), signing_key.serialize_pem())
    }

    #[test]
    fn a_certificate_needs_its_own_key() {
        let ((chain, key), (_, other)) = (certificate(), certificate());
        assert!(pair(chain.as_bytes(), key.as_bytes()).unwrap().not_after > 0);
        let error = pair(chain.as_bytes(), other.as_bytes()).unwrap_err();
        assert!(error.starts_with("tls.key: is not the key"), "{error}");
        assert!(pair(b"", key.as_bytes()).unwrap_err().contains("tls.crt"));
        assert!(pair(chain.as_bytes(), b"x").unwrap_err().contains("tls.key"));
        trusted(chain.as_bytes()).unwrap();
        assert!(trusted(b"nothing").is_err());
    }

    #[test]
    fn users_are_those_of_htpasswd_with_the_one_hash_that_envoy_knows() {
        let good = "# people\nann:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n\n";
        assert_eq!(users(good.as_bytes()).unwrap(), "ann:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=");
        let bcrypt = users(b"ann:$2y$05$abc").unwrap_err();
        assert!(bcrypt.contains("line 1") && bcrypt.contains("htpasswd -s"), "{bcrypt}");
        assert!(users(b"").is_err() && users(b"ann").is_err());
    }
}
