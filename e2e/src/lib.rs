//! Real Kubernetes clusters on one machine, Fairlead installed on them as a user would, and traffic
//! through it.
//!
//! `topology` says what there is; a `driver` (`local` or `kind`) makes it; `install` puts Fairlead on
//! it with Helm; `demo` and the tests use it. All is synchronous: this crate waits for other
//! programs, and a thread for each is plenty.

pub mod authority;
pub mod bench;
pub mod binaries;
pub mod cli;
pub mod cluster;
pub mod demo;
pub mod driver;
pub mod envoy;
pub mod hub;
pub mod images;
pub mod install;
pub mod kind;
pub mod local;
pub mod metallb;
pub mod packages;
pub mod paths;
pub mod peer;
pub mod run;
pub mod say;
pub mod topology;
pub mod traffic;
