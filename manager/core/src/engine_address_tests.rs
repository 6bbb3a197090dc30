//! Scenarios of the allocator: who gets which address, and what the others are told.

use fairlead_api::pool::ServiceTemplate;
use fairlead_api::{Exposure, Packing, PortRange};

use super::*;

fn pool(addresses: &str) -> AddressPoolSpec {
    let addresses = addresses.split_whitespace().map(str::to_owned).collect();
    AddressPoolSpec { addresses, sharing: Sharing::Any, ..AddressPoolSpec::default() }
}

fn asking(route: &str, ports: &[u16], address: AddressRequest) -> RouteSpec {
    RouteSpec { address, ..tcp(route, ports) }
}

fn group(name: &str) -> AddressRequest {
    AddressRequest { group: Some(name.into()), ..AddressRequest::default() }
}

fn alone() -> AddressRequest {
    AddressRequest { alone: true, ..AddressRequest::default() }
}

fn families(families: &[IpFamily]) -> AddressRequest {
    AddressRequest { families: families.to_vec(), ..AddressRequest::default() }
}

impl World {
    fn with(spec: AddressPoolSpec) -> Self {
        let mut world = Self::new("10.9.0.1", Sharing::Any);
        world.engine.pool("public", Some(spec));
        world
    }

    /// Both tenants may use these pools, in this order.
    fn may_use(&mut self, pools: &[&str]) {
        for name in ["blue", "red"] {
            let pools = pools.iter().map(|name| (*name).to_owned()).collect();
            let tenant = TenantSpec { pools, ..TenantSpec::default() };
            self.engine.tenant(&name.parse().unwrap(), Some(tenant.into()));
        }
    }

    /// Applies, waits until all is quiet, and tells what the Route holds.
    fn get(&mut self, route: &str, spec: RouteSpec) -> Vec<String> {
        self.apply(route, spec);
        self.settle();
        self.held(route)
    }

    fn refused(&self, route: &str) -> String {
        let said = self.says(route, "Accepted");
        said.strip_prefix("False ").expect(&said).to_owned()
    }
}

#[test]
fn spreading_takes_the_address_with_the_fewest_routes() {
    let mut world =
        World::with(AddressPoolSpec { packing: Packing::Spread, ..pool("10.9.0.1-10.9.0.2") });
    assert_eq!(world.get("blue/a", tcp("blue/a", &[80, 81])), ["10.9.0.1:80", "10.9.0.1:81"]);
    assert_eq!(world.get("blue/b", tcp("blue/b", &[82])), ["10.9.0.2:82"]);
    assert_eq!(world.get("red/c", tcp("red/c", &[83])), ["10.9.0.1:83"], "both have one Route");
    assert_eq!(world.get("red/d", tcp("red/d", &[83])), ["10.9.0.2:83"]);
    world.delete("blue/a");
    world.settle();
    assert_eq!(world.get("red/e", tcp("red/e", &[84])), ["10.9.0.1:84"]);
}

#[test]
fn an_address_is_full_by_ports_or_by_routes() {
    let mut world = World::with(AddressPoolSpec {
        max_ports_per_address: Some(3),
        max_routes_per_address: Some(2),
        ..pool("10.9.0.1-10.9.0.3")
    });
    assert_eq!(world.get("blue/a", tcp("blue/a", &[1, 2])), ["10.9.0.1:1", "10.9.0.1:2"]);
    assert_eq!(world.get("blue/b", tcp("blue/b", &[3, 4])), ["10.9.0.2:3", "10.9.0.2:4"]);
    assert_eq!(world.get("blue/c", tcp("blue/c", &[5])), ["10.9.0.1:5"]);
    // Two Routes are there, and three ports.
    assert_eq!(world.get("blue/d", tcp("blue/d", &[6])), ["10.9.0.2:6"]);
    assert_eq!(world.get("blue/e", tcp("blue/e", &[7, 8, 9, 10])), Vec::<String>::new());
    assert!(world.refused("blue/e").contains("has room for port 7/TCP and 8/TCP"));
    // An incumbent that grows too much keeps what it has.
    world.get("blue/c", tcp("blue/c", &[5, 11]));
    assert!(world.refused("blue/c").contains("port 11/TCP of 10.9.0.1 is one more than the pool"));
    assert!(world.listeners().contains(&"TCP/10.9.0.1:5".to_owned()));
}

#[test]
fn a_listener_that_takes_any_port_keeps_the_one_that_it_was_given() {
    let spec = AddressPoolSpec {
        any_ports: PortRange { first: 2_000, last: 2_002 },
        reserved_ports: vec![2_001],
        ..pool("10.9.0.1")
    };
    let mut world = World::with(spec);
    let any = |route: &str| tcp(route, &[0]);
    assert_eq!(world.get("blue/a", any("blue/a")), ["10.9.0.1:2000"]);
    assert_eq!(world.get("red/b", any("red/b")), ["10.9.0.1:2002"], "2001 is reserved");
    let status = &world.statuses[&id("red/b")];
    assert_eq!((status.ports[0].listener.as_str(), status.ports[0].port), ("tcp-0", 2_002));
    assert_eq!(status.display.ports, "2002/TCP");
    assert!(world.get("red/c", any("red/c")).is_empty());
    assert!(world.refused("red/c").starts_with("PoolExhausted"), "{}", world.refused("red/c"));
    // The first is free now, and b stays where it is.
    world.delete("blue/a");
    world.apply("red/b", RouteSpec { content_hash: "01".into(), ..any("red/b") });
    world.settle();
    assert_eq!(world.held("red/b"), ["10.9.0.1:2002"]);
    assert_eq!(world.held("red/c"), ["10.9.0.1:2000"]);
}

