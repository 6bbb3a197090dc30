//! Certificates and kubeconfigs of one cluster.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{CertificateParams, CertifiedIssuer, DistinguishedName, DnType, KeyPair};

use super::write;
use crate::authority::authority;
use crate::topology::Cluster;

/// Where a cluster's certificates lie.
pub(super) struct Pki {
    folder: PathBuf,
}

impl Pki {
    /// A file of the PKI, such as `ca.crt`.
    pub(super) fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

/// Who gets a certificate and a kubeconfig: (file name, user, group).
fn users(cluster: &Cluster) -> Vec<(String, String, &'static str)> {
    let component = |name: &str| (name.to_owned(), format!("system:{name}"), "");
    let nodes = cluster.nodes.iter().map(|host| {
        (format!("kubelet-{}", host.name), format!("system:node:{}", host.name), "system:nodes")
    });
    nodes
        .chain(["kube-controller-manager", "kube-scheduler", "kube-proxy"].map(component))
        .chain([("admin".to_owned(), "admin".to_owned(), "system:masters")])
        .collect()
}

pub(super) fn make(cluster: &Cluster, folder: &Path) -> Result<Pki> {
    let pki = Pki { folder: folder.join("pki") };
    std::fs::create_dir_all(&pki.folder)?;
    let ca = authority("fairlead-e2e")?;
    write(&pki.folder.join("ca.crt"), &ca.pem())?;
    write(&pki.folder.join("ca.key"), &ca.key().serialize_pem())?;
    let accounts = KeyPair::generate()?;
    write(&pki.folder.join("sa.key"), &accounts.serialize_pem())?;
    write(&pki.folder.join("sa.pub"), &accounts.public_key_pem())?;

    let address = cluster.control_plane().address.to_string();
    let names = ["kubernetes.default.svc", "localhost", "127.0.0.1", "10.96.0.1", &address];
    let mut params = CertificateParams::new(names.map(String::from))?;
    params.distinguished_name = named("kube-apiserver", "").distinguished_name;
    issue(&pki, "apiserver", params, &ca)?;
    let servers =
        [format!("https://{address}:6443"), format!("https://127.0.0.1:{}", cluster.api_port)];
    for (file, user, group) in users(cluster) {
        issue(&pki, &file, named(&user, group), &ca)?;
        // The administrator comes from outside the namespaces, by the forwarder.
        let server = &servers[usize::from(file == "admin")];
        let path = folder.join(format!("{file}.kubeconfig"));
        write(&path, &kubeconfig(&pki, server, &file))?;
    }
    Ok(pki)
}

fn named(user: &str, group: &str) -> CertificateParams {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, user);
    if !group.is_empty() {
        name.push(DnType::OrganizationName, group);
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params
}

fn issue(
    pki: &Pki,
    file: &str,
    params: CertificateParams,
    ca: &CertifiedIssuer<'_, KeyPair>,
) -> Result<()> {
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, ca)?;
    write(&pki.folder.join(format!("{file}.crt")), &certificate.pem())?;
    write(&pki.folder.join(format!("{file}.key")), &key.serialize_pem())
}

fn kubeconfig(pki: &Pki, server: &str, file: &str) -> String {
    let (ca, crt, key) =
        (pki.file("ca.crt"), pki.file(&format!("{file}.crt")), pki.file(&format!("{file}.key")));
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: cluster
  cluster: {{server: {server:?}, certificate-authority: {ca:?}}}
users:
- name: user
  user: {{client-certificate: {crt:?}, client-key: {key:?}}}
contexts:
- name: context
  context: {{cluster: cluster, user: user}}
current-context: context
"
    )
}
