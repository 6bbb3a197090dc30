//! What one change costs, counted in instructions by callgrind: no clock, so the same on any machine.
//!
//! Builds and runs the examples of the pure crates in release mode.

#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

use fairlead_e2e::{packages, paths, run};

/// Builds an example of the core once.
fn example(name: &str) -> PathBuf {
    let mut cargo = run::cargo();
    cargo.args(["build", "--release", "--quiet", "--locked"]);
    cargo.args(["-p", "fairlead-core", "--example", name]);
    run::output(&mut cargo).expect("the example");
    paths::repository().join("target/release/examples").join(name)
}

/// What an example says under one of valgrind's tools, and what the tool says.
fn under(tool: &[&str], example: &Path, arguments: &[&str]) -> (String, String) {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(tool).arg(example).args(arguments);
    let output = valgrind.output().expect("valgrind");
    let [said, counted] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{counted}");
    (said, counted)
}

/// Instructions of one function of an example, and what the example says.
fn counted(example: &Path, function: &str, arguments: &[&str]) -> (u64, String) {
    let toggle = format!("--toggle-collect=*{function}*");
    let tool = ["--tool=callgrind", "--callgrind-out-file=/dev/null", &toggle];
    let (said, counted) = under(&tool, example, arguments);
    (number_in(&counted, "Collected : "), said)
}

/// The number that follows `what`.
fn number_in(text: &str, what: &str) -> u64 {
    let rest = text.split(what).nth(1).unwrap_or_else(|| panic!("no {what:?} in {text}"));
    let digits = rest.chars().take_while(|c| c.is_ascii_digit() || *c == ',').filter(|c| *c != ',');
    digits.collect::<String>().parse().expect("a number")
}

/// Blocks that an example takes from the heap.
fn taken(example: &Path, arguments: &[&str]) -> u64 {
    let tool = ["--tool=dhat", "--dhat-out-file=/dev/null"];
    number_in(&under(&tool, example, arguments).1, "bytes in ")
}

#[test]
fn one_claim_more_costs_the_same_at_100_as_at_10_000() {
    packages::ensure_one("/usr/bin/valgrind", "valgrind").expect("valgrind");
    let allocate = example("allocate");
    for layout in ["same-port", "any-address", "spread", "tenants"] {
        let at = |claims: &str| counted(&allocate, "one_more", &[layout, claims]).0;
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

/// From the Route that changed to the client's acknowledgement.
#[test]
fn one_change_costs_the_same_at_100_as_at_1_000() {
    packages::ensure_one("/usr/bin/valgrind", "valgrind").expect("valgrind");
    let change = example("change");
    for layout in ["layer-4", "hosts"] {
        for kind in ["endpoints", "edit", "add"] {
            let [(few, bytes), (many, many_bytes)] = ["100", "1000"].map(|count| {
                let (count, said) = counted(&change, "one_change", &[layout, kind, count]);
                (count, number_in(&said, "Routes: "))
            });
            println!(
                "{layout}, {kind}: {few} and {many} instructions, {bytes} and {many_bytes} bytes"
            );
            assert!(few > 1_000 && bytes > 100, "nothing was counted");
            assert!(many <= few + few / 4, "{layout}, {kind}: {few} instructions, then {many}");
            // Names are a digit longer, here and there.
            assert!(many_bytes <= bytes + 32, "{layout}, {kind}: {bytes} bytes, then {many_bytes}");
            assert!(many_bytes <= 4_096, "{layout}, {kind}: {many_bytes} bytes");
        }
        let [blocks, many] = ["100", "1000"].map(|count| {
            taken(&change, &[layout, "add", count]) - taken(&change, &[layout, "none", count])
        });
        println!("{layout}, add: {blocks} and {many} allocations");
        assert!(blocks > 10, "nothing was counted");
        // A map that grows by one takes another block now and then.
        assert!(many <= blocks + blocks / 4, "{layout}: {blocks} allocations, then {many}");
    }
}