#[test]
fn a_group_is_on_one_address() {
    let mut world = World::with(pool("10.9.0.1-10.9.0.3"));
    world.get("red/x", tcp("red/x", &[80]));
    assert_eq!(world.get("blue/a", asking("blue/a", &[80], group("g"))), ["10.9.0.2:80"]);
    // By itself it would have been put on the first.
    assert_eq!(world.get("blue/b", asking("blue/b", &[81], group("g"))), ["10.9.0.2:81"]);
    assert!(world.get("blue/c", asking("blue/c", &[81], group("g"))).is_empty());
    assert_eq!(
        world.refused("blue/c"),
        "GroupConflict group \"g\" is at 10.9.0.2, where port 81/TCP is taken; a group is on one \
         address: change what is asked for, or leave the group"
    );
    // Another tenant's group of that name is another one.
    assert_eq!(world.get("red/y", asking("red/y", &[81], group("g"))), ["10.9.0.1:81"]);
    // The port is free again: the member that waits has it.
    world.delete("blue/b");
    world.settle();
    assert_eq!(world.held("blue/c"), ["10.9.0.2:81"]);
    // Whoever is elsewhere already stays there, and is told.
    world.get("blue/d", tcp("blue/d", &[90]));
    assert_eq!(world.get("blue/d", asking("blue/d", &[90], group("g"))), ["10.9.0.1:90"]);
    assert!(world.refused("blue/d").starts_with("AddressHeld it asks for group \"g\""));
    assert!(world.says("blue/a", "Accepted").starts_with("True"));
}

#[test]
fn a_group_is_not_spread_over_pools() {
    let mut world = World::with(pool("10.9.0.1"));
    world.engine.pool("other", Some(pool("10.8.0.1")));
    world.may_use(&["public", "other"]);
    world.get("blue/a", asking("blue/a", &[80], group("g")));
    let elsewhere = AddressRequest { pool: Some("other".into()), ..group("g") };
    assert!(world.get("blue/b", asking("blue/b", &[81], elsewhere)).is_empty());
    assert!(
        world
            .refused("blue/b")
            .starts_with("GroupConflict group \"g\" is at 10.9.0.1, of pool \"public\"")
    );
    let by_name = AddressRequest { ips: vec!["10.8.0.1".into()], ..group("g") };
    assert!(world.get("blue/b", asking("blue/b", &[81], by_name)).is_empty());
    assert!(world.refused("blue/b").contains("not at 10.8.0.1"));
}

#[test]
fn whoever_opts_out_of_sharing_is_alone() {
    let mut world = World::with(pool("10.9.0.1-10.9.0.3"));
    world.get("red/x", tcp("red/x", &[80]));
    assert_eq!(world.get("blue/a", asking("blue/a", &[90], alone())), ["10.9.0.2:90"]);
    assert_eq!(world.get("blue/b", tcp("blue/b", &[80])), ["10.9.0.3:80"], "not beside it");
    assert!(world.get("blue/c", asking("blue/c", &[91], alone())).is_empty());
    assert!(world.refused("blue/c").contains("that this Route may be on"));
    let beside = at("10.9.0.2");
    assert!(world.get("red/y", asking("red/y", &[91], beside)).is_empty());
    assert!(world.refused("red/y").contains("on an address that may not be shared"));
    // Where it is with others, it stays, and is told.
    assert_eq!(world.get("red/x", asking("red/x", &[80], alone())), ["10.9.0.1:80"]);
    assert!(world.refused("red/x").starts_with("AddressHeld it asks for an address of its own"));
}

#[test]
fn dual_stack_is_both_families_or_none() {
    let mut world = World::with(pool("10.9.0.1 fd00::1-fd00::2"));
    let both = || families(&[IpFamily::V4, IpFamily::V6]);
    assert_eq!(world.get("blue/a", asking("blue/a", &[80], both())), ["10.9.0.1:80", "fd00::1:80"]);
    let status = &world.statuses[&id("blue/a")];
    assert_eq!(status.addresses, ["10.9.0.1", "fd00::1"]);
    assert_eq!(status.display.address, "10.9.0.1,fd00::1");
    assert_eq!(world.listeners(), ["TCP/10.9.0.1:80", "TCP/[fd00::1]:80"]);
    // IPv6 has room, IPv4 has not.
    assert!(world.get("blue/b", asking("blue/b", &[80], both())).is_empty());
    assert!(world.refused("blue/b").contains("port 80/TCP of every address"));
    assert_eq!(
        world.get("blue/c", asking("blue/c", &[80], families(&[IpFamily::V6]))),
        ["fd00::2:80"]
    );
    // Any port is the same on both.
    assert_eq!(
        world.get("blue/d", asking("blue/d", &[0], both())),
        ["10.9.0.1:20000", "fd00::1:20000"]
    );
    // One that wants the other family, too, stays and gets it beside.
    world.get("red/e", asking("red/e", &[90], families(&[IpFamily::V4])));
    assert_eq!(world.get("red/e", asking("red/e", &[90], both())), ["10.9.0.1:90", "fd00::1:90"]);
    world.get("red/e", asking("red/e", &[90], families(&[IpFamily::V6])));
    assert_eq!(world.held("red/e"), ["fd00::1:90"]);
}

#[test]
fn the_second_family_is_required_or_preferred() {
    let mut world = World::with(pool("10.9.0.1"));
    let both = families(&[IpFamily::V4, IpFamily::V6]);
    assert!(world.get("blue/a", asking("blue/a", &[80], both.clone())).is_empty());
    assert!(world.refused("blue/a").contains("pool \"public\" has no IPv6 addresses"));
    let prefers = AddressRequest { prefer_dual_stack: true, ..both };
    assert_eq!(world.get("blue/b", asking("blue/b", &[81], prefers)), ["10.9.0.1:81"]);
    let six = AddressRequest { ips: vec!["fd00::1".into()], ..families(&[IpFamily::V4]) };
    world.get("blue/c", asking("blue/c", &[82], six));
    assert!(world.refused("blue/c").contains("the Service is IPv4 only"));
    // The pool gets IPv6: whoever prefers it has it with the next look, whoever needs it at once.
    world.engine.pool("public", Some(pool("10.9.0.1 fd00::1")));
    world.settle();
    assert_eq!(world.held("blue/a"), ["10.9.0.1:80", "fd00::1:80"]);
}

