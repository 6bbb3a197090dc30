#![no_main]
//! Messages of an agent's stream.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fairlead_manager::fuzz_stream(bytes));
