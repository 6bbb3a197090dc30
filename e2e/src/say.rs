//! Progress on screen. Written to standard error directly, so that a test harness that captures
//! output still lets it through.

use std::io::Write;
use std::sync::OnceLock;
use std::time::Instant;

static START: OnceLock<Instant> = OnceLock::new();

/// Says a line with the seconds since the start before it.
pub fn say(text: &str) {
    let seconds = START.get_or_init(Instant::now).elapsed().as_secs();
    let line = format!("[{seconds:>4}s] {text}\n");
    // Nothing can be done where even standard error is gone.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
