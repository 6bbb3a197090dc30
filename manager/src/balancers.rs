//! The hub's Services of type `LoadBalancer`, one for each shared address of a pool whose addresses come
//! from the hub's own provider.

use std::collections::BTreeMap;

use fairlead_api::route::{IpFamily, Protocol};
use fairlead_core::engine::{Balancer, BalancerPort, SeenBalancer};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

/// The label of the hub's Services that the manager makes.
pub(crate) const BALANCER: &str = "fairlead.dev/balancer";
/// The annotation that names the pool.
const POOL: &str = "fairlead.dev/pool";
/// A Service needs a port; until one is claimed this one leads nowhere.
const UNCLAIMED: u16 = 65_535;

/// The Service of a balancer. `envoys`: the labels of the Envoys' pods.
pub(crate) fn service(
    name: &str,
    balancer: &Balancer,
    envoys: &BTreeMap<String, String>,
) -> Service {
    let Balancer { pool, template, family, ports } = balancer;
    let mut annotations = template.annotations.clone();
    annotations.insert(POOL.to_owned(), pool.to_string());
    let unclaimed = BalancerPort { protocol: Protocol::Tcp, port: UNCLAIMED, target: UNCLAIMED };
    let ports = if ports.is_empty() { vec![unclaimed] } else { ports.clone() };
    Service {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([(BALANCER.to_owned(), "true".to_owned())].into()),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            type_: Some("LoadBalancer".into()),
            load_balancer_class: template.load_balancer_class.clone(),
            ip_families: family.map(|family| vec![family.to_string()]),
            ip_family_policy: family.map(|_| "SingleStack".to_owned()),
            // Clients' addresses are seen as they are, and a node without an Envoy is left out.
            external_traffic_policy: Some("Local".into()),
            selector: Some(envoys.clone()),
            ports: Some(ports.into_iter().map(port).collect()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn port(port: BalancerPort) -> ServicePort {
    let BalancerPort { protocol, port, target } = port;
    ServicePort {
        name: Some(format!("{protocol}-{port}").to_lowercase()),
        protocol: Some(protocol.to_string()),
        port: port.into(),
        target_port: Some(IntOrString::Int(target.into())),
        ..ServicePort::default()
    }
}

/// What a Service says of its pool and addresses; `None` for one that names no pool.
pub(crate) fn seen(service: &Service) -> Option<SeenBalancer> {
    let pool = service.annotations().get(POOL)?.as_str().into();
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let given = status.into_iter().flat_map(|lb| lb.ingress.iter().flatten());
    // One that is being deleted may come back with another address.
    let stays = service.metadata.deletion_timestamp.is_none();
    let given = given.filter(|_| stays);
    let addresses = given.filter_map(|one| one.ip.as_ref()?.parse().ok()).collect();
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref());
    let is = |family: &IpFamily| families.and_then(|all| all.first()) == Some(&family.to_string());
    let family = [IpFamily::V4, IpFamily::V6].into_iter().find(is);
    Some(SeenBalancer { pool, family, addresses, going: !stays })
}

/// The labels of a selector like `a=b,c=d`.
pub(crate) fn labels(selector: &str) -> BTreeMap<String, String> {
    let pairs = selector.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use fairlead_api::pool::ServiceTemplate;
    use fairlead_api::route::IpFamily;

    use super::*;

    #[test]
    fn a_service_has_the_ports_that_are_claimed_and_is_read_back() {
        let port = |port, target| BalancerPort { protocol: Protocol::Udp, port, target };
        let template =
            ServiceTemplate { load_balancer_class: Some("x/y".into()), ..Default::default() };
        let balancer = Balancer {
            pool: "public".into(),
            template,
            family: Some(IpFamily::V4),
            ports: vec![port(53, 12_000)],
        };
        let made = service("fairlead-public-1", &balancer, &labels("a=b, c=d"));
        let spec = made.spec.clone().unwrap();
        let ports = spec.ports.unwrap();
        assert_eq!(ports[0].name.as_deref(), Some("udp-53"));
        assert_eq!(ports[0].target_port, Some(IntOrString::Int(12_000)));
        assert_eq!(spec.selector.unwrap().len(), 2);
        let seen = seen(&made).unwrap();
        assert_eq!((&*seen.pool, seen.addresses.len()), ("public", 0));
        let none = service("s", &Balancer { ports: Vec::new(), ..balancer }, &labels("a=b"));
        assert_eq!(none.spec.unwrap().ports.unwrap()[0].port, 65_535);
    }
}
