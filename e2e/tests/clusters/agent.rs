//! The tests' own agents, and their tenants.

use fairlead_api::RouteSpec;
use fairlead_api::http::{BackendRef, Host, HttpMatch, HttpRule, PathMatch, PathMatchType};
use fairlead_api::route::{Backend, Listener, Protocol, SourceKind};
use fairlead_e2e::install;
use fairlead_e2e::local::Local;
pub use fairlead_e2e::peer::*;
use fairlead_process::token::Token;

use crate::world::{apply, hub, until};

/// Runs `work` on the client host.
pub fn from_client<T: Send, F: Future<Output = T>>(work: impl FnOnce() -> F + Send) -> T {
    fairlead_e2e::peer::from_client(work).unwrap_or_else(|error| panic!("{error:#}"))
}

/// A tenant of the tests; `spec` is added to its spec.
pub fn make_tenant(name: &str, spec: &str) {
    apply(
        &hub(),
        &format!(
            "{{apiVersion: fairlead.dev/v1alpha1, kind: Tenant, metadata: {{name: {name}}}, spec: {{{spec}}}}}"
        ),
    );
    // An agent would ask again until there is one.
    until(&hub(), "get namespaces -o name", |names| {
        names.lines().any(|line| line == format!("namespace/tenant-{name}"))
    });
}

/// A token for a tenant, as `fairlead token create` prints it.
pub fn token(tenant: &str) -> Token {
    let made = install::fairlead(&Local, &["token", "create", tenant, "--token-only"]);
    made.expect("a token").trim().parse().expect("a token")
}

/// Removes a tenant of the tests.
pub fn remove(tenant: &str) {
    install::fairlead(&Local, &["tenant", "remove", tenant, "--yes"]).expect("removed");
}

/// An Ingress with one rule for each host.
pub fn ingress(name: &str, hosts: &[String], node_port: u16) -> RouteSpec {
    let mut spec = tcp(name, "public", 80, node_port);
    spec.source.kind = SourceKind::Ingress;
    spec.rules.clear();
    spec.listeners = vec![Listener { name: "http".into(), protocol: Protocol::Http, port: 80 }];
    spec.backends = vec![Backend::new("web:80", node_port)];
    spec.hosts = hosts
        .iter()
        .map(|host| Host {
            hostname: host.clone(),
            rules: vec![HttpRule {
                name: "spec.rules[0]".into(),
                matches: vec![HttpMatch {
                    path: PathMatch { kind: PathMatchType::PathPrefix, value: "/".into() },
                    headers: Vec::new(),
                }],
                backends: vec![BackendRef { name: "web:80".into(), weight: 1 }],
                ..HttpRule::default()
            }],
            ..Host::default()
        })
        .collect();
    spec
}
