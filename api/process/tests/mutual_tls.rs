//! Connections in process: who gets in, as whom, and what those learn who do not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::bail;
use arc_swap::ArcSwap;
use fairlead_process::identity::Bearer;
use fairlead_process::tls::{
    self, Admission, Admitted, Clients, Connection, Credentials, spki_hash,
};
use futures::StreamExt;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Credentials for `id` that trust `trusted`.
fn credentials(ca: &Ca, trusted: &Ca, id: &str, expired: bool) -> Credentials {
    valid(ca, trusted, id, if expired { (1975, 2020) } else { (1975, 4096) })
}

/// Credentials that are valid from a year's first day to another's.
fn valid(ca: &Ca, trusted: &Ca, id: &str, (from, until): (i32, i32)) -> Credentials {
    let mut params = CertificateParams::new(vec!["fairlead-manager".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI(id.try_into().unwrap()));
    params.not_before = date_time_ymd(from, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    let key = KeyPair::generate().unwrap();
    let chain = params.signed_by(&key, ca).unwrap().pem() + &ca.pem();
    let own = (chain.as_bytes(), key.serialize_pem());
    Credentials::from_pem(trusted.pem().as_bytes(), Some((own.0, own.1.as_bytes()))).unwrap()
}

/// Lets in who has a SPIFFE id, and writes down who came.
#[derive(Default)]
struct Guests {
    ids: Mutex<Vec<String>>,
    ends: Mutex<Vec<CancellationToken>>,
}

impl Admission for Guests {
    fn admit(&self, chain: &[CertificateDer<'_>], _: SocketAddr) -> anyhow::Result<Admitted> {
        let Some(first) = chain.first() else { bail!("no certificate") };
        let end = CancellationToken::new();
        self.ids.lock().unwrap().push(Bearer::of(first)?.id);
        self.ends.lock().unwrap().push(end.clone());
        Ok(Admitted { identity: None, refusal: None, end })
    }
}

type Accepted = ReceiverStream<std::io::Result<Connection>>;

async fn server(own: &Credentials, guests: Arc<Guests>) -> (SocketAddr, Accepted) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = Arc::new(ArcSwap::new(own.server(Clients::WithCertificate).unwrap()));
    let begin = CancellationToken::new();
    begin.cancel();
    (address, tls::accept(listener, config, guests, begin, CancellationToken::new()))
}

async fn dial(address: SocketAddr, client: &Credentials) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from("fairlead-manager").unwrap();
    TlsConnector::from(client.client().unwrap()).connect(name, tcp).await
}

/// Whether the server lets this client in: only then does it answer.
async fn enters(address: SocketAddr, client: &Credentials) -> bool {
    let Ok(mut stream) = dial(address, client).await else { return false };
    stream.read_exact(&mut [0; 2]).await.is_ok()
}

/// Says hi to each who comes, and stays.
fn greet(mut accepted: Accepted) {
    tokio::spawn(async move {
        while let Some(Ok(mut connection)) = accepted.next().await {
            tokio::spawn(async move {
                connection.write_all(b"hi").await.unwrap();
                connection.flush().await.unwrap();
                let _ = connection.read(&mut [0; 1]).await;
            });
        }
    });
}

const BLUE: &str = "spiffe://fairlead.local/tenant/blue/agent/abcdefghij";

#[tokio::test]
async fn only_a_valid_certificate_of_the_hubs_ca_gets_in_and_it_says_who() {
    let (own, other) = (ca(), ca());
    let manager = credentials(&own, &own, "spiffe://fairlead.local/manager", false);
    let guests = Arc::new(Guests::default());
    let (address, accepted) = server(&manager, guests.clone()).await;
    greet(accepted);
    // The client of another CA trusts the server all the same.
    for (name, client, welcome) in [
        ("good", credentials(&own, &own, BLUE, false), true),
        ("expired", credentials(&own, &own, BLUE, true), false),
        ("another CA", credentials(&other, &own, BLUE, false), false),
        ("no SPIFFE id", credentials(&own, &own, "https://fairlead.local/manager", false), false),
        ("none", Credentials { own: None, ..credentials(&own, &own, BLUE, false) }, false),
    ] {
        assert_eq!(enters(address, &client).await, welcome, "{name}");
    }
    // Without TLS.
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.ends_with(b"hi"));
    assert_eq!(*guests.ids.lock().unwrap(), [BLUE]);
}

