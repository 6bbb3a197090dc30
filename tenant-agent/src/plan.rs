//! What must exist for a Service: pure, from the Service and what is known around it.

use std::collections::BTreeSet;

use fairlead_api::http::{
    BackendRef, HealthCheck, Host, HostTls, HttpMatch, HttpRule, Probe, TlsMode, Unresolved,
    Upstream,
};
use fairlead_api::route::{
    Backend, IpFamily, Listener, NodePolicy, Nodes, Protocol, RouteRule, Slot, Source, SourceKind,
};
use fairlead_api::{LOAD_BALANCER_CLASS, RouteSpec};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::annotations::Complaint;
use crate::endpoints::Ready;
use crate::settings::Settings;

/// Our finalizer. The well-known one beside it may be stripped by a cloud controller, whatever the
/// class.
pub(crate) const FINALIZER: &str = "fairlead.dev/withdraw";
/// Kubernetes' own finalizer of load balancers (KEP-980).
pub(crate) const CLEANUP: &str = "service.kubernetes.io/load-balancer-cleanup";
/// Set to `true`: the Service is let go without the hub's word.
pub(crate) const FORCE: &str = "fairlead.dev/force-remove";
/// What to do about a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duty {
    /// Not ours, and never was.
    Ignore,
    /// Ours no longer: withdraw it from the hub, then let go.
    Withdraw,
    /// Publish it.
    Publish,
}

/// Whose a Service is. `default_class`: class-less ones are ours, too.
pub(crate) fn duty(service: &Service, default_class: bool) -> Duty {
    let Some(spec) = &service.spec else { return Duty::Ignore };
    let class = match &spec.load_balancer_class {
        Some(class) => class == LOAD_BALANCER_CLASS,
        None => default_class,
    };
    let ours = class && spec.type_.as_deref() == Some("LoadBalancer");
    if ours && service.metadata.deletion_timestamp.is_none() {
        Duty::Publish
    } else if has_finalizer(service) {
        Duty::Withdraw
    } else {
        Duty::Ignore
    }
}

/// We hold the Service until the hub let go of it.
pub(crate) fn has_finalizer(service: &Service) -> bool {
    service.metadata.finalizers.iter().flatten().any(|one| one == FINALIZER)
}

/// The user gave up on the hub.
pub(crate) fn is_forced(service: &Service) -> bool {
    annotation(service, FORCE) == Some("true")
}

fn annotation<'a>(service: &'a Service, name: &str) -> Option<&'a str> {
    service.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Something about a Service that cannot be served, and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// `CamelCase`.
    pub(crate) reason: &'static str,
    /// Names the field.
    pub(crate) message: String,
    /// The port that it is about, with its protocol; `None`: the whole Service.
    pub(crate) port: Option<(i32, String)>,
}

/// The ports that can be served, and what cannot.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ports {
    pub(crate) served: Vec<ServicePort>,
    pub(crate) problems: Vec<Problem>,
    /// The Service has no node ports of its own for them.
    pub(crate) needs_shadow: bool,
}

/// How the tenant's nodes are reached.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Ways {
    /// Node ports of the Service itself or of its shadow, in the order of [`Ports::served`].
    pub(crate) node_ports: Vec<i32>,
    /// Where clients keep to one pod: the node ports of each slot, and the nodes with a ready pod in it.
    pub(crate) slots: Vec<(Vec<i32>, BTreeSet<String>)>,
}

/// Sorts a Service's ports into what can be served and what not.
pub(crate) fn ports(service: &Service) -> Ports {
    let spec = service.spec.clone().unwrap_or_default();
    let (mut served, mut problems) = (Vec::new(), Vec::new());
    for port in spec.ports.into_iter().flatten() {
        match protocol(&port) {
            Some(_) => served.push(port),
            None => problems.push(not_supported(&port)),
        }
    }
    let needs_shadow = served.iter().any(|port| port.node_port.unwrap_or(0) == 0);
    Ports { served, problems, needs_shadow }
}

fn not_supported(port: &ServicePort) -> Problem {
    let protocol = port.protocol.clone().unwrap_or_default();
    Problem {
        reason: "ProtocolNotSupported",
        message: format!(
            "spec.ports: port {} has protocol {protocol}, which is not served; TCP and UDP are, and \
             the other ports of the Service work",
            port.port
        ),
        port: Some((port.port, protocol)),
    }
}

fn protocol(port: &ServicePort) -> Option<Protocol> {
    match port.protocol.as_deref() {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some(_) => None,
    }
}

