//! Tenants that do not trust each other: what each attack comes to.

use fairlead_api::condition::{ACCEPTED, CONFLICTED, RESOLVED_REFS};
use fairlead_api::pool::ServiceTemplate;
use fairlead_api::tenant::Quotas;
use fairlead_api::{Exposure, Packing, PortRange};

use super::http::{ing, ingress};
use super::*;

fn tenant(id: &str) -> TenantId {
    id.parse().unwrap()
}

fn permissions() -> TenantSpec {
    TenantSpec { pools: vec!["public".into()], ..TenantSpec::default() }
}

impl World {
    fn tenant_may(&mut self, id: &str, spec: TenantSpec) {
        self.engine.tenant(&tenant(id), Some(spec.into()));
        self.settle();
    }

    fn blue_may_hold(&mut self, quotas: Quotas) {
        self.tenant_may("blue", TenantSpec { quotas, ..permissions() });
    }

    /// Blue may be on so many addresses of a pool that all share.
    fn blue_may_have(&mut self, count: u32, pool: AddressPoolSpec) {
        self.engine.pool("public", Some(AddressPoolSpec { sharing: Sharing::Any, ..pool }));
        self.blue_may_hold(Quotas { addresses: count, ..Quotas::default() });
    }

    fn publish(&mut self, route: &str, ports: &[u16]) -> String {
        self.apply(route, tcp(route, ports));
        self.settle();
        self.verdict(&id(route), ACCEPTED)
    }
}

#[test]
fn a_host_outside_of_the_tenants_domains_is_left_out_and_the_others_are_served() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    let domains = vec!["*.blue.example".into(), "shop.example".into()];
    world.tenant_may("blue", TenantSpec { domains, ..permissions() });
    let rules = "a.blue.example/>web:80 *.blue.example/>web:80 shop.example/>web:80 bank.example/>web:80 \
                 xblue.example/>web:80";
    world.apply_at(ing("blue/web"), ingress(rules));
    world.settle();
    let hosts: Vec<_> = world.hosts.keys().map(|key| &*key.hostname).collect();
    assert_eq!(hosts, ["*.blue.example", "a.blue.example", "shop.example"]);
    let told = world.verdict(&ing("blue/web"), CONFLICTED);
    assert!(told.starts_with("True HostnameNotAllowed"), "{told}");
    for name in ["\"bank.example\"", "\"xblue.example\"", "*.blue.example, shop.example"] {
        assert!(told.contains(name), "{name}: {told}");
    }
    assert!(world.verdict(&ing("blue/web"), ACCEPTED).starts_with("True"));
}

#[test]
fn a_host_that_a_tenant_may_have_no_more_is_given_back() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.apply_at(ing("blue/web"), ingress("shop.example/>web:80"));
    world.settle();
    let domains = vec!["*.blue.example".into()];
    world.tenant_may("blue", TenantSpec { domains, ..permissions() });
    assert!(world.hosts.is_empty());
    let told = world.verdict(&ing("blue/web"), ACCEPTED);
    assert!(told.starts_with("False HostnameNotAllowed"), "{told}");
    world.apply_at(ing("red/web"), ingress("shop.example/>web:80"));
    world.settle();
    assert!(world.verdict(&ing("red/web"), ACCEPTED).starts_with("True"));
}

/// Rules without a host would answer for every name that nobody has.
#[test]
fn a_tenant_with_domains_has_no_rule_for_any_host() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    let domains = vec!["*.blue.example".into()];
    world.tenant_may("blue", TenantSpec { domains, ..permissions() });
    world.apply_at(ing("blue/web"), ingress("*/>web:80"));
    world.settle();
    let told = world.verdict(&ing("blue/web"), ACCEPTED);
    assert!(
        told.starts_with("False HostnameNotAllowed") && told.contains("without a host"),
        "{told}"
    );
}

