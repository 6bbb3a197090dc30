//! Which resource belongs to what, so that what differs is published and what Envoy says finds the
//! Routes that it is about.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_api::RouteId;
use fairlead_xds::{Change, Key, KeyMap, Resource};

use crate::examples;
use crate::http::{SecretId, SiteKey};

/// What a resource was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A Route of layer 4.
    Route(RouteId),
    /// A host name at an address.
    Site(SiteKey),
    /// A backend of layer 7, by its Cluster's name.
    Upstream(Arc<str>),
    /// The listeners of an address.
    Front(IpAddr),
    /// A Secret.
    Secret(SecretId),
}

/// Keys with the versions that the fleet shall have.
pub(crate) type Published = Vec<(Key, u64)>;

/// Of a resource that is published.
#[derive(Debug)]
struct Owned {
    /// One for all resources of an owner.
    owner: Arc<Owner>,
    /// A hash of what it needs, which may change alone; 0 where that is nothing.
    needs: u64,
}

/// All that is published.
#[derive(Debug, Default)]
pub(crate) struct Publisher {
    owned: KeyMap<Owned>,
    /// Resources whose owner is gone, or needs them no more.
    withdrawn: BTreeSet<Key>,
    changes: Vec<Change>,
}

impl Publisher {
    /// What a resource was made of.
    pub(crate) fn owner(&self, key: &Key) -> Option<&Owner> {
        self.owned.get(key).map(|owned| &*owned.owner)
    }

    /// `owner` has these resources now, and had `published` before.
    pub(crate) fn replace(
        &mut self,
        owner: &Owner,
        published: &mut Published,
        resources: Vec<impl Borrow<Resource> + Into<Arc<Resource>>>,
    ) {
        let version = |one: &Resource| (one.key.clone(), one.version);
        let new: Published = resources.iter().map(|one| version(one.borrow())).collect();
        let old = std::mem::replace(published, new);
        let mut shared = None;
        for resource in resources {
            let Resource { key, version, needs, .. } = resource.borrow();
            let needs = digest(needs);
            let there = self.owned.get(key);
            let same_needs = there.map_or(0, |owned| owned.needs) == needs;
            if !same_needs || there.is_none_or(|owned| *owned.owner != *owner) {
                let shared = shared.get_or_insert_with(|| {
                    let there = old.iter().find_map(|(key, _)| self.of(key, owner));
                    there.cloned().unwrap_or_else(|| Arc::new(owner.clone()))
                });
                let owned = Owned { owner: shared.clone(), needs };
                self.owned.insert(key.clone(), owned);
            }
            if !same_needs || !old.contains(&(key.clone(), *version)) {
                let mut resource = resource.into();
                // One that others have, too, is packed already.
                if let Some(new) = Arc::get_mut(&mut resource) {
                    examples::pack(new);
                }
                self.changes.push(Change::Put(resource));
            }
        }
        for (key, _) in old {
            if !published.iter().any(|(now, _)| *now == key) && self.of(&key, owner).is_some() {
                self.owned.remove(&key);
                self.withdrawn.insert(key);
            }
        }
    }

    /// `owner` has nothing any more.
    pub(crate) fn withdraw(&mut self, owner: &Owner, published: &mut Published) {
        self.replace(owner, published, Vec::<Resource>::new());
    }

    /// The owner of a resource, if it is this one.
    fn of(&self, key: &Key, owner: &Owner) -> Option<&Arc<Owner>> {
        self.owned.get(key).map(|owned| &owned.owner).filter(|there| ***there == *owner)
    }

    /// What is to be published, removals last: what needed them goes before.
    pub(crate) fn take(&mut self) -> Vec<Change> {
        let mut changes = std::mem::take(&mut self.changes);
        let gone = std::mem::take(&mut self.withdrawn).into_iter();
        changes.extend(gone.filter(|key| !self.owned.contains_key(key)).map(Change::Remove));
        changes
    }
}

fn digest(needs: &[Key]) -> u64 {
    if needs.is_empty() {
        return 0;
    }
    let mut hasher = std::hash::DefaultHasher::new();
    needs.hash(&mut hasher);
    hasher.finish().max(1)
}
