//! What every client shall have.

use std::sync::Arc;

use crate::{ChangeLog, Key, Resource, ResourceType};

/// A change of what clients shall have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The resource shall be this.
    Put(Arc<Resource>),
    /// The resource shall be gone.
    Remove(Key),
}

impl From<Resource> for Change {
    fn from(resource: Resource) -> Self {
        Self::Put(resource.into())
    }
}

/// The resources by type, with the log of their changes.
#[derive(Debug, Default)]
pub struct State {
    logs: [ChangeLog<Arc<str>, Arc<Resource>>; ResourceType::ALL.len()],
    complete: bool,
}

impl State {
    /// The resources of a type.
    pub fn of(&self, kind: ResourceType) -> &ChangeLog<Arc<str>, Arc<Resource>> {
        &self.logs[kind as usize]
    }

    /// A name that a client says, as the resource has it: names are kept for each client, and of these there are many.
    pub(crate) fn shared(&self, kind: ResourceType, name: &str) -> Arc<str> {
        self.of(kind).key(name).cloned().unwrap_or_else(|| name.into())
    }

    /// Whether everything was put once: before that nobody is answered, since an empty answer
    /// would take away what a client has.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Carries changes out; a resource with the version that is there already is no change.
    pub fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Put(resource) => self.put(resource),
                Change::Remove(key) => self.logs[key.kind as usize].remove(&key.name),
            }
        }
    }

    fn put(&mut self, resource: Arc<Resource>) {
        let log = &mut self.logs[resource.key.kind as usize];
        if log.get(&*resource.key.name).is_none_or(|old| *old != resource) {
            log.put(resource.key.name.clone(), resource);
        }
    }

    /// From now on clients are answered.
    pub fn complete(&mut self) {
        self.complete = true;
    }
}