#[test]
fn a_port_is_held_for_its_tenant_for_a_while() {
    let mut world = World::with(AddressPoolSpec { hold_seconds: 60, ..pool("10.9.0.1") });
    world.get("blue/a", tcp("blue/a", &[80]));
    world.delete("blue/a");
    world.settle();
    assert!(world.listeners().is_empty(), "nothing is served meanwhile");
    world.get("red/b", tcp("red/b", &[80]));
    assert!(world.held("red/b").is_empty());
    let by_name = at("10.9.0.1");
    world.get("red/b", asking("red/b", &[80], by_name));
    assert!(world.refused("red/b").contains("is on hold since its last user let it go"));
    // Its tenant has it at once; a Route that asks for it again is no incumbent, but keeps the address.
    assert_eq!(world.get("blue/c", tcp("blue/c", &[80])), ["10.9.0.1:80"]);
    world.delete("blue/c");
    world.settle();
    let wake = world.engine.step(&world.now()).wake;
    assert_eq!(wake, Some(60), "the shell is told when to come back");
    world.seconds = 59;
    world.settle();
    assert!(world.held("red/b").is_empty());
    world.seconds = 60;
    world.settle();
    assert_eq!(world.held("red/b"), ["10.9.0.1:80"]);
    assert_eq!(world.claims.len(), 1);
}

#[test]
fn the_ports_of_a_tenant_that_is_removed_are_nobodys_until_their_time_is_over() {
    let mut world = World::with(AddressPoolSpec { hold_seconds: 60, ..pool("10.9.0.1") });
    world.get("blue/a", tcp("blue/a", &[80]));
    world.get("red/b", tcp("red/b", &[80]));
    world.delete("blue/a");
    world.settle();
    // Its namespace and the Tenant itself go last.
    world.engine.nodes(&"blue".parse().unwrap(), None, None);
    world.engine.tenant(&"blue".parse().unwrap(), None);
    world.settle();
    assert!(world.held("red/b").is_empty(), "whoever knew blue there does not reach red");
    assert_eq!(world.claims.len(), 1);
    world.seconds = 60;
    world.settle();
    assert_eq!(world.held("red/b"), ["10.9.0.1:80"]);
}

#[test]
fn a_port_that_its_route_takes_back_was_never_gone() {
    let mut world = World::with(AddressPoolSpec { hold_seconds: 60, ..pool("10.9.0.1") });
    world.get("blue/a", tcp("blue/a", &[80, 81]));
    world.get("blue/a", tcp("blue/a", &[80]));
    let before = world.claims.clone();
    world.get("blue/a", tcp("blue/a", &[80, 81]));
    assert_eq!(world.claims, before, "no claim was made anew");
    world.seconds = 100;
    world.settle();
    assert_eq!(world.held("blue/a"), ["10.9.0.1:80", "10.9.0.1:81"]);
}

#[test]
fn a_route_made_anew_has_the_address_that_its_tenant_let_go() {
    let mut world = World::with(pool("10.9.0.1-10.9.0.2"));
    world.get("red/x", tcp("red/x", &[80]));
    world.get("blue/a", tcp("blue/a", &[80]));
    world.delete("red/x");
    world.delete("blue/a");
    world.apply("blue/a", tcp("blue/a", &[80]));
    world.settle();
    assert_eq!(world.held("blue/a"), ["10.9.0.2:80"], "not the first that is free");
}

#[test]
fn a_pool_that_is_drained_gives_out_nothing_new_and_takes_nothing_away() {
    let mut world = World::with(pool("10.9.0.1"));
    world.get("blue/a", tcp("blue/a", &[80]));
    let before = world.served.clone();
    world.engine.pool("public", Some(AddressPoolSpec { draining: true, ..pool("10.9.0.1") }));
    world.settle();
    assert_eq!(world.served, before, "nothing is sent to Envoy");
    assert!(world.says("blue/a", "Draining").starts_with("True PoolDraining pool \"public\""));
    assert!(world.says("blue/a", "Programmed").starts_with("True"));
    assert!(world.pools["public"].problem.contains("draining"));
    world.get("blue/b", tcp("blue/b", &[81]));
    assert!(world.refused("blue/b").starts_with("PoolDraining pool \"public\" is being drained"));
    // Another pool takes over what comes.
    world.engine.pool("other", Some(pool("10.8.0.1")));
    world.may_use(&["public", "other"]);
    world.settle();
    assert_eq!(world.held("blue/b"), ["10.8.0.1:81"]);
    world.engine.pool("public", Some(pool("10.9.0.1")));
    world.settle();
    assert!(world.statuses[&id("blue/a")].conditions.iter().all(|c| c.type_ != "Draining"));
}

#[test]
fn another_pool_asked_for_under_a_live_route_moves_nothing() {
    let mut world = World::with(pool("10.9.0.1"));
    world.engine.pool("other", Some(pool("10.8.0.1")));
    world.may_use(&["public", "other"]);
    world.get("blue/a", tcp("blue/a", &[80]));
    let before = world.served.clone();
    let other = AddressRequest { pool: Some("other".into()), ..AddressRequest::default() };
    assert_eq!(world.get("blue/a", asking("blue/a", &[80], other)), ["10.9.0.1:80"]);
    assert!(world.refused("blue/a").starts_with(
        "AddressHeld it asks for pool \"other\" and holds 10.9.0.1 of pool \"public\""
    ));
    assert_eq!(world.served, before);
    let unknown = AddressRequest { pool: Some("othr".into()), ..AddressRequest::default() };
    assert_eq!(world.get("blue/a", asking("blue/a", &[80], unknown)), ["10.9.0.1:80"]);
    assert!(world.refused("blue/a").starts_with("UnknownPool pool \"othr\" does not exist"));
    assert_eq!(world.served, before);
    // The way out that the first message names.
    let by_name = at("10.8.0.1");
    assert_eq!(world.get("blue/a", asking("blue/a", &[80], by_name)), ["10.8.0.1:80"]);
}

