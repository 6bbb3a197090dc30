//! Health checks: asked by a few Envoys for all of them (Envoy's Health Discovery Service).
//!
//! Each backend that is checked is checked by at most [`CHECKERS`] Envoys, however many there are, and the
//! less often the more backends a tenant has checked: what a node of a tenant is asked stays below
//! [`MOST_PER_SECOND`]. What they find is published with the endpoints to all Envoys, and told in the
//! Route's status. Facts about HDS are from Envoy 1.40: an endpoint that was not asked yet is reported as
//! unhealthy; a check that changes its kind under one name is not taken; a specifier with a locality
//! without endpoints ends the process.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use envoy_types::pb::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use envoy_types::pb::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck,
};
use envoy_types::pb::envoy::config::core::v3::socket_address::Protocol as Transport;
use envoy_types::pb::envoy::config::core::v3::{HealthCheck as Asked, Locality, TransportSocket};
use envoy_types::pb::envoy::config::endpoint::v3::Endpoint as ApiEndpoint;
use envoy_types::pb::envoy::config::endpoint::v3::endpoint::HealthCheckConfig;
use envoy_types::pb::envoy::service::health::v3::{
    ClusterHealthCheck, HealthCheckSpecifier, LocalityEndpoints,
};
use envoy_types::pb::envoy::r#type::v3::Int64Range;
use envoy_types::pb::google::protobuf::Struct;
use fairlead_api::TenantId;
use fairlead_api::condition::{Reason, Verdict};
use fairlead_api::http::{HealthCheck, Probe};

use crate::fleet::EnvoyId;
use crate::pb::{millis, number, socket};

/// How many Envoys check one backend.
const CHECKERS: usize = 2;
/// Checks of all a tenant's backends together, on one of its nodes, by all Envoys.
const MOST_PER_SECOND: u32 = 50;
/// HDS knows no changes: an Envoy is told all of its checks again. Then it is told nothing for so many milliseconds
/// for each of them, so that what changes often costs no more than it should.
const MILLIS_PER_CHECK: usize = 2;
/// How often an Envoy tells what it found.
const REPORT_MILLIS: u32 = 1_000;

/// How long an Envoy may wait before it asks for the first time.
const JITTER_MILLIS: u32 = 1_000;

/// A port of a node.
pub type Endpoint = (IpAddr, u16);

/// What an Envoy found: the name under which it was asked, and each endpoint with whether it is healthy.
pub type Report = Vec<(String, Vec<(Endpoint, bool)>)>;

/// A backend that is to be checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) tenant: TenantId,
    pub(crate) check: HealthCheck,
    /// Who is asked for, unless the check says: Envoy would take the name under which it is asked, which
    /// is no host's.
    pub(crate) host: String,
    /// What connections begin with.
    pub(crate) socket: Option<TransportSocket>,
    pub(crate) endpoints: BTreeSet<Endpoint>,
}

impl Wanted {
    /// How many ports of one node are asked, at most.
    fn ports(&self) -> u32 {
        let mut ports: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for (ip, _) in &self.endpoints {
            *ports.entry(*ip).or_default() += 1;
        }
        ports.into_values().max().unwrap_or(0)
    }
}

#[derive(Debug)]
struct Check {
    wanted: Wanted,
    /// The name under which Envoys are asked; another one for another check.
    name: String,
    by: BTreeSet<EnvoyId>,
    found: BTreeMap<Endpoint, BTreeMap<EnvoyId, Finding>>,
    unhealthy: BTreeSet<Endpoint>,
    /// Endpoints of which somebody knows.
    known: BTreeSet<Endpoint>,
}

/// What one Envoy found of one endpoint.
#[derive(Debug, Clone, Copy)]
struct Finding {
    /// When it first said something, in milliseconds since 1970.
    since: i64,
    healthy: bool,
    /// It was asked for certain: an endpoint that was not is reported as unhealthy.
    asked: bool,
}

