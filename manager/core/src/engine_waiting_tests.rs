//! What many Routes have in common, and what somebody else's change waits for.

use super::http::{ing, ingress};
use super::*;

fn world() -> World {
    World::new("10.9.0.1-10.9.0.9", Sharing::Any)
}

/// What one step decides of these Routes: whose resources it publishes.
fn decided(world: &mut World, name: &str) -> (bool, bool) {
    let effects = world.engine.step(&now());
    let named = |change: &Change| matches!(change, Change::Put(resource) if resource.key.name.contains(name));
    let (found, more) = (effects.changes.iter().any(named), effects.more);
    world.carry_out(Effects { wake: None, ..effects });
    (found, more)
}

#[test]
fn a_change_waits_for_few_of_the_thousands_that_a_node_of_anothers_changes() {
    let mut world = world();
    for number in 0..500 {
        world.apply(&format!("red/r{number}"), tcp(&format!("red/r{number}"), &[1_000 + number]));
    }
    world.apply("blue/web", tcp("blue/web", &[80]));
    world.settle();
    world.nodes("red", &["10.0.1.7"]);
    world.apply("blue/web", tcp("blue/web", &[80, 81]));
    // The first claims the port, the second has it served, while red's are looked at.
    let first = decided(&mut world, "/nothing");
    assert!(first.1, "it says that there is more");
    let (served, more) = decided(&mut world, ":81");
    assert!(served && more, "served with the next step, {served}, of which there are more, {more}");
    world.settle();
    let endpoints: Vec<_> = world
        .served
        .keys()
        .filter(|key| key.kind == ResourceType::Endpoints && key.name.contains("red"))
        .collect();
    assert_eq!(endpoints.len(), 500);
    let nodes = &world.engine.nodes[&"red".parse().unwrap()];
    assert_eq!(nodes.addresses.len(), 1);
    assert!(world.engine.later.is_empty() && world.engine.dirty.is_empty());
}

#[test]
fn what_is_claimed_wakes_nobody_and_what_is_given_back_finds_who_waits() {
    let mut world = world();
    let quotas = fairlead_api::tenant::Quotas { ports: 1, ..Default::default() };
    let bounded = TenantSpec { pools: vec!["public".into()], quotas, ..TenantSpec::default() };
    world.engine.tenant(&"red".parse().unwrap(), Some(bounded.into()));
    world.apply_at(ing("red/web"), ingress("a.red.example/>web:80"));
    world.settle();
    let unknown = AddressRequest { pool: Some("othr".into()), ..AddressRequest::default() };
    for number in 0..100 {
        let (none, over) = (format!("blue/u{number}"), format!("red/q{number}"));
        let asks = RouteSpec { address: unknown.clone(), ..tcp(&none, &[80]) };
        world.apply(&none, asks);
        world.apply(&over, tcp(&over, &[2_000 + number]));
        world.apply_at(ing(&format!("blue/h{number}")), ingress("a.red.example/>web:80"));
    }
    world.settle();
    let woken = |world: &mut World, change: &mut dyn FnMut(&mut World)| {
        change(world);
        let mut woken = world.engine.later.len();
        for _ in 0..20 {
            let effects = world.engine.step(&now());
            world.carry_out(Effects { wake: None, ..effects });
            woken += world.engine.later.len();
        }
        woken
    };
    let added = woken(&mut world, &mut |world| world.apply("blue/more", tcp("blue/more", &[90])));
    assert_eq!(added, 0, "what is claimed is of use to nobody");
    assert!(world.says("red/q1", "Accepted").contains("QuotaReached"));
    assert_eq!(world.held("red/q0"), ["10.9.0.1:2000"]);
    woken(&mut world, &mut |world| world.engine.route_gone(&id("red/q0")));
    world.settle();
    assert_eq!(world.held("red/q1"), ["10.9.0.1:2001"], "the next has what red gave back");
}

#[test]
fn a_claim_that_the_watch_shows_before_its_answer_wakes_nobody() {
    let mut world = world();
    let (web, late) = ("blue/web", "red/late");
    let first = at("10.9.0.1");
    for route in [web, late] {
        world.apply(route, RouteSpec { address: first.clone(), ..tcp(route, &[80]) });
        world.settle();
    }
    assert!(world.says(late, "Accepted").contains("PortTaken"));
    world.apply("blue/more", tcp("blue/more", &[90]));
    let effects = world.engine.step(&now());
    for claim in effects.claim.iter().flat_map(|(_, claims)| claims) {
        world.engine.claim(Claim { object: "seen".into(), ..claim.clone() });
    }
    assert!(!effects.claim.is_empty() && world.engine.later.is_empty());
}

