//! Who may be connected. Deny by default: an agent that is on the hub, not revoked, with the certificate that
//! was issued to it last; an Envoy whose pod there is. Whoever leaves the list loses its connections at once.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use fairlead_api::{AgentId, AgentSpec, AgentStatus, TenantId};
use fairlead_process::identity::{Bearer, Identity};
use fairlead_process::locks::lock;
use fairlead_process::tls::{Admission, Admitted, Credentials};
use fairlead_proto::REPLACED_CERTIFICATE;
use prometheus_client::metrics::counter::Counter;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Connections of one bearer at the same time; one more ends the oldest.
const PER_BEARER: usize = 4;
/// Connections without a certificate, of all together, and how long one may last.
const STRANGERS: usize = 128;
const STRANGER_LASTS: Duration = Duration::from_secs(20);

/// A certificate was used for the first time, or one that was replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Used {
    /// It counts from now on.
    New { tenant: TenantId, agent: AgentId, serial: String },
    /// It was replaced by a newer one.
    Superseded { tenant: TenantId, agent: AgentId, serial: String },
}

#[derive(Debug, Default)]
struct Known {
    serial: String,
    next: Option<String>,
    revoked: bool,
    /// `metadata.resourceVersion`, which Kubernetes compares as a number (KEP-5504).
    version: u64,
    /// When its newest certificate ends, in seconds since 1970.
    not_after: Option<i64>,
}

#[derive(Debug, Default)]
struct Inner {
    agents: HashMap<(TenantId, AgentId), Known>,
    /// Of existing trust domains.
    foreign: BTreeMap<String, TenantId>,
    /// Verifies certificates of existing trust domains; `None` where there are none.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    tenants: HashSet<TenantId>,
    envoys: HashSet<Box<str>>,
    open: HashMap<Identity, VecDeque<CancellationToken>>,
    strangers: VecDeque<CancellationToken>,
    complete: bool,
}

/// The list, and the connections that it let in.
pub(crate) struct AllowList {
    trust_domain: String,
    inner: Mutex<Inner>,
    /// The hub's own roots: what verifies with them is told apart from certificates of existing trust domains.
    own: Roots,
    used: mpsc::UnboundedSender<Used>,
    pub(crate) refused: Counter,
    /// Cancelled once everything was read: nobody is let in before.
    pub(crate) read: CancellationToken,
}