#[test]
fn a_pool_that_shrinks_keeps_what_is_held_and_says_so() {
    let mut world = World::with(pool("10.9.0.1-10.9.0.2"));
    world.get("red/x", tcp("red/x", &[80]));
    world.get("blue/a", tcp("blue/a", &[80]));
    world.engine.pool("public", Some(pool("10.9.0.1")));
    world.settle();
    assert_eq!(world.held("blue/a"), ["10.9.0.2:80"]);
    assert!(world.says("blue/a", "Programmed").starts_with("True"));
    let status = &world.pools["public"];
    assert_eq!((status.addresses, status.used, status.free), (1, 2, 0));
    assert!(status.problem.starts_with("1 addresses with claims are not in spec.addresses"));
    world.get("red/y", tcp("red/y", &[80]));
    assert!(world.refused("red/y").contains("port 80/TCP of every address in pool \"public\""));
}

#[test]
fn a_pool_that_is_deleted_goes_with_its_last_port() {
    let mut world = World::with(pool("10.9.0.1"));
    let guards = |world: &mut World| world.engine.step(&now()).guards;
    world.engine.guard("public", Some(Guard::default()));
    assert_eq!(guards(&mut world), [("public".to_owned(), true)]);
    assert_eq!(guards(&mut world), [], "it is told once");
    world.engine.guard("public", Some(Guard { there: true, leaving: false }));
    world.get("blue/a", tcp("blue/a", &[80]));
    world.engine.guard("public", Some(Guard { there: true, leaving: true }));
    world.engine.pool("public", Some(pool("10.9.0.1")));
    world.settle();
    assert!(world.says("blue/a", "Draining").starts_with("True"));
    assert!(world.says("blue/a", "Programmed").starts_with("True"));
    world.get("blue/b", tcp("blue/b", &[81]));
    assert!(world.refused("blue/b").starts_with("PoolDraining"));
    world.delete("blue/a");
    // The claim goes first, then the guard.
    let effects = world.engine.step(&now());
    assert_eq!((effects.release.len(), effects.guards.len()), (1, 0));
    world.carry_out(effects);
    assert_eq!(guards(&mut world), [("public".to_owned(), false)]);
}

fn behind_services(max_addresses: u32) -> AddressPoolSpec {
    AddressPoolSpec {
        exposure: Exposure::Service,
        service: ServiceTemplate {
            max_addresses,
            target_ports: PortRange { first: 12_000, last: 12_009 },
            ..ServiceTemplate::default()
        },
        ..pool("")
    }
}

fn seen(addresses: Vec<IpAddr>) -> SeenBalancer {
    SeenBalancer { pool: "public".into(), family: None, addresses, going: false }
}

#[test]
fn addresses_of_the_hubs_own_provider_come_and_go_with_the_routes() {
    let mut world = World::with(behind_services(2));
    world.provider = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().unwrap()).into();
    assert!(world.balancers.is_empty(), "nobody wants one");
    assert_eq!(world.get("blue/a", tcp("blue/a", &[80])), ["192.0.2.1:80"]);
    assert_eq!(world.get("red/b", tcp("red/b", &[81])), ["192.0.2.1:81"]);
    let ports = |world: &World, n: u8| {
        let ports = &world.balancers[&format!("fairlead-public-{n}")].ports;
        ports.iter().map(|one| (one.port, one.target)).collect::<Vec<_>>()
    };
    assert_eq!(ports(&world, 1), [(80, 12_000), (81, 12_001)]);
    // The port of the address is taken: one more is opened.
    assert_eq!(world.get("red/c", tcp("red/c", &[80])), ["192.0.2.2:80"]);
    assert_eq!(ports(&world, 2), [(80, 12_002)]);
    world.get("red/d", tcp("red/d", &[80]));
    assert!(world.refused("red/d").contains("port 80/TCP of every address in pool \"public\""));
    assert_eq!(world.balancers.len(), 2);
    world.delete("red/d");
    world.delete("red/c");
    world.delete("red/b");
    world.settle();
    assert_eq!(ports(&world, 1), [(80, 12_000)]);
    assert_eq!(world.balancers.len(), 1, "an address without claims is given back");
    world.delete("blue/a");
    world.settle();
    assert!(world.balancers.is_empty() && world.claims.is_empty());
}

#[test]
fn a_provider_that_takes_its_time_is_waited_for() {
    let mut world = World::with(behind_services(2));
    world.apply("blue/a", tcp("blue/a", &[80]));
    world.apply("blue/b", tcp("blue/b", &[81]));
    world.settle();
    assert!(world.refused("blue/a").starts_with("AddressPending"));
    assert_eq!(world.balancers.len(), 1, "one at a time");
    world.apply("red/c", tcp("red/c", &[82]));
    world.settle();
    assert_eq!(world.balancers.len(), 1, "also while the hub has not shown it");
    let addresses = vec!["192.0.2.1".parse().unwrap()];
    let seen = seen(addresses);
    world.engine.balancer("fairlead-public-1", Some(seen));
    world.settle();
    assert_eq!(world.held("blue/a"), ["192.0.2.1:80"]);
    assert_eq!(world.held("blue/b"), ["192.0.2.1:81"]);
    // Somebody deletes the Service: it is made anew.
    world.balancers.clear();
    world.engine.balancer("fairlead-public-1", None);
    world.provider = vec!["192.0.2.1".parse().unwrap()];
    world.settle();
    assert_eq!(world.balancers["fairlead-public-1"].ports.len(), 3);
    assert!(world.says("blue/a", "Programmed").starts_with("True"));
}

#[test]
fn no_more_addresses_are_opened_than_can_help() {
    let spec = AddressPoolSpec { max_ports_per_address: Some(2), ..behind_services(4) };
    let mut world = World::with(spec);
    world.provider = (1..200).map(|n| [192, 0, 2, n].into()).collect();
    world.get("blue/many", tcp("blue/many", &[1, 2, 3]));
    assert!(
        world.refused("blue/many").starts_with("PoolExhausted"),
        "{}",
        world.refused("blue/many")
    );
    assert!(world.balancers.is_empty() && world.provider.len() == 199, "none was asked for");
    assert_eq!(world.get("blue/two", tcp("blue/two", &[1, 2])), ["192.0.2.1:1", "192.0.2.1:2"]);
    let six = families(&[IpFamily::V6]);
    world.provider.clear();
    world.get("blue/six", asking("blue/six", &[80], six));
    assert!(world.refused("blue/six").starts_with("AddressPending"));
    assert_eq!(world.balancers["fairlead-public-2"].family, Some(IpFamily::V6));
}

