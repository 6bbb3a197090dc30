//! Whose each node address is: the tenant that told of it first has it, until it tells of it no more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairlead_api::TenantId;

#[derive(Debug)]
struct Held {
    by: TenantId,
    /// What is written on the hub says so; otherwise somebody for whom that is the case comes first.
    written: bool,
}

/// All node addresses.
#[derive(Debug, Default)]
pub struct Owners {
    held: BTreeMap<IpAddr, Held>,
    /// All who tell of an address.
    told: BTreeMap<IpAddr, BTreeSet<TenantId>>,
    of: BTreeMap<TenantId, BTreeSet<IpAddr>>,
}

impl Owners {
    /// A tenant tells of these addresses, all of which it may have as far as its own permissions go;
    /// `written` are those that the hub's records say were its own. The other tenants for whom that changes
    /// something come back.
    pub fn set(
        &mut self,
        tenant: &TenantId,
        now: BTreeSet<IpAddr>,
        written: &BTreeSet<IpAddr>,
    ) -> BTreeSet<TenantId> {
        let mut touched = BTreeSet::new();
        let before = self.of.remove(tenant).unwrap_or_default();
        for gone in before.difference(&now) {
            touched.extend(self.leave(tenant, *gone));
        }
        for address in &now {
            self.told.entry(*address).or_default().insert(tenant.clone());
            let written = written.contains(address);
            match self.held.get_mut(address) {
                Some(held) if held.by == *tenant => held.written |= written,
                Some(held) if written && !held.written => {
                    touched.insert(std::mem::replace(&mut held.by, tenant.clone()));
                    held.written = true;
                }
                Some(_) => {}
                None => {
                    self.held.insert(*address, Held { by: tenant.clone(), written });
                }
            }
        }
        if !now.is_empty() {
            self.of.insert(tenant.clone(), now);
        }
        touched
    }

    /// A tenant tells of an address no more; who has it then.
    fn leave(&mut self, tenant: &TenantId, address: IpAddr) -> Option<TenantId> {
        let told = self.told.get_mut(&address)?;
        told.remove(tenant);
        let next = told.first().cloned();
        if told.is_empty() {
            self.told.remove(&address);
        }
        if self.held.get(&address).is_none_or(|held| held.by != *tenant) {
            return None;
        }
        match &next {
            Some(by) => {
                self.held.insert(address, Held { by: by.clone(), written: false });
            }
            None => drop(self.held.remove(&address)),
        }
        next
    }

    /// Whose an address is.
    pub fn owner(&self, address: IpAddr) -> Option<&TenantId> {
        self.held.get(&address).map(|held| &held.by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_to_tell_of_an_address_has_it_until_it_lets_go() {
        let (blue, red): (TenantId, TenantId) = ("blue".parse().unwrap(), "red".parse().unwrap());
        let (mut owners, none) = (Owners::default(), BTreeSet::new());
        let ip = "10.0.0.1".parse().unwrap();
        owners.set(&red, addresses(&["10.0.0.1"]), &none);
        assert!(owners.set(&blue, addresses(&["10.0.0.1", "10.0.0.2"]), &none).is_empty());
        assert_eq!(owners.owner(ip), Some(&red), "not by name");
        assert_eq!(owners.set(&red, none.clone(), &none), [blue.clone()].into());
        assert_eq!(owners.owner(ip), Some(&blue));
        owners.set(&blue, none.clone(), &none);
        assert_eq!(owners.owner(ip), None);
    }

    #[test]
    fn what_is_written_counts_after_a_restart_in_whatever_order_it_is_read() {
        let (blue, red): (TenantId, TenantId) = ("blue".parse().unwrap(), "red".parse().unwrap());
        let (ips, none) = (addresses(&["10.0.0.1"]), BTreeSet::new());
        let ip = "10.0.0.1".parse().unwrap();
        for blue_first in [true, false] {
            let mut owners = Owners::default();
            if blue_first {
                owners.set(&blue, ips.clone(), &none);
                assert_eq!(owners.set(&red, ips.clone(), &ips), [blue.clone()].into());
            } else {
                owners.set(&red, ips.clone(), &ips);
                owners.set(&blue, ips.clone(), &none);
            }
            assert_eq!(owners.owner(ip), Some(&red));
        }
    }
}
