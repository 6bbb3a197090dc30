//! The hub's own certificate authority, and how it is replaced: *prepare* (everybody is told of the new
//! one), *activate* (once they have it, it signs), *retire* (once nothing that the old one signed is valid,
//! nobody trusts it).
//!
//! Whoever was away meanwhile still reaches the hub: each new authority is also certified by the one before
//! it (a *bridge*), and servers send these along.

use std::sync::Arc;

use fairlead_process::identity::BACKDATED;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// Who has not confirmed a new authority within so many seconds is not waited for.
const PATIENCE: i64 = 600;
/// Bridges that servers send: whoever was away for more replacements than this has to join anew.
const MAX_BRIDGES: usize = 4;

/// Where an authority is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Everybody is being told of it.
    Prepared,
    /// It signs.
    Active,
    /// It signed what may be valid still. Its key is forgotten.
    Retiring,
}

/// One certificate of an authority. `key` is empty once it signs no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Generation {
    certificate: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    key: String,
    phase: Phase,
    /// When the phase began, in seconds since 1970.
    since: i64,
    created: i64,
    not_after: i64,
}

/// A new authority's key, certified by the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bridge {
    certificate: String,
    not_after: i64,
}

/// The authority with those that it follows and that will follow it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authority {
    /// Grows with each change of what is trusted.
    sequence: u64,
    /// The oldest first; exactly one is active.
    generations: Vec<Generation>,
    #[serde(default)]
    bridges: Vec<Bridge>,
}

/// The next thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make the next one.
    Prepare,
    /// Let the prepared one sign.
    Activate,
    /// Trust the oldest no more.
    Retire,
}

/// What decides about the next step. Times are seconds since 1970, or just seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// Now.
    pub now: i64,
    /// When somebody asked for a new authority.
    pub asked: Option<i64>,
    /// The lowest sequence that everybody who is connected has confirmed; `None`: nobody is.
    pub confirmed: Option<u64>,
    /// How long a certificate is valid that the authority issues.
    pub lifetime: i64,
}

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The SPIFFE id.
    pub id: &'a str,
    /// Names that it serves under; none: it is a client only.
    pub names: &'a [String],
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// With the certificates that lead to each authority that is or was trusted, PEM.
    pub chain: String,
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// When it ends, in seconds since 1970.
    pub not_after: i64,
}

/// Why nothing could be issued.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthorityError {
    /// What is stored is not an authority.
    #[error("the stored authority cannot be read: {0}")]
    Stored(String),
    /// Not one of those that are stored signs.
    #[error("no authority is active")]
    NotActive,
    /// A key or a name cannot be used.
    #[error("{0}")]
    Certificate(Arc<rcgen::Error>),
}

impl From<rcgen::Error> for AuthorityError {
    fn from(error: rcgen::Error) -> Self {
        Self::Certificate(Arc::new(error))
    }
}

impl Authority {
    /// The first one, valid for so many seconds.
    ///
    /// # Errors
    /// The key cannot be used.
    pub fn new(key: &KeyPair, now: i64, lifetime: i64) -> Result<Self, AuthorityError> {
        let (certificate, not_after) = root(key, now, lifetime)?;
        let first = Generation {
            certificate,
            key: key.serialize_pem(),
            phase: Phase::Active,
            since: now,
            created: now,
            not_after,
        };
        Ok(Self { sequence: 1, generations: vec![first], bridges: Vec::new() })
    }

