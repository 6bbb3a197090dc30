//! What Envoys do and say.

use fairlead_api::RouteId;
use fairlead_xds::{Event, Key, ResourceType};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Engine;
use crate::fleet::EnvoyId;
use crate::health::Report;
use crate::publish::Owner;

impl Engine {
    /// An Envoy's pod is ready, or is not.
    pub fn envoy_ready(&mut self, envoy: &EnvoyId, ready: bool) {
        if self.fleet.set_ready(envoy, ready) {
            self.unreported.extend(self.routes.keys().cloned());
        }
    }

    /// An Envoy opened a stream.
    pub fn envoy_connected(&mut self, envoy: &EnvoyId, stream: u64) {
        self.fleet.connected(envoy, stream);
    }

    /// An Envoy's stream ended.
    pub fn envoy_disconnected(&mut self, envoy: &EnvoyId, stream: u64) {
        self.fleet.disconnected(envoy, stream);
    }

    /// An Envoy can be asked for health checks now, or no more.
    pub fn checker(&mut self, envoy: &EnvoyId, there: bool) {
        self.health.checker(envoy, there);
        self.unreported.extend(
            self.routes.iter().filter(|(_, one)| !one.checked.is_empty()).map(|(id, _)| id.clone()),
        );
    }

    /// What an Envoy found when it asked.
    pub fn checked(&mut self, envoy: &EnvoyId, report: Report, now: &Time) {
        let changed = self.health.report(envoy, report, now.0.as_millisecond());
        self.touch_checked(&changed);
    }

    pub(super) fn touch_checked(&mut self, clusters: &[String]) {
        for cluster in clusters {
            // A Cluster of layer 4 is its Route's alone.
            let key = Key::new(ResourceType::Cluster, cluster.as_str());
            if let Some(Owner::Route(id)) = self.publisher.owner(&key) {
                let id = id.clone();
                self.touch(&id);
            }
        }
    }

    /// What an Envoy made of resources.
    pub fn envoy_said(&mut self, envoy: &EnvoyId, stream: u64, events: &[Event]) {
        for event in events {
            self.fleet.observe(envoy, stream, event);
            let Some(owner) = self.publisher.owner(&event.key) else { continue };
            match owner.clone() {
                Owner::Route(id) => drop(self.unreported.insert(id)),
                Owner::Site(key) => {
                    self.web.observe(&key, &event.key, &event.outcome);
                    self.unreported.extend(self.web.members(&key).cloned());
                }
                Owner::Upstream(name) => self.unreported.extend(self.web.users(&name).cloned()),
                Owner::Front(address) => {
                    let open = |id: &&RouteId| self.unprogrammed.contains(*id);
                    self.unreported.extend(self.web.seated(address).filter(open).cloned());
                }
                Owner::Secret(id) => {
                    self.unreported.extend(self.web.observe_secret(&id, &event.outcome));
                }
            }
        }
    }
}
