//! What the hub said → `Service.status` and Events.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, PortStatus, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::runtime::events::EventType;

use crate::outbox::Word;
use crate::plan::{Ports, Problem};

/// Prefix of our conditions on a Service.
const PREFIX: &str = "fairlead.dev/";
/// Kubernetes' condition for ports that a load balancer cannot serve (core/v1).
const PORTS_ERROR: &str = "LoadBalancerPortsError";

/// What to write, and what to tell.
#[derive(Debug, PartialEq)]
pub(crate) struct Report {
    pub(crate) ingress: Vec<LoadBalancerIngress>,
    pub(crate) conditions: Vec<Condition>,
    pub(crate) events: Vec<Note>,
}

/// An Event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Note {
    pub(crate) kind: EventType,
    pub(crate) reason: Cow<'static, str>,
    pub(crate) message: String,
}

impl Note {
    pub(crate) fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind: EventType::Normal, reason: reason.into(), message: message.into() }
    }

    pub(crate) fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind: EventType::Warning, reason: reason.into(), message: message.into() }
    }

    /// A warning with the reason of a condition.
    pub(crate) fn warning_of(reason: &str, message: &str) -> Self {
        let reason = Cow::Owned(reason.to_owned());
        Self { kind: EventType::Warning, reason, message: message.to_owned() }
    }
}

/// `tcp-80=20001`: the ports that listeners which take any were given, as the annotation has them; `None`
/// while the hub has not spoken.
pub(crate) fn given_ports(word: Option<&Word>) -> Option<String> {
    let Some(Word::Status(status)) = word else { return None };
    let shown = status.ports.iter().map(|one| format!("{}={}", one.listener, one.port));
    Some(shown.collect::<Vec<_>>().join(","))
}

struct Finding {
    kind: String,
    holds: bool,
    reason: String,
    message: String,
}

/// The status of a Service that is published. An address is shown once all Envoys serve it, and
/// stays while the hub holds it.
pub(crate) fn report(service: &Service, ports: &Ports, word: Option<&Word>, now: &Time) -> Report {
    let status = service.status.clone().unwrap_or_default();
    let old = status.conditions.unwrap_or_default();
    let shown = status.load_balancer.and_then(|lb| lb.ingress).unwrap_or_default();
    let findings = findings(ports, word);
    let programmed = findings.iter().any(|f| f.kind == "fairlead.dev/Programmed" && f.holds);
    let held: &[String] = match word {
        Some(Word::Status(status)) => &status.addresses,
        _ => &[],
    };
    let showing = |ip: &String| programmed || shown.iter().any(|old| old.ip.as_ref() == Some(ip));
    let ingress = match word {
        Some(Word::Status(_)) => {
            held.iter().filter(|ip| showing(ip)).map(|ip| entry(ip, ports)).collect()
        }
        // Nothing new is known: what is shown stays, as long as there is something to serve.
        _ if ports.served.is_empty() => Vec::new(),
        _ => shown,
    };
    let given = given_ports(word).unwrap_or_default();
    let mut events = Vec::new();
    let mut conditions: Vec<_> = old.iter().filter(|c| !is_ours(c)).cloned().collect();
    for finding in findings {
        let before = old.iter().find(|c| c.type_ == finding.kind);
        events.extend(news(before, &finding, &ingress, &given));
        conditions.push(condition(finding, before, service.metadata.generation, now));
    }
    // Until the hub has spoken about a change, what it said before stays.
    if word.is_none() && !ports.served.is_empty() {
        let missing =
            |c: &&Condition| is_ours(c) && !conditions.iter().any(|new| new.type_ == c.type_);
        let kept: Vec<_> =
            old.iter().filter(|c| c.type_ != PORTS_ERROR).filter(missing).cloned().collect();
        conditions.extend(kept);
    }
    Report { ingress, conditions, events }
}

/// A condition that this agent writes.
pub(crate) fn is_ours(condition: &Condition) -> bool {
    condition.type_.starts_with(PREFIX) || condition.type_ == PORTS_ERROR
}

