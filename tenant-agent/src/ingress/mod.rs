//! Ingresses: whose they are (`class`), what their annotations ask for (`settings`, `nginx`), what must
//! exist for them (`plan`, `backends`), what they are told (`report`), and the shell around it (`reconcile`).

mod backends;
mod class;
mod nginx;
pub(crate) mod plan;
pub(crate) mod reconcile;
mod report;
pub(crate) mod settings;
pub(crate) mod users;

pub(crate) use class::is_ours;
