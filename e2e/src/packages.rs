//! Debian packages that the local driver needs: installed as root, or named.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::run;
use crate::say::say;

/// A file that shows that the package is there, and the package.
const NEEDED: [(&str, &str); 9] = [
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/sbin/nft", "nftables"),
    // The bridge plugin's ipMasq calls it.
    ("/usr/sbin/iptables", "iptables"),
    ("/usr/sbin/conntrack", "conntrack"),
    ("/usr/sbin/ip", "iproute2"),
    ("/usr/bin/nsenter", "util-linux"),
    ("/usr/bin/curl", "curl"),
    ("/usr/bin/openssl", "openssl"),
];

/// Sees to it that all packages are there.
pub fn ensure() -> Result<()> {
    ensure_all(&NEEDED)
}

/// Sees to it that the package with this file is there.
pub fn ensure_one(file: &str, package: &str) -> Result<()> {
    ensure_all(&[(file, package)])
}

fn ensure_all(needed: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = needed
        .iter()
        .filter(|(file, _)| !Path::new(file).exists())
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() || !Path::new("/usr/bin/apt-get").exists() {
        bail!("the local driver needs these Debian packages: {}", missing.join(" "));
    }
    say(&format!("installing Debian packages: {} (about 20 s)", missing.join(" ")));
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    run::output(apt().args(["update", "-q"]))?;
    run::output(apt().args(["install", "-qy", "--no-install-recommends"]).args(&missing))?;
    Ok(())
}
