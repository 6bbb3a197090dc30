//! The tests' own agents, and their tenants.

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
