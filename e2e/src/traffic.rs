//! Workloads to publish, and traffic to them from the client host.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::driver::Driver;
use crate::images::Image;
use crate::topology::Cluster;
use crate::{cluster, run};

/// Runs the echo workload in a cluster and waits until it is ready.
pub fn deploy(
    driver: &dyn Driver,
    cluster: &Cluster,
    image: &Image,
    namespace: &str,
    name: &str,
) -> Result<()> {
    let manifest = include_str!("../manifests/echo.yaml")
        .replace("${NAME}", name)
        .replace("${NAMESPACE}", namespace)
        .replace("${IMAGE}", &image.reference)
        .replace("${CLUSTER}", cluster.name);
    cluster::apply(driver, cluster, &manifest)?;
    rolled_out(driver, cluster, namespace, name)
}

/// Waits until a Deployment is as it shall be.
pub fn rolled_out(
    driver: &dyn Driver,
    cluster: &Cluster,
    namespace: &str,
    name: &str,
) -> Result<()> {
    let target = format!("deployment/{name}");
    let wait = ["-n", namespace, "rollout", "status", &target, "--timeout=120s"];
    cluster::kubectl(driver, cluster, &wait).map(drop)
}

/// The address that `kubectl get` shows of a Service or an Ingress, once it does.
pub fn address(
    driver: &dyn Driver,
    cluster: &Cluster,
    kind: &str,
    namespace: &str,
    name: &str,
) -> Result<String> {
    let target = format!("{kind}/{name}");
    let path = "jsonpath={.status.loadBalancer.ingress[0].ip}";
    // Watched, not polled: `kubectl wait` ends with the event.
    let wait = [
        "-n",
        namespace,
        "wait",
        &target,
        "--timeout=60s",
        "--for=jsonpath={.status.loadBalancer.ingress[0].ip}",
    ];
    cluster::kubectl(driver, cluster, &wait).with_context(|| {
        let describe = ["-n", namespace, "describe", &target];
        cluster::kubectl(driver, cluster, &describe).unwrap_or_default()
    })?;
    cluster::kubectl(driver, cluster, &["-n", namespace, "get", &target, "-o", path])
}

/// Fetches a URL from the client host.
pub fn fetch(driver: &dyn Driver, url: &str) -> Result<String> {
    let words = ["curl", "--silent", "--show-error", "--fail", "--max-time", "5", url];
    let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
    run::output(&mut driver.on_host("client", &words)?)
}

/// Fetches until the answer is as wanted. For what another program brings about in its own time.
pub fn fetch_until(
    driver: &dyn Driver,
    url: &str,
    what: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<String> {
    run::wait_for(what, Duration::from_secs(30), || {
        let answer = fetch(driver, url)?;
        if wanted(&answer) { Ok(answer) } else { bail!("{url} answered {answer:?}") }
    })
}

/// Fetches a host's root over TLS, at an address, until the answer is as wanted. Whoever signed the
/// certificate is fine: demos make their own.
pub fn fetch_tls_until(
    driver: &dyn Driver,
    host: &str,
    address: &str,
    wanted: &str,
) -> Result<String> {
    let (resolve, url) = (format!("{host}:443:{address}"), format!("https://{host}/"));
    let words = ["curl", "-sSfk", "--max-time", "5", "--resolve", &resolve, &url];
    let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
    run::wait_for(wanted, Duration::from_secs(30), || {
        let answer = run::output(&mut driver.on_host("client", &words)?)?;
        if answer.contains(wanted) { Ok(answer) } else { bail!("{url} answered {answer:?}") }
    })
}

/// Fetches until nothing answers any more.
pub fn gone(driver: &dyn Driver, url: &str) -> Result<()> {
    run::wait_for("nothing answers any more", Duration::from_secs(30), || {
        match fetch(driver, url) {
            Err(_) => Ok(()),
            Ok(answer) => bail!("{url} still answers {answer:?}"),
        }
    })
}
