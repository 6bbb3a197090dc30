//! Keeps this agent's certificate fresh: joins, renews at half of its life, recovers once it has expired, and
//! follows what the hub trusts. What is new is kept before it is used.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use fairlead_process::identity::BACKDATED;
use fairlead_process::proof::BoundKey;
use fairlead_process::retry::between;
use fairlead_process::tls::{self, Clock, Credentials};
use fairlead_process::token::Token;
use fairlead_proto::v1::identity_client::IdentityClient;
use fairlead_proto::{REPLACED_CERTIFICATE, v1};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tracing::{info, warn};

use super::join;
use super::store::{Kept, Keys, Validity};
use crate::link::{brief, explained};
use crate::outbox::Outbox;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// After the hub has refused: it says the same for a while.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// A renewal that failed is tried again after this part of the certificate's life.
const AGAIN: i64 = 20;

/// Where the hub is.
#[derive(Debug, Clone)]
pub(crate) struct Hub {
    /// `host:port`.
    pub(crate) address: String,
    /// The name that its certificate is for.
    pub(crate) name: String,
    /// Its time, as far as it has said what it is.
    pub(crate) clock: Arc<Clock>,
}

/// Keeps the certificate.
pub(crate) struct Keeper {
    pub(crate) hub: Hub,
    pub(crate) token: Option<String>,
    pub(crate) store: Keys,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) credentials: watch::Sender<Option<Arc<Credentials>>>,
}