#[test]
fn two_tenants_that_race_for_1000_names_get_each_one_winner() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    for number in 0..1_000 {
        let rules = format!("n{number}.example/>web:80");
        // Both before anything is decided, in changing order.
        let mut both = ["blue", "red"];
        both.rotate_left(number % 2);
        for tenant in both {
            world.apply_at(ing(&format!("{tenant}/i{number}")), ingress(&rules));
        }
    }
    world.settle();
    assert_eq!(world.hosts.len(), 1_000);
    for number in 0..1_000 {
        let told: Vec<_> = ["blue", "red"]
            .map(|tenant| world.verdict(&ing(&format!("{tenant}/i{number}")), ACCEPTED))
            .into_iter()
            .filter(|told| told.starts_with("True"))
            .collect();
        assert_eq!(told.len(), 1, "n{number}");
    }
    let losers = world.statuses.values().filter(|status| {
        status.conditions.iter().any(|c| c.type_ == CONFLICTED && c.status == "True")
    });
    assert_eq!(losers.count(), 1_000);
}

#[test]
fn a_node_address_is_one_tenants_also_after_a_restart_and_until_it_lets_go() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    assert!(world.publish("blue/web", &[80]).starts_with("True"));
    // Red says that blue's node is its own.
    world.nodes("red", &["10.0.0.1"]);
    world.publish("red/web", &[81]);
    let told = world.verdict(&id("red/web"), RESOLVED_REFS);
    assert!(
        told.starts_with("False NodeNotAllowed") && told.contains("another tenant's"),
        "{told}"
    );
    assert_eq!(world.node_sets[&tenant("blue")].addresses, ["10.0.0.1", "10.0.0.2"]);
    let refused = &world.node_sets[&tenant("red")];
    assert!(
        refused.addresses.is_empty() && refused.refused[0].starts_with("n0: 10.0.0.1"),
        "{refused:?}"
    );

    // A manager that begins anew, and reads red first.
    let mut after = World { node_sets: world.node_sets.clone(), ..World::default() };
    for name in ["red", "blue"] {
        after.engine.tenant(&tenant(name), Some(permissions().into()));
        after.nodes(name, &["10.0.0.1"]);
    }
    after.engine.lead(true);
    after.engine.complete();
    after.settle();
    assert_eq!(after.engine.nodes[&tenant("blue")].addresses.len(), 1);
    assert!(after.engine.nodes[&tenant("red")].addresses.is_empty());

    world.nodes("blue", &["10.0.0.2"]);
    world.settle();
    assert!(world.verdict(&id("red/web"), RESOLVED_REFS).starts_with("True"));
    // What was written of blue long ago takes nothing back.
    world.node_sets.get_mut(&tenant("blue")).unwrap().addresses = vec!["10.0.0.1".into()];
    world.nodes("blue", &["10.0.0.1", "10.0.0.2"]);
    world.settle();
    assert!(world.verdict(&id("red/web"), RESOLVED_REFS).starts_with("True"));
}

#[test]
fn nodes_that_come_bring_no_more_endpoints_than_a_tenant_may_have() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.blue_may_hold(Quotas { endpoints: 10, ..Quotas::default() });
    for port in [80, 81, 82, 83, 84] {
        assert!(world.publish(&format!("blue/r{port}"), &[port]).starts_with("True"));
    }
    let many: Vec<String> = (1..=100).map(|n| format!("10.0.9.{n}")).collect();
    world.nodes("blue", &many.iter().map(String::as_str).collect::<Vec<_>>());
    world.settle();
    assert_eq!(world.engine.nodes[&tenant("blue")].addresses.len(), 2);
    assert!(world.node_sets[&tenant("blue")].refused[0].contains("quotas.endpoints"));
    assert!(world.verdict(&id("blue/r80"), ACCEPTED).starts_with("True"));
}

