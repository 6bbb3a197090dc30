//! What keeps tenants apart: whose each node address is, which are nobody's, and how much each may hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairlead_api::claim::HostKey;
use fairlead_api::condition::{Reason, Verdict};
use fairlead_api::http::ANY_HOST;
use fairlead_api::{NodeSetSpec, NodeSetStatus, RouteId, TenantId};
use ipnet::IpNet;

use super::{Effects, Engine, routes_of};
use crate::allocate::{Allocation, Ask, allocate, foresee};
use crate::claims::Claim;
use crate::model::{Tenant, Wish};
use crate::nodes::{Bounds, Nodes};
use crate::pool::Pool;
use crate::translate::members;
use crate::usage::Usage;

/// Refused nodes that a status names.
const NAMED: usize = 100;

/// Addresses that are no tenant's.
#[derive(Debug, Default)]
pub(super) struct Forbidden {
    /// As the platform team says.
    ranges: Vec<IpNet>,
    /// The hub's own, by what has them.
    networks: BTreeMap<Box<str>, Vec<IpNet>>,
}

impl Forbidden {
    fn why(&self, pools: &BTreeMap<String, Pool>, ip: IpAddr) -> Option<&'static str> {
        if self.ranges.iter().any(|range| range.contains(&ip)) {
            return Some("in a range that the hub refuses (the manager's refusedCIDRs)");
        }
        if self.networks.values().flatten().any(|range| range.contains(&ip)) {
            return Some("in the hub's own network (its nodes, pods or Services)");
        }
        pools.values().any(|pool| pool.contains(ip)).then_some("an address of a pool of the hub")
    }
}

impl Engine {
    /// Ranges that are no tenant's, besides those that are nobody's anyway.
    pub fn forbid(&mut self, ranges: Vec<IpNet>) {
        self.forbidden.ranges = ranges;
        self.sort_all_nodes();
    }

    /// Ranges of the hub's own network that one of its nodes has, or its Services; empty: it is gone.
    pub fn hub_network(&mut self, of: &str, ranges: Vec<IpNet>) {
        let networks = &mut self.forbidden.networks;
        if networks.get(of).map_or(&[][..], Vec::as_slice) == ranges {
            return;
        }
        if ranges.is_empty() {
            networks.remove(of);
        } else {
            networks.insert(of.into(), ranges);
        }
        self.sort_all_nodes();
    }

    /// A tenant's nodes as they are now; `None`: it has told of none. `seen` is what is written of them.
    pub fn nodes(&mut self, id: &TenantId, spec: Option<NodeSetSpec>, seen: Option<NodeSetStatus>) {
        self.node_statuses.insert(id.clone(), seen);
        if self.node_sets.get(id) == spec.as_ref() {
            return;
        }
        match spec {
            Some(spec) => drop(self.node_sets.insert(id.clone(), spec)),
            None => drop(self.node_sets.remove(id)),
        }
        self.sort_nodes(id);
    }

    /// Which of a tenant's nodes may be used; and of those tenants that this changes something for.
    pub(super) fn sort_nodes(&mut self, id: &TenantId) {
        for other in self.note_owners(id) {
            self.sort_nodes_alone(&other);
        }
        self.sort_nodes_alone(id);
    }

    pub(super) fn sort_all_nodes(&mut self) {
        if !self.complete {
            // Once all are known.
            return;
        }
        let all: Vec<_> = self.node_sets.keys().cloned().collect();
        for id in all {
            self.sort_nodes(&id);
        }
    }

    fn note_owners(&mut self, id: &TenantId) -> BTreeSet<TenantId> {
        let permitted = self.parse_nodes(id, &|_| false);
        let now = permitted.iter().flat_map(Nodes::all).collect();
        // Later this process knows better than what is written.
        let written =
            self.node_statuses.get(id).and_then(Option::as_ref).filter(|_| !self.complete);
        let written = written.iter().flat_map(|status| &status.addresses);
        let written = written.filter_map(|text| text.parse().ok()).collect();
        self.owners.set(id, now, &written)
    }

    fn parse_nodes(&self, id: &TenantId, taken: &dyn Fn(IpAddr) -> bool) -> Option<Nodes> {
        let (spec, tenant) = (self.node_sets.get(id)?, self.tenants.get(id)?);
        let Tenant { node_cidrs, node_ports, .. } = tenant;
        let forbidden = |ip| self.forbidden.why(&self.pools, ip);
        let bounds = Bounds {
            ranges: node_cidrs.as_deref(),
            ports: *node_ports,
            forbidden: &forbidden,
            taken,
        };
        Some(Nodes::parse(spec, &bounds))
    }