impl Keeper {
    /// Runs for ever.
    pub(crate) async fn run(self) {
        let mut pause = FIRST_PAUSE;
        let mut kept = None;
        // Whether another token than the one that it joined by is still to be tried.
        let mut anew = true;
        loop {
            let start = Instant::now();
            let ended = self.live(&mut kept, &mut anew).await;
            let mut wait = Duration::ZERO;
            if let Err(error) = ended {
                let error = explained(&format!("{error:#}"));
                warn!(hub = self.hub.address, %error, "no certificate from the hub, or no word of it");
                if self.credentials.borrow().is_none() {
                    self.outbox.set_down(Some(error.clone()));
                }
                if start.elapsed() > LONGEST_PAUSE {
                    pause = FIRST_PAUSE;
                }
                let refused =
                    error.starts_with("Unauthenticated") || error.starts_with("ResourceExhausted");
                wait = if refused { REFUSED_PAUSE } else { pause };
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            tokio::time::sleep(between(wait / 2, wait * 3 / 2)).await;
        }
    }

    /// One connection with the newest certificate; returns to use a newer one.
    async fn live(&self, known: &mut Option<Kept>, anew: &mut bool) -> Result<()> {
        let mut kept = match known.take() {
            Some(kept) => kept,
            None => self.store.load().await?,
        };
        if kept.chain.is_empty() {
            kept = self.join(kept).await?;
        } else if *anew {
            (*anew, kept) = self.join_anew(kept).await;
        }
        self.publish(&kept)?;
        let validity = kept.validity()?;
        if self.hub.clock.now() >= validity.until {
            kept = self.recover(&kept).await?;
        }
        *known = Some(kept.clone());
        let watched = self.watch(&mut kept).await;
        *known = Some(kept.clone());
        match watched {
            Err(error) if is_over(&format!("{error:#}")) => {
                warn!(
                    error = format!("{error:#}"),
                    "the hub does not take this certificate; asking for a new one"
                );
                *known = Some(self.recover(&kept).await?);
                Ok(())
            }
            ended => ended,
        }
    }

    async fn join(&self, mut kept: Kept) -> Result<Kept> {
        let token = self.token.as_deref().filter(|token| !token.is_empty());
        let token = token.context(
            "this agent has not joined a hub, and has no join token: get one with `fairlead token create`, and \
             give it to the chart as joinToken",
        )?;
        let token: Token = token.parse().context("joinToken")?;
        if kept.bound_key.is_empty() {
            // Kept first: after a crash it is the same agent that joins.
            kept.bound_key = BoundKey::generate()?.pem();
            self.store.save(&kept).await?;
        }
        let joined = join::join(&self.hub, &token, &kept).await?;
        self.store.save(&joined).await?;
        info!(id = joined.id, serial = joined.serial(), "joined the hub");
        Ok(joined)
    }

    /// Another token than the one that this agent joined by is the wish to be another agent. Where that does
    /// not work, it is the one that it was; and whether to try again.
    async fn join_anew(&self, mut kept: Kept) -> (bool, Kept) {
        let token = self.token.as_deref().and_then(|token| token.parse::<Token>().ok());
        let Some(token) = token else { return (false, kept) };
        if join::names(&kept.id).is_ok_and(|(_, agent)| agent == token.id.as_str()) {
            return (false, kept);
        }
        match self.join_as_another(&token, &mut kept).await {
            Ok(joined) => {
                info!(id = joined.id, before = kept.id, "joined the hub anew");
                (false, joined)
            }
            Err(error) => {
                let text = format!("{error:#}");
                let error = explained(&text);
                warn!(%error, "the new join token does not work; going on as before");
                // Who is refused is refused again.
                (!text.starts_with("Unauthenticated"), kept)
            }
        }
    }

    async fn join_as_another(&self, token: &Token, kept: &mut Kept) -> Result<Kept> {
        if kept.next_id != token.id.as_str() {
            // Kept first: an answer that is lost must not lock this agent out.
            kept.next_key = BoundKey::generate()?.pem();
            token.id.as_str().clone_into(&mut kept.next_id);
            self.store.save(kept).await?;
        }
        let anew = Kept { bound_key: kept.next_key.clone(), ..Kept::default() };
        let joined = join::join(&self.hub, token, &anew).await?;
        self.store.save(&joined).await?;
        Ok(joined)
    }

    async fn recover(&self, kept: &Kept) -> Result<Kept> {
        let fresh = join::recover(&self.hub, kept).await.context("recovering")?;
        self.store.save(&fresh).await?;
        self.publish(&fresh)?;
        info!(id = fresh.id, serial = fresh.serial(), "recovered: the certificate had expired");
        Ok(fresh)
    }

    fn publish(&self, kept: &Kept) -> Result<()> {
        let credentials = self.credentials_of(kept)?.map(Arc::new);
        self.credentials.send_replace(credentials);
        Ok(())
    }

    /// They go by the hub's time.
    fn credentials_of(&self, kept: &Kept) -> Result<Option<Credentials>> {
        let by = |credentials| Credentials { clock: self.hub.clock.clone(), ..credentials };
        Ok(kept.credentials()?.map(by))
    }

    /// Follows what is trusted until it is time for a new certificate, which is then kept.
    async fn watch(&self, kept: &mut Kept) -> Result<()> {
        let credentials = self.credentials_of(kept)?.context("no certificate")?;
        let channel = tls::connect(&self.hub.address, &self.hub.name, &credentials).await?;
        let mut client = IdentityClient::new(channel);
        let (confirm, confirmed) = mpsc::channel(4);
        confirm.try_send(v1::Confirmed { sequence: kept.sequence }).context("the queue is new")?;
        let stream = client.watch_trust(ReceiverStream::new(confirmed)).await.map_err(brief)?;
        let mut stream = stream.into_inner();
        let mut due: Option<Instant> = None;
        loop {
            let renewal = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                trust = stream.message() => {
                    // The hub closes old ones: then a new one is opened.
                    let Some(trust) = trust.map_err(brief)? else { return Ok(()) };
                    if let Some(time) = &trust.hub_time {
                        self.hub.clock.follow(time.seconds);
                    }
                    let validity = kept.validity()?;
                    due = Some(due.unwrap_or_else(|| renew_at(validity, self.hub.clock.now())));
                    self.trust(kept, &trust).await?;
                    confirm.send(v1::Confirmed { sequence: trust.sequence }).await?;
                }
                () = renewal => {
                    match self.renew(&mut client, kept).await {
                        Ok(()) => return Ok(()),
                        Err(error) => {
                            warn!(error = format!("{error:#}"), "the certificate was not renewed, trying again");
                            let validity = kept.validity()?;
                            let life = (validity.until - validity.from).max(AGAIN) / AGAIN;
                            let pause = Duration::from_secs(life.unsigned_abs());
                            due = Some(Instant::now() + between(pause / 2, pause));
                        }
                    }
                }
            }
        }
    }