#[test]
fn no_address_is_opened_for_which_envoy_has_no_port_left() {
    let mut world = World::with(AddressPoolSpec {
        service: ServiceTemplate {
            max_addresses: 4,
            target_ports: PortRange { first: 12_000, last: 12_001 },
            ..ServiceTemplate::default()
        },
        ..behind_services(4)
    });
    world.provider = (1..9).map(|n| [192, 0, 2, n].into()).collect();
    world.get("blue/two", tcp("blue/two", &[80, 81]));
    world.get("red/one", tcp("red/one", &[80]));
    let refused = world.refused("red/one");
    assert!(
        refused.starts_with("PoolExhausted pool \"public\" has no target port left"),
        "{refused}"
    );
    assert_eq!((world.balancers.len(), world.provider.len()), (1, 7));
    world.engine.pool("spare", Some(pool("10.9.0.1")));
    world.may_use(&["public", "spare"]);
    world.settle();
    assert_eq!(world.held("red/one"), ["10.9.0.1:80"], "the next pool has some");
    assert_eq!(world.get("red/next", tcp("red/next", &[90])), ["10.9.0.1:90"], "free or not");
}

#[test]
fn two_families_are_opened_one_after_the_other_and_both_stay() {
    let mut world = World::with(behind_services(4));
    world.provider = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    let both = families(&[IpFamily::V4, IpFamily::V6]);
    let held = world.get("blue/both", asking("blue/both", &[80], both));
    assert_eq!(held, ["192.0.2.1:80", "2001:db8::1:80"]);
    assert_eq!(world.balancers.len(), 2);
    world.delete("blue/both");
    world.settle();
    assert!(world.balancers.is_empty());
}

/// A pool behind Services, and more Routes than are looked at in a step that wait for the one address of another, and come
/// before those that are made later.
fn crowded(max_addresses: u32) -> World {
    let mut world = World::with(behind_services(max_addresses));
    world.provider = (1..9).map(|n| [192, 0, 2, n].into()).collect();
    world.engine.pool("spare", Some(pool("10.9.0.1")));
    world.may_use(&["spare", "public"]);
    let first = at("10.9.0.1");
    for number in 0..200 {
        let name = format!("red/r{number}");
        world.apply(&name, asking(&name, &[80], first.clone()));
    }
    world.settle();
    world
}

#[test]
fn an_address_that_came_is_kept_until_whoever_waits_for_it_had_its_turn() {
    let mut world = crowded(4);
    let opened = AddressRequest { pool: Some("public".into()), ..AddressRequest::default() };
    let held = world.get("blue/web", asking("blue/web", &[80], opened));
    assert_eq!((held, world.provider.len()), (vec!["192.0.2.1:80".to_owned()], 7));
}

#[test]
fn an_address_that_is_let_go_is_kept_until_everybody_had_a_look_at_it() {
    let mut world = crowded(1);
    let opened = AddressRequest { pool: Some("public".into()), ..alone() };
    world.get("blue/a", asking("blue/a", &[80], opened.clone()));
    world.get("blue/b", asking("blue/b", &[80], opened));
    assert!(world.refused("blue/b").starts_with("PoolExhausted"), "there may be one");
    world.delete("blue/a");
    world.settle();
    assert_eq!((world.held("blue/b"), world.provider.len()), (vec!["192.0.2.1:80".to_owned()], 7));
}

#[test]
fn an_address_that_its_provider_took_away_is_asked_for_again_in_its_family() {
    let mut world = World::with(behind_services(4));
    let both: Vec<IpAddr> = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into();
    world.provider.clone_from(&both);
    let six = families(&[IpFamily::V6]);
    let held = world.get("blue/six", asking("blue/six", &[80], six));
    assert_eq!(held, ["2001:db8::1:80"]);
    let name = world.balancers.pop_first().unwrap().0;
    world.provider = both;
    world.engine.balancer(&name, None);
    world.settle();
    let families: Vec<_> = world.balancers.values().map(|one| one.family).collect();
    assert_eq!(families, [Some(IpFamily::V6)]);
    assert!(world.says("blue/six", "Programmed").starts_with("True"));
}

#[test]
fn an_address_that_is_being_given_back_is_given_to_nobody() {
    let mut world = World::with(behind_services(4));
    world.provider = (1..9).map(|n| [192, 0, 2, n].into()).collect();
    world.get("blue/a", tcp("blue/a", &[80]));
    world.delete("blue/a");
    let mut going = false;
    while !going {
        let effects = world.engine.step(&now());
        going = effects.balancers.iter().any(|(_, balancer)| balancer.is_none());
        // The hub takes its time.
        let balancers = Vec::new();
        world.carry_out(Effects { wake: None, balancers, ..effects });
    }
    world.apply("red/b", tcp("red/b", &[80]));
    let effects = world.engine.step(&now());
    assert!(effects.claim.is_empty(), "{:?}", effects.claim);
    world.carry_out(Effects { wake: None, ..effects });
    world.provide("fairlead-public-1", None);
    world.settle();
    assert_eq!(world.held("red/b"), ["192.0.2.2:80"]);
}

