//! Running programs, with errors that show what the program said.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::paths;

/// Cargo, in the repository.
///
/// What cargo set for this program is not meant for the one it starts: build scripts look at it (ring's), and whoever
/// builds next, from a shell or another program, would build everything anew.
pub fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(paths::repository());
    let own = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
    for (name, _) in std::env::vars_os() {
        if own.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs to the end and returns what was printed to standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| describe(command))?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let said = String::from_utf8_lossy(if stderr.is_empty() { &stdout } else { &stderr });
    bail!("{}: {status}\n{}", describe(command), said.trim_end())
}

/// Runs with `input` as standard input.
pub fn feed(command: &mut Command, input: &str) -> Result<String> {
    use std::io::Write;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| describe(command))?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(input.as_bytes())?;
    }
    let Output { status, stdout, stderr } = child.wait_with_output()?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    bail!("{}: {status}\n{}", describe(command), String::from_utf8_lossy(&stderr).trim_end())
}

/// Runs with this program's own standard streams.
pub fn show(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| describe(command))?;
    if status.success() { Ok(()) } else { bail!("{}: {status}", describe(command)) }
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    line.join(" ").chars().take(400).collect()
}

/// Asks again until the answer is `Ok`, at most for `patience`; then the last error is returned.
/// For what gives no event to wait for: another process' start.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut ask: impl FnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + patience;
    let mut pause = Duration::from_millis(20);
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > end => {
                return Err(error.context(format!("{what}: gave up after {patience:?}")));
            }
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 3 / 2).min(Duration::from_millis(300));
    }
}
