//! Two managers that both believe to lead, and one apiserver: creating a claim's object is the lock.

use std::collections::VecDeque;

use super::*;
use crate::versions::Versions;

/// What a manager asked for, and has no answer to yet.
#[derive(Debug)]
enum Asked {
    Claim(RouteId, Vec<Claim>),
    Release(ClaimKey, Uid),
}

/// What a manager is yet to see; claims with their versions.
#[derive(Debug, Clone)]
enum Watched {
    Claim(Claim, u64),
    Gone(ClaimKey, Uid, u64),
    Route(RouteId, Meta, Box<RouteSpec>),
    RouteGone(RouteId),
}

#[derive(Default)]
struct Manager {
    engine: Engine,
    asked: VecDeque<Asked>,
    watched: VecDeque<Watched>,
    versions: Versions<ClaimKey>,
}

#[derive(Default)]
struct Race {
    managers: Vec<Manager>,
    claims: BTreeMap<ClaimKey, Claim>,
    routes: BTreeMap<RouteId, (Meta, RouteSpec)>,
    count: i64,
}

const POOL: &str = "10.9.0.1-10.9.0.2";

/// Objects are numbered as they are made.
fn version(object: &Uid) -> u64 {
    object.to_string()[1..].parse().unwrap()
}

impl Race {
    fn new() -> Self {
        let mut race = Self::default();
        race.managers = (0..2).map(|_| race.fresh()).collect();
        race
    }

    /// A manager that has read everything.
    fn fresh(&self) -> Manager {
        let mut engine = Engine::default();
        for name in ["blue", "red"] {
            let tenant = TenantSpec { pools: vec!["public".into()], ..TenantSpec::default() };
            engine.tenant(&name.parse().unwrap(), Some(tenant.into()));
        }
        let addresses = vec![POOL.to_owned()];
        let pool =
            AddressPoolSpec { addresses, sharing: Sharing::Any, ..AddressPoolSpec::default() };
        engine.pool("public", Some(pool));
        self.claims.values().for_each(|claim| engine.claim(claim.clone()));
        for (id, (meta, spec)) in &self.routes {
            engine.route(id.clone(), meta.clone(), spec.clone(), None);
        }
        engine.lead(true);
        engine.complete();
        let mut versions = Versions::default();
        self.claims.values().for_each(|claim| versions.note(&claim.key, version(&claim.object)));
        Manager { engine, versions, ..Manager::default() }
    }

    fn tell(&mut self, watched: &Watched) {
        self.managers.iter_mut().for_each(|one| one.watched.push_back(watched.clone()));
    }

    fn apply(&mut self, route: &str, ports: &[u16]) {
        self.count += 1;
        let id = id(route);
        let (uid, created) = match self.routes.get(&id) {
            Some((meta, _)) => (meta.uid.clone(), meta.created),
            None => (format!("u{}", self.count).into(), self.count),
        };
        let meta = Meta { uid, created, generation: self.count };
        let spec = tcp(route, ports);
        self.routes.insert(id.clone(), (meta.clone(), spec.clone()));
        self.tell(&Watched::Route(id, meta, Box::new(spec)));
    }

    fn delete(&mut self, route: &str) {
        if self.routes.remove(&id(route)).is_some() {
            self.tell(&Watched::RouteGone(id(route)));
        }
    }

    /// A manager decides.
    fn step(&mut self, who: usize) {
        let manager = &mut self.managers[who];
        let Effects { claim, release, .. } = manager.engine.step(&now());
        manager.asked.extend(claim.into_iter().map(|(id, claims)| Asked::Claim(id, claims)));
        manager.asked.extend(release.into_iter().map(|(key, uid)| Asked::Release(key, uid)));
    }

    /// The apiserver answers the oldest thing that a manager asked for, or dies half way.
    fn answer(&mut self, who: usize, dies_after: Option<usize>) {
        let Some(asked) = self.managers[who].asked.pop_front() else { return };
        match asked {
            Asked::Claim(route, claims) => self.create(who, &route, claims, dies_after),
            Asked::Release(key, uid) => {
                if self.claims.get(&key).is_some_and(|there| there.object == uid) {
                    self.claims.remove(&key);
                    self.tell(&Watched::Gone(key, uid.clone(), version(&uid)));
                }
                self.managers[who].versions.gone(&key, u64::MAX, 0);
                self.managers[who].engine.released(&key, &uid);
            }
        }
    }

    fn create(&mut self, who: usize, route: &RouteId, mut claims: Vec<Claim>, dies: Option<usize>) {
        let mut made = Vec::new();
        for (index, claim) in claims.iter_mut().enumerate() {
            if dies == Some(index) {
                self.managers[who] = self.fresh();
                return;
            }
            match self.claims.get(&claim.key) {
                Some(there) if there.holder == claim.holder => {
                    claim.object = there.object.clone();
                    self.managers[who].versions.note(&claim.key, version(&there.object));
                }
                Some(there) => {
                    let there = there.clone();
                    for claim in made {
                        let claim: &Claim = &claim;
                        self.claims.remove(&claim.key);
                        let version = version(&claim.object);
                        self.tell(&Watched::Gone(claim.key, claim.object.clone(), version));
                        self.managers[who].versions.gone(&claim.key, u64::MAX, 0);
                    }
                    self.managers[who].versions.note(&there.key, version(&there.object));
                    let engine = &mut self.managers[who].engine;
                    engine.claim(there);
                    return engine.claimed(route, None);
                }
                None => {
                    self.count += 1;
                    claim.object = format!("o{}", self.count).into();
                    self.claims.insert(claim.key, claim.clone());
                    self.tell(&Watched::Claim(claim.clone(), version(&claim.object)));
                    self.managers[who].versions.note(&claim.key, version(&claim.object));
                    made.push(claim.clone());
                }
            }
        }
        self.managers[who].engine.claimed(route, Some(claims));
    }

