//! Scenarios of layer 7.

use fairlead_api::http::{
    BackendRef, Cors, Host, HostTls, HttpMatch, HttpRule, PathMatch, PathMatchType, TlsMode,
    UpstreamTls,
};
use fairlead_api::route::Backend as ApiBackend;

use super::*;
use crate::http::Pair;

pub(super) fn ing(text: &str) -> RouteId {
    let (tenant, name) = text.split_once('/').unwrap();
    let name = RouteName::new(SourceKind::Ingress, "shop", name).unwrap();
    RouteId { tenant: tenant.parse().unwrap(), name }
}

/// An Ingress: `shop.example.com/cart>cart:80 *.example.com/>web:80`; `+tls` after a host's name asks
/// for its certificate.
pub(super) fn ingress(rules: &str) -> RouteSpec {
    let mut hosts: BTreeMap<String, Host> = BTreeMap::new();
    let mut backends = BTreeMap::new();
    for (index, rule) in rules.split_whitespace().enumerate() {
        let (from, service) = rule.split_once('>').unwrap();
        let (name, path) = from.split_once('/').unwrap();
        let (name, tls) = match name.strip_suffix("+tls") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let host = hosts
            .entry(name.into())
            .or_insert_with(|| Host { hostname: name.into(), ..Host::default() });
        if tls {
            let certificate = Some("cert".into());
            host.tls = Some(HostTls { mode: TlsMode::Terminate, certificate, redirect: true });
        }
        let path = PathMatch { kind: PathMatchType::PathPrefix, value: format!("/{path}") };
        host.rules.push(HttpRule {
            name: format!("spec.rules[{index}]"),
            matches: vec![HttpMatch { path, headers: Vec::new() }],
            backends: vec![BackendRef { name: service.into(), weight: 1 }],
            ..HttpRule::default()
        });
        backends.insert(service.to_owned(), ApiBackend::new(service, 30_080));
    }
    let listener = |name: &str, protocol, port| ApiListener { name: name.into(), protocol, port };
    let source = Source {
        kind: SourceKind::Ingress,
        namespace: "shop".into(),
        name: "any".into(),
        uid: String::new(),
        created: 0,
    };
    RouteSpec {
        listeners: vec![
            listener("http", Protocol::Http, 80),
            listener("https", Protocol::Https, 443),
        ],
        backends: backends.into_values().collect(),
        hosts: hosts.into_values().collect(),
        ..RouteSpec::new(source, "00")
    }
}

impl World {
    fn ingress(&mut self, route: &str, rules: &str) {
        self.apply_at(ing(route), ingress(rules));
        self.settle();
    }

    pub(super) fn apply_at(&mut self, id: RouteId, spec: RouteSpec) {
        self.generation += 1;
        let old = self.engine.routes.get(&id).map(|entry| entry.meta.clone());
        let (uid, created) = old
            .map_or((format!("u{}", self.generation).into(), self.generation), |m| {
                (m.uid, m.created)
            });
        let seen = self.statuses.get(&id).cloned();
        let meta = Meta { uid, created, generation: self.generation };
        self.engine.route(id, meta, spec, seen);
    }

    fn gone(&mut self, route: &str) {
        self.engine.route_gone(&ing(route));
        self.statuses.remove(&ing(route));
        self.settle();
    }

    fn certificate(&mut self, tenant: &str, name: &str, chain: &str) {
        let id = SecretId {
            tenant: tenant.parse().unwrap(),
            namespace: "shop".into(),
            name: name.into(),
        };
        let pair = Pair { chain: chain.into(), key: b"key".to_vec() };
        let secret = Secret { certificate: Some(Ok(pair)), ..Secret::default() };
        self.engine.secret(&id, Some(secret));
        self.settle();
    }

    fn names(&self, kind: ResourceType) -> Vec<&str> {
        self.served.keys().filter(|key| key.kind == kind).map(|key| &*key.name).collect()
    }

