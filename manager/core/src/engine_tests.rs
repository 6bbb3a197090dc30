//! Scenarios: objects in, and what the fleet, the claims and the statuses look like after.

use fairlead_api::route::{
    AddressRequest, Backend as ApiBackend, IpFamily, Listener as ApiListener, NodePolicy,
    Nodes as ApiNodes, Protocol, RouteRule, SourceKind,
};
use fairlead_api::{AddressPoolSpec, Node, RouteName, Sharing, TenantSpec};
use fairlead_xds::{Event, Key, Outcome, ResourceType};
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;

use super::*;

/// The hub with an apiserver that persists at once, and Envoys that acknowledge all.
#[derive(Default)]
struct World {
    engine: Engine,
    served: BTreeMap<Key, u64>,
    statuses: BTreeMap<RouteId, RouteStatus>,
    pools: BTreeMap<String, AddressPoolStatus>,
    claims: BTreeMap<ClaimKey, Claim>,
    hosts: BTreeMap<HostKey, HostClaim>,
    node_sets: BTreeMap<TenantId, NodeSetStatus>,
    /// The Envoy refuses all routes that are new to it.
    refuse_new: bool,
    /// What the Envoy took.
    good: BTreeMap<Key, u64>,
    /// The hub's Services, and the addresses that its provider has left.
    balancers: BTreeMap<String, Balancer>,
    provider: Vec<IpAddr>,
    seconds: i64,
    generation: i64,
    objects: u32,
}

fn now() -> Time {
    Time(Timestamp::UNIX_EPOCH)
}

fn id(text: &str) -> RouteId {
    let (tenant, name) = text.split_once('/').unwrap();
    let name = RouteName::new(SourceKind::Service, "shop", name).unwrap();
    RouteId { tenant: tenant.parse().unwrap(), name }
}

/// A Service with these ports, each at a `NodePort` 30000 higher.
fn spec(name: &str, ports: &[(Protocol, u16)]) -> RouteSpec {
    let label = |(protocol, port): &(Protocol, u16)| format!("{protocol}-{port}").to_lowercase();
    let source = Source {
        kind: SourceKind::Service,
        namespace: "shop".into(),
        name: name.into(),
        uid: String::new(),
        created: 0,
    };
    RouteSpec {
        listeners: ports
            .iter()
            .map(|p| ApiListener { name: label(p), protocol: p.0, port: p.1 })
            .collect(),
        rules: ports.iter().map(|p| RouteRule { listener: label(p), backend: label(p) }).collect(),
        backends: ports.iter().map(|p| ApiBackend::new(label(p), 30_000 + p.1 % 2_768)).collect(),
        ..RouteSpec::new(source, "00")
    }
}

fn tcp(route: &str, ports: &[u16]) -> RouteSpec {
    let ports: Vec<_> = ports.iter().map(|port| (Protocol::Tcp, *port)).collect();
    spec(route.split_once('/').unwrap().1, &ports)
}

/// Asks for an address by name.
fn at(ip: &str) -> AddressRequest {
    AddressRequest { ips: vec![ip.into()], ..AddressRequest::default() }
}

impl World {
    /// Tenants blue and red share the pool `public` with these addresses; one Envoy is ready.
    fn new(addresses: &str, sharing: Sharing) -> Self {
        let mut world = Self::default();
        for name in ["blue", "red"] {
            let tenant = TenantSpec { pools: vec!["public".into()], ..TenantSpec::default() };
            world.engine.tenant(&name.parse().unwrap(), Some(tenant.into()));
            let net = u8::from(name == "red");
            world.nodes(name, &[&format!("10.0.{net}.1"), &format!("10.0.{net}.2")]);
        }
        world.pool(addresses, sharing);
        world.engine.envoy_ready(&"envoy-1".into(), true);
        world.engine.envoy_connected(&"envoy-1".into(), 1);
        world.engine.lead(true);
        world.engine.complete();
        world.settle();
        world
    }

    fn pool(&mut self, addresses: &str, sharing: Sharing) {
        let addresses = addresses.split(' ').map(str::to_owned).collect();
        let reserved_ports = vec![22];
        let spec =
            AddressPoolSpec { addresses, sharing, reserved_ports, ..AddressPoolSpec::default() };
        self.engine.pool("public", Some(spec));
    }

