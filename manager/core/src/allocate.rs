//! Which address a Route gets. An incumbent never moves; a Route gets all of its ports on one
//! address, or none; a refusal names the port and the pool, never another tenant's object.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use fairlead_api::claim::ClaimKey;
use fairlead_api::condition::{Reason, Verdict};
use fairlead_api::route::Protocol;
use fairlead_api::{RouteId, Sharing, TenantId};

use crate::claims::{Claim, Claims, Holder};
use crate::model::{Listener, Tenant, Wish};
use crate::pool::Pool;

/// What a Route holds, or what it lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allocation {
    /// It holds all it needs on this address; `surplus` may go.
    Held {
        /// The address.
        address: IpAddr,
        /// Claims that it needs no more.
        surplus: Vec<ClaimKey>,
    },
    /// It needs these claims, all or none.
    Claim(Vec<Claim>),
    /// A port that it can share is being claimed, or given back: it looks again after that.
    Wait,
}

/// What is held, less what is being given back.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    /// All claims.
    pub claims: &'a Claims,
    /// Claims whose deletion is under way: theirs no more, and nobody else's yet.
    pub releasing: &'a HashSet<ClaimKey>,
}

impl Held<'_> {
    /// Whether a Route holds a key, and will.
    pub fn by(self, route: &RouteId, uid: &str, key: &ClaimKey) -> bool {
        let claim = self.claims.get(key).filter(|_| !self.releasing.contains(key));
        claim.is_some_and(|claim| is_held_by(&claim.holder, route, uid))
    }

    /// Whether a Route may use a listener of an address: it holds the port, or shares it.
    pub fn usable(self, route: &RouteId, uid: &str, address: IpAddr, listener: &Listener) -> bool {
        let key = listener.key(address);
        let claim = self.claims.get(&key).filter(|_| !self.releasing.contains(&key));
        claim.is_some_and(|claim| {
            !claim.object.is_empty() && may_use(&claim.holder, route, uid, listener)
        })
    }
}

fn is_held_by(holder: &Holder, route: &RouteId, uid: &str) -> bool {
    matches!(holder, Holder::Route { route: r, uid: u } if r == route && **u == *uid)
}

/// Whether a claimed port is the Route's own, or shared with it.
fn may_use(holder: &Holder, route: &RouteId, uid: &str, listener: &Listener) -> bool {
    is_held_by(holder, route, uid) || is_shared_with(holder, listener.protocol, &route.tenant)
}

/// A port that is shared by host names, and with this tenant.
fn is_shared_with(holder: &Holder, wanted: Protocol, with: &TenantId) -> bool {
    match holder {
        Holder::Shared { protocol, tenant } => {
            *protocol == wanted && tenant.as_ref().is_none_or(|tenant| tenant == with)
        }
        Holder::Route { .. } => false,
    }
}

/// Decides for one Route. `seat`: the address at which a Route of layer 7 is served already; it holds
/// no claim of its own, since its ports are shared.
///
/// # Errors
/// A verdict on `Accepted`: why it gets nothing, and the way out.
pub fn allocate(
    route: &RouteId,
    uid: &str,
    wish: &Wish,
    seat: Option<IpAddr>,
    tenant: &Tenant,
    pools: &BTreeMap<String, Pool>,
    held: Held<'_>,
) -> Result<Allocation, Verdict> {
    let seeker = Seeker { route, uid, wish, held, claims: held.claims };
    if wish.is_http() {
        return seeker.sit(seat, &candidates(wish, tenant, pools)?);
    }
    if let Some(held) = seeker.incumbent() {
        return seeker.stay(held, pools);
    }
    let candidates = candidates(wish, tenant, pools)?;
    match wish.ip {
        Some(ip) => seeker.take(ip, &candidates),
        None => seeker.search(&candidates),
    }
}

/// The pools that come into question, in order.
fn candidates<'a>(
    wish: &'a Wish,
    tenant: &'a Tenant,
    pools: &'a BTreeMap<String, Pool>,
) -> Result<Vec<(&'a str, &'a Pool)>, Verdict> {
    if let Some(name) = &wish.pool {
        let known = tenant.pools.contains(name).then(|| pools.get(name)).flatten();
        let pool = known.ok_or_else(|| {
            let usable = tenant.pools.join(", ");
            let message = format!(
                "pool {name:?} does not exist or is not this tenant's; it may use: {usable}"
            );
            Verdict::no(Reason::UnknownPool, message)
        })?;
        return Ok(vec![(name, pool)]);
    }
    let known: Vec<_> =
        tenant.pools.iter().filter_map(|name| Some((name.as_str(), pools.get(name)?))).collect();
    if known.is_empty() {
        let message = "the tenant may use no pool that exists; a platform administrator sets \
                       Tenant.spec.pools and creates the AddressPool";
        return Err(Verdict::no(Reason::NoPool, message));
    }
    Ok(known)
}