fn findings(ports: &Ports, word: Option<&Word>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = match word {
        Some(Word::Status(status)) => status
            .conditions
            .iter()
            .map(|c| Finding {
                kind: format!("{PREFIX}{}", c.r#type),
                holds: c.holds,
                reason: c.reason.clone(),
                message: c.message.clone(),
            })
            .collect(),
        Some(Word::Refused(refused)) => vec![accepted(&refused.reason, &refused.message)],
        None => Vec::new(),
    };
    let (on_ports, on_all): (Vec<_>, Vec<_>) =
        ports.problems.iter().partition(|p| p.port.is_some());
    if let Some(problem) = on_all.first() {
        findings = vec![accepted(problem.reason, &problem.message)];
    }
    findings.extend(ports_error(&on_ports));
    findings
}

fn accepted(reason: &str, message: &str) -> Finding {
    let kind = format!("{PREFIX}Accepted");
    Finding { kind, holds: false, reason: reason.to_owned(), message: message.to_owned() }
}

fn ports_error(problems: &[&Problem]) -> Option<Finding> {
    let first = problems.first()?;
    let messages: Vec<_> = problems.iter().map(|problem| problem.message.as_str()).collect();
    let (kind, reason) = (PORTS_ERROR.to_owned(), first.reason.to_owned());
    Some(Finding { kind, holds: true, reason, message: messages.join("; ") })
}

fn entry(ip: &str, ports: &Ports) -> LoadBalancerIngress {
    let good = ports.served.iter().map(|port| PortStatus {
        port: port.port,
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        error: None,
    });
    let bad = ports.problems.iter().filter_map(|problem| {
        let (port, protocol) = problem.port.clone()?;
        Some(PortStatus { port, protocol, error: Some(format!("{PREFIX}{}", problem.reason)) })
    });
    LoadBalancerIngress {
        ip: Some(ip.to_owned()),
        // Clients inside the cluster shall not bypass the fleet (KEP-1860).
        ip_mode: Some("Proxy".into()),
        ports: Some(good.chain(bad).collect()),
        hostname: None,
    }
}

/// An Event where a condition's status or reason changed to something worth telling.
fn news(
    before: Option<&Condition>,
    now: &Finding,
    ingress: &[LoadBalancerIngress],
    given: &str,
) -> Option<Note> {
    let status = if now.holds { "True" } else { "False" };
    // These hold when something is wrong, and say what.
    let fault = ["Conflicted", "PartiallyInvalid", "Draining"]
        .iter()
        .any(|kind| now.kind.strip_prefix(PREFIX) == Some(kind));
    // So does a refusal, of each port anew.
    let tells = fault || (!now.holds && now.kind.strip_prefix(PREFIX) == Some("Accepted"));
    let same = |old: &Condition| {
        old.status == status && old.reason == now.reason && (!tells || old.message == now.message)
    };
    if before.is_some_and(same) {
        return None;
    }
    let text = || format!("{}: {}", now.reason, now.message);
    match (now.kind.as_str(), now.holds) {
        ("fairlead.dev/Programmed", true) => {
            let addresses: Vec<_> =
                ingress.iter().filter_map(|entry| entry.ip.as_deref()).collect();
            let mut message = format!("Served at {}", addresses.join(", "));
            if !given.is_empty() {
                message = format!("{message}, ports {given}");
            }
            Some(Note::normal("EnsuredLoadBalancer", message))
        }
        ("fairlead.dev/ResolvedRefs", false) => {
            Some(Note::warning("UnAvailableLoadBalancer", text()))
        }
        ("fairlead.dev/Programmed", false)
            if matches!(now.reason.as_str(), "Pending" | "NotAccepted") =>
        {
            None
        }
        (_, true) if fault => Some(Note::warning("SyncLoadBalancerFailed", text())),
        (PORTS_ERROR, true) | (_, false) => Some(Note::warning("SyncLoadBalancerFailed", text())),
        _ => None,
    }
}

fn condition(
    finding: Finding,
    before: Option<&Condition>,
    generation: Option<i64>,
    now: &Time,
) -> Condition {
    let Finding { kind, holds, reason, message } = finding;
    let status = if holds { "True" } else { "False" };
    let same = before.filter(|old| old.status == status);
    Condition {
        type_: kind,
        status: status.into(),
        reason,
        message,
        observed_generation: generation,
        last_transition_time: same
            .map_or_else(|| now.clone(), |old| old.last_transition_time.clone()),
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
