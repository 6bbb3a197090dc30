//! Which address a Route gets. An incumbent never moves; a Route gets all of its ports and families, or
//! none; a refusal names the port and the pool, never another tenant's object.
//!
//! A decision costs the logarithm of the number of claims: [`Claims`] knows what is free.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fairlead_api::claim::ClaimKey;
use fairlead_api::condition::{Reason, Verdict};
use fairlead_api::route::{IpFamily, Protocol};
use fairlead_api::{RouteId, Sharing, Uid};

use crate::claims::{Claim, Claims, Holder, Leaving};
use crate::model::{Listener, Tenant, Wish};
use crate::pool::Pool;
use crate::usage::Usage;

mod ports;
mod refuse;
mod search;
mod share;

use ports::nowhere;
use refuse::{address_held, group_conflict, taken};

/// What a Route holds, or what it lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allocation {
    /// It holds all it needs; `surplus` may go.
    Held {
        /// Where.
        place: Place,
        /// Claims that it needs no more.
        surplus: Vec<ClaimKey>,
    },
    /// It needs these claims, all or none.
    Claim(Vec<Claim>),
    /// Something that it can have is being claimed, or given back: it looks again after that. `reclaim`:
    /// all the ports that it is to have there. Those that its tenant let go are given back now, and until then nobody
    /// else gets any of them.
    Wait {
        /// In the order of its listeners.
        reclaim: Vec<ClaimKey>,
    },
    /// It needs one more address of a pool that gets them from the hub's own load balancer.
    Open {
        /// The pool.
        pool: Box<str>,
        /// Of this family; `None`: of any.
        family: Option<IpFamily>,
    },
}

/// Where a Route is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// One of each family.
    pub addresses: Vec<IpAddr>,
    /// The ports of the wish's listeners, in order.
    pub ports: Vec<u16>,
}

/// Who asks, for what, and what there is.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Who.
    pub route: &'a RouteId,
    /// Its `metadata.uid`.
    pub uid: &'a Uid,
    /// What it wants.
    pub wish: &'a Wish,
    /// Layer 7: the address at which it is served already. It holds no claim of its own, since its
    /// ports are shared.
    pub seat: Option<IpAddr>,
    /// Claims of the oldest other Route of its group that has any.
    pub group: &'a [(IpAddr, Box<str>)],
    /// Whose it is.
    pub tenant: &'a Tenant,
    /// All pools.
    pub pools: &'a BTreeMap<String, Pool>,
    /// All claims.
    pub claims: &'a Claims,
    /// Addresses on which the tenant is already, where those come before all others.
    pub own_first: Option<&'a Usage>,
}

/// A pool by name.
type Named<'a> = (&'a str, &'a Pool);

/// An address that a Route has, or can have.
#[derive(Debug, Clone, Copy)]
struct Spot<'a> {
    address: IpAddr,
    pool: &'a str,
}