    fn nodes(&mut self, tenant: &str, addresses: &[&str]) {
        let node =
            |(n, ip): (usize, &&str)| Node { name: format!("n{n}"), addresses: vec![(*ip).into()] };
        let nodes = addresses.iter().enumerate().map(node).collect();
        let spec = NodeSetSpec { content_hash: String::new(), nodes };
        let tenant: TenantId = tenant.parse().unwrap();
        let seen = self.node_sets.get(&tenant).cloned();
        self.engine.nodes(&tenant, Some(spec), seen);
    }

    fn apply(&mut self, route: &str, spec: RouteSpec) {
        self.generation += 1;
        let id = id(route);
        let old = self.engine.routes.get(&id).map(|entry| entry.meta.clone());
        let (uid, created) = old
            .map_or((format!("u{}", self.generation).into(), self.generation), |m| {
                (m.uid, m.created)
            });
        let meta = Meta { uid, created, generation: self.generation };
        let seen = self.statuses.get(&id).cloned();
        self.engine.route(id, meta, spec, seen);
    }

    fn delete(&mut self, route: &str) {
        self.engine.route_gone(&id(route));
        self.statuses.remove(&id(route));
    }

    fn now(&self) -> Time {
        Time(Timestamp::from_second(self.seconds).unwrap())
    }

    /// The hub's provider: a Service has the next address at once.
    fn provide(&mut self, name: &str, balancer: Option<Balancer>) {
        let Some(balancer) = balancer else {
            self.balancers.remove(name);
            return self.engine.balancer(name, None);
        };
        let fits = |ip: &IpAddr| IpFamily::fits(balancer.family, *ip);
        if !self.balancers.contains_key(name)
            && let Some(next) = self.provider.iter().position(fits)
        {
            let addresses = vec![self.provider.remove(next)];
            let Balancer { pool, family, .. } = balancer.clone();
            let seen = SeenBalancer { pool, family, addresses, going: false };
            self.engine.balancer(name, Some(seen));
        }
        self.balancers.insert(name.to_owned(), balancer);
    }

    /// Carries effects out until there are none.
    fn settle(&mut self) {
        for _ in 0..100 {
            let effects = self.engine.step(&self.now());
            // A time that is past would wake the shell at once, for ever.
            assert!(effects.wake.is_none_or(|wake| wake > self.seconds), "{:?}", effects.wake);
            let effects = Effects { wake: None, ..effects };
            if effects == Effects::default() {
                return self.check();
            }
            self.carry_out(effects);
        }
        panic!("the engine spins: {:#?}", self.engine.step(&self.now()));
    }

    fn carry_out(&mut self, effects: Effects) {
        let Effects {
            changes,
            claim,
            release,
            claim_hosts,
            release_hosts,
            statuses,
            node_sets,
            pools,
            guards: _,
            balancers,
            checks: _,
            programmed: _,
            wake: _,
            more: _,
        } = effects;
        for (name, balancer) in balancers {
            self.provide(&name, balancer);
        }
        let mut events = Vec::new();
        for change in changes {
            let (key, outcome) = match change {
                Change::Put(resource) => {
                    let (key, version) = (resource.key.clone(), resource.version);
                    let old = self.served.insert(key.clone(), version);
                    let refused = self.refuse_new && key.kind == ResourceType::Routes;
                    match old.filter(|old| *old != version) {
                        Some(_) if refused && self.good.get(&key) != Some(&version) => {
                            (key, Outcome::Rejected(version, "bad, bad".into()))
                        }
                        _ => {
                            self.good.insert(key.clone(), version);
                            (key, Outcome::Acked(version))
                        }
                    }
                }
                Change::Remove(key) => {
                    self.served.remove(&key).expect("only what was served is taken away");
                    (key, Outcome::Removed)
                }
            };
            events.push(Event { key, outcome });
        }
        for (key, object) in release {
            assert_eq!(self.claims.remove(&key).expect("it was there").object, object);
            self.engine.claim_gone(&key);
        }
        for (route, mut claims) in claim {
            for claim in &mut claims {
                self.objects += 1;
                claim.object = format!("o{}", self.objects).into();
                let old = self.claims.insert(claim.key, claim.clone());
                assert_eq!(old, None, "two holders of one key");
            }
            self.engine.claimed(&route, Some(claims));
        }
        for (key, object) in release_hosts {
            assert_eq!(self.hosts.remove(&key).expect("it was there").object, object);
            self.engine.host_released(&key, &object);
        }
        for mut claim in claim_hosts {
            self.objects += 1;
            claim.object = format!("h{}", self.objects).into();
            let old = self.hosts.insert(claim.key.clone(), claim.clone());
            assert_eq!(old, None, "two holders of one name");
            self.engine.host_claimed(&claim.key.clone(), Some(claim));
        }
        self.engine.envoy_said(&"envoy-1".into(), 1, &events);
        self.statuses.extend(statuses);
        self.node_sets.extend(node_sets);
        self.pools.extend(pools);
    }

