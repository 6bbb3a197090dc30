//! `change <layout> <kind> <routes>`: brings a hub and a client to that many Routes, then changes one of them, and says
//! how many bytes that sends.
//!
//! Layouts: `layer-4` (a Service with a port of its own), `hosts` (an Ingress with a host name of its own). Kinds:
//! `endpoints`, `edit`, `add`, and `none` for what counts as nothing. For callgrind:
//! `--toggle-collect='*one_change*'`.
#![allow(clippy::unwrap_used)]

mod hub;

use std::hint::black_box;

use hub::Hub;

/// What is counted: one change, from the Route to the client's acknowledgement.
#[inline(never)]
fn one_change(hub: &mut Hub, layout: &str, kind: &str, count: usize) {
    match kind {
        "none" => return,
        "add" => hub.put(layout, count, 1, kind),
        _ => hub.put(layout, count / 2, 2, kind),
    }
    hub.settle();
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let layout = arguments.next().unwrap_or_else(|| "layer-4".into());
    let kind = arguments.next().unwrap_or_else(|| "endpoints".into());
    let count: usize = arguments.next().map_or(10_000, |text| text.parse().unwrap());
    let mut hub = hub::filled(&layout, count);
    // What was freed until now is sorted by the allocator with the next that is taken: that is no change's cost.
    for number in 1..=20 {
        hub.put(&layout, count / 2 + number, 2, "edit");
        hub.settle();
    }
    let before = hub.bytes;
    one_change(&mut hub, &layout, &kind, count);
    black_box(&hub);
    println!("{layout}, {kind} at {count} Routes: {} bytes", hub.bytes - before);
}