/// Whether clients of a Service keep to one pod.
pub(crate) fn is_sticky(settings: &Settings) -> bool {
    settings.clients.source_affinity
}

/// Where a Service comes from.
pub(crate) fn source(kind: SourceKind, metadata: &ObjectMeta) -> Source {
    Source {
        kind,
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
        created: metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
    }
}

/// The Route of a Service; `None` when nothing can be served, or a node port is yet to be had.
pub(crate) fn route(
    service: &Service,
    settings: &Settings,
    complaints: &[Complaint],
    ports: &Ports,
    ways: &Ways,
    ready: &Ready,
) -> Option<RouteSpec> {
    if ports.served.is_empty() {
        return None;
    }
    let spec = service.spec.as_ref()?;
    let mut route = RouteSpec {
        address: settings.address.clone(),
        clients: settings.clients.clone(),
        ..RouteSpec::new(source(SourceKind::Service, &service.metadata), "")
    };
    let mut complaints = complaints.to_vec();
    let by_name = shares_by_name(settings, ports, &mut complaints);
    for (index, port) in ports.served.iter().enumerate() {
        let protocol = protocol(port)?;
        let name = format!("{protocol}-{}", port.port).to_lowercase();
        let upstream = upstream(settings, port, protocol, &mut complaints);
        let backend = backend(spec, &name, index, ways, ready)?;
        route.backends.push(Backend { upstream, ..backend });
        if !by_name {
            let number = u16::try_from(port.port).ok()?;
            let port = if takes_any(settings, port) { 0 } else { number };
            route.listeners.push(Listener { name: name.clone(), protocol, port });
            route.rules.push(RouteRule { listener: name.clone(), backend: name });
        }
    }
    complaints.extend(misnamed(settings, ports));
    if by_name {
        complaints.extend(beside_names(settings));
        share_by_name(&mut route, settings);
    }
    // What was asked for and cannot be had is told by the hub, on the Route and here.
    let told = complaints.into_iter().map(|one| Unresolved {
        reason: "InvalidAnnotation".into(),
        message: one.message.chars().take(1_000).collect(),
    });
    route.unresolved = told.take(100).collect();
    Some(route)
}

/// Where a port's traffic goes.
fn backend(
    spec: &ServiceSpec,
    name: &str,
    index: usize,
    ways: &Ways,
    ready: &Ready,
) -> Option<Backend> {
    let family = family(spec);
    let node_port = |ports: &[i32]| {
        ports.get(index).and_then(|port| u16::try_from(*port).ok()).filter(|port| *port > 0)
    };
    let Some(((first, nodes), rest)) = ways.slots.split_first() else {
        let nodes = backend_nodes(spec, ready);
        return Some(Backend { nodes, family, ..Backend::new(name, node_port(&ways.node_ports)?) });
    };
    let nodes = Nodes { policy: NodePolicy::Named, names: nodes.iter().cloned().collect() };
    let slot = |(ports, nodes): &(Vec<i32>, BTreeSet<String>)| {
        Some(Slot { node_port: node_port(ports)?, nodes: nodes.iter().cloned().collect() })
    };
    let slots = rest.iter().filter_map(slot).collect();
    Some(Backend { nodes, slots, family, ..Backend::new(name, node_port(first)?) })
}

/// The family at which a Service's node ports are reached; `None`: whichever a node has first.
pub(crate) fn family(spec: &ServiceSpec) -> Option<IpFamily> {
    let first = spec.ip_families.as_ref()?.first()?;
    (first == "IPv6").then_some(IpFamily::V6)
}

/// How a port's backend is spoken to. UDP has no connection that could begin with the client's address.
fn upstream(
    settings: &Settings,
    port: &ServicePort,
    protocol: Protocol,
    complaints: &mut Vec<Complaint>,
) -> Upstream {
    let mut upstream = settings.upstream.clone();
    if protocol == Protocol::Udp && upstream.proxy_protocol.take().is_some() {
        let message = format!(
            "annotation fairlead.dev/proxy-protocol: port {}/UDP: not possible over node ports; its pods \
             see the fleet's addresses",
            port.port
        );
        complaints.push(Complaint { reason: "InvalidAnnotation", message });
    }
    let udp_cannot = |check: &HealthCheck| {
        // Whether the node serves it is asked by another port, in TCP.
        !matches!(&check.probe, Probe::Http { port: Some(_), .. })
    };
    if protocol == Protocol::Udp && upstream.health_check.as_ref().is_some_and(udp_cannot) {
        upstream.health_check = None;
        let message = format!(
            "annotation fairlead.dev/health-check: port {}/UDP: cannot be asked; with \
             externalTrafficPolicy: Local and without the annotation kube-proxy is",
            port.port
        );
        complaints.push(Complaint { reason: "InvalidAnnotation", message });
    }
    upstream
}

