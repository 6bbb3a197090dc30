//! Layer 7 of the whole fleet: which hosts are served where, by which Routes; and what of it is dirty.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_api::claim::ClaimKey;
use fairlead_api::few::Few;
use fairlead_api::route::Protocol;
use fairlead_api::{RouteId, TenantId};
use fairlead_xds::{Key, Outcome, Resource, ResourceType};

use super::listener::{self, Front};
use super::secrets::{self, Secret, SecretId};
use super::site::{self, Chain, Member, Secrets, SiteKey};
use super::upstream;
use crate::examples;
use crate::model::{Backend, Wish};
use crate::nodes::Nodes;
use crate::publish::{Owner, Published, Publisher};
use crate::translate::Binding;

/// A Route as layer 7 serves it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Served {
    /// `metadata.creationTimestamp`: the older Route's rules come first.
    pub(crate) created: i64,
    /// The source's namespace in the tenant cluster.
    pub(crate) namespace: Box<str>,
    pub(crate) wish: Arc<Wish>,
    pub(crate) address: IpAddr,
    /// The host names that are the tenant's.
    pub(crate) hosts: Few<Arc<str>>,
}

/// What surrounds layer 7 and decides on it.
pub(crate) struct Surroundings<'a> {
    pub(crate) nodes: &'a BTreeMap<TenantId, Nodes>,
    /// Proxies in front of an address that are believed.
    pub(crate) trusted_hops: &'a dyn Fn(IpAddr) -> u32,
    /// Where Envoy listens for a claimed port.
    pub(crate) bind: &'a dyn Fn(ClaimKey) -> Binding,
}

#[derive(Debug, Default)]
pub(crate) struct Web {
    served: BTreeMap<RouteId, Box<Served>>,
    seats: BTreeMap<IpAddr, Seats>,
    sites: BTreeMap<SiteKey, Box<Site>>,
    upstreams: BTreeMap<Arc<str>, Box<Shared>>,
    fronts: BTreeMap<IpAddr, Published>,
    secrets: BTreeMap<SecretId, Stored>,
    /// Addresses that have, or had, a host that is found only where no other is: to take the filters
    /// for that away again would cost connections.
    wild: BTreeSet<IpAddr>,
    /// Which sites name a Secret.
    named_by: BTreeMap<SecretId, Few<SiteKey>>,
    dirty_sites: BTreeSet<SiteKey>,
    dirty_upstreams: BTreeSet<Arc<str>>,
    dirty_fronts: BTreeSet<IpAddr>,
}

/// Routes that are served at an address.
#[derive(Debug, Default)]
struct Seats {
    routes: BTreeSet<RouteId>,
    /// How many of them serve plain HTTP. Port 80 may be somebody else's while a Route keeps 443.
    plain: usize,
}

/// What the listeners of an address say of the Routes there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Outline {
    any: bool,
    plain: bool,
}

#[derive(Debug)]
struct Site {
    tenant: TenantId,
    members: Few<(i64, RouteId)>,
    published: Published,
    chain: Option<Chain>,
    secrets: Few<SecretId>,
    shadowed: Vec<(RouteId, String)>,
    /// The last routes that an Envoy took.
    good: Vec<Arc<Resource>>,
    /// Clusters that these lead to: they stay until better routes are taken.
    pins: Few<Arc<str>>,
    /// The routes as they are published.
    current: Vec<Arc<Resource>>,
    /// Routes that an Envoy refused, in its words.
    rejected: BTreeMap<Key, (u64, Arc<str>)>,
}

#[derive(Debug)]
struct Shared {
    tenant: TenantId,
    namespace: Box<str>,
    backend: Arc<Backend>,
    users: Few<RouteId>,
    /// Sites whose last good routes lead here.
    pinned_by: Few<SiteKey>,
    published: Published,
}

#[derive(Debug, Default)]
struct Stored {
    secret: Secret,
    published: Published,
    /// What an Envoy said when it refused it.
    rejected: Option<Arc<str>>,
}