    fn sort_nodes_alone(&mut self, id: &TenantId) {
        let taken = |ip| self.owners.owner(ip).is_some_and(|owner| owner != id);
        let mut now = self.parse_nodes(id, &taken);
        if let Some(nodes) = &mut now {
            self.cut_nodes(id, nodes);
        }
        if self.nodes.get(id) == now.as_ref() {
            return;
        }
        match now {
            Some(nodes) => drop(self.nodes.insert(id.clone(), nodes)),
            None => drop(self.nodes.remove(id)),
        }
        self.nodes_changed.insert(id.clone());
        self.touch_tenant(id);
    }

    /// Leaves nodes out where a tenant's Routes would have more endpoints by them than it may: what comes by nodes
    /// is not asked for by any Route.
    fn cut_nodes(&self, id: &TenantId, nodes: &mut Nodes) {
        let Some(tenant) = self.tenants.get(id) else { return };
        let mine = routes_of(&self.routes, id);
        let wishes = mine.filter_map(|(_, entry)| entry.wish.as_ref().ok());
        let backends: usize = wishes.map(|wish| wish.backends.len()).sum();
        let most = tenant.quotas.endpoints as usize / backends.max(1);
        while nodes.addresses.len() > most.max(1) {
            let Some((name, _)) = nodes.addresses.pop_last() else { return };
            let why = "there are more endpoints by it than Tenant.spec.quotas.endpoints allows";
            nodes.refused.insert(name, why.to_owned());
        }
    }

    /// What is written of nodes could not be; it is tried again with the next step.
    pub fn nodes_not_reported(&mut self, id: &TenantId) {
        self.node_statuses.insert(id.clone(), None);
        self.nodes_changed.insert(id.clone());
    }

    pub(super) fn report_nodes(&mut self, effects: &mut Effects) {
        for id in std::mem::take(&mut self.nodes_changed) {
            let Some(nodes) = self.nodes.get(&id) else { continue };
            let own: BTreeSet<IpAddr> = nodes.all().collect();
            let refused = nodes.refused.iter().take(NAMED);
            let status = NodeSetStatus {
                addresses: own.iter().map(ToString::to_string).collect(),
                refused: refused.map(|(name, why)| format!("{name}: {why}")).collect(),
            };
            let before = self.node_statuses.get(&id).and_then(Option::as_ref);
            if before != Some(&status) {
                self.node_statuses.insert(id.clone(), Some(status.clone()));
                effects.node_sets.push((id, status));
            }
        }
    }

    /// What a Route gets within its tenant's quotas. Where the tenant may be on no more addresses: rather on those that it
    /// is on, and of a second family only where that is required.
    pub(super) fn allocate(&self, ask: Ask<'_>) -> Result<Allocation, Verdict> {
        let refusal = match self.allocate_within_quotas(ask) {
            Ok(found) => return Ok(found),
            Err(refusal) => refusal,
        };
        if matches!(refusal, Refusal::Over(Over { quota: Quota::Addresses, .. })) {
            let own_first = self.claims.usage_of(&ask.route.tenant);
            let frugal = Ask { own_first, ..ask };
            if let Ok(found) = self.allocate_within_quotas(frugal) {
                return Ok(found);
            }
            if let Some(wish) = ask.wish.of_one_family()
                && let Ok(found) = self.allocate_within_quotas(Ask { wish: &wish, ..frugal })
            {
                return Ok(found);
            }
        }
        Err(refusal.verdict())
    }

    /// What the allocator found, if the tenant may have that as well.
    fn allocate_within_quotas(&self, ask: Ask<'_>) -> Result<Allocation, Refusal> {
        let Ask { route, wish, .. } = ask;
        let found = allocate(ask)?;
        let foreseen = foresee(ask, &found)?;
        let over = match foreseen.as_ref().unwrap_or(&found) {
            // Before anything is claimed: what is refused after is given back, and claimed again.
            Allocation::Claim(claims) => {
                self.over_quota(route, claims).or_else(|| self.too_many_endpoints(route, wish))
            }
            // A seat among others costs no claim, and counts all the same.
            Allocation::Held { place, .. } => {
                let seats = place.addresses.iter().copied().collect();
                let full = self.too_many_addresses(&route.tenant, &seats);
                full.or_else(|| self.too_many_endpoints(route, wish))
            }
            Allocation::Wait { .. } | Allocation::Open { .. } => None,
        };
        over.map_or(Ok(found), |over| Err(Refusal::Over(over)))
    }