    async fn trust(&self, kept: &mut Kept, trust: &v1::Trust) -> Result<()> {
        let roots = std::str::from_utf8(&trust.roots).context("what the hub trusts is not PEM")?;
        if (kept.sequence, kept.roots.as_str()) == (trust.sequence, roots) {
            return Ok(());
        }
        let fresh = Kept { sequence: trust.sequence, roots: roots.to_owned(), ..kept.clone() };
        fresh.credentials()?;
        self.store.save(&fresh).await?;
        self.publish(&fresh)?;
        info!(sequence = fresh.sequence, "the hub's authority changed");
        *kept = fresh;
        Ok(())
    }

    async fn renew(&self, client: &mut IdentityClient<Channel>, kept: &mut Kept) -> Result<()> {
        let (key, csr) = tls::request(Some(&kept.id))?;
        let issued = client.renew(v1::RenewRequest { csr }).await.map_err(brief)?.into_inner();
        let fresh = join::keep(kept, issued, key)?;
        self.store.save(&fresh).await?;
        info!(serial = fresh.serial(), "the certificate was renewed");
        // It counts with the next connection, which is the one that `live` opens now.
        *kept = fresh;
        Ok(())
    }
}

/// At half of its life, 10 % more or less, so that not all come at once. It goes by the certificate alone: however
/// often the connection is a new one, the time stays.
fn renew_at(validity: Validity, now: i64) -> Instant {
    let life = validity.until - validity.from;
    // The hub's are backdated: they live from the day on which they were issued.
    let life = if life > BACKDATED { life - BACKDATED } else { life };
    let half = Duration::from_secs((life / 2).max(0).unsigned_abs());
    let before = between(half * 9 / 10, half * 11 / 10);
    let left = Duration::from_secs((validity.until - now).max(0).unsigned_abs());
    Instant::now() + left.saturating_sub(before)
}

/// Whether an error says that the certificate is of no use any more, while the bound key may be.
fn is_over(error: &str) -> bool {
    ["CertificateExpired", "UnknownCA", "DecryptError", "BadCertificate", REPLACED_CERTIFICATE]
        .iter()
        .any(|word| error.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_around_half_of_what_is_left() {
        let at = |from, until, now| {
            renew_at(Validity { from, until }, now).duration_since(Instant::now()).as_secs()
        };
        // Issued for a day, backdated by five minutes.
        let day = at(-300, 86_400, 0);
        assert!((38_800..=47_600).contains(&day), "{day}");
        let minute = at(-300, 60, 0);
        assert!((26..=33).contains(&minute), "{minute}");
        // As long after the tenth connection as after the first.
        let later = at(-300, 86_400, 38_000);
        assert!(later <= 9_600, "{later}");
        assert_eq!(at(-300, 86_400, 50_000), 0);
        assert_eq!(at(0, 100, 100), 0);
        assert_eq!(at(0, 100, 1_000), 0);
    }

    #[test]
    fn only_what_a_new_certificate_can_mend_is_recovered_from() {
        assert!(is_over("transport error: received fatal alert: CertificateExpired"));
        assert!(is_over("received fatal alert: UnknownCA"));
        assert!(!is_over("Unauthenticated: agent abcdefghij of blue was revoked"));
        assert!(!is_over("connection refused"));
    }
}
