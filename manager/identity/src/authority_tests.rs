use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{RootCertStore, crypto};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;

const YEAR: i64 = 365 * 86_400;
const DAY: i64 = 86_400;
const NOW: i64 = 1_800_000_000;

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
}

fn server(authority: &Authority, now: i64) -> Issued {
    let names = ["fairlead-manager".to_owned()];
    let subject = Subject { id: "spiffe://fairlead.local/manager", names: &names };
    let spki = SubjectPublicKeyInfo::from_der(&key().subject_public_key_info()).unwrap();
    authority.issue(&subject, &spki, [9; 16], now, DAY).unwrap()
}

/// Whether somebody who trusts `roots` believes a server that shows `chain`.
fn believed(roots: &str, chain: &str, now: i64) -> bool {
    let mut store = RootCertStore::empty();
    for root in certificates(roots) {
        store.add(root).unwrap();
    }
    let provider = Arc::new(crypto::ring::default_provider());
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build().unwrap();
    let chain = certificates(chain);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now.unsigned_abs()));
    let name = ServerName::try_from("fairlead-manager").unwrap();
    verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], now).is_ok()
}

fn situation(now: i64) -> Situation {
    Situation { now, asked: None, confirmed: None, lifetime: DAY }
}

#[test]
fn a_certificate_says_what_the_hub_says_and_nothing_else() {
    let authority = Authority::new(&key(), NOW, YEAR).unwrap();
    let spki = SubjectPublicKeyInfo::from_der(&key().subject_public_key_info()).unwrap();
    let id = "spiffe://fairlead.local/tenant/blue/agent/abcdefghij";
    let subject = Subject { id, names: &[] };
    let issued = authority.issue(&subject, &spki, [0; 16], NOW, DAY).unwrap();
    let der = &certificates(&issued.chain)[0];
    let (_, parsed) = X509Certificate::from_der(der).unwrap();
    assert!(!parsed.is_ca());
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    let names = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.len(), 1);
    assert_eq!(format!("{:x}", parsed.serial), issued.serial);
    assert_eq!(parsed.validity().not_before.timestamp(), NOW - 300);
    assert_eq!(parsed.validity().not_after.timestamp(), NOW + DAY);
    assert!(
        !believed(&authority.roots(), &issued.chain, NOW),
        "a client's certificate serves nobody"
    );
}

#[test]
fn nothing_outlives_the_authority() {
    let authority = Authority::new(&key(), NOW, 3_600).unwrap();
    assert_eq!(server(&authority, NOW).not_after, NOW + 3_600);
}

/// Prepare, activate, retire, three times: who follows and who was away all the time both reach the hub.
#[test]
fn a_replaced_authority_locks_nobody_out() {
    let mut authority = Authority::new(&key(), NOW, YEAR).unwrap();
    let away = authority.roots();
    let mut now = NOW;
    for round in 0..3 {
        let before = authority.roots();
        authority.prepare(&key(), now, YEAR).unwrap();
        assert!(believed(&before, &server(&authority, now).chain, now), "prepared");
        let told = authority.roots();
        authority.activate(now + 1);
        now += 1;
        for (who, roots) in [("told", &told), ("not told", &before), ("away", &away)] {
            assert!(believed(roots, &server(&authority, now).chain, now), "round {round}: {who}");
        }
        now += DAY + 301;
        assert_eq!(authority.due(situation(now)), Some(Step::Retire));
        authority.retire();
        assert_eq!(certificates(&authority.roots()).len(), 1);
        assert!(believed(&away, &server(&authority, now).chain, now), "round {round}: retired");
        assert_eq!(authority.due(situation(now)), None);
    }
    let stranger = Authority::new(&key(), NOW, YEAR).unwrap();
    assert!(!believed(&stranger.roots(), &server(&authority, now).chain, now));
}

#[test]
fn a_new_authority_signs_once_everybody_connected_knows_it() {
    let mut authority = Authority::new(&key(), NOW, YEAR).unwrap();
    assert_eq!(authority.due(situation(NOW + 1)), None);
    let asked = Situation { asked: Some(NOW + 1), ..situation(NOW + 1) };
    assert_eq!(authority.due(asked), Some(Step::Prepare));
    assert_eq!(authority.due(situation(NOW + YEAR / 2 + 1)), Some(Step::Prepare), "half its life");
    authority.prepare(&key(), NOW + 2, YEAR).unwrap();
    let knows = |sequence| Situation { confirmed: sequence, ..situation(NOW + 3) };
    assert_eq!(authority.due(knows(Some(1))), None, "somebody does not know it yet");
    assert_eq!(authority.due(knows(Some(2))), Some(Step::Activate));
    assert_eq!(authority.due(knows(None)), Some(Step::Activate), "nobody is there");
    let late = Situation { confirmed: Some(0), ..situation(NOW + 603) };
    assert_eq!(authority.due(late), Some(Step::Activate), "nobody holds it up for ever");
    authority.activate(NOW + 3);
    assert_eq!(authority.due(asked), None, "what was asked for is done");
    assert_eq!(
        authority.due(situation(NOW + 3 + DAY)),
        None,
        "what the old one signed is valid still"
    );
}

#[test]
fn a_key_that_signs_no_more_is_forgotten() {
    let first = key();
    let mut authority = Authority::new(&first, NOW, YEAR).unwrap();
    authority.prepare(&key(), NOW, YEAR).unwrap();
    authority.activate(NOW);
    let stored = String::from_utf8(authority.stored().unwrap()).unwrap();
    let own = first.serialize_pem().lines().nth(1).unwrap().to_owned();
    assert!(!stored.contains(&own));
    assert_eq!(Authority::parse(stored.as_bytes()).unwrap(), authority);
    assert!(Authority::parse(b"{}").is_err());
}

#[test]
fn an_authority_from_files_is_somebody_elses_to_replace() {
    let own = key();
    let (certificate, _) = root(&own, NOW, YEAR).unwrap();
    let authority = Authority::of_files(
        &certificate,
        &own.serialize_pem(),
        std::slice::from_ref(&certificate),
        7,
    );
    let authority = authority.unwrap();
    assert_eq!((authority.sequence(), authority.due(situation(NOW + YEAR - 1))), (7, None));
    assert!(believed(&authority.roots(), &server(&authority, NOW).chain, NOW));
    let other = key().serialize_pem();
    assert!(Authority::of_files(&certificate, &other, &[], 1).is_err(), "not its key");
}