    /// What must hold whenever all is quiet.
    fn check(&self) {
        for claim in self.claims.values() {
            if claim.is_target() {
                let of = self.engine.claims.of_target(&claim.key);
                assert!(of.is_some(), "a target port of nobody leaks: {:?}", claim.key);
                continue;
            }
            if self.engine.claims.leaving(&claim.key).is_some() {
                continue;
            }
            let Some(route) = claim.route() else {
                assert!(
                    self.engine.web.is_seated(claim.key.address),
                    "nobody shares {:?}",
                    claim.key
                );
                continue;
            };
            let entry = self.engine.routes.get(route).expect("a claim without its Route leaks");
            assert!(entry.serving.is_some(), "a Route that is not served holds {:?}", claim.key);
        }
        for key in self.served.keys() {
            assert!(self.engine.publisher.owner(key).is_some(), "nobody needs {key}");
        }
        for entry in self.engine.routes.values() {
            for key in entry.serving.iter().flat_map(Serving::keys) {
                assert!(self.claims.contains_key(&key), "served without a claim: {key:?}");
            }
        }
    }

    /// `10.9.0.1:80` of each claim of a Route.
    fn held(&self, route: &str) -> Vec<String> {
        let mine = self.claims.values().filter(|claim| claim.route() == Some(&id(route)));
        let mine = mine.filter(|claim| !claim.is_target());
        mine.map(|claim| format!("{}:{}", claim.key.address, claim.key.port)).collect()
    }

    /// A condition as `status reason message`; empty: there is none.
    fn verdict(&self, id: &RouteId, kind: &str) -> String {
        let found = self.statuses[id].conditions.iter().find(|c| c.type_ == kind);
        found.map_or_else(String::new, |c| format!("{} {} {}", c.status, c.reason, c.message))
    }

    fn says(&self, route: &str, kind: &str) -> String {
        let said = self.verdict(&id(route), kind);
        assert!(!said.is_empty(), "{route} has no {kind}");
        said
    }

    fn listeners(&self) -> Vec<String> {
        let keys = self.served.keys().filter(|key| key.kind == ResourceType::Listener);
        keys.map(|key| key.name.to_string()).collect()
    }
}

#[test]
fn a_route_is_given_an_address_served_and_reported() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.apply("blue/web", tcp("blue/web", &[80]));
    world.settle();
    assert_eq!(world.held("blue/web"), ["10.9.0.1:80"]);
    assert_eq!(world.listeners(), ["TCP/10.9.0.1:80"]);
    assert!(world.says("blue/web", "Accepted").starts_with("True"));
    assert!(world.says("blue/web", "ResolvedRefs").starts_with("True"));
    assert!(world.says("blue/web", "Programmed").starts_with("True"));
    let display = &world.statuses[&id("blue/web")].display;
    assert_eq!((display.source.as_str(), display.ports.as_str()), ("Service/shop/web", "80/TCP"));
}

#[test]
fn nothing_is_translated_before_its_claims_are_persisted() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.apply("blue/web", tcp("blue/web", &[80]));
    let effects = world.engine.step(&now());
    assert_eq!((effects.claim.len(), effects.changes.len()), (1, 0));
    assert_eq!(world.engine.step(&now()), Effects::default(), "it waits for the outcome");
}

