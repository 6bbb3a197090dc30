//! This process' certificates: the authority as it is now, the manager's own certificate from it, and the
//! steps by which the leader replaces the authority.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use arc_swap::ArcSwap;
use fairlead_identity::authority::{Issued, Situation, Subject};
use fairlead_identity::request::public_key;
use fairlead_identity::{Authority, Step};
use fairlead_process::identity::Identity;
use fairlead_process::lease::Leadership;
use fairlead_process::locks::lock;
use fairlead_process::tls::{Clients, Credentials, ServerTls};
use futures::StreamExt;
use kube::Client;
use kube::runtime::{WatchStreamExt, watcher};
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, KeyPair, PublicKeyData, SanType, SubjectPublicKeyInfo};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::watch;
use tracing::{info, warn};

use super::allow::{Roots, foreign_roots};
use super::issuer::{self, CertManager, IssuerKind};
use super::store::{self, Store, StoredAuthority};

/// How long an authority lives; it is replaced at half of that.
const CA_LIFETIME: i64 = 365 * 86_400;
/// How often files and the steps of a replacement are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Settings.
#[derive(Debug, Clone)]
pub(crate) struct PkiSettings {
    pub(crate) issuer: IssuerKind,
    pub(crate) trust_domain: String,
    /// The DNS names of this manager's certificate.
    pub(crate) names: Vec<String>,
    /// How long certificates are valid.
    pub(crate) lifetime: Duration,
    /// Certificates of existing trust domains.
    pub(crate) foreign: PathBuf,
}

/// What is trusted now.
#[derive(Debug, Clone)]
pub(crate) struct Trusted {
    pub(crate) sequence: u64,
    /// PEM.
    pub(crate) roots: String,
    /// `None`: cert-manager's.
    authority: Option<Arc<Authority>>,
}

/// Who watches what is trusted, and which they confirmed last.
#[derive(Debug, Default)]
pub(crate) struct TrustSessions {
    next: AtomicU64,
    all: Mutex<HashMap<u64, u64>>,
}

impl TrustSessions {
    pub(crate) fn begin(&self) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.all).insert(number, 0);
        number
    }

    pub(crate) fn confirm(&self, number: u64, sequence: u64) {
        lock(&self.all).insert(number, sequence);
    }

    pub(crate) fn end(&self, number: u64) {
        lock(&self.all).remove(&number);
    }

    fn lowest(&self) -> Option<u64> {
        lock(&self.all).values().min().copied()
    }
}

/// The certificates of this process.
#[derive(Clone)]
pub(crate) struct Pki {
    settings: Arc<PkiSettings>,
    store: Store,
    cert_manager: Option<CertManager>,
    foreign: Arc<watch::Sender<Vec<CertificateDer<'static>>>>,
    /// This manager's certificate, with what is trusted.
    own: Arc<Mutex<Credentials>>,
    trusted: Arc<watch::Sender<Trusted>>,
    /// What agents see.
    pub(crate) agents: ServerTls,
    /// What Envoys see.
    pub(crate) envoys: ServerTls,
}

impl Pki {
    /// Reads the authority, or makes the first one, and this manager's first certificate.
    pub(crate) async fn start(
        client: Client,
        namespace: &str,
        settings: PkiSettings,
    ) -> Result<Self> {
        let store = Store::new(client.clone(), namespace);
        let cert_manager = match &settings.issuer {
            IssuerKind::CertManager { kind, name, group, .. } => Some(CertManager {
                client,
                namespace: namespace.to_owned(),
                kind: kind.clone(),
                name: name.clone(),
                group: group.clone(),
            }),
            _ => None,
        };
        let first = first(&store, &settings.issuer).await?;
        let foreign = foreign_roots(&settings.foreign)?;
        let (trusted, _) = watch::channel(first.clone());
        let settings = Arc::new(settings);
        let (own, _) = own(&first, &settings, cert_manager.as_ref()).await?;
        let agents = with(&own, &foreign).server(Clients::Any)?;
        let envoys = own.server(Clients::WithCertificate)?;
        let pki = Self {
            settings,
            store,
            cert_manager,
            foreign: Arc::new(watch::Sender::new(foreign)),
            own: Arc::new(Mutex::new(own)),
            trusted: Arc::new(trusted),
            agents: Arc::new(ArcSwap::new(agents)),
            envoys: Arc::new(ArcSwap::new(envoys)),
        };
        // What is not published now is so with the first renewal, soon.
        Ok(pki)
    }

