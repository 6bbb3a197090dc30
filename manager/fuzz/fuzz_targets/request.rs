#![no_main]
//! A certificate request: only a key on P-256 comes out of it.

use fairlead_identity::request::public_key;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|der: &[u8]| {
    let _ = public_key(der, "spiffe://fairlead.local/tenant/blue/agent/abcdefghij");
});
