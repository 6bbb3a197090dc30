//! Which Ingress names which Services and Secrets, so that a change of one finds the Ingresses that
//! it is about, and what nobody names any more goes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::plan::{Need, Part};
use crate::endpoints::ServiceKey;

/// An Ingress, a Service or a Secret by namespace and name.
pub(crate) type Key = ServiceKey;

/// Who names what.
#[derive(Debug, Default)]
pub(crate) struct Users {
    named: HashMap<Key, Named>,
    services: HashMap<Key, BTreeMap<Key, Need>>,
    secrets: HashMap<Key, BTreeMap<Key, BTreeSet<Part>>>,
    shadow_failures: HashMap<Key, String>,
}

#[derive(Debug, Default, PartialEq)]
struct Named {
    services: BTreeMap<String, Need>,
    secrets: BTreeMap<String, BTreeSet<Part>>,
}

/// What is to be looked at after an Ingress was planned.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Touched {
    pub(crate) services: BTreeSet<Key>,
    pub(crate) secrets: BTreeSet<Key>,
}

impl Users {
    /// An Ingress names these now.
    pub(crate) fn set(
        &mut self,
        ingress: &Key,
        services: BTreeMap<String, Need>,
        secrets: BTreeSet<(String, Part)>,
    ) -> Touched {
        let mut parts: BTreeMap<String, BTreeSet<Part>> = BTreeMap::new();
        for (name, part) in secrets {
            parts.entry(name).or_default().insert(part);
        }
        let new = Named { services, secrets: parts };
        let old = self.named.remove(ingress).unwrap_or_default();
        if old == new {
            self.named.insert(ingress.clone(), new);
            return Touched::default();
        }
        let within = |name: &String| (ingress.0.clone(), name.clone());
        let mut touched = Touched::default();
        for name in old.services.keys() {
            remove(&mut self.services, &within(name), ingress);
        }
        for (name, need) in &new.services {
            self.services.entry(within(name)).or_default().insert(ingress.clone(), *need);
        }
        for name in old.secrets.keys() {
            remove(&mut self.secrets, &within(name), ingress);
        }
        for (name, parts) in &new.secrets {
            self.secrets.entry(within(name)).or_default().insert(ingress.clone(), parts.clone());
        }
        let all = old.services.iter().chain(&new.services);
        let changed = all.filter(|(name, _)| old.services.get(*name) != new.services.get(*name));
        touched.services.extend(changed.map(|(name, _)| within(name)));
        let all = old.secrets.keys().chain(new.secrets.keys());
        let changed = all.filter(|name| old.secrets.get(*name) != new.secrets.get(*name));
        touched.secrets.extend(changed.map(within));
        if new != Named::default() {
            self.named.insert(ingress.clone(), new);
        }
        touched
    }

    /// What all Ingresses together need of a Service; `None`: nobody names it.
    pub(crate) fn need(&self, service: &Key) -> Option<Need> {
        let all = self.services.get(service)?.values();
        Some(all.fold(Need::default(), |sum, one| Need {
            shadow: sum.shadow || one.shadow,
            slots: sum.slots || one.slots,
        }))
    }

    /// What a Secret is for; nothing: nobody names it.
    pub(crate) fn parts(&self, secret: &Key) -> BTreeSet<Part> {
        self.secrets.get(secret).into_iter().flat_map(BTreeMap::values).flatten().copied().collect()
    }

    /// The Ingresses that name a Service.
    pub(crate) fn of_service(&self, service: &Key) -> Vec<Key> {
        self.services.get(service).into_iter().flat_map(BTreeMap::keys).cloned().collect()
    }

    /// The Ingresses that name a Secret.
    pub(crate) fn of_secret(&self, secret: &Key) -> Vec<Key> {
        self.secrets.get(secret).into_iter().flat_map(BTreeMap::keys).cloned().collect()
    }

    /// Notes why a Service has no shadow; `None`: it has one. True when that is news.
    pub(crate) fn set_shadow_failure(&mut self, service: &Key, why: Option<String>) -> bool {
        let old = match why.clone() {
            Some(why) => self.shadow_failures.insert(service.clone(), why),
            None => self.shadow_failures.remove(service),
        };
        old != why
    }

    /// Why a Service has no shadow.
    pub(crate) fn shadow_failure(&self, service: &Key) -> Option<String> {
        self.shadow_failures.get(service).cloned()
    }
}

fn remove<V>(index: &mut HashMap<Key, BTreeMap<Key, V>>, at: &Key, ingress: &Key) {
    if let Some(users) = index.get_mut(at) {
        users.remove(ingress);
        if users.is_empty() {
            index.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        ("shop".to_owned(), name.to_owned())
    }

    #[test]
    fn a_shadow_is_needed_until_the_last_ingress_that_uses_it_goes() {
        let mut users = Users::default();
        let need = |shadow, slots| BTreeMap::from([("web".to_owned(), Need { shadow, slots })]);
        let touched = users.set(&key("one"), need(true, false), BTreeSet::new());
        assert_eq!(touched.services, [key("web")].into());
        users.set(&key("two"), need(true, true), BTreeSet::new());
        assert_eq!(users.need(&key("web")), Some(Need { shadow: true, slots: true }));
        assert_eq!(users.of_service(&key("web")), [key("one"), key("two")]);
        users.set(&key("two"), BTreeMap::new(), BTreeSet::new());
        assert_eq!(users.need(&key("web")), Some(Need { shadow: true, slots: false }));
        let touched = users.set(&key("one"), BTreeMap::new(), BTreeSet::new());
        assert_eq!(touched.services, [key("web")].into());
        assert_eq!(users.need(&key("web")), None);
    }

    #[test]
    fn a_secret_is_for_all_that_name_it() {
        let mut users = Users::default();
        let tls = BTreeSet::from([("tls".to_owned(), Part::Certificate)]);
        let ca = BTreeSet::from([("tls".to_owned(), Part::Ca)]);
        assert_eq!(
            users.set(&key("one"), BTreeMap::new(), tls.clone()).secrets,
            [key("tls")].into()
        );
        assert_eq!(users.set(&key("one"), BTreeMap::new(), tls), Touched::default());
        users.set(&key("two"), BTreeMap::new(), ca);
        assert_eq!(users.parts(&key("tls")), [Part::Certificate, Part::Ca].into());
        users.set(&key("one"), BTreeMap::new(), BTreeSet::new());
        assert_eq!(users.parts(&key("tls")), [Part::Ca].into());
    }
}
