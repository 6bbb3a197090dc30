//! A host name at an address → its `RouteConfiguration`s and the scopes that lead to them.
//!
//! Each has its own: a change of one is a few hundred bytes, and one that Envoy refuses freezes itself
//! only. Several Routes of one tenant may share a host; their rules are merged, the oldest first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    RedirectResponseCode, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::scoped_route_configuration::key::{
    Fragment, fragment,
};
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, HeaderMatcher, RedirectAction, Route, RouteConfiguration, RouteMatch,
    ScopedRouteConfiguration, VirtualHost, route_match::PathSpecifier, scoped_route_configuration,
};
use fairlead_api::http::{Host, HttpMatch, HttpRule, PathMatchType, TlsMode};
use fairlead_api::route::Protocol;
use fairlead_api::{RouteId, TenantId};
use fairlead_xds::{Key, Resource, ResourceType};
use prost::Message;

use super::filters::{Parts, SCOPE};
use super::rule::{self, Context};
use super::secrets::SecretId;
use crate::model::{Backend, HTTP_PORT, HTTPS_PORT, Wish};
use crate::pb::{append, exactly, header, number};
use crate::translate::cluster_keys;

/// Paths of one host: Envoy tries them one after the other, on workers that all tenants share.
const MAX_ENTRIES: usize = 1_000;

/// A host name at an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteKey {
    /// The address.
    pub address: IpAddr,
    /// `shop.example.com`, `*.example.com`, or `*`.
    pub hostname: Arc<str>,
}

/// A Route's part of a site.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member<'a> {
    pub(crate) route: &'a RouteId,
    /// The source's namespace in the tenant cluster.
    pub(crate) namespace: &'a str,
    pub(crate) wish: &'a Wish,
    pub(crate) host: &'a Host,
}

/// How TLS for a site ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Chain {
    /// At the fleet, with this certificate.
    Terminate(SecretId),
    /// At this Cluster.
    Passthrough(Arc<str>),
}

/// What of the Secrets is known.
pub(crate) trait Secrets {
    /// Whether there is a certificate that can be served.
    fn has_certificate(&self, id: &SecretId) -> bool;
    /// The users of basic authentication.
    fn users(&self, id: &SecretId) -> Option<String>;
    /// Whether there are certificates to trust.
    fn has_ca(&self, id: &SecretId) -> bool;
}

/// What a site becomes.
#[derive(Debug, Default)]
pub(crate) struct Translation {
    pub(crate) resources: Vec<Resource>,
    pub(crate) chain: Option<Chain>,
    /// Rules that an older Route's rule keeps from being met.
    pub(crate) shadowed: Vec<(RouteId, String)>,
}

/// Translates one site. `members`: the oldest first.
pub(crate) fn translate(
    key: &SiteKey,
    tenant: &TenantId,
    members: &[Member<'_>],
    secrets: &dyn Secrets,
) -> Translation {
    let chain = members.iter().find_map(|member| chain(member, tenant, secrets));
    let clusters: Vec<_> = members.iter().map(|member| clusters(member, tenant, secrets)).collect();
    let (entries, shadowed) = entries(key, members);
    let encode = |entry: &Entry<'_>| {
        let Member { route: _, namespace, .. } = members[entry.member];
        let users = |name: &str| secrets.users(&SecretId::new(tenant, namespace, name));
        let context = Context { clusters: &clusters[entry.member], users: &users };
        rule::route(entry.rule, entry.one, &context)
    };
    let needs = needs(&clusters);
    let plain = plain(&entries, members, &encode);
    // Where nobody serves plain HTTP, no listener asks for its routes: no Envoy would ever take them.
    let on_plain = members.iter().any(|member| member.wish.serves(Protocol::Http));
    let mut resources =
        if on_plain { publish(key, HTTP_PORT, None, &plain, &needs) } else { Vec::new() };
    if matches!(chain, Some(Chain::Terminate(_))) {
        let mut routes: Vec<_> = entries.iter().map(encode).collect();
        routes.push(nothing());
        resources.extend(publish(key, HTTPS_PORT, Some(tenant), &routes, &needs));
    }
    Translation { resources, chain, shadowed }
}

/// The Secrets that a member names for this host.
pub(crate) fn named(member: &Member<'_>, tenant: &TenantId) -> Vec<SecretId> {
    let certificate = member.host.tls.iter().filter_map(|tls| tls.certificate.as_deref());
    let rules = member.host.rules.iter();
    let users = rules.filter_map(|rule| Some(rule.filters.basic_auth.as_ref()?.secret.as_str()));
    let trusted = used(member).filter_map(|one| one.upstream.tls.as_ref()?.ca.as_deref());
    let all = certificate.chain(users).chain(trusted);
    all.map(|name| SecretId::new(tenant, member.namespace, name)).collect()
}

