//! What must exist for a Service: pure, from the Service and what is known around it.

use fairlead_api::LOAD_BALANCER_CLASS;
use fairlead_proto::v1;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};

use crate::endpoints::Ready;

/// Our finalizer. The well-known one beside it may be stripped by a cloud controller, whatever the
/// class.
pub(crate) const FINALIZER: &str = "fairlead.dev/withdraw";
/// Kubernetes' own finalizer of load balancers (KEP-980).
pub(crate) const CLEANUP: &str = "service.kubernetes.io/load-balancer-cleanup";
/// Set to `true`: the Service is let go without the hub's word.
pub(crate) const FORCE: &str = "fairlead.dev/force-remove";
/// Asks for a pool.
const POOL: &str = "fairlead.dev/pool";
/// Asks for one address.
const ADDRESS: &str = "fairlead.dev/address";

/// The old form of `spec.loadBalancerSourceRanges`.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

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

/// Sorts a Service's ports into what can be served and what not.
pub(crate) fn ports(service: &Service) -> Ports {
    let spec = service.spec.clone().unwrap_or_default();
    let mut problems = whole_problems(service, &spec);
    if !problems.is_empty() {
        return Ports { served: Vec::new(), problems, needs_shadow: false };
    }
    let mut served = Vec::new();
    for port in spec.ports.into_iter().flatten() {
        match protocol(&port) {
            Some(_) => served.push(port),
            None => problems.push(not_supported(&port)),
        }
    }
    let needs_shadow = served.iter().any(|port| port.node_port.unwrap_or(0) == 0);
    if needs_shadow && spec.selector.as_ref().is_none_or(std::collections::BTreeMap::is_empty) {
        problems.push(Problem {
            reason: "NoNodePort",
            message: "a Service without spec.selector needs node ports of its own: leave out \
                      spec.allocateLoadBalancerNodePorts or set it to true"
                .into(),
            port: None,
        });
        served.clear();
    }
    Ports { needs_shadow: needs_shadow && !served.is_empty(), served, problems }
}

/// What is wrong with the Service as a whole. A restriction that is not enforced is worse than no
/// address.
fn whole_problems(service: &Service, spec: &ServiceSpec) -> Vec<Problem> {
    let ranges = spec.load_balancer_source_ranges.as_ref();
    let field = if ranges.is_some_and(|list| !list.is_empty()) {
        "spec.loadBalancerSourceRanges".to_owned()
    } else if annotation(service, SOURCE_RANGES).is_some() {
        format!("the annotation {SOURCE_RANGES}")
    } else {
        return Vec::new();
    };
    let message = format!(
        "{field} is not enforced by this version, so the Service is not published; remove it to \
         publish the Service to everybody"
    );
    vec![Problem { reason: "SourceRangesNotSupported", message, port: None }]
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

fn protocol(port: &ServicePort) -> Option<v1::Protocol> {
    match port.protocol.as_deref() {
        None | Some("TCP") => Some(v1::Protocol::Tcp),
        Some("UDP") => Some(v1::Protocol::Udp),
        Some(_) => None,
    }
}

/// The Route of a Service. `node_ports` are those of the Service itself or of its shadow, in the
/// order of `ports.served`; `None` when nothing can be served.
pub(crate) fn route(
    service: &Service,
    ports: &Ports,
    node_ports: &[i32],
    ready: &Ready,
) -> Option<v1::Route> {
    if ports.served.is_empty() {
        return None;
    }
    let spec = service.spec.as_ref()?;
    let nodes = backend_nodes(spec, ready);
    let mut route = v1::Route {
        uid: service.metadata.uid.clone().unwrap_or_default(),
        created: service.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second()),
        pool: annotation(service, POOL).unwrap_or_default().to_owned(),
        ip: annotation(service, ADDRESS)
            .or(spec.load_balancer_ip.as_deref())
            .unwrap_or_default()
            .to_owned(),
        ..v1::Route::default()
    };
    for (port, node_port) in ports.served.iter().zip(node_ports) {
        let protocol = protocol(port)?;
        let name =
            format!("{}-{}", port.protocol.as_deref().unwrap_or("TCP").to_lowercase(), port.port);
        route.listeners.push(v1::Listener {
            name: name.clone(),
            protocol: protocol.into(),
            port: u32::try_from(port.port).ok()?,
        });
        route.rules.push(v1::Rule { listener: name.clone(), backend: name.clone() });
        route.backends.push(v1::Backend {
            name,
            node_port: u32::try_from(*node_port).ok()?,
            nodes: nodes.clone(),
        });
    }
    Some(route)
}

/// With `externalTrafficPolicy: Local` a node without a ready endpoint drops what it receives; and
/// where there is none at all, no node can serve.
fn backend_nodes(spec: &ServiceSpec, ready: &Ready) -> Option<v1::NodeNames> {
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    match (local, ready.any) {
        (false, true) => None,
        (false, false) => Some(v1::NodeNames::default()),
        (true, _) => Some(v1::NodeNames { names: ready.nodes.iter().cloned().collect() }),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
