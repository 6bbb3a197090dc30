//! What the manager and the agent share as processes: mutual TLS and the identity in a certificate,
//! leadership by Lease, logs, metrics, probes and shutdown, the apiserver's client, and watches without managed fields.
//!
//! Absent on purpose: any decision about Routes.

pub mod apiserver;
pub mod identity;
pub mod lean;
pub mod lease;
pub mod locks;
pub mod logs;
pub mod metrics;
pub mod probes;
pub mod proof;
pub mod retry;
pub mod secret;
pub mod shutdown;
pub mod tls;
pub mod token;
