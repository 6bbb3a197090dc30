//! Whose turn it is when something changed.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use fairlead_process::locks::lock;
use tokio::sync::mpsc;

use crate::endpoints::{Changed, ServiceKey};
use crate::ingress::users::Users;
use crate::outbox::{Item, Outbox};

type To = mpsc::UnboundedSender<ServiceKey>;

/// Who looks at what.
pub(crate) struct Turns {
    services: To,
    ingresses: To,
    users: Arc<Mutex<Users>>,
    outbox: Arc<Outbox>,
}

impl Turns {
    /// `services` and `ingresses`: to those who look.
    pub(crate) fn new(
        (services, ingresses): (To, To),
        users: &Arc<Mutex<Users>>,
        outbox: &Arc<Outbox>,
    ) -> Self {
        Self { services, ingresses, users: users.clone(), outbox: outbox.clone() }
    }

    /// Takes what is to be looked at, and whose endpoints moved, to those who look.
    pub(crate) async fn distribute(
        self,
        mut items: mpsc::UnboundedReceiver<Item>,
        mut moved: mpsc::UnboundedReceiver<Changed>,
    ) -> Result<()> {
        loop {
            tokio::select! {
                Some(item) = items.recv() => self.item(item),
                Some(changed) = moved.recv() => self.endpoints(changed),
                else => return Ok(()),
            }
        }
    }

    fn item(&self, item: Item) {
        match item {
            Item::Nodes => {}
            Item::Service(key) => wake(&self.services, [key]),
            Item::Ingress(key) => wake(&self.ingresses, [key]),
            Item::Secret(key) => wake(&self.ingresses, lock(&self.users).of_secret(&key)),
        }
    }

    /// Endpoints moved. Of most Services that is nobody's concern: it is not published, and no Ingress names it. Those
    /// that name it need not wait for the Service, unless its endpoints are mirrored first.
    fn endpoints(&self, Changed { service, mirrored }: Changed) {
        if !mirrored {
            wake(&self.ingresses, lock(&self.users).of_service(&service));
        }
        if mirrored || self.outbox.wants(&Item::Service(service.clone())) {
            wake(&self.services, [service]);
        }
    }
}

fn wake(to: &To, keys: impl IntoIterator<Item = ServiceKey>) {
    for key in keys {
        // Its receiver lives as long as the process.
        let _ = to.send(key);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::ingress::plan::Need;

    fn key(name: &str) -> ServiceKey {
        ("shop".into(), name.into())
    }

    /// Which Services and which Ingresses look again when a Service's endpoints moved; the Ingress names `backend`, and
    /// `published` has a Route.
    fn woken(service: &str, mirrored: bool) -> (Vec<ServiceKey>, Vec<ServiceKey>) {
        let (services, mut to_services) = mpsc::unbounded_channel();
        let (ingresses, mut to_ingresses) = mpsc::unbounded_channel();
        let (users, outbox) = (Arc::default(), Arc::default());
        let turns = Turns::new((services, ingresses), &users, &outbox);
        let named = [("backend".into(), Need::default())].into();
        lock(&users).set(&key("ingress"), named, BTreeSet::new());
        outbox.expect(Item::Service(key("published")));
        turns.endpoints(Changed { service: key(service), mirrored });
        let all = |from: &mut mpsc::UnboundedReceiver<_>| {
            std::iter::from_fn(|| from.try_recv().ok()).collect()
        };
        (all(&mut to_services), all(&mut to_ingresses))
    }

    #[test]
    fn endpoints_that_moved_wake_whom_they_concern() {
        assert_eq!(woken("published", false), (vec![key("published")], vec![]));
        assert_eq!(woken("backend", false), (vec![], vec![key("ingress")]));
        assert_eq!(woken("private", false), (vec![], vec![]));
    }

    #[test]
    fn endpoints_that_are_mirrored_are_the_services_first() {
        assert_eq!(woken("backend", true), (vec![key("backend")], vec![]));
        assert_eq!(woken("published", true), (vec![key("published")], vec![]));
    }
}
