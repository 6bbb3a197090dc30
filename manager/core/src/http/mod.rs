//! Layer 7: hosts, rules and certificates → Envoy's scopes, routes, clusters, listeners and secrets.
//!
//! One thing of Envoy's for one thing of ours, so that a change costs what changed: a host name at an
//! address is a scope and a `RouteConfiguration` ([`site`]), a backend's port is a Cluster, an address
//! has two listeners that know of no host but those with a certificate, a Secret is a Secret.

pub mod check;
pub(crate) mod filters;
pub(crate) mod listener;
mod regex;
mod rule;
pub mod secrets;
pub mod site;
pub(crate) mod upstream;
pub(crate) mod web;

pub use secrets::{Pair, Secret, SecretId};
pub use site::SiteKey;
