//! Images without a registry: an archive of one layer that holds a program, the libraries that it
//! is linked with, and nothing else.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};
use fairlead_process::token::hex;
use sha2::{Digest, Sha256};

use crate::say::say;
use crate::{binaries, paths, run};

/// The sandbox image of every pod.
pub const PAUSE: &str = "fairlead.dev/pause:e2e";

/// An image archive and the reference that it carries.
#[derive(Debug, Clone)]
pub struct Image {
    /// `fairlead.dev/manager:<hash>`.
    pub reference: String,
    /// The archive.
    pub archive: PathBuf,
}

impl Image {
    /// What comes after the colon.
    pub fn tag(&self) -> &str {
        self.reference.rsplit(':').next().unwrap_or_default()
    }
}

/// What one image is made of.
struct Recipe<'a> {
    name: &'a str,
    /// Where the file comes from and where it lies in the image.
    files: Vec<(PathBuf, &'a str)>,
    entrypoint: &'a str,
}

/// The images of Fairlead itself and of the workload that the demo and the tests publish.
#[derive(Debug, Clone)]
pub struct Images {
    /// The manager.
    pub manager: Image,
    /// The agent.
    pub agent: Image,
    /// Envoy with the drain helper.
    pub envoy: Image,
    /// The workload.
    pub echo: Image,
}

/// Builds the release programs and the images from them.
pub fn all() -> Result<Images> {
    let release = release()?;
    let one = |name: &str| {
        let file = format!("/usr/local/bin/fairlead-{name}");
        build(&Recipe {
            name,
            files: vec![(release.join(format!("fairlead-{name}")), &file)],
            entrypoint: &file,
        })
    };
    let envoy = build(&Recipe {
        name: "envoy",
        files: vec![
            (binaries::envoy()?, "/usr/local/bin/envoy"),
            (release.join("fairlead-drain"), "/usr/local/bin/fairlead-drain"),
            (release.join("fairlead-envoy-identity"), "/usr/local/bin/fairlead-envoy-identity"),
        ],
        entrypoint: "/usr/local/bin/envoy",
    })?;
    Ok(Images {
        manager: one("manager")?,
        agent: one("agent")?,
        envoy,
        echo: workload("echo", "echo")?,
    })
}

/// The sandbox image, under its fixed name.
pub fn pause() -> Result<PathBuf> {
    Ok(workload("pause", "e2e")?.archive)
}

/// Cluster DNS.
pub fn coredns() -> Result<Image> {
    build(&Recipe {
        name: "coredns",
        files: vec![(binaries::path("coredns"), "/coredns")],
        entrypoint: "/coredns",
    })
}

/// `MetalLB`'s controller and speaker.
pub fn metallb() -> Result<[Image; 2]> {
    let one = |name: &str| {
        let files = vec![(binaries::path(name), "/metallb")];
        build(&Recipe { name, files, entrypoint: "/metallb" })
    };
    Ok([one("metallb-controller")?, one("metallb-speaker")?])
}

fn workload(name: &str, kind: &str) -> Result<Image> {
    let file = format!("/{name}");
    let recipe = Recipe { name, files: vec![(release()?.join(name), &file)], entrypoint: &file };
    if kind == "e2e" { build_as(&recipe, Some("e2e")) } else { build(&recipe) }
}

/// The folder of the release programs, built once per process.
pub fn release() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build_release().map_err(|error| format!("{error:#}")));
    built.clone().map_err(|error| anyhow!(error))
}

fn build_release() -> Result<PathBuf> {
    say("building the release programs (3 to 5 min the first time)");
    let target = paths::repository().join("target");
    let mut command = run::cargo();
    command
        .args(["build", "--release", "--quiet", "--locked"])
        .args([
            "-p",
            "fairlead-manager",
            "-p",
            "fairlead-agent",
            "-p",
            "fairlead-cli",
            "-p",
            "fairlead-e2e",
            "--bins",
        ])
        .arg("--target-dir")
        .arg(&target);
    run::output(&mut command)?;
    say("the release programs are built");
    Ok(target.join("release"))
}

