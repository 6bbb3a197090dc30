//! Certificates that are not the manager's own: cert-manager's API, an authority in files, and identities of an
//! existing trust domain. The spare cluster is the hub here, and its manager a process beside its apiserver.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fairlead_e2e::local::{Local, net};
use fairlead_e2e::topology::Cluster;
use fairlead_e2e::{binaries, cluster, images, install, paths, run};
use fairlead_process::tls::{self, Credentials};
use fairlead_process::token::Token;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa,
    KeyPair, SanType,
};
use serde_json::{Value, json};

use crate::agent::{Agent, Stream, from_client};
use crate::world::alone;

/// Where the manager of these tests listens for agents.
const HUB: &str = "172.18.0.41:18443";
const SPACE: &str = "fairlead-issuers";

/// A manager beside the spare cluster's apiserver; ended with this.
struct Manager {
    hub: Cluster,
    child: Child,
    log: PathBuf,
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn on(hub: &Cluster, words: &[&str]) -> Result<String> {
    cluster::kubectl(&Local, hub, words)
}

/// The spare cluster as a hub, with Fairlead's Custom Resource Definitions.
fn spare_hub() -> Cluster {
    let hub = Local.up_spare().expect("a third cluster");
    let crds = paths::repository().join("deploy/crds").display().to_string();
    on(&hub, &["apply", "--server-side", "--force-conflicts", "-f", &crds]).expect("CRDs");
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}});
    cluster::apply(&Local, &hub, &space.to_string()).expect("a namespace");
    for name in ["secret/fairlead-ca", "configmap/fairlead-trust", "lease/fairlead-manager"] {
        on(&hub, &["-n", SPACE, "delete", name, "--ignore-not-found"]).expect("a fresh start");
    }
    hub
}

impl Manager {
    fn start(hub: &Cluster, name: &str, flags: &[&str]) -> Self {
        let log = paths::state().join(format!("{name}.log"));
        let file = std::fs::File::create(&log).unwrap();
        let program = images::release().unwrap().join("fairlead-manager").display().to_string();
        let child = net::enter(hub.control_plane().name, &program)
            .env("KUBECONFIG", Local.direct_kubeconfig(hub).unwrap())
            .args(["--namespace", SPACE, "--agent-address", "0.0.0.0:18443"])
            .args(["--xds-address", "127.0.0.1:18100", "--probe-address", "127.0.0.1:18101"])
            .args(["--certificate-seconds", "3600", "--name", name])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .expect("the manager");
        Self { hub: hub.clone(), child, log }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A Tenant, and a token for it, as an administrator makes them.
    fn tenant(&self, name: &str) -> Token {
        let manifest = json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "Tenant",
            "metadata": {"name": name}, "spec": {"pools": []},
        });
        cluster::apply(&Local, &self.hub, &manifest.to_string()).expect("a tenant");
        self.until("the tenant's namespace", || {
            on(&self.hub, &["get", "namespace", &format!("tenant-{name}")])
        });
        let create = ["--system-namespace", SPACE, "token", "create", name, "--hub-address", HUB];
        let create = [&create[..], &["--token-only"]].concat();
        let token = self.until("a token", || install::fairlead_on(&Local, &self.hub, &create));
        token.trim().parse().expect("a token")
    }

    fn until<T>(&self, what: &str, ask: impl FnMut() -> Result<T>) -> T {
        run::wait_for(what, Duration::from_secs(60), ask)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.said()))
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    fairlead_e2e::authority::authority(name).unwrap()
}

fn folder(name: &str, files: &[(&str, String)]) -> PathBuf {
    let folder = paths::state().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for (file, text) in files {
        replace(&folder, file, text);
    }
    folder
}

/// As a mounted Secret changes: whole.
fn replace(folder: &Path, file: &str, text: &str) {
    let partial = folder.join(format!("{file}.partial"));
    std::fs::write(&partial, text).unwrap();
    std::fs::rename(partial, folder.join(file)).unwrap();
}

/// What the signer does with the next requests.
const GOOD: u8 = 0;
const ANOTHER_NAME: u8 = 1;
const A_CA: u8 = 2;
const DENIED: u8 = 3;

