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
fn what_is_given_back_wakes_only_those_that_it_is_of_use_to() {
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
    let gone = woken(&mut world, &mut |world| world.engine.route_gone(&id("blue/more")));
    assert_eq!(gone, 0, "a port of blue's is neither a pool nor of red's quota");
    assert!(world.says("red/q1", "Accepted").contains("QuotaReached"));
    assert_eq!(world.held("red/q0"), ["10.9.0.1:2000"]);
    woken(&mut world, &mut |world| world.engine.route_gone(&id("red/q0")));
    world.settle();
    assert_eq!(world.held("red/q1"), ["10.9.0.1:2001"], "the next has what red gave back");
}