#[test]
fn the_hubs_own_addresses_are_no_tenants_nodes() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.publish("blue/web", &[80]);
    for (address, why) in [
        ("10.9.0.1", "a pool"),
        ("10.7.0.1", "refusedCIDRs"),
        ("10.6.0.9", "the hub's own network"),
        ("127.0.0.1", "loopback"),
        ("169.254.169.254", "link-local"),
        ("::ffff:10.0.0.1", "loopback"),
    ] {
        world.engine.forbid(vec!["10.7.0.0/16".parse().unwrap()]);
        world.engine.hub_network("node/hub-9", vec!["10.6.0.0/24".parse().unwrap()]);
        world.nodes("blue", &[address]);
        world.settle();
        let told = world.verdict(&id("blue/web"), RESOLVED_REFS);
        assert!(
            told.starts_with("False NodeNotAllowed") && told.contains(why),
            "{address}: {told}"
        );
        assert!(world.engine.nodes[&tenant("blue")].addresses.is_empty(), "{address}");
    }
}

#[test]
fn an_address_is_free_once_the_hub_has_no_such_node() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.publish("blue/web", &[80]);
    world.nodes("blue", &["10.6.0.9"]);
    world.engine.hub_network("node/hub-9", vec!["10.6.0.9/32".parse().unwrap()]);
    world.settle();
    assert!(world.verdict(&id("blue/web"), RESOLVED_REFS).starts_with("False NodeNotAllowed"));
    world.engine.hub_network("node/hub-9", Vec::new());
    world.settle();
    assert!(world.verdict(&id("blue/web"), RESOLVED_REFS).starts_with("True"));
}

#[test]
fn a_node_port_outside_of_the_range_gets_no_traffic() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    let node_ports = PortRange { first: 30_000, last: 30_079 };
    world.tenant_may("blue", TenantSpec { node_ports, ..permissions() });
    world.publish("blue/good", &[79]);
    world.publish("blue/bad", &[80]);
    assert!(world.verdict(&id("blue/good"), RESOLVED_REFS).starts_with("True"));
    let told = world.verdict(&id("blue/bad"), RESOLVED_REFS);
    assert!(told.starts_with("False NodePortNotAllowed") && told.contains("30080"), "{told}");
    let nodes = &world.engine.nodes[&tenant("blue")];
    let wish = world.engine.routes[&id("blue/bad")].wish.clone().unwrap();
    assert_eq!(crate::translate::members(&wish.backends[0], nodes).count(), 0);
}

#[test]
fn each_quota_is_told_when_it_is_reached_and_what_is_held_stays() {
    for (quotas, word) in [
        (Quotas { ports: 2, ..Quotas::default() }, "2 ports"),
        (Quotas { addresses: 1, ..Quotas::default() }, "1 addresses"),
        (Quotas { endpoints: 4, ..Quotas::default() }, "4 endpoints"),
    ] {
        let mut world = World::new("10.9.0.1-10.9.0.3", Sharing::Exclusive);
        assert!(world.publish("blue/one", &[80]).starts_with("True"), "{word}");
        world.blue_may_hold(quotas.clone());
        let second = world.publish("blue/two", &[80]);
        if word == "1 addresses" {
            assert!(second.starts_with("False QuotaReached") && second.contains(word), "{second}");
        } else {
            assert!(second.starts_with("True"), "{word}: {second}");
        }
        let third = world.publish("blue/three", &[80]);
        assert!(third.starts_with("False QuotaReached") && third.contains(word), "{word}: {third}");
        assert!(world.verdict(&id("blue/one"), ACCEPTED).starts_with("True"), "{word}");
        assert!(world.publish("red/web", &[80]).starts_with("True"), "others are unaffected");
        // Raised, it is served at once.
        world.tenant_may("blue", permissions());
        let total = world.statuses.values().filter(|s| !s.addresses.is_empty()).count();
        assert_eq!(total, 3, "{word}: the pool has three");
    }
}

