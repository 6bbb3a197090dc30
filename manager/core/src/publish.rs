//! Which resource belongs to what, so that what differs is published and what Envoy says finds the
//! Routes that it is about.

use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use fairlead_api::RouteId;
use fairlead_xds::{Change, Key, Resource};

use crate::http::{SecretId, SiteKey};

/// What a resource was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A Route of layer 4.
    Route(RouteId),
    /// A host name at an address.
    Site(SiteKey),
    /// A backend of layer 7, by its Cluster's name.
    Upstream(String),
    /// The listeners of an address.
    Front(IpAddr),
    /// A Secret.
    Secret(SecretId),
}

/// Keys with the versions that the fleet shall have.
pub(crate) type Published = Vec<(Key, u64)>;

/// All that is published.
#[derive(Debug, Default)]
pub(crate) struct Publisher {
    owners: HashMap<Key, Owner>,
    /// A hash of what each resource needs, where it needs something: that may change alone.
    needs: HashMap<Key, u64>,
    /// Resources whose owner is gone, or needs them no more.
    withdrawn: BTreeSet<Key>,
    changes: Vec<Change>,
}

impl Publisher {
    /// What a resource was made of.
    pub(crate) fn owner(&self, key: &Key) -> Option<&Owner> {
        self.owners.get(key)
    }

    /// `owner` has these resources now, and had `published` before.
    pub(crate) fn replace(
        &mut self,
        owner: &Owner,
        published: &mut Published,
        resources: Vec<Resource>,
    ) {
        let new: Published = resources.iter().map(|r| (r.key.clone(), r.version)).collect();
        let old = std::mem::replace(published, new);
        for resource in resources {
            if self.owners.get(&resource.key) != Some(owner) {
                self.owners.insert(resource.key.clone(), owner.clone());
            }
            let same = self.same_needs(&resource);
            if !same || !old.contains(&(resource.key.clone(), resource.version)) {
                self.changes.push(Change::Put(resource));
            }
        }
        for (key, _) in old {
            if !published.iter().any(|(now, _)| *now == key) && self.owners.get(&key) == Some(owner)
            {
                self.owners.remove(&key);
                self.needs.remove(&key);
                self.withdrawn.insert(key);
            }
        }
    }

    /// Whether a resource needs what it needed before.
    fn same_needs(&mut self, resource: &Resource) -> bool {
        if resource.needs.is_empty() {
            return self.needs.remove(&resource.key).is_none();
        }
        let mut hasher = std::hash::DefaultHasher::new();
        resource.needs.hash(&mut hasher);
        let now = hasher.finish();
        self.needs.insert(resource.key.clone(), now) == Some(now)
    }

    /// What is to be published, removals last: what needed them goes before.
    pub(crate) fn take(&mut self) -> Vec<Change> {
        let mut changes = std::mem::take(&mut self.changes);
        let gone = std::mem::take(&mut self.withdrawn).into_iter();
        changes.extend(gone.filter(|key| !self.owners.contains_key(key)).map(Change::Remove));
        changes
    }
}
