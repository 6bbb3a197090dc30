//! Where things lie.

use std::path::{Path, PathBuf};

/// The repository's top folder.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").components().collect::<PathBuf>()
}

/// What the running clusters keep: `FAIRLEAD_E2E_STATE`, or `/var/lib/fairlead-e2e`. Short, since
/// sockets lie below it and a socket's path has at most 107 bytes.
pub fn state() -> PathBuf {
    variable("FAIRLEAD_E2E_STATE").unwrap_or_else(|| "/var/lib/fairlead-e2e".into())
}

/// What outlives clusters, by version: `FAIRLEAD_CACHE`, or `fairlead` in the user's cache folder.
pub fn cache() -> PathBuf {
    let home = || variable("HOME").unwrap_or_else(|| "/root".into());
    variable("FAIRLEAD_CACHE").unwrap_or_else(|| {
        variable("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache")).join("fairlead")
    })
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