/// All checks, and who makes them.
#[derive(Debug, Default)]
pub(crate) struct Health {
    checks: BTreeMap<String, Check>,
    /// Clusters by the name under which Envoys are asked.
    names: BTreeMap<String, String>,
    /// Envoys that can be asked.
    checkers: BTreeSet<EnvoyId>,
    assigned: BTreeMap<EnvoyId, BTreeSet<String>>,
    counts: BTreeMap<TenantId, u32>,
    dirty: BTreeSet<EnvoyId>,
    /// When an Envoy was told, and when it may be told again, in milliseconds since 1970.
    rests: BTreeMap<EnvoyId, Range<i64>>,
    /// Findings that count only from then on, in milliseconds since 1970.
    pending: BTreeSet<(i64, String)>,
}

impl Health {
    /// A Cluster is to be checked like this; `None`: no more. `before`: endpoints that were unhealthy when
    /// this process began.
    pub(crate) fn set(&mut self, cluster: &str, wanted: Option<Wanted>, before: &[String]) {
        // Envoy would end for want of an endpoint.
        let wanted = wanted.filter(|wanted| !wanted.endpoints.is_empty());
        if self.checks.get(cluster).map(|check| &check.wanted) == wanted.as_ref() {
            return;
        }
        let old = self.checks.remove(cluster);
        if let Some(old) = &old {
            self.names.remove(&old.name);
            self.unassign(cluster, &old.by);
            self.count(&old.wanted, false);
        }
        let Some(wanted) = wanted else { return };
        let name = name(cluster, &wanted);
        self.count(&wanted, true);
        let by = self.choose(cluster);
        let mut check = Check {
            wanted,
            name,
            by,
            found: BTreeMap::new(),
            unhealthy: BTreeSet::new(),
            known: BTreeSet::new(),
        };
        if let Some(old) = old.filter(|old| old.name == check.name) {
            // The same check of other endpoints: what is known of those that stay, stays.
            check.found = old.found;
            check.found.retain(|endpoint, _| check.wanted.endpoints.contains(endpoint));
            let stays = |old: &BTreeSet<Endpoint>| {
                old.intersection(&check.wanted.endpoints).copied().collect::<BTreeSet<_>>()
            };
            check.unhealthy = stays(&old.unhealthy);
            check.known = stays(&old.known);
        }
        let known = before.iter().filter_map(|text| text.parse::<SocketAddr>().ok());
        let known = known.map(|known| (known.ip(), known.port()));
        check.unhealthy.extend(known.filter(|one| check.wanted.endpoints.contains(one)));
        self.names.insert(check.name.clone(), cluster.to_owned());
        self.assign(cluster, &check.by.clone());
        self.checks.insert(cluster.to_owned(), check);
    }

    fn assign(&mut self, cluster: &str, by: &BTreeSet<EnvoyId>) {
        for envoy in by {
            self.assigned.entry(envoy.clone()).or_default().insert(cluster.to_owned());
        }
        self.dirty.extend(by.iter().cloned());
    }

    fn unassign(&mut self, cluster: &str, by: &BTreeSet<EnvoyId>) {
        for envoy in by {
            if let Some(clusters) = self.assigned.get_mut(envoy) {
                clusters.remove(cluster);
                if clusters.is_empty() {
                    self.assigned.remove(envoy);
                }
            }
        }
        self.dirty.extend(by.iter().cloned());
    }

    /// A tenant has one check more, or less: one for each port of a node. Where that changes how often its nodes may be asked, all of
    /// its checks are told anew: at powers of two only.
    fn count(&mut self, wanted: &Wanted, more: bool) {
        let (tenant, ports) = (&wanted.tenant, wanted.ports());
        let count = self.counts.entry(tenant.clone()).or_default();
        let before = least_interval(*count);
        *count = if more { *count + ports } else { count.saturating_sub(ports) };
        let after = least_interval(*count);
        if *count == 0 {
            self.counts.remove(tenant);
        }
        if before != after {
            let mine = self.checks.values().filter(|check| check.wanted.tenant == *tenant);
            self.dirty.extend(mine.flat_map(|check| check.by.iter().cloned()));
        }
    }