/// How a search ended.
enum Found<'a> {
    Spot(Spot<'a>),
    Wait(Vec<ClaimKey>),
    Open(&'a str),
}

/// Decides for one Route.
///
/// # Errors
/// A verdict on `Accepted`: why it gets nothing, and the way out.
pub fn allocate(ask: Ask<'_>) -> Result<Allocation, Verdict> {
    if ask.wish.is_http() { ask.sit() } else { ask.settle() }
}

/// What a Route would get once the hub has the address that it needs, and perhaps one of the other family: one that is of
/// no use is not asked for, since it would be given back, and asked for again. `None`: it needs none.
///
/// # Errors
/// A verdict on `Accepted`: why it would get nothing.
pub fn foresee(ask: Ask<'_>, found: &Allocation) -> Result<Option<Allocation>, Verdict> {
    let Allocation::Open { pool, family } = found else { return Ok(None) };
    let mut pools = ask.pools.clone();
    let Some(more) = pools.get_mut(&**pool) else { return Ok(None) };
    let address = nowhere(more, *family);
    if more.contains(address) {
        return Ok(None);
    }
    more.add_address(address);
    let ask = Ask { pools: &pools, ..ask };
    let then = allocate(ask)?;
    let last = foresee(ask, &then)?;
    Ok(Some(last.unwrap_or(then)))
}

impl<'a> Ask<'a> {
    /// A Route of layer 4: an address of each family, the same ports on all of them.
    fn settle(self) -> Result<Allocation, Verdict> {
        let candidates = self.candidates();
        let ports = self.given_ports();
        let mut spots: Vec<Spot<'a>> = Vec::with_capacity(2);
        for family in self.families(&candidates)? {
            // The second family of those who only prefer it.
            let optional = self.wish.prefer_dual_stack && !spots.is_empty();
            match self.spot(family, &ports, &candidates) {
                Ok(Found::Spot(spot)) => spots.push(spot),
                Ok(Found::Wait(mut reclaim)) => {
                    reclaim.extend(self.free_at(&spots, &ports));
                    return Ok(Allocation::Wait { reclaim });
                }
                Ok(Found::Open(_)) | Err(_) if optional => {}
                Ok(Found::Open(pool)) => {
                    return Ok(Allocation::Open { pool: pool.into(), family });
                }
                Err(verdict) => return Err(verdict),
            }
        }
        let ports = self.fill_ports(&ports, &spots)?;
        self.conclude(&spots, ports)
    }

    /// Ports that it could claim at once, and that are kept for it until those of its other family are free, too.
    fn free_at(self, spots: &[Spot<'_>], ports: &[Option<u16>]) -> Vec<ClaimKey> {
        let mut keys = Vec::new();
        for spot in spots {
            let wanted = self.wish.listeners.iter().zip(ports);
            keys.extend(wanted.filter_map(|(one, port)| Some(key(spot.address, one, (*port)?))));
        }
        keys.retain(|key| self.claims.get(key).is_none());
        keys
    }

    /// What is missing of these addresses, or what is too much.
    fn conclude(self, spots: &[Spot<'_>], ports: Vec<u16>) -> Result<Allocation, Verdict> {
        let mut needed = Vec::with_capacity(ports.len() * 2);
        let mut missing = Vec::new();
        for spot in spots {
            let mut fresh = Vec::new();
            for (listener, port) in self.wish.listeners.iter().zip(&ports) {
                let key = key(spot.address, listener, *port);
                needed.push(key);
                if !self.holds(&key) {
                    fresh.push((listener, key));
                }
            }
            self.admit(*spot, &fresh)?;
            missing.extend(self.claims_for(*spot, &fresh, self.as_holder(), &missing)?);
        }
        if !missing.is_empty() {
            return Ok(Allocation::Claim(missing));
        }
        let mine: Vec<&Claim> = self.mine().collect();
        let targets: Vec<ClaimKey> = mine
            .iter()
            .filter(|claim| needed.contains(&claim.key))
            .filter_map(|claim| claim.target_key())
            .collect();
        let surplus = mine.iter().map(|claim| claim.key);
        let surplus = surplus.filter(|key| !needed.contains(key) && !targets.contains(key));
        let addresses = spots.iter().map(|spot| spot.address).collect();
        Ok(Allocation::Held { place: Place { addresses, ports }, surplus: surplus.collect() })
    }

    /// Whether an incumbent may have more ports on its address.
    fn admit(self, spot: Spot<'_>, fresh: &[(&Listener, ClaimKey)]) -> Result<(), Verdict> {
        let incumbent = self.mine().any(|claim| claim.key.address == spot.address);
        if !incumbent {
            // Whoever is new was looked at when the address was chosen.
            return Ok(());
        }
        let pool = self.pools.get(spot.pool);
        for (_, key) in fresh {
            if pool.is_some_and(|pool| pool.draining) {
                return Err(taken(
                    key,
                    "is of a pool that is being drained; the ports held so far stay",
                ));
            }
            if self.claims.get(key).is_some() || self.claims.is_promised_away(self.route, key) {
                return Err(taken(key, "is taken; the ports held so far stay"));
            }
            if pool.is_some_and(|pool| pool.reserved.contains(&key.port)) {
                return Err(taken(key, "is reserved by the pool; the ports held so far stay"));
            }
        }
        let count = u32::try_from(fresh.len()).unwrap_or(u32::MAX);
        let room = pool.is_none_or(|pool| {
            self.claims.has_room(self.route, spot.address, count, pool.capacity)
        });
        match fresh.first() {
            Some((_, key)) if !room => Err(taken(
                key,
                "is one more than the pool gives out on one address; the ports held so far stay",
            )),
            _ => Ok(()),
        }
    }

    /// The address of a family that the Route has, or can have.
    fn spot(
        self,
        family: Option<IpFamily>,
        ports: &[Option<u16>],
        candidates: &Result<Vec<Named<'a>>, Verdict>,
    ) -> Result<Found<'a>, Verdict> {
        let of_family = |ip: &IpAddr| IpFamily::fits(family, *ip);
        let asked = self.wish.ips.iter().copied().find(of_family);
        let held = self.mine().find(|claim| match asked {
            Some(ip) => claim.key.address == ip,
            None => of_family(&claim.key.address),
        });
        if let Some(claim) = held {
            self.may_stay(claim, candidates)?;
            return Ok(Found::Spot(Spot { address: claim.key.address, pool: &claim.pool }));
        }
        let candidates = candidates.as_ref().map_err(Clone::clone)?;
        let grouped = self.group.iter().find(|(ip, _)| of_family(ip));
        match (asked, grouped) {
            (Some(ip), Some((other, _))) if ip != *other => {
                Err(group_conflict(self.wish, other, &format!("not at {ip}")))
            }
            (None, Some((ip, pool))) => self.join_group(*ip, pool, ports, candidates),
            (Some(ip), _) => self.take(ip, ports, candidates),
            (None, None) => self.search(family, ports, candidates),
        }
    }

    /// An incumbent never moves, but for another address that it asks for by name: a wish for another
    /// pool, group or neighbours is told, and nothing is done about it.
    fn may_stay(
        self,
        held: &Claim,
        candidates: &Result<Vec<Named<'a>>, Verdict>,
    ) -> Result<(), Verdict> {
        let address = held.key.address;
        if let Some(pool) = self.wish.pool.as_ref().filter(|pool| ***pool != *held.pool) {
            // Who is told how to move must be able to.
            candidates.as_ref().map_err(Clone::clone)?;
            return Err(address_held(address, &held.pool, &format!("pool {pool:?}")));
        }
        if let Some((other, _)) = self
            .group
            .iter()
            .find(|(ip, _)| IpFamily::of(*ip) == IpFamily::of(address) && *ip != address)
        {
            let group = self.wish.group.as_deref().unwrap_or_default();
            let what = format!("group {group:?}, which is at {other},");
            return Err(address_held(address, &held.pool, &what));
        }
        if self.wish.alone && !held.alone {
            return Err(address_held(address, &held.pool, "an address of its own"));
        }
        Ok(())
    }

    /// The families that are wanted. `None`: any one.
    fn families(
        self,
        candidates: &Result<Vec<Named<'a>>, Verdict>,
    ) -> Result<Vec<Option<IpFamily>>, Verdict> {
        let Wish { families, ips, prefer_dual_stack, .. } = self.wish;
        if families.is_empty() {
            if ips.len() > 1 {
                return Ok(ips.iter().map(|ip| Some(IpFamily::of(*ip))).collect());
            }
            return Ok(vec![None]);
        }
        if let Some(ip) = ips.iter().find(|ip| !families.contains(&IpFamily::of(**ip))) {
            let family = families[0];
            let message = format!(
                "address {ip} was asked for, and the Service is {family} only; ask for an {family} \
                 address, or set spec.ipFamilies or the annotation fairlead.dev/ip-families"
            );
            return Err(Verdict::no(Reason::Invalid, message));
        }
        let possible = |family: IpFamily| {
            let held = self.mine().any(|claim| IpFamily::of(claim.key.address) == family);
            let pools = candidates.as_ref().is_ok_and(|all| all.iter().any(|(_, p)| p.has(family)));
            held || pools
        };
        let wanted = families.iter().enumerate();
        let kept = wanted.filter(|(n, family)| *n == 0 || !prefer_dual_stack || possible(**family));
        Ok(kept.map(|(_, family)| Some(*family)).collect())
    }

    /// The pools that come into question, in order.
    fn candidates(self) -> Result<Vec<Named<'a>>, Verdict> {
        if let Some(name) = &self.wish.pool {
            let known = self.tenant.pools.contains(name).then(|| self.pools.get(name)).flatten();
            let pool = known.ok_or_else(|| {
                let usable = self.tenant.pools.join(", ");
                let message = format!(
                    "pool {name:?} does not exist or is not this tenant's; it may use: {usable}"
                );
                Verdict::no(Reason::UnknownPool, message)
            })?;
            return Ok(vec![(name, pool)]);
        }
        let named = |name: &'a String| Some((name.as_str(), self.pools.get(name)?));
        let known: Vec<_> = self.tenant.pools.iter().filter_map(named).collect();
        if known.is_empty() {
            let message = "the tenant may use no pool that exists; a platform administrator sets \
                           Tenant.spec.pools and creates the AddressPool";
            return Err(Verdict::no(Reason::NoPool, message));
        }
        Ok(known)
    }

    /// The claims of the Route's own addresses, less what it let go.
    fn mine(self) -> impl Iterator<Item = &'a Claim> {
        let here = move |claim: &&Claim| {
            !claim.is_target()
                && is_held_by(&claim.holder, self.route, self.uid)
                && self.claims.leaving(&claim.key).is_none()
        };
        self.claims.of(self.route).filter(here)
    }

    fn holds(self, key: &ClaimKey) -> bool {
        let claim = self.claims.get(key);
        claim.is_some_and(|claim| is_held_by(&claim.holder, self.route, self.uid))
            && self.claims.leaving(key) != Some(Leaving::Releasing)
    }

    fn as_holder(self) -> Holder {
        Holder::Route { route: self.route.clone(), uid: self.uid.clone() }
    }

    /// With whom the Route may share an address: by the pool, or by its own wish.
    fn sharing(self, pool: &Pool) -> Sharing {
        if self.wish.alone { Sharing::Exclusive } else { pool.sharing }
    }

    /// The pools of which something can be had.
    fn open_pools<'b>(self, pools: &'b [Named<'a>]) -> impl Iterator<Item = Named<'a>> + 'b
    where
        'a: 'b,
    {
        // Reserved on every address: no need to ask each.
        let open = move |(_, pool): &Named<'a>| !pool.draining && !self.is_reserved(pool);
        pools.iter().copied().filter(open)
    }

    /// The tenant's own addresses in these pools, where those come first.
    fn own<'b>(
        self,
        pools: &'b [Named<'a>],
        family: Option<IpFamily>,
    ) -> impl Iterator<Item = (Spot<'a>, &'a Pool)> + 'b
    where
        'a: 'b,
    {
        self.own_first.into_iter().flat_map(move |own| {
            self.open_pools(pools).flat_map(move |(name, pool)| {
                let here = pool.ranges(family).flat_map(move |range| own.within(range));
                here.map(move |address| (Spot { address, pool: name }, pool))
            })
        })
    }

    /// Somebody is on the address with whom this Route may not be: by the pool, by its own wish, or by
    /// the other's.
    fn is_strange(self, address: IpAddr, pool: &Pool) -> bool {
        self.claims.is_closed_to(self.route, address)
            || match self.sharing(pool) {
                Sharing::Exclusive => !self.claims.is_alone(self.route, address),
                Sharing::Tenant => !self.claims.is_within(&self.route.tenant, address),
                Sharing::Any => false,
            }
    }
}

fn key(address: IpAddr, listener: &Listener, port: u16) -> ClaimKey {
    ClaimKey { address, protocol: listener.protocol.transport(), port }
}

fn is_held_by(holder: &Holder, route: &RouteId, uid: &Uid) -> bool {
    matches!(holder, Holder::Route { route: r, uid: u } if r == route && u == uid)
}

/// Whether a Route may use a listener of an address: it holds the port, or shares it.
pub fn usable(
    claims: &Claims,
    route: &RouteId,
    uid: &Uid,
    address: IpAddr,
    listener: &Listener,
) -> bool {
    let key = listener.key(address);
    claims.leaving(&key) != Some(Leaving::Releasing)
        && claims.get(&key).is_some_and(|claim| {
            !claim.object.is_empty() && may_use(&claim.holder, route, uid, listener.protocol)
        })
}

/// Whether a claimed port is the Route's own, or shared with it.
fn may_use(holder: &Holder, route: &RouteId, uid: &Uid, wanted: Protocol) -> bool {
    match holder {
        Holder::Route { .. } => is_held_by(holder, route, uid),
        Holder::Shared { protocol, tenant } => {
            *protocol == wanted && tenant.as_ref().is_none_or(|tenant| *tenant == route.tenant)
        }
    }
}
