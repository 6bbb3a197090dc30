//! `Route.status` from verdicts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fairlead_api::condition::{
    ACCEPTED, CONFLICTED, DRAINING, HEALTHY, PARTIALLY_INVALID, PROGRAMMED, RESOLVED_REFS, Reason,
    Verdict,
};
use fairlead_api::route::{Display, GivenPort, Protocol, RouteStatus, Source};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::model::Wish;
use crate::told::Told;

/// What is known of one Route.
#[derive(Debug)]
pub struct Findings<'a> {
    /// The generation that the verdicts are on.
    pub generation: i64,
    /// Where it comes from.
    pub source: &'a Source,
    /// Its wish, if it could be read.
    pub wish: Option<&'a Wish>,
    /// The addresses it holds.
    pub addresses: &'a [IpAddr],
    /// What is served, with the ports that were given.
    pub served: Option<&'a Wish>,
    /// On `Healthy`; none where nothing is checked.
    pub healthy: Option<Verdict>,
    /// Endpoints that are not.
    pub unhealthy: Vec<String>,
    /// Its pool, if that is being drained.
    pub draining: Option<Box<str>>,
    /// On `Accepted`.
    pub accepted: Verdict,
    /// On `ResolvedRefs`; none before it was accepted.
    pub resolved: Option<Verdict>,
    /// On `Programmed`.
    pub programmed: Verdict,
    /// Host names that are another tenant's.
    pub conflicts: &'a [(Reason, String)],
    /// Rules that an older Route's keep from being met.
    pub shadowed: Vec<&'a str>,
}

/// The status that says so. `old` is the one before, for the times in it.
pub fn status(findings: Findings<'_>, old: Option<&Told>, now: &Time) -> RouteStatus {
    let Findings {
        generation,
        source,
        wish,
        addresses,
        served,
        draining,
        healthy,
        unhealthy,
        accepted,
        resolved,
        programmed,
        conflicts,
        shadowed,
    } = findings;
    let verdicts = [
        (ACCEPTED, Some(accepted)),
        (RESOLVED_REFS, resolved),
        (PROGRAMMED, Some(programmed)),
        (HEALTHY, healthy),
    ];
    let invalid = wish.map_or(&[][..], |wish| &wish.invalid);
    let partly = invalid.iter().map(String::as_str).chain(shadowed).collect::<Vec<_>>();
    let why = conflicts.first().map_or(Reason::HostnameConflict, |(reason, _)| *reason);
    let conflicts: Vec<_> = conflicts.iter().map(|(_, what)| what.as_str()).collect();
    // These hold when something is wrong.
    let faults =
        [(CONFLICTED, why, conflicts), (PARTIALLY_INVALID, Reason::UnsupportedValue, partly)];
    let condition = |kind: &str, verdict: Verdict| {
        let since = old.and_then(|old| old.since(kind, verdict.holds)).unwrap_or(now).clone();
        verdict.condition(kind, generation, since)
    };
    let mut reason = String::new();
    let mut conditions = Vec::with_capacity(verdicts.len());
    for (kind, verdict) in verdicts {
        let Some(verdict) = verdict else { continue };
        if !verdict.holds && reason.is_empty() {
            verdict.reason.as_str().clone_into(&mut reason);
        }
        conditions.push(condition(kind, verdict));
    }
    for (kind, why, what) in faults {
        if what.is_empty() {
            continue;
        }
        if reason.is_empty() {
            why.as_str().clone_into(&mut reason);
        }
        let verdict = Verdict { message: some(&what), ..Verdict::yes(why) };
        conditions.push(condition(kind, verdict));
    }
    if let Some(pool) = draining {
        let message = format!(
            "pool {pool:?} is being drained: delete the object and create it again, or ask for an address of \
             another pool"
        );
        if reason.is_empty() {
            Reason::PoolDraining.as_str().clone_into(&mut reason);
        }
        let verdict = Verdict { message, ..Verdict::yes(Reason::PoolDraining) };
        conditions.push(condition(DRAINING, verdict));
    }
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    RouteStatus {
        observed_generation: Some(generation),
        ports: given(wish, served),
        unhealthy,
        conditions,
        display: Display {
            source: source.to_string(),
            hostnames: wish.map(hostnames).unwrap_or_default(),
            address: addresses.join(","),
            ports: served.or(wish).map(ports).unwrap_or_default(),
            reason,
        },
        addresses,
    }
}

/// The ports of the listeners that take any.
fn given(wish: Option<&Wish>, served: Option<&Wish>) -> Vec<GivenPort> {
    let takes_any = |name: &str| {
        wish.is_some_and(|wish| {
            wish.listeners.iter().any(|one| *one.name == *name && one.port == 0)
        })
    };
    let listeners = served.into_iter().flat_map(|wish| &wish.listeners);
    listeners
        .filter(|listener| takes_any(&listener.name))
        .map(|listener| GivenPort { listener: listener.name.to_string(), port: listener.port })
        .collect()
}

/// The first of several messages; a condition's message is for a person.
pub(crate) fn some(messages: &[&str]) -> String {
    let shown = messages.iter().take(5).copied().collect::<Vec<_>>().join("; ");
    match messages.len().saturating_sub(5) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

/// `a.example.com,b.example.com,…`
fn hostnames(wish: &Wish) -> String {
    let names: Vec<_> = wish.hosts.iter().take(3).map(|host| host.hostname.as_str()).collect();
    let more = if wish.hosts.len() > names.len() { ",…" } else { "" };
    format!("{}{more}", names.join(","))
}

/// `80,443/TCP`, or `53/TCP,53/UDP`, or `80,443/HTTP`.
fn ports(wish: &Wish) -> String {
    let mut by_protocol: BTreeMap<Protocol, Vec<String>> = BTreeMap::new();
    let tls = wish.hosts.iter().any(|host| host.tls.is_some());
    for listener in &wish.listeners {
        let protocol = match listener.protocol {
            Protocol::Https if !tls => continue,
            Protocol::Https => Protocol::Http,
            other => other,
        };
        let port = if listener.port == 0 { "any".to_owned() } else { listener.port.to_string() };
        by_protocol.entry(protocol).or_default().push(port);
    }
    let groups =
        by_protocol.iter().map(|(protocol, ports)| format!("{}/{protocol}", ports.join(",")));
    groups.collect::<Vec<_>>().join(",")
}