impl World {
    /// Nobody sleeps who could have something: to look at all again changes nothing.
    fn nobody_sleeps(&mut self) {
        self.settle();
        self.engine.look_at_all();
        for _ in 0..20 {
            let effects = self.engine.step(&now());
            let named = effects.claim.iter().map(|(id, _)| id.to_string()).next();
            assert_eq!(named, None, "it could have had its claims before");
            assert!(effects.claim_hosts.is_empty(), "{:?}", effects.claim_hosts);
            assert!(effects.changes.is_empty(), "{:?}", effects.changes);
            self.carry_out(Effects { wake: None, ..effects });
        }
    }
}

#[derive(Debug, Clone)]
enum Move {
    /// A Service of the tenant, with a port, at any address or the first.
    Service(usize, u8, u16, bool),
    /// An Ingress of the tenant, with a host name, and one backend or two.
    Ingress(usize, u8, u8, bool),
    Gone(usize, u8, bool),
    /// The tenant has as many nodes.
    Nodes(usize, usize),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let tenant = || 0..2_usize;
    let one = prop_oneof![
        (tenant(), 0..4_u8, 80..83_u16, any::<bool>())
            .prop_map(|(tenant, name, port, first)| Move::Service(tenant, name, port, first)),
        (tenant(), 0..4_u8, 0..5_u8, any::<bool>())
            .prop_map(|(tenant, name, host, two)| Move::Ingress(tenant, name, host, two)),
        (tenant(), 0..4_u8, any::<bool>())
            .prop_map(|(tenant, name, service)| Move::Gone(tenant, name, service)),
        (tenant(), 1..4_usize).prop_map(|(tenant, count)| Move::Nodes(tenant, count)),
    ];
    prop::collection::vec(one, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// With small quotas and little room: whatever is given back wakes all that it is of use to.
    #[test]
    fn whoever_could_be_served_is(moves in moves()) {
        let mut world = world();
        let addresses = vec!["10.9.0.1-10.9.0.2".into()];
        let (sharing, max_routes_per_address) = (Sharing::Any, Some(3));
        let small =
            AddressPoolSpec { addresses, sharing, max_routes_per_address, ..Default::default() };
        world.engine.pool("public", Some(small));
        let tenants = ["blue", "red"];
        for tenant in tenants {
            let quotas = fairlead_api::tenant::Quotas {
                ports: 2, hostnames: 2, addresses: 1, endpoints: 4, ..Default::default()
            };
            let spec = TenantSpec { pools: vec!["public".into()], quotas, ..TenantSpec::default() };
            world.engine.tenant(&tenant.parse().unwrap(), Some(spec.into()));
        }
        let hosts = ["a.example", "b.example", "*.example", "a.x.example", "*.x.example"];
        for one in moves {
            match one {
                Move::Service(tenant, name, port, first) => {
                    let route = format!("{}/s{name}", tenants[tenant]);
                    let ips = if first { vec!["10.9.0.1".to_owned()] } else { Vec::new() };
                    let address = AddressRequest { ips, ..AddressRequest::default() };
                    world.apply(&route, RouteSpec { address, ..tcp(&route, &[port]) });
                }
                Move::Ingress(tenant, name, host, two) => {
                    let host = hosts[usize::from(host)];
                    let more = if two { format!(" {host}/api>api:80") } else { String::new() };
                    let rule = format!("{host}/>web:80{more}");
                    world.apply_at(ing(&format!("{}/i{name}", tenants[tenant])), ingress(&rule));
                }
                Move::Gone(tenant, name, true) => {
                    world.engine.route_gone(&id(&format!("{}/s{name}", tenants[tenant])));
                }
                Move::Gone(tenant, name, false) => {
                    world.engine.route_gone(&ing(&format!("{}/i{name}", tenants[tenant])));
                }
                Move::Nodes(tenant, count) => {
                    let nodes: Vec<_> = (1..=count).map(|n| format!("10.0.{tenant}.{n}")).collect();
                    let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
                    world.nodes(tenants[tenant], &nodes);
                }
            }
            world.nobody_sleeps();
        }
    }
}

#[test]
fn whoever_was_one_too_many_on_an_address_has_the_first_seat_that_is_free() {
    let mut world = world();
    let (sharing, max_routes_per_address) = (Sharing::Any, Some(2));
    let addresses = vec!["10.9.0.1".into()];
    let full = AddressPoolSpec { addresses, sharing, max_routes_per_address, ..Default::default() };
    world.engine.pool("public", Some(full));
    let names = ["blue/a", "red/b", "red/c"];
    for name in names {
        world.apply_at(ing(name), ingress(&format!("{}.example/>web:80", &name[..3])));
        world.settle();
    }
    let told = world.told("red/c", "Accepted");
    assert!(told.contains("room for port 80/TCP") && told.contains("takes 2 Routes"), "{told}");
    world.engine.route_gone(&ing("blue/a"));
    world.settle();
    assert!(world.told("red/c", "Accepted").starts_with("True"));
}
