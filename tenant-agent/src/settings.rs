//! What a Service asks for beside its ports: its annotations under `fairlead.dev/`, and the fields of its
//! spec that mean the same. `docs/services.md` is the table for users; a test holds the two together.

use std::collections::BTreeSet;

use fairlead_api::http::{Balancing, HealthCheck, Probe, ProxyProtocol, Upstream};
use fairlead_api::route::{AddressRequest, Clients, IpFamily};
use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use crate::annotations::{
    Complaint, Known, MAX_CONNECT, PREFIX, balancing, cidrs, list, millis, number, plain, set,
    strict, unknown,
};

/// Where we say which ports were given. It is ours to write.
pub(crate) const GIVEN_PORTS: &str = "fairlead.dev/given-ports";
/// The old form of `spec.loadBalancerSourceRanges`.
pub(crate) const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// Annotations that are read elsewhere, or written by us.
const OTHERS: &[&str] = &["force-remove", "given-ports", "shadow-of", "slot"];

/// What a Service asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Settings {
    pub(crate) address: AddressRequest,
    pub(crate) clients: Clients,
    pub(crate) upstream: Upstream,
    /// Ports, by name or number, that may be any on the address.
    pub(crate) any_port: BTreeSet<String>,
    /// Server names by which a TLS port is shared.
    pub(crate) tls_hosts: Vec<String>,
    health: Health,
}

/// A health check in the making.
#[derive(Debug, Clone, Default, PartialEq)]
struct Health {
    kind: Option<Kind>,
    path: Option<String>,
    host: Option<String>,
    service: Option<String>,
    interval_millis: Option<u32>,
    timeout_millis: Option<u32>,
    unhealthy_threshold: Option<u32>,
    healthy_threshold: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Tcp,
    Http,
    Grpc,
}

/// Every annotation that there is for Services, in the order in which they are applied.
pub(crate) const KNOWN: &[Known<Settings>] = &[
    plain("pool", |s, v| set(&mut s.address.pool, Some(short(v)?))),
    plain("address", |s, v| set(&mut s.address.ips, addresses(v)?)),
    plain("group", |s, v| set(&mut s.address.group, Some(label(v)?))),
    plain("sharing", |s, v| set(&mut s.address.alone, sharing(v)?)),
    plain("ip-families", |s, v| {
        s.address.prefer_dual_stack = false;
        set(&mut s.address.families, families(v)?)
    }),
    plain("any-port", |s, v| set(&mut s.any_port, list(v).into_iter().collect())),
    plain("tls-hostnames", |s, v| set(&mut s.tls_hosts, list(v))),
    strict("source-ranges", |s, v| set(&mut s.clients.source_ranges, cidrs(v)?)),
    plain("idle-timeout", |s, v| set(&mut s.clients.idle_millis, Some(millis(v)?))),
    plain("connect-timeout", |s, v| {
        set(&mut s.upstream.connect_millis, Some(millis(v)?.clamp(1, MAX_CONNECT)))
    }),
    plain("max-connections", |s, v| {
        set(&mut s.upstream.max_connections, Some(number(v, 1, 1_000_000)?))
    }),
    plain("proxy-protocol", |s, v| set(&mut s.upstream.proxy_protocol, Some(version(v)?))),
    plain("affinity", |s, v| set(&mut s.clients.source_affinity, affinity(v)?)),
    plain("load-balancing", |s, v| match v {
        // A hash needs something to hash.
        "maglev" => {
            s.clients.source_affinity = true;
            set(&mut s.upstream.balancing, Balancing::Maglev)
        }
        _ => set(&mut s.upstream.balancing, balancing(v)?),
    }),
    plain("health-check", |s, v| set(&mut s.health.kind, Some(kind(v)?))),
    plain("health-check-path", |s, v| set(&mut s.health.path, Some(path(v)?))),
    plain("health-check-host", |s, v| set(&mut s.health.host, Some(short(v)?))),
    plain("health-check-service", |s, v| set(&mut s.health.service, Some(short(v)?))),
    plain("health-check-interval", |s, v| {
        set(&mut s.health.interval_millis, Some(within(v, 1_000, 3_600_000)?))
    }),
    plain("health-check-timeout", |s, v| {
        set(&mut s.health.timeout_millis, Some(within(v, 100, 60_000)?))
    }),
    plain("health-check-unhealthy-threshold", |s, v| {
        set(&mut s.health.unhealthy_threshold, Some(number(v, 1, 10)?))
    }),
    plain("health-check-healthy-threshold", |s, v| {
        set(&mut s.health.healthy_threshold, Some(number(v, 1, 10)?))
    }),
];