fn build(recipe: &Recipe<'_>) -> Result<Image> {
    build_as(recipe, None)
}

fn build_as(recipe: &Recipe<'_>, tag: Option<&str>) -> Result<Image> {
    let content = content(recipe)?;
    let hash = fingerprint(&content)?;
    let tag = tag.unwrap_or(&hash);
    let reference = format!("fairlead.dev/{}:{tag}", recipe.name);
    let folder = paths::cache().join("images");
    std::fs::create_dir_all(&folder)?;
    let archive = folder.join(format!("{}-{hash}.tar", recipe.name));
    if !archive.exists() {
        // Older builds of the same image are of no use any more.
        remove_older(&folder, recipe.name)?;
        let partial = archive.with_extension(format!("partial-{}", std::process::id()));
        write(&partial, recipe, &content, &reference)?;
        std::fs::rename(&partial, &archive)?;
    }
    Ok(Image { reference, archive })
}

fn remove_older(folder: &Path, name: &str) -> Result<()> {
    for entry in std::fs::read_dir(folder)?.flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let hash = file.strip_prefix(&format!("{name}-"));
        if hash.is_some_and(|rest| rest.strip_suffix(".tar").is_some_and(|hash| hash.len() == 16)) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Every file of the layer: (where it comes from, where it lies).
fn content(recipe: &Recipe<'_>) -> Result<Vec<(PathBuf, String)>> {
    let mut files = BTreeSet::new();
    for (from, to) in &recipe.files {
        files.insert((from.clone(), (*to).to_owned()));
        files.extend(libraries(from)?.into_iter().map(|path| (PathBuf::from(&path), path)));
    }
    let roots = "/etc/ssl/certs/ca-certificates.crt";
    if Path::new(roots).exists() {
        files.insert((roots.into(), roots.into()));
    }
    Ok(files.into_iter().collect())
}

/// The shared libraries of a program, as `ldd` names them; none for a static one.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let Ok(text) = run::output(Command::new("ldd").arg(program)) else { return Ok(Vec::new()) };
    let paths =
        text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(str::to_owned).collect())
}

fn fingerprint(content: &[(PathBuf, String)]) -> Result<String> {
    let mut hash = Sha256::new();
    for (from, to) in content {
        hash.update(to);
        let mut file = File::open(from).with_context(|| format!("{}", from.display()))?;
        std::io::copy(&mut file, &mut hash)?;
    }
    Ok(hex(&hash.finalize())[..16].to_owned())
}

fn write(
    path: &Path,
    recipe: &Recipe<'_>,
    content: &[(PathBuf, String)],
    reference: &str,
) -> Result<()> {
    let layer = layer(content)?;
    let digest = hex(&Sha256::digest(&layer));
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Entrypoint": [recipe.entrypoint], "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = serde_json::json!([
        {"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}
    ]);
    let mut archive = tar::Builder::new(File::create(path)?);
    entry(&mut archive, "layer.tar", &layer)?;
    entry(&mut archive, "config.json", config.to_string().as_bytes())?;
    entry(&mut archive, "manifest.json", manifest.to_string().as_bytes())?;
    archive.finish()?;
    Ok(())
}

fn layer(content: &[(PathBuf, String)]) -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    entry(&mut layer, "etc/passwd", b"root:x:0:0::/:/\nnonroot:x:65532:65532::/:/\n")?;
    entry(&mut layer, "etc/nsswitch.conf", b"hosts: files dns\n")?;
    for folder in ["tmp", "run", "etc/fairlead"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if folder == "tmp" { 0o1777 } else { 0o755 });
        header.set_size(0);
        layer.append_data(&mut header, folder, std::io::empty())?;
    }
    for (from, to) in content {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut File::open(from)?, &mut bytes)?;
        entry(&mut layer, to.trim_start_matches('/'), &bytes)?;
    }
    Ok(layer.into_inner()?)
}

fn entry<W: Write>(archive: &mut tar::Builder<W>, path: &str, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    // Times are left at zero: equal content gives an equal archive.
    header.set_mode(0o755);
    archive.append_data(&mut header, path, bytes)?;
    Ok(())
}
