//! Proofs that somebody bears an agent's bound key (ECDSA on P-256 with SHA-256, ASN.1 signatures), and the
//! challenges that make a proof a fresh one.

use ring::hmac;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use fairlead_process::proof::{enroll_message, recover_message};

/// A challenge is answered at once.
const CHALLENGE_SECONDS: i64 = 60;
const TAG: usize = 32;
const NONCE: usize = 16;

/// Whether a key (`SubjectPublicKeyInfo`, DER) signed that it joins by the token `id` with this request.
pub fn joins(key: &[u8], signature: &[u8], id: &str, csr: &[u8]) -> bool {
    signed(key, signature, &enroll_message(id, csr))
}

/// Whether a key signed this challenge and this request.
pub fn recovers(key: &[u8], signature: &[u8], challenge: &[u8], csr: &[u8]) -> bool {
    signed(key, signature, &recover_message(challenge, csr))
}

fn signed(key: &[u8], signature: &[u8], message: &[u8]) -> bool {
    let Ok(([], spki)) = SubjectPublicKeyInfo::from_der(key) else { return false };
    let point = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, spki.subject_public_key.as_ref());
    point.verify(message, signature).is_ok()
}

/// Makes challenges and knows its own, though it keeps none of them: a challenge is a nonce, the time, and a
/// tag over both and over whom it is for.
#[derive(Debug)]
pub struct Challenger(hmac::Key);

impl Challenger {
    /// With a secret of this process.
    pub fn new(secret: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// A challenge for the agent with this SPIFFE id.
    pub fn challenge(&self, id: &str, nonce: [u8; NONCE], now: i64) -> Vec<u8> {
        let mut challenge = [nonce.as_slice(), &now.to_be_bytes()].concat();
        let tag = hmac::sign(&self.0, &[challenge.as_slice(), id.as_bytes()].concat());
        challenge.extend_from_slice(tag.as_ref());
        challenge
    }

    /// Whether it was made here, for this agent, within the last minute.
    pub fn knows(&self, challenge: &[u8], id: &str, now: i64) -> bool {
        let Some((content, tag)) = challenge.split_at_checked(challenge.len().saturating_sub(TAG))
        else {
            return false;
        };
        let Some(time) = content.get(NONCE..).and_then(|time| time.try_into().ok()) else {
            return false;
        };
        let age = now.saturating_sub(i64::from_be_bytes(time));
        let message = [content, id.as_bytes()].concat();
        hmac::verify(&self.0, &message, tag).is_ok() && (0..=CHALLENGE_SECONDS).contains(&age)
    }
}

#[cfg(test)]
mod tests {
    use fairlead_process::proof::BoundKey;

    use super::*;

    #[test]
    fn a_proof_is_for_one_key_one_token_and_one_request() {
        let (key, other) = (BoundKey::generate().unwrap(), BoundKey::generate().unwrap());
        let signature = key.sign(&enroll_message("token", b"csr")).unwrap();
        assert!(joins(&key.public(), &signature, "token", b"csr"));
        assert!(!joins(&other.public(), &signature, "token", b"csr"));
        assert!(!joins(&key.public(), &signature, "tokens", b"csr"));
        assert!(!joins(&key.public(), &signature, "token", b"csr2"));
        assert!(!recovers(&key.public(), &signature, b"token", b"csr"), "another purpose");
        assert!(
            !joins(b"", &signature, "token", b"csr") && !joins(&key.public(), b"", "token", b"csr")
        );
    }

    #[test]
    fn a_challenge_is_for_one_agent_and_one_minute() {
        let challenger = Challenger::new(&[1; 32]);
        let challenge = challenger.challenge("blue", [2; 16], 1_000);
        assert!(challenger.knows(&challenge, "blue", 1_000));
        assert!(challenger.knows(&challenge, "blue", 1_060));
        assert!(!challenger.knows(&challenge, "blue", 1_061));
        assert!(!challenger.knows(&challenge, "blue", 999));
        assert!(!challenger.knows(&challenge, "red", 1_000));
        assert!(!Challenger::new(&[3; 32]).knows(&challenge, "blue", 1_000));
        for length in 0..challenge.len() {
            assert!(!challenger.knows(&challenge[..length], "blue", 1_000), "{length}");
        }
    }
}
