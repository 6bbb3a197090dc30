//! What must exist for an Ingress: pure, from the Ingress and what is known around it.
//!
//! Its rules become those of the Gateway API. What is missing fails the rule that names it, and is
//! told by its field; all other rules work.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_api::RouteSpec;
use fairlead_api::http::{
    ANY_HOST, BackendRef, BasicAuth, ExternalAuth, Filters, HeaderMatch, HeaderMatchType, Host,
    HostTls, HttpMatch, HttpRule, PathMatch, PathMatchType, PathRewrite, RequestRedirect, TlsMode,
    Unresolved, UrlRewrite,
};
use fairlead_api::route::{AddressRequest, Backend, Listener, Protocol, SourceKind};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{Ingress, IngressBackend};

use super::settings::Settings;
use crate::annotations::Complaint;
use crate::endpoints::{Ready, ServiceKey};
use crate::plan::source;
use crate::report::Note;

/// The hub takes no longer path.
const MAX_PATH: usize = 1_024;

/// What is known around an Ingress.
pub(crate) trait Around {
    /// A Service of its namespace.
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    /// The shadow of a Service.
    fn shadow(&self, key: &ServiceKey) -> Option<Service>;
    /// Why a Service has no shadow though one was asked for.
    fn shadow_failure(&self, key: &ServiceKey) -> Option<String>;
    /// The slots of a Service, and where each has a ready endpoint.
    fn slots(&self, key: &ServiceKey) -> Vec<(Service, Ready)>;
    /// Where a Service has ready endpoints.
    fn ready(&self, key: &ServiceKey) -> Ready;
    /// A part of a Secret.
    fn secret(&self, key: &ServiceKey, part: Part) -> Found;
}

/// What a Secret is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Part {
    /// `tls.crt` and `tls.key`.
    Certificate,
    /// `ca.crt`.
    Ca,
    /// `auth`.
    Users,
}

impl Part {
    /// All parts.
    pub(crate) const ALL: [Self; 3] = [Self::Certificate, Self::Ca, Self::Users];
}

/// What there is of a part of a Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// It was not read yet.
    Unread,
    /// It is good; a certificate until then, in seconds since 1970.
    Good(Option<i64>),
    /// It is not there, or broken, and why.
    Bad(String),
}

/// What must exist.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// What is pushed; `None` while something that the Ingress names was not read yet.
    pub(crate) route: Option<RouteSpec>,
    /// The Services that it names, and what they need.
    pub(crate) services: BTreeMap<String, Need>,
    /// The Secrets that it names, and for what.
    pub(crate) secrets: BTreeSet<(String, Part)>,
    /// What is missing, or cannot be followed.
    pub(crate) notes: Vec<Note>,
    /// When the first certificate ends, in seconds since 1970.
    pub(crate) expires: Option<i64>,
}

/// What an Ingress needs of a Service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Need {
    /// A `NodePort` beside it.
    pub(crate) shadow: bool,
    /// A slot for each pod of a node, so that a client that is tied to a node's port is tied to a pod.
    pub(crate) slots: bool,
}

/// The Secrets that an Ingress names: all that must be kept before it was planned.
pub(crate) fn secrets(ingress: &Ingress) -> BTreeSet<(String, Part)> {
    let (settings, _) = Settings::parse(&annotations(ingress));
    let tls = ingress.spec.iter().flat_map(|spec| spec.tls.iter().flatten());
    let names = tls.filter_map(|tls| tls.secret_name.clone()).filter(|_| !settings.passthrough);
    let certificates = names.map(|name| (name, Part::Certificate));
    let ca = settings.tls_ca.map(|name| (name, Part::Ca));
    let users = settings.basic_auth.map(|name| (name, Part::Users));
    certificates.chain(ca).chain(users).collect()
}

/// The Services that an Ingress names, with what it may need of them: what must be kept before it was
/// planned.
pub(crate) fn services(ingress: &Ingress) -> BTreeMap<String, Need> {
    let (settings, _) = Settings::parse(&annotations(ingress));
    let slots = settings.session.is_some();
    let need = Need { shadow: !slots, slots };
    let spec = ingress.spec.iter();
    let paths = spec.clone().flat_map(|spec| spec.rules.iter().flatten());
    let paths = paths.flat_map(|rule| rule.http.iter().flat_map(|http| &http.paths));
    let backends = paths.map(|path| &path.backend);
    let all = backends.chain(spec.filter_map(|spec| spec.default_backend.as_ref()));
    let named = all.filter_map(|backend| Some(backend.service.as_ref()?.name.clone()));
    let more = [settings.canary, settings.auth_service].into_iter().flatten().map(|(name, _)| name);
    named.chain(more).map(|name| (name, need)).collect()
}

