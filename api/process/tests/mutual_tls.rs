//! Mutual TLS in process: who gets in, and as whom.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use fairlead_process::identity::Identity;
use fairlead_process::tls::{self, Connection, Files};
use futures::StreamExt;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, date_time_ymd,
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a folder with a certificate for `id`, as a Secret mounts it.
fn folder(at: &Path, ca: &Ca, id: &str, expired: bool) -> Files {
    let mut params = CertificateParams::new(vec!["fairlead-manager".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI(id.try_into().unwrap()));
    if expired {
        params.not_after = date_time_ymd(2020, 1, 1);
    }
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, ca).unwrap();
    std::fs::create_dir_all(at).unwrap();
    std::fs::write(at.join("ca.crt"), ca.pem()).unwrap();
    std::fs::write(at.join("tls.crt"), certificate.pem()).unwrap();
    std::fs::write(at.join("tls.key"), key.serialize_pem()).unwrap();
    Files::new(at)
}

async fn server(files: Files) -> (SocketAddr, ReceiverStream<io::Result<Connection>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    (address, tls::accept(listener, files, "fairlead.local".into(), stop).unwrap())
}

/// Whether the server lets this client in: only then does it answer.
async fn enters(address: SocketAddr, client: &Files) -> bool {
    let tcp = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(client.client().unwrap());
    let name = ServerName::try_from("fairlead-manager").unwrap();
    let Ok(mut stream) = connector.connect(name, tcp).await else { return false };
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await.is_ok()
}

#[tokio::test]
async fn only_a_valid_certificate_of_the_hubs_ca_gets_in_and_it_says_who() {
    let at = std::env::temp_dir().join(format!("fairlead-tls-{}", std::process::id()));
    let (own, other) = (ca(), ca());
    let manager = folder(&at.join("manager"), &own, "spiffe://fairlead.local/manager", false);
    let (address, mut accepted) = server(manager).await;
    let identities = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = identities.clone();
    tokio::spawn(async move {
        while let Some(Ok(mut connection)) = accepted.next().await {
            seen.lock().unwrap().push(connection.connect_info().identity);
            connection.write_all(b"hi").await.unwrap();
            connection.flush().await.unwrap();
        }
    });

    let blue = "spiffe://fairlead.local/tenant/blue/agent/1";
    for (name, ca, id, expired, welcome) in [
        ("good", &own, blue, false, true),
        ("expired", &own, blue, true, false),
        ("another-ca", &other, blue, false, false),
        ("another-domain", &own, "spiffe://evil/tenant/blue/agent/1", false, false),
        ("nobody", &own, "spiffe://fairlead.local/nobody", false, false),
    ] {
        let client = folder(&at.join(name), ca, id, expired);
        // The client of another CA shall trust the server all the same.
        std::fs::write(at.join(name).join("ca.crt"), own.pem()).unwrap();
        assert_eq!(enters(address, &client).await, welcome, "{name}");
    }
    // Without any certificate, and without TLS.
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.ends_with(b"hi"));

    let blue = Identity::Agent { tenant: "blue".parse().unwrap() };
    assert_eq!(*identities.lock().unwrap(), [blue]);
    std::fs::remove_dir_all(at).unwrap();
}

/// What a client that is refused reads, though it speaks before it knows.
#[tokio::test]
async fn whoever_is_refused_can_read_why() {
    let (root, ca) =
        (std::env::temp_dir().join(format!("fairlead-why-{}", std::process::id())), ca());
    let own = folder(&root.join("server"), &ca, "spiffe://fairlead.local/manager", false);
    let id = "spiffe://fairlead.local/tenant/blue/agent/default";
    let late = folder(&root.join("late"), &ca, id, true);
    let (address, _accepted) = server(own).await;
    for round in 0..20 {
        let tcp = TcpStream::connect(address).await.unwrap();
        let connector = TlsConnector::from(late.client().unwrap());
        let name = ServerName::try_from("fairlead-manager").unwrap();
        let mut stream = connector.connect(name, tcp).await.unwrap();
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
    std::fs::remove_dir_all(root).unwrap();
}
