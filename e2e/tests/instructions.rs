//! What one change costs, counted in instructions by callgrind: no clock, so the same on any machine.
//!
//! Builds and runs the examples of the pure crates in release mode.

#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::path::PathBuf;
use std::process::Command;

use fairlead_e2e::{packages, paths, run};

/// Builds an example of the core once.
fn example(name: &str) -> PathBuf {
    let root = paths::repository();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&root).args(["build", "--release", "--quiet", "--locked"]);
    cargo.args(["-p", "fairlead-core", "--example", name]);
    run::output(&mut cargo).expect("the example");
    root.join("target/release/examples").join(name)
}

/// Instructions of one function of an example.
fn counted(example: &PathBuf, function: &str, arguments: &[&str]) -> u64 {
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--toggle-collect=*{function}*"))
        .arg(example)
        .args(arguments);
    let output = valgrind.output().expect("valgrind");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let line = said.lines().find_map(|line| line.split("Collected : ").nth(1));
    line.expect("a count").trim().parse().expect("a number")
}

#[test]
fn one_claim_more_costs_the_same_at_100_as_at_10_000() {
    packages::ensure_one("/usr/bin/valgrind", "valgrind").expect("valgrind");
    let allocate = example("allocate");
    for layout in ["same-port", "any-address", "spread", "tenants"] {
        let at = |claims: &str| counted(&allocate, "one_more", &[layout, claims]);
        let (few, many) = (at("100"), at("10000"));
        println!("{layout}: {few} instructions at 100 claims, {many} at 10,000");
        assert!(few > 1_000, "nothing was counted");
        // Hash maps begin with random keys, and trees are a level or two higher.
        assert!(many <= few + few / 4, "{layout}: {few} at 100, {many} at 10,000");
        // 10,000 of them in 100 ms, at 2.5 instructions a nanosecond.
        assert!(many * 10_000 < 250_000_000, "{layout}: {many} each");
    }
    println!("{}", run::output(Command::new(&allocate).args(["same-port", "10000"])).unwrap());
}
