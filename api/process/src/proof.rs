//! An agent's bound key, and what it signs. Each purpose has its own words, so that a signature for one is
//! of no use for another.

use anyhow::{Context, Result};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SigningKey};
use ring::digest::{SHA256, digest};

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
pub struct BoundKey(KeyPair);

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
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// Reads one (PKCS #8, PEM).
    ///
    /// # Errors
    /// It is none.
    pub fn from_pem(pem: &str) -> Result<Self> {
        let pair = KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ECDSA_P256_SHA256);
        Ok(Self(pair.context("the bound key")?))
    }

    /// As [`BoundKey::from_pem`] reads it.
    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// The public key, as `SubjectPublicKeyInfo` (DER).
    pub fn public(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// Signs a message (ASN.1).
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        Ok(self.0.sign(message)?)
    }
}
