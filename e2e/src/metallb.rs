//! `MetalLB` on the hub: the provider of addresses that a hub has of its own, from real pods.

use std::path::Path;

use anyhow::Result;

use crate::driver::Driver;
use crate::{binaries, cluster, images, topology};

/// `spec.loadBalancerClass` of the Services that it serves.
pub const CLASS: &str = "metallb.example/lb";
/// The addresses that it gives, from the first on.
pub const RANGE: &str = "172.18.0.220-172.18.0.224";

/// Runs `MetalLB` on the hub, in layer-2 mode, and waits until it is ready.
pub fn install(driver: &dyn Driver) -> Result<()> {
    let hub = topology::hub();
    let definitions = binaries::ensure_metallb()?;
    let [controller, speaker] = images::metallb()?;
    driver.load_image(&hub, &controller.archive)?;
    driver.load_image(&hub, &speaker.archive)?;
    let kubectl = |words: &[&str]| cluster::kubectl(driver, &hub, words).map(drop);
    kubectl(&["apply", "--server-side", "-f", &text(&definitions)])?;
    kubectl(&["wait", "crd", "--all", "--for=condition=Established", "--timeout=60s"])?;
    let manifest = include_str!("../manifests/metallb.yaml")
        .replace("${CONTROLLER_IMAGE}", &controller.reference)
        .replace("${SPEAKER_IMAGE}", &speaker.reference)
        .replace("${CLASS}", CLASS)
        .replace("${RANGE}", RANGE);
    cluster::apply(driver, &hub, &manifest)?;
    for what in ["deployment/controller", "daemonset/speaker"] {
        kubectl(&["-n", "metallb-system", "rollout", "status", what, "--timeout=120s"])?;
    }
    Ok(())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