#[test]
fn a_provider_that_has_not_the_family_is_asked_once_and_holds_up_nobody_else() {
    let mut world = World::with(behind_services(4));
    world.get("blue/six", asking("blue/six", &[80], families(&[IpFamily::V6])));
    assert!(world.refused("blue/six").starts_with("AddressPending"));
    let addresses = vec!["192.0.2.1".parse().unwrap()];
    let other = seen(addresses);
    world.engine.balancer("fairlead-public-1", Some(other));
    world.settle();
    assert_eq!(world.balancers.len(), 1, "it waits on");
    world.get("red/web", asking("red/web", &[80], families(&[IpFamily::V4])));
    assert_eq!(world.held("red/web"), ["192.0.2.1:80"]);
    world.provider = vec!["192.0.2.2".parse().unwrap(), "192.0.2.3".parse().unwrap()];
    world.get("red/more", asking("red/more", &[80], families(&[IpFamily::V4])));
    assert_eq!(world.held("red/more"), ["192.0.2.2:80"]);
    assert_eq!(world.get("red/any", tcp("red/any", &[80])), ["192.0.2.3:80"]);
    world.delete("blue/six");
    world.settle();
    assert_eq!(world.balancers.len(), 3, "that of the other family is used");
}

#[test]
fn a_family_that_the_hub_refuses_and_a_service_that_never_goes_hold_up_nobody() {
    let mut world = World::with(behind_services(4));
    world.apply("blue/six", asking("blue/six", &[80], families(&[IpFamily::V6])));
    world.apply("red/web", tcp("red/web", &[80]));
    for _ in 0..10 {
        let mut effects = world.engine.step(&now());
        for (name, balancer) in std::mem::take(&mut effects.balancers) {
            match balancer {
                Some(one) if one.family == Some(IpFamily::V6) => {
                    world.engine.balancer_not_written(&name);
                }
                other => {
                    world.provider = vec!["192.0.2.1".parse().unwrap()];
                    world.provide(&name, other);
                }
            }
        }
        world.carry_out(Effects { wake: None, ..effects });
    }
    assert_eq!(world.held("red/web"), ["192.0.2.1:80"]);
    let name = world.balancers.keys().next().unwrap().clone();
    // Somebody deleted it, and its provider holds it.
    let going = SeenBalancer { going: true, ..seen(Vec::new()) };
    world.engine.balancer(&name, Some(going));
    world.delete("blue/six");
    world.settle();
    world.provider = vec!["192.0.2.2".parse().unwrap()];
    let next = asking("red/next", &[80], families(&[IpFamily::V4]));
    assert_eq!(world.get("red/next", next), ["192.0.2.2:80"]);
}

#[test]
fn a_leader_that_begins_takes_what_was_asked_for_from_the_services() {
    let mut world = World::with(behind_services(4));
    world.get("blue/six", asking("blue/six", &[80], families(&[IpFamily::V6])));
    let asked = SeenBalancer { family: Some(IpFamily::V6), ..seen(Vec::new()) };
    world.engine.lead(false);
    world.engine.balancer("fairlead-public-1", Some(asked));
    world.engine.lead(true);
    world.settle();
    assert_eq!(world.balancers["fairlead-public-1"].family, Some(IpFamily::V6));
    world.provider = vec!["192.0.2.2".parse().unwrap()];
    assert_eq!(world.get("red/web", tcp("red/web", &[80])), ["192.0.2.2:80"]);
    world.get("red/more", tcp("red/more", &[80]));
    assert!(world.refused("red/more").starts_with("AddressPending"));
    world.delete("blue/six");
    world.settle();
    assert!(!world.balancers.contains_key("fairlead-public-1"), "nobody wants that family now");
}

#[test]
fn a_route_of_two_families_that_is_made_anew_has_both_addresses_again() {
    for spec in [pool("10.9.0.1-10.9.0.2 fd00::1-fd00::2"), behind_services(6)] {
        let mut world = World::with(AddressPoolSpec { hold_seconds: 60, ..spec });
        world.provider = ["192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2"]
            .map(|ip| ip.parse().unwrap())
            .into();
        let both = families(&[IpFamily::V4, IpFamily::V6]);
        let held = world.get("blue/both", asking("blue/both", &[80], both.clone()));
        assert_eq!(held.len(), 2);
        world.get("red/next", tcp("red/next", &[80]));
        world.delete("blue/both");
        world.settle();
        world.get("red/more", tcp("red/more", &[80]));
        assert_eq!(world.get("blue/both", asking("blue/both", &[80], both)), held);
    }
}

#[test]
fn what_no_agent_sends_ends_as_a_condition() {
    let mut world = World::with(pool("10.9.0.1 fd00::1"));
    let twice = families(&[IpFamily::V4, IpFamily::V4]);
    world.get("blue/twice", asking("blue/twice", &[80], twice));
    assert!(world.refused("blue/twice").starts_with("Invalid spec.address.families"));
    let mut spec = tcp("blue/tls", &[80, 81]);
    let tls = fairlead_api::http::UpstreamTls { server_name: Some("A_B".into()), ca: None };
    spec.backends[0].upstream.tls = Some(tls);
    world.get("blue/tls", spec);
    assert!(world.refused("blue/tls").starts_with("Invalid spec.backends: \"tcp-80\""));
    let mut spec = tcp("blue/check", &[82]);
    spec.backends[0].upstream.health_check = Some(fairlead_api::http::HealthCheck {
        probe: fairlead_api::http::Probe::Http {
            path: "/".into(),
            host: Some("a\nb".into()),
            port: None,
        },
        interval_millis: 1_000,
        timeout_millis: 1_000,
        unhealthy_threshold: 1,
        healthy_threshold: 1,
    });
    assert_eq!(world.get("blue/check", spec), ["10.9.0.1:82"]);
    assert!(world.says("blue/check", "PartiallyInvalid").contains("healthCheck.host"));
    assert!(world.engine.routes[&id("blue/check")].checked.is_empty());
}

#[test]
fn a_restriction_that_cannot_be_read_closes_and_keeps_the_address() {
    let mut world = World::with(pool("10.9.0.1"));
    world.get("blue/a", tcp("blue/a", &[80]));
    let key = Key::new(ResourceType::Listener, "TCP/10.9.0.1:80");
    let open = world.served[&key];
    let mut spec = tcp("blue/a", &[80]);
    spec.clients.source_ranges = vec!["what".into()];
    assert_eq!(world.get("blue/a", spec), ["10.9.0.1:80"]);
    assert_ne!(world.served[&key], open, "nobody is let in");
    assert!(world.says("blue/a", "PartiallyInvalid").contains("so nobody is let in"));
    assert!(world.says("blue/a", "Accepted").starts_with("True"));
}

