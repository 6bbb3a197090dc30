//! Routes of a tenant that belong on one address.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fairlead_api::{RouteId, TenantId};

type Name = (TenantId, Box<str>);

/// Members by group, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Groups {
    members: BTreeMap<Name, BTreeSet<(i64, RouteId)>>,
    of: HashMap<RouteId, Name>,
}

impl Groups {
    /// A Route belongs to this group now; `None`: to none. The members of a group that it left come back:
    /// what kept them from their address may be gone.
    pub(super) fn set(
        &mut self,
        route: &RouteId,
        created: i64,
        group: Option<Box<str>>,
    ) -> Vec<RouteId> {
        let new = group.map(|group| (route.tenant.clone(), group));
        if self.of.get(route) == new.as_ref() {
            return Vec::new();
        }
        let mut left = Vec::new();
        if let Some(old) = self.of.remove(route)
            && let Some(members) = self.members.get_mut(&old)
        {
            members.remove(&(created, route.clone()));
            left.extend(members.iter().map(|(_, id)| id.clone()));
            if members.is_empty() {
                self.members.remove(&old);
            }
        }
        if let Some(new) = new {
            self.members.entry(new.clone()).or_default().insert((created, route.clone()));
            self.of.insert(route.clone(), new);
        }
        left
    }

    /// The other members of a Route's group, the oldest first.
    pub(super) fn others<'a>(&'a self, route: &'a RouteId) -> impl Iterator<Item = &'a RouteId> {
        let members = self.of.get(route).and_then(|group| self.members.get(group));
        members.into_iter().flatten().map(|(_, id)| id).filter(move |id| *id != route)
    }
}
