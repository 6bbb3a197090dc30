//! What follows from connections, and from time: certificates that count from now on, tokens that expired.

use std::time::Duration;

use fairlead_api::{AgentStatus, TenantId};
use fairlead_process::lease::Leadership;
use kube::ResourceExt;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::allow::Used;
use super::store::Store;
use crate::events::Events;
use crate::hub::pause_after_failure;

/// Expired tokens are kept so long, so that who uses one learns what it was.
const KEPT_SECONDS: i64 = 3_600;
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Somebody else may have written the agent's status meanwhile.
const TRIES: usize = 60;

/// Runs for ever.
pub(crate) async fn run(
    mut used: mpsc::UnboundedReceiver<Used>,
    store: Store,
    events: Events,
    leadership: Leadership,
) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            Some(one) = used.recv() => {
                let (store, events) = (store.clone(), events.clone());
                // One that has to try again keeps no other waiting.
                tokio::spawn(async move { note(&store, &events, one).await });
            }
            _ = look.tick() => {
                if leadership.epoch().is_some()
                    && let Err(error) = forget_expired(&store).await
                {
                    warn!(%error, "expired join tokens not deleted, trying again");
                }
            }
        }
    }
}

async fn note(store: &Store, events: &Events, used: Used) {
    match used {
        Used::New { tenant, agent, serial } => {
            let id = (&tenant, &agent);
            for _ in 0..TRIES {
                match counts_now(store, id, &serial).await {
                    Ok(()) => {
                        info!(%tenant, %agent, serial, "a new certificate is in use");
                        return;
                    }
                    Err(error) => {
                        warn!(%tenant, %agent, %error, "its serial number not written, trying again");
                        pause_after_failure().await;
                    }
                }
            }
        }
        Used::Superseded { tenant, agent, serial } => {
            let note = format!(
                "somebody showed certificate {serial} of agent {agent}, which was replaced by a newer one. If the \
                 agent itself is refused since, its key is known to somebody else: revoke it with `fairlead agent \
                 revoke {tenant} {agent}`, and let the agent join anew"
            );
            events.warn(&tenant, "ReplacedCertificateUsed", &note);
        }
    }
}

async fn counts_now(
    store: &Store,
    (tenant, agent): (&TenantId, &fairlead_api::AgentId),
    serial: &str,
) -> kube::Result<()> {
    let Some(object) = store.agent(tenant, agent).await? else { return Ok(()) };
    let status = object.status.clone().unwrap_or_default();
    if status.next_serial.as_deref() != Some(serial) {
        return Ok(());
    }
    let status = AgentStatus { serial: serial.to_owned(), next_serial: None, ..status };
    store.report_agent(tenant, object, status).await.map(drop)
}

async fn forget_expired(store: &Store) -> kube::Result<()> {
    let now = jiff::Timestamp::now().as_second();
    for token in store.tokens().await? {
        if token.spec.expires_at.0.as_second() + KEPT_SECONDS < now {
            store.delete_token(&token.name_any()).await?;
        }
    }
    Ok(())
}