    fn watch(&mut self, who: usize) {
        let manager = &mut self.managers[who];
        let engine = &mut manager.engine;
        match manager.watched.pop_front() {
            Some(Watched::Claim(claim, version)) => {
                let is_news = manager.versions.is_news(&claim.key, version);
                is_news.then(|| engine.claim(claim));
            }
            Some(Watched::Gone(key, uid, version)) => {
                manager.versions.gone(&key, version, 0);
                engine.released(&key, &uid);
            }
            Some(Watched::Route(id, meta, spec)) => engine.route(id, meta, *spec, None),
            Some(Watched::RouteGone(id)) => engine.route_gone(&id),
            None => {}
        }
    }

    /// No address and port is served for two Routes by the same manager, nor without its claim.
    fn check(&self) {
        for manager in &self.managers {
            let mut served = BTreeSet::new();
            for entry in manager.engine.routes.values() {
                for key in entry.serving.iter().flat_map(Serving::keys) {
                    assert!(served.insert(key), "{key:?} is served for two");
                }
            }
        }
    }

    /// One of them loses the lease; the other brings everything to rest.
    fn settle(&mut self) {
        self.managers[1].engine.lead(false);
        for _ in 0..200 {
            self.step(0);
            let idle = self.managers[0].asked.is_empty()
                && self.managers[1].asked.is_empty()
                && self.managers.iter().all(|one| one.watched.is_empty());
            if idle {
                return;
            }
            for who in [1, 0] {
                while !self.managers[who].asked.is_empty() {
                    self.answer(who, None);
                }
                while !self.managers[who].watched.is_empty() {
                    self.watch(who);
                }
            }
        }
        panic!("they never come to rest");
    }
}

#[derive(Debug, Clone)]
enum Move {
    Apply(u8, Vec<u16>),
    Delete(u8),
    Step(usize),
    Answer(usize),
    Watch(usize),
    /// Dies in the middle of creating claims, after so many.
    Die(usize, usize),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let ports =
        prop::collection::btree_set(80..84_u16, 1..4).prop_map(|set| set.into_iter().collect());
    let one = prop_oneof![
        4 => (0..6_u8, ports).prop_map(|(route, ports)| Move::Apply(route, ports)),
        2 => (0..6_u8).prop_map(Move::Delete),
        6 => (0..2_usize).prop_map(Move::Step),
        6 => (0..2_usize).prop_map(Move::Answer),
        8 => (0..2_usize).prop_map(Move::Watch),
        1 => (0..2_usize, 0..3_usize).prop_map(|(who, after)| Move::Die(who, after)),
    ];
    prop::collection::vec(one, 0..120)
}

fn of(number: u8) -> String {
    format!("{}/r{number}", if number.is_multiple_of(2) { "blue" } else { "red" })
}

proptest! {
    /// Two managers race, and die at any line: no claim is held twice, none is lost, none leaks.
    #[test]
    fn two_managers_that_race_and_die_leave_every_claim_where_it_belongs(moves in moves()) {
        let mut race = Race::new();
        for one in moves {
            match one {
                Move::Apply(route, ports) => race.apply(&of(route), &ports),
                Move::Delete(route) => race.delete(&of(route)),
                Move::Step(who) => race.step(who),
                Move::Answer(who) => race.answer(who, None),
                Move::Watch(who) => race.watch(who),
                Move::Die(who, after) => race.answer(who, Some(after)),
            }
            race.check();
        }
        race.settle();
        race.check();
        let engine = &race.managers[0].engine;
        let mut needed = BTreeSet::new();
        for entry in engine.routes.values() {
            let Some(serving) = &entry.serving else { continue };
            for key in serving.keys() {
                prop_assert!(race.claims.contains_key(&key), "{key:?} is served and not claimed");
                needed.insert(key);
            }
        }
        let held: BTreeSet<_> = race.claims.keys().copied().collect();
        prop_assert_eq!(&held, &needed, "what is claimed is what is served");
        // Nobody waits for what is free.
        for entry in engine.routes.values().filter(|entry| entry.serving.is_none()) {
            let wish = entry.wish.as_ref().unwrap();
            for address in ["10.9.0.1", "10.9.0.2"] {
                let ip: IpAddr = address.parse().unwrap();
                let taken = wish.listeners.iter().any(|one| held.contains(&one.key(ip)));
                prop_assert!(taken, "{} fits on {address}", entry.source);
            }
        }
    }
}