    pub(super) fn told(&self, route: &str, kind: &str) -> String {
        self.verdict(&ing(route), kind)
    }

    /// The resources that a change sends.
    fn sent(&mut self, work: impl FnOnce(&mut Self)) -> Vec<String> {
        let before = self.served.clone();
        work(self);
        let changed = self.served.iter().filter(|(key, version)| before.get(key) != Some(version));
        let gone = before.keys().filter(|key| !self.served.contains_key(key));
        changed.map(|(key, _)| key.to_string()).chain(gone.map(|key| format!("-{key}"))).collect()
    }
}

#[test]
fn who_shares_a_port_by_names_does_not_wait_for_a_second_address() {
    let mut world = World::new("10.9.0.1 fd00::1", Sharing::Any);
    let mut spec = ingress("shop.example.com/>web:80");
    spec.address.families = vec![IpFamily::V4, IpFamily::V6];
    spec.address.prefer_dual_stack = true;
    world.apply_at(ing("blue/a"), spec);
    world.settle();
    assert!(world.told("blue/a", "Accepted").starts_with("True"));
    world.engine.retry_waiting();
    assert!(world.engine.later.is_empty(), "there is nothing that it could get");
}

#[test]
fn ingresses_of_two_tenants_share_an_address_by_their_hosts() {
    let mut world = World::new("10.9.0.1 10.9.0.2", Sharing::Any);
    world.ingress("blue/a", "a.example/>web:80");
    world.ingress("red/b", "b.example/>web:80");
    assert_eq!(
        world.names(ResourceType::ScopedRoutes),
        ["10.9.0.1:80/a.example", "10.9.0.1:80/b.example"]
    );
    assert_eq!(world.names(ResourceType::Listener), ["TCP/10.9.0.1:80"]);
    assert_eq!(
        world.names(ResourceType::Cluster),
        ["blue/shop/web:80@30080", "red/shop/web:80@30080"]
    );
    assert!(
        world.told("red/b", "Programmed").starts_with("True"),
        "{}",
        world.told("red/b", "Programmed")
    );
    let status = &world.statuses[&ing("red/b")];
    assert_eq!(status.addresses, ["10.9.0.1"]);
    assert_eq!((&*status.display.hostnames, &*status.display.ports), ("b.example", "80/HTTP"));
    let holders: Vec<_> = world.claims.values().map(|claim| claim.spec().tenant).collect();
    assert_eq!(holders, ["", ""], "ports 80 and 443 are everybody's");
    world.gone("blue/a");
    assert_eq!(world.names(ResourceType::ScopedRoutes), ["10.9.0.1:80/b.example"]);
    world.gone("red/b");
    assert!(world.claims.is_empty() && world.hosts.is_empty() && world.served.is_empty());
}

#[test]
fn a_pool_of_one_tenant_each_keeps_their_hosts_on_addresses_of_their_own() {
    let mut world = World::new("10.9.0.1 10.9.0.2", Sharing::Tenant);
    world.ingress("blue/a", "a.example/>web:80");
    world.ingress("red/b", "b.example/>web:80");
    world.ingress("blue/c", "c.example/>web:80");
    let at = |route: &str| world.statuses[&ing(route)].addresses[0].clone();
    assert_eq!([at("blue/a"), at("red/b"), at("blue/c")], ["10.9.0.1", "10.9.0.2", "10.9.0.1"]);
    assert!(World::new("10.9.0.1", Sharing::Exclusive).claims.is_empty());
}

#[test]
fn an_exclusive_address_has_one_ingress() {
    let mut world = World::new("10.9.0.1", Sharing::Exclusive);
    world.ingress("blue/a", "a.example/>web:80");
    world.ingress("blue/b", "b.example/>web:80");
    assert!(world.told("blue/a", "Programmed").starts_with("True"));
    assert!(world.told("blue/b", "Accepted").starts_with("False PoolExhausted"));
    world.gone("blue/a");
    assert!(world.told("blue/b", "Programmed").starts_with("True"));
}

