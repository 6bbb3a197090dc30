//! Fairlead on the clusters, with Helm, exactly as a user would.

use std::process::Command;

use anyhow::{Result, anyhow};

use crate::driver::Driver;
use crate::images::{self, Image, Images};
use crate::say::say;
use crate::topology::{self, Cluster, POOL, POOL_RANGE};
use crate::{cluster, paths, run};

/// The namespace of Fairlead in every cluster.
pub const NAMESPACE: &str = "fairlead-system";
/// The `NodePort` of the agents' API, as the chart has it.
const AGENT_PORT: u16 = 30_843;

/// Brings the clusters up and installs Fairlead on them; what is there already is upgraded. The
/// images that it runs come back.
pub fn up(driver: &dyn Driver) -> Result<Images> {
    driver.up()?;
    let images = images::all()?;
    load(driver, &images)?;
    hub(driver, &images, &[])?;
    say("the hub runs Fairlead's manager and Envoys");
    for tenant in topology::tenants() {
        self::tenant(driver, &tenant, &images)?;
        say(&format!("{} runs Fairlead's agent", tenant.name));
    }
    Ok(images)
}

/// Gives each cluster the images that it runs.
pub fn load(driver: &dyn Driver, images: &Images) -> Result<()> {
    say("loading images");
    let Images { manager, agent, envoy, echo } = images;
    let load = |cluster: &Cluster, image: &Image| driver.load_image(cluster, &image.archive);
    load(&topology::hub(), manager)?;
    load(&topology::hub(), envoy)?;
    for tenant in topology::tenants() {
        load(&tenant, agent)?;
        load(&tenant, echo)?;
    }
    Ok(())
}

/// The name of a cluster's Tenant on the hub: its namespace there is then named like the cluster.
fn tenant_name(cluster: &Cluster) -> &str {
    cluster.name.trim_start_matches("tenant-")
}

/// `fairlead` for the hub's administrator.
pub fn fairlead(driver: &dyn Driver, arguments: &[&str]) -> Result<String> {
    fairlead_on(driver, &topology::hub(), arguments)
}

/// `fairlead` for a cluster that is a hub.
pub fn fairlead_on(driver: &dyn Driver, hub: &Cluster, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(images::release()?.join("fairlead"));
    command.arg("--kubeconfig").arg(driver.kubeconfig(hub));
    run::output(command.args(arguments))
}

/// Where the fabric's nodes are.
const NODES: &str = "172.18.0.0/24";

/// Installs the manager and its Envoys on the hub, with a pool. `more`: values of the chart.
pub fn hub(driver: &dyn Driver, images: &Images, more: &[String]) -> Result<()> {
    let hub = topology::hub();
    namespace(driver, &hub)?;
    // Helm installs CRDs but never upgrades them.
    let crds = paths::repository().join("deploy/crds").display().to_string();
    cluster::kubectl(driver, &hub, &["apply", "--server-side", "--force-conflicts", "-f", &crds])?;
    let values = [
        format!("manager.image.tag={}", images.manager.tag()),
        format!("envoy.image.tag={}", images.envoy.tag()),
    ];
    chart(driver, &hub, "fairlead-manager", &values, more)?;
    let manifest = include_str!("../manifests/hub.yaml");
    let manifest = manifest.replace("${POOL}", POOL).replace("${RANGE}", POOL_RANGE);
    cluster::apply(driver, &hub, &manifest).map(drop)
}

fn tenant(driver: &dyn Driver, tenant: &Cluster, images: &Images) -> Result<()> {
    let address = format!("{}:{AGENT_PORT}", driver.hub_address()?);
    let mut values =
        vec![format!("hub.address={address}"), format!("image.tag={}", images.agent.tag())];
    let name = tenant_name(tenant);
    let add = ["tenant", "add", name, "--node-cidr", NODES, "--pool", POOL, "--token-only"];
    if !has_joined(driver, tenant) {
        let token = fairlead(driver, &[&add[..], &["--hub-address", &address]].concat())?;
        values.push(format!("joinToken={}", token.trim()));
    }
    chart(driver, tenant, "fairlead-agent", &values, &[])
}

/// Whether the cluster's agent has a certificate: it needs no token any more.
pub fn has_joined(driver: &dyn Driver, tenant: &Cluster) -> bool {
    let get = ["-n", NAMESPACE, "get", "secret", "fairlead-agent-identity"];
    let certificate = ["-o", "jsonpath={.data.tls\\.crt}"];
    let found = cluster::kubectl(driver, tenant, &[&get[..], &certificate[..]].concat());
    found.is_ok_and(|text| !text.is_empty())
}

fn namespace(driver: &dyn Driver, cluster: &Cluster) -> Result<()> {
    let manifest = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}");
    cluster::apply(driver, cluster, &manifest).map(drop)
}

/// `texts`: values that are text, whatever they look like, as a tag is. `values`: those that helm reads as YAML.
fn chart(
    driver: &dyn Driver,
    cluster: &Cluster,
    name: &str,
    texts: &[String],
    values: &[String],
) -> Result<()> {
    let folder = paths::repository().join("deploy").join(name).display().to_string();
    let mut arguments = vec![
        "upgrade",
        "--install",
        name,
        &folder,
        "-n",
        NAMESPACE,
        "--wait",
        "--create-namespace",
    ];
    arguments.extend(["--timeout", "180s"]);
    arguments.extend(texts.iter().flat_map(|text| ["--set-string", text]));
    arguments.extend(values.iter().flat_map(|value| ["--set", value]));
    cluster::helm(driver, cluster, &arguments).map(drop).map_err(|error| {
        let get = ["-n", NAMESPACE, "get", "pods", "-o", "wide"];
        let pods = cluster::kubectl(driver, cluster, &get).unwrap_or_default();
        anyhow!("{error:#}\n{pods}")
    })
}