#[tokio::test]
async fn a_connection_that_may_not_go_on_is_closed() {
    let own = ca();
    let manager = credentials(&own, &own, "spiffe://fairlead.local/manager", false);
    let guests = Arc::new(Guests::default());
    let (address, accepted) = server(&manager, guests.clone()).await;
    greet(accepted);
    let client = credentials(&own, &own, BLUE, false);
    let mut stream = dial(address, &client).await.unwrap();
    stream.read_exact(&mut [0; 2]).await.unwrap();
    let ended = tokio::spawn(async move { stream.read(&mut [0; 1]).await });
    guests.ends.lock().unwrap()[0].cancel();
    let ended = tokio::time::timeout(Duration::from_secs(5), ended).await.expect("at once");
    assert!(!matches!(ended.unwrap(), Ok(1..)));
}

/// Whoever says nothing makes way for who does.
#[tokio::test]
async fn a_thousand_silent_connections_keep_nobody_waiting() {
    let own = ca();
    let manager = credentials(&own, &own, "spiffe://fairlead.local/manager", false);
    let (address, accepted) = server(&manager, Arc::default()).await;
    greet(accepted);
    let mut silent = Vec::new();
    for _ in 0..1_000 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let client = credentials(&own, &own, BLUE, false);
    let entered = tokio::time::timeout(Duration::from_secs(5), enters(address, &client)).await;
    assert_eq!(entered, Ok(true));
    // The oldest were closed, and have not grown the server for ten seconds.
    let closed = tokio::time::timeout(Duration::from_secs(2), silent[0].read(&mut [0; 1])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
}

#[tokio::test]
async fn a_pin_lets_the_client_tell_the_hub_from_an_impostor() {
    let (own, other) = (ca(), ca());
    for (of, welcome) in [(&own, true), (&other, false)] {
        let manager = credentials(of, &own, "spiffe://fairlead.local/manager", false);
        let (address, _accepted) = server(&manager, Arc::default()).await;
        let (config, pinned) = tls::pinned(spki_hash(own.der()).unwrap(), &Arc::default()).unwrap();
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("fairlead-manager").unwrap();
        let connected = TlsConnector::from(config).connect(name, tcp).await;
        // Without a certificate of its own nothing more is to be had here.
        assert_eq!(connected.is_ok(), welcome);
        assert_eq!(pinned.believed().is_some(), welcome);
    }
}

#[tokio::test]
async fn a_client_whose_clock_is_wrong_goes_by_the_hubs() {
    let ca = ca();
    // Seconds since 1970 at the middle of 2020, and of 2090.
    for (year, now) in [(2020, 1_593_561_600), (2090, 3_802_550_400)] {
        let manager = valid(&ca, &ca, "spiffe://fairlead.local/manager", (year, year + 1));
        let (address, accepted) = server(&manager, Arc::default()).await;
        greet(accepted);
        let client = credentials(&ca, &ca, BLUE, false);
        let error = dial(address, &client).await.unwrap_err().to_string();
        assert!(error.contains("certificate"), "{error}");
        client.clock.follow(now);
        assert!(enters(address, &client).await, "{year}");
    }
}

/// What a client that is refused reads, though it speaks before it knows.
#[tokio::test]
async fn whoever_is_refused_can_read_why() {
    let ca = ca();
    let own = credentials(&ca, &ca, "spiffe://fairlead.local/manager", false);
    let late = credentials(&ca, &ca, BLUE, true);
    let (address, _accepted) = server(&own, Arc::default()).await;
    for round in 0..20 {
        let mut stream = dial(address, &late).await.unwrap();
        // As HTTP/2 does: it speaks on while the server has made up its mind. A connection that is reset
        // then fails with a broken pipe, whatever could have been read.
        for _ in 0..3 {
            stream.write_all(&[0; 8_192]).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let error = loop {
            match stream.read(&mut [0; 64]).await {
                Ok(0) => panic!("round {round}: closed without a word"),
                Ok(_) => {}
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("CertificateExpired"), "round {round}: {error}");
    }
}