impl Settings {
    /// Reads a Service. Its annotations count before its spec, but for the source ranges, of which the
    /// spec's count.
    pub(crate) fn parse(service: &Service) -> (Self, Vec<Complaint>) {
        let spec = service.spec.clone().unwrap_or_default();
        let (mut settings, mut complaints) = (Self::of_spec(&spec), Vec::new());
        let empty = std::collections::BTreeMap::new();
        let annotations = service.metadata.annotations.as_ref().unwrap_or(&empty);
        let ranges = spec.load_balancer_source_ranges.clone().filter(|list| !list.is_empty());
        let old = annotations.get(SOURCE_RANGES).filter(|text| !text.trim().is_empty());
        if let Some(text) = old.filter(|_| ranges.is_none()) {
            match cidrs(text.trim()) {
                Ok(ranges) => settings.clients.source_ranges = ranges,
                Err(why) => complaints.push(settings.complain(SOURCE_RANGES, text, &why, true)),
            }
        }
        for Known { name, read, restricts } in KNOWN {
            let full = format!("{PREFIX}{name}");
            let Some(value) = annotations.get(&full) else { continue };
            if *name == "source-ranges" && ranges.is_some() {
                continue;
            }
            if let Err(why) = read(&mut settings, value.trim()) {
                complaints.push(settings.complain(&full, value, &why, *restricts));
            }
        }
        if let Some(ranges) = ranges {
            match cidrs(&ranges.join(",")) {
                Ok(ranges) => settings.clients.source_ranges = ranges,
                Err(why) => {
                    settings.clients.closed = true;
                    let message = format!(
                        "spec.loadBalancerSourceRanges: {why}; until then nobody is let in"
                    );
                    complaints.push(Complaint { reason: "InvalidSourceRanges", message });
                }
            }
        }
        complaints.extend(unknown(annotations, KNOWN, OTHERS));
        complaints.extend(settings.finish(&spec));
        (settings, complaints)
    }

    /// What the spec alone says.
    fn of_spec(spec: &ServiceSpec) -> Self {
        let mut settings = Self::default();
        let families = spec.ip_families.iter().flatten().filter_map(|name| IpFamily::parse(name));
        settings.address.families = families.collect();
        settings.address.prefer_dual_stack =
            spec.ip_family_policy.as_deref() == Some("PreferDualStack");
        settings.address.ips =
            spec.load_balancer_ip.clone().into_iter().filter(|ip| !ip.is_empty()).collect();
        settings.clients.source_affinity = spec.session_affinity.as_deref() == Some("ClientIP");
        settings
    }

    fn complain(&mut self, name: &str, value: &str, why: &str, restricts: bool) -> Complaint {
        self.clients.closed |= restricts;
        let then = if restricts { "; until then nobody is let in" } else { "" };
        Complaint::unreadable(name, value, why, then)
    }