/// Signs what is asked of cert-manager's API, as its controller with a CA issuer does.
fn sign(hub: &Cluster, ca: &CertifiedIssuer<'static, KeyPair>, how: u8) -> Result<()> {
    let all = on(hub, &["-n", SPACE, "get", "certificaterequests", "-o", "json"])?;
    let all: Value = serde_json::from_str(&all)?;
    for request in all["items"].as_array().into_iter().flatten() {
        if request["status"]["conditions"].is_array() {
            continue;
        }
        let name = request["metadata"]["name"].as_str().context("a name")?;
        let spec = &request["spec"];
        ensure!(spec["issuerRef"]["name"] == "fairlead" && spec["isCA"] == false, "{spec}");
        ensure!(spec["usages"].as_array().is_some_and(|all| all.len() >= 2), "{spec}");
        let pem = STANDARD.decode(spec["request"].as_str().context("a request")?)?;
        let mut csr = CertificateSigningRequestParams::from_pem(std::str::from_utf8(&pem)?)?;
        let now = time::OffsetDateTime::now_utc();
        csr.params.not_before = now - Duration::from_secs(300);
        csr.params.not_after = now + Duration::from_secs(3_600);
        match how {
            ANOTHER_NAME => {
                let name = Ia5String::try_from("spiffe://fairlead.local/tenant/x/agent/y")?;
                csr.params.subject_alt_names.push(SanType::URI(name));
            }
            A_CA => csr.params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            _ => {}
        }
        let time = "2026-01-01T00:00:00Z";
        let condition = |kind: &str, reason: &str| {
            json!({"type": kind, "status": "True", "reason": reason, "message": "by the test",
                   "lastTransitionTime": time})
        };
        let status = if how == DENIED {
            json!({"conditions": [condition("Denied", "policy")]})
        } else {
            let certificate = csr.signed_by(ca)?.pem();
            json!({
                "conditions": [condition("Approved", "policy"), condition("Ready", "Issued")],
                "certificate": STANDARD.encode(certificate),
                "ca": STANDARD.encode(ca.pem()),
            })
        };
        let patch = json!({ "status": status }).to_string();
        let line = ["-n", SPACE, "patch", "certificaterequest", name, "--subresource=status"];
        on(hub, &[&line[..], &["--type=merge", "-p", &patch]].concat())?;
    }
    Ok(())
}

