//! Daemons that outlive this program, with their logs and process ids on disk.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::net;
use crate::{binaries, paths};

const FILES: u64 = 1 << 20;

fn pids() -> PathBuf {
    paths::state().join("pids")
}

/// Starts `program` in the network of `host`; its log lies in `folder`.
pub(super) fn start(host: &str, program: &str, folder: &Path, arguments: &[String]) -> Result<()> {
    let path = binaries::path(program).display().to_string();
    let mut command = net::enter(host, &path);
    command.args(arguments);
    spawn(command, &format!("{host}-{program}"), &folder.join(format!("{program}-{host}.log")))
        .map(drop)
}

/// Starts a command as a daemon of this name; its process id comes back.
pub(super) fn spawn(mut command: Command, name: &str, log: &Path) -> Result<u32> {
    raise_limit();
    std::fs::create_dir_all(pids())?;
    let log = File::create(log)?;
    let child = command
        .env("PATH", binaries::search_path())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    super::write(&pids().join(name), &child.id().to_string())?;
    Ok(child.id())
}

/// Daemons may open as many files as systemd lets containerd: an Envoy has one for each listener and worker.
fn raise_limit() {
    let files = Resource::RLIMIT_NOFILE;
    let hard = getrlimit(files).map_or(0, |(_, hard)| hard);
    // Where it cannot be raised, the limit that there is will do for most.
    let _ = setrlimit(files, FILES, hard.max(FILES));
}

/// Every daemon that was started, and whether it runs.
pub(super) fn status() -> Vec<(String, Result<()>)> {
    let entries = std::fs::read_dir(pids()).into_iter().flatten().flatten();
    let mut lines: Vec<_> = entries
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let state = runs(&pid).then_some(()).ok_or_else(|| anyhow!("process {pid} is gone"));
            (name, state)
        })
        .collect();
    lines.sort_by(|a, b| a.0.cmp(&b.0));
    lines
}

/// A process of that id runs and is one of ours.
fn runs(pid: &str) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let state = paths::state().display().to_string();
    String::from_utf8_lossy(&line).contains(&state)
}
