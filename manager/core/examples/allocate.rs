//! `allocate <layout> <claims>`: gives that many Services a port, then one more, and says how long it took.
//!
//! Layouts: `same-port`, where each needs an address of its own; `any-address`, where an address is filled
//! before another is opened; `spread`; `tenants`, where a thousand tenants keep to their own addresses.
//! Counted in instructions by `e2e/tests/instructions.rs`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use fairlead_api::route::{Protocol, SourceKind};
use fairlead_api::{AddressPoolSpec, Packing, RouteId, RouteName, Sharing, TenantSpec};
use fairlead_core::allocate::{Allocation, Ask, allocate};
use fairlead_core::claims::Claims;
use fairlead_core::model::{Clients, Listener, Tenant, Wish};
use fairlead_core::pool::Pool;

struct Hub {
    tenant: Tenant,
    pools: BTreeMap<String, Pool>,
    claims: Claims,
}

fn hub(layout: &str) -> Hub {
    let spec = AddressPoolSpec {
        addresses: vec!["10.0.0.0/16".into(), "fd00::/64".into()],
        sharing: if layout == "tenants" { Sharing::Tenant } else { Sharing::Any },
        packing: if layout == "spread" { Packing::Spread } else { Packing::Fill },
        max_ports_per_address: Some(100),
        ..AddressPoolSpec::default()
    };
    let pool = Pool::parse(spec);
    let mut claims = Claims::default();
    claims.set_capacity("public", pool.capacity);
    let tenant = TenantSpec { pools: vec!["public".into()], ..TenantSpec::default() };
    Hub { tenant: tenant.into(), pools: [("public".to_owned(), pool)].into(), claims }
}

fn wish(port: u16) -> Wish {
    let listener = Listener { name: "one".into(), protocol: Protocol::Tcp, port, backend: Some(0) };
    Wish {
        pool: None,
        ips: Vec::new(),
        group: None,
        alone: false,
        families: Vec::new(),
        prefer_dual_stack: false,
        listeners: vec![listener],
        backends: Vec::new(),
        hosts: Vec::new(),
        invalid: Vec::new(),
        clients: Clients::default(),
        unresolved: Vec::new(),
    }
}

/// Who asks, and for which port.
fn asks(layout: &str, number: usize) -> (RouteId, Wish) {
    let tenant = if layout == "tenants" { number % 1_000 } else { 0 };
    let name = RouteName::new(SourceKind::Service, "shop", &format!("web{number}")).unwrap();
    let route = RouteId { tenant: format!("t{tenant}").parse().unwrap(), name };
    let port = match layout {
        "same-port" => 443,
        _ => u16::try_from(1 + number % 60_000).unwrap(),
    };
    (route, wish(port))
}

/// What is counted: one Service more.
#[inline(never)]
fn one_more(hub: &mut Hub, route: &RouteId, wish: &Wish) {
    give(hub, route, wish);
}

fn give(hub: &mut Hub, route: &RouteId, wish: &Wish) {
    let asked = allocate(Ask {
        route,
        uid: &"uid".into(),
        wish,
        seat: None,
        group: &[],
        tenant: &hub.tenant,
        pools: &hub.pools,
        claims: &hub.claims,
        own_first: None,
    });
    let Ok(Allocation::Claim(claims)) = asked else { panic!("{asked:?}") };
    for claim in claims {
        hub.claims.insert(claim);
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let layout = arguments.next().unwrap_or_else(|| "same-port".into());
    let count: usize = arguments.next().map_or(10_000, |text| text.parse().unwrap());
    let wanted: Vec<_> = (0..count).map(|number| asks(&layout, number)).collect();
    let (last, wish) = asks(&layout, count);
    let mut hub = hub(&layout);
    let start = Instant::now();
    for (route, wish) in &wanted {
        give(&mut hub, route, wish);
    }
    let elapsed = start.elapsed();
    one_more(&mut hub, &last, &wish);
    black_box(&hub.claims);
    println!("{layout}: {count} claims in {:.1} ms", elapsed.as_secs_f64() * 1_000.0);
}
