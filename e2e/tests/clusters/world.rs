//! The clusters, brought up once, and what tests do with them.

use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fairlead_e2e::driver::Driver;
use fairlead_e2e::images::Images;
use fairlead_e2e::install::NAMESPACE;
use fairlead_e2e::local::Local;
use fairlead_e2e::say::say;
use fairlead_e2e::topology::{self, Cluster};
use fairlead_e2e::{cluster, install, run, traffic};

static UP: OnceLock<Result<Images, String>> = OnceLock::new();
/// The label of the namespaces that tests make.
const MADE_BY: &str = "made-by: fairlead-e2e";

static TURN: RwLock<()> = RwLock::new(());

/// The clusters with Fairlead on them.
pub struct World<Turn> {
    pub images: &'static Images,
    _turn: Turn,
}

fn up() -> &'static Images {
    // The forwarders are started from this program's e2e binary, which outlives the tests.
    let result = UP.get_or_init(|| {
        install::up(&Local)
            .and_then(|images| tidy().map(|()| images))
            .map_err(|error| format!("{error:#}"))
    });
    match result {
        Ok(images) => images,
        Err(error) => panic!("the clusters are not up: {error}"),
    }
}

/// Takes away what an earlier run on the same clusters left behind.
fn tidy() -> Result<()> {
    let label = MADE_BY.replace(": ", "=");
    for tenant in topology::tenants() {
        let delete = ["delete", "namespace", "-l", &label, "--timeout=120s"];
        cluster::kubectl(&Local, &tenant, &delete)?;
    }
    Ok(())
}

/// For tests that disturb nobody.
pub fn shared(test: &str) -> World<RwLockReadGuard<'static, ()>> {
    let images = up();
    let turn = TURN.read().unwrap_or_else(PoisonError::into_inner);
    say(&format!("test {test}"));
    World { images, _turn: turn }
}

/// For tests that restart or break things.
pub fn alone(test: &str) -> World<RwLockWriteGuard<'static, ()>> {
    let images = up();
    let turn = TURN.write().unwrap_or_else(PoisonError::into_inner);
    say(&format!("test {test} (alone)"));
    World { images, _turn: turn }
}

pub fn hub() -> Cluster {
    topology::hub()
}

pub fn tenant(name: &str) -> Cluster {
    topology::cluster(name).expect("a known cluster")
}

/// `kubectl` that must succeed.
pub fn kubectl(cluster: &Cluster, arguments: &str) -> String {
    let words: Vec<_> = arguments.split_whitespace().collect();
    cluster::kubectl(&Local, cluster, &words).unwrap_or_else(|error| panic!("{error:#}"))
}

pub fn apply(cluster: &Cluster, manifest: &str) {
    cluster::apply(&Local, cluster, manifest).unwrap_or_else(|error| panic!("{error:#}"));
}

/// Waits until `kubectl` says what is wanted.
pub fn until(cluster: &Cluster, arguments: &str, wanted: impl Fn(&str) -> bool) -> String {
    let words: Vec<_> = arguments.split_whitespace().collect();
    let waited = run::wait_for(arguments, Duration::from_secs(45), || {
        let said = cluster::kubectl(&Local, cluster, &words)?;
        if wanted(&said) { Ok(said) } else { bail!("it says {said:?}") }
    });
    waited.unwrap_or_else(|error| panic!("{} {error:#}", cluster.name))
}

impl<T> World<T> {
    /// A namespace with the echo workload in it.
    pub fn workload(&self, cluster: &Cluster, namespace: &str) {
        let metadata = format!("{{name: {namespace}, labels: {{{MADE_BY}}}}}");
        apply(cluster, &format!("{{apiVersion: v1, kind: Namespace, metadata: {metadata}}}"));
        traffic::deploy(&Local, cluster, &self.images.echo, namespace, "echo")
            .expect("the workload");
    }
}

/// A pool that tests make, and that both tenants may use from now on. `spec`: its fields.
pub fn pool(name: &str, spec: &str) {
    // An earlier run on the same clusters may have left it draining.
    let spec = format!("{spec}, draining: false");
    apply(
        &hub(),
        &format!(
            "{{apiVersion: fairlead.dev/v1alpha1, kind: AddressPool, metadata: {{name: {name}}}, spec: {{{spec}}}}}"
        ),
    );
    for tenant in ["a", "b"] {
        let patch = format!(r#"[{{"op":"add","path":"/spec/pools/-","value":"{name}"}}]"#);
        kubectl(&hub(), &format!("patch tenant {tenant} --type=json -p {patch}"));
    }
}

/// A Service with annotations, asking for a pool.
pub fn asking(pool: &str, annotations: &str, service: &str) -> String {
    let pool = if pool.is_empty() { String::new() } else { format!("fairlead.dev/pool: {pool}, ") };
    service.replacen(
        "metadata: {",
        &format!("metadata: {{annotations: {{{pool}{annotations}}}, "),
        1,
    )
}

/// A Service of our class in front of the echo workload. `extra` is added to the spec.
pub fn service(namespace: &str, name: &str, ports: &str, extra: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  type: LoadBalancer
  loadBalancerClass: fairlead.dev/fairlead
  selector: {{app: echo}}
  ports: [{ports}]
{extra}
"
    )
}

/// The address that the tenant is shown.
pub fn address(cluster: &Cluster, namespace: &str, name: &str) -> String {
    traffic::address(&Local, cluster, "service", namespace, name)
        .unwrap_or_else(|error| panic!("{error:#}"))
}

/// The address of the manager's pod, which the hub's nodes reach.
pub fn pod_of_manager() -> String {
    let path = "-o jsonpath={.items[0].status.podIP}";
    kubectl(
        &hub(),
        &format!("-n {NAMESPACE} get pods -l app.kubernetes.io/component=manager {path}"),
    )
}

/// Fetches once.
pub fn fetch(url: &str) -> Result<String> {
    traffic::fetch(&Local, url)
}

/// Fetches until the answer holds `wanted`.
pub fn answers(url: &str, wanted: &str) -> String {
    let answer = traffic::fetch_until(&Local, url, wanted, |answer| answer.contains(wanted));
    answer.unwrap_or_else(|error| panic!("{error:#}"))
}

/// Waits until nothing answers.
pub fn gone(url: &str) {
    traffic::gone(&Local, url).unwrap_or_else(|error| panic!("{error:#}"));
}

/// Runs a shell command in a host's network.
pub fn on_host(host: &str, script: &str) -> Result<String> {
    let words = ["sh", "-c", script].map(str::to_owned);
    run::output(&mut Local.on_host(host, &words)?).with_context(|| script.to_owned())
}

/// The Events of a namespace that are about an object.
pub fn event(cluster: &Cluster, namespace: &str, name: &str, wanted: &str) {
    let get = format!(
        "-n {namespace} get events --field-selector involvedObject.name={name} \
         -o jsonpath={{range.items[*]}}{{.type}}|{{.reason}}|{{.message}}{{end}}"
    );
    until(cluster, &get, |said| said.contains(wanted));
}
