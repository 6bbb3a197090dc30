//! Certificate signing requests (PKCS #10, RFC 2986): what a stranger sends. Only the public key is taken.

use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::FromDer;

/// A request is a few hundred bytes long.
const MAX_BYTES: usize = 4 << 10;

/// Why a request gets no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Longer than any good one.
    #[error("the certificate request is longer than 4 KiB")]
    TooLong,
    /// Not one.
    #[error("the certificate request cannot be read (PKCS #10, DER)")]
    Malformed,
    /// Not the bearer of the key.
    #[error("the certificate request is not signed by its own key")]
    Signature,
    /// Not P-256.
    #[error("the certificate request's key must be an ECDSA key on P-256")]
    Key,
    /// It asks to be an authority.
    #[error("the certificate request asks for a CA certificate; agents get none")]
    Authority,
    /// It asks for somebody else's name.
    #[error("the certificate request asks for the name {0:?}; this bearer's is {1:?}")]
    Name(String, String),
}

/// Reads a request (DER) of the bearer of `id`. The certificate's content is the hub's to say: what the
/// request asks for beyond that is refused rather than left out, so that its sender learns of it.
///
/// # Errors
/// What is wrong with it.
pub fn public_key(der: &[u8], id: &str) -> Result<SubjectPublicKeyInfo, RequestError> {
    if der.len() > MAX_BYTES {
        return Err(RequestError::TooLong);
    }
    let (rest, request) =
        X509CertificationRequest::from_der(der).map_err(|_| RequestError::Malformed)?;
    if !rest.is_empty() {
        return Err(RequestError::Malformed);
    }
    let key = &request.certification_request_info.subject_pki;
    let curve = key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_EC_P256) {
        return Err(RequestError::Key);
    }
    request.verify_signature().map_err(|_| RequestError::Signature)?;
    for extension in request.requested_extensions().into_iter().flatten() {
        match extension {
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                return Err(RequestError::Authority);
            }
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    if *name != GeneralName::URI(id) {
                        let asked = format!("{name:?}").chars().take(200).collect();
                        return Err(RequestError::Name(asked, id.to_owned()));
                    }
                }
            }
            _ => {}
        }
    }
    SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| RequestError::Key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, PublicKeyData, SanType};

    use super::*;

    const ID: &str = "spiffe://fairlead.local/tenant/blue/agent/abcdefghij";

    fn request(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().der().to_vec()
    }

    fn named(id: &str) -> Vec<u8> {
        request(|params| params.subject_alt_names.push(SanType::URI(id.try_into().unwrap())))
    }

    #[test]
    fn a_request_without_wishes_or_with_its_own_name_is_good() {
        public_key(&request(|_| {}), ID).unwrap();
        public_key(&named(ID), ID).unwrap();
    }

    #[test]
    fn what_a_request_may_not_ask_for_is_named() {
        let ca = request(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        assert_eq!(public_key(&ca, ID), Err(RequestError::Authority));
        let other = named("spiffe://fairlead.local/tenant/red/agent/abcdefghij");
        let error = public_key(&other, ID).unwrap_err().to_string();
        assert!(error.contains("tenant/red") && error.contains("tenant/blue"), "{error}");
        let dns = request(|params| {
            params.subject_alt_names.push(SanType::DnsName("fairlead-manager".try_into().unwrap()));
        });
        assert!(matches!(public_key(&dns, ID), Err(RequestError::Name(..))));
    }

    #[test]
    fn another_kind_of_key_or_a_broken_signature_is_refused() {
        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let der = CertificateParams::default().serialize_request(&ed25519).unwrap();
        assert_eq!(public_key(der.der(), ID), Err(RequestError::Key));
        let mut broken = request(|_| {});
        let last = broken.len() - 1;
        broken[last] ^= 1;
        assert_eq!(public_key(&broken, ID), Err(RequestError::Signature));
        assert_eq!(public_key(&vec![0; 5_000], ID), Err(RequestError::TooLong));
    }

    #[test]
    fn what_fuzzing_found_is_taken_calmly() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/request");
        let mut good = 0;
        for file in std::fs::read_dir(corpus).unwrap() {
            good +=
                u32::from(public_key(&std::fs::read(file.unwrap().path()).unwrap(), ID).is_ok());
        }
        assert!(good > 0, "the corpus has a good one, from which others were made");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = public_key(&bytes, ID);
        }

        /// What its key signed, that is: the frame around it has bytes that say nothing (a tag's class).
        #[test]
        fn no_changed_byte_is_taken(at in 0_usize..10_000, to in any::<u8>()) {
            let der = named(ID);
            let (_, whole) = X509CertificationRequest::from_der(&der).unwrap();
            let signed = whole.certification_request_info.raw;
            let begin = der.windows(signed.len()).position(|part| part == signed).unwrap();
            let (key, at) = (public_key(&der, ID).unwrap(), at % der.len());
            let mut changed = der.clone();
            changed[at] = to;
            if let Ok(taken) = public_key(&changed, ID) {
                let is_signed = (begin..begin + signed.len()).contains(&at);
                prop_assert!(!is_signed || der[at] == to, "byte {at} was changed to {to}");
                prop_assert_eq!(taken.subject_public_key_info(), key.subject_public_key_info());
            }
        }
    }
}
