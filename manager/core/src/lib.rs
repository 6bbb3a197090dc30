//! The hub's decisions as functions of values.
//!
//! Objects come in as [`model`] values, the [`Engine`] keeps them and knows which Routes are dirty;
//! [`Engine::step`] allocates and translates those, and returns [`Effects`] for a shell to carry
//! out: claims to create and delete, Envoy resources to publish, statuses to write.
//!
//! Invariants: no I/O, clock or randomness, so equal histories give equal effects; one bad Route
//! harms no other, since results carry their rejects; an address is translated only once its claims
//! are persisted; what a Route published last stays until something better replaces it.

pub mod allocate;
pub mod claims;
pub mod engine;
mod examples;
pub mod fleet;
pub mod health;
pub mod hosts;
pub mod http;
pub mod model;
pub mod nodes;
pub mod owners;
mod pb;
pub mod pool;
mod publish;
pub mod runs;
pub mod status;
pub mod told;
pub mod translate;
pub mod usage;
pub mod versions;

pub use engine::{Effects, Engine};
