//! What was refused, counted: who is knocked at can be seen without reading logs.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tonic::{Code, Status};

/// A method of this API, and the status that it answered with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Answer {
    method: String,
    code: String,
}

/// Calls that got an error for what was asked: `fairlead_requests_refused_total{method=…,code=…}`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refused(pub(crate) Family<Answer, Counter>);

impl Refused {
    /// Counts an answer for which the caller has to do something else; whether it is one.
    pub(crate) fn note(&self, method: &str, status: &Status) -> bool {
        let callers = is_callers(status.code());
        if callers {
            let answer = Answer { method: method.to_owned(), code: format!("{:?}", status.code()) };
            self.0.get_or_create(&answer).inc();
        }
        callers
    }
}

/// Whether the caller has to do something else. A connection that breaks is `Unknown` or `Internal`, and nobody's fault.
fn is_callers(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::DeadlineExceeded
            | Code::PermissionDenied
            | Code::Unauthenticated
    )
}
