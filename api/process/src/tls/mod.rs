//! Mutual TLS: what a side shows and whom it believes ([`Credentials`]), connections taken in
//! ([`accept`]) and opened ([`connect`]).
//!
//! Absent on purpose: session resumption. A connection that is resumed shows no certificate, and every
//! connection's is looked at.

mod client;
mod clock;
mod credentials;
mod request;
mod server;

pub use client::{connect, open, pinned};
pub use clock::Clock;
pub use credentials::{Clients, Credentials, spki_hash};
pub use request::request;
pub use server::{Admission, Admitted, Connection, Peer, ServerTls, accept};
