//! An agent's bound key, and what it signs. Each purpose has its own words, so that a signature for one is
//! of no use for another.

use anyhow::{Context, Result, anyhow};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;

/// `SubjectPublicKeyInfo` of a P-256 key, up to the point (RFC 5480).
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// What is signed to join by the token `id` with a certificate request.
pub fn enroll_message(id: &str, csr: &[u8]) -> Vec<u8> {
    message("enroll", id.as_bytes(), csr)
}

/// What is signed to recover with a challenge of the hub and a certificate request.
pub fn recover_message(challenge: &[u8], csr: &[u8]) -> Vec<u8> {
    message("recover", challenge, csr)
}

fn message(purpose: &str, with: &[u8], csr: &[u8]) -> Vec<u8> {
    // Hashes have one length: no two messages are the same bytes.
    let (with, csr) = (digest(&SHA256, with), digest(&SHA256, csr));
    [b"fairlead.v1 ", purpose.as_bytes(), b"\0", with.as_ref(), csr.as_ref()].concat()
}

/// The key that an agent keeps for as long as it exists (ECDSA on P-256).
pub struct BoundKey {
    pair: EcdsaKeyPair,
    pem: String,
}

impl std::fmt::Debug for BoundKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BoundKey")
    }
}

impl BoundKey {
    /// A new one.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn generate() -> Result<Self> {
        let made =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new());
        let der = made.map_err(|_| anyhow!("no key could be made"))?;
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der.as_ref());
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            lines.join("\n")
        );
        Self::from_pem(&pem)
    }

    /// Reads one (PKCS #8, PEM).
    ///
    /// # Errors
    /// It is none.
    pub fn from_pem(pem: &str) -> Result<Self> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).context("the bound key")?;
        let pair = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_ASN1_SIGNING,
            der.secret_pkcs8_der(),
            &SystemRandom::new(),
        );
        let pair = pair.map_err(|error| anyhow!("the bound key: {error}"))?;
        Ok(Self { pair, pem: pem.to_owned() })
    }

    /// As [`BoundKey::from_pem`] reads it.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The public key, as `SubjectPublicKeyInfo` (DER).
    pub fn public(&self) -> Vec<u8> {
        [P256_PREFIX.as_slice(), self.pair.public_key().as_ref()].concat()
    }

    /// Signs a message.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        let signed = self.pair.sign(&SystemRandom::new(), message);
        Ok(signed.map_err(|_| anyhow!("nothing could be signed"))?.as_ref().to_vec())
    }
}