    fn over_quota(&self, id: &RouteId, claims: &[Claim]) -> Option<Over> {
        let tenant = self.tenants.get(&id.tenant)?;
        let usage = self.claims.usage_of(&id.tenant);
        let new =
            || claims.iter().filter(|one| !one.is_target() && self.claims.get(&one.key).is_none());
        let ports = new().filter(|claim| claim.route().is_some()).count();
        let held = usage.map_or(0, |usage| usage.ports) as usize;
        let most = tenant.quotas.ports;
        if ports > 0 && held + ports > most as usize {
            return Some(Over { quota: Quota::Ports, most });
        }
        let addresses = new().map(|claim| claim.key.address).collect();
        self.too_many_addresses(&id.tenant, &addresses)
    }

    /// Whether a tenant may not be on these addresses as well.
    fn too_many_addresses(&self, tenant: &TenantId, addresses: &BTreeSet<IpAddr>) -> Option<Over> {
        let most = self.tenants.get(tenant)?.quotas.addresses;
        let usage = self.claims.usage_of(tenant);
        let new =
            addresses.iter().filter(|ip| usage.is_none_or(|usage| !usage.is_on(**ip))).count();
        let held = usage.map_or(0, Usage::addresses);
        (new > 0 && held + new > most as usize).then_some(Over { quota: Quota::Addresses, most })
    }

    /// Whether a Route may not have so many endpoints.
    pub(super) fn too_many_endpoints(&self, id: &RouteId, wish: &Wish) -> Option<Over> {
        let most = self.tenants.get(&id.tenant)?.quotas.endpoints;
        let after = self.endpoints.after(id, self.count_endpoints(id, wish))?;
        (after > most as usize).then_some(Over { quota: Quota::Endpoints, most })
    }

    /// A Route has so many endpoints now.
    pub(super) fn count(&mut self, id: &RouteId, endpoints: usize) {
        if self.endpoints.set(id, endpoints) {
            self.retry_for_endpoints(&id.tenant);
        }
    }

    pub(super) fn count_endpoints(&self, id: &RouteId, wish: &Wish) -> usize {
        let Some(nodes) = self.nodes.get(&id.tenant) else { return 0 };
        wish.backends.iter().map(|backend| members(backend, nodes).count()).sum()
    }

    /// Why a tenant may not claim a host name: it is outside of its domains, or it has too many.
    pub(super) fn host_refused(
        &self,
        tenant: &TenantId,
        key: &HostKey,
    ) -> Option<(Reason, String)> {
        let permissions = self.tenants.get(tenant)?;
        let Tenant { domains, quotas, .. } = permissions;
        if !permissions.may_publish(&key.hostname) {
            let name = match &*key.hostname {
                ANY_HOST => "a rule without a host is for any name, which".to_owned(),
                name => format!("host {name:?}"),
            };
            let allowed = domains.iter().take(5).map(|domain| &**domain).collect::<Vec<_>>();
            let message = format!(
                "{name} is outside Tenant.spec.domains ({}); use another, or ask the platform team",
                allowed.join(", ")
            );
            return Some((Reason::HostnameNotAllowed, message));
        }
        let claims = self.hosts.get(key).is_none_or(|claim| claim.tenant != *tenant);
        let full = claims && self.hosts.held_by(tenant) >= quotas.hostnames as usize;
        full.then(|| {
            let over = Over { quota: Quota::Hostnames, most: quotas.hostnames };
            let Verdict { reason, message, .. } = over.verdict();
            (reason, format!("host {:?}: {message}", key.hostname))
        })
    }
}

/// Of what a tenant may have so much.
#[derive(Debug, Clone, Copy)]
enum Quota {
    Addresses,
    Endpoints,
    Hostnames,
    Ports,
}

impl Quota {
    /// The field of `Tenant.spec.quotas`.
    fn field(self) -> &'static str {
        match self {
            Self::Addresses => "addresses",
            Self::Endpoints => "endpoints",
            Self::Hostnames => "hostnames",
            Self::Ports => "ports",
        }
    }
}

/// A quota that would be exceeded.
#[derive(Debug)]
pub(super) struct Over {
    quota: Quota,
    most: u32,
}

/// Why a Route gets nothing.
enum Refusal {
    Over(Over),
    Other(Verdict),
}

impl From<Verdict> for Refusal {
    fn from(verdict: Verdict) -> Self {
        Self::Other(verdict)
    }
}

impl Refusal {
    fn verdict(self) -> Verdict {
        match self {
            Self::Over(over) => over.verdict(),
            Self::Other(verdict) => verdict,
        }
    }
}

impl Over {
    fn verdict(&self) -> Verdict {
        let (what, most) = (self.quota.field(), self.most);
        let message = format!(
            "the tenant has its {most} {what} already (Tenant.spec.quotas.{what}); remove some, or ask the platform team"
        );
        Verdict::no(Reason::QuotaReached, message)
    }
}
