//! `EndpointSlices`, boiled down to what a plan needs: on which nodes a Service has a ready endpoint.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// The label that names a slice's Service.
pub(crate) const SERVICE: &str = "kubernetes.io/service-name";

/// The label that names who looks after a slice, and what it says of Kubernetes' own controller.
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const BY_SELECTOR: &str = "endpointslice-controller.k8s.io";

/// Where a Service has ready endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ready {
    /// There is at least one.
    pub(crate) any: bool,
    /// The nodes that have one.
    pub(crate) nodes: BTreeSet<String>,
    /// A hash of all endpoints, where they are mirrored: of a Service without a selector, or whose pods
    /// have slots.
    pub(crate) content: u64,
}

/// A Service by namespace and name.
pub(crate) type ServiceKey = (String, String);

/// A Service that can be told something else now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Which.
    pub(crate) service: ServiceKey,
    /// Its endpoints may be mirrored: what mirrors them comes before all who name it.
    pub(crate) mirrored: bool,
}

/// What a slice says. There are as many as there are Services, or more: small, and without a tree for one node.
#[derive(Debug)]
struct Said {
    slice: Box<str>,
    any: bool,
    nodes: Box<[Arc<str>]>,
    content: u64,
    /// Not missing from the list that is under way.
    listed: bool,
}

/// What all slices say.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    services: HashMap<ServiceKey, Vec<Said>>,
    /// Each name of a node once.
    nodes: HashSet<Arc<str>>,
    /// Services of which every change of an endpoint counts.
    watched: HashSet<ServiceKey>,
}

impl Endpoints {
    /// Notes a slice; the Service comes back if what it can be told changed.
    pub(crate) fn apply(&mut self, slice: &EndpointSlice) -> Option<Changed> {
        let (key, name) = names(slice)?;
        let before = self.ready(&key);
        let Ready { any, nodes, content } = summarize(slice, self.watched.contains(&key));
        let nodes = nodes.into_iter().map(|node| self.node(node)).collect();
        let said = Said { slice: name.into(), any, nodes, content, listed: true };
        let slices = self.services.entry(key.clone()).or_default();
        match slices.iter_mut().find(|old| old.slice == said.slice) {
            Some(old) => *old = said,
            None => slices.push(said),
        }
        self.changed(key, &before)
    }

    /// The Service, if what it can be told is not as before.
    fn changed(&self, service: ServiceKey, before: &Ready) -> Option<Changed> {
        let now = self.ready(&service);
        let watched = self.watched.contains(&service);
        let mirrored = watched || before.content != 0 || now.content != 0;
        (now != *before).then_some(Changed { service, mirrored })
    }

    fn node(&mut self, name: String) -> Arc<str> {
        if let Some(known) = self.nodes.get(name.as_str()) {
            return known.clone();
        }
        let new = Arc::<str>::from(name);
        self.nodes.insert(new.clone());
        new
    }

    /// A list begins: what it does not name is gone at its [end](Endpoints::end_list).
    pub(crate) fn begin_list(&mut self) {
        self.services.values_mut().flatten().for_each(|said| said.listed = false);
    }

    /// A list was read to its end; the Services come back that can be told less now.
    pub(crate) fn end_list(&mut self) -> Vec<Changed> {
        let lacks = |slices: &Vec<Said>| slices.iter().any(|said| !said.listed);
        let lost = self.services.iter().filter(|(_, slices)| lacks(slices));
        let lost: Vec<_> = lost.map(|(key, _)| (key.clone(), self.ready(key))).collect();
        self.services.retain(|_, slices| {
            slices.retain(|said| said.listed);
            !slices.is_empty()
        });
        self.nodes.retain(|node| Arc::strong_count(node) > 1);
        lost.into_iter().filter_map(|(key, before)| self.changed(key, &before)).collect()
    }

    /// Forgets a slice; the Service comes back if what it can be told changed.
    pub(crate) fn delete(&mut self, slice: &EndpointSlice) -> Option<Changed> {
        let (key, name) = names(slice)?;
        let before = self.ready(&key);
        let slices = self.services.get_mut(&key)?;
        slices.retain(|said| *said.slice != *name);
        if slices.is_empty() {
            self.services.remove(&key);
        }
        self.changed(key, &before)
    }

    /// From now on every change of an endpoint of a Service counts, or no more.
    pub(crate) fn watch_closely(&mut self, key: &ServiceKey, closely: bool) {
        if closely {
            self.watched.insert(key.clone());
        } else {
            self.watched.remove(key);
        }
    }

