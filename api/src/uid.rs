//! Who an object is.

use std::fmt;

use uuid::Uuid;

/// An object's `metadata.uid`: a UUID (RFC 9562), by 16 bytes instead of its 36 characters. What is none is kept as it
/// is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Uid(Repr);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Repr {
    Uuid(Uuid),
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
        // Only what is written as it was read: neither capitals nor dashes elsewhere.
        let is_so =
            |uuid: &Uuid| *uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == *text;
        let uuid = Uuid::try_parse(text).ok().filter(is_so);
        Self(uuid.map_or_else(|| Repr::Text(text.into()), Repr::Uuid))
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
            Repr::Uuid(uuid) => uuid.fmt(f),
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