impl Served {
    fn differs_in_hosts_only(&self, other: &Self) -> bool {
        let Self { created, namespace, wish, address, hosts: _ } = self;
        (created, namespace, wish, address)
            == (&other.created, &other.namespace, &other.wish, &other.address)
    }
}

impl Shared {
    /// The Secret with the certificates that it trusts.
    fn authority(&self) -> Option<SecretId> {
        let name = self.backend.upstream.tls.as_ref()?.ca.as_deref()?;
        Some(SecretId::new(&self.tenant, &self.namespace, name))
    }
}

impl Secrets for BTreeMap<SecretId, Stored> {
    fn has_certificate(&self, id: &SecretId) -> bool {
        self.get(id).is_some_and(|stored| matches!(stored.secret.certificate, Some(Ok(_))))
    }

    fn users(&self, id: &SecretId) -> Option<String> {
        self.get(id)?.secret.users.clone()?.ok()
    }

    fn has_ca(&self, id: &SecretId) -> bool {
        self.get(id).is_some_and(|stored| matches!(stored.secret.ca, Some(Ok(_))))
    }
}

impl Web {
    /// A Route is served like this now; `None`: no more.
    pub(crate) fn serve(&mut self, id: &RouteId, served: Option<Box<Served>>) {
        if self.served.get(id) == served.as_ref() {
            return self.touch_upstreams(id);
        }
        let old = match &served {
            Some(served) => self.served.insert(id.clone(), served.clone()),
            None => self.served.remove(id),
        };
        if let (Some(old), Some(new)) = (&old, &served)
            && old.differs_in_hosts_only(new)
        {
            // A host name that was claimed, or lost: the others are as they were.
            let gone = old.hosts.difference(&new.hosts);
            gone.for_each(|hostname| self.leave_site(id, old, hostname));
            let come = new.hosts.difference(&old.hosts);
            return come.for_each(|hostname| self.enter_site(id, new, hostname));
        }
        let addresses = old.iter().chain(&served).map(|one| one.address);
        let before: BTreeMap<_, _> = addresses.map(|one| (one, self.outline(one))).collect();
        if let Some(old) = &old {
            self.leave(id, old);
        }
        if let Some(new) = &served {
            self.enter(id, new);
        }
        for (address, before) in before {
            if self.outline(address) != before {
                self.dirty_fronts.insert(address);
            }
            if self.seats.get(&address).is_some_and(|seats| seats.routes.is_empty()) {
                self.seats.remove(&address);
            }
        }
    }

    fn outline(&self, address: IpAddr) -> Outline {
        let Some(Seats { routes, plain }) = self.seats.get(&address) else {
            return Outline::default();
        };
        Outline { any: !routes.is_empty(), plain: *plain > 0 }
    }

    fn leave(&mut self, id: &RouteId, old: &Served) {
        if let Some(seats) = self.seats.get_mut(&old.address) {
            seats.routes.remove(id);
            seats.plain -= usize::from(old.wish.serves(Protocol::Http));
        }
        for hostname in &old.hosts {
            self.leave_site(id, old, hostname);
        }
        for backend in &old.wish.backends {
            if let Some(shared) = self.upstreams.get_mut(&backend.cluster) {
                shared.users.remove(id);
            }
            self.dirty_upstreams.insert(backend.cluster.clone());
        }
    }

    fn enter(&mut self, id: &RouteId, new: &Served) {
        let seats = self.seats.entry(new.address).or_default();
        seats.routes.insert(id.clone());
        seats.plain += usize::from(new.wish.serves(Protocol::Http));
        for hostname in &new.hosts {
            self.enter_site(id, new, hostname);
        }
        for backend in &new.wish.backends {
            let shared = self.upstreams.entry(backend.cluster.clone()).or_insert_with(|| {
                Box::new(Shared {
                    tenant: id.tenant.clone(),
                    namespace: new.namespace.clone(),
                    backend: backend.clone(),
                    users: Few::default(),
                    pinned_by: Few::default(),
                    published: Vec::new(),
                })
            });
            // Where Routes differ for a moment, the one that was told last knows best.
            shared.backend = backend.clone();
            shared.users.insert(id.clone());
            self.dirty_upstreams.insert(backend.cluster.clone());
        }
    }