fn chain(member: &Member<'_>, tenant: &TenantId, secrets: &dyn Secrets) -> Option<Chain> {
    let tls = member.host.tls.as_ref()?;
    // The port may be somebody else's while this Route keeps what it had.
    if !member.wish.serves(Protocol::Https) {
        return None;
    }
    match tls.mode {
        TlsMode::Terminate => {
            let id = SecretId::new(tenant, member.namespace, tls.certificate.as_deref()?);
            secrets.has_certificate(&id).then_some(Chain::Terminate(id))
        }
        TlsMode::Passthrough => {
            let first = member.host.rules.iter().flat_map(|rule| &rule.backends).next()?;
            let backend = member.wish.backends.iter().find(|one| *one.name == *first.name)?;
            Some(Chain::Passthrough(backend.cluster.clone()))
        }
    }
}

/// The clusters of a member's backends that can be spoken to.
fn clusters<'a>(
    member: &Member<'a>,
    tenant: &TenantId,
    secrets: &dyn Secrets,
) -> BTreeMap<&'a str, Arc<str>> {
    let usable = |backend: &&'a Backend| {
        let ca = backend.upstream.tls.as_ref().and_then(|tls| tls.ca.as_deref());
        ca.is_none_or(|name| secrets.has_ca(&SecretId::new(tenant, member.namespace, name)))
    };
    let named = |backend: &'a Backend| (&*backend.name, backend.cluster.clone());
    used(member).filter(usable).map(named).collect()
}

/// The backends that the rules of a member's host use.
fn used<'a>(member: &Member<'a>) -> impl Iterator<Item = &'a Backend> + use<'a> {
    let names: BTreeSet<&str> = member.host.rules.iter().flat_map(backends).collect();
    let all = member.wish.backends.iter().map(AsRef::as_ref);
    all.filter(move |one: &&Backend| names.contains(&*one.name))
}

/// The backends that a rule leads to, or asks.
fn backends(rule: &HttpRule) -> impl Iterator<Item = &str> {
    let asked = rule.filters.external_auth.iter().filter_map(|auth| auth.backend.as_deref());
    rule.backends.iter().map(|backend| backend.name.as_str()).chain(asked)
}

fn needs(clusters: &[BTreeMap<&str, Arc<str>>]) -> Arc<[Key]> {
    let all: BTreeSet<&Arc<str>> = clusters.iter().flat_map(BTreeMap::values).collect();
    all.into_iter().flat_map(cluster_keys).collect()
}

struct Entry<'a> {
    member: usize,
    rule: &'a HttpRule,
    one: &'a HttpMatch,
}

/// All rules in the order in which they are tried (Ingress: the longest path, then Exact before Prefix;
/// then what asks for more headers), each match once.
fn entries<'a>(key: &SiteKey, members: &[Member<'a>]) -> (Vec<Entry<'a>>, Vec<(RouteId, String)>) {
    let (mut all, mut shadowed) = (Vec::new(), Vec::new());
    let mut seen: BTreeMap<String, &RouteId> = BTreeMap::new();
    for (member, part) in members.iter().enumerate() {
        for rule in &part.host.rules {
            for one in &rule.matches {
                let identity = format!("{:?} {} {:?}", one.path.kind, trimmed(one), one.headers);
                let (name, hostname) = (&rule.name, &key.hostname);
                let what = match seen.get(&identity) {
                    Some(older) => format!(
                        "{name}: {} of host {hostname:?} is served by the older {}",
                        one.path.value, older.name
                    ),
                    None if all.len() >= MAX_ENTRIES => {
                        format!("{name}: host {hostname:?} has {MAX_ENTRIES} paths already")
                    }
                    None => {
                        seen.insert(identity, part.route);
                        all.push(Entry { member, rule, one });
                        continue;
                    }
                };
                shadowed.push((part.route.clone(), what));
            }
        }
    }
    // Stable: what is equal stays in the order of age.
    all.sort_by_key(|entry| {
        let exact = match entry.one.path.kind {
            PathMatchType::Exact => 0,
            PathMatchType::RegularExpression => 1,
            PathMatchType::PathPrefix => 2,
        };
        let length = std::cmp::Reverse(trimmed(entry.one).len());
        (length, exact, std::cmp::Reverse(entry.one.headers.len()))
    });
    (all, shadowed)
}

/// A path as it is compared: of a prefix `/foo/` is `/foo`.
fn trimmed(one: &HttpMatch) -> &str {
    match one.path.kind {
        PathMatchType::PathPrefix => one.path.value.trim_end_matches('/'),
        _ => &one.path.value,
    }
}

