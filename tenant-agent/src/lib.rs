//! A tenant cluster's agent.
//!
//! `watches` reads the cluster, `packed` keeps what was read, and `turns` says who looks at what changed; `plan`,
//! `shadow`, `nodes` and `report` decide, as functions of values; `reconcile` carries the decisions out in the cluster;
//! `outbox` holds what the hub shall have and what it said, and `link` keeps a stream to the hub that brings the two
//! together; `identity` is who this agent is there.
//!
//! Invariants: the hub is never told that something is gone because it was not read yet; a Service
//! keeps our finalizer until the hub has let go of it; a Service that cannot be published harms no
//! other.

mod annotations;
mod args;
mod endpoints;
mod events;
mod identity;
mod ingress;
mod link;
mod mirror;
mod nodes;
mod outbox;
mod packed;
mod plan;
mod reconcile;
mod report;
mod run;
mod secrets;
mod settings;
mod shadow;
mod slots;
mod turns;
mod watches;

pub use args::Args;
