use fairlead_identity::Authority;
use fairlead_identity::authority::Subject;
use rcgen::{KeyPair, PublicKeyData, SubjectPublicKeyInfo};
use rustls::pki_types::pem::PemObject;

use super::*;

const DOMAIN: &str = "fairlead.local";
const VERSION: u64 = 7;

struct World {
    list: AllowList,
    used: mpsc::UnboundedReceiver<Used>,
    authority: Authority,
}

fn authority() -> Authority {
    let now = jiff::Timestamp::now().as_second();
    Authority::new(&KeyPair::generate().unwrap(), now, 86_400).unwrap()
}

fn roots(authority: &Authority) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(authority.roots().as_bytes()).map(Result::unwrap).collect()
}

fn certificate(authority: &Authority, id: &str, serial: u8) -> (CertificateDer<'static>, String) {
    let key = KeyPair::generate().unwrap();
    let spki = SubjectPublicKeyInfo::from_der(&key.subject_public_key_info()).unwrap();
    let subject = Subject { id, names: &[] };
    let now = jiff::Timestamp::now().as_second();
    let issued = authority.issue(&subject, &spki, [serial; 16], now, 3_600).unwrap();
    (CertificateDer::from_pem_slice(issued.chain.as_bytes()).unwrap(), issued.serial)
}

fn blue() -> TenantId {
    "blue".parse().unwrap()
}

fn agent() -> AgentId {
    "abcdefghij".parse().unwrap()
}

fn agent_id() -> String {
    Identity::Agent { tenant: blue(), agent: agent() }.id(DOMAIN)
}

fn spec(revoked: bool) -> AgentSpec {
    AgentSpec { bound_key: String::new(), revoked, max_recoveries: 5 }
}

fn status(serial: &str, next: Option<&str>) -> AgentStatus {
    AgentStatus {
        serial: serial.into(),
        next_serial: next.map(str::to_owned),
        ..AgentStatus::default()
    }
}