    /// One whose certificate and key (PEM) come from elsewhere, which also replaces it. `roots` are all that
    /// are trusted.
    ///
    /// # Errors
    /// They cannot be read, or do not belong together.
    pub fn of_files(
        certificate: &str,
        key: &str,
        roots: &[String],
        sequence: u64,
    ) -> Result<Self, AuthorityError> {
        let pair = KeyPair::from_pem(key)?;
        Issuer::from_ca_cert_pem(certificate, &pair)?;
        let stored = |error: &str| AuthorityError::Stored(error.to_owned());
        let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes())
            .map_err(|_| stored("the certificate is not PEM"))?;
        let parsed = pem.parse_x509().map_err(|_| stored("the certificate cannot be read"))?;
        if !parsed.is_ca() {
            return Err(stored("the certificate is not a CA's"));
        }
        if parsed.public_key().raw != pair.subject_public_key_info() {
            return Err(stored("the key is not the certificate's"));
        }
        let not_after = parsed.validity().not_after.timestamp();
        let generation = |certificate: String, key: String, phase: Phase| Generation {
            certificate,
            key,
            phase,
            since: 0,
            created: 0,
            not_after,
        };
        let others = roots.iter().filter(|root| root.trim() != certificate.trim());
        let mut generations: Vec<_> =
            others.map(|root| generation(root.clone(), String::new(), Phase::Retiring)).collect();
        generations.push(generation(certificate.to_owned(), key.to_owned(), Phase::Active));
        Ok(Self { sequence, generations, bridges: Vec::new() })
    }

    /// Reads what [`Authority::stored`] wrote.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(json: &[u8]) -> Result<Self, AuthorityError> {
        let read: Self = serde_json::from_slice(json)
            .map_err(|error| AuthorityError::Stored(error.to_string()))?;
        read.active()?;
        Ok(read)
    }

    /// For keeping. It holds private keys.
    ///
    /// # Errors
    /// None in practice.
    pub fn stored(&self) -> Result<Vec<u8>, AuthorityError> {
        serde_json::to_vec_pretty(self).map_err(|error| AuthorityError::Stored(error.to_string()))
    }

    /// Grows with each change of what is trusted.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// What is trusted, PEM.
    pub fn roots(&self) -> String {
        self.generations.iter().map(|one| one.certificate.as_str()).collect()
    }

    /// The certificate whose public key a join token is pinned to, PEM.
    pub fn anchor(&self) -> Result<&str, AuthorityError> {
        Ok(self.active()?.certificate.as_str())
    }

    fn active(&self) -> Result<&Generation, AuthorityError> {
        let mut active = self.generations.iter().filter(|one| one.phase == Phase::Active);
        active.next().ok_or(AuthorityError::NotActive)
    }

    fn prepared(&self) -> Option<&Generation> {
        self.generations.iter().find(|one| one.phase == Phase::Prepared)
    }

    /// The next step, if it is time for one.
    pub fn due(&self, situation: Situation) -> Option<Step> {
        let Situation { now, asked, confirmed, lifetime } = situation;
        if let Some(prepared) = self.prepared() {
            // Nobody connected: whoever comes learns of both, or comes by a bridge. Nor can anybody hold a new
            // authority up for ever by not confirming it.
            let late = now > prepared.since + lifetime.min(PATIENCE);
            let known = late || confirmed.is_none_or(|sequence| sequence >= self.sequence);
            return known.then_some(Step::Activate);
        }
        let retiring = self.generations.iter().find(|one| one.phase == Phase::Retiring);
        if retiring.is_some_and(|one| {
            one.since > 0 && now > one.since + lifetime + BACKDATED.min(lifetime)
        }) {
            return Some(Step::Retire);
        }
        let active = self.active().ok()?;
        if active.created == 0 {
            // From files: somebody else's to replace.
            return None;
        }
        let aged = now > active.created + (active.not_after - active.created) / 2;
        let wanted = asked.is_some_and(|asked| asked > active.created);
        (aged || wanted).then_some(Step::Prepare)
    }

    /// A new authority is trusted, and does not sign yet.
    ///
    /// # Errors
    /// A key cannot be used.
    pub fn prepare(
        &mut self,
        key: &KeyPair,
        now: i64,
        lifetime: i64,
    ) -> Result<(), AuthorityError> {
        let (certificate, not_after) = root(key, now, lifetime)?;
        let active = self.active()?;
        let signer = KeyPair::from_pem(&active.key)?;
        let before = Issuer::from_ca_cert_pem(&active.certificate, &signer)?;
        let mut params = ca_params(key, now, active.not_after)?;
        params.not_after = at(active.not_after)?;
        let bridge = params.signed_by(key, &before)?.pem();
        self.bridges.push(Bridge { certificate: bridge, not_after: active.not_after });
        self.bridges.retain(|bridge| bridge.not_after > now);
        let surplus = self.bridges.len().saturating_sub(MAX_BRIDGES);
        self.bridges.drain(..surplus);
        self.generations.push(Generation {
            certificate,
            key: key.serialize_pem(),
            phase: Phase::Prepared,
            since: now,
            created: now,
            not_after,
        });
        self.sequence += 1;
        Ok(())
    }

    /// The prepared authority signs from now on, and the key of the one before is forgotten.
    pub fn activate(&mut self, now: i64) {
        for one in &mut self.generations {
            match one.phase {
                Phase::Active => {
                    (one.phase, one.since) = (Phase::Retiring, now);
                    one.key.clear();
                }
                Phase::Prepared => (one.phase, one.since) = (Phase::Active, now),
                Phase::Retiring => {}
            }
        }
    }

    /// The oldest is trusted no more.
    pub fn retire(&mut self) {
        if let Some(oldest) = self.generations.iter().position(|one| one.phase == Phase::Retiring) {
            self.generations.remove(oldest);
            self.sequence += 1;
        }
    }

    /// Issues a certificate, valid for `lifetime` seconds. Nothing in it comes from a stranger but the key.
    ///
    /// # Errors
    /// A key or a name cannot be used.
    pub fn issue(
        &self,
        subject: &Subject<'_>,
        key: &SubjectPublicKeyInfo,
        serial: [u8; 16],
        now: i64,
        lifetime: i64,
    ) -> Result<Issued, AuthorityError> {
        let active = self.active()?;
        let signer = KeyPair::from_pem(&active.key)?;
        let issuer = Issuer::from_ca_cert_pem(&active.certificate, &signer)?;
        let Subject { id, names } = subject;
        let mut params = CertificateParams::new(*names)?;
        params.subject_alt_names.push(SanType::URI(Ia5String::try_from(*id)?));
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !names.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let not_after = (now + lifetime).min(active.not_after);
        (params.not_before, params.not_after) = (at(now - BACKDATED)?, at(not_after)?);
        let serial = positive(serial);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params.signed_by(key, &issuer)?;
        // A server's: whoever trusts any of these finds the way.
        let way = if names.is_empty() { String::new() } else { self.way() };
        let chain = certificate.pem() + &way;
        Ok(Issued { chain, serial: fairlead_process::token::hex(&serial), not_after })
    }

    /// Certificates that lead from the active authority to every one that was trusted once.
    fn way(&self) -> String {
        let bridges = self.bridges.iter().rev().map(|bridge| bridge.certificate.as_str());
        bridges.chain(self.generations.iter().map(|one| one.certificate.as_str())).collect()
    }
}

/// A serial number that is positive and has no leading zeros (RFC 5280, 4.1.2.2).
fn positive(mut serial: [u8; 16]) -> [u8; 16] {
    serial[0] = serial[0] & 0x3f | 0x40;
    serial
}

fn root(key: &KeyPair, now: i64, lifetime: i64) -> Result<(String, i64), AuthorityError> {
    let params = ca_params(key, now, now + lifetime)?;
    Ok((params.self_signed(key)?.pem(), now + lifetime))
}

/// The subject tells authorities apart: those who look for an issuer look by name.
fn ca_params(key: &KeyPair, now: i64, not_after: i64) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    let pin = fairlead_process::token::sha256(&key.subject_public_key_info());
    name.push(DnType::CommonName, format!("Fairlead CA {}", &pin[..12]));
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (at(now - BACKDATED)?, at(not_after)?);
    Ok(params)
}

fn at(seconds: i64) -> Result<OffsetDateTime, AuthorityError> {
    OffsetDateTime::from_unix_timestamp(seconds)
        .map_err(|error| AuthorityError::Stored(format!("a time out of range: {error}")))
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