#[test]
fn a_tenant_that_may_have_no_more_addresses_has_the_ports_of_its_own() {
    for packing in [Packing::Fill, Packing::Spread] {
        let addresses = vec!["10.9.0.1-10.9.0.9".into()];
        let mut world = World::new("10.9.0.1", Sharing::Any);
        world.blue_may_have(1, AddressPoolSpec { addresses, packing, ..Default::default() });
        world.publish("red/web", &[80]);
        world.publish("blue/web", &[80]);
        assert_eq!(world.held("blue/web"), ["10.9.0.2:80"]);
        let told = world.publish("blue/more", &[81]);
        assert!(told.starts_with("True"), "{packing:?}: {told}");
        assert_eq!(world.held("blue/more"), ["10.9.0.2:81"], "and not at 10.9.0.1 or .3");
        let told = world.publish("blue/again", &[80]);
        assert!(told.starts_with("False QuotaReached"), "{packing:?}: {told}");
    }
}

#[test]
fn host_names_go_to_the_tenants_own_address_where_it_may_have_no_other() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    let addresses = vec!["10.9.0.1-10.9.0.9".into()];
    world.blue_may_have(1, AddressPoolSpec { addresses, ..Default::default() });
    let second = at("10.9.0.2");
    world.apply("blue/web", RouteSpec { address: second, ..tcp("blue/web", &[81]) });
    world.apply_at(ing("red/site"), ingress("red.example/>web:80"));
    world.settle();
    assert_eq!(world.statuses[&ing("red/site")].addresses, ["10.9.0.1"]);
    world.apply_at(ing("blue/site"), ingress("blue.example/>web:80"));
    world.settle();
    assert_eq!(world.statuses[&ing("blue/site")].addresses, ["10.9.0.2"], "red's is shared, too");
}

#[test]
fn two_families_are_on_one_old_and_one_new_address_or_on_one_within_a_quota() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    let addresses = vec!["10.9.0.1-10.9.0.9".into(), "fd00::1".into()];
    world.blue_may_have(2, AddressPoolSpec { addresses, ..Default::default() });
    world.publish("red/web", &[80]);
    world.publish("blue/web", &[80]);
    let both = |prefer_dual_stack| AddressRequest {
        families: vec![IpFamily::V4, IpFamily::V6],
        prefer_dual_stack,
        ..AddressRequest::default()
    };
    world.apply("blue/both", RouteSpec { address: both(false), ..tcp("blue/both", &[81]) });
    world.settle();
    assert_eq!(world.held("blue/both"), ["10.9.0.2:81", "fd00::1:81"]);
    world.delete("blue/both");
    world.settle();
    world.blue_may_hold(Quotas { addresses: 1, ..Quotas::default() });
    world.apply("blue/both", RouteSpec { address: both(false), ..tcp("blue/both", &[81]) });
    world.settle();
    assert!(world.verdict(&id("blue/both"), ACCEPTED).starts_with("False QuotaReached"));
    world.apply("blue/both", RouteSpec { address: both(true), ..tcp("blue/both", &[81]) });
    world.settle();
    assert_eq!(world.held("blue/both"), ["10.9.0.2:81"], "preferred, not required");
    world.delete("blue/web");
    world.delete("blue/both");
    world.settle();
    world.apply("blue/first", RouteSpec { address: both(true), ..tcp("blue/first", &[82]) });
    world.settle();
    assert_eq!(world.held("blue/first"), ["10.9.0.1:82"]);
}