#[test]
fn a_restart_in_the_middle_of_a_change_serves_on() {
    let mut before = World::with(pool("10.9.0.1"));
    before.get("blue/a", tcp("blue/a", &[80]));
    let mut after = World::default();
    let tenant = TenantSpec { pools: vec!["public".into()], ..TenantSpec::default() };
    after.engine.tenant(&"blue".parse().unwrap(), Some(tenant.into()));
    after.engine.pool("public", Some(pool("10.9.0.1")));
    for claim in before.claims.values() {
        after.engine.claim(claim.clone());
    }
    let meta = Meta { generation: 9, ..before.engine.routes[&id("blue/a")].meta.clone() };
    let seen = before.statuses.get(&id("blue/a")).cloned();
    after.engine.route(id("blue/a"), meta, tcp("blue/a", &[80, 81]), seen);
    after.engine.complete();
    // Another manager leads still: this one claims nothing, and serves what is held.
    let effects = after.engine.step(&now());
    assert!(effects.claim.is_empty());
    let put =
        |change: &Change| matches!(change, Change::Put(one) if &*one.key.name == "TCP/10.9.0.1:80");
    assert!(effects.changes.iter().any(put), "{:?}", effects.changes);
}

#[test]
fn whoever_moved_by_name_does_not_move_back() {
    let mut world = World::with(AddressPoolSpec { hold_seconds: 60, ..pool("10.9.0.1-10.9.0.2") });
    world.get("blue/a", tcp("blue/a", &[0]));
    world.get("red/b", tcp("red/b", &[20_001]));
    assert_eq!(
        world.get("blue/a", asking("blue/a", &[0], at("10.9.0.2"))),
        ["10.9.0.1:20000", "10.9.0.2:20000"]
    );
    world.get("blue/a", tcp("blue/a", &[0]));
    assert_eq!(world.statuses[&id("blue/a")].addresses, ["10.9.0.2"]);
    world.seconds = 100;
    world.settle();
    assert_eq!(world.held("blue/a"), ["10.9.0.2:20000"]);
}

#[test]
fn the_next_address_is_taken_where_no_port_for_any_use_is_left() {
    let spec = AddressPoolSpec {
        any_ports: PortRange { first: 2_000, last: 2_002 },
        reserved_ports: vec![2_001],
        ..pool("10.9.0.1-10.9.0.2")
    };
    let mut world = World::with(spec);
    world.get("blue/a", tcp("blue/a", &[2_000, 2_002]));
    assert_eq!(world.get("blue/b", tcp("blue/b", &[0])), ["10.9.0.2:2000"]);
}

#[test]
fn a_second_family_that_is_only_preferred_refuses_nothing() {
    let mut world = World::with(pool("10.9.0.1-10.9.0.2 fd00::1"));
    world.get("red/x", asking("red/x", &[80], families(&[IpFamily::V6])));
    let prefers =
        AddressRequest { prefer_dual_stack: true, ..families(&[IpFamily::V4, IpFamily::V6]) };
    assert_eq!(world.get("blue/a", asking("blue/a", &[80], prefers)), ["10.9.0.1:80"]);
}

#[test]
fn a_pool_that_is_drained_gives_no_port_to_groups_and_incumbents_either() {
    let mut world = World::with(pool("10.9.0.1"));
    world.get("blue/a", asking("blue/a", &[80], group("g")));
    world.engine.pool("public", Some(AddressPoolSpec { draining: true, ..pool("10.9.0.1") }));
    assert!(world.get("blue/b", asking("blue/b", &[81], group("g"))).is_empty());
    assert!(world.refused("blue/b").contains("of a pool that is being drained"));
    assert_eq!(world.get("blue/a", asking("blue/a", &[80, 82], group("g"))), ["10.9.0.1:80"]);
    assert!(
        world
            .refused("blue/a")
            .contains("port 82/TCP of 10.9.0.1 is of a pool that is being drained")
    );
}

#[test]
fn a_claim_that_could_not_be_deleted_goes_with_the_next_look() {
    let mut world = World::with(AddressPoolSpec { hold_seconds: 60, ..pool("10.9.0.1") });
    world.get("blue/a", tcp("blue/a", &[80]));
    world.delete("blue/a");
    world.settle();
    world.seconds = 60;
    let effects = world.engine.step(&world.now());
    assert_eq!(effects.release.len(), 1);
    world.engine.not_released(&effects.release[0].0);
    world.settle();
    assert!(world.claims.is_empty(), "it is not held for another minute");
}

#[test]
fn a_hold_that_ends_under_a_wish_that_cannot_be_read_does_not_spin() {
    let mut world = World::with(AddressPoolSpec { hold_seconds: 60, ..pool("10.9.0.1") });
    world.get("blue/a", tcp("blue/a", &[80, 81]));
    world.get("blue/a", tcp("blue/a", &[80]));
    let mut broken = tcp("blue/a", &[80]);
    broken.rules.clear();
    world.get("blue/a", broken);
    world.seconds = 61;
    world.settle();
    assert_eq!(world.held("blue/a"), ["10.9.0.1:80"]);
}

#[derive(Debug, Clone)]
enum Step {
    Apply(u8, Vec<u16>, AddressRequest),
    Delete(u8),
    Settle,
    Later,
    Pool(AddressPoolSpec),
}

fn requests() -> impl Strategy<Value = AddressRequest> {
    prop_oneof![
        4 => Just(AddressRequest::default()),
        1 => Just(group("g")),
        1 => Just(alone()),
        1 => Just(families(&[IpFamily::V4, IpFamily::V6])),
        1 => Just(families(&[IpFamily::V6])),
        1 => (1..4_u8).prop_map(|n| at(&format!("10.9.0.{n}"))),
    ]
}

