//! A map by [`Key`].

use std::collections::HashMap;
use std::sync::Arc;

use crate::{Key, ResourceType};

/// A map by [`Key`]: one by name for each type. With the type in every entry, and room for as many as all types have
/// together, it would be half as large again.
#[derive(Debug)]
pub struct KeyMap<V>([HashMap<Arc<str>, V>; ResourceType::ALL.len()]);

impl<V> Default for KeyMap<V> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| HashMap::new()))
    }
}

impl<V> KeyMap<V> {
    /// The value of a key.
    pub fn get(&self, key: &Key) -> Option<&V> {
        self.0[key.kind as usize].get(&key.name)
    }

    /// The value of a key, to be changed.
    pub fn get_mut(&mut self, key: &Key) -> Option<&mut V> {
        self.0[key.kind as usize].get_mut(&key.name)
    }

    /// Whether there is a value.
    pub fn contains_key(&self, key: &Key) -> bool {
        self.0[key.kind as usize].contains_key(&key.name)
    }

    /// Sets a value; the one before comes back.
    pub fn insert(&mut self, Key { kind, name }: Key, value: V) -> Option<V> {
        self.0[kind as usize].insert(name, value)
    }

    /// Takes a value away.
    pub fn remove(&mut self, key: &Key) -> Option<V> {
        self.0[key.kind as usize].remove(&key.name)
    }
}

impl<V: Default> KeyMap<V> {
    /// The value of a key; there is one then.
    pub fn or_default(&mut self, key: &Key) -> &mut V {
        self.0[key.kind as usize].entry(key.name.clone()).or_default()
    }
}
