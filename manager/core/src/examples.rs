//! What resources are like, of the types of which there are thousands: what each has besides is kept of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use fairlead_api::claim::ClaimKey;
use fairlead_api::http::{BackendRef, Host, HostTls, HttpMatch, HttpRule};
use fairlead_api::route::{Backend, Listener, Protocol, RouteRule, Source, SourceKind};
use fairlead_api::{RouteId, RouteName, RouteSpec};
use fairlead_xds::{Example, Resource, ResourceType};

use crate::http::site::{self, Member, Secrets, SiteKey};
use crate::http::{SecretId, upstream};
use crate::model::Wish;
use crate::nodes::Nodes;
use crate::translate::{Binding, translate};

struct Examples {
    clusters: Example,
    listeners: Example,
    routes: Example,
}

static EXAMPLES: LazyLock<Examples> = LazyLock::new(|| {
    let usual = usual().unwrap_or_default();
    let of = |kind| usual.iter().filter(|one| one.key.kind == kind).collect();
    Examples {
        clusters: of(ResourceType::Cluster),
        listeners: of(ResourceType::Listener),
        routes: of(ResourceType::Routes),
    }
});

/// A resource as it is kept.
pub(crate) fn packed(mut resource: Resource) -> Arc<Resource> {
    pack(&mut resource);
    Arc::new(resource)
}

/// Packs a resource with what it is like.
pub(crate) fn pack(resource: &mut Resource) {
    match resource.key.kind {
        ResourceType::Cluster => resource.pack(&EXAMPLES.clusters),
        ResourceType::Listener => resource.pack(&EXAMPLES.listeners),
        ResourceType::Routes => resource.pack(&EXAMPLES.routes),
        // Hardly more than their names, or what nobody else has.
        ResourceType::Endpoints | ResourceType::ScopedRoutes | ResourceType::Secret => {}
    }
}

/// The resources of a Service and of an Ingress as most are.
fn usual() -> Option<Vec<Resource>> {
    let name = RouteName::new(SourceKind::Service, "default", "web").ok()?;
    let id = RouteId { tenant: "tenant".parse().ok()?, name };
    let wish = |spec| Some(Wish::parse(&id, spec).ok()?.1);
    let address = IpAddr::from([192, 0, 2, 1]);
    let bind = |ClaimKey { port, .. }| Binding { address, port, proxies: Vec::new() };
    let service = wish(service())?;
    let mut all = translate(&service, &[address], None, &bind, &|_| BTreeSet::new()).resources;
    let ingress = wish(ingress())?;
    for backend in &ingress.backends {
        all.extend(upstream::translate(&id.tenant, "default", backend, &Nodes::default()));
    }
    let host = ingress.hosts.first()?;
    let key = SiteKey { address, hostname: host.hostname.as_str().into() };
    let member = Member { route: &id, namespace: "default", wish: &ingress, host };
    all.extend(site::translate(&key, &id.tenant, &[member], &NoSecrets).resources);
    Some(all)
}

fn service() -> RouteSpec {
    let rule = RouteRule { listener: LISTENER.into(), backend: BACKEND.into() };
    RouteSpec { rules: vec![rule], ..spec(SourceKind::Service, Protocol::Tcp) }
}

fn ingress() -> RouteSpec {
    let rule = HttpRule {
        name: "spec.rules[0].http.paths[0]".into(),
        matches: vec![HttpMatch::default()],
        backends: vec![BackendRef { name: BACKEND.into(), weight: 1 }],
        ..HttpRule::default()
    };
    let tls = HostTls { certificate: Some("web".into()), redirect: true, ..HostTls::default() };
    let host = Host { hostname: "www.example.com".into(), tls: Some(tls), rules: vec![rule] };
    RouteSpec { hosts: vec![host], ..spec(SourceKind::Ingress, Protocol::Http) }
}

const LISTENER: &str = "http";
const BACKEND: &str = "web:80";

fn spec(kind: SourceKind, protocol: Protocol) -> RouteSpec {
    let (namespace, name) = ("default".into(), "web".into());
    let source = Source { kind, namespace, name, uid: String::new(), created: 0 };
    RouteSpec {
        listeners: vec![Listener { name: LISTENER.into(), protocol, port: 80 }],
        backends: vec![Backend::new(BACKEND, 30_080)],
        ..RouteSpec::new(source, "")
    }
}

struct NoSecrets;

impl Secrets for NoSecrets {
    fn has_certificate(&self, _: &SecretId) -> bool {
        false
    }

    fn users(&self, _: &SecretId) -> Option<String> {
        None
    }

    fn has_ca(&self, _: &SecretId) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever changes what Routes are must not leave the examples behind.
    #[test]
    fn there_is_an_example_of_each_type_that_is_packed() {
        let usual = usual().unwrap();
        let of = |kind| usual.iter().filter(|one| one.key.kind == kind).count();
        // Of a Service, and of an Ingress.
        assert_eq!(of(ResourceType::Cluster), 2);
        assert_eq!(of(ResourceType::Listener), 1);
        assert_eq!(of(ResourceType::Routes), 1);
        for one in &usual {
            assert!(one.size() < 2_000, "{}: {} bytes", one.key, one.size());
        }
    }
}