    /// The Envoys that check a Cluster: the same ones whatever else changes.
    fn choose(&self, cluster: &str) -> BTreeSet<EnvoyId> {
        let weight = |envoy: &EnvoyId| {
            let mut hasher = std::hash::DefaultHasher::new();
            (cluster, &**envoy).hash(&mut hasher);
            hasher.finish()
        };
        let mut all: Vec<_> = self.checkers.iter().map(|envoy| (weight(envoy), envoy)).collect();
        all.sort_unstable();
        all.into_iter().take(CHECKERS).map(|(_, envoy)| envoy.clone()).collect()
    }

    /// An Envoy can be asked now, or no more.
    pub(crate) fn checker(&mut self, envoy: &EnvoyId, there: bool) {
        self.rests.remove(envoy);
        if there {
            self.checkers.insert(envoy.clone());
            // Whatever it knew, it is told anew.
            self.dirty.insert(envoy.clone());
        } else {
            self.checkers.remove(envoy);
            self.dirty.remove(envoy);
        }
        let clusters: Vec<_> = self.checks.keys().cloned().collect();
        for cluster in clusters {
            let by = self.choose(&cluster);
            let Some(check) = self.checks.get_mut(&cluster) else { continue };
            if check.by == by {
                continue;
            }
            let old = std::mem::replace(&mut check.by, by.clone());
            for found in check.found.values_mut() {
                found.retain(|envoy, _| by.contains(envoy));
            }
            self.unassign(&cluster, &old.difference(&by).cloned().collect());
            self.assign(&cluster, &by.difference(&old).cloned().collect());
        }
        self.dirty.retain(|envoy| self.checkers.contains(envoy));
    }

    /// What an Envoy found. The Clusters of which more is known now come back.
    pub(crate) fn report(&mut self, envoy: &EnvoyId, report: Report, now: i64) -> Vec<String> {
        let mut changed = Vec::new();
        for (name, endpoints) in report {
            let Some(cluster) = self.names.get(&name).cloned() else { continue };
            let Some(check) = self.checks.get_mut(&cluster) else { continue };
            if !check.by.contains(envoy) {
                continue;
            }
            for (endpoint, healthy) in endpoints {
                if !check.wanted.endpoints.contains(&endpoint) {
                    continue;
                }
                let found = check.found.entry(endpoint).or_default();
                let fresh = Finding { since: now, healthy, asked: healthy };
                let finding = found.entry(envoy.clone()).or_insert(fresh);
                finding.asked |= healthy;
                finding.healthy = healthy;
                if !finding.asked {
                    self.pending.insert((finding.since + patience(&check.wanted), cluster.clone()));
                }
            }
            if check.conclude(now) {
                changed.push(cluster);
            }
        }
        changed
    }