    /// Certificates of existing trust domains, now and after each change.
    pub(crate) fn foreign(&self) -> watch::Receiver<Vec<CertificateDer<'static>>> {
        self.foreign.subscribe()
    }

    /// What is trusted at the time of asking.
    pub(crate) fn roots(&self) -> Roots {
        let trusted = self.watch();
        Box::new(move || {
            let pem = trusted.borrow().roots.clone();
            let read = CertificateDer::pem_slice_iter(pem.as_bytes());
            read.filter_map(Result::ok).collect()
        })
    }

    /// What is trusted, now and after each change.
    pub(crate) fn watch(&self) -> watch::Receiver<Trusted> {
        self.trusted.subscribe()
    }

    /// The SPIFFE id of an identity.
    pub(crate) fn id(&self, identity: &Identity) -> String {
        identity.id(&self.settings.trust_domain)
    }

    /// Signs a request for an identity. `None`: the request has to ask for its name, and does not.
    pub(crate) async fn issue(&self, identity: &Identity, csr: &[u8]) -> Result<Option<Issued>> {
        let id = self.id(identity);
        let key = public_key(csr, &id)?;
        let subject = Subject { id: &id, names: &[] };
        let trusted = self.trusted.borrow().clone();
        match (&trusted.authority, &self.cert_manager) {
            (Some(authority), _) => {
                issuer::sign(authority, &subject, &key, self.settings.lifetime).map(Some)
            }
            (None, Some(cert_manager)) => {
                if !asks_for(csr, &id) {
                    return Ok(None);
                }
                cert_manager.sign(&subject, csr, self.settings.lifetime).await.map(Some)
            }
            (None, None) => Err(anyhow!("nothing signs here")),
        }
    }

    /// Keeps certificates fresh, for ever. `sessions`: who has to know of a new authority before it signs.
    pub(crate) async fn run(self, leadership: Leadership, sessions: Arc<TrustSessions>) {
        let mut changes = self.watch();
        let (mut seen, mut broken, mut bad_foreign) = (None, None, None);
        let secrets = self.store.secrets();
        let config =
            watcher::Config::default().fields(&format!("metadata.name={}", store::CA_SECRET));
        let mut stored =
            std::pin::pin!(watcher(secrets, config).default_backoff().applied_objects());
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // At once: what is trusted is published with it.
        let mut renewal = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        loop {
            tokio::select! {
                Some(secret) = stored.next(), if self.settings.issuer == IssuerKind::Builtin => {
                    match secret.map_err(anyhow::Error::from).and_then(|s| store::read_authority(&s)) {
                        Ok(found) => {
                            self.take(trusted_of(&found.authority));
                            seen = Some(found);
                        }
                        Err(error) => warn!(error = format!("{error:#}"), "the authority cannot be read"),
                    }
                }
                _ = tick.tick() => {
                    let looked = self.look(seen.as_ref(), &leadership, &sessions).await;
                    complain(&mut broken, looked, "the authority was not replaced");
                    complain(&mut bad_foreign, self.look_at_foreign(), "the same trust domains are believed as before");
                }
                Ok(()) = changes.changed() => {
                    changes.mark_unchanged();
                    let pause = self.renew_own().await;
                    renewal.as_mut().reset(tokio::time::Instant::now() + pause);
                }
                () = &mut renewal => {
                    let pause = self.renew_own().await;
                    renewal.as_mut().reset(tokio::time::Instant::now() + pause);
                }
            }
        }
    }

    /// Looks whether something is to be done: files may have changed, or a step is due.
    async fn look(
        &self,
        seen: Option<&StoredAuthority>,
        leadership: &Leadership,
        sessions: &TrustSessions,
    ) -> Result<()> {
        match (&self.settings.issuer, seen) {
            (IssuerKind::Files(folder), _) => {
                let now = self.trusted.borrow().clone();
                let fresh = issuer::authority_of(folder, now.sequence)?;
                if now.authority.as_deref() != Some(&fresh) {
                    let fresh = issuer::authority_of(folder, now.sequence + 1)?;
                    self.take(trusted_of(&fresh));
                }
                Ok(())
            }
            (IssuerKind::CertManager { folder, .. }, _) => {
                let now = self.trusted.borrow().clone();
                let roots = issuer::roots_of(folder)?.concat();
                if roots != now.roots {
                    let sequence = now.sequence + 1;
                    self.take(Trusted { sequence, roots, authority: None });
                }
                Ok(())
            }
            (IssuerKind::Builtin, Some(stored)) if leadership.epoch().is_some() => {
                self.step(stored, sessions).await
            }
            (IssuerKind::Builtin, _) => Ok(()),
        }
    }

    /// Looks whether there are other existing trust domains to believe.
    fn look_at_foreign(&self) -> Result<()> {
        let found = foreign_roots(&self.settings.foreign)?;
        let changed = self.foreign.send_if_modified(|now| {
            let differs = *now != found;
            *now = found;
            differs
        });
        if changed {
            self.show_agents()?;
            info!(count = self.foreign.borrow().len(), "other trust domains are believed");
        }
        Ok(())
    }

    /// Agents that connect see this manager's certificate, and whose certificates may be used.
    fn show_agents(&self) -> Result<()> {
        let all = with(&lock(&self.own), &self.foreign.borrow());
        self.agents.store(all.server(Clients::Any)?);
        Ok(())
    }

    async fn step(&self, stored: &StoredAuthority, sessions: &TrustSessions) -> Result<()> {
        let now = jiff::Timestamp::now().as_second();
        let situation = Situation {
            now,
            asked: stored.asked,
            confirmed: sessions.lowest(),
            lifetime: issuer::seconds(self.settings.lifetime),
        };
        let Some(step) = stored.authority.due(situation) else { return Ok(()) };
        let mut next = stored.authority.clone();
        match step {
            Step::Prepare => next.prepare(&KeyPair::generate()?, now, CA_LIFETIME)?,
            Step::Activate => next.activate(now),
            Step::Retire => next.retire(),
        }
        self.store.replace_authority(stored, &next).await?;
        info!(?step, sequence = next.sequence(), "the authority was replaced");
        Ok(())
    }

    fn take(&self, fresh: Trusted) {
        self.trusted.send_if_modified(|now| {
            let differs = now.sequence != fresh.sequence
                || now.roots != fresh.roots
                || now.authority != fresh.authority;
            *now = fresh;
            differs
        });
    }

    /// Gets a new certificate for this manager, and tells what is trusted; when to do it again.
    async fn renew_own(&self) -> Duration {
        match self.renew_and_publish().await {
            Ok(pause) => pause,
            Err(error) => {
                warn!(error = format!("{error:#}"), "this manager's certificate was not renewed");
                EVERY * 5
            }
        }
    }

    async fn renew_and_publish(&self) -> Result<Duration> {
        let trusted = self.trusted.borrow().clone();
        let (own, not_after) = own(&trusted, &self.settings, self.cert_manager.as_ref()).await?;
        lock(&self.own).clone_from(&own);
        self.show_agents()?;
        self.envoys.store(own.server(Clients::WithCertificate)?);
        let anchor = match &trusted.authority {
            Some(authority) => authority.anchor().map(str::to_owned).unwrap_or_default(),
            None => trusted.roots.clone(),
        };
        self.store.publish_trust(&trusted.roots, &anchor).await?;
        info!(sequence = trusted.sequence, "this manager's certificate was renewed");
        // An issuer may give less than it was asked for.
        let left = not_after - jiff::Timestamp::now().as_second();
        Ok(Duration::from_secs(left.max(10).unsigned_abs()).min(self.settings.lifetime) / 2)
    }
}

