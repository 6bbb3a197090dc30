//! What agents and Envoys call for their certificates: the shell around `fairlead_identity`.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fairlead_api::{Agent, AgentId, AgentSpec, AgentStatus, JoinTokenStatus, TenantId};
use fairlead_identity::Refusal;
use fairlead_identity::authority::Issued;
use fairlead_identity::joining::{may_join, may_recover};
use fairlead_identity::proof::{self, Challenger};
use fairlead_identity::request::RequestError;
use fairlead_process::identity::{Identity, is_pod};
use fairlead_process::locks::lock;
use fairlead_process::retry::between;
use fairlead_process::tls::Peer;
use fairlead_process::token::{random, sha256};
use fairlead_proto::v1::enroll_request::Credential;
use fairlead_proto::v1::identity_server::Identity as IdentityService;
use fairlead_proto::v1::recover_response::Answer;
use fairlead_proto::{ENVOY_AUDIENCE, v1};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::allow::AllowList;
use super::pki::{Pki, TrustSessions, Trusted};
use super::store::Store;
use crate::events::Events;
use crate::limits::{Rate, Refusals};
use crate::watch::version;

/// Requests that are worked on at the same time.
const AT_ONCE: usize = 16;
/// Refusals of one address: ten at once, and one every six seconds.
const REFUSALS: Rate = Rate { burst: 10.0, per_second: 1.0 / 6.0 };
/// A new agent's `spec.maxRecoveries`.
const RECOVERIES: u32 = 5;

/// The identity API.
#[derive(Clone)]
pub(crate) struct Service {
    pki: Pki,
    store: Store,
    events: Events,
    sessions: Arc<TrustSessions>,
    allowed: Arc<AllowList>,
    challenger: Arc<Challenger>,
    refusals: Arc<Mutex<Refusals>>,
    permits: Arc<Semaphore>,
    /// The service account of the Envoys' pods.
    envoys: Arc<str>,
    /// How long a connection lives at most.
    life: Duration,
}

/// Why a request gets no certificate.
enum No {
    Refusal(Refusal),
    Request(RequestError),
    /// It may work later.
    Failed(anyhow::Error),
    Other(Status),
}

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(refusal)
    }
}

impl From<kube::Error> for No {
    fn from(error: kube::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl From<anyhow::Error> for No {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<RequestError>() {
            Ok(request) => Self::Request(request),
            Err(error) => Self::Failed(error),
        }
    }
}

impl Service {
    /// `envoys`: the service account that the Envoys' pods have, as `namespace:name`.
    pub(crate) fn new(
        pki: Pki,
        store: Store,
        events: Events,
        sessions: Arc<TrustSessions>,
        allowed: Arc<AllowList>,
        envoys: &str,
        life: Duration,
    ) -> Result<Self> {
        Ok(Self {
            pki,
            store,
            events,
            sessions,
            allowed,
            challenger: Arc::new(Challenger::new(&random()?)),
            refusals: Arc::new(Mutex::new(Refusals::new(REFUSALS))),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            envoys: format!("system:serviceaccount:{envoys}").into(),
            life,
        })
    }

    /// Runs one request of a stranger at an address, or of somebody with a certificate: strangers who share an
    /// address with it are none of its business. Says in one line of the log why it was refused.
    async fn answer<T>(
        &self,
        method: &str,
        address: Option<IpAddr>,
        work: impl Future<Output = Result<T, No>>,
    ) -> Result<Response<T>, Status> {
        let permit = self.permits.acquire().await;
        let now = Instant::now();
        if address.is_some_and(|address| lock(&self.refusals).too_many(address, now)) {
            return Err(Status::resource_exhausted(
                "too many refusals of late from this address; try again in a minute",
            ));
        }
        let status = match work.await {
            Ok(answer) => return Ok(Response::new(answer)),
            Err(No::Failed(error)) => {
                warn!(method, ?address, error = format!("{error:#}"), "no certificate issued");
                return Err(Status::unavailable("the hub could not do it now; try again"));
            }
            Err(No::Refusal(refusal)) => Status::unauthenticated(refusal.to_string()),
            Err(No::Request(error)) => Status::invalid_argument(error.to_string()),
            Err(No::Other(status)) => status,
        };
        drop(permit);
        if let Some(address) = address {
            lock(&self.refusals).note(address, Instant::now());
        }
        warn!(method, ?address, error = status.message(), "no certificate issued");
        Err(status)
    }