#[test]
fn a_second_family_that_is_only_preferred_is_no_price_for_a_port_and_comes_when_there_is_room() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    let addresses = vec!["10.9.0.1-10.9.0.9".into(), "fd00::1".into()];
    world.blue_may_have(2, AddressPoolSpec { addresses, ..Default::default() });
    world.blue_may_hold(Quotas { addresses: 2, ports: 3, ..Quotas::default() });
    let prefers = |ports: &[u16]| {
        let (families, prefer_dual_stack) = (vec![IpFamily::V4, IpFamily::V6], true);
        let address = AddressRequest { families, prefer_dual_stack, ..AddressRequest::default() };
        RouteSpec { address, ..tcp("blue/both", ports) }
    };
    world.apply("blue/both", prefers(&[80]));
    world.settle();
    let held = ["10.9.0.1:80", "fd00::1:80"];
    assert_eq!(world.held("blue/both"), held);
    world.apply("blue/both", prefers(&[80, 81]));
    world.settle();
    assert!(world.verdict(&id("blue/both"), ACCEPTED).contains("3 ports"));
    assert_eq!(world.held("blue/both"), held, "an incumbent loses nothing");
    world.delete("blue/both");
    world.blue_may_hold(Quotas { addresses: 2, ..Quotas::default() });
    world.publish("red/web", &[80]);
    assert_eq!(world.held("red/web"), ["10.9.0.1:80"]);
    for (name, ip) in [("blue/one", "10.9.0.2"), ("blue/two", "10.9.0.3")] {
        world.apply(name, RouteSpec { address: at(ip), ..tcp(name, &[81]) });
    }
    world.apply("blue/both", prefers(&[80]));
    world.settle();
    assert_eq!(world.held("blue/both"), ["10.9.0.2:80"], "it may be on no more");
    world.delete("blue/two");
    world.settle();
    assert_eq!(world.held("blue/both"), ["10.9.0.2:80", "fd00::1:80"]);
}

#[test]
fn the_hubs_provider_is_not_asked_for_an_address_that_the_tenant_could_not_use() {
    for quotas in [
        Quotas { addresses: 1, ..Quotas::default() },
        Quotas { ports: 1, ..Quotas::default() },
        Quotas { endpoints: 2, ..Quotas::default() },
    ] {
        let mut world = World::new("10.9.0.1", Sharing::Any);
        world.blue_may_hold(quotas.clone());
        let service = ServiceTemplate { max_addresses: 3, ..ServiceTemplate::default() };
        let (exposure, sharing) = (Exposure::Service, Sharing::Any);
        let spec = AddressPoolSpec { exposure, service, sharing, ..AddressPoolSpec::default() };
        world.engine.pool("public", Some(spec));
        world.provider = (1..9).map(|n| [192, 0, 2, n].into()).collect();
        assert!(world.publish("blue/web", &[80]).starts_with("True"));
        let told = world.publish("blue/more", &[80]);
        assert!(told.starts_with("False QuotaReached"), "{quotas:?}: {told}");
        assert_eq!((world.balancers.len(), world.provider.len()), (1, 7), "{quotas:?}");
        assert!(world.publish("red/web", &[80]).starts_with("True"));
    }
}

#[test]
fn fewer_endpoints_make_room_for_another_route() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.blue_may_hold(Quotas { endpoints: 4, ..Quotas::default() });
    world.apply_at(ing("blue/site"), ingress("a.example/>web:80 a.example/api>api:80"));
    world.settle();
    let told = world.publish("blue/more", &[81]);
    assert!(told.starts_with("False QuotaReached"), "two backends at two nodes: {told}");
    world.apply_at(ing("blue/site"), ingress("a.example/>web:80"));
    world.settle();
    let told = world.verdict(&id("blue/more"), ACCEPTED);
    assert!(told.starts_with("True"), "no claim was given back: {told}");
}

#[test]
fn host_names_have_a_quota() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.blue_may_hold(Quotas { hostnames: 1, ..Quotas::default() });
    world.apply_at(ing("blue/web"), ingress("a.example/>web:80 b.example/>web:80"));
    world.settle();
    assert_eq!(world.hosts.len(), 1);
    let told = world.verdict(&ing("blue/web"), CONFLICTED);
    assert!(told.starts_with("True QuotaReached") && told.contains("1 hostnames"), "{told}");
}