    fn leave_site(&mut self, id: &RouteId, old: &Served, hostname: &Arc<str>) {
        let key = SiteKey { address: old.address, hostname: hostname.clone() };
        if let Some(site) = self.sites.get_mut(&key) {
            site.members.remove(&(old.created, id.clone()));
        }
        self.dirty_sites.insert(key);
    }

    fn enter_site(&mut self, id: &RouteId, new: &Served, hostname: &Arc<str>) {
        let key = SiteKey { address: new.address, hostname: hostname.clone() };
        let site = self.sites.entry(key.clone()).or_insert_with(|| Box::new(Site::new(&id.tenant)));
        // The name may have been another tenant's until now.
        site.tenant = id.tenant.clone();
        site.members.insert((new.created, id.clone()));
        self.dirty_sites.insert(key);
    }

    /// Nodes may have changed.
    fn touch_upstreams(&mut self, id: &RouteId) {
        let Some(served) = self.served.get(id) else { return };
        self.dirty_upstreams.extend(served.wish.backends.iter().map(|one| one.cluster.clone()));
    }

    /// All addresses may be wanted differently: a pool changed.
    pub(crate) fn touch_fronts(&mut self) {
        self.dirty_fronts.extend(self.seats.keys());
    }

    /// A Secret as it is now; `None`: it is gone.
    pub(crate) fn secret(&mut self, id: &SecretId, secret: Option<Secret>, to: &mut Publisher) {
        if self.secrets.get(id).map(|stored| &stored.secret) == secret.as_ref() {
            return;
        }
        let stored = self.secrets.entry(id.clone()).or_default();
        stored.secret = secret.clone().unwrap_or_default();
        stored.rejected = None;
        let resources = secrets::translate(id, &stored.secret);
        to.replace(&Owner::Secret(id.clone()), &mut stored.published, resources);
        if secret.is_none() {
            self.secrets.remove(id);
        }
        self.dirty_sites.extend(self.named_by.get(id).into_iter().flatten().cloned());
        let waiting = self.upstreams.iter().filter(|(_, one)| one.authority().as_ref() == Some(id));
        self.dirty_upstreams.extend(waiting.map(|(name, _)| name.clone()));
    }

    /// What an Envoy made of a Secret. The Routes that name it come back.
    pub(crate) fn observe_secret(&mut self, id: &SecretId, outcome: &Outcome) -> Vec<RouteId> {
        let Some(stored) = self.secrets.get_mut(id) else { return Vec::new() };
        stored.rejected = match outcome {
            Outcome::Rejected(_, text) => Some(text.clone()),
            Outcome::Acked(_) | Outcome::Removed => None,
        };
        let sites = self.named_by.get(id).into_iter().flatten();
        sites.flat_map(|key| self.members(key)).cloned().collect()
    }

    /// Whether a Route is served at an address.
    pub(crate) fn is_seated(&self, address: IpAddr) -> bool {
        self.seats.contains_key(&address)
    }

    /// Routes that are served at an address.
    pub(crate) fn seated(&self, address: IpAddr) -> impl Iterator<Item = &RouteId> {
        self.seats.get(&address).into_iter().flat_map(|seats| &seats.routes)
    }

    /// Routes that are part of a site.
    pub(crate) fn members(&self, key: &SiteKey) -> impl Iterator<Item = &RouteId> {
        self.sites.get(key).into_iter().flat_map(|site| &site.members).map(|(_, route)| route)
    }