    async fn join(&self, join: v1::Join, csr: &[u8]) -> Result<v1::Issued, No> {
        let v1::Join { id, secret, bound_key, signature } = join;
        let id: AgentId = id.parse().map_err(|_| Refusal::UnknownToken)?;
        let token = self.store.token(&id).await?.ok_or(Refusal::UnknownToken)?;
        let Ok(tenant) = token.spec.tenant.parse::<TenantId>() else {
            return Err(Refusal::UnknownToken.into());
        };
        let agent = self.store.agent(&tenant, &id).await?;
        let key = sha256(&bound_key);
        let there = agent.as_ref().map(|agent| (&agent.spec, hash_of(agent)));
        let there = there.as_ref().map(|(spec, key)| (*spec, key.as_str()));
        let now = jiff::Timestamp::now();
        let status = (&token.spec, token.status.as_ref());
        if let Err(refusal) = may_join(id.as_str(), status, there, &secret, &key, now.as_second()) {
            if refusal != Refusal::UnknownToken {
                self.events.warn(&tenant, "JoinRefused", &format!("token {id}: {refusal}"));
            }
            return Err(refusal.into());
        }
        if !proof::joins(&bound_key, &signature, id.as_str(), csr) {
            return Err(Refusal::NoProof.into());
        }
        // The agent first: a crash between the two leaves a token that the same key may use again.
        let agent = match agent {
            Some(agent) => agent,
            None => self.create(&tenant, &id, &bound_key).await?,
        };
        if hash_of(&agent) != key {
            return Err(Refusal::UsedByAnother(id.to_string()).into());
        }
        if token.status.is_none() {
            let used = JoinTokenStatus { bound_key: Some(key), used_at: Some(Time(now)) };
            self.store.mark_used(token, used).await?;
        }
        let issued = self.issue_agent(&tenant, &id, csr, agent, 0).await?;
        info!(%tenant, agent = %id, "agent joined");
        Ok(issued)
    }

    async fn create(&self, tenant: &TenantId, id: &AgentId, key: &[u8]) -> Result<Agent, No> {
        let spec = AgentSpec {
            bound_key: STANDARD.encode(key),
            revoked: false,
            max_recoveries: RECOVERIES,
        };
        match self.store.create_agent(tenant, id, spec).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let message = format!(
                    "the hub has no tenant {:?} yet; a platform administrator creates the Tenant",
                    tenant.as_str()
                );
                Err(No::Other(Status::failed_precondition(message)))
            }
            made => Ok(made?),
        }
    }

    /// Issues a certificate, and notes it before anybody has it.
    async fn issue_agent(
        &self,
        tenant: &TenantId,
        id: &AgentId,
        csr: &[u8],
        agent: Agent,
        recovered: u32,
    ) -> Result<v1::Issued, No> {
        let identity = Identity::Agent { tenant: tenant.clone(), agent: id.clone() };
        let issued = self.pki.issue(&identity, csr).await.map_err(No::from).inspect_err(|no| {
            if let No::Request(error) = no {
                self.events.warn(tenant, "RequestRefused", &format!("agent {id}: {error}"));
            }
        })?;
        if let Some(issued) = &issued {
            let before = agent.status.clone().unwrap_or_default();
            let end = jiff::Timestamp::from_second(issued.not_after).ok().map(Time);
            // What is in use may not be written yet.
            let serial = self.allowed.serial(tenant, id).unwrap_or(before.serial);
            let status = AgentStatus {
                serial,
                next_serial: Some(issued.serial.clone()),
                not_after: end,
                recoveries: before.recoveries + recovered,
            };
            let noted = self.store.report_agent(tenant, agent, status).await?;
            // Its bearer comes before the watch has told of it.
            let known = (&noted.spec, noted.status.as_ref(), version(&noted));
            self.allowed.agent(tenant, id, Some(known));
            if self.store.agent(tenant, id).await?.is_none() {
                // It was deleted meanwhile, and the watch has told of that already.
                self.allowed.agent(tenant, id, None);
                return Err(Refusal::UnknownAgent.into());
            }
        }
        Ok(self.message(&identity, issued))
    }

    fn message(&self, identity: &Identity, issued: Option<Issued>) -> v1::Issued {
        let trusted = self.pki.watch().borrow().clone();
        let (chain, not_after) = match issued {
            Some(issued) => {
                let end = prost_types::Timestamp { seconds: issued.not_after, nanos: 0 };
                (issued.chain.into_bytes(), Some(end))
            }
            None => (Vec::new(), None),
        };
        v1::Issued { id: self.pki.id(identity), chain, not_after, trust: Some(trust(&trusted)) }
    }

    async fn enroll_envoy(&self, token: &str, csr: &[u8]) -> Result<v1::Issued, No> {
        let refused =
            || No::Other(Status::unauthenticated("this service account token is not an Envoy's"));
        let reviewed = self.store.review(token, ENVOY_AUDIENCE).await?.ok_or_else(refused)?;
        let (user, pod) = reviewed;
        if *user != *self.envoys || !is_pod(&pod) {
            return Err(refused());
        }
        let identity = Identity::Envoy { pod: pod.as_str().into() };
        let issued = self.pki.issue(&identity, csr).await?;
        info!(pod, "Envoy enrolled");
        Ok(self.message(&identity, issued))
    }

    async fn recover_agent(&self, request: v1::RecoverRequest) -> Result<v1::RecoverResponse, No> {
        let v1::RecoverRequest { tenant, agent, csr, challenge, signature } = request;
        let unknown = || No::Refusal(Refusal::UnknownAgent);
        let tenant: TenantId = tenant.parse().map_err(|_| unknown())?;
        let id: AgentId = agent.parse().map_err(|_| unknown())?;
        let spiffe = self.pki.id(&Identity::Agent { tenant: tenant.clone(), agent: id.clone() });
        let now = jiff::Timestamp::now().as_second();
        if challenge.is_empty() {
            let challenge = self.challenger.challenge(&spiffe, random()?, now);
            return Ok(v1::RecoverResponse { answer: Some(Answer::Challenge(challenge)) });
        }
        if !self.challenger.knows(&challenge, &spiffe, now) {
            let message = "this challenge is not the hub's, or is older than a minute";
            return Err(No::Other(Status::unauthenticated(message)));
        }
        let agent = self.store.agent(&tenant, &id).await?.ok_or_else(unknown)?;
        let key = STANDARD.decode(&agent.spec.bound_key).unwrap_or_default();
        if !proof::recovers(&key, &signature, &challenge, &csr) {
            return Err(Refusal::NoProof.into());
        }
        if let Err(refusal) = may_recover(id.as_str(), &agent.spec, agent.status.as_ref()) {
            self.events.warn(&tenant, "RecoveryRefused", &format!("agent {id}: {refusal}"));
            return Err(refusal.into());
        }
        let issued = self.issue_agent(&tenant, &id, &csr, agent, 1).await?;
        info!(%tenant, agent = %id, "agent recovered");
        Ok(v1::RecoverResponse { answer: Some(Answer::Issued(issued)) })
    }

    async fn renew_agent(&self, identity: Identity, csr: &[u8]) -> Result<v1::Issued, No> {
        let Identity::Agent { tenant, agent: id } = identity else {
            return Err(No::Other(Status::permission_denied("only agents renew")));
        };
        let Some(agent) = self.store.agent(&tenant, &id).await? else {
            let message = "the certificates of this SPIFFE id are not issued here";
            return Err(No::Other(Status::failed_precondition(message)));
        };
        if agent.spec.revoked {
            return Err(Refusal::Revoked.into());
        }
        self.issue_agent(&tenant, &id, csr, agent, 0).await
    }
}