#[test]
fn nothing_is_decided_before_everything_was_read() {
    let mut engine = Engine::default();
    engine.lead(true);
    engine.tenant(&"blue".parse().unwrap(), Some(TenantSpec::default().into()));
    assert_eq!(engine.step(&now()), Effects::default());
}

#[test]
fn two_tenants_share_an_address_at_different_ports() {
    let mut world = World::new("10.9.0.1-10.9.0.2", Sharing::Any);
    world.apply("blue/web", tcp("blue/web", &[80]));
    world.apply("red/web", tcp("red/web", &[81]));
    world.apply("red/too", tcp("red/too", &[80]));
    world.settle();
    assert_eq!(world.held("blue/web"), ["10.9.0.1:80"]);
    assert_eq!(world.held("red/web"), ["10.9.0.1:81"]);
    assert_eq!(world.held("red/too"), ["10.9.0.2:80"], "80 was taken on the first");
}

#[test]
fn a_pool_may_keep_tenants_or_routes_apart() {
    let mut world = World::new("10.9.0.1-10.9.0.2", Sharing::Tenant);
    world.apply("blue/a", tcp("blue/a", &[80]));
    world.apply("blue/b", tcp("blue/b", &[81]));
    world.apply("red/a", tcp("red/a", &[82]));
    world.settle();
    assert_eq!(world.held("blue/b"), ["10.9.0.1:81"]);
    assert_eq!(world.held("red/a"), ["10.9.0.2:82"]);

    let mut world = World::new("10.9.0.1-10.9.0.2", Sharing::Exclusive);
    world.apply("blue/a", tcp("blue/a", &[80]));
    world.apply("blue/b", tcp("blue/b", &[81]));
    world.apply("blue/c", tcp("blue/c", &[82]));
    world.settle();
    assert_eq!(world.held("blue/b"), ["10.9.0.2:81"]);
    assert!(world.says("blue/c", "Accepted").starts_with("False PoolExhausted"));
}

#[test]
fn the_next_in_line_takes_over_when_a_port_is_freed() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    for route in ["blue/first", "red/second", "blue/third"] {
        world.apply(route, tcp(route, &[443]));
        world.settle();
    }
    assert_eq!(
        world.says("red/second", "Accepted"),
        "False PoolExhausted port 443/TCP of every address in pool \"public\" is taken; ask for another \
         port, or for more addresses"
    );
    assert!(world.says("red/second", "Programmed").starts_with("False NotAccepted"));
    world.delete("blue/first");
    world.settle();
    assert_eq!(world.held("red/second"), ["10.9.0.1:443"]);
    assert!(world.says("red/second", "Programmed").starts_with("True"));
    assert!(world.says("blue/third", "Accepted").starts_with("False"));
}

#[test]
fn a_route_gets_all_of_its_ports_or_none() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.apply("blue/web", tcp("blue/web", &[81]));
    world.settle();
    world.apply("red/many", tcp("red/many", &[80, 81, 82]));
    world.settle();
    assert!(world.held("red/many").is_empty());
    assert!(world.says("red/many", "Accepted").contains("port 81/TCP of every address"));
}

#[test]
fn ports_of_different_protocols_do_not_meet() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.apply("blue/dns", spec("dns", &[(Protocol::Tcp, 53), (Protocol::Udp, 53)]));
    world.settle();
    assert_eq!(world.listeners(), ["TCP/10.9.0.1:53", "UDP/10.9.0.1:53"]);
    assert_eq!(world.statuses[&id("blue/dns")].display.ports, "53/TCP,53/UDP");
}

#[test]
fn a_changed_port_moves_within_the_address_and_frees_the_old_one() {
    let mut world = World::new("10.9.0.1-10.9.0.9", Sharing::Any);
    world.apply("blue/web", tcp("blue/web", &[80]));
    world.settle();
    world.apply("blue/web", tcp("blue/web", &[8080]));
    world.settle();
    assert_eq!(world.held("blue/web"), ["10.9.0.1:8080"]);
    assert_eq!(world.listeners(), ["TCP/10.9.0.1:8080"]);
}

