//! What the hub said of an Ingress, and what its plan lacks → `Ingress.status` and Events.

use fairlead_api::condition::PROGRAMMED;
use fairlead_proto::v1;
use k8s_openapi::api::networking::v1::{Ingress, IngressLoadBalancerIngress, IngressPortStatus};

use crate::outbox::Word;
use crate::report::Note;

/// The addresses to show: each once all Envoys serve it, for as long as the hub holds it.
pub(crate) fn addresses(ingress: &Ingress, word: Option<&Word>) -> Vec<IngressLoadBalancerIngress> {
    let shown = shown(ingress);
    // Nothing new is known, or the hub keeps what it had: what is shown stays.
    let Some(Word::Status(status)) = word else { return shown };
    let programmed = holds(status, PROGRAMMED) == Some(true);
    let tls = ingress.spec.as_ref().is_some_and(|spec| spec.tls.iter().flatten().next().is_some());
    let ports = if tls { &[80, 443][..] } else { &[80] };
    let port = |port: &i32| IngressPortStatus { port: *port, protocol: "TCP".into(), error: None };
    let known = |ip: &String| shown.iter().any(|old| old.ip.as_ref() == Some(ip));
    let entry = |ip: &String| IngressLoadBalancerIngress {
        ip: Some(ip.clone()),
        hostname: None,
        ports: Some(ports.iter().map(port).collect()),
    };
    status.addresses.iter().filter(|ip| programmed || known(ip)).map(entry).collect()
}

/// What is shown now.
pub(crate) fn shown(ingress: &Ingress) -> Vec<IngressLoadBalancerIngress> {
    let status = ingress.status.clone().unwrap_or_default();
    status.load_balancer.and_then(|balancer| balancer.ingress).unwrap_or_default()
}

fn holds(status: &v1::Status, kind: &str) -> Option<bool> {
    status.conditions.iter().find(|one| one.r#type == kind).map(|one| one.holds)
}

/// What is worth an Event.
pub(crate) fn notes(word: Option<&Word>) -> Vec<Note> {
    match word {
        None => Vec::new(),
        Some(Word::Refused(v1::Refused { reason, message, .. })) => {
            vec![Note::warning_of(reason, message)]
        }
        Some(Word::Status(status)) => {
            status.conditions.iter().filter_map(|c| note(c, status)).collect()
        }
    }
}

fn note(condition: &v1::Condition, status: &v1::Status) -> Option<Note> {
    let v1::Condition { r#type, holds, reason, message } = condition;
    match (r#type.as_str(), holds) {
        (PROGRAMMED, true) => {
            Some(Note::normal(PROGRAMMED, format!("Served at {}", status.addresses.join(", "))))
        }
        // These pass, or are said by another condition; what is missing here was told already.
        (PROGRAMMED, false) if ["Pending", "NotAccepted"].contains(&reason.as_str()) => None,
        ("ResolvedRefs", false) if reason == "RefNotFound" => None,
        ("Conflicted" | "PartiallyInvalid", true) => Some(Note::warning_of(reason, message)),
        ("Conflicted" | "PartiallyInvalid", false) | (_, true) => None,
        (_, false) => Some(Note::warning_of(reason, message)),
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