fn specs() -> impl Strategy<Value = AddressPoolSpec> {
    let sharing = prop_oneof![Just(Sharing::Any), Just(Sharing::Tenant), Just(Sharing::Exclusive)];
    let packing = prop_oneof![Just(Packing::Fill), Just(Packing::Spread)];
    let addresses =
        prop_oneof![Just("10.9.0.1-10.9.0.3 fd00::1-fd00::2"), Just("10.9.0.1-10.9.0.2")];
    (sharing, packing, addresses, prop::option::of(1..4_u32), 0..3_u32, any::<bool>()).prop_map(
        |(sharing, packing, addresses, most, hold_seconds, draining)| AddressPoolSpec {
            sharing,
            packing,
            max_routes_per_address: most,
            hold_seconds: hold_seconds * 5,
            draining,
            ..pool(addresses)
        },
    )
}

fn histories() -> impl Strategy<Value = Vec<Step>> {
    let ports = prop::collection::btree_set(prop_oneof![Just(0_u16), 80..83_u16], 1..3);
    let ports = ports.prop_map(|set| set.into_iter().collect());
    let step = prop_oneof![
        6 => (0..8_u8, ports, requests()).prop_map(|(n, p, a)| Step::Apply(n, p, a)),
        2 => (0..8_u8).prop_map(Step::Delete),
        2 => Just(Step::Settle),
        1 => Just(Step::Later),
        1 => specs().prop_map(Step::Pool),
    ];
    prop::collection::vec(step, 0..40)
}

fn of(number: u8) -> String {
    format!("{}/r{number}", if number.is_multiple_of(2) { "blue" } else { "red" })
}

proptest! {
    /// Whatever was asked, and however the pool changed: claims are disjoint (asserted where they are
    /// persisted), none leaks, all that is served is claimed, nobody moves, and a Route has all of its
    /// ports on one address of each family, or none.
    #[test]
    fn any_history_of_any_pool_ends_sound(spec in specs(), steps in histories()) {
        let mut world = World::with(spec);
        let mut homes: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Apply(number, ports, address) => {
                    if !address.ips.is_empty() {
                        homes.remove(&of(number));
                    }
                    world.apply(&of(number), asking(&of(number), &ports, address));
                }
                Step::Delete(number) => {
                    world.delete(&of(number));
                    homes.remove(&of(number));
                }
                Step::Settle => world.settle(),
                Step::Later => world.seconds += 6,
                Step::Pool(spec) => world.engine.pool("public", Some(spec)),
            }
            for (route, entry) in &world.engine.routes {
                let Some(serving) = &entry.serving else { continue };
                if entry.wish.as_ref().is_ok_and(|wish| !wish.ips.is_empty()) {
                    // Whoever asks for an address by name moves.
                    continue;
                }
                let name = route.name.as_str().rsplit('.').next().unwrap();
                let now: Vec<_> = serving.addresses.iter().map(ToString::to_string).collect();
                let home = homes.entry(format!("{}/{name}", route.tenant)).or_insert_with(|| now.clone());
                let of_same_family = |a: &String| home.iter().find(|b| a.contains(':') == b.contains(':')).cloned();
                for address in &now {
                    if let Some(before) = of_same_family(address) {
                        prop_assert_eq!(&before, address, "{} moved", route);
                    }
                }
                *home = now;
            }
        }
        world.settle();
        for entry in world.engine.routes.values() {
            let Some(serving) = &entry.serving else { continue };
            let families: BTreeSet<_> = serving.addresses.iter().map(|ip| IpFamily::of(*ip)).collect();
            prop_assert_eq!(families.len(), serving.addresses.len());
        }
    }

    /// The hub's provider is asked for what is used, and has all of it back; it never ends up giving and taking.
    #[test]
    fn any_history_of_the_hubs_own_addresses_ends_sound(
        steps in histories(), most in 1..5_u32, hold_seconds in 0..2_u32, ports in 2..9_u32,
    ) {
        let mut world = World::with(AddressPoolSpec { hold_seconds: hold_seconds * 5, ..behind_services(most) });
        world.provider = (1..200_u8)
            .flat_map(|n| [IpAddr::from([192, 0, 2, n]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()])])
            .collect();
        let quotas = fairlead_api::tenant::Quotas { addresses: 2, ports, ..Default::default() };
        let bounded = TenantSpec { pools: vec!["public".into()], quotas, ..TenantSpec::default() };
        world.engine.tenant(&"blue".parse().unwrap(), Some(bounded.into()));
        for step in steps {
            match step {
                Step::Apply(n, ports, address) => world.apply(&of(n), asking(&of(n), &ports, address)),
                Step::Delete(n) => world.delete(&of(n)),
                Step::Settle => world.settle(),
                Step::Later => world.seconds += 6,
                Step::Pool(_) => {}
            }
        }
        world.settle();
        let waits = world.statuses.keys().any(|id| world.verdict(id, "Accepted").contains("AddressPending"));
        for (name, balancer) in &world.balancers {
            prop_assert!(!balancer.ports.is_empty() || waits, "{} is of no use", name);
        }
        for claim in world.claims.values().filter(|claim| !claim.is_target()) {
            prop_assert!(world.engine.pools["public"].contains(claim.key.address), "{:?}", claim.key);
        }
        for n in 0..8 {
            world.delete(&of(n));
        }
        world.settle();
        world.seconds += 6;
        world.settle();
        prop_assert!(world.balancers.is_empty() && world.claims.is_empty());
    }

    /// The same history gives the same result, whatever the order in which a restart reads it back.
    #[test]
    fn equal_histories_give_equal_claims(spec in specs(), steps in histories()) {
        let run = || {
            let mut world = World::with(spec.clone());
            for step in steps.clone() {
                match step {
                    Step::Apply(n, ports, address) => world.apply(&of(n), asking(&of(n), &ports, address)),
                    Step::Delete(n) => world.delete(&of(n)),
                    Step::Settle => world.settle(),
                    Step::Later => world.seconds += 6,
                    Step::Pool(spec) => world.engine.pool("public", Some(spec)),
                }
            }
            world.settle();
            (world.claims, world.statuses)
        };
        prop_assert_eq!(run(), run());
    }
}
