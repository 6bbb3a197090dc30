//! Delta xDS (Envoy's "incremental aggregated discovery service") for any set of resources.
//!
//! * [`Cache`] holds what every client shall have, with an ordered log of what changed.
//! * [`Session`] is the protocol with one client as a state machine: requests in, responses out. It
//!   does no I/O and is tested without a socket.
//! * [`Server`] is the thin tonic shell around both.
//!
//! Invariants: a resource's message is encoded once, whatever the number of clients (and unpacked for each, where it is
//! kept as what it has besides an [`Example`]); a wake-up costs what
//! changed, not what exists; a resource is sent only when the client has acknowledged all that it
//! needs, and is taken away only when nothing that the client has needs it; a version is derived
//! from content, so a client that reconnects is sent nothing that it has.
//!
//! Absent on purpose: tenants, Kubernetes, and the state-of-the-world protocol.
//!
//! Source of the rules: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>.

mod body;
#[cfg(feature = "server")]
mod cache;
mod changes;
#[cfg(feature = "server")]
mod codec;
mod key_map;
mod resource;
#[cfg(feature = "server")]
mod server;
mod session;
mod state;
mod wire;

pub use body::Example;
#[cfg(feature = "server")]
pub use cache::Cache;
pub use changes::ChangeLog;
pub use key_map::KeyMap;
pub use resource::{Key, Resource, ResourceType, hash};
#[cfg(feature = "server")]
pub use server::{Observer, Server};
pub use session::{Event, Outcome, Session};
pub use state::{Change, State};
pub use wire::{Response, Wire};