#[test]
fn a_host_is_the_tenants_who_claimed_it_first_and_the_next_takes_over() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.ingress("blue/a", "a.example/>web:80");
    world.ingress("red/b", "a.example/>web:80 b.example/>web:80");
    assert!(world.told("red/b", "Accepted").starts_with("True"), "b.example works");
    let conflict = world.told("red/b", "Conflicted");
    assert!(conflict.starts_with("True HostnameConflict host \"a.example\""), "{conflict}");
    assert!(!conflict.contains("blue"), "another tenant is never named: {conflict}");
    world.ingress("red/c", "x.w.example/>web:80");
    world.ingress("blue/d", "*.w.example/>web:80");
    let overlap = world.told("blue/d", "Accepted");
    assert!(overlap.starts_with("False HostnameConflict"), "{overlap}");
    world.gone("blue/a");
    assert_eq!(world.told("red/b", "Conflicted"), "");
    assert_eq!(
        world.hosts[&HostKey::new("a.example", "10.9.0.1".parse().unwrap())].tenant.as_str(),
        "red"
    );
    world.gone("red/c");
    assert!(world.told("blue/d", "Programmed").starts_with("True"));
}

#[test]
fn an_older_route_that_adds_a_name_later_does_not_take_it_away() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.ingress("blue/a", "a.example/>web:80");
    world.ingress("red/b", "b.example/>web:80");
    world.ingress("blue/a", "a.example/>web:80 b.example/>web:80");
    assert!(world.told("blue/a", "Conflicted").starts_with("True"));
    assert!(world.told("red/b", "Programmed").starts_with("True"));
    // A restart changes nothing: the claims are there.
    let hosts = std::mem::take(&mut world.hosts);
    let mut again = World::new("10.9.0.1", Sharing::Any);
    again.apply_at(ing("blue/a"), ingress("a.example/>web:80 b.example/>web:80"));
    again.apply_at(ing("red/b"), ingress("b.example/>web:80"));
    for claim in hosts.into_values() {
        again.hosts.insert(claim.key.clone(), claim.clone());
        again.engine.host(claim);
    }
    again.settle();
    assert!(again.told("blue/a", "Conflicted").starts_with("True"));
    assert_eq!(again.told("red/b", "Conflicted"), "");
}

#[test]
fn two_ingresses_of_a_tenant_share_a_host_the_oldest_first() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.ingress("blue/a", "a.example/x>one:80");
    world.ingress("blue/b", "a.example/x>two:80 a.example/y>two:80");
    let told = world.told("blue/b", "PartiallyInvalid");
    assert!(told.contains("/x of host \"a.example\" is served by the older ing.shop.a"), "{told}");
    assert_eq!(world.names(ResourceType::Routes), ["10.9.0.1:80/a.example"]);
    world.gone("blue/a");
    assert_eq!(world.told("blue/b", "PartiallyInvalid"), "");
    assert_eq!(world.names(ResourceType::Cluster), ["blue/shop/two:80@30080"]);
}

#[test]
fn one_rule_more_sends_the_routes_of_that_host_and_nothing_else() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    for number in 0..1_000 {
        world.apply_at(
            ing(&format!("blue/i{number}")),
            ingress(&format!("h{number}.example/>web:80")),
        );
    }
    world.ingress("red/other", "other.example/>web:80");
    let sent =
        world.sent(|world| world.ingress("blue/i7", "h7.example/>web:80 h7.example/new>web:80"));
    assert_eq!(sent, ["Routes 10.9.0.1:80/h7.example"]);
    let sent =
        world.sent(|world| world.ingress("blue/i7", "h7.example/>web:80 h7.example/new>api:80"));
    let new = [
        "Cluster blue/shop/api:80@30080",
        "Endpoints blue/shop/api:80@30080",
        "Routes 10.9.0.1:80/h7.example",
    ];
    assert_eq!(sent, new);
}

