#![no_main]
//! The identity in a certificate, and what is in a tenant's Secret.

use fairlead_process::identity::{Bearer, Identity};
use fairlead_process::secret;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(bearer) = Bearer::of(bytes) {
        if let Ok(identity) = Identity::of_id(&bearer.id, "fairlead.local") {
            assert_eq!(identity.id("fairlead.local"), bearer.id);
        }
    }
    let _ = secret::trusted(bytes);
    let _ = secret::users(bytes);
    let _ = secret::pair(bytes, bytes);
});
