//! The hub's manager: the thin shell around [`fairlead_core`] and [`fairlead_xds`].
//!
//! `agent_api` takes Routes in and `hub` stores them; `watch` reads the hub's objects back;
//! `conduct` feeds them to the engine and carries out what it decides; `fleet` tells it what the
//! Envoys say; `records` is what agents are told; `identity` says who may connect at all.

mod agent_api;
mod args;
mod balancers;
mod checkers;
mod conduct;
mod events;
mod fleet;
mod hub;
mod identity;
mod limits;
mod queue;
mod records;
mod refused;
mod removal;
mod run;
mod seen;
mod shares;
mod tenants;
mod watch;

#[doc(hidden)]
pub use agent_api::fuzz_stream;
pub use args::Args;