#[test]
fn tls_needs_a_certificate_and_a_new_one_touches_nothing_else() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.ingress("blue/a", "a.example+tls/>web:80 b.example/>web:80");
    assert_eq!(world.names(ResourceType::Listener), ["TCP/10.9.0.1:80"], "no certificate, no TLS");
    assert!(world.told("blue/a", "ResolvedRefs").contains("no good certificate for a.example"));
    world.certificate("blue", "cert", "one");
    assert_eq!(world.names(ResourceType::Listener), ["TCP/10.9.0.1:443", "TCP/10.9.0.1:80"]);
    assert!(world.told("blue/a", "ResolvedRefs").starts_with("True"));
    let sent = world.sent(|world| world.certificate("blue", "cert", "two"));
    assert_eq!(sent, ["Secret blue/shop/cert"]);
    let sent = world.sent(|world| world.ingress("red/c", "c.example+tls/>web:80"));
    assert!(!sent.iter().any(|key| key.contains(":443")), "red has no certificate: {sent:?}");
}

#[test]
fn a_cluster_that_would_wait_for_its_authority_is_not_sent() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    let mut spec = ingress("a.example/>web:80 a.example/other>api:80");
    let web = spec.backends.iter_mut().find(|backend| backend.name == "web:80").unwrap();
    let ca = Some("cert".into());
    web.upstream.tls = Some(UpstreamTls { ca, server_name: None });
    world.apply_at(ing("blue/a"), spec);
    world.settle();
    assert_eq!(world.names(ResourceType::Cluster), ["blue/shop/api:80@30080"]);
    assert!(world.told("blue/a", "Programmed").starts_with("True"), "the rest is served");
    let id =
        SecretId { tenant: "blue".parse().unwrap(), namespace: "shop".into(), name: "cert".into() };
    let secret = Secret { ca: Some(Ok(b"ca".to_vec())), ..Secret::default() };
    world.engine.secret(&id, Some(secret));
    world.settle();
    assert_eq!(world.names(ResourceType::Cluster).len(), 2);
}

#[test]
fn what_envoy_refuses_is_taken_back_and_told_in_its_words() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.ingress("blue/a", "a.example/>web:80");
    let key = Key::new(ResourceType::Routes, "10.9.0.1:80/a.example");
    let good = world.served[&key];
    world.refuse_new = true;
    world.ingress("blue/a", "a.example/poison>api:80");
    let told = world.told("blue/a", "Programmed");
    let clusters = world.names(ResourceType::Cluster);
    assert!(clusters.contains(&"blue/shop/web:80@30080"), "what is served needs it: {clusters:?}");
    assert!(told.starts_with("False Rejected") && told.contains("bad, bad"), "{told}");
    assert_eq!(world.served[&key], good, "the last good one is what Envoys are given");
    world.refuse_new = false;
    world.ingress("red/b", "b.example/>web:80");
    assert!(world.told("red/b", "Programmed").starts_with("True"), "others go on");
    world.ingress("blue/a", "a.example/cured>api:80");
    assert!(world.told("blue/a", "Programmed").starts_with("True"));
    assert_ne!(world.served[&key], good);
    let clusters = world.names(ResourceType::Cluster);
    assert_eq!(clusters, ["blue/shop/api:80@30080", "red/shop/web:80@30080"], "and then not");
}

#[test]
fn what_cannot_be_served_is_left_out_and_named() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    let mut spec = ingress("a.example/good>web:80 a.example/bad>web:80 A.EXAMPLE/>web:80");
    let host = spec.hosts.iter_mut().find(|host| host.hostname == "a.example").unwrap();
    host.rules[1].matches[0].path =
        PathMatch { kind: PathMatchType::RegularExpression, value: "/(a{1,50}){1,50}".into() };
    world.apply_at(ing("blue/a"), spec);
    world.settle();
    let told = world.told("blue/a", "PartiallyInvalid");
    assert!(told.contains("spec.rules[1]: path: \"/(a{1,50}){1,50}\" is too large"), "{told}");
    assert!(told.contains("\"A.EXAMPLE\"): must be a DNS name in lower case"), "{told}");
    assert!(world.told("blue/a", "Programmed").starts_with("True"), "the rest is served");
}

