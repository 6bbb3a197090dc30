//! etcd, kube-apiserver, kube-controller-manager and kube-scheduler of one cluster.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::pki::Pki;
use super::{Local, process};
use crate::topology::{Cluster, POD_CIDR, SERVICE_CIDR};
use crate::{cluster, images, run};

pub(super) fn start(cluster: &Cluster, folder: &Path, pki: &Pki) -> Result<()> {
    let host = cluster.control_plane();
    let daemon = |program, flags: Vec<String>| process::start(host.name, program, folder, &flags);
    daemon("etcd", etcd(folder))?;
    daemon("kube-apiserver", apiserver(&host.address.to_string(), pki))?;
    daemon("kube-controller-manager", controller_manager(folder, pki))?;
    let config = folder.join("kube-scheduler.kubeconfig").display().to_string();
    daemon(
        "kube-scheduler",
        vec![format!("--kubeconfig={config}"), "--leader-elect=false".into()],
    )?;
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
    process::spawn(command, &format!("{}-forward", cluster.name), &folder.join("forward.log"))
}

fn etcd(folder: &Path) -> Vec<String> {
    vec![
        format!("--data-dir={}", folder.join("etcd").display()),
        "--listen-client-urls=http://127.0.0.1:2379".into(),
        "--advertise-client-urls=http://127.0.0.1:2379".into(),
        "--listen-peer-urls=http://127.0.0.1:2380".into(),
        // These clusters hold nothing that must outlive a power cut.
        "--unsafe-no-fsync".into(),
    ]
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