    /// Findings whose time has come count now. The Clusters of which more is known come back.
    pub(crate) fn due(&mut self, now: i64) -> Vec<String> {
        let mut changed = Vec::new();
        while self.pending.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, cluster)) = self.pending.pop_first() else { break };
            if let Some(check) = self.checks.get_mut(&cluster)
                && check.conclude(now)
            {
                changed.push(cluster);
            }
        }
        changed
    }

    /// When the next finding begins to count, or an Envoy may be told what changed, in milliseconds since 1970.
    pub(crate) fn next(&self) -> Option<i64> {
        let told = self.dirty.iter().filter_map(|envoy| self.rests.get(envoy)).map(|rest| rest.end);
        self.pending.first().map(|(at, _)| *at).into_iter().chain(told).min()
    }

    /// The endpoints of a Cluster to which nothing shall be sent. Where all are unhealthy, none: to try is
    /// better than to refuse everybody.
    pub(crate) fn unhealthy(&self, cluster: &str) -> BTreeSet<Endpoint> {
        let Some(check) = self.checks.get(cluster) else { return BTreeSet::new() };
        if check.unhealthy.len() == check.wanted.endpoints.len() {
            return BTreeSet::new();
        }
        check.unhealthy.clone()
    }

    /// Verdict on `Healthy` of Clusters; `None`: none of them is checked.
    pub(crate) fn verdict<'a>(
        &self,
        clusters: impl Iterator<Item = &'a String>,
    ) -> Option<Verdict> {
        let checks: Vec<_> = clusters.filter_map(|cluster| self.checks.get(cluster)).collect();
        if checks.is_empty() {
            return None;
        }
        let total: usize = checks.iter().map(|check| check.wanted.endpoints.len()).sum();
        let bad: Vec<_> = checks.iter().flat_map(|check| &check.unhealthy).collect();
        if let Some(((ip, port), more)) = bad.first().map(|first| (first, bad.len() - 1)) {
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let message = format!(
                "{} of {total} endpoints are healthy; not {ip}:{port}{more}",
                total - bad.len()
            );
            return Some(Verdict::no(Reason::Unhealthy, message));
        }
        if checks.iter().any(|check| check.known.len() < check.wanted.endpoints.len()) {
            return Some(Verdict::no(Reason::Pending, "not every endpoint was asked yet"));
        }
        let message = format!("{total} of {total} endpoints are healthy");
        Some(Verdict { message, ..Verdict::yes(Reason::Healthy) })
    }

    /// The endpoints of Clusters that are unhealthy, as text.
    pub(crate) fn told<'a>(&self, clusters: impl Iterator<Item = &'a String>) -> Vec<String> {
        let checks = clusters.filter_map(|cluster| self.checks.get(cluster));
        let all = checks.flat_map(|check| &check.unhealthy);
        all.map(|(ip, port)| SocketAddr::new(*ip, *port).to_string()).collect()
    }

    /// What Envoys are to check now, each that is to be told anew and may be.
    pub(crate) fn take(&mut self, now: i64) -> Vec<(EnvoyId, HealthCheckSpecifier)> {
        let rests = |envoy: &EnvoyId| self.rests.get(envoy).is_some_and(|rest| rest.contains(&now));
        let (wait, due) = std::mem::take(&mut self.dirty).into_iter().partition(rests);
        self.dirty = wait;
        let mut told = Vec::new();
        for envoy in due {
            let specifier = self.specifier(&envoy);
            let millis = specifier.cluster_health_checks.len() * MILLIS_PER_CHECK;
            let until = now + i64::try_from(millis).unwrap_or(i64::MAX / 2);
            self.rests.insert(envoy.clone(), now..until);
            told.push((envoy, specifier));
        }
        told
    }

    fn specifier(&self, envoy: &EnvoyId) -> HealthCheckSpecifier {
        let clusters = self.assigned.get(envoy).into_iter().flatten();
        let checks = clusters.filter_map(|cluster| self.checks.get(cluster));
        let asked = |check: &Check| {
            let count = self.counts.get(&check.wanted.tenant).copied().unwrap_or(0);
            check.specify(least_interval(count))
        };
        HealthCheckSpecifier {
            cluster_health_checks: checks.map(asked).collect(),
            interval: millis(REPORT_MILLIS),
        }
    }
}

/// How often a tenant's backends are asked at most, in milliseconds: a power of two of seconds, so that it
/// seldom changes.
fn least_interval(checks: u32) -> u32 {
    let by_all = checks.saturating_mul(u32::try_from(CHECKERS).unwrap_or(1));
    let seconds = by_all.div_ceil(MOST_PER_SECOND).max(1);
    seconds.next_power_of_two().saturating_mul(1_000)
}

/// How long an endpoint may be reported as unhealthy because it was not asked yet.
fn patience(wanted: &Wanted) -> i64 {
    i64::from(wanted.check.timeout_millis) + i64::from(REPORT_MILLIS) * 2 + i64::from(JITTER_MILLIS)
}

fn name(cluster: &str, wanted: &Wanted) -> String {
    let Wanted { tenant: _, check, host, socket, endpoints: _ } = wanted;
    let text = format!("{:?} {host} {socket:?}", check.probe);
    format!("hds/{cluster}/{:016x}", fairlead_xds::hash(text.as_bytes()))
}