/// The routes of plain HTTP: redirects to HTTPS where a member asks for them. Rules of members without
/// TLS are served, such as the answers to an ACME challenge.
fn plain(
    entries: &[Entry<'_>],
    members: &[Member<'_>],
    encode: &impl Fn(&Entry<'_>) -> Vec<u8>,
) -> Vec<Vec<u8>> {
    let tls = |member: usize| members[member].host.tls.as_ref();
    let redirects = |member: usize| tls(member).is_some_and(|tls| tls.redirect);
    let passed = |member: usize| tls(member).is_some_and(|tls| tls.mode == TlsMode::Passthrough);
    let any = (0..members.len()).any(redirects);
    let all = (0..members.len()).all(redirects);
    let mut routes = Vec::with_capacity(entries.len() + 2);
    if all {
        routes.push(to_https(everything()));
    }
    for entry in entries.iter().filter(|entry| !passed(entry.member)) {
        // A proxy in front that is trusted may have ended TLS already: then there is no redirect.
        if redirects(entry.member) && !all {
            routes.push(to_https(rule::matching(entry.one)));
        }
        routes.push(encode(entry));
    }
    if any && !all {
        routes.push(to_https(everything()));
    }
    routes.push(nothing());
    routes
}

fn everything() -> RouteMatch {
    let path_specifier = Some(PathSpecifier::Prefix("/".into()));
    RouteMatch { path_specifier, ..RouteMatch::default() }
}

fn to_https(mut matching: RouteMatch) -> Vec<u8> {
    matching.headers.push(HeaderMatcher {
        name: "x-forwarded-proto".into(),
        invert_match: true,
        treat_missing_header_as_empty: true,
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exactly("https"))),
    });
    let redirect = RedirectAction {
        scheme_rewrite_specifier: Some(SchemeRewriteSpecifier::HttpsRedirect(true)),
        response_code: RedirectResponseCode::PermanentRedirect.into(),
        ..RedirectAction::default()
    };
    let action = Some(Action::Redirect(redirect));
    rule::encode(&Route { r#match: Some(matching), action, ..Route::default() }, &Parts::new())
}

/// A known host whose rules do not match: without this, a wildcard would be looked for.
fn nothing() -> Vec<u8> {
    let answer = DirectResponseAction { status: 404, ..DirectResponseAction::default() };
    let action = Some(Action::DirectResponse(answer));
    let route = Route { r#match: Some(everything()), action, ..Route::default() };
    rule::encode(&route, &Parts::new())
}

/// What scopes at a listener begin with.
pub(crate) fn prefix(address: IpAddr, port: u16, tenant: Option<&TenantId>) -> String {
    let listener = SocketAddr::new(address, port);
    match tenant {
        Some(tenant) => format!("{listener}/{tenant}/"),
        None => format!("{listener}/"),
    }
}

/// A `RouteConfiguration` and the scope that leads to it. The scope waits for the clusters as well, so
/// that Envoy, once it has the scope, is given the routes at once.
fn publish(
    key: &SiteKey,
    port: u16,
    tenant: Option<&TenantId>,
    routes: &[Vec<u8>],
    needs: &Arc<[Key]>,
) -> Vec<Resource> {
    let name = format!("{}{}", prefix(key.address, port, tenant), key.hostname);
    let fragment = Fragment { r#type: Some(fragment::Type::StringKey(name.clone())) };
    let scope = ScopedRouteConfiguration {
        name: name.clone(),
        route_configuration_name: name.clone(),
        key: Some(scoped_route_configuration::Key { fragments: vec![fragment] }),
        ..ScopedRouteConfiguration::default()
    };
    let body = configuration(&name, routes);
    let shared: Arc<str> = name.into();
    vec![
        Resource::new(Key::new(ResourceType::ScopedRoutes, shared.clone()), &scope, needs.clone()),
        Resource::of_bytes(Key::new(ResourceType::Routes, shared), body, needs.clone()),
    ]
}

/// `RouteConfiguration { virtual_hosts = 2: { routes = 3 } }`, from routes that are encoded already.
fn configuration(name: &str, routes: &[Vec<u8>]) -> Vec<u8> {
    let overwrite = HeaderAppendAction::OverwriteIfExistsOrAdd;
    let client = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%";
    let configuration = RouteConfiguration {
        name: name.to_owned(),
        request_headers_to_add: vec![header("x-real-ip", client, overwrite)],
        request_headers_to_remove: vec![SCOPE.to_owned()],
        max_direct_response_body_size_bytes: number(64),
        ..RouteConfiguration::default()
    };
    let host =
        VirtualHost { name: "host".into(), domains: vec!["*".into()], ..VirtualHost::default() };
    let mut host = host.encode_to_vec();
    for route in routes {
        append(&mut host, 3, route);
    }
    let mut bytes = configuration.encode_to_vec();
    append(&mut bytes, 2, &host);
    bytes
}
