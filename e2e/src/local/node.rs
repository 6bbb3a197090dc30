//! containerd, kubelet and kube-proxy of one node.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::pki::Pki;
use super::{net, process, write};
use crate::topology::{Cluster, DNS_ADDRESS, Host, POD_CIDR};
use crate::{binaries, images, run};

fn folder(cluster: &Cluster, host: &Host) -> PathBuf {
    super::folder(cluster).join(host.name)
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("containerd.sock")
}

pub(super) fn start(cluster: &Cluster, host: &Host, top: &Path, pki: &Pki) -> Result<()> {
    let folder = folder(cluster, host);
    std::fs::create_dir_all(folder.join("cni"))?;
    write(&folder.join("cni/10-bridge.conflist"), &cni(host, &folder))?;
    write(&folder.join("containerd.toml"), &containerd(&folder))?;
    write(&folder.join("kubelet.yaml"), &kubelet(host, &folder, pki))?;
    write(&folder.join("kube-proxy.yaml"), &kube_proxy(host, top))?;
    write(&folder.join("resolv.conf"), "")?;

    let daemon = |program, flags: &[String]| process::start(host.name, program, &folder, flags);
    daemon("containerd", &[format!("--config={}", folder.join("containerd.toml").display())])?;
    run::wait_for("containerd", Duration::from_secs(30), || ctr(&folder, &["version"]))?;
    let kubeconfig = top.join(format!("kubelet-{}.kubeconfig", host.name));
    daemon(
        "kubelet",
        &[
            format!("--config={}", folder.join("kubelet.yaml").display()),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--root-dir={}", folder.join("kubelet").display()),
            format!("--cert-dir={}", folder.join("kubelet-pki").display()),
            format!("--hostname-override={}", host.name),
            format!("--node-ip={}", host.address),
        ],
    )?;
    daemon("kube-proxy", &[format!("--config={}", folder.join("kube-proxy.yaml").display())])
}

/// Makes an image archive known to the node, once: its name has a hash of what is in it.
pub(super) fn import(cluster: &Cluster, host: &Host, archive: &Path) -> Result<()> {
    let folder = folder(cluster, host);
    let marker = folder.join("images").join(archive.file_name().unwrap_or_default());
    if marker.exists() {
        return Ok(());
    }
    ctr(&folder, &["images", "import", "--local", &archive.display().to_string()])?;
    std::fs::create_dir_all(folder.join("images"))?;
    std::fs::write(marker, "").map_err(Into::into)
}

fn ctr(folder: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(binaries::path("ctr"));
    command.arg("--address").arg(socket(folder)).args(["--namespace", "k8s.io"]).args(arguments);
    run::output(&mut command)
}

fn cni(host: &Host, folder: &Path) -> String {
    let (range, data) = (net::pod_range(host), folder.join("cni-data").display().to_string());
    format!(
        r#"{{"cniVersion":"1.0.0","name":"bridge","plugins":[{{"type":"bridge","bridge":"cni0",
"isGateway":true,"ipMasq":true,"hairpinMode":true,"ipam":{{"type":"host-local","dataDir":"{data}",
"ranges":[[{{"subnet":"{range}"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}}]}}"#
    )
}

fn containerd(folder: &Path) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    format!(
        r#"version = 3
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "{socket}"
[ttrpc]
address = "{socket}.ttrpc"
# Its socket is the machine's: of several containerds that begin together one would not.
[plugins."io.containerd.nri.v1.nri"]
disable = true
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{cni}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"
"#,
        root = at("containerd"),
        state = at("run"),
        socket = socket(folder).display(),
        cni = at("cni"),
        pause = images::PAUSE,
    )
}

/// `maxContainerRestartPeriod`: what tests kill is started again at once. The default would hold it back for 10 s, and
/// twice as long each time.
fn kubelet(host: &Host, folder: &Path, pki: &Pki) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{x509: {{clientCAFile: {ca:?}}}, anonymous: {{enabled: false}}, webhook: {{enabled: true}}}}
authorization: {{mode: Webhook}}
containerRuntimeEndpoint: unix://{socket}
clusterDomain: cluster.local
clusterDNS: [{DNS_ADDRESS}]
resolvConf: {resolv:?}
podLogsDir: {logs:?}
cgroupDriver: cgroupfs
cgroupRoot: /
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: false
oomScoreAdj: 0
makeIPTablesUtilChains: false
address: {address}
healthzBindAddress: 127.0.0.1
volumePluginDir: {plugins:?}
imageGCHighThresholdPercent: 100
crashLoopBackOff: {{maxContainerRestartPeriod: 1s}}
evictionHard: {{imagefs.available: 1%, nodefs.available: 1%, memory.available: 50Mi}}
",
        ca = pki.file("ca.crt"),
        socket = socket(folder).display(),
        resolv = at("resolv.conf"),
        logs = at("pod-logs"),
        plugins = at("plugins"),
        address = host.address,
    )
}

fn kube_proxy(host: &Host, top: &Path) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: {name}
clusterCIDR: {POD_CIDR}
clientConnection: {{kubeconfig: {config:?}}}
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
",
        name = host.name,
        config = top.join("kube-proxy.kubeconfig").display().to_string(),
    )
}