    /// What one setting says of another.
    fn finish(&mut self, spec: &ServiceSpec) -> Option<Complaint> {
        let Health { kind, path, host, service, .. } = &self.health;
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        let of_kubernetes = spec.health_check_node_port.filter(|port| local && *port > 0);
        let of_kubernetes = of_kubernetes.and_then(|port| u16::try_from(port).ok());
        let probe = match (kind, of_kubernetes) {
            (Some(Kind::Tcp), _) => Probe::Tcp {},
            (Some(Kind::Http), _) => Probe::Http {
                path: path.clone().unwrap_or_else(|| "/".into()),
                host: host.clone(),
                port: None,
            },
            (Some(Kind::Grpc), _) => Probe::Grpc { service: service.clone() },
            // kube-proxy says on it whether the node has a ready endpoint (KEP-1860 and the Service API,
            // `healthCheckNodePort`).
            (None, Some(port)) => {
                Probe::Http { path: "/healthz".into(), host: None, port: Some(port) }
            }
            (None | Some(Kind::None), _) => {
                let lonely = self.health != Health::default() && kind.is_none();
                let message = "annotations fairlead.dev/health-check-…: have no effect without \
                               fairlead.dev/health-check: tcp, http or grpc";
                return lonely
                    .then(|| Complaint { reason: "InvalidAnnotation", message: message.into() });
            }
        };
        self.upstream.health_check = Some(HealthCheck {
            probe,
            interval_millis: self.health.interval_millis.unwrap_or(5_000),
            timeout_millis: self.health.timeout_millis.unwrap_or(2_000),
            unhealthy_threshold: self.health.unhealthy_threshold.unwrap_or(2),
            healthy_threshold: self.health.healthy_threshold.unwrap_or(1),
        });
        None
    }
}

/// At most one IPv4 and one IPv6 address.
fn addresses(text: &str) -> Result<Vec<String>, String> {
    let all = list(text);
    let rule = "must be an IP address, or one of each family with a comma between";
    let parsed: Option<Vec<std::net::IpAddr>> = all.iter().map(|one| one.parse().ok()).collect();
    let families: BTreeSet<_> = parsed.iter().flatten().map(|ip| IpFamily::of(*ip)).collect();
    if parsed.is_none() || all.is_empty() || families.len() != all.len() {
        return Err(rule.into());
    }
    Ok(all)
}

/// What has a bound on the hub.
fn short(text: &str) -> Result<String, String> {
    let good = (1..=253).contains(&text.len()) && text.bytes().all(|b| (0x21..0x7f).contains(&b));
    if good { Ok(text.to_owned()) } else { Err("must have 1 to 253 printable characters".into()) }
}

fn label(text: &str) -> Result<String, String> {
    let good = (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if good {
        return Ok(text.to_owned());
    }
    Err("must be 1 to 63 letters, digits, dots, dashes or underscores".into())
}

/// Whether the address is shared with nobody.
fn sharing(text: &str) -> Result<bool, String> {
    match text {
        "none" => Ok(true),
        "pool" => Ok(false),
        _ => Err("must be none (an address of its own) or pool (as the pool says)".into()),
    }
}

fn families(text: &str) -> Result<Vec<IpFamily>, String> {
    let all: Option<Vec<_>> = list(text).iter().map(|name| IpFamily::parse(name)).collect();
    let all = all.filter(|all| (1..=2).contains(&all.len()) && all.first() != all.get(1));
    all.ok_or_else(|| "must be IPv4, IPv6, or both with a comma between".into())
}

fn version(text: &str) -> Result<ProxyProtocol, String> {
    match text {
        "v1" => Ok(ProxyProtocol::V1),
        "v2" => Ok(ProxyProtocol::V2),
        _ => Err("must be v1 or v2".into()),
    }
}

fn affinity(text: &str) -> Result<bool, String> {
    match text {
        "source-address" => Ok(true),
        "none" => Ok(false),
        _ => Err("must be source-address or none".into()),
    }
}

fn kind(text: &str) -> Result<Kind, String> {
    match text {
        "none" => Ok(Kind::None),
        "tcp" => Ok(Kind::Tcp),
        "http" => Ok(Kind::Http),
        "grpc" => Ok(Kind::Grpc),
        _ => Err("must be tcp, http, grpc or none".into()),
    }
}

fn path(text: &str) -> Result<String, String> {
    let good = text.starts_with('/')
        && text.len() <= 1_024
        && text.bytes().all(|b| (0x21..0x7f).contains(&b));
    if good {
        Ok(text.to_owned())
    } else {
        Err("must begin with / and have at most 1024 printable characters".into())
    }
}

fn within(text: &str, least: u32, most: u32) -> Result<u32, String> {
    let found = millis(text)?;
    if (least..=most).contains(&found) {
        return Ok(found);
    }
    Err(format!("must be from {least}ms to {}s", most / 1_000))
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