#[test]
fn a_rule_that_cannot_be_followed_is_closed_and_no_other_takes_its_requests() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.ingress("blue/a", "a.example/>web:80");
    let mut spec = ingress("a.example/admin>web:80");
    spec.hosts[0].rules[0].filters.cors =
        Some(Cors { allow_origins: vec!["shop".into()], ..Cors::default() });
    world.apply_at(ing("blue/b"), spec);
    let before = world.served.clone();
    world.settle();
    let key = Key::new(ResourceType::Routes, "10.9.0.1:80/a.example");
    assert_ne!(world.served[&key], before[&key], "/admin has a route of its own: 503");
    assert!(world.told("blue/b", "PartiallyInvalid").contains("is not an origin"));
}

#[test]
fn a_host_that_is_claimed_later_leaves_the_others_alone() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.ingress("red/b", "b.example/>web:80");
    world.ingress("blue/a", "a.example/>web:80 b.example/>web:80 c.example/>web:80");
    let sent = world.sent(|world| world.gone("red/b"));
    let own: Vec<_> =
        sent.iter().filter(|key| key.contains("a.example") || key.contains("c.example")).collect();
    assert!(own.is_empty(), "{own:?}");
    assert!(world.told("blue/a", "Programmed").starts_with("True"));
}

#[test]
fn nobody_serves_plain_http_on_a_port_that_is_somebody_elses() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.certificate("red", "cert", "one");
    world.apply("blue/web", tcp("blue/web", &[80]));
    world.settle();
    let listener = Key::new(ResourceType::Listener, "TCP/10.9.0.1:80");
    let own = world.served[&listener];
    let mut spec = ingress("a.example+tls/>web:80");
    spec.listeners.remove(0);
    world.apply_at(ing("red/thief"), spec);
    world.settle();
    assert_eq!(world.served[&listener], own);
    assert!(world.names(ResourceType::Listener).contains(&"TCP/10.9.0.1:443"));
}

#[test]
fn plain_http_is_served_while_one_route_at_least_asks_for_it() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.certificate("red", "cert", "one");
    let without_plain = |host: &str| {
        let mut spec = ingress(&format!("{host}+tls/>web:80"));
        spec.listeners.remove(0);
        spec
    };
    let listeners = |world: &mut World, route: &str, spec: RouteSpec| {
        world.apply_at(ing(route), spec);
        world.settle();
        world.names(ResourceType::Listener).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let both = ["TCP/10.9.0.1:443", "TCP/10.9.0.1:80"];
    assert_eq!(listeners(&mut world, "red/a", ingress("a.example+tls/>web:80")), both);
    assert_eq!(listeners(&mut world, "red/b", ingress("b.example/>web:80")), both);
    assert_eq!(listeners(&mut world, "red/a", without_plain("a.example")), both);
    world.gone("red/b");
    world.settle();
    assert_eq!(world.names(ResourceType::Listener), ["TCP/10.9.0.1:443"]);
    assert_eq!(listeners(&mut world, "red/a", ingress("a.example+tls/>web:80")), both);
    world.gone("red/a");
    world.settle();
    assert!(world.names(ResourceType::Listener).is_empty());
}

#[test]
fn a_new_host_is_not_programmed_before_it_is_claimed() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.ingress("blue/a", "a.example/>web:80");
    world.apply_at(ing("blue/a"), ingress("a.example/>web:80 b.example/>web:80"));
    assert!(world.engine.step(&world.now()).statuses.is_empty());
    world.seconds += 2;
    let effects = world.engine.step(&world.now());
    let (_, status) = effects.statuses.iter().find(|(id, _)| *id == ing("blue/a")).unwrap();
    let told = status.conditions.iter().find(|c| c.type_ == "Programmed").unwrap();
    assert_eq!((&*told.status, &*told.message), ("False", "host names are being claimed"));
}

