//! One pod at each port of a node: so that a client that keeps to a port of a node keeps to a pod.
//!
//! A slot is a shadow of its own with at most one pod of each node behind it, and traffic that reaches a
//! node stays on it. A Service needs as many slots as there are pods on its fullest node; pods beyond
//! [`MAX`] share slots. A pod keeps its slot while it lives, and the next one on that node takes it over,
//! so that a pod that dies moves its own clients and no others.

use std::collections::BTreeSet;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// Most slots of a Service: node ports are scarce.
pub(crate) const MAX: usize = 16;

/// A pod: its node, and its uid or address.
pub(crate) type Pod = (String, String);

/// The pod of an endpoint; `None` for one that is on no node.
pub(crate) fn pod(endpoint: &Endpoint) -> Option<Pod> {
    let target = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
    let id = target.or_else(|| endpoint.addresses.first().cloned())?;
    Some((endpoint.node_name.clone()?, id))
}

/// All pods of slices, but for those that are about to go: they make room for their successors.
pub(crate) fn pods<'a>(slices: impl IntoIterator<Item = &'a EndpointSlice>) -> BTreeSet<Pod> {
    let endpoints = slices.into_iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let stays = |endpoint: &&Endpoint| {
        !endpoint.conditions.as_ref().and_then(|c| c.terminating).unwrap_or(false)
    };
    endpoints.filter(stays).filter_map(pod).collect()
}

/// Whether slots can lead to all endpoints: each is on a node of the cluster.
pub(crate) fn are_possible(slices: &[EndpointSlice]) -> bool {
    let mut endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    endpoints.all(|endpoint| endpoint.node_name.is_some())
}

/// The slots of these pods. `before`: as they were.
pub(crate) fn assign(before: &[BTreeSet<Pod>], pods: &BTreeSet<Pod>) -> Vec<BTreeSet<Pod>> {
    let mut slots: Vec<BTreeSet<Pod>> =
        before.iter().take(MAX).map(|slot| slot.intersection(pods).cloned().collect()).collect();
    let mut placed = BTreeSet::new();
    for slot in &mut slots {
        // Whatever was written there: a pod has one slot.
        slot.retain(|pod| placed.insert(pod.clone()));
    }
    if slots.is_empty() {
        slots.push(BTreeSet::new());
    }
    for pod in pods.difference(&placed.clone()) {
        let load = |slot: &BTreeSet<Pod>| slot.iter().filter(|(node, _)| *node == pod.0).count();
        let loads = slots.iter().enumerate().map(|(number, slot)| (load(slot), number));
        match loads.min() {
            Some((least, number)) if least == 0 || slots.len() == MAX => {
                slots[number].insert(pod.clone());
            }
            _ => slots.push([pod.clone()].into()),
        }
    }
    slots
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(pods: &[(&str, &str)]) -> BTreeSet<Pod> {
        pods.iter().map(|(node, pod)| ((*node).to_owned(), (*pod).to_owned())).collect()
    }

    #[test]
    fn each_pod_of_a_node_has_a_slot_of_its_own_and_keeps_it() {
        let first = assign(&[], &set(&[("n1", "a"), ("n1", "b"), ("n2", "c")]));
        assert_eq!(first, [set(&[("n1", "a"), ("n2", "c")]), set(&[("n1", "b")])]);
        // a dies, d comes: b stays where it is, d takes the place of a.
        let then = assign(&first, &set(&[("n1", "b"), ("n1", "d"), ("n2", "c")]));
        assert_eq!(then, [set(&[("n1", "d"), ("n2", "c")]), set(&[("n1", "b")])]);
        let none = assign(&then, &BTreeSet::new());
        assert_eq!(none, [BTreeSet::new(), BTreeSet::new()], "their node ports stay");
    }

    #[test]
    fn pods_beyond_the_most_share_slots() {
        let pods: BTreeSet<Pod> = (0..40).map(|n| ("n1".to_owned(), format!("{n:02}"))).collect();
        let slots = assign(&[], &pods);
        assert_eq!(slots.len(), MAX);
        assert!(slots.iter().all(|slot| (2..=3).contains(&slot.len())));
    }

    proptest! {
        /// Whatever happened: each pod has exactly one slot, none moves, and a slot has one pod of a node
        /// where that is possible.
        #[test]
        fn slots_are_stable(rounds in prop::collection::vec(prop::collection::btree_set((0..3_u8, 0..9_u8), 0..12), 1..8)) {
            let mut slots: Vec<BTreeSet<Pod>> = Vec::new();
            for round in rounds {
                let pods: BTreeSet<Pod> =
                    round.iter().map(|(node, pod)| (format!("n{node}"), format!("{node}-{pod}"))).collect();
                let now = assign(&slots, &pods);
                let all: Vec<_> = now.iter().flatten().cloned().collect();
                prop_assert_eq!(all.len(), pods.len());
                prop_assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), pods.clone());
                for (number, slot) in slots.iter().enumerate() {
                    for pod in slot.intersection(&pods) {
                        prop_assert!(now[number].contains(pod), "{:?} moved", pod);
                    }
                }
                for slot in &now {
                    let nodes: BTreeSet<_> = slot.iter().map(|(node, _)| node).collect();
                    prop_assert_eq!(nodes.len(), slot.len());
                }
                slots = now;
            }
        }
    }
}