/// cert-manager's own Custom Resource Definitions check what is asked and what is answered.
#[test]
fn certificates_come_from_cert_managers_api_and_what_it_signs_is_looked_at() {
    let _world = alone("certificates_come_from_cert_managers_api_and_what_it_signs_is_looked_at");
    let hub = spare_hub();
    let crds = binaries::ensure_cert_manager().expect("cert-manager's CRDs").display().to_string();
    on(&hub, &["apply", "--server-side", "-f", &crds]).expect("CRDs");
    on(&hub, &["wait", "crd", "--all", "--for=condition=Established", "--timeout=60s"]).unwrap();
    on(&hub, &["-n", SPACE, "delete", "certificaterequests", "--all"]).expect("a fresh start");
    let ca = authority("cert-manager's");
    let folder = folder("issuer-cert-manager", &[("ca.crt", ca.pem())]);
    let (how, stop) = (AtomicU8::new(GOOD), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if let Err(error) = sign(&hub, &ca, how.load(Ordering::Relaxed)) {
                    eprintln!("the signer: {error:#}");
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let tested = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let given = folder.display().to_string();
            let flags = ["--issuer", "cert-manager", "--issuer-folder", &given];
            let manager = Manager::start(&hub, "cert-manager", &flags);
            let token = manager.tenant("cm");
            let id = joins(&token).unwrap_or_else(|error| panic!("{error:#}\n{}", manager.said()));
            assert!(id.starts_with("spiffe://fairlead.local/tenant/cm/agent/"), "{id}");
            for (bad, wanted) in [
                (ANOTHER_NAME, "must have exactly one SPIFFE id"),
                (A_CA, "other names, or a CA's"),
                (DENIED, "by the test"),
            ] {
                how.store(bad, Ordering::Relaxed);
                let token = manager.tenant(&format!("cm{bad}"));
                let before = manager.said().len();
                let refused = from_client(|| Agent::join_at(HUB, &token)).map(|agent| agent.id);
                let refused = refused.expect_err("what was signed is looked at");
                let said = manager.said().split_off(before);
                assert!(said.contains(wanted), "{refused:#}: {said}");
            }
            how.store(GOOD, Ordering::Relaxed);
            let left = on(&hub, &["-n", SPACE, "get", "certificaterequests", "-o", "name"]);
            assert_eq!(left.unwrap().trim(), "", "what was answered is taken away");
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = tested {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Joins, and opens a stream with what it was given.
fn joins(token: &Token) -> Result<String> {
    from_client(|| async {
        let agent = Agent::join_at(HUB, token).await?;
        agent.stream().await?;
        Ok(agent.id)
    })
}

#[test]
fn an_authority_in_files_signs_and_is_replaced_at_once() {
    let _world = alone("an_authority_in_files_signs_and_is_replaced_at_once");
    let hub = spare_hub();
    let (first, second) = (authority("first"), authority("second"));
    let folder = folder(
        "issuer-files",
        &[
            ("ca.crt", first.pem()),
            ("tls.crt", first.pem()),
            ("tls.key", first.key().serialize_pem()),
        ],
    );
    let given = folder.display().to_string();
    let manager = Manager::start(&hub, "files", &["--issuer", "files", "--issuer-folder", &given]);
    let token = manager.tenant("files");
    let agent = from_client(|| Agent::join_at(HUB, &token))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", manager.said()));
    // Both are trusted for a while, as the page for administrators says; then the second signs.
    replace(&folder, "ca.crt", &format!("{}{}", first.pem(), second.pem()));
    from_client(|| agent.stream()).expect("the first is trusted still");
    // The key before the certificate would be a pair that does not fit: told, and nothing changes.
    replace(&folder, "tls.key", &second.key().serialize_pem());
    manager.until("a complaint", || {
        ensure!(manager.said().contains("was not replaced, trying again"), "nothing was said");
        Ok(())
    });
    from_client(|| agent.stream()).expect("it goes on as it was");
    replace(&folder, "tls.crt", &second.pem());
    let both = Credentials::from_pem(second.pem().as_bytes(), None).unwrap();
    manager.until("a manager with a certificate of the second", || {
        from_client(|| tls::connect(HUB, crate::agent::NAME, &both)).map(drop)
    });
    // Its certificate is the first's still, and it trusts both.
    let roots = format!("{}{}", first.pem(), second.pem());
    let (chain, key) = &agent.own;
    let own = Credentials::from_pem(roots.as_bytes(), Some((chain, key.as_bytes()))).unwrap();
    let connects = || {
        from_client(|| async {
            let channel = tls::connect(HUB, crate::agent::NAME, &own).await?;
            Stream::open(channel, 2).await
        })
    };
    connects().expect("both are trusted");
    replace(&folder, "ca.crt", &second.pem());
    manager.until("the first to be trusted no more", || match connects() {
        Ok(_) => bail!("its certificate is believed"),
        Err(_) => Ok(()),
    });
    let token = manager.tenant("files2");
    from_client(|| Agent::join_at(HUB, &token)).expect("the second signs");
}

#[test]
fn an_identity_of_an_existing_trust_domain_is_the_tenant_that_names_it() {
    let _world = alone("an_identity_of_an_existing_trust_domain_is_the_tenant_that_names_it");
    let (hub, foreign) = (spare_hub(), authority("SPIRE"));
    let folder = folder("issuer-external", &[("ca.crt", foreign.pem())]);
    let external = folder.join("ca.crt").display().to_string();
    let manager = Manager::start(&hub, "external", &["--external-ca", &external]);
    let named = "spiffe://corp.example/cluster/green";
    manager.tenant("green");
    let patch = json!({"spec": {"spiffeIDs": [named]}}).to_string();
    on(&hub, &["patch", "tenant", "green", "--type=merge", "-p", &patch]).expect("named");
    let trust = on(&hub, &["-n", SPACE, "get", "configmap", "fairlead-trust", "-o", "json"]);
    let trust: Value = serde_json::from_str(&trust.unwrap()).unwrap();
    let roots = trust["data"]["ca.crt"].as_str().unwrap().to_owned();
    let connects = |ids: &[&str]| -> Result<Stream> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        for id in ids {
            params.subject_alt_names.push(SanType::URI(Ia5String::try_from(*id)?));
        }
        let chain = params.signed_by(&key, &foreign)?.pem();
        let own = (chain.as_bytes(), key.serialize_pem());
        let credentials = Credentials::from_pem(roots.as_bytes(), Some((own.0, own.1.as_bytes())))?;
        from_client(|| async {
            let channel = tls::connect(HUB, crate::agent::NAME, &credentials).await?;
            Stream::open(channel, 1).await
        })
    };
    manager.until("the tenant that names it", || connects(&[named]).map(drop));
    // Another name of that domain, this hub's own names, and two names are nobody's.
    for bad in [
        &["spiffe://corp.example/cluster/red"][..],
        &["spiffe://fairlead.local/tenant/green/agent/0123456789abcdef"],
        &["spiffe://fairlead.local/manager"],
        &[named, "spiffe://corp.example/cluster/red"],
    ] {
        assert!(connects(bad).is_err(), "{bad:?} was let in\n{}", manager.said());
    }
    // The domain has another CA, and the first again: without a restart.
    replace(&folder, "ca.crt", &authority("another").pem());
    manager.until("a CA's that is not believed", || match connects(&[named]) {
        Ok(_) => bail!("it is let in"),
        Err(_) => Ok(()),
    });
    replace(&folder, "ca.crt", &foreign.pem());
    manager.until("the tenant that names it, again", || connects(&[named]).map(drop));
    let patch = json!({"spec": {"spiffeIDs": []}}).to_string();
    on(&hub, &["patch", "tenant", "green", "--type=merge", "-p", &patch]).expect("not named");
    manager.until("nobody's", || match connects(&[named]) {
        Ok(_) => bail!("it is let in"),
        Err(_) => Ok(()),
    });
}
