//! Whose each host name is, as the claims on the hub say, and who wants it.
//!
//! A name is a tenant's for as long as one of its Routes wants it: the first to claim it has it, at
//! all addresses. A wildcard and a name under it are never two tenants'.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use fairlead_api::claim::HostKey;
use fairlead_api::few::Few;
use fairlead_api::{HostnameClaimSpec, RouteId, TenantId, Uid};

/// One claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostClaim {
    /// What is claimed.
    pub key: HostKey,
    /// Who holds it.
    pub tenant: TenantId,
    /// `metadata.uid` of the claim's own object; empty while it is not persisted.
    pub object: Uid,
}

impl HostClaim {
    /// Reads a claim from its object; `None` for one of no tenant.
    pub fn parse(spec: &HostnameClaimSpec, object: Uid) -> Option<Self> {
        let tenant = spec.tenant.parse().ok()?;
        Some(Self { key: spec.key(), tenant, object })
    }

    /// The claim as the object's spec.
    pub fn spec(&self) -> HostnameClaimSpec {
        HostnameClaimSpec {
            hostname: self.key.hostname.to_string(),
            address: self.key.address,
            tenant: self.tenant.to_string(),
        }
    }
}

/// How a tenant stands to a host name.
#[derive(Debug, PartialEq, Eq)]
pub enum Standing {
    /// It holds the name.
    Held,
    /// It may claim it.
    Free,
    /// The name is being claimed for it, or given back: to be looked at again after that.
    Wait,
    /// Another tenant holds this name, or one that overlaps.
    Taken(HostKey),
}

/// All claims, and all Routes that want one.
#[derive(Debug, Default)]
pub struct Hosts {
    claims: HashMap<HostKey, HostClaim>,
    /// Claimed names by the domain above them.
    children: HashMap<Box<str>, BTreeSet<HostKey>>,
    releasing: HashSet<HostKey>,
    wanted: BTreeMap<HostKey, Few<(i64, RouteId)>>,
    /// How many names each tenant holds.
    held: HashMap<TenantId, usize>,
}

/// `example.com` of `shop.example.com` and of `*.example.com`.
pub fn parent(hostname: &str) -> &str {
    hostname.split_once('.').map_or("", |(_, parent)| parent)
}

impl Hosts {
    /// How a tenant stands to a name.
    pub fn standing(&self, key: &HostKey, tenant: &TenantId) -> Standing {
        if let Some(claim) = self.claims.get(key) {
            return match (claim.tenant == *tenant, self.releasing.contains(key)) {
                (true, false) if !claim.object.is_empty() => Standing::Held,
                (true, _) => Standing::Wait,
                (false, _) => Standing::Taken(key.clone()),
            };
        }
        match self.overlaps(key).find(|claim| claim.tenant != *tenant) {
            Some(claim) => Standing::Taken(claim.key.clone()),
            None => Standing::Free,
        }
    }

    /// Claims of a wildcard over the name, or of names under the wildcard.
    fn overlaps(&self, key: &HostKey) -> impl Iterator<Item = &HostClaim> {
        let wild = key.hostname.starts_with("*.");
        let siblings = self.children.get(parent(&key.hostname)).into_iter().flatten();
        // A wildcard comes before all names ([`HostKey`]): of those there may be thousands.
        siblings
            .take_while(move |other| wild || other.hostname.starts_with("*."))
            .filter_map(|other| self.claims.get(other))
    }

    /// Notes a claim.
    pub fn insert(&mut self, claim: HostClaim) {
        let parent = parent(&claim.key.hostname);
        if !parent.is_empty() {
            self.children.entry(parent.into()).or_default().insert(claim.key.clone());
        }
        *self.held.entry(claim.tenant.clone()).or_default() += 1;
        let before = self.claims.insert(claim.key.clone(), claim);
        if let Some(claim) = before {
            self.count_out(&claim.tenant);
        }
    }

