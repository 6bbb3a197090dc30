//! Which Ingress names which Services and Secrets, so that a change of one finds the Ingresses that
//! it is about, and what nobody names any more goes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fairlead_api::few::Few;

use super::plan::{Need, Part};
use crate::endpoints::ServiceKey;

/// An Ingress, a Service or a Secret by namespace and name.
pub(crate) type Key = ServiceKey;

/// Who names what.
#[derive(Debug, Default)]
pub(crate) struct Users {
    named: HashMap<Key, Named>,
    services: Index<Need>,
    secrets: Index<Part>,
    shadow_failures: HashMap<Key, String>,
}

/// By which Ingresses an object is named, and what for.
type Index<T> = HashMap<Key, Few<(Key, T)>>;

/// What an Ingress names.
#[derive(Debug, Default, PartialEq)]
struct Named {
    services: Few<(String, Need)>,
    secrets: Few<(String, Part)>,
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
        let new = Named {
            services: services.into_iter().collect(),
            secrets: secrets.into_iter().collect(),
        };
        let old = self.named.remove(ingress).unwrap_or_default();
        let touched = Touched {
            services: replace(&mut self.services, ingress, &old.services, &new.services),
            secrets: replace(&mut self.secrets, ingress, &old.secrets, &new.secrets),
        };
        if new != Named::default() {
            self.named.insert(ingress.clone(), new);
        }
        touched
    }

    /// What all Ingresses together need of a Service; `None`: nobody names it.
    pub(crate) fn need(&self, service: &Key) -> Option<Need> {
        let all = self.services.get(service)?;
        Some(all.iter().fold(Need::default(), |sum, (_, one)| Need {
            shadow: sum.shadow || one.shadow,
            slots: sum.slots || one.slots,
        }))
    }

    /// What a Secret is for; nothing: nobody names it.
    pub(crate) fn parts(&self, secret: &Key) -> BTreeSet<Part> {
        self.secrets.get(secret).into_iter().flatten().map(|(_, part)| *part).collect()
    }

    /// The Ingresses that name a Service.
    pub(crate) fn of_service(&self, service: &Key) -> BTreeSet<Key> {
        naming(&self.services, service)
    }

    /// The Ingresses that name a Secret.
    pub(crate) fn of_secret(&self, secret: &Key) -> BTreeSet<Key> {
        naming(&self.secrets, secret)
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

fn naming<T>(index: &Index<T>, named: &Key) -> BTreeSet<Key> {
    index.get(named).into_iter().flatten().map(|(ingress, _)| ingress.clone()).collect()
}

/// An Ingress names what is new, and what is old no more. What differs comes back.
fn replace<T: Copy + Ord>(
    index: &mut Index<T>,
    ingress: &Key,
    old: &Few<(String, T)>,
    new: &Few<(String, T)>,
) -> BTreeSet<Key> {
    let within = |name: &String| (ingress.0.clone(), name.clone());
    let mut touched = BTreeSet::new();
    for (name, what) in old.difference(new) {
        let key = within(name);
        if let Some(users) = index.get_mut(&key) {
            users.remove(&(ingress.clone(), *what));
            if users.is_empty() {
                index.remove(&key);
            }
        }
        touched.insert(key);
    }
    for (name, what) in new.difference(old) {
        index.entry(within(name)).or_default().insert((ingress.clone(), *what));
        touched.insert(within(name));
    }
    touched
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
        assert_eq!(users.of_service(&key("web")), [key("one"), key("two")].into());
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

    #[test]
    fn of_two_uses_of_a_secret_one_goes() {
        let mut users = Users::default();
        let both = [("tls".to_owned(), Part::Certificate), ("tls".to_owned(), Part::Ca)];
        users.set(&key("one"), BTreeMap::new(), both.clone().into());
        assert_eq!(users.of_secret(&key("tls")), [key("one")].into());
        let [certificate, _] = both;
        let touched = users.set(&key("one"), BTreeMap::new(), [certificate].into());
        assert_eq!(touched.secrets, [key("tls")].into());
        assert_eq!(users.parts(&key("tls")), [Part::Certificate].into());
    }
}
