//! Fairlead on real clusters: what is asserted is traffic from the client host.
//!
//! The clusters are brought up once; each test has a namespace of its own. Tests that restart things
//! have the clusters for themselves.

#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

mod agent;
mod attackers;
mod bad_input;
mod clock;
mod faults;
mod identity;
mod ingress;
mod isolation;
mod issuers;
mod layer4;
mod provider;
mod quotas;
mod services;
mod web;
mod world;
