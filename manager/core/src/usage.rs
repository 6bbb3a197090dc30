//! How much each tenant holds, for its quotas.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use fairlead_api::{RouteId, TenantId};

use crate::runs::address;

/// What a tenant holds of addresses.
#[derive(Debug, Default)]
pub struct Usage {
    /// Ports that its Routes alone hold.
    pub ports: u32,
    /// Addresses, with the number of its ports and seats there.
    addresses: BTreeMap<IpAddr, u32>,
}

impl Usage {
    /// How many addresses it is on.
    pub fn addresses(&self) -> usize {
        self.addresses.len()
    }

    /// Whether it is on this one.
    pub fn is_on(&self, address: IpAddr) -> bool {
        self.addresses.contains_key(&address)
    }

    /// Those of its addresses whose numbers are in a range, in order.
    pub fn within(&self, (first, last): (u128, u128)) -> impl Iterator<Item = IpAddr> {
        self.addresses.range(address(first)..=address(last)).map(|(ip, _)| *ip)
    }

    pub(crate) fn come(&mut self, address: IpAddr) {
        *self.addresses.entry(address).or_default() += 1;
    }

    pub(crate) fn go(&mut self, address: IpAddr) {
        if let Some(count) = self.addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&address);
            }
        }
    }
}

/// How many endpoints there are, of each Route and of each tenant.
#[derive(Debug, Default)]
pub struct Endpoints {
    by_route: HashMap<RouteId, usize>,
    by_tenant: HashMap<TenantId, usize>,
}

impl Endpoints {
    /// A Route has so many now; whether they are fewer than before.
    pub fn set(&mut self, route: &RouteId, count: usize) -> bool {
        let before = match count {
            0 => self.by_route.remove(route),
            _ => self.by_route.insert(route.clone(), count),
        };
        let before = before.unwrap_or(0);
        if before == count {
            return false;
        }
        let total = self.by_tenant.entry(route.tenant.clone()).or_default();
        *total = *total + count - before;
        if *total == 0 {
            self.by_tenant.remove(&route.tenant);
        }
        count < before
    }

    /// How many there would be of the tenant, if the Route had `count`; `None` where that is no more than now.
    pub fn after(&self, route: &RouteId, count: usize) -> Option<usize> {
        let before = self.by_route.get(route).copied().unwrap_or(0);
        let total = self.by_tenant.get(&route.tenant).copied().unwrap_or(0);
        (count > before).then(|| total + count - before)
    }
}

#[cfg(test)]
mod tests {
    use fairlead_api::RouteName;

    use super::*;

    #[test]
    fn endpoints_are_counted_by_tenant_and_only_growth_is_asked_about() {
        let route = |name: &str| RouteId {
            tenant: "blue".parse().unwrap(),
            name: RouteName::of_object(name),
        };
        let mut endpoints = Endpoints::default();
        assert!(!endpoints.set(&route("a"), 3) && !endpoints.set(&route("b"), 2));
        assert_eq!(endpoints.after(&route("c"), 4), Some(9));
        assert_eq!(endpoints.after(&route("a"), 4), Some(6));
        assert_eq!(endpoints.after(&route("a"), 3), None);
        assert!(endpoints.set(&route("a"), 0));
        assert_eq!(endpoints.after(&route("b"), 3), Some(3));
    }
}