/// SHA-256 of an agent's bound key.
fn hash_of(agent: &Agent) -> String {
    sha256(&STANDARD.decode(&agent.spec.bound_key).unwrap_or_default())
}

fn trust(trusted: &Trusted) -> v1::Trust {
    v1::Trust {
        sequence: trusted.sequence,
        roots: trusted.roots.clone().into_bytes(),
        hub_time: Some(std::time::SystemTime::now().into()),
    }
}

#[allow(clippy::result_large_err)] // tonic's own error type
fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::internal("no connection"))
}

#[tonic::async_trait]
impl IdentityService for Service {
    type WatchTrustStream = ReceiverStream<Result<v1::Trust, Status>>;

    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::Issued>, Status> {
        let address = peer(&request)?.address.ip();
        let v1::EnrollRequest { credential, csr } = request.into_inner();
        self.answer("Enroll", Some(address), async {
            match credential {
                Some(Credential::Join(join)) => self.join(join, &csr).await,
                Some(Credential::ServiceAccountToken(token)) => {
                    self.enroll_envoy(&token, &csr).await
                }
                None => Err(No::Other(Status::invalid_argument("credential: is missing"))),
            }
        })
        .await
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::Issued>, Status> {
        let Peer { identity, .. } = peer(&request)?;
        let identity = identity.ok_or_else(|| Status::new(Code::Unauthenticated, "no identity"))?;
        let csr = request.into_inner().csr;
        self.answer("Renew", None, self.renew_agent(identity, &csr)).await
    }

    async fn recover(
        &self,
        request: Request<v1::RecoverRequest>,
    ) -> Result<Response<v1::RecoverResponse>, Status> {
        let address = peer(&request)?.address.ip();
        self.answer("Recover", Some(address), self.recover_agent(request.into_inner())).await
    }

    async fn watch_trust(
        &self,
        request: Request<Streaming<v1::Confirmed>>,
    ) -> Result<Response<Self::WatchTrustStream>, Status> {
        let Peer { end, .. } = peer(&request)?;
        let mut confirmed = request.into_inner();
        let (send, receive) = mpsc::channel(4);
        let (mut trusted, sessions) = (self.pki.watch(), self.sessions.clone());
        let number = sessions.begin();
        let life = self.life;
        trusted.mark_changed();
        tokio::spawn(async move {
            // Before the transport asks for the end, which would be an error to the caller.
            let old = tokio::time::sleep(between(life * 3 / 5, life * 2 / 3));
            let mut old = std::pin::pin!(old);
            loop {
                tokio::select! {
                    Ok(()) = trusted.changed() => {
                        let news = trust(&trusted.borrow_and_update());
                        if send.send(Ok(news)).await.is_err() {
                            break;
                        }
                    }
                    message = confirmed.message() => match message {
                        Ok(Some(message)) => sessions.confirm(number, message.sequence),
                        _ => break,
                    },
                    () = end.cancelled() => break,
                    () = &mut old => break,
                }
            }
            sessions.end(number);
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }
}
