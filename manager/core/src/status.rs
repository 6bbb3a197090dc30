//! `Route.status` from verdicts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fairlead_api::condition::{ACCEPTED, PROGRAMMED, RESOLVED_REFS, Verdict};
use fairlead_api::route::{Display, Protocol, RouteStatus, Source};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::model::Wish;

/// What is known of one Route.
#[derive(Debug)]
pub struct Findings<'a> {
    /// The generation that the verdicts are on.
    pub generation: i64,
    /// Where it comes from.
    pub source: &'a Source,
    /// Its wish, if it could be read.
    pub wish: Option<&'a Wish>,
    /// The address it holds.
    pub address: Option<IpAddr>,
    /// On `Accepted`.
    pub accepted: Verdict,
    /// On `ResolvedRefs`; none before it was accepted.
    pub resolved: Option<Verdict>,
    /// On `Programmed`.
    pub programmed: Verdict,
}

/// The status that says so. `old` is the one before, for the times in it.
pub fn status(findings: Findings<'_>, old: Option<&RouteStatus>, now: &Time) -> RouteStatus {
    let Findings { generation, source, wish, address, accepted, resolved, programmed } = findings;
    let verdicts =
        [(ACCEPTED, Some(accepted)), (RESOLVED_REFS, resolved), (PROGRAMMED, Some(programmed))];
    let old = old.map_or(&[][..], |status| status.conditions.as_slice());
    let mut reason = String::new();
    let mut conditions = Vec::with_capacity(verdicts.len());
    for (kind, verdict) in verdicts {
        let Some(verdict) = verdict else { continue };
        if !verdict.holds && reason.is_empty() {
            verdict.reason.as_str().clone_into(&mut reason);
        }
        conditions.push(verdict.condition(kind, generation, old, now));
    }
    let address = address.map(|ip| ip.to_string());
    RouteStatus {
        observed_generation: Some(generation),
        addresses: address.iter().cloned().collect(),
        conditions,
        display: Display {
            source: source.to_string(),
            address: address.unwrap_or_default(),
            ports: wish.map(ports).unwrap_or_default(),
            reason,
        },
    }
}

/// `80,443/TCP`, or `53/TCP,53/UDP`.
fn ports(wish: &Wish) -> String {
    let mut by_protocol: BTreeMap<Protocol, Vec<String>> = BTreeMap::new();
    for listener in &wish.listeners {
        by_protocol.entry(listener.protocol).or_default().push(listener.port.to_string());
    }
    let groups =
        by_protocol.iter().map(|(protocol, ports)| format!("{}/{protocol}", ports.join(",")));
    groups.collect::<Vec<_>>().join(",")
}