    /// Routes that use a Cluster.
    pub(crate) fn users(&self, upstream: &str) -> impl Iterator<Item = &RouteId> {
        self.upstreams.get(upstream).into_iter().flat_map(|shared| &shared.users)
    }

    /// Translates what is dirty. The Routes whose status may have changed come back.
    pub(crate) fn step(
        &mut self,
        around: &Surroundings<'_>,
        to: &mut Publisher,
    ) -> BTreeSet<RouteId> {
        let mut touched = BTreeSet::new();
        for name in std::mem::take(&mut self.dirty_upstreams) {
            self.translate_upstream(name, around, to);
        }
        for key in std::mem::take(&mut self.dirty_sites) {
            touched.extend(self.members(&key).cloned());
            self.translate_site(key, to);
        }
        for address in std::mem::take(&mut self.dirty_fronts) {
            self.translate_front(address, around, to);
        }
        touched
    }

    fn translate_upstream(
        &mut self,
        name: Arc<str>,
        around: &Surroundings<'_>,
        to: &mut Publisher,
    ) {
        let Some(shared) = self.upstreams.get_mut(&name) else { return };
        let none = Nodes::default();
        // Envoy takes no other Cluster while one waits for its Secret: it goes out once that is there.
        let waits = shared.authority().is_some_and(|id| !self.secrets.has_ca(&id));
        let unused = shared.users.is_empty() && shared.pinned_by.is_empty();
        let resources = if unused || waits {
            Vec::new()
        } else {
            let nodes = around.nodes.get(&shared.tenant).unwrap_or(&none);
            let (tenant, namespace) = (&shared.tenant, &shared.namespace);
            upstream::translate(tenant, namespace, &shared.backend, nodes).into()
        };
        to.replace(&Owner::Upstream(name.clone()), &mut shared.published, resources);
        if unused {
            self.upstreams.remove(&name);
        }
    }

    fn translate_site(&mut self, key: SiteKey, to: &mut Publisher) {
        let Some(site) = self.sites.get_mut(&key) else { return };
        let mut members = Vec::with_capacity(site.members.len());
        for (_, route) in &site.members {
            let Some(served) = self.served.get(route) else { continue };
            let host = served.wish.hosts.iter().find(|host| *host.hostname == *key.hostname);
            let Some(host) = host else { continue };
            members.push(Member { route, namespace: &served.namespace, wish: &served.wish, host });
        }
        let named: Few<_> =
            members.iter().flat_map(|member| site::named(member, &site.tenant)).collect();
        let made = site::translate(&key, &site.tenant, &members, &self.secrets);
        let gone = members.is_empty();
        let is_new = site.published.is_empty();
        let resources = if gone { Vec::new() } else { site.keep_good(made.resources) };
        to.replace(&Owner::Site(key.clone()), &mut site.published, resources);
        site.shadowed = made.shadowed;
        let chain = if gone { None } else { made.chain };
        if site.chain != chain || ((is_new || gone) && key.hostname.starts_with('*')) {
            self.dirty_fronts.insert(key.address);
        }
        site.chain = chain;
        let before = std::mem::replace(&mut site.secrets, named.clone());
        for id in before.difference(&named) {
            if let Some(sites) = self.named_by.get_mut(id) {
                sites.remove(&key);
                if sites.is_empty() {
                    self.named_by.remove(id);
                }
            }
        }
        for id in named {
            self.named_by.entry(id).or_default().insert(key.clone());
        }
        if gone {
            self.pin(&key, Few::default());
            self.sites.remove(&key);
        }
    }

    fn translate_front(&mut self, address: IpAddr, around: &Surroundings<'_>, to: &mut Publisher) {
        let mut published = self.fronts.remove(&address).unwrap_or_default();
        let resources = match self.front(address, around) {
            Some(front) => listener::translate(address, &front, around.bind),
            None => Vec::new(),
        };
        to.replace(&Owner::Front(address), &mut published, resources);
        if !published.is_empty() {
            self.fronts.insert(address, published);
        }
    }