/// Tells of an error, once for as long as it is the same. `so`: what follows from it.
fn complain(broken: &mut Option<String>, looked: Result<()>, so: &'static str) {
    let error = looked.err().map(|error| format!("{error:#}"));
    if let Some(error) = error.as_ref().filter(|_| *broken != error) {
        warn!(error, "{so}, trying again");
    }
    *broken = error;
}

fn with(own: &Credentials, foreign: &[CertificateDer<'static>]) -> Credentials {
    let mut all = own.clone();
    all.believe(foreign);
    all
}

fn trusted_of(authority: &Authority) -> Trusted {
    Trusted {
        sequence: authority.sequence(),
        roots: authority.roots(),
        authority: Some(Arc::new(authority.clone())),
    }
}

async fn first(store: &Store, issuer: &IssuerKind) -> Result<Trusted> {
    // Where the sequence is not kept, it begins with the time: it only ever grows.
    let begin = || jiff::Timestamp::now().as_second().unsigned_abs();
    match issuer {
        IssuerKind::Files(folder) => Ok(trusted_of(&issuer::authority_of(folder, begin())?)),
        IssuerKind::CertManager { folder, .. } => {
            let roots = issuer::roots_of(folder)?.concat();
            Ok(Trusted { sequence: begin(), roots, authority: None })
        }
        IssuerKind::Builtin => {
            if let Some(stored) = store.authority().await? {
                return Ok(trusted_of(&stored.authority));
            }
            let now = jiff::Timestamp::now().as_second();
            let made = Authority::new(&KeyPair::generate()?, now, CA_LIFETIME)?;
            store.create_authority(&made).await?;
            info!("the first authority was made");
            let stored = store.authority().await?.context("Secret fairlead-ca is gone")?;
            Ok(trusted_of(&stored.authority))
        }
    }
}

/// A fresh certificate of this manager, and when it ends (seconds since 1970).
async fn own(
    trusted: &Trusted,
    settings: &PkiSettings,
    cert_manager: Option<&CertManager>,
) -> Result<(Credentials, i64)> {
    let (key, names) = (KeyPair::generate()?, settings.names.as_slice());
    let id = Identity::Manager.id(&settings.trust_domain);
    let subject = Subject { id: &id, names };
    let issued = match (&trusted.authority, cert_manager) {
        (Some(authority), _) => {
            let public = SubjectPublicKeyInfo::from_der(&key.subject_public_key_info())?;
            issuer::sign(authority, &subject, &public, settings.lifetime)?
        }
        (None, Some(cert_manager)) => {
            let mut params = CertificateParams::new(names)?;
            params.subject_alt_names.push(SanType::URI(Ia5String::try_from(id.as_str())?));
            let csr = params.serialize_request(&key)?;
            let mut issued = cert_manager.sign(&subject, csr.der(), settings.lifetime).await?;
            // Agents that join find the CA that their token is pinned to.
            issued.chain += &trusted.roots;
            issued
        }
        (None, None) => return Err(anyhow!("nothing signs here")),
    };
    let key = key.serialize_pem();
    let own = (issued.chain.as_bytes(), key.as_bytes());
    let credentials = Credentials::from_pem(trusted.roots.as_bytes(), Some(own))?;
    Ok((credentials, issued.not_after))
}

/// Whether a request asks for this SPIFFE id. It is its only name then: [`public_key`] has looked.
fn asks_for(csr: &[u8], id: &str) -> bool {
    csr.windows(id.len()).any(|window| window == id.as_bytes())
}