#[test]
fn what_worked_is_served_on_when_a_change_is_refused() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.apply("blue/web", tcp("blue/web", &[80]));
    world.apply("red/web", tcp("red/web", &[81]));
    world.settle();
    world.apply("blue/web", tcp("blue/web", &[80, 81]));
    world.settle();
    assert!(
        world.says("blue/web", "Accepted").starts_with("False PortTaken port 81/TCP of 10.9.0.1")
    );
    assert!(world.listeners().contains(&"TCP/10.9.0.1:80".to_owned()));
    // A wish that cannot be read.
    let mut broken = tcp("blue/web", &[80]);
    broken.rules.clear();
    world.apply("blue/web", broken);
    world.settle();
    assert!(
        world.says("blue/web", "Accepted").starts_with("False Invalid spec.listeners[0] (tcp-80)")
    );
    assert!(world.listeners().contains(&"TCP/10.9.0.1:80".to_owned()));
}

#[test]
fn an_address_can_be_asked_for() {
    let mut world = World::new("10.9.0.1-10.9.0.3", Sharing::Any);
    let asking = |ip: &str, port| {
        let address = at(ip);
        RouteSpec { address, ..tcp("blue/web", &[port]) }
    };
    world.apply("blue/web", asking("10.9.0.3", 80));
    world.settle();
    assert_eq!(world.held("blue/web"), ["10.9.0.3:80"]);
    for (ip, port, says) in [
        ("10.8.0.1", 80, "False AddressNotInPool address 10.8.0.1 is in none of the pools: public"),
        ("what", 80, "False Invalid spec.address.ip"),
        ("10.9.0.2", 22, "False PortTaken port 22/TCP of 10.9.0.2 is reserved by the pool"),
    ] {
        world.apply("blue/web", asking(ip, port));
        world.settle();
        assert!(
            world.says("blue/web", "Accepted").starts_with(says),
            "{}",
            world.says("blue/web", "Accepted")
        );
        assert_eq!(world.held("blue/web"), ["10.9.0.3:80"], "the incumbent stays");
    }
    world.apply("blue/web", asking("10.9.0.1", 80));
    world.settle();
    assert_eq!(world.held("blue/web"), ["10.9.0.1:80"], "it moves where it asks to");
}

#[test]
fn an_unknown_pool_is_named() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    let address = AddressRequest { pool: Some("secret".into()), ..AddressRequest::default() };
    world.apply("blue/web", RouteSpec { address, ..tcp("blue/web", &[80]) });
    world.settle();
    assert!(world.says("blue/web", "Accepted").starts_with("False UnknownPool pool \"secret\""));
}

#[test]
fn a_change_of_nodes_touches_endpoints_only() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.apply("blue/web", tcp("blue/web", &[80]));
    world.apply("red/web", tcp("red/web", &[81]));
    world.settle();
    world.nodes("blue", &["10.0.0.1"]);
    let effects = world.engine.step(&now());
    let kinds: Vec<_> = effects
        .changes
        .iter()
        .map(|change| match change {
            Change::Put(resource) => (resource.key.kind, resource.key.name.to_string()),
            Change::Remove(key) => panic!("{key} is gone"),
        })
        .collect();
    assert_eq!(kinds, [(ResourceType::Endpoints, "blue/svc.shop.web/tcp-80".to_owned())]);
}

#[test]
fn a_backend_without_endpoints_is_said_so() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    let mut spec = tcp("blue/web", &[80]);
    spec.backends[0].nodes = ApiNodes { policy: NodePolicy::Named, names: Vec::new() };
    world.apply("blue/web", spec);
    world.settle();
    assert!(
        world
            .says("blue/web", "ResolvedRefs")
            .starts_with("False NoReadyEndpoints backend \"tcp-80\"")
    );
    assert_eq!(world.statuses[&id("blue/web")].display.reason, "NoReadyEndpoints");
}

#[test]
fn a_rejection_is_told_in_envoys_words_on_that_route_alone() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.apply("blue/web", tcp("blue/web", &[80]));
    world.apply("red/web", tcp("red/web", &[81]));
    world.settle();
    let key = Key::new(ResourceType::Listener, "TCP/10.9.0.1:80");
    let version = world.served[&key];
    let event = Event { key, outcome: Outcome::Rejected(version, "no such thing".into()) };
    world.engine.envoy_said(&"envoy-1".into(), 1, &[event]);
    world.settle();
    assert_eq!(
        world.says("blue/web", "Programmed"),
        "False Rejected envoy-1 refused it: no such thing"
    );
    assert!(world.says("red/web", "Programmed").starts_with("True"));
}

