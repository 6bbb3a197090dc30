//! An agent of the tests' and the bench's own: it can do what a good agent does, and what a bad one tries.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use fairlead_api::RouteSpec;
use fairlead_api::route::{
    AddressRequest, Backend, Listener, NodePolicy, Nodes, Protocol, RouteRule, Source, SourceKind,
};
use fairlead_process::proof::{BoundKey, enroll_message};
use fairlead_process::tls::{self, Credentials};
use fairlead_process::token::Token;
use fairlead_proto::v1;
use fairlead_proto::v1::agent_message::Message as To;
use fairlead_proto::v1::enroll_request::Credential;
use fairlead_proto::v1::hub_client::HubClient;
use fairlead_proto::v1::hub_message::Message as From;
use fairlead_proto::v1::identity_client::IdentityClient;
use fairlead_proto::v1::put::Object;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::local::net;

/// Where agents reach the hub.
pub const HUB: &str = "172.18.0.11:30843";
/// The name in the manager's certificate.
pub const NAME: &str = "fairlead-manager";

/// Runs `work` on the client host.
pub fn from_client<T: Send, F: Future<Output = T>>(work: impl FnOnce() -> F + Send) -> Result<T> {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(work()))
    };
    net::within("client", run)
}

/// Connects without a certificate, by a token's pin.
pub async fn stranger(token: &Token) -> Result<Channel> {
    stranger_at(HUB, token).await
}

/// The same where agents are not meant to come.
pub async fn stranger_at(hub: &str, token: &Token) -> Result<Channel> {
    tls::open(hub, NAME, tls::pinned(token.pin, &Arc::default())?.0).await
}

/// Joins by a token, with this key and this request.
pub async fn enroll(token: &Token, bound: &BoundKey, csr: Vec<u8>) -> Result<v1::Issued, Status> {
    enroll_at(HUB, token, bound, csr).await
}

async fn enroll_at(
    hub: &str,
    token: &Token,
    bound: &BoundKey,
    csr: Vec<u8>,
) -> Result<v1::Issued, Status> {
    let failed = |error: anyhow::Error| Status::internal(format!("{error:#}"));
    let channel = stranger_at(hub, token).await.map_err(failed)?;
    let id = token.id.as_str();
    let join = v1::Join {
        id: id.to_owned(),
        secret: token.secret().to_vec(),
        bound_key: bound.public(),
        signature: bound.sign(&enroll_message(id, &csr)).map_err(failed)?,
    };
    let request = v1::EnrollRequest { csr, credential: Some(Credential::Join(join)) };
    Ok(IdentityClient::new(channel).enroll(request).await?.into_inner())
}

/// An agent that has joined.
pub struct Agent {
    /// Its SPIFFE id.
    pub id: String,
    /// Its certificate, its key, and whom it trusts.
    pub credentials: Arc<Credentials>,
    /// Its certificate (PEM) and the key of it.
    pub own: (Vec<u8>, String),
    /// Where its hub is.
    pub hub: String,
}

impl Agent {
    /// Joins by a token.
    pub async fn join(token: &Token) -> Result<Self> {
        Self::join_at(HUB, token).await
    }

    /// Joins a hub by a token.
    pub async fn join_at(hub: &str, token: &Token) -> Result<Self> {
        let (bound, failed) = (BoundKey::generate()?, |status: Status| anyhow!("{status}"));
        let (mut key, csr) = tls::request(None)?;
        let mut issued = enroll_at(hub, token, &bound, csr).await.map_err(failed)?;
        if issued.chain.is_empty() {
            // An issuer that takes names from requests.
            let (own, csr) = tls::request(Some(&issued.id))?;
            (key, issued) = (own, enroll_at(hub, token, &bound, csr).await.map_err(failed)?);
        }
        let roots = issued.trust.context("no trust")?.roots;
        let credentials = Credentials::from_pem(&roots, Some((&issued.chain, key.as_bytes())))?;
        let (id, own) = (issued.id, (issued.chain, key));
        Ok(Self { id, credentials: Arc::new(credentials), own, hub: hub.to_owned() })
    }

    /// Connects.
    pub async fn channel(&self) -> Result<Channel> {
        tls::connect(&self.hub, NAME, &self.credentials).await
    }

    /// Opens the stream and says that there is nothing yet.
    pub async fn stream(&self) -> Result<Stream> {
        Stream::open(self.channel().await?, 1).await
    }
}

/// An agent's stream.
pub struct Stream {
    /// To the hub.
    pub send: mpsc::Sender<v1::AgentMessage>,
    /// From the hub.
    pub receive: Streaming<v1::HubMessage>,
}

