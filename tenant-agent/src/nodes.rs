//! Nodes → what the hub is told of them.

use std::collections::BTreeMap;

use fairlead_proto::v1;
use k8s_openapi::api::core::v1::Node;

/// The label that takes a node out of external load balancers (KEP-1143).
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// The taint of a node that the cluster autoscaler is about to delete.
const DELETED_SOON: &str = "ToBeDeletedByClusterAutoscaler";

/// The addresses at which a node receives traffic; `None` for a node that shall not. A `Ready` that
/// flaps does not count (KEP-3458): health checks decide.
pub(crate) fn addresses(node: &Node) -> Option<Vec<String>> {
    let excluded =
        node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(EXCLUDED));
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let leaving = taints.into_iter().flatten().any(|taint| taint.key == DELETED_SOON);
    if excluded || leaving || node.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let all = node.status.as_ref()?.addresses.as_ref()?;
    let internal: Vec<&str> =
        all.iter().filter(|a| a.type_ == "InternalIP").map(|a| a.address.as_str()).collect();
    let of_family =
        |v6| internal.iter().find(|ip| ip.contains(':') == v6).map(|ip| (*ip).to_owned());
    let chosen: Vec<_> = [false, true].into_iter().filter_map(of_family).collect();
    (!chosen.is_empty()).then_some(chosen)
}

/// The `NodeSet`, in the order of names.
pub(crate) fn node_set(nodes: &BTreeMap<String, Vec<String>>) -> v1::NodeSet {
    let node = |(name, addresses): (&String, &Vec<String>)| v1::Node {
        name: name.clone(),
        addresses: addresses.clone(),
    };
    v1::NodeSet { nodes: nodes.iter().map(node).collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(extra: &serde_json::Value) -> Node {
        let mut node = json!({
            "metadata": {"name": "n1"},
            "status": {"addresses": [
                {"type": "Hostname", "address": "n1"},
                {"type": "ExternalIP", "address": "1.2.3.4"},
                {"type": "InternalIP", "address": "fd00::1"},
                {"type": "InternalIP", "address": "10.0.0.1"},
            ]},
        });
        for (key, value) in extra.as_object().unwrap() {
            node[key] = value.clone();
        }
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn a_node_is_reached_at_its_internal_addresses() {
        assert_eq!(addresses(&node(&json!({}))).unwrap(), ["10.0.0.1", "fd00::1"]);
    }

    #[test]
    fn a_node_that_is_excluded_or_leaving_is_left_out() {
        let labels = json!({"metadata": {"labels": {EXCLUDED: ""}}});
        let taints = json!({"spec": {"taints": [{"key": DELETED_SOON, "effect": "NoSchedule"}]}});
        for extra in [labels, taints] {
            assert_eq!(addresses(&node(&extra)), None);
        }
    }
}
