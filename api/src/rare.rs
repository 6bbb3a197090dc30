//! A value that is its type's default most of the time.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::ops::{Deref, DerefMut};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A type whose default there is once in the process.
pub trait Common: Default + PartialEq + 'static {
    /// The default.
    fn common() -> &'static Self;
}

/// A value that is its type's default most of the time, and then takes no more than a pointer. Reads, is written and is
/// described as the value itself. Whoever takes it by `&mut` gives it room of its own, even if it stays the default.
#[derive(Debug, Clone, Default)]
pub struct Rare<T>(Option<Box<T>>);

impl<T: Common> PartialEq for Rare<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Common + Eq> Eq for Rare<T> {}

impl<T: Common + Hash> Hash for Rare<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl<T: Common> From<T> for Rare<T> {
    fn from(value: T) -> Self {
        Self((value != *T::common()).then(|| Box::new(value)))
    }
}

impl<T: Common> Deref for Rare<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or_else(|| T::common())
    }
}

impl<T: Common> DerefMut for Rare<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

impl<T: Common + Serialize> Serialize for Rare<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

impl<'de, T: Common + Deserialize<'de>> Deserialize<'de> for Rare<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::from)
    }
}

impl<T: JsonSchema> JsonSchema for Rare<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Filters;

    #[test]
    fn a_default_takes_no_room_and_reads_as_one() {
        let rare: Rare<Filters> = serde_json::from_str("{}").unwrap();
        assert!(rare.0.is_none());
        assert_eq!(*rare, Filters::default());
        assert_eq!(serde_json::to_string(&rare).unwrap(), "{}");
        let mut touched = rare.clone();
        touched.max_body_bytes = None;
        assert!(touched.0.is_some());
        assert_eq!(touched, rare);
        let other: Rare<Filters> = serde_json::from_str(r#"{"maxBodyBytes":7}"#).unwrap();
        assert_eq!(other.max_body_bytes, Some(7));
        assert_eq!(serde_json::to_string(&other).unwrap(), r#"{"maxBodyBytes":7}"#);
    }
}
