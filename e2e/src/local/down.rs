//! Taking everything down, also what a killed `up` left behind. Only processes that are ours by
//! their command line or by the root that containerd gave them are ended.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{ip, net};
use crate::{paths, run};

pub(super) fn all() -> Result<()> {
    let state = paths::state();
    let namespaces = pod_namespaces(&ours(&state));
    // Daemons that restart others go with the first round; a second finds what they had begun.
    run::wait_for("ending the clusters' processes", Duration::from_secs(20), || {
        let left = ours(&state);
        for pid in &left {
            // It may have ended meanwhile.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        if left.is_empty() { Ok(()) } else { bail!("{} processes are left", left.len()) }
    })?;
    for name in namespaces {
        ip(&format!("netns delete {name}"))?;
    }
    net::down()?;
    unmount_below(&state);
    remove_cgroups(&state);
    if state.exists() {
        std::fs::remove_dir_all(&state)?;
    }
    Ok(())
}

/// Processes of the clusters: daemons and shims name the state folder on their command line, and
/// containers have a root of containerd's below it.
fn ours(state: &Path) -> BTreeSet<Pid> {
    let prefix = format!("{}/", state.display());
    let me = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && *name != me)
        .filter(|pid| is_ours(pid, &prefix))
        .filter_map(|pid| pid.parse().ok().map(Pid::from_raw))
        .collect()
}

fn is_ours(pid: &str, prefix: &str) -> bool {
    let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    // What benches start besides pods.
    if program.starts_with(prefix) {
        return true;
    }
    let cache = paths::cache();
    let command = read("cmdline");
    // The kernel says " (deleted)" of a program that was built anew meanwhile.
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let daemon = program.starts_with(&cache) || name.trim_end_matches(" (deleted)") == "e2e";
    // One that was found elsewhere is linked into the cache, and started from there.
    let daemon = daemon || command.starts_with(cache.as_os_str().as_encoded_bytes());
    if daemon && String::from_utf8_lossy(&command).contains(prefix) {
        return true;
    }
    let mounts = String::from_utf8_lossy(&read("mountinfo")).into_owned();
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/"));
    root.is_some_and(|line| line.contains(" overlay ") && line.contains(prefix))
}

/// The network namespaces that CNI made for pods of ours.
fn pod_namespaces(processes: &BTreeSet<Pid>) -> Vec<String> {
    let network = |pid: &Pid| Some(std::fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino());
    let used: BTreeSet<u64> = processes.iter().filter_map(network).collect();
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("cni-"))
        .filter(|entry| entry.metadata().is_ok_and(|meta| used.contains(&meta.ino())))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn unmount_below(state: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let mut below: Vec<_> = points.filter(|point| Path::new(point).starts_with(state)).collect();
    below.reverse();
    for point in below {
        // What is busy still goes when its last user does.
        let _ = umount2(point, MntFlags::MNT_DETACH);
    }
}

/// What containers leave behind whose runtime was ended before them. Thousands of them, run after run, are read by every
/// kubelet every few seconds.
fn remove_cgroups(state: &Path) {
    let below = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let hosts = below(state).into_iter().flat_map(|cluster| below(&cluster));
    let tasks = hosts.map(|host| host.join("run/io.containerd.runtime.v2.task/k8s.io"));
    let ours = tasks.flat_map(|tasks| below(&tasks));
    let ids: Vec<_> = ours.filter_map(|task| Some(task.file_name()?.to_owned())).collect();
    let root = Path::new("/sys/fs/cgroup");
    // With cgroups of version 1 there is a tree for each controller.
    for tree in below(root).into_iter().chain([root.to_owned()]) {
        for id in &ids {
            // The kernel lets none go that is in use.
            let _ = std::fs::remove_dir(tree.join("k8s.io").join(id));
        }
    }
}
