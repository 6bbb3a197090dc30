//! Text that others stumble over. One control character in one object keeps `kubectl get -o yaml` from showing any
//! ("control characters are not allowed"), and in a table it is the reader's terminal that obeys it.

use std::fmt::Write;

use serde_json::Value;

/// Whether YAML or a terminal makes something else of it than a character: controls, no characters, and what turns
/// the direction of all that follows.
pub(super) fn is_unprintable(c: char) -> bool {
    let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{fffe}' | '\u{ffff}')
}

/// Refuses JSON with such text in it, and names the field.
pub(super) fn check(json: &[u8]) -> Result<(), String> {
    if !may_hide_some(json) {
        return Ok(());
    }
    let value = serde_json::from_slice(json).map_err(|error| format!("no JSON: {error}"))?;
    let mut path = String::new();
    if finds(&value, &mut path) {
        let path: String = path.chars().take(256).collect();
        return Err(format!("{path}: has a control character; leave it out"));
    }
    Ok(())
}

/// Quick, and right where it says no: escapes that are not of a quote or a backslash, and bytes of which some such
/// characters begin.
fn may_hide_some(json: &[u8]) -> bool {
    let pairs = json.windows(2);
    pairs.into_iter().any(|pair| match *pair {
        [0x7f, _] | [_, 0x7f] => true,
        [0xc2, next] => next < 0xa0,
        [0xe2, next] => matches!(next, 0x80 | 0x81),
        [0xef, next] => next == 0xbf,
        [b'\\', next] => !matches!(next, b'"' | b'\\' | b'/'),
        _ => false,
    })
}

/// Whether there is some; `path` is where, then.
fn finds(value: &Value, path: &mut String) -> bool {
    let length = path.len();
    match value {
        Value::String(text) => text.contains(is_unprintable),
        Value::Array(all) => all.iter().enumerate().any(|(index, one)| {
            path.truncate(length);
            // Writing to a String cannot fail.
            let _ = write!(path, "[{index}]");
            finds(one, path)
        }),
        Value::Object(all) => all.iter().any(|(name, one)| {
            path.truncate(length);
            let dot = if length == 0 { "" } else { "." };
            let _ = write!(path, "{dot}{}", name.escape_debug());
            name.contains(is_unprintable) || finds(one, path)
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_refused_by_the_name_of_the_field() {
        let path =
            |text: &str| serde_json::json!({"a": 1, "hosts": [{"path": "/"}, {"path": text}]});
        for bad in
            ["\u{7f}", "/a\u{9b}31m", "\u{1b}[2K", "a\nb", "\t", "\u{0}", "\u{ffff}", "a\u{202e}b"]
        {
            let json = serde_json::to_vec(&path(bad)).unwrap();
            let said = check(&json).unwrap_err();
            assert!(said.starts_with("hosts[1].path: has a control character"), "{bad:?}: {said}");
        }
        for escaped in [r#"{"a": "\u007f"}"#, r#"{"a": "\u009B"}"#, r#"{"x\u0007": 1}"#] {
            assert!(check(escaped.as_bytes()).is_err(), "{escaped}");
        }
        for good in
            ["/straße/日本/\u{a0}", r#"/"quoted"\.php$"#, "\u{1f600}", "\u{fffd}", "– “a”", ""]
        {
            check(&serde_json::to_vec(&path(good)).unwrap()).expect(good);
        }
        check(br#"{"a": "\u0041\/"}"#).expect("escaped, and printable");
        // Nothing gets by because it is no JSON.
        for bad in [&b"\x7f{"[..], br#"{"path": "\u001b[2K"} x"#, br#"{"a": "\ud800"}"#] {
            assert!(check(bad).unwrap_err().starts_with("no JSON"), "{bad:?}");
        }
    }

    proptest::proptest! {
        /// The quick look misses nothing.
        #[test]
        fn whatever_is_hidden_is_found(text in ".*") {
            let json = serde_json::to_vec(&serde_json::json!([text])).unwrap();
            proptest::prop_assert_eq!(check(&json).is_err(), text.contains(is_unprintable));
        }
    }
}
