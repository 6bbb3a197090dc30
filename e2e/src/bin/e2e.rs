//! `cargo e2e` and `cargo demo`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match fairlead_e2e::cli::Args::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
