//! Who an object is.

use std::fmt;

/// An object's `metadata.uid`: a UUID (RFC 9562), by 16 bytes instead of its 36 characters. What is none is kept as it
/// is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Uid(Repr);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Repr {
    /// As its text has it, so that equal texts are equal here.
    Uuid([u8; 16]),
    Text(Box<str>),
}

impl Uid {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        matches!(&self.0, Repr::Text(text) if text.is_empty())
    }
}

impl Default for Uid {
    fn default() -> Self {
        Self(Repr::Text(Box::default()))
    }
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        let number = u128::from_str_radix(&text.replace('-', ""), 16);
        let uuid = number.map(|number| Self(Repr::Uuid(number.to_be_bytes())));
        // Only what is written as it was read: neither capitals nor dashes elsewhere.
        uuid.ok()
            .filter(|uuid| uuid.to_string() == text)
            .unwrap_or_else(|| Self(Repr::Text(text.into())))
    }
}

impl From<String> for Uid {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uid({self})")
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Text(text) => f.write_str(text),
            Repr::Uuid(bytes) => {
                let digits = format!("{:032x}", u128::from_be_bytes(*bytes));
                let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
                f.write_str(&parts.join("-"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_written_as_it_was_read() {
        let uuid = "0a1b2c3d-0000-4fff-8aaa-00000000000f";
        assert!(matches!(Uid::from(uuid).0, Repr::Uuid(_)));
        for text in [uuid, "", "o9", &uuid.to_uppercase(), &uuid.replace('-', ""), "-1", "é"] {
            assert_eq!(Uid::from(text).to_string(), text);
        }
        assert_ne!(Uid::from(uuid), Uid::from(uuid.replace('-', "")));
        assert!(Uid::from("").is_empty() && Uid::default() == Uid::from(""));
    }
}
