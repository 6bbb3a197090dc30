//! The backends that a plan's rules name: Services of the Ingress's namespace, reached by node ports.

use fairlead_api::http::{Upstream, UpstreamProtocol, UpstreamTls};
use fairlead_api::route::{Backend, IpFamily, NodePolicy, Nodes, Slot};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::networking::v1::{IngressBackend, IngressServiceBackend};

use super::plan::{Found, Part, Planner};
use crate::endpoints::{Ready, ServiceKey};
use crate::plan::{family, nodes};
use crate::shadow;

impl Planner<'_> {
    /// The name of a backend, once it is among those of the Route.
    pub(super) fn backend(&mut self, field: &str, backend: &IngressBackend) -> Option<String> {
        let Some(IngressServiceBackend { name, port }) = &backend.service else {
            let message = format!("{field}.resource: only Services can be backends");
            self.once("UnsupportedBackend", message);
            return None;
        };
        let port = port.as_ref();
        let number = port.and_then(|port| port.number).map(|number| number.to_string());
        let port = number.or_else(|| port.and_then(|port| port.name.clone())).unwrap_or_default();
        let (of_name, of_port) = (format!("{field}.service.name"), format!("{field}.service.port"));
        self.service(&of_name, &of_port, name, &port)
    }

    pub(super) fn service(
        &mut self,
        name_field: &str,
        port_field: &str,
        name: &str,
        port: &str,
    ) -> Option<String> {
        let key = (self.namespace.clone(), name.to_owned());
        let sticky = self.settings.session.is_some();
        self.plan.services.entry(name.to_owned()).or_default().slots |= sticky;
        let Some(service) = self.around.service(&key) else {
            self.once("BackendNotFound", format!("{name_field}: Service {name:?} does not exist"));
            return None;
        };
        if service.metadata.deletion_timestamp.is_some() {
            self.once(
                "BackendNotFound",
                format!("{name_field}: Service {name:?} is being deleted"),
            );
            return None;
        }
        let spec = service.spec.clone().unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            let message = format!(
                "{name_field}: Service {name:?} is of type ExternalName, which no node port leads to"
            );
            self.once("UnsupportedBackend", message);
            return None;
        }
        let ports = spec.ports.clone().unwrap_or_default();
        let Some(found) = find(&ports, port) else {
            let names: Vec<_> = ports.iter().map(shown).collect();
            let message = format!(
                "{port_field}: Service {name:?} has no port {port:?}; it has {}",
                names.join(", ")
            );
            self.once("BackendNotFound", message);
            return None;
        };
        if found.protocol.as_deref().unwrap_or("TCP") != "TCP" {
            let message = format!("{port_field}: port {port:?} of Service {name:?} is not TCP");
            self.once("UnsupportedBackend", message);
            return None;
        }
        if sticky {
            return self.slots(name, &key, family(&spec), found);
        }
        self.node_port(name_field, name, &key, &service, found)
    }

    fn node_port(
        &mut self,
        field: &str,
        name: &str,
        key: &ServiceKey,
        service: &Service,
        port: &ServicePort,
    ) -> Option<String> {
        let own = port.node_port.unwrap_or(0);
        let needs_shadow = own == 0;
        let shadow = self.around.shadow(key).filter(|_| needs_shadow);
        self.plan.services.entry(name.to_owned()).or_default().shadow |= needs_shadow;
        let (node_port, policy) = if needs_shadow {
            let spec = shadow.as_ref().and_then(|shadow| shadow.spec.as_ref());
            let made =
                shadow.as_ref().and_then(|shadow| shadow::node_port(shadow, port.port, "TCP"));
            let policy = spec.and_then(|spec| spec.external_traffic_policy.clone());
            (made.unwrap_or(0), policy)
        } else {
            let policy = service.spec.as_ref().and_then(|s| s.external_traffic_policy.clone());
            (own, policy)
        };
        let Some(node_port) = u16::try_from(node_port).ok().filter(|port| *port > 0) else {
            match self.around.shadow_failure(key) {
                Some(why) => {
                    let message = format!("{field}: Service {name:?} has no node port: {why}");
                    self.once("NoNodePort", message);
                }
                // It is being made.
                None => self.unread = true,
            }
            return None;
        };
        let ready = self.around.ready(key);
        let nodes = nodes(&ready, policy.as_deref() == Some("Local"));
        let backend_name = format!("{name}:{}", port.port);
        let family = service.spec.as_ref().and_then(family);
        Some(self.add(Backend { nodes, family, ..Backend::new(backend_name, node_port) }, port))
    }

    /// One pod at each port of a node.
    fn slots(
        &mut self,
        name: &str,
        key: &ServiceKey,
        family: Option<IpFamily>,
        port: &ServicePort,
    ) -> Option<String> {
        let made = self.around.slots(key);
        let slot = |(shadow, ready): &(Service, Ready)| {
            let node_port = shadow::node_port(shadow, port.port, "TCP")?;
            let node_port = u16::try_from(node_port).ok()?;
            Some(Slot { node_port, nodes: ready.nodes.iter().cloned().collect() })
        };
        let mut slots = made.iter().filter_map(slot);
        let Some(Slot { node_port, nodes: names }) = slots.next() else {
            // They are being made.
            self.unread = true;
            return None;
        };
        let nodes = Nodes { policy: NodePolicy::Named, names };
        let slots = slots.collect();
        let name = format!("{name}:{}", port.port);
        Some(self.add(Backend { nodes, slots, family, ..Backend::new(name, node_port) }, port))
    }

    fn add(&mut self, backend: Backend, port: &ServicePort) -> String {
        let name = backend.name.clone();
        let upstream = self.upstream(port);
        self.backends.insert(name.clone(), Backend { upstream, ..backend });
        name
    }

    fn upstream(&mut self, port: &ServicePort) -> Upstream {
        let told = match port.app_protocol.as_deref() {
            Some("kubernetes.io/h2c" | "grpc" | "h2c" | "http2") => {
                (UpstreamProtocol::Http2, false)
            }
            Some("https" | "HTTPS") => (UpstreamProtocol::Http, true),
            _ => (UpstreamProtocol::Http, false),
        };
        let (protocol, tls) = self.settings.protocol.unwrap_or(told);
        if self.settings.passthrough {
            return Upstream::default();
        }
        let ca = self.settings.tls_ca.clone().filter(|_| tls);
        if let Some(secret) = &ca {
            let key = (self.namespace.clone(), secret.clone());
            match self.around.secret(&key, Part::Ca) {
                Found::Unread => self.unread = true,
                Found::Good(_) => {}
                Found::Bad(why) => self.once(
                    "SecretNotFound",
                    format!("annotation fairlead.dev/backend-tls-ca: Secret {secret:?}: {why}; until then all is answered with 503"),
                ),
            }
        }
        Upstream {
            protocol,
            tls: tls.then(|| UpstreamTls { server_name: self.settings.tls_name.clone(), ca }),
            balancing: self.settings.balancing,
            connect_millis: self.settings.connect_millis,
            ..Upstream::default()
        }
    }
}

fn find<'a>(ports: &'a [ServicePort], wanted: &str) -> Option<&'a ServicePort> {
    let number = wanted.parse::<i32>().ok();
    ports.iter().find(|port| match number {
        Some(number) => port.port == number,
        None => port.name.as_deref() == Some(wanted),
    })
}

fn shown(port: &ServicePort) -> String {
    match &port.name {
        Some(name) => format!("{} ({name})", port.port),
        None => port.port.to_string(),
    }
}
