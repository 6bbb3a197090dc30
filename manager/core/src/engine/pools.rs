//! Pools as they come, change and go.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fairlead_api::AddressPoolSpec;

use super::{Effects, Engine, Guard, SeenBalancer};
use crate::claims::Claim;
use crate::pool::Pool;

impl Engine {
    /// What keeps a pool from going, as its object has it. To be told before [`Engine::pool`].
    pub fn guard(&mut self, name: &str, guard: Option<Guard>) {
        match guard {
            Some(guard) => drop(self.guards.insert(name.to_owned(), guard)),
            None => drop(self.guards.remove(name)),
        }
        self.pools_changed = true;
    }

    /// A pool's finalizer could not be written; it is tried again with the next step.
    pub fn not_guarded(&mut self, name: &str) {
        self.guards_sent.remove(name);
        self.pools_changed = true;
    }

    /// A pool as it is now; `None`: it is gone.
    pub fn pool(&mut self, name: &str, spec: Option<AddressPoolSpec>) {
        let mut pool = spec.map(Pool::parse);
        let leaving = self.guards.get(name).is_some_and(|guard| guard.leaving);
        if let Some(pool) = pool.as_mut().filter(|_| leaving) {
            pool.draining = true;
        }
        if let Some(pool) = pool.as_mut().filter(|pool| pool.service.is_some()) {
            pool.set_addresses(self.balancers.addresses(name));
        }
        let old = self.pools.get(name);
        if old == pool.as_ref() {
            return;
        }
        let same_way = |new: &Pool| {
            old.is_some_and(|old| (&old.proxies, old.draining) == (&new.proxies, new.draining))
        };
        if !pool.as_ref().is_some_and(same_way) {
            self.touch_pool(name);
        }
        match pool {
            Some(pool) => {
                self.claims.set_capacity(name, pool.capacity);
                self.retired.remove(name);
                self.pools.insert(name.to_owned(), pool);
            }
            None => {
                let used = self.claims.usage(name).1 > 0;
                let gone = self.pools.remove(name).filter(|_| used);
                self.retired.extend(gone.map(|pool| (name.to_owned(), pool)));
                self.pool_statuses.remove(name);
            }
        }
        self.note_strays(name);
        self.sort_all_nodes();
        self.pools_changed = true;
        self.balancers.touch(name);
        self.web.touch_fronts();
        self.retry_for_pools();
    }

    /// A hub's Service of a pool as it is now; `None`: it is gone.
    pub fn balancer(&mut self, name: &str, balancer: Option<SeenBalancer>) {
        let pools = self.balancers.see(name, balancer);
        for name in pools {
            self.read_addresses(&name);
        }
        self.retry_for_pools();
    }

    /// Whether the hub's Services are of use is looked at again, in all pools.
    pub(super) fn touch_balancers(&mut self) {
        self.pools.keys().for_each(|name| self.balancers.touch(name));
    }

    /// The hub's Services as they shall be. One that is to go gives nobody its address any more.
    pub(super) fn write_balancers(&mut self, effects: &mut Effects) {
        let lookup = |pool: &str| self.pools.get(pool);
        let more = !self.later.is_empty() || !self.dirty.is_empty();
        effects.balancers = self.balancers.step(&lookup, &self.claims, more);
        let going = effects.balancers.iter().filter(|(_, balancer)| balancer.is_none());
        let pools: BTreeSet<_> =
            going.filter_map(|(name, _)| self.balancers.pool_of(name)).collect();
        for name in pools {
            self.read_addresses(&name);
        }
    }

    /// A pool has the addresses that its Services have.
    fn read_addresses(&mut self, name: &str) {
        if let Some(pool) = self.pools.get_mut(name).filter(|pool| pool.service.is_some()) {
            pool.set_addresses(self.balancers.addresses(name));
        }
        self.note_strays(name);
        self.pools_changed = true;
    }

    /// A pool has other addresses now.
    pub(super) fn note_strays(&mut self, name: &str) {
        self.strays.remove(name);
        let used: Vec<_> = self.claims.used(name).collect();
        for address in used {
            self.note_stray(name, address);
        }
    }

    /// A claim came, or went.
    pub(super) fn note_stray(&mut self, name: &str, address: IpAddr) {
        let Some(pool) = self.pools.get(name) else { return };
        let used = self.claims.on(address).next().is_some();
        let strays = self.strays.entry(name.to_owned()).or_default();
        if used && !pool.contains(address) {
            strays.insert(address);
        } else {
            strays.remove(&address);
        }
    }

    /// Routes with claims on a pool are looked at again.
    fn touch_pool(&mut self, name: &str) {
        let used: Vec<_> = self.claims.used(name).collect();
        let on = used.iter().flat_map(|ip| self.claims.on(*ip).filter_map(Claim::route));
        let seated = used.iter().flat_map(|ip| self.web.seated(*ip));
        let routes: BTreeSet<_> = on.chain(seated).cloned().collect();
        for id in routes {
            self.touch(&id);
        }
    }

    /// A hub's Service could not be written; it is tried again with the next step.
    pub fn balancer_not_written(&mut self, name: &str) {
        self.balancers.not_written(name);
        if let Some(pool) = self.balancers.pool_of(name) {
            // One that was not given back may be had.
            self.read_addresses(&pool);
            self.retry_for_pools();
        }
    }

    /// A pool's status could not be written; it is tried again with the next step.
    pub fn pool_not_reported(&mut self, name: &str) {
        self.pool_statuses.remove(name);
        self.pools_changed = true;
    }
}
