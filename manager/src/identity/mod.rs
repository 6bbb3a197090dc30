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

pub(crate) use allow::AllowList;
pub(crate) use gate::Gate;
pub(crate) use issuer::IssuerKind;
pub(crate) use pki::{Pki, PkiSettings, TrustSessions};
pub(crate) use service::Service;
pub(crate) use store::Store;
pub(crate) use upkeep::run as upkeep;