    fn count_out(&mut self, tenant: &TenantId) {
        if let Some(count) = self.held.get_mut(tenant) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(tenant);
            }
        }
    }

    /// How many names a tenant holds.
    pub fn held_by(&self, tenant: &TenantId) -> usize {
        self.held.get(tenant).copied().unwrap_or(0)
    }

    /// Forgets a claim, if it is this object's.
    pub fn remove(&mut self, key: &HostKey, object: &Uid) -> bool {
        if self.claims.get(key).is_none_or(|claim| claim.object != *object) {
            return false;
        }
        if let Some(claim) = self.claims.remove(key) {
            self.count_out(&claim.tenant);
        }
        self.releasing.remove(key);
        if let Some(keys) = self.children.get_mut(parent(&key.hostname)) {
            keys.remove(key);
            if keys.is_empty() {
                self.children.remove(parent(&key.hostname));
            }
        }
        true
    }

    /// The claim of a name.
    pub fn get(&self, key: &HostKey) -> Option<&HostClaim> {
        self.claims.get(key)
    }

    /// All claimed names.
    pub fn keys(&self) -> impl Iterator<Item = &HostKey> {
        self.claims.keys()
    }

    /// A Route wants a name.
    pub fn want(&mut self, key: HostKey, created: i64, route: RouteId) {
        self.wanted.entry(key).or_default().insert((created, route));
    }

    /// A Route wants a name no more.
    pub fn unwant(&mut self, key: &HostKey, created: i64, route: &RouteId) {
        if let Some(routes) = self.wanted.get_mut(key) {
            routes.remove(&(created, route.clone()));
            if routes.is_empty() {
                self.wanted.remove(key);
            }
        }
    }

    /// The Routes that want a name, the oldest first.
    pub fn wanting(&self, key: &HostKey) -> impl Iterator<Item = &(i64, RouteId)> {
        self.wanted.get(key).into_iter().flatten()
    }

    /// Whether a Route of the tenant wants the name.
    pub fn is_wanted_by(&self, key: &HostKey, tenant: &TenantId) -> bool {
        self.wanted.get(key).into_iter().flatten().any(|(_, route)| route.tenant == *tenant)
    }

    /// Marks a claim that nobody needs as being given back; its object's uid comes back once.
    pub fn release(&mut self, key: &HostKey) -> Option<Uid> {
        let claim = self.claims.get(key)?;
        if claim.object.is_empty() || self.is_wanted_by(key, &claim.tenant) {
            return None;
        }
        self.releasing.insert(key.clone()).then(|| claim.object.clone())
    }

    /// A claim could not be given back.
    pub fn not_released(&mut self, key: &HostKey) {
        self.releasing.remove(key);
    }

    /// Nothing is being given back: this process begins to lead.
    pub fn forget_releases(&mut self) {
        self.releasing.clear();
    }
}

#[cfg(test)]
mod tests {
    use fairlead_api::RouteName;

    use super::*;

    fn key(name: &str) -> HostKey {
        HostKey::new(name, "10.9.0.1".parse().unwrap())
    }

    fn held(hosts: &mut Hosts, name: &str, tenant: &str) {
        let tenant = tenant.parse().unwrap();
        hosts.insert(HostClaim { key: key(name), tenant, object: "o".into() });
    }

    #[test]
    fn a_name_is_one_tenants_and_so_is_what_is_under_its_wildcard() {
        let mut hosts = Hosts::default();
        held(&mut hosts, "*.a.example", "blue");
        held(&mut hosts, "0.a.example", "blue");
        held(&mut hosts, "shop.b.example", "blue");
        held(&mut hosts, "*", "blue");
        let red = "red".parse().unwrap();
        let taken = |name: &str| matches!(hosts.standing(&key(name), &red), Standing::Taken(_));
        for name in ["*.a.example", "x.a.example", "shop.b.example", "*.b.example", "*"] {
            assert!(taken(name), "{name}");
        }
        for name in ["a.example", "x.y.a.example", "other.b.example", "*.example"] {
            assert_eq!(hosts.standing(&key(name), &red), Standing::Free, "{name}");
        }
        let blue = "blue".parse().unwrap();
        assert_eq!(hosts.standing(&key("x.a.example"), &blue), Standing::Free);
        assert_eq!(hosts.standing(&key("*.a.example"), &blue), Standing::Held);
    }

    #[test]
    fn a_claim_is_given_back_once_and_only_when_nobody_of_the_tenant_wants_it() {
        let mut hosts = Hosts::default();
        held(&mut hosts, "a.example", "blue");
        let name = RouteName::of_object("ing.shop.web");
        let route = RouteId { tenant: "blue".parse().unwrap(), name };
        hosts.want(key("a.example"), 1, route.clone());
        assert_eq!(hosts.release(&key("a.example")), None);
        hosts.unwant(&key("a.example"), 1, &route);
        assert_eq!(hosts.release(&key("a.example")), Some("o".into()));
        assert_eq!(hosts.release(&key("a.example")), None);
        assert!(!hosts.remove(&key("a.example"), &"another".into()));
        assert!(hosts.remove(&key("a.example"), &"o".into()));
        assert_eq!(hosts.standing(&key("*.example"), &"red".parse().unwrap()), Standing::Free);
    }
}
