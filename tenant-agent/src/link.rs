//! The stream to the hub: opened again and again, with back-off.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairlead_process::metrics::Stages;
use fairlead_process::retry::between;
use fairlead_process::tls;
use fairlead_proto::v1::agent_message::Message as To;
use fairlead_proto::v1::hub_client::HubClient;
use fairlead_proto::v1::hub_message::Message as From;
use fairlead_proto::{MAX_ITEMS, MAX_MESSAGE_BYTES, OLD_CONNECTION, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{info, warn};

use crate::identity::Source;
use crate::outbox::{Item, Outbox, Word};

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// How long a new agent plans, at most, before it tells the hub what it has.
const PLANNING: Duration = Duration::from_secs(5);
/// Messages that wait for the transport.
const OUTBOUND: usize = 64;

/// How the hub is reached, and as whom.
pub(crate) struct Link {
    pub(crate) hub: String,
    pub(crate) hub_name: String,
    pub(crate) credentials: Source,
    pub(crate) hello: v1::Hello,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) stages: Stages,
    /// What the hub said something about, or asks for and is to be planned anew.
    pub(crate) news: mpsc::UnboundedSender<Item>,
}

impl Link {
    /// Keeps a stream open for ever.
    pub(crate) async fn run(mut self) {
        // What waits for something else must not keep everything from the hub.
        let _ = tokio::time::timeout(PLANNING, self.outbox.seen()).await;
        let mut pause = FIRST_PAUSE;
        loop {
            let start = Instant::now();
            if let Err(error) = self.stream().await {
                if format!("{error:#}").contains(OLD_CONNECTION) {
                    info!(hub = self.hub, "the connection was old; opening another");
                    continue;
                }
                let error = explained(&format!("{error:#}"));
                warn!(hub = self.hub, %error, "no stream to the hub");
                self.outbox.set_down(Some(error));
            }
            // A stream that lasted was a good one: begin with short pauses again.
            if start.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            tokio::time::sleep(between(pause / 2, pause * 3 / 2)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn stream(&mut self) -> Result<()> {
        let credentials = self.credentials.now().await?;
        let channel = tls::connect(&self.hub, &self.hub_name, &credentials).await?;
        let mut client = HubClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (send, receive) = mpsc::channel(OUTBOUND);
        self.greet(&send)?;
        let opened = client.sync(ReceiverStream::new(receive)).await.map_err(brief)?;
        let mut inbound = opened.into_inner();
        let Some(From::Welcome(welcome)) =
            inbound.message().await.map_err(brief)?.and_then(|m| m.message)
        else {
            bail!("the hub did not answer with Welcome");
        };
        info!(hub = self.hub, max_routes = welcome.max_routes, "connected to the hub");
        self.outbox.set_down(None);
        self.tell_inventory(&send).await?;
        loop {
            // Reading goes on while there is something to send: both sides wait for a slow one, and
            // two that only send would wait for each other for ever.
            tokio::select! {
                message = inbound.message() => match message.map_err(brief)? {
                    Some(message) => message.message.into_iter().for_each(|message| self.hear(message)),
                    None => bail!("the hub closed the stream"),
                },
                room = send.reserve(), if self.outbox.has_unsent() => {
                    let room = room.context("the hub closed the stream")?;
                    if let Some(letter) = self.outbox.next() {
                        room.send(v1::AgentMessage { message: Some(letter.into()) });
                    }
                }
                () = self.outbox.changed.notified() => {}
            }
        }
    }

    fn greet(&self, send: &mpsc::Sender<v1::AgentMessage>) -> Result<()> {
        let hello = v1::AgentMessage {
            message: Some(To::Hello(v1::Hello {
                time: Some(std::time::SystemTime::now().into()),
                ..self.hello.clone()
            })),
        };
        send.try_send(hello).context("the queue is new")
    }

    async fn tell_inventory(&self, send: &mpsc::Sender<v1::AgentMessage>) -> Result<()> {
        let items = self.outbox.inventory();
        for chunk in items.chunks(MAX_ITEMS) {
            say(send, To::Inventory(v1::Inventory { items: chunk.to_vec(), last: false })).await?;
        }
        say(send, To::Inventory(v1::Inventory { items: Vec::new(), last: true })).await
    }

    fn hear(&self, message: From) {
        let (key, hash, word) = match message {
            From::Welcome(_) => return,
            From::Want(want) => {
                let forgotten = self.outbox.wanted_by_hub(&want.keys);
                return forgotten.iter().for_each(|item| self.wake(item));
            }
            From::Stored(stored) => {
                let Some(item) = stored.key.as_ref().and_then(Item::of) else { return };
                if let Some(sent) = self.outbox.stored(&item, &stored) {
                    self.stages.observe("push", sent);
                }
                if stored.hash.is_empty() {
                    self.wake(&item);
                }
                return;
            }
            From::Status(status) => (status.key.clone(), status.hash.clone(), Word::Status(status)),
            From::Refused(refused) => {
                warn!(key = ?refused.key, reason = refused.reason, refused.message, "refused by the hub");
                (refused.key.clone(), refused.hash.clone(), Word::Refused(refused))
            }
        };
        if let Some(item) = key.as_ref().and_then(Item::of) {
            self.outbox.heard(item.clone(), hash, word);
            self.wake(&item);
        }
    }

    fn wake(&self, item: &Item) {
        // Its receiver lives as long as the process.
        let _ = self.news.send(item.clone());
    }
}

async fn say(send: &mpsc::Sender<v1::AgentMessage>, message: To) -> Result<()> {
    let message = v1::AgentMessage { message: Some(message) };
    send.send(message).await.map_err(|_| anyhow::anyhow!("the hub closed the stream"))
}

/// A status in a few words: its code, what the hub says, and what lies beneath.
pub(crate) fn brief(status: tonic::Status) -> anyhow::Error {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = std::error::Error::source(&status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    anyhow::anyhow!(text)
}

/// The way out, for what rustls and TLS alerts say in a word.
pub(crate) fn explained(error: &str) -> String {
    let hints = [
        ("CertificateExpired", "the hub says that this agent's certificate has expired"),
        (
            "certificate expired",
            "the hub's certificate has expired, by this node's clock; is that right?",
        ),
        (
            "certificate not valid yet",
            "the hub's certificate is not valid yet, by this node's clock; is that right?",
        ),
        ("UnknownIssuer", "this is not the hub that the join token, or ca.crt, is for"),
        ("BadSignature", "this is not the hub that the join token, or ca.crt, is for"),
        ("UnknownCA", "this agent's certificate is not from this hub"),
        ("DecryptError", "this agent's certificate is not from this hub"),
        ("BadCertificate", "the hub does not accept this agent's certificate"),
        ("NotValidForName", "the hub's certificate is for another name; see the chart's hub.name"),
    ];
    match hints.iter().find(|(word, _)| error.contains(word)) {
        Some((_, hint)) => format!("{hint} ({error})"),
        None => error.to_owned(),
    }
}