    /// Where a Service has ready endpoints.
    pub(crate) fn ready(&self, key: &ServiceKey) -> Ready {
        let mut all = Ready::default();
        for slice in self.services.get(key).into_iter().flatten() {
            all.any |= slice.any;
            all.nodes.extend(slice.nodes.iter().map(ToString::to_string));
            all.content ^= slice.content;
        }
        all
    }
}

fn names(slice: &EndpointSlice) -> Option<(ServiceKey, String)> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE)?.clone();
    Some(((slice.metadata.namespace.clone()?, service), slice.metadata.name.clone()?))
}

/// The ready endpoints of a slice. Unset is to be read as ready (discovery/v1, `EndpointConditions`).
pub(crate) fn ready(slice: &EndpointSlice) -> impl Iterator<Item = &Endpoint> {
    let all = slice.endpoints.iter().flatten();
    all.filter(|endpoint| endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true))
}

fn summarize(slice: &EndpointSlice, closely: bool) -> Ready {
    let mut ready = Ready::default();
    for endpoint in self::ready(slice) {
        ready.any = true;
        ready.nodes.extend(endpoint.node_name.clone());
    }
    let labels = slice.metadata.labels.as_ref();
    let keeper = labels.and_then(|labels| labels.get(MANAGED_BY)).map(String::as_str);
    if closely || keeper != Some(BY_SELECTOR) {
        let mut hasher = std::hash::DefaultHasher::new();
        format!("{:?}{:?}{:?}", slice.metadata.name, slice.endpoints, slice.ports)
            .hash(&mut hasher);
        ready.content = hasher.finish();
    }
    ready
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(name: &str, endpoints: &serde_json::Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": name, "labels": {SERVICE: "web", MANAGED_BY: BY_SELECTOR}},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [],
        }))
        .unwrap()
    }

    #[test]
    fn only_what_changes_the_ready_nodes_is_news() {
        let mut endpoints = Endpoints::default();
        let key = ("shop".to_owned(), "web".to_owned());
        let changed = Some(Changed { service: key.clone(), mirrored: false });
        let on = |ip: &str, node: &str, ready: bool| json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": ready}});
        let one = slice("a", &json!([on("10.0.0.1", "n1", true), on("10.0.0.2", "n2", false)]));
        assert_eq!(endpoints.apply(&one), changed);
        let nodes: Vec<_> = endpoints.ready(&key).nodes.into_iter().collect();
        assert_eq!(nodes, ["n1"]);
        // A second pod on the same node.
        let two = slice("b", &json!([on("10.0.0.3", "n1", true)]));
        assert_eq!(endpoints.apply(&two), None);
        assert_eq!(endpoints.delete(&one), None);
        assert_eq!(endpoints.delete(&two), changed);
        assert_eq!(endpoints.ready(&key), Ready::default());
    }

    #[test]
    fn what_is_mirrored_says_so_to_its_last_endpoint() {
        let mut endpoints = Endpoints::default();
        let mut own = slice("a", &json!([{"addresses": ["10.0.0.1"], "nodeName": "n1"}]));
        own.metadata.labels.get_or_insert_default().remove(MANAGED_BY);
        let mirrored = |changed: Option<Changed>| changed.map(|changed| changed.mirrored);
        assert_eq!(mirrored(endpoints.apply(&own)), Some(true));
        assert_eq!(mirrored(endpoints.delete(&own)), Some(true));
        let selected = slice("b", &json!([{"addresses": ["10.0.0.1"], "nodeName": "n1"}]));
        assert_eq!(mirrored(endpoints.apply(&selected)), Some(false));
        endpoints.watch_closely(&("shop".into(), "web".into()), true);
        assert_eq!(mirrored(endpoints.delete(&selected)), Some(true), "it was read before");
    }

    #[test]
    fn what_a_list_does_not_name_is_gone() {
        let mut endpoints = Endpoints::default();
        let on = |node: &str| json!([{"addresses": ["10.0.0.1"], "nodeName": node}]);
        endpoints.apply(&slice("a", &on("n1")));
        endpoints.apply(&slice("b", &on("n2")));
        endpoints.begin_list();
        endpoints.apply(&slice("b", &on("n2")));
        let key = ("shop".to_owned(), "web".to_owned());
        let changed = [Changed { service: key.clone(), mirrored: false }];
        assert_eq!(endpoints.end_list(), changed);
        assert!(endpoints.ready(&key).nodes.iter().eq(["n2"]));
        endpoints.begin_list();
        assert_eq!(endpoints.end_list(), changed, "the last one");
        assert_eq!(endpoints.ready(&key), Ready::default());
        assert!(endpoints.end_list().is_empty());
    }
}
