#![no_main]
//! A join token's text: what is read is written again as it was.

use fairlead_process::token::Token;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(token) = text.parse::<Token>() {
        assert_eq!(token.reveal(), text.trim());
    }
});