struct Seeker<'a> {
    route: &'a RouteId,
    uid: &'a str,
    wish: &'a Wish,
    held: Held<'a>,
    claims: &'a Claims,
}

impl Seeker<'_> {
    fn keys(&self, address: IpAddr) -> impl Iterator<Item = ClaimKey> {
        self.wish.listeners.iter().map(move |listener| listener.key(address))
    }

    /// A Route of layer 7: an incumbent stays, another one goes to the first address where all its
    /// ports are shared, or can be.
    fn sit(&self, seat: Option<IpAddr>, pools: &[(&str, &Pool)]) -> Result<Allocation, Verdict> {
        if let Some(ip) = self.wish.ip {
            let (name, pool) = find(ip, pools)?;
            return self.join(ip, name, pool);
        }
        if let Some(address) = seat {
            let usable = |one| self.held.usable(self.route, self.uid, address, one);
            // Whatever became of the pool: an incumbent never moves.
            if self.wish.listeners.iter().all(usable) {
                return Ok(Allocation::Held { address, surplus: Vec::new() });
            }
            if let Ok((name, pool)) = find(address, pools) {
                return self.join(address, name, pool);
            }
        }
        for (name, pool) in pools {
            if self.is_reserved(pool) {
                continue;
            }
            let found = pool.addresses().find_map(|ip| self.join(ip, name, pool).ok());
            if let Some(allocation) = found {
                return Ok(allocation);
            }
        }
        Err(self.exhausted(pools))
    }

    /// What it takes to share an address.
    fn join(&self, address: IpAddr, name: &str, pool: &Pool) -> Result<Allocation, Verdict> {
        let (mut missing, mut wait) = (Vec::new(), false);
        for listener in &self.wish.listeners {
            let key = listener.key(address);
            match self.claims.get(&key) {
                _ if self.held.usable(self.route, self.uid, address, listener) => {}
                None if pool.reserved.contains(&key.port) => {
                    return Err(taken(&key, "is reserved by the pool"));
                }
                None => missing.push(listener),
                Some(claim) if may_use(&claim.holder, self.route, self.uid, listener) => {
                    wait = true;
                }
                Some(_) => return Err(taken(&key, "is taken")),
            }
        }
        if wait {
            return Ok(Allocation::Wait);
        }
        if missing.is_empty() {
            return Ok(Allocation::Held { address, surplus: Vec::new() });
        }
        if self.is_strange(address, pool) {
            let key = missing[0].key(address);
            return Err(taken(&key, "is on an address that the pool does not let you share"));
        }
        let tenant = || Some(self.route.tenant.clone());
        let holder = |listener: &Listener| match pool.sharing {
            Sharing::Exclusive => self.as_holder(),
            Sharing::Tenant => Holder::Shared { protocol: listener.protocol, tenant: tenant() },
            Sharing::Any => Holder::Shared { protocol: listener.protocol, tenant: None },
        };
        let claims = missing.into_iter().map(|listener| Claim {
            key: listener.key(address),
            pool: name.into(),
            holder: holder(listener),
            object: Box::default(),
        });
        Ok(Allocation::Claim(claims.collect()))
    }

    fn as_holder(&self) -> Holder {
        Holder::Route { route: self.route.clone(), uid: self.uid.into() }
    }

    /// Somebody is on the address with whom the pool does not let this Route be.
    fn is_strange(&self, address: IpAddr, pool: &Pool) -> bool {
        self.claims.on(address).any(|claim| match pool.sharing {
            Sharing::Exclusive => claim.route() != Some(self.route),
            Sharing::Tenant => claim.holder.is_strange(&self.route.tenant),
            Sharing::Any => false,
        })
    }

    fn is_reserved(&self, pool: &Pool) -> bool {
        self.wish.listeners.iter().any(|listener| pool.reserved.contains(&listener.port))
    }

    /// The address and pool that the Route holds already. Another address that it asks for by name
    /// is the one reason to look elsewhere.
    fn incumbent(&self) -> Option<&Claim> {
        let mine = |claim: &&Claim| is_held_by(&claim.holder, self.route, self.uid);
        let mut mine = self.claims.of(self.route).filter(mine);
        match self.wish.ip {
            Some(ip) => mine.find(|claim| claim.key.address == ip),
            None => mine.next(),
        }
    }

    fn stay(&self, held: &Claim, pools: &BTreeMap<String, Pool>) -> Result<Allocation, Verdict> {
        let address = held.key.address;
        let sharing = pools.get(&*held.pool);
        let missing: Vec<_> = self.keys(address).filter(|key| !self.mine(key)).collect();
        if missing.is_empty() {
            let needed: Vec<_> = self.keys(address).collect();
            let mine = self.claims.of(self.route).map(|claim| claim.key);
            let surplus = mine.filter(|key| !needed.contains(key)).collect();
            return Ok(Allocation::Held { address, surplus });
        }
        if let Some(key) = missing.iter().find(|key| self.claims.get(key).is_some()) {
            return Err(taken(key, "is taken; the ports held so far stay"));
        }
        if let Some(key) =
            missing.iter().find(|k| sharing.is_some_and(|p| p.reserved.contains(&k.port)))
        {
            return Err(taken(key, "is reserved by the pool; the ports held so far stay"));
        }
        Ok(self.claim(missing, &held.pool))
    }

    fn mine(&self, key: &ClaimKey) -> bool {
        self.held.by(self.route, self.uid, key)
    }

    /// One address: that or an error.
    fn take(&self, ip: IpAddr, pools: &[(&str, &Pool)]) -> Result<Allocation, Verdict> {
        let (name, pool) = find(ip, pools)?;
        match self.obstacle(ip, pool) {
            Some((key, why)) => Err(taken(&key, why)),
            None => Ok(self.claim(self.keys(ip), name)),
        }
    }

    /// The first address, in the order of pools and of addresses, that has all ports free.
    fn search(&self, pools: &[(&str, &Pool)]) -> Result<Allocation, Verdict> {
        for (name, pool) in pools {
            // Reserved on every address: no need to ask each.
            if self.is_reserved(pool) {
                continue;
            }
            if let Some(address) = pool.addresses().find(|ip| self.obstacle(*ip, pool).is_none()) {
                return Ok(self.claim(self.keys(address), name));
            }
        }
        Err(self.exhausted(pools))
    }

    fn exhausted(&self, pools: &[(&str, &Pool)]) -> Verdict {
        let names: Vec<_> = pools.iter().map(|(name, _)| format!("{name:?}")).collect();
        let ports: Vec<_> =
            self.wish.listeners.iter().map(|l| format!("{}/{}", l.port, l.protocol)).collect();
        let message = format!(
            "no address of pool {} has port {} free; ask for another port, or for more addresses",
            names.join(", "),
            ports.join(" and "),
        );
        Verdict::no(Reason::PoolExhausted, message)
    }

    /// Why the Route cannot have the address.
    fn obstacle(&self, address: IpAddr, pool: &Pool) -> Option<(ClaimKey, &'static str)> {
        let mut keys = self.keys(address);
        let first = keys.next()?;
        let mut all = std::iter::once(first).chain(keys);
        if self.is_strange(address, pool) {
            return Some((first, "is on an address that the pool does not let you share"));
        }
        all.find_map(|key| {
            if pool.reserved.contains(&key.port) {
                return Some((key, "is reserved by the pool"));
            }
            self.claims.get(&key).map(|_| (key, "is taken"))
        })
    }

    fn claim(&self, keys: impl IntoIterator<Item = ClaimKey>, pool: &str) -> Allocation {
        let claims = keys.into_iter().map(|key| Claim {
            key,
            pool: pool.into(),
            holder: self.as_holder(),
            object: Box::default(),
        });
        Allocation::Claim(claims.collect())
    }
}

/// The pool that has an address.
fn find<'a>(ip: IpAddr, pools: &[(&'a str, &'a Pool)]) -> Result<(&'a str, &'a Pool), Verdict> {
    pools.iter().find(|(_, pool)| pool.contains(ip)).copied().ok_or_else(|| {
        let names: Vec<_> = pools.iter().map(|(name, _)| *name).collect();
        let message = format!("address {ip} is in none of the pools: {}", names.join(", "));
        Verdict::no(Reason::AddressNotInPool, message)
    })
}

fn taken(key: &ClaimKey, why: &str) -> Verdict {
    let ClaimKey { address, protocol, port } = key;
    let message = format!("port {port}/{protocol} of {address} {why}; use another port or address");
    Verdict::no(Reason::PortTaken, message)
}
