//! Fairlead's certificate authority, as functions of values: who gets which certificate ([`request`],
//! [`proof`], [`joining`]), and how the authority itself is replaced ([`authority`]).
//!
//! Invariants: nothing but the public key of a request reaches a certificate; what is trusted is told to
//! everybody before anything is signed with it; a key that signs no more is forgotten.
//!
//! Absent on purpose: any I/O and any clock; times are given, in seconds since 1970.

pub mod authority;
pub mod joining;
pub mod proof;
pub mod request;

pub use authority::{Authority, Issued, Phase, Step};
pub use joining::Refusal;