impl Stream {
    /// Opens the stream, with an empty inventory.
    pub async fn open(channel: Channel, epoch: u64) -> Result<Self> {
        let (send, outbound) = mpsc::channel(256);
        let hello = v1::Hello {
            agent_version: "test".into(),
            cluster_version: "v1".into(),
            instance: "test".into(),
            epoch,
            time: Some(std::time::SystemTime::now().into()),
        };
        send.try_send(v1::AgentMessage { message: Some(To::Hello(hello)) })?;
        let mut client = HubClient::new(channel);
        let opened = client.sync(ReceiverStream::new(outbound)).await;
        let mut stream = Self { send, receive: opened.map_err(|s| anyhow!("{s}"))?.into_inner() };
        stream.until(|message| matches!(message, From::Welcome(_))).await?;
        stream.say(To::Inventory(v1::Inventory { items: Vec::new(), last: true })).await?;
        Ok(stream)
    }

    /// Sends a message.
    pub async fn say(&self, message: To) -> Result<()> {
        let message = v1::AgentMessage { message: Some(message) };
        self.send.send(message).await.map_err(|_| anyhow!("the stream is closed"))
    }

    /// Reads until a message is as wanted, at most for a minute.
    pub async fn until(&mut self, wanted: impl Fn(&From) -> bool) -> Result<From> {
        let read = async {
            loop {
                let message = self.receive.message().await.map_err(|s| anyhow!("{s}"))?;
                let Some(message) = message else { bail!("the stream is closed") };
                if let Some(message) = message.message.filter(&wanted) {
                    return Ok(message);
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), read).await.context("nothing for a minute")?
    }

    /// Pushes the nodes.
    pub async fn nodes(&self, addresses: &[String]) -> Result<()> {
        let node = |(n, ip): (usize, &String)| v1::Node {
            name: format!("n{n}"),
            addresses: vec![ip.clone()],
        };
        let nodes = v1::NodeSet { nodes: addresses.iter().enumerate().map(node).collect() };
        let hash = fairlead_process::token::sha256(addresses.join(",").as_bytes()).into_bytes();
        let key = Some(v1::Key::nodes());
        self.say(To::Put(v1::Put {
            key,
            hash: hash[..16].to_vec(),
            object: Some(Object::Nodes(nodes)),
        }))
        .await
    }

    /// Pushes a Route; its hash comes back.
    pub async fn put(&self, spec: &RouteSpec) -> Result<Vec<u8>> {
        let json = serde_json::to_vec(spec)?;
        let hash = fairlead_process::token::sha256(&json).into_bytes()[..16].to_vec();
        let Source { kind, namespace, name, .. } = &spec.source;
        let key = match kind {
            SourceKind::Service => v1::Key::service(namespace, name),
            SourceKind::Ingress => v1::Key::ingress(namespace, name),
        };
        let route = Object::Route(v1::Route { spec: json });
        let put = v1::Put { key: Some(key), hash: hash.clone(), object: Some(route) };
        self.say(To::Put(put)).await?;
        Ok(hash)
    }

    /// Waits for what the hub says of exactly this content, in all its conditions.
    pub async fn status(
        &mut self,
        hash: &[u8],
        wanted: impl Fn(&v1::Status) -> bool,
    ) -> Result<v1::Status> {
        let message = self
            .until(|message| match message {
                From::Status(status) => status.hash == hash && wanted(status),
                From::Refused(refused) => refused.hash == hash,
                _ => false,
            })
            .await?;
        match message {
            From::Status(status) => Ok(status),
            From::Refused(refused) => bail!("refused: {} {}", refused.reason, refused.message),
            other => bail!("{other:?}"),
        }
    }
}

/// Whether a condition holds.
pub fn holds(status: &v1::Status, kind: &str) -> bool {
    status.conditions.iter().any(|condition| condition.r#type == kind && condition.holds)
}

/// A Service with one TCP port that leads to a node port.
pub fn tcp(name: &str, pool: &str, port: u16, node_port: u16) -> RouteSpec {
    let source = Source {
        kind: SourceKind::Service,
        namespace: "test".into(),
        name: name.into(),
        uid: "u".into(),
        created: 0,
    };
    RouteSpec {
        address: AddressRequest { pool: Some(pool.into()), ..AddressRequest::default() },
        listeners: vec![Listener { name: "http".into(), protocol: Protocol::Tcp, port }],
        rules: vec![RouteRule { listener: "http".into(), backend: "http".into() }],
        backends: vec![Backend {
            nodes: Nodes { policy: NodePolicy::All, names: Vec::new() },
            ..Backend::new("http", node_port)
        }],
        ..RouteSpec::new(source, "00")
    }
}