#[test]
fn programmed_means_every_ready_envoy() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.engine.envoy_ready(&"envoy-2".into(), true);
    world.apply("blue/web", tcp("blue/web", &[80]));
    world.settle();
    assert!(world.statuses.is_empty(), "it takes Envoys a moment, of which nothing is said");
    world.seconds += 2;
    world.settle();
    assert_eq!(
        world.says("blue/web", "Programmed"),
        "False Pending waiting for Envoy envoy-2, which is not connected to the manager"
    );
    world.engine.envoy_ready(&"envoy-2".into(), false);
    world.settle();
    assert!(world.says("blue/web", "Programmed").starts_with("True"));
    world.engine.envoy_ready(&"envoy-1".into(), false);
    world.settle();
    assert!(world.says("blue/web", "Programmed").starts_with("False NoEnvoy"));
}

#[test]
fn who_changes_much_is_told_of_later_generations_less_often_but_of_news_at_once() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    let told = |world: &World, route: &str| world.statuses[&id(route)].observed_generation;
    for number in 0..150 {
        world.apply("blue/web", tcp("blue/web", &[80 + number % 2]));
        world.apply("red/web", tcp("red/web", &[90]));
        world.apply(
            "red/web",
            RouteSpec { content_hash: number.to_string(), ..tcp("red/web", &[90]) },
        );
        world.settle();
    }
    assert_eq!(told(&world, "blue/web"), Some(world.generation - 2), "another port is news");
    let behind = told(&world, "red/web").unwrap();
    assert!(behind < world.generation, "that all is as it was can wait");
    world.apply("red/web", tcp("red/web", &[91]));
    world.settle();
    assert_eq!(told(&world, "red/web"), Some(world.generation), "news cannot");
    world.apply("red/web", RouteSpec { content_hash: "new".into(), ..tcp("red/web", &[91]) });
    world.settle();
    assert!(told(&world, "red/web") < Some(world.generation));
    world.seconds += 1;
    world.settle();
    assert_eq!(told(&world, "red/web"), Some(world.generation), "but not for ever");
}

#[test]
fn a_route_that_changes_all_the_time_does_not_keep_another_from_being_told_of() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    let changed = |world: &mut World, route: &str, number: i32| {
        let content_hash = number.to_string();
        world.apply(
            route,
            RouteSpec { content_hash, ..tcp(route, &[if route < "blue/m" { 80 } else { 90 }]) },
        );
    };
    for number in 0..300 {
        changed(&mut world, "blue/a", number);
        world.settle();
    }
    changed(&mut world, "blue/z", 0);
    world.settle();
    changed(&mut world, "blue/z", 1);
    let last = world.generation;
    for number in 0..300 {
        changed(&mut world, "blue/a", number);
        if number % 100 == 99 {
            world.seconds += 1;
        }
        world.settle();
    }
    assert_eq!(world.statuses[&id("blue/z")].observed_generation, Some(last));
}

#[test]
fn an_envoy_that_comes_back_takes_nothing_back_of_what_is_yet_to_be_told() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    for number in 0..150 {
        let content_hash = number.to_string();
        world.apply("blue/web", RouteSpec { content_hash, ..tcp("blue/web", &[80]) });
        world.settle();
    }
    let behind = world.statuses[&id("blue/web")].observed_generation;
    assert!(behind < Some(world.generation));
    world.engine.envoy_disconnected(&"envoy-1".into(), 1);
    world.seconds += 5;
    world.settle();
    assert!(world.says("blue/web", "Programmed").starts_with("True"));
    assert_eq!(world.statuses[&id("blue/web")].observed_generation, Some(world.generation));
}

#[test]
fn a_tenant_that_is_removed_takes_its_routes_along() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.apply("blue/web", tcp("blue/web", &[80]));
    world.settle();
    world.engine.tenant(&"blue".parse().unwrap(), None);
    world.settle();
    assert!(world.served.is_empty() && world.claims.is_empty());
    assert!(world.says("blue/web", "Accepted").starts_with("False UnknownTenant"));
}

