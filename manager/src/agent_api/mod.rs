//! Where agents push to: `service` is the tonic shell, `session` decides, `convert` reads what a
//! stranger sends, `text` what it must not have.

mod convert;
mod service;
mod session;
mod text;

pub(crate) use service::{AgentApi, MAX_SKEW, Sessions};
pub use session::fuzz_stream;
