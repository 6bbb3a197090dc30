//! etcd, kube-apiserver, kube-controller-manager and kube-scheduler of one cluster.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::pki::Pki;
use super::{Local, process};
use crate::topology::{Cluster, POD_CIDR, SERVICE_CIDR};
use crate::{cluster, images, run};

/// What differs between clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settings {
    /// etcd waits for the disk, as it does in production.
    pub(super) synced: bool,
    /// The range of node ports, where it is not Kubernetes' own.
    pub(super) node_ports: Option<&'static str>,
    /// Controllers and a scheduler run.
    pub(super) controllers: bool,
}

impl Default for Settings {
    /// These clusters hold nothing that must outlive a power cut.
    fn default() -> Self {
        Self { synced: false, node_ports: None, controllers: true }
    }
}

pub(super) fn start(cluster: &Cluster, folder: &Path, pki: &Pki, settings: Settings) -> Result<()> {
    let host = cluster.control_plane();
    let daemon = |program, flags: Vec<String>| process::start(host.name, program, folder, &flags);
    daemon("etcd", etcd(folder, settings.synced))?;
    let mut flags = apiserver(&host.address.to_string(), pki);
    flags.extend(settings.node_ports.map(|range| format!("--service-node-port-range={range}")));
    daemon("kube-apiserver", flags)?;
    if settings.controllers {
        daemon("kube-controller-manager", controller_manager(folder, pki))?;
        let config = folder.join("kube-scheduler.kubeconfig").display().to_string();
        daemon(
            "kube-scheduler",
            vec![format!("--kubeconfig={config}"), "--leader-elect=false".into()],
        )?;
    }
    forward(cluster, folder)?;
    run::wait_for("the apiserver", Duration::from_secs(90), || {
        cluster::kubectl(&Local, cluster, &["get", "--raw", "/readyz"])
    })?;
    Ok(())
}

/// Our own program, as the way from the machine's loopback to the apiserver.
fn forward(cluster: &Cluster, folder: &Path) -> Result<()> {
    let host = cluster.control_plane();
    let mut command = Command::new(images::release()?.join("e2e"));
    command
        .args(["forward", "--host", host.name, "--to", &format!("{}:6443", host.address)])
        .arg(format!("--listen=127.0.0.1:{}", cluster.api_port))
        // Only so that `down` knows the process for ours.
        .arg(format!("--state={}", folder.display()));
    let name = format!("{}-forward", cluster.name);
    process::spawn(command, &name, &folder.join("forward.log")).map(drop)
}

fn etcd(folder: &Path, synced: bool) -> Vec<String> {
    let mut flags = vec![
        format!("--data-dir={}", folder.join("etcd").display()),
        "--listen-client-urls=http://127.0.0.1:2379".into(),
        "--advertise-client-urls=http://127.0.0.1:2379".into(),
        "--listen-peer-urls=http://127.0.0.1:2380".into(),
    ];
    flags.extend((!synced).then(|| "--unsafe-no-fsync".into()));
    flags
}

fn apiserver(address: &str, pki: &Pki) -> Vec<String> {
    let flag = |name: &str, file: &str| format!("--{name}={}", pki.file(file));
    vec![
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--advertise-address={address}"),
        "--allow-privileged=true".into(),
        // No DNS knows the nodes' names here.
        "--kubelet-preferred-address-types=InternalIP".into(),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        flag("service-account-key-file", "sa.pub"),
        flag("service-account-signing-key-file", "sa.key"),
        flag("client-ca-file", "ca.crt"),
        flag("tls-cert-file", "apiserver.crt"),
        flag("tls-private-key-file", "apiserver.key"),
        flag("kubelet-client-certificate", "admin.crt"),
        flag("kubelet-client-key", "admin.key"),
    ]
}

fn controller_manager(folder: &Path, pki: &Pki) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", folder.join("kube-controller-manager.kubeconfig").display()),
        "--leader-elect=false".into(),
        "--use-service-account-credentials".into(),
        format!("--cluster-cidr={POD_CIDR}"),
        format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        format!("--root-ca-file={}", pki.file("ca.crt")),
        format!("--service-account-private-key-file={}", pki.file("sa.key")),
    ]
}