#[test]
fn an_incumbent_stays_when_its_address_leaves_the_pool() {
    let mut world = World::new("10.9.0.1 10.9.0.2", Sharing::Any);
    world.ingress("blue/a", "a.example/>web:80");
    world.pool("10.9.0.2", Sharing::Any);
    world.nodes("blue", &["10.0.0.9"]);
    world.settle();
    assert_eq!(world.statuses[&ing("blue/a")].addresses, ["10.9.0.1"]);
}

#[test]
fn a_layer_4_route_and_ingresses_do_not_meet_on_a_port() {
    let mut world = World::new("10.9.0.1 10.9.0.2", Sharing::Any);
    world.apply("blue/web", tcp("blue/web", &[80]));
    world.settle();
    world.ingress("blue/a", "a.example/>web:80");
    assert_eq!(world.statuses[&ing("blue/a")].addresses, ["10.9.0.2"]);
    world.apply("red/web", tcp("red/web", &[443]));
    world.settle();
    assert_eq!(world.held("red/web"), ["10.9.0.1:443"]);
}

#[test]
fn an_ingress_keeps_its_address_over_a_restart() {
    let mut world = World::new("10.9.0.1 10.9.0.2", Sharing::Any);
    world.apply("blue/web", tcp("blue/web", &[80]));
    world.settle();
    world.ingress("blue/a", "a.example/>web:80");
    world.delete("blue/web");
    world.settle();
    let (claims, statuses) = (std::mem::take(&mut world.claims), world.statuses.clone());
    let mut again = World::new("10.9.0.1 10.9.0.2", Sharing::Any);
    (again.statuses, again.claims) = (statuses, claims.clone());
    for claim in claims.into_values() {
        again.engine.claim(claim);
    }
    again.apply_at(ing("blue/a"), ingress("a.example/>web:80"));
    again.settle();
    assert_eq!(again.statuses[&ing("blue/a")].addresses, ["10.9.0.2"], "though .1 is free now");
}

#[test]
fn a_wildcard_is_paid_for_by_its_own_address_only() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.ingress("blue/a", "a.example/>web:80");
    let sent = world.sent(|world| world.ingress("blue/b", "*.b.example/>web:80"));
    assert!(sent.contains(&"Listener TCP/10.9.0.1:80".to_owned()), "{sent:?}");
    // And then it stays: to take the filters away again would cost connections.
    let sent = world.sent(|world| world.gone("blue/b"));
    assert!(!sent.contains(&"Listener TCP/10.9.0.1:80".to_owned()), "{sent:?}");
}

#[test]
fn a_tenant_that_is_removed_lets_go_of_its_hosts() {
    let mut world = World::new("10.9.0.1", Sharing::Any);
    world.ingress("blue/a", "a.example/>web:80");
    world.ingress("red/b", "a.example/>web:80");
    world.engine.tenant(&"blue".parse().unwrap(), None);
    world.settle();
    assert!(world.told("red/b", "Programmed").starts_with("True"));
}

proptest! {
    #[test]
    fn any_history_of_hosts_ends_with_one_holder_each(
        steps in prop::collection::vec((0..2usize, 0..3usize, 0..4usize, any::<bool>()), 1..30)
    ) {
        let mut world = World::new("10.9.0.1 10.9.0.2", Sharing::Any);
        let rules = ["a.example/>web:80", "*.example/>web:80", "*/>web:80", "b.example+tls/>web:80"];
        for (tenant, name, rule, delete) in steps {
            let route = format!("{}/i{name}", ["blue", "red"][tenant]);
            if delete {
                world.gone(&route);
            } else {
                world.ingress(&route, rules[rule]);
            }
        }
        for (key, claim) in &world.hosts {
            prop_assert!(world.engine.hosts.is_wanted_by(key, &claim.tenant), "a claim leaks: {key:?}");
        }
    }
}