impl Check {
    /// Draws conclusions from what was found; true: they are others than before.
    fn conclude(&mut self, now: i64) -> bool {
        let patience = patience(&self.wanted);
        let (mut unhealthy, before) = (self.unhealthy.clone(), self.known.len());
        for endpoint in &self.wanted.endpoints {
            let Some(found) = self.found.get(endpoint) else { continue };
            let known = found.values().filter(|one| one.asked || now >= one.since + patience);
            let mut known = known.peekable();
            // One that reaches it is enough: another may be cut off itself. Until somebody knows, what was
            // known before holds.
            if known.peek().is_some() {
                self.known.insert(*endpoint);
                if known.all(|one| !one.healthy) {
                    unhealthy.insert(*endpoint);
                } else {
                    unhealthy.remove(endpoint);
                }
            }
        }
        unhealthy.retain(|endpoint| self.wanted.endpoints.contains(endpoint));
        let changed = unhealthy != self.unhealthy || self.known.len() != before;
        self.unhealthy = unhealthy;
        changed
    }

    fn specify(&self, least_interval: u32) -> ClusterHealthCheck {
        let Wanted { tenant: _, check, host, socket, endpoints } = &self.wanted;
        let interval = check.interval_millis.max(least_interval);
        let other_port = match &check.probe {
            Probe::Http { port, .. } => *port,
            Probe::Tcp {} | Probe::Grpc { .. } => None,
        };
        let endpoint = |(ip, port): &Endpoint| ApiEndpoint {
            address: Some(socket_of(*ip, *port)),
            health_check_config: other_port.map(|port| HealthCheckConfig {
                port_value: port.into(),
                ..HealthCheckConfig::default()
            }),
            ..ApiEndpoint::default()
        };
        let asked = Asked {
            timeout: millis(check.timeout_millis),
            interval: millis(interval),
            // Not all at once, when an Envoy begins.
            initial_jitter: millis(JITTER_MILLIS),
            // Clusters of HDS have no traffic.
            no_traffic_interval: millis(interval),
            no_traffic_healthy_interval: millis(interval),
            interval_jitter_percent: 10,
            unhealthy_threshold: number(check.unhealthy_threshold),
            healthy_threshold: number(check.healthy_threshold),
            health_checker: Some(checker(&check.probe, host)),
            ..Asked::default()
        };
        // kube-proxy's own port knows no PROXY protocol.
        let socket = socket.clone().filter(|_| other_port.is_none());
        let transport = socket.map(|socket| TransportSocketMatch {
            name: "all".into(),
            r#match: Some(Struct::default()),
            transport_socket: Some(socket),
        });
        ClusterHealthCheck {
            cluster_name: self.name.clone(),
            health_checks: vec![asked],
            locality_endpoints: vec![LocalityEndpoints {
                locality: Some(Locality::default()),
                endpoints: endpoints.iter().map(endpoint).collect(),
            }],
            transport_socket_matches: transport.into_iter().collect(),
            ..ClusterHealthCheck::default()
        }
    }
}

fn socket_of(ip: IpAddr, port: u16) -> envoy_types::pb::envoy::config::core::v3::Address {
    socket(ip, port, Transport::Tcp)
}

fn checker(probe: &Probe, host: &str) -> HealthChecker {
    match probe {
        Probe::Tcp {} => HealthChecker::TcpHealthCheck(TcpHealthCheck::default()),
        Probe::Http { path, host: given, port: _ } => {
            HealthChecker::HttpHealthCheck(HttpHealthCheck {
                path: path.clone(),
                host: given.clone().unwrap_or_else(|| host.to_owned()),
                expected_statuses: vec![Int64Range { start: 200, end: 400 }],
                ..HttpHealthCheck::default()
            })
        }
        Probe::Grpc { service } => HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
            service_name: service.clone().unwrap_or_default(),
            authority: host.to_owned(),
            ..GrpcHealthCheck::default()
        }),
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