    /// What is known of the hosts at an address; `None`: nobody is there.
    fn front(&mut self, address: IpAddr, around: &Surroundings<'_>) -> Option<Front> {
        if !self.is_seated(address) {
            self.wild.remove(&address);
            return None;
        }
        let Outline { plain, any: _ } = self.outline(address);
        let trusted_hops = (around.trusted_hops)(address);
        let mut front = Front { plain, trusted_hops, ..Front::default() };
        let first = SiteKey { address, hostname: "".into() };
        let here = self.sites.range(first..).take_while(|(key, _)| key.address == address);
        for (key, site) in here {
            front.wild |= key.hostname.starts_with('*');
            let Some(chain) = &site.chain else { continue };
            let names = front.chains.entry((site.tenant.clone(), chain.clone())).or_default();
            names.insert(key.hostname.clone());
        }
        if front.wild {
            self.wild.insert(address);
        }
        front.wild = self.wild.contains(&address);
        Some(front)
    }

    /// What an Envoy made of routes: what it took is good, what it refused is taken back.
    pub(crate) fn observe(&mut self, key: &SiteKey, resource: &Key, outcome: &Outcome) {
        if resource.kind != ResourceType::Routes {
            return;
        }
        let Some(site) = self.sites.get_mut(key) else { return };
        match outcome {
            Outcome::Acked(version) => {
                if site.took(resource, *version) {
                    let clusters = site.good_clusters();
                    self.pin(key, clusters);
                }
            }
            Outcome::Rejected(version, text) => {
                let refused = (*version, text.clone());
                if site
                    .rejected
                    .insert(resource.clone(), refused)
                    .is_none_or(|old| old.0 != *version)
                {
                    self.dirty_sites.insert(key.clone());
                }
            }
            Outcome::Removed => {}
        }
    }

    /// The sites that a Route is part of.
    fn sites_of<'a>(&'a self, served: &'a Served) -> impl Iterator<Item = (&'a SiteKey, &'a Site)> {
        served.hosts.iter().filter_map(|hostname| {
            let key = SiteKey { address: served.address, hostname: hostname.clone() };
            self.sites.get_key_value(&key).map(|(key, site)| (key, &**site))
        })
    }

    /// These Clusters are what the last good routes of a site lead to.
    fn pin(&mut self, key: &SiteKey, mut clusters: Few<Arc<str>>) {
        let Self { sites, upstreams, dirty_upstreams, .. } = self;
        let Some(site) = sites.get_mut(key) else { return };
        clusters.retain(|name| {
            let shared = upstreams.get_mut(name);
            shared.map(|shared| shared.pinned_by.insert(key.clone())).is_some()
        });
        for name in site.pins.difference(&clusters) {
            let Some(shared) = upstreams.get_mut(name) else { continue };
            shared.pinned_by.remove(key);
            if shared.pinned_by.is_empty() {
                dirty_upstreams.insert(name.clone());
            }
        }
        site.pins = clusters;
    }

    /// All that must be acknowledged for a Route to be programmed.
    pub(crate) fn published(&self, id: &RouteId) -> Published {
        let Some(served) = self.served.get(id) else { return Vec::new() };
        let sites = self.sites_of(served).flat_map(|(_, site)| &site.published);
        let shared = |backend: &Arc<Backend>| self.upstreams.get(&backend.cluster);
        let upstreams =
            served.wish.backends.iter().filter_map(shared).flat_map(|shared| &shared.published);
        let front = self.fronts.get(&served.address).into_iter().flatten();
        sites.chain(upstreams).chain(front).cloned().collect()
    }

    /// What an Envoy refused of a Route's hosts, in its words.
    pub(crate) fn rejection(&self, id: &RouteId) -> Option<String> {
        let served = self.served.get(id)?;
        let named = self.sites_of(served).flat_map(|(_, site)| &site.secrets);
        for secret in named {
            if let Some(text) = self.secrets.get(secret).and_then(|stored| stored.rejected.as_ref())
            {
                return Some(format!("Secret {:?}: Envoy refused: {text}", secret.name));
            }
        }
        self.sites_of(served).find_map(|(SiteKey { hostname, .. }, site)| {
            let (_, text) = site.rejected.values().next()?;
            Some(format!("host {hostname:?} is served as it was before: Envoy refused: {text}"))
        })
    }

    /// Rules of a Route that an older Route's keep from being met.
    pub(crate) fn shadowed(&self, id: &RouteId) -> Vec<&str> {
        let Some(served) = self.served.get(id) else { return Vec::new() };
        let all = self.sites_of(served).flat_map(|(_, site)| &site.shadowed);
        all.filter(|(route, _)| route == id).map(|(_, what)| what.as_str()).collect()
    }

    /// Hosts of a Route that have no certificate to serve though they ask for one.
    pub(crate) fn without_certificate(&self, id: &RouteId) -> Vec<String> {
        let Some(served) = self.served.get(id) else { return Vec::new() };
        let missing = |host: &&fairlead_api::http::Host| {
            let secret = host.tls.as_ref().and_then(|tls| tls.certificate.as_deref());
            let id = |name| SecretId::new(&id.tenant, &served.namespace, name);
            secret.is_some_and(|name| !self.secrets.has_certificate(&id(name)))
        };
        let hosts = served.wish.hosts.iter().filter(missing);
        hosts.map(|host| host.hostname.clone()).collect()
    }
}