/// Whether a port may be any on the address: it is named by its name or number.
fn takes_any(settings: &Settings, port: &ServicePort) -> bool {
    let number = port.port.to_string();
    settings.any_port.iter().any(|one| *one == number || Some(one) == port.name.as_ref())
}

/// An annotation that names a port that is not there.
fn misnamed(settings: &Settings, ports: &Ports) -> Option<Complaint> {
    let names = |port: &ServicePort, one: &String| {
        *one == port.port.to_string() || Some(one) == port.name.as_ref()
    };
    let unknown = |one: &&String| !ports.served.iter().any(|port| names(port, one));
    let bad = settings.any_port.iter().find(unknown)?;
    let shown: String = bad.chars().take(64).collect();
    let message = format!(
        "annotation fairlead.dev/any-port: the Service has no port {shown:?}; name ports by their names or \
         numbers"
    );
    Some(Complaint { reason: "InvalidAnnotation", message })
}

/// Whether server names lead to the Service. They do where that is possible; else it is told, and its ports are
/// served as they are.
fn shares_by_name(settings: &Settings, ports: &Ports, complaints: &mut Vec<Complaint>) -> bool {
    if settings.tls_hosts.is_empty() {
        return false;
    }
    let alone = match ports.served.as_slice() {
        [only] => only.port == 443 && protocol(only) == Some(Protocol::Tcp),
        _ => false,
    };
    if !alone {
        let message = "annotation fairlead.dev/tls-hostnames: server names share port 443/TCP, and the \
                       Service must have that port alone; its ports are served as they are. Put the others \
                       in a Service beside it";
        complaints.push(Complaint { reason: "InvalidAnnotation", message: message.into() });
    }
    alone
}

/// What a port that others share cannot have.
fn beside_names(settings: &Settings) -> Option<Complaint> {
    let named = [
        ("affinity", is_sticky(settings)),
        ("health-check", settings.upstream.health_check.is_some()),
        ("idle-timeout", settings.clients.idle_millis.is_some()),
        ("any-port", !settings.any_port.is_empty()),
        ("more than one of ip-families", settings.address.families.len() > 1),
    ];
    let named: Vec<_> = named.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
    let message = format!(
        "annotation fairlead.dev/tls-hostnames: {} has no effect beside it, since the port is shared with \
         others",
        named.join(", ")
    );
    (!named.is_empty()).then_some(Complaint { reason: "InvalidAnnotation", message })
}

/// TLS is not ended: the server name leads on, at a port that host names share.
fn share_by_name(route: &mut RouteSpec, settings: &Settings) {
    route.listeners = vec![Listener { name: "https".into(), protocol: Protocol::Https, port: 443 }];
    let backend = route.backends.first().map(|one| one.name.clone()).unwrap_or_default();
    let host = |hostname: &String| {
        let backends = vec![BackendRef { name: backend.clone(), weight: 1 }];
        let matches = vec![HttpMatch::default()];
        let name = "fairlead.dev/tls-hostnames".to_owned();
        Host {
            hostname: hostname.to_ascii_lowercase(),
            tls: Some(HostTls { mode: TlsMode::Passthrough, ..HostTls::default() }),
            rules: vec![HttpRule { name, matches, backends, ..HttpRule::default() }],
        }
    };
    route.hosts = settings.tls_hosts.iter().map(host).collect();
}

/// With `externalTrafficPolicy: Local` a node without a ready endpoint drops what it receives; and
/// where there is none at all, no node can serve.
fn backend_nodes(spec: &ServiceSpec, ready: &Ready) -> Nodes {
    nodes(ready, spec.external_traffic_policy.as_deref() == Some("Local"))
}

/// The nodes that serve what has these ready endpoints. `local`: traffic that reaches a node stays on it.
pub(crate) fn nodes(ready: &Ready, local: bool) -> Nodes {
    match (local, ready.any) {
        (false, true) => Nodes::default(),
        (false, false) => Nodes { policy: NodePolicy::Named, names: Vec::new() },
        (true, _) => {
            Nodes { policy: NodePolicy::Named, names: ready.nodes.iter().cloned().collect() }
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
