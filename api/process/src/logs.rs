//! Logs by `tracing`, as text or JSON.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// How to log.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// Which lines, as `tracing_subscriber::EnvFilter` reads it.
    #[arg(long, env = "FAIRLEAD_LOG", default_value = "info,kube_runtime=warn")]
    pub log: String,
    /// In which form.
    #[arg(long, env = "FAIRLEAD_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Starts logging to standard error.
pub fn init(args: &LogArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log)?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| OneLine(io::stderr()));
    let result = match args.log_format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    result.map_err(|error| anyhow::anyhow!(error))
}

/// Keeps what is written at once on one line: what a stranger sends, and a library quotes in an error, begins no line of
/// its own. `tracing` escapes text, but not what is displayed.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let (text, end) = match line.strip_suffix(b"\n") {
            Some(text) => (text, &b"\n"[..]),
            None => (line, &b""[..]),
        };
        let shown = String::from_utf8_lossy(text);
        if shown.contains(char::is_control) {
            // As JSON has it, so that a line of JSON stays one.
            let escape = |c: char| match c {
                c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
                c => c.to_string(),
            };
            let escaped: String = shown.chars().map(escape).collect();
            self.0.write_all(escaped.as_bytes())?;
            self.0.write_all(end)?;
        } else {
            self.0.write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::warn;

    use super::*;
    use crate::locks::lock;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_stranger_sends_begins_no_line() {
        let kept = Kept::default();
        let to = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || OneLine(to.clone()))
            .finish();
        let forged = "no\n2026-01-01T00:00:00Z  INFO all is well\r\x1b[2K\u{9b}";
        tracing::subscriber::with_default(subscriber, || {
            warn!(error = %forged, path = forged, "refused {forged}");
        });
        let said = String::from_utf8(lock(&kept.0).clone()).unwrap();
        assert_eq!(said.matches('\n').count(), 1, "{said:?}");
        assert!(!said.contains(['\r', '\x1b', '\u{9b}']), "{said:?}");
        assert!(said.ends_with('\n') && said.contains("no\\u000a2026"), "{said:?}");
    }
}
