//! Who may connect, and how one becomes that: `pki` keeps the certificate authority and this manager's own
//! certificate, `issuer` signs, `allow` knows who may come in and closes the connections of who may no more,
//! `gate` says who may call what, `service` is what agents and Envoys call, `store` its objects on the
//! hub, `upkeep` what follows from connections and from time.

mod allow;
mod gate;
mod issuer;
mod pki;
mod service;
mod store;
mod upkeep;

use std::sync::Arc;

use anyhow::Result;
use fairlead_process::lease::Leadership;
use fairlead_proto::v1::identity_server::IdentityServer;
use fairlead_proto::{MAX_IDENTITY_BYTES, MAX_MESSAGE_BYTES};
use kube::Client;
use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use crate::Args;
use crate::events::Events;
pub(crate) use allow::AllowList;
use allow::Used;
pub(crate) use gate::Gate;
pub(crate) use issuer::IssuerKind;
use pki::TrustSessions;
pub(crate) use pki::{Pki, PkiSettings};
use service::Service;
use store::Store;

/// All of it, put together.
pub(crate) struct Identities {
    pub(crate) pki: Pki,
    pub(crate) allowed: Arc<AllowList>,
    service: Service,
    sessions: Arc<TrustSessions>,
    store: Store,
    pub(crate) events: Events,
    used: mpsc::UnboundedReceiver<Used>,
}

impl Identities {
    /// Reads the authority, or makes the first one.
    pub(crate) async fn start(client: &Client, args: &Args) -> Result<Self> {
        let pki = Pki::start(client.clone(), &args.namespace, args.pki()?).await?;
        let (note_use, used) = mpsc::unbounded_channel();
        let allowed = Arc::new(AllowList::new(&args.trust_domain, pki.roots(), note_use));
        allowed.believe(&pki.foreign().borrow())?;
        let store = Store::new(client.clone(), &args.namespace);
        let events = Events::new(client.clone(), &args.name);
        let sessions = Arc::new(TrustSessions::default());
        let account = format!("{}:{}", args.namespace, args.envoy_account);
        let service = Service::new(
            pki.clone(),
            store.clone(),
            events.clone(),
            sessions.clone(),
            allowed.clone(),
            &account,
            args.life(),
        )?;
        Ok(Self { pki, allowed, service, sessions, store, events, used })
    }

    /// What agents and Envoys call.
    pub(crate) fn server(&self) -> IdentityServer<Service> {
        IdentityServer::new(self.service.clone())
            .max_decoding_message_size(MAX_IDENTITY_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Keeps certificates fresh, for ever.
    pub(crate) async fn keep(self, leadership: Leadership) {
        let Self { pki, allowed, sessions, store, events, used, .. } = self;
        tokio::join!(
            follow(pki.foreign(), allowed),
            pki.run(leadership.clone(), sessions),
            upkeep::run(used, store, events, leadership)
        );
    }
}

/// Believes whom the administrators of the hub believe, for ever.
async fn follow(
    mut foreign: watch::Receiver<Vec<CertificateDer<'static>>>,
    allowed: Arc<AllowList>,
) {
    while foreign.changed().await.is_ok() {
        let roots = foreign.borrow_and_update().clone();
        if let Err(error) = allowed.believe(&roots) {
            warn!(error = format!("{error:#}"), "a CA of another trust domain cannot be used");
        }
    }
}