fn annotations(ingress: &Ingress) -> BTreeMap<String, String> {
    ingress.metadata.annotations.clone().unwrap_or_default()
}

/// Plans an Ingress. `now`: seconds since 1970.
pub(crate) fn plan(ingress: &Ingress, around: &dyn Around, now: i64) -> Plan {
    let (settings, complaints) = Settings::parse(&annotations(ingress));
    let namespace = ingress.metadata.namespace.clone().unwrap_or_default();
    let mut planner = Planner {
        namespace,
        settings,
        around,
        now,
        backends: BTreeMap::new(),
        unresolved: Vec::new(),
        unread: false,
        complaints,
        plan: Plan { secrets: secrets(ingress), ..Plan::default() },
    };
    let hosts = planner.hosts(ingress);
    planner.finish(ingress, hosts)
}

pub(super) struct Planner<'a> {
    pub(super) namespace: String,
    pub(super) settings: Settings,
    pub(super) around: &'a dyn Around,
    pub(super) now: i64,
    pub(super) backends: BTreeMap<String, Backend>,
    pub(super) unresolved: Vec<Unresolved>,
    pub(super) unread: bool,
    pub(super) complaints: Vec<Complaint>,
    pub(super) plan: Plan,
}

impl Planner<'_> {
    pub(super) fn missing(&mut self, reason: &str, message: String) {
        // The hub takes no more of it.
        let message = message.chars().take(1_000).collect();
        self.unresolved.push(Unresolved { reason: reason.to_owned(), message });
    }

    fn finish(mut self, ingress: &Ingress, hosts: Vec<Host>) -> Plan {
        for Complaint { reason, message } in std::mem::take(&mut self.complaints) {
            // What is asked for and cannot be had is the Route's concern as well.
            if reason == "InvalidAnnotation" {
                self.once(reason, message);
            } else {
                self.plan.notes.push(Note::warning(reason, message));
            }
        }
        let note = |one: &Unresolved| Note::warning_of(&one.reason, &one.message);
        self.plan.notes.extend(self.unresolved.iter().map(note));
        let listener =
            |name: &str, protocol, port| Listener { name: name.to_owned(), protocol, port };
        let given = |text: String| (!text.is_empty()).then_some(text);
        let route = RouteSpec {
            address: AddressRequest {
                pool: given(self.settings.pool),
                ips: given(self.settings.address).into_iter().collect(),
                ..AddressRequest::default()
            },
            // Always both: who has 80 only could not come to have 443 there later.
            listeners: vec![
                listener("http", Protocol::Http, 80),
                listener("https", Protocol::Https, 443),
            ],
            hosts,
            backends: self.backends.into_values().collect(),
            // The hub takes so many.
            unresolved: self.unresolved.into_iter().take(100).collect(),
            ..RouteSpec::new(source(SourceKind::Ingress, &ingress.metadata), "")
        };
        Plan { route: (!self.unread).then_some(route), ..self.plan }
    }

    fn hosts(&mut self, ingress: &Ingress) -> Vec<Host> {
        let spec = ingress.spec.clone().filter(|_| !self.settings.unpublished);
        let Some(spec) = spec else { return Vec::new() };
        let mut rules: BTreeMap<String, Vec<HttpRule>> = BTreeMap::new();
        for (index, rule) in spec.rules.iter().flatten().enumerate() {
            let hostname = rule.host.clone().filter(|host| !host.is_empty());
            let host = rules.entry(hostname.unwrap_or_else(|| ANY_HOST.into())).or_default();
            let paths = rule.http.iter().flat_map(|http| &http.paths).enumerate();
            for (number, path) in paths {
                let name = format!("spec.rules[{index}].http.paths[{number}]");
                let matching = self.matching(path.path.as_deref(), &path.path_type, &name);
                host.extend(self.rules(&name, matching, &path.backend));
            }
        }
        let tls_hosts = spec.tls.iter().flatten().flat_map(|tls| tls.hosts.iter().flatten());
        for host in tls_hosts {
            // A wildcard that only a certificate is for is no host: it would claim all names under it.
            if !host.starts_with("*.") || spec.default_backend.is_some() {
                rules.entry(host.clone()).or_default();
            }
        }
        if let Some(backend) = &spec.default_backend {
            // For what matches nothing: of every host that is named, and of all others.
            let everything = || Ok(HttpMatch::default());
            let fallback = self.rules("spec.defaultBackend", everything(), backend);
            rules.entry(ANY_HOST.into()).or_default();
            for host in rules.values_mut() {
                if !host.iter().any(|rule| rule.matches.iter().any(is_everything)) {
                    host.extend(fallback.iter().cloned());
                }
            }
        }
        let tls = self.tls(&spec, &rules);
        rules
            .into_iter()
            .map(|(hostname, rules)| Host { tls: tls(&hostname), hostname, rules })
            .collect()
    }

    /// How TLS for each host ends.
    fn tls(
        &mut self,
        spec: &k8s_openapi::api::networking::v1::IngressSpec,
        rules: &BTreeMap<String, Vec<HttpRule>>,
    ) -> impl Fn(&str) -> Option<HostTls> + use<> {
        let redirect = !self.settings.no_redirect;
        let passthrough = self.settings.passthrough;
        let mut certificates: BTreeMap<String, String> = BTreeMap::new();
        for (index, tls) in spec.tls.iter().flatten().enumerate() {
            let field = format!("spec.tls[{index}].secretName");
            let Some(secret) = tls.secret_name.clone().filter(|_| !passthrough) else {
                if !passthrough {
                    let message =
                        format!("{field}: names no Secret, so its hosts have no certificate");
                    self.missing("SecretNotFound", message);
                }
                continue;
            };
            self.certificate(&field, &secret);
            // None named: all hosts of the rules.
            let named = tls.hosts.clone().filter(|hosts| !hosts.is_empty());
            for host in named.unwrap_or_else(|| rules.keys().cloned().collect()) {
                certificates.entry(host).or_insert_with(|| secret.clone());
            }
        }
        move |hostname| {
            if passthrough {
                let mode = TlsMode::Passthrough;
                return (hostname != ANY_HOST).then_some(HostTls {
                    mode,
                    certificate: None,
                    redirect,
                });
            }
            let parent = hostname.split_once('.').map_or("", |(_, parent)| parent);
            let wildcard = format!("*.{parent}");
            let certificate = certificates.get(hostname).or_else(|| certificates.get(&wildcard))?;
            Some(HostTls {
                mode: TlsMode::Terminate,
                certificate: Some(certificate.clone()),
                redirect,
            })
        }
    }

    fn certificate(&mut self, field: &str, secret: &str) {
        let key = (self.namespace.clone(), secret.to_owned());
        match self.around.secret(&key, Part::Certificate) {
            Found::Unread => self.unread = true,
            Found::Bad(why) => {
                self.missing("InvalidCertificate", format!("{field}: Secret {secret:?}: {why}"));
            }
            Found::Good(None) => {}
            Found::Good(Some(end)) if end <= self.now => {
                let message = format!(
                    "{field}: Secret {secret:?}: the certificate has expired; it is served all the \
                     same, and clients will refuse it"
                );
                self.missing("CertificateExpired", message);
            }
            Found::Good(Some(end)) => {
                self.plan.expires = Some(self.plan.expires.map_or(end, |first| first.min(end)));
            }
        }
    }

    fn matching(&mut self, path: Option<&str>, kind: &str, name: &str) -> Result<HttpMatch, ()> {
        let value = path.filter(|path| !path.is_empty()).unwrap_or("/").to_owned();
        if value.len() > MAX_PATH {
            let message = format!("{name}.path: a path has at most {MAX_PATH} characters");
            self.missing("UnsupportedValue", message);
            return Err(());
        }
        let kind = match kind {
            "Exact" => PathMatchType::Exact,
            // As Prefix, unless expressions were asked for.
            "ImplementationSpecific" if self.settings.path_regex => {
                PathMatchType::RegularExpression
            }
            "Prefix" if self.settings.path_regex && is_expression(&value) => {
                PathMatchType::RegularExpression
            }
            "Prefix" | "ImplementationSpecific" => PathMatchType::PathPrefix,
            other => {
                let message = format!("{name}.pathType: {other:?} is unknown");
                self.missing("UnsupportedValue", message);
                return Err(());
            }
        };
        Ok(HttpMatch { path: PathMatch { kind, value }, headers: Vec::new() })
    }

    /// The rules that one path becomes.
    fn rules(
        &mut self,
        name: &str,
        matching: Result<HttpMatch, ()>,
        backend: &IngressBackend,
    ) -> Vec<HttpRule> {
        let Ok(matching) = matching else { return Vec::new() };
        let main = self.backend(&format!("{name}.backend"), backend);
        let mut refs: Vec<_> =
            main.into_iter().map(|name| BackendRef { name, weight: 1 }).collect();
        let mut rules = self.app_root(name, &matching);
        if self.settings.canary.is_some() {
            rules.extend(self.canary(name, &matching, &mut refs));
        }
        if self.settings.closed {
            refs.clear();
        }
        let filters = self.filters(name, &matching);
        rules.push(self.rule(name, matching, filters, refs));
        rules
    }

    fn rule(
        &self,
        name: &str,
        matching: HttpMatch,
        mut filters: Filters,
        backends: Vec<BackendRef>,
    ) -> HttpRule {
        let Settings { timeouts, retry, session, closed, .. } = &self.settings;
        if *closed {
            // Nothing at all, not even a redirect.
            filters = Filters::default();
        }
        HttpRule {
            name: name.to_owned(),
            matches: vec![matching],
            filters: filters.into(),
            backends,
            timeouts: timeouts.clone(),
            retry: retry.clone(),
            session_persistence: session.clone(),
        }
    }

    /// `/` alone leads elsewhere.
    fn app_root(&mut self, name: &str, matching: &HttpMatch) -> Vec<HttpRule> {
        let Some(root) = self.settings.app_root.clone() else { return Vec::new() };
        if !is_everything(matching) {
            return Vec::new();
        }
        let path = PathMatch { kind: PathMatchType::Exact, value: "/".into() };
        let redirect =
            RequestRedirect { path: Some(root), status_code: 302, ..RequestRedirect::default() };
        let filters = Filters { request_redirect: Some(redirect), ..Filters::default() };
        vec![self.rule(name, HttpMatch { path, headers: Vec::new() }, filters, Vec::new())]
    }

    /// A share of the requests goes to another backend, and all with a header.
    fn canary(
        &mut self,
        name: &str,
        matching: &HttpMatch,
        refs: &mut Vec<BackendRef>,
    ) -> Option<HttpRule> {
        let (service, port) = self.settings.canary.clone()?;
        let field = "annotation fairlead.dev/canary-backend";
        let canary = self.service(field, field, &service, &port)?;
        let weight = self.settings.canary_weight;
        for main in refs.iter_mut() {
            main.weight = 100 - weight;
        }
        refs.push(BackendRef { name: canary.clone(), weight });
        let header = self.settings.canary_header.clone()?;
        let value = self.settings.canary_header_value.clone().unwrap_or_else(|| "always".into());
        let kind = HeaderMatchType::Exact;
        let mut matching = matching.clone();
        matching.headers.push(HeaderMatch { kind, name: header, value });
        let filters = self.filters(name, &matching);
        let only = if self.settings.closed {
            Vec::new()
        } else {
            vec![BackendRef { name: canary, weight: 1 }]
        };
        Some(self.rule(name, matching, filters, only))
    }

    fn filters(&mut self, name: &str, matching: &HttpMatch) -> Filters {
        let rewrite = match self.settings.rewrite.clone() {
            Some(PathRewrite::ReplaceRegexMatch(target))
                if matching.path.kind != PathMatchType::RegularExpression =>
            {
                // No groups to take from.
                let message = format!(
                    "{name}: {target:?} takes groups of an expression, and this path is none; its \
                     path is not rewritten"
                );
                self.complaints.push(Complaint { reason: "InvalidAnnotation", message });
                None
            }
            other => other,
        };
        let basic_auth = self.settings.basic_auth.clone().map(|secret| self.users(secret));
        let external_auth = self.external_auth();
        let Settings { cors, clients, redirect, rewrite_host, rate_limit, .. } = &self.settings;
        let Settings { request_headers, response_headers, max_body_bytes, .. } = &self.settings;
        Filters {
            request_header_modifier: request_headers.clone(),
            response_header_modifier: response_headers.clone(),
            request_redirect: redirect.clone(),
            url_rewrite: UrlRewrite { hostname: rewrite_host.clone(), path: rewrite },
            cors: cors.clone(),
            client_addresses: clients.clone(),
            basic_auth,
            external_auth,
            rate_limit: rate_limit.clone(),
            max_body_bytes: *max_body_bytes,
        }
    }

    fn users(&mut self, secret: String) -> BasicAuth {
        let key = (self.namespace.clone(), secret.clone());
        match self.around.secret(&key, Part::Users) {
            Found::Unread => self.unread = true,
            Found::Good(_) => {}
            Found::Bad(why) => self.once(
                "SecretNotFound",
                format!("annotation fairlead.dev/basic-auth-secret: Secret {secret:?}: {why}; until then all is answered with 503"),
            ),
        }
        BasicAuth { secret }
    }

    /// Says something that several rules would say.
    pub(super) fn once(&mut self, reason: &str, message: String) {
        if !self.unresolved.iter().any(|old| old.message == message) {
            self.missing(reason, message);
        }
    }

    fn external_auth(&mut self) -> Option<ExternalAuth> {
        let (service, port) = self.settings.auth_service.clone()?;
        let field = "annotation fairlead.dev/auth-service";
        let backend = self.service(field, field, &service, &port);
        Some(ExternalAuth {
            backend,
            path_prefix: self.settings.auth_path.clone(),
            response_headers: self.settings.auth_headers.clone(),
        })
    }
}

fn is_everything(one: &HttpMatch) -> bool {
    one.path == PathMatch::default() && one.headers.is_empty()
}

/// Whether a path has anything that only an expression has.
fn is_expression(path: &str) -> bool {
    path.contains(['(', '[', '*', '+', '?', '|', '\\', '^', '$'])
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