#[test]
fn a_restart_takes_up_what_was_persisted_and_drops_what_nobody_holds() {
    let mut before = World::new("10.9.0.1-10.9.0.9", Sharing::Any);
    before.apply("blue/web", tcp("blue/web", &[80]));
    before.apply("blue/gone", tcp("blue/gone", &[81]));
    before.settle();
    let mut claims = before.claims.clone();
    // The manager died after one of two claims of a third Route.
    let half = Claim {
        key: ClaimKey { address: "10.9.0.4".parse().unwrap(), protocol: Protocol::Tcp, port: 1 },
        pool: "public".into(),
        holder: Holder::Route { route: id("red/two"), uid: "u3".into() },
        listener: "".into(),
        alone: false,
        target: None,
        object: "o9".into(),
    };
    claims.insert(half.key, half);

    let mut after = World::default();
    after.engine.lead(true);
    for claim in claims.values() {
        after.claims.insert(claim.key, claim.clone());
        after.engine.claim(claim.clone());
    }
    let tenant = TenantSpec { pools: vec!["public".into()], ..TenantSpec::default() };
    for name in ["blue", "red"] {
        after.engine.tenant(&name.parse().unwrap(), Some(tenant.clone().into()));
    }
    after.pool("10.9.0.1-10.9.0.9", Sharing::Any);
    for (route, uid, ports) in [("blue/web", "u1", &[80][..]), ("red/two", "u3", &[1, 2])] {
        let meta = Meta { uid: uid.into(), generation: 1, created: 1 };
        after.engine.route(id(route), meta, tcp(route, ports), None);
    }
    after.engine.complete();
    after.settle();
    assert_eq!(after.held("blue/web"), ["10.9.0.1:80"], "the same address as before");
    assert_eq!(
        after.held("red/two"),
        ["10.9.0.4:1", "10.9.0.4:2"],
        "the rest of what it had begun"
    );
    assert_eq!(after.claims.len(), 3, "the claim of the Route that is gone is gone");
}

#[test]
fn a_restart_serves_on_what_was_served_before_a_refused_change() {
    let mut before = World::new("10.9.0.1", Sharing::Any);
    before.apply("blue/web", tcp("blue/web", &[80]));
    before.apply("red/web", tcp("red/web", &[81]));
    before.settle();
    before.apply("blue/web", tcp("blue/web", &[80, 81]));
    before.settle();
    assert!(before.says("blue/web", "Accepted").starts_with("False PortTaken"));

    let mut after = World::default();
    after.engine.lead(true);
    after.claims = before.claims.clone();
    for claim in before.claims.values() {
        after.engine.claim(claim.clone());
    }
    let tenant = TenantSpec { pools: vec!["public".into()], ..TenantSpec::default() };
    for name in ["blue", "red"] {
        after.engine.tenant(&name.parse().unwrap(), Some(tenant.clone().into()));
        let net = u8::from(name == "red");
        after.nodes(name, &[&format!("10.0.{net}.1"), &format!("10.0.{net}.2")]);
    }
    after.pool("10.9.0.1", Sharing::Any);
    for (route, ports) in [("blue/web", &[80, 81][..]), ("red/web", &[81])] {
        let meta = before.engine.routes[&id(route)].meta.clone();
        after.engine.route(
            id(route),
            meta,
            tcp(route, ports),
            before.statuses.get(&id(route)).cloned(),
        );
    }
    after.engine.complete();
    after.settle();
    assert_eq!(after.claims, before.claims);
    assert_eq!(after.listeners(), before.listeners());
}

#[test]
fn a_port_whose_claim_is_taken_away_is_not_served() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.apply("blue/web", tcp("blue/web", &[80, 81]));
    world.apply("red/web", tcp("red/web", &[81]));
    world.settle();
    // An administrator deletes a claim; whoever is older has the port again.
    let key = world.claims.keys().find(|key| key.port == 81).copied().unwrap();
    world.claims.remove(&key);
    world.engine.claim_gone(&key);
    world.settle();
    assert_eq!(world.held("blue/web"), ["10.9.0.1:80", "10.9.0.1:81"]);
    assert!(world.says("red/web", "Accepted").starts_with("False"));
}