impl Site {
    fn new(tenant: &TenantId) -> Self {
        Self {
            tenant: tenant.clone(),
            members: Few::default(),
            published: Vec::new(),
            chain: None,
            secrets: Few::default(),
            shadowed: Vec::new(),
            good: Vec::new(),
            pins: Few::default(),
            current: Vec::new(),
            rejected: BTreeMap::new(),
        }
    }

    /// The Clusters that the last good routes lead to.
    fn good_clusters(&self) -> Few<Arc<str>> {
        let needs = self.good.iter().flat_map(|good| good.needs.iter());
        let clusters = needs.filter(|key| key.kind == ResourceType::Cluster);
        clusters.map(|key| key.name.clone()).collect()
    }

    /// An Envoy took routes. True if they are what is published.
    fn took(&mut self, key: &Key, version: u64) -> bool {
        let is_this = |one: &&Arc<Resource>| one.key == *key && one.version == version;
        let Some(current) = self.current.iter().find(is_this).cloned() else { return false };
        match self.good.iter_mut().find(|one| one.key == *key) {
            Some(good) => *good = current,
            None => {
                self.good.reserve_exact(1);
                self.good.push(current);
            }
        }
        true
    }

    /// Routes that an Envoy refused are replaced by the last that one took.
    fn keep_good(&mut self, resources: Vec<Resource>) -> Vec<Arc<Resource>> {
        let mut kept = Vec::with_capacity(resources.len());
        let mut refused = BTreeMap::new();
        for resource in resources {
            if resource.key.kind != ResourceType::Routes {
                kept.push(resource.into());
                continue;
            }
            let old = self.rejected.remove(&resource.key).filter(|old| old.0 == resource.version);
            let is_refused = old.is_some();
            if let Some(old) = old {
                refused.insert(resource.key.clone(), old);
            }
            kept.push(match self.good.iter().find(|one| one.key == resource.key) {
                Some(good) if is_refused => good.clone(),
                // As it is published already, there is one of it.
                _ => match self.current.iter().find(|one| ***one == resource) {
                    Some(same) => same.clone(),
                    None => examples::packed(resource),
                },
            });
        }
        let routes = kept.iter().filter(|one| one.key.kind == ResourceType::Routes);
        self.current = routes.cloned().collect();
        self.current.shrink_to_fit();
        self.rejected = refused;
        self.good.retain(|good| kept.iter().any(|one| one.key == good.key));
        kept
    }
}
