//! `cargo demo`: two tenants each publish a Service of the same name; both are fetched.

use anyhow::Result;

use crate::driver::Driver;
use crate::topology::{self, Cluster};
use crate::{cluster, install, run, traffic};

/// Runs the demo; with `exit`, takes everything down at the end.
pub fn run(driver: &dyn Driver, exit: bool) -> Result<()> {
    let result = show(driver);
    if exit {
        driver.down()?;
    }
    result
}

fn show(driver: &dyn Driver) -> Result<()> {
    let images = install::up(driver)?;
    let tenants = topology::tenants();
    for tenant in &tenants {
        traffic::deploy(driver, tenant, &images.echo, "default", "web")?;
        cluster::apply(driver, tenant, include_str!("../manifests/web.yaml"))?;
    }
    let mut addresses = Vec::new();
    for tenant in &tenants {
        addresses.push(traffic::address(driver, tenant, "default", "web")?);
    }

    println!("\nEach tenant published a Service default/web. The hub has their Routes:\n");
    print(driver, &topology::hub(), &["get", "routes", "-A"])?;
    for tenant in &tenants {
        println!("\n{}:\n", tenant.name);
        print(driver, tenant, &["get", "service", "web"])?;
    }
    println!("\nFetched from the client host, through Envoy on the hub:\n");
    for (tenant, address) in tenants.iter().zip(&addresses) {
        // kube-proxy takes up to a second to serve a new node port.
        let wanted = format!("cluster={}", tenant.name);
        let answer =
            traffic::fetch_until(driver, &format!("http://{address}/"), &wanted, |answer| {
                answer.contains(&wanted)
            })?;
        print!("  http://{address}/  →  {answer}");
    }
    println!("{}", next(&addresses[0]));
    Ok(())
}

fn print(driver: &dyn Driver, cluster: &Cluster, arguments: &[&str]) -> Result<()> {
    run::show(cluster::kubectl_command(driver, cluster).args(arguments))
}

fn next(address: &str) -> String {
    format!(
        "
Try next:
  cargo e2e exec client -- curl http://{address}/       fetch it again
  cargo e2e kubectl tenant-a scale deploy/web --replicas=3
  cargo e2e kubectl tenant-a expose deploy/web --name mine --type LoadBalancer --port 81 \\
    --target-port 8080 --overrides '{{\"spec\":{{\"loadBalancerClass\":\"fairlead.dev/fairlead\"}}}}'
  cargo e2e kubectl tenant-a describe svc mine          its address, conditions and Events
  cargo e2e kubectl hub get fairlead -A                 everything that the hub knows
  cargo e2e status                                      what runs
  cargo e2e down                                        take it all down"
    )
}