impl World {
    fn new(foreign: &[CertificateDer<'static>]) -> Self {
        let (send, used) = mpsc::unbounded_channel();
        let authority = authority();
        let own = roots(&authority);
        let list = AllowList::new(DOMAIN, Box::new(move || own.clone()), send);
        list.believe(foreign).unwrap();
        list.tenant(&blue(), Some(&[]));
        list.complete();
        Self { list, used, authority }
    }

    fn admit(&self, certificate: &CertificateDer<'static>) -> Result<CancellationToken, String> {
        let address = "127.0.0.1:1".parse().unwrap();
        let chain = std::slice::from_ref(certificate);
        let Admitted { identity, refusal, end } = self.list.admit(chain, address).unwrap();
        match refusal {
            None => Ok(end),
            Some(why) => {
                assert_eq!(identity, None, "who is refused is nobody");
                Err(why)
            }
        }
    }
}

#[tokio::test]
async fn an_agent_comes_in_with_the_certificate_that_was_issued_to_it_last() {
    let mut world = World::new(&[]);
    let (first, one) = certificate(&world.authority, &agent_id(), 1);
    let (second, two) = certificate(&world.authority, &agent_id(), 2);
    assert!(world.admit(&first).unwrap_err().contains("knows no agent"));
    world.list.agent(
        &blue(),
        &agent(),
        Some((&spec(false), Some(&status("", Some(&one))), VERSION)),
    );
    let before = world.admit(&first).unwrap();
    assert!(matches!(world.used.try_recv(), Ok(Used::New { serial, .. }) if serial == one));
    // A new one was issued; the old one counts until the new one is used.
    world.list.agent(
        &blue(),
        &agent(),
        Some((&spec(false), Some(&status(&one, Some(&two))), VERSION)),
    );
    world.admit(&first).unwrap();
    world.admit(&second).unwrap();
    assert!(matches!(world.used.try_recv(), Ok(Used::New { serial, .. }) if serial == two));
    let refused = world.admit(&first).unwrap_err();
    assert!(refused.contains("replaced") && refused.contains(&one), "{refused}");
    assert!(matches!(world.used.try_recv(), Ok(Used::Superseded { .. })));
    // What is written late does not bring the old one back.
    world.list.agent(
        &blue(),
        &agent(),
        Some((&spec(false), Some(&status(&one, Some(&two))), VERSION)),
    );
    assert!(world.admit(&first).is_err());
    assert!(!before.is_cancelled(), "no connection is lost by a renewal");
    // Nor does what a watch tells late of an older state.
    world.list.agent(&blue(), &agent(), Some((&spec(false), None, VERSION - 1)));
    world.admit(&second).unwrap();
}

#[tokio::test]
async fn who_leaves_the_list_loses_its_connections() {
    let world = World::new(&[]);
    let (certificate, serial) = certificate(&world.authority, &agent_id(), 1);
    let there = status(&serial, None);
    for (what, leave) in [
        (
            "revoked",
            Box::new(|list: &AllowList| {
                list.agent(&blue(), &agent(), Some((&spec(true), None, VERSION)));
            }) as Box<dyn Fn(&AllowList)>,
        ),
        ("knows no agent", Box::new(|list: &AllowList| list.agent(&blue(), &agent(), None))),
        ("has no tenant", Box::new(|list: &AllowList| list.tenant(&blue(), None))),
    ] {
        world.list.tenant(&blue(), Some(&[]));
        world.list.agent(&blue(), &agent(), Some((&spec(false), Some(&there), VERSION)));
        let open = world.admit(&certificate).unwrap();
        leave(&world.list);
        assert!(open.is_cancelled(), "{what}");
        let refused = world.admit(&certificate).unwrap_err();
        assert!(refused.contains(what), "{what}: {refused}");
    }
}

#[tokio::test]
async fn an_envoy_comes_in_while_its_pod_is_there() {
    let world = World::new(&[]);
    let id = Identity::Envoy { pod: "envoy-1".into() }.id(DOMAIN);
    let (certificate, _) = certificate(&world.authority, &id, 1);
    assert!(world.admit(&certificate).is_err());
    world.list.envoy("envoy-1", true);
    let open = world.admit(&certificate).unwrap();
    world.list.envoy("envoy-1", false);
    assert!(open.is_cancelled() && world.admit(&certificate).is_err());
}

#[tokio::test]
async fn a_foreign_trust_domain_is_believed_for_the_ids_of_tenants_alone() {
    let foreign = authority();
    let world = World::new(&roots(&foreign));
    let id = "spiffe://corp.example/ns/fairlead-system/sa/fairlead-agent";
    let (named, _) = certificate(&foreign, id, 1);
    assert!(world.admit(&named).unwrap_err().contains("spec.spiffeIDs"));
    world.list.tenant(&blue(), Some(&[id.to_owned()]));
    let open = world.admit(&named).unwrap();
    // It can name whom it likes: that is not believed.
    world.list.agent(&blue(), &agent(), Some((&spec(false), Some(&status("", None)), VERSION)));
    world.list.envoy("envoy-1", true);
    for other in [
        agent_id(),
        Identity::Envoy { pod: "envoy-1".into() }.id(DOMAIN),
        Identity::Manager.id(DOMAIN),
    ] {
        let (certificate, _) = certificate(&foreign, &other, 2);
        assert!(world.admit(&certificate).is_err(), "{other}");
    }
    // Another tenant cannot take the id over.
    let red = "red".parse().unwrap();
    world.list.tenant(&red, Some(&[id.to_owned()]));
    assert!(!open.is_cancelled());
    world.list.tenant(&blue(), Some(&[]));
    assert!(open.is_cancelled());
}

#[tokio::test]
async fn whom_the_hub_believes_no_more_is_out_at_once() {
    let (one, another) = (authority(), authority());
    let world = World::new(&roots(&one));
    let id = "spiffe://corp.example/ns/fairlead-system/sa/fairlead-agent";
    world.list.tenant(&blue(), Some(&[id.to_owned()]));
    let (first, _) = certificate(&one, id, 1);
    let (second, _) = certificate(&another, id, 1);
    let open = world.admit(&first).unwrap();
    assert!(world.admit(&second).unwrap_err().contains("no CA that is believed"));
    world.list.believe(&roots(&another)).unwrap();
    assert!(open.is_cancelled() && world.admit(&first).is_err());
    let open = world.admit(&second).unwrap();
    world.list.believe(&[]).unwrap();
    assert!(open.is_cancelled() && world.admit(&second).is_err());
    // With nobody else to believe, a name of the hub's own is believed of the hub's own CA alone.
    let (stranger, _) = certificate(&one, &agent_id(), 1);
    assert!(world.admit(&stranger).unwrap_err().contains("no CA that is believed"));
}

#[tokio::test]
async fn nobody_is_let_in_before_everything_was_read_and_managers_never() {
    let (send, _used) = mpsc::unbounded_channel();
    let authority = authority();
    let own = roots(&authority);
    let list = AllowList::new(DOMAIN, Box::new(move || own.clone()), send);
    let (manager, _) = certificate(&authority, &Identity::Manager.id(DOMAIN), 1);
    let address = "127.0.0.1:1".parse().unwrap();
    let refusal = list.admit(std::slice::from_ref(&manager), address).unwrap().refusal.unwrap();
    assert!(refusal.contains("starting"), "{refusal}");
    list.complete();
    let refusal = list.admit(std::slice::from_ref(&manager), address).unwrap().refusal.unwrap();
    assert!(refusal.contains("managers do not connect"), "{refusal}");
}

#[tokio::test]
async fn connections_have_bounds_and_the_oldest_makes_way() {
    let world = World::new(&[]);
    let (certificate, serial) = certificate(&world.authority, &agent_id(), 1);
    world.list.agent(
        &blue(),
        &agent(),
        Some((&spec(false), Some(&status(&serial, None)), VERSION)),
    );
    let mine: Vec<_> = (0..=PER_BEARER).map(|_| world.admit(&certificate).unwrap()).collect();
    assert!(mine[0].is_cancelled() && mine[1..].iter().all(|one| !one.is_cancelled()));
    let address = "127.0.0.1:1".parse().unwrap();
    let stranger = || world.list.admit(&[], address).unwrap();
    let strangers: Vec<_> = (0..=STRANGERS).map(|_| stranger()).collect();
    assert!(strangers.iter().all(|one| one.identity.is_none()));
    assert!(strangers[0].end.is_cancelled() && !strangers[1].end.is_cancelled());
    assert!(!mine[1].is_cancelled(), "strangers displace strangers only");
}

#[test]
fn a_ca_that_cannot_be_used_is_refused_before_it_counts() {
    let file = std::env::temp_dir().join(format!("fairlead-foreign-{}", std::process::id()));
    assert_eq!(foreign_roots(&file).unwrap(), []);
    let pem = |der: &[u8]| {
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    };
    let good = roots(&authority());
    std::fs::write(&file, pem(&good[0])).unwrap();
    assert_eq!(foreign_roots(&file).unwrap(), good);
    std::fs::write(&file, pem(&good[0]) + &pem(b"not a certificate")).unwrap();
    let error = format!("{:#}", foreign_roots(&file).unwrap_err());
    assert!(error.contains("fairlead-foreign"), "{error}");
    std::fs::remove_file(&file).unwrap();
}