impl AllowList {
    /// `own`: whose certificates are believed; where they are needed they are asked for.
    pub(crate) fn new(trust_domain: &str, own: Roots, used: mpsc::UnboundedSender<Used>) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            inner: Mutex::default(),
            own,
            used,
            refused: Counter::default(),
            read: CancellationToken::new(),
        }
    }

    /// From now on certificates that these signed are believed for `Tenant.spec.spiffeIDs`, and for nothing else. Who
    /// was let in for another's word has to come again.
    pub(crate) fn believe(&self, foreign: &[CertificateDer<'static>]) -> Result<()> {
        let verifier = match foreign {
            [] => None,
            foreign => Some(verifier(foreign)?),
        };
        let mut inner = lock(&self.inner);
        inner.verifier = verifier;
        inner.close_the_foreign();
        Ok(())
    }

    /// Everything was read once: the list is whole.
    pub(crate) fn complete(&self) {
        lock(&self.inner).complete = true;
        self.read.cancel();
    }

    /// A Tenant as it is now; `None`: it is gone.
    pub(crate) fn tenant(&self, tenant: &TenantId, ids: Option<&[String]>) {
        let mut inner = lock(&self.inner);
        match ids {
            Some(_) => drop(inner.tenants.insert(tenant.clone())),
            None => drop(inner.tenants.remove(tenant)),
        }
        inner.foreign.retain(|_, whose| whose != tenant);
        for id in ids.unwrap_or_default() {
            // The first to name an id has it: another tenant cannot take its agents over.
            inner.foreign.entry(id.clone()).or_insert_with(|| tenant.clone());
        }
        inner.close_the_disallowed();
    }

    /// An agent as it is now, with its version; `None`: it is gone.
    pub(crate) fn agent(
        &self,
        tenant: &TenantId,
        agent: &AgentId,
        object: Option<(&AgentSpec, Option<&AgentStatus>, u64)>,
    ) {
        let mut inner = lock(&self.inner);
        let key = (tenant.clone(), agent.clone());
        match object {
            None => drop(inner.agents.remove(&key)),
            Some((spec, status, version)) => {
                let status = status.cloned().unwrap_or_default();
                let known = inner.agents.entry(key).or_default();
                // A watch tells late of what this process wrote itself.
                if version < known.version {
                    return;
                }
                known.version = version;
                known.revoked = spec.revoked;
                known.not_after = status.not_after.as_ref().map(|end| end.0.as_second());
                // What was just used here may not be written yet.
                if status.next_serial.as_ref() != Some(&known.serial) || known.serial.is_empty() {
                    (known.serial, known.next) = (status.serial, status.next_serial);
                }
            }
        }
        inner.close_the_disallowed();
    }

    /// An Envoy's pod is there, or no more.
    pub(crate) fn envoy(&self, pod: &str, there: bool) {
        let mut inner = lock(&self.inner);
        if there {
            inner.envoys.insert(pod.into());
        } else {
            inner.envoys.remove(pod);
            inner.close_the_disallowed();
        }
    }

    /// The serial number of the certificate that an agent uses; `None`: it has used none.
    pub(crate) fn serial(&self, tenant: &TenantId, agent: &AgentId) -> Option<String> {
        let inner = lock(&self.inner);
        let known = inner.agents.get(&(tenant.clone(), agent.clone()))?;
        Some(known.serial.clone()).filter(|serial| !serial.is_empty())
    }

    /// When the last of a tenant's certificates ends, in seconds since 1970.
    pub(crate) fn certificate_end(&self, tenant: &TenantId) -> Option<i64> {
        let inner = lock(&self.inner);
        let mine =
            inner.agents.iter().filter(|((whose, _), known)| whose == tenant && !known.revoked);
        mine.filter_map(|(_, known)| known.not_after).max()
    }

    fn identify(&self, inner: &Inner, chain: &[CertificateDer<'_>]) -> Result<(Identity, Bearer)> {
        let (first, rest) = chain.split_first().ok_or_else(|| anyhow!("no client certificate"))?;
        let bearer = Bearer::of(first)?;
        if !verifies(&*verifier(&(self.own)())?, first, rest) {
            if !inner.verifier.as_ref().is_some_and(|foreign| verifies(&**foreign, first, rest)) {
                bail!("this certificate is from no CA that is believed");
            }
            let tenant = inner.foreign.get(&bearer.id).cloned();
            let tenant = tenant.ok_or_else(|| {
                anyhow!("the SPIFFE id {:?} is in no Tenant's spec.spiffeIDs", bearer.id)
            })?;
            return Ok((Identity::Agent { tenant, agent: foreign_agent(&bearer.id)? }, bearer));
        }
        Ok((Identity::of_id(&bearer.id, &self.trust_domain)?, bearer))
    }

    /// Finds out who it is, lets the connection in and notes it, in one go: who leaves the list meanwhile is not missed.
    fn let_in(&self, chain: &[CertificateDer<'_>]) -> Result<(Identity, CancellationToken)> {
        let mut inner = lock(&self.inner);
        let (identity, bearer) = self.identify(&inner, chain)?;
        let end = self.permit(&mut inner, &identity, &bearer)?;
        Ok((identity, end))
    }

    fn permit(
        &self,
        inner: &mut Inner,
        identity: &Identity,
        bearer: &Bearer,
    ) -> Result<CancellationToken> {
        if !inner.complete {
            bail!("the manager is starting");
        }
        if inner.is_foreign(identity, &bearer.id) {
            return Ok(inner.open(Some(identity)));
        }
        inner.allows(identity)?;
        let Identity::Agent { tenant, agent } = identity else {
            return Ok(inner.open(Some(identity)));
        };
        let whose = (tenant.clone(), agent.clone());
        let Some(known) = inner.agents.get_mut(&whose) else {
            bail!("the certificates of this SPIFFE id are not issued here")
        };
        let (tenant, agent, serial) = (tenant.clone(), agent.clone(), bearer.serial.clone());
        if known.next.as_ref() == Some(&serial) {
            known.next = None;
            known.serial.clone_from(&serial);
            // The receiver lives as long as the process.
            let _ = self.used.send(Used::New { tenant, agent, serial });
        } else if known.serial != serial {
            let _ = self.used.send(Used::Superseded { tenant, agent, serial: serial.clone() });
            bail!(
                "this certificate (serial {serial}) {REPLACED_CERTIFICATE}; if the agent did not renew it, \
                 somebody else has its key"
            );
        }
        Ok(inner.open(Some(identity)))
    }
}

/// Certificates that are trusted now.
pub(crate) type Roots = Box<dyn Fn() -> Vec<CertificateDer<'static>> + Send + Sync>;

fn verifier(roots: &[CertificateDer<'static>]) -> Result<Arc<dyn ClientCertVerifier>> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    Ok(WebPkiClientVerifier::builder(Arc::new(store)).build()?)
}

fn verifies(
    verifier: &dyn ClientCertVerifier,
    first: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
) -> bool {
    verifier.verify_client_cert(first, rest, UnixTime::now()).is_ok()
}

/// Agents of existing trust domains have no `Agent` object; they are told apart by their ids' hash.
fn foreign_agent(id: &str) -> Result<AgentId> {
    Ok(fairlead_process::token::sha256(id.as_bytes())[..AgentId::LENGTH].parse()?)
}

impl Inner {
    fn is_foreign(&self, identity: &Identity, id: &str) -> bool {
        let Identity::Agent { tenant, .. } = identity else { return false };
        self.foreign.get(id) == Some(tenant)
    }

    fn allows(&self, identity: &Identity) -> Result<()> {
        match identity {
            Identity::Agent { tenant, agent } => {
                if !self.tenants.contains(tenant) {
                    bail!("the hub has no tenant {:?}", tenant.as_str());
                }
                let foreign = |(id, whose): (&String, &TenantId)| {
                    whose == tenant && foreign_agent(id).ok().as_ref() == Some(agent)
                };
                match self.agents.get(&(tenant.clone(), agent.clone())) {
                    Some(known) if known.revoked => bail!("agent {agent} of {tenant} was revoked"),
                    Some(_) => Ok(()),
                    None if self.foreign.iter().any(foreign) => Ok(()),
                    None => bail!("the hub knows no agent {agent} of {tenant}"),
                }
            }
            Identity::Envoy { pod } if self.envoys.contains(pod) => Ok(()),
            Identity::Envoy { pod } => bail!("there is no Envoy pod {pod:?}"),
            Identity::Manager => bail!("managers do not connect to managers"),
        }
    }

    fn close_the_foreign(&mut self) {
        for (id, tenant) in &self.foreign {
            let Ok(agent) = foreign_agent(id) else { continue };
            let identity = Identity::Agent { tenant: tenant.clone(), agent };
            let open = self.open.remove(&identity).into_iter().flatten();
            open.for_each(|connection| connection.cancel());
        }
    }

    fn close_the_disallowed(&mut self) {
        let mut open = std::mem::take(&mut self.open);
        open.retain(|identity, connections| {
            connections.retain(|connection| !connection.is_cancelled());
            if let Err(error) = self.allows(identity) {
                if !connections.is_empty() {
                    warn!(%identity, %error, "connections closed");
                }
                connections.iter().for_each(CancellationToken::cancel);
                connections.clear();
            }
            !connections.is_empty()
        });
        self.open = open;
    }

    fn open(&mut self, identity: Option<&Identity>) -> CancellationToken {
        let end = CancellationToken::new();
        let (all, limit) = match identity {
            Some(identity) => (self.open.entry(identity.clone()).or_default(), PER_BEARER),
            None => (&mut self.strangers, STRANGERS),
        };
        all.retain(|one| !one.is_cancelled());
        if all.len() >= limit
            && let Some(oldest) = all.pop_front()
        {
            oldest.cancel();
        }
        all.push_back(end.clone());
        end
    }
}

impl Admission for AllowList {
    fn admit(&self, chain: &[CertificateDer<'_>], address: SocketAddr) -> Result<Admitted> {
        let mut refusal = None;
        if !chain.is_empty() {
            match self.let_in(chain) {
                Ok((identity, end)) => {
                    return Ok(Admitted { identity: Some(identity), refusal: None, end });
                }
                Err(error) => {
                    self.refused.inc();
                    let error = error.to_string();
                    warn!(%address, error, "certificate refused");
                    refusal = Some(error);
                }
            }
        }
        let end = lock(&self.inner).open(None);
        let late = end.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(STRANGER_LASTS) => late.cancel(),
                () = late.cancelled() => {}
            }
        });
        Ok(Admitted { identity: None, refusal, end })
    }

    fn refused(&self) {
        self.refused.inc();
    }
}

/// The certificates of existing trust domains in a file; none where there is no such file. Fails if one of them cannot
/// be used.
pub(crate) fn foreign_roots(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = match std::fs::read(path) {
        Ok(pem) => Credentials::from_pem(&pem, None).and_then(|read| {
            if !read.roots.is_empty() {
                verifier(&read.roots)?;
            }
            Ok(read.roots)
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => Err(error.into()),
    };
    read.with_context(|| path.display().to_string())
}

#[cfg(test)]
#[path = "allow_tests.rs"]
mod tests;
