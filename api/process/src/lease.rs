//! Leadership by a `coordination.k8s.io/v1` Lease, as client-go's leader election does it: another
//! holder's lease counts as expired when its record has not changed for its duration by this
//! process' own clock, so clocks need not agree.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

const DURATION: Duration = Duration::from_secs(15);
/// Leadership that could not be renewed for this long is over: well before others may take it.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// A connection that hangs must not take the lease away with it.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
const RETRY: Duration = Duration::from_secs(2);

/// Which term of leadership this is; grows with each change of holder.
pub type Epoch = u64;

/// Whether this process leads, and in which term.
#[derive(Debug, Clone)]
pub struct Leadership(watch::Receiver<Option<Term>>);

#[derive(Debug, Clone, Copy)]
struct Term {
    epoch: Epoch,
    renewed: Instant,
}

impl Leadership {
    /// The term, while this process leads. Also right after it was stopped for a while: leadership
    /// that was not renewed in time is over, whether or not anybody noticed.
    pub fn epoch(&self) -> Option<Epoch> {
        let term = *self.0.borrow();
        term.filter(|term| term.renewed.elapsed() < RENEW_DEADLINE).map(|term| term.epoch)
    }

    /// Waits until leadership was gained or lost.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // The candidate is gone: nothing will change any more.
            std::future::pending::<()>().await;
        }
    }
}

/// Stands for election until `stop`, then lets go.
pub fn run(
    client: Client,
    namespace: &str,
    name: &str,
    identity: String,
    stop: CancellationToken,
) -> (Leadership, tokio::task::JoinHandle<()>) {
    let (send, receive) = watch::channel(None);
    let mut candidate = Candidate {
        leases: Api::namespaced(client, namespace),
        name: name.to_owned(),
        identity,
        seen: None,
    };
    let task = tokio::spawn(async move {
        loop {
            // Before the call: what it confirms was true then.
            let renewed = Instant::now();
            let campaign = tokio::time::timeout(CALL_TIMEOUT, candidate.campaign());
            match campaign.await.unwrap_or_else(|_| Err(timed_out())) {
                Ok(epoch) => set(&send, epoch.map(|epoch| Term { epoch, renewed })),
                Err(error) => {
                    warn!(lease = candidate.name, %error, "lease not renewed");
                    let late = send.borrow().is_some_and(|t| t.renewed.elapsed() > RENEW_DEADLINE);
                    if late {
                        set(&send, None);
                    }
                }
            }
            tokio::select! {
                () = sleep(RETRY) => {}
                () = stop.cancelled() => break,
            }
        }
        if send.borrow().is_some() {
            set(&send, None);
            candidate.release().await;
        }
    });
    (Leadership(receive), task)
}

/// Wakes those who wait when leadership was gained or lost, not with each renewal.
fn set(send: &watch::Sender<Option<Term>>, term: Option<Term>) {
    send.send_if_modified(|old| {
        let changed = old.map(|t| t.epoch) != term.map(|t| t.epoch);
        if changed {
            info!(epoch = term.map(|t| t.epoch), "leadership");
        }
        *old = term;
        changed
    });
}

struct Candidate {
    leases: Api<Lease>,
    name: String,
    identity: String,
    /// Another's record, and when it was first seen like this.
    seen: Option<(LeaseSpec, Instant)>,
}

impl Candidate {
    async fn campaign(&mut self) -> kube::Result<Option<Epoch>> {
        let now = MicroTime(jiff_now());
        let Some(mut lease) = self.leases.get_opt(&self.name).await? else {
            let spec = self.spec(1, Some(now.clone()), now);
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(spec) };
            return settled(self.leases.create(&PostParams::default(), &lease).await, 1);
        };
        let old = lease.spec.take().unwrap_or_default();
        let mine = old.holder_identity.as_deref() == Some(&self.identity);
        if !mine && !self.expired(&old) {
            return Ok(None);
        }
        let term = old.lease_transitions.unwrap_or(0) + i32::from(!mine);
        let acquired = if mine { old.acquire_time } else { Some(now.clone()) };
        lease.spec = Some(self.spec(term, acquired, now));
        // `resourceVersion` is in it: of two candidates one is told of a conflict.
        settled(self.leases.replace(&self.name, &PostParams::default(), &lease).await, term)
    }

    fn spec(&self, term: i32, acquired: Option<MicroTime>, now: MicroTime) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            lease_transitions: Some(term),
            acquire_time: acquired,
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }

    fn expired(&mut self, old: &LeaseSpec) -> bool {
        if old.holder_identity.as_deref().is_none_or(str::is_empty) {
            return true;
        }
        match &self.seen {
            Some((spec, since)) if spec == old => {
                let seconds = old.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
                since.elapsed() > seconds.map_or(DURATION, Duration::from_secs)
            }
            _ => {
                self.seen = Some((old.clone(), Instant::now()));
                false
            }
        }
    }

    /// Lets the next one take over at once.
    async fn release(&self) {
        let Ok(mut lease) = self.leases.get(&self.name).await else { return };
        if let Some(spec) = &mut lease.spec
            && spec.holder_identity.as_deref() == Some(&self.identity)
        {
            spec.holder_identity = Some(String::new());
            if let Err(error) =
                self.leases.replace(&self.name, &PostParams::default(), &lease).await
            {
                warn!(%error, "lease not released");
            }
        }
    }
}

fn settled(result: kube::Result<Lease>, term: i32) -> kube::Result<Option<Epoch>> {
    match result {
        Ok(_) => Ok(Some(u64::try_from(term).unwrap_or(0))),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(error) => Err(error),
    }
}

fn timed_out() -> kube::Error {
    kube::Error::Service("the apiserver did not answer in time".into())
}

fn jiff_now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}
