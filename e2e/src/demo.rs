//! `cargo demo`: two tenants each publish a Service and an Ingress of the same names; all are fetched.

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
        publish_ingress(driver, tenant)?;
    }
    let (mut addresses, mut shared) = (Vec::new(), Vec::new());
    for tenant in &tenants {
        addresses.push(traffic::address(driver, tenant, "service", "default", "web")?);
        shared.push(traffic::address(driver, tenant, "ingress", "default", "shop")?);
    }

    println!(
        "\nEach tenant published a Service default/web and an Ingress default/shop with TLS. The hub has \
         their Routes:\n"
    );
    print(driver, &topology::hub(), &["get", "routes", "-A"])?;
    for tenant in &tenants {
        println!("\n{}:\n", tenant.name);
        print(driver, tenant, &["get", "service/web", "ingress/shop"])?;
    }
    println!("\nFetched from the client host, through Envoy on the hub:\n");
    for (tenant, address) in tenants.iter().zip(&addresses) {
        // kube-proxy takes up to a second to serve a new node port.
        let wanted = format!("cluster={}", tenant.name);
        let answer =
            traffic::fetch_until(driver, &format!("http://{address}/"), &wanted, |answer| {
                answer.contains(&wanted)
            })?;
        print!("  http://{address}/  →  {}", first_line(&answer));
    }
    for (tenant, address) in tenants.iter().zip(&shared) {
        let (host, wanted) = (host(tenant), format!("cluster={}", tenant.name));
        let answer = traffic::fetch_tls_until(driver, &host, address, &wanted)?;
        print!("  https://{host}/ at {address}  →  {}", first_line(&answer));
    }
    println!("{}", next(&addresses[0], &host(&tenants[0]), &shared[0]));
    Ok(())
}

fn print(driver: &dyn Driver, cluster: &Cluster, arguments: &[&str]) -> Result<()> {
    run::show(cluster::kubectl_command(driver, cluster).args(arguments))
}

/// The host name that a tenant's Ingress is for.
fn host(tenant: &Cluster) -> String {
    format!("shop.{}.example", tenant.name)
}

/// An Ingress with a certificate of its own making.
fn publish_ingress(driver: &dyn Driver, tenant: &Cluster) -> Result<()> {
    let host = host(tenant);
    let made = rcgen::generate_simple_self_signed(vec![host.clone()])?;
    let data = serde_json::json!({
        "tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem(),
    });
    let secret = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": "shop-tls", "namespace": "default"},
        "stringData": data,
    });
    cluster::apply(driver, tenant, &secret.to_string())?;
    let manifest = include_str!("../manifests/ingress.yaml").replace("${HOST}", &host);
    cluster::apply(driver, tenant, &manifest).map(drop)
}

fn first_line(answer: &str) -> String {
    answer.lines().next().map(|line| format!("{line}\n")).unwrap_or_default()
}

fn next(address: &str, host: &str, shared: &str) -> String {
    format!(
        "
Try next:
  cargo e2e exec client -- curl http://{address}/       fetch it again
  cargo e2e exec client -- curl -k --resolve {host}:443:{shared} https://{host}/
  cargo e2e kubectl tenant-a scale deploy/web --replicas=3
  cargo e2e kubectl tenant-a expose deploy/web --name mine --type LoadBalancer --port 81 \\
    --target-port 8080 --overrides '{{\"spec\":{{\"loadBalancerClass\":\"fairlead.dev/fairlead\"}}}}'
  cargo e2e kubectl tenant-a describe svc mine          its address, conditions and Events
  cargo e2e kubectl tenant-a describe ingress shop
  cargo e2e kubectl hub get fairlead -A                 everything that the hub knows
  cargo e2e status                                      what runs
  cargo e2e down                                        take it all down"
    )
}