#[test]
fn a_reserved_port_is_refused_at_once_in_a_huge_pool() {
    let mut world = World::new("fd00::/64", Sharing::Any);
    world.apply("blue/ssh", tcp("blue/ssh", &[22]));
    world.settle();
    assert!(world.says("blue/ssh", "Accepted").starts_with("False PoolExhausted"));
}

#[test]
fn a_range_of_nodes_that_cannot_be_read_allows_nothing() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    let tenant = TenantSpec {
        pools: vec!["public".into()],
        node_cidrs: vec!["10.0.0.1".into()],
        ..TenantSpec::default()
    };
    world.engine.tenant(&"blue".parse().unwrap(), Some(tenant.into()));
    world.apply("blue/web", tcp("blue/web", &[80]));
    world.settle();
    assert!(world.says("blue/web", "ResolvedRefs").starts_with("False NodeNotAllowed"));
}

#[test]
fn a_route_made_anew_does_not_inherit_claims() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.apply("blue/web", tcp("blue/web", &[80]));
    world.settle();
    world.delete("blue/web");
    world.apply("blue/web", tcp("blue/web", &[80]));
    world.settle();
    let claim = world.claims.values().next().unwrap();
    let holder = Holder::Route { route: id("blue/web"), uid: "u2".into() };
    assert_eq!((world.claims.len(), &claim.holder), (1, &holder));
}

#[test]
fn a_claim_that_failed_is_tried_again() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.apply("blue/web", tcp("blue/web", &[80]));
    let effects = world.engine.step(&now());
    assert_eq!(effects.claim.len(), 1);
    world.engine.claimed(&id("blue/web"), None);
    world.settle();
    assert_eq!(world.held("blue/web"), ["10.9.0.1:80"]);
}

#[test]
fn a_pool_says_how_full_it_is() {
    let mut world = World::new("10.9.0.1-10.9.0.4 what", Sharing::Any);
    world.apply("blue/web", tcp("blue/web", &[80, 81]));
    world.settle();
    let AddressPoolStatus { addresses, used, free, claims, problem } = &world.pools["public"];
    assert_eq!((addresses, used, free, claims), (&4, &1, &3, &2));
    assert!(problem.contains("spec.addresses[1]"));
}

#[derive(Debug, Clone)]
enum Step {
    Apply(u8, Vec<u16>),
    Delete(u8),
    Settle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ports =
        prop::collection::btree_set(80..84_u16, 1..3).prop_map(|set| set.into_iter().collect());
    let step = prop_oneof![
        4 => (0..8_u8, ports).prop_map(|(route, ports)| Step::Apply(route, ports)),
        2 => (0..8_u8).prop_map(Step::Delete),
        2 => Just(Step::Settle),
    ];
    prop::collection::vec(step, 0..40)
}

proptest! {
    /// Claims are disjoint (asserted where they are persisted), none leaks, everything that is served
    /// is claimed, and what is refused would not fit.
    #[test]
    fn any_history_ends_sound(steps in steps()) {
        let mut world = World::new("10.9.0.1-10.9.0.2", Sharing::Any);
        for step in steps {
            match step {
                Step::Apply(route, ports) => {
                    let route = format!("{}/r{route}", if route % 2 == 0 { "blue" } else { "red" });
                    world.apply(&route, tcp(&route, &ports));
                }
                Step::Delete(route) => {
                    world.delete(&format!("{}/r{route}", if route % 2 == 0 { "blue" } else { "red" }));
                }
                Step::Settle => world.settle(),
            }
        }
        world.settle();
        for entry in world.engine.routes.values().filter(|entry| entry.serving.is_none()) {
            let wish = entry.wish.as_ref().unwrap();
            for address in ["10.9.0.1", "10.9.0.2"] {
                let taken = wish.listeners.iter().any(|listener| {
                    let address = address.parse().unwrap();
                    world.claims.contains_key(&ClaimKey { address, protocol: listener.protocol, port: listener.port })
                });
                prop_assert!(taken, "{} fits on {address}", entry.source);
            }
        }
    }
}

#[path = "engine_address_tests.rs"]
mod addresses;
#[path = "engine_http_tests.rs"]
mod http;
#[path = "engine_isolation_tests.rs"]
mod isolation;
#[path = "engine_race_tests.rs"]
mod race;
#[path = "engine_waiting_tests.rs"]
mod waiting;
