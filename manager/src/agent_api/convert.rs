//! Messages → specs. Everything here comes from a tenant and is believed of nothing.

use fairlead_api::node_set::Node;
use fairlead_api::route::{Source, SourceKind};
use fairlead_api::{NodeSetSpec, RouteName, RouteSpec, SecretName};
use fairlead_process::token::hex;
use fairlead_proto::v1;
use k8s_openapi::ByteString;

use super::text;
use crate::hub::SecretContent;
use crate::records::Item;

const MAX_PORTS: usize = 64;
const MAX_BACKENDS: usize = 1_000;
const MAX_NODES: usize = 5_000;
/// Of a name in Kubernetes.
const MAX_NAME: usize = 253;

/// Reads a key.
pub(super) fn item(key: &v1::Key) -> Result<Item, String> {
    let v1::Key { kind: _, namespace, name } = key;
    match key.kind() {
        v1::Kind::Nodes => Ok(Item::Nodes),
        v1::Kind::Service => {
            let name = RouteName::new(SourceKind::Service, namespace, name);
            name.map(Item::Route).map_err(|error| format!("key: {error}"))
        }
        v1::Kind::Ingress => {
            let name = RouteName::new(SourceKind::Ingress, namespace, name);
            name.map(Item::Route).map_err(|error| format!("key: {error}"))
        }
        v1::Kind::Secret => {
            let name = SecretName::new(namespace, name);
            name.map(Item::Secret).map_err(|error| format!("key: {error}"))
        }
        v1::Kind::Unspecified => Err(format!("key.kind: {} is not known to this hub", key.kind)),
    }
}

/// The key of an item, as it is sent.
pub(super) fn key(item: &Item) -> v1::Key {
    match item {
        Item::Nodes => v1::Key::nodes(),
        Item::Secret(name) => match name.parts() {
            Some((namespace, name)) => v1::Key::secret(namespace, name),
            None => v1::Key { name: name.as_str().into(), ..v1::Key::default() },
        },
        Item::Route(name) => match name.parts() {
            Some((SourceKind::Service, namespace, name)) => v1::Key::service(namespace, name),
            Some((SourceKind::Ingress, namespace, name)) => v1::Key::ingress(namespace, name),
            None => v1::Key { name: name.to_string(), ..v1::Key::default() },
        },
    }
}

/// Reads a hash: 1 to 32 bytes, kept as hexadecimal text.
pub(super) fn hash(bytes: &[u8]) -> Result<Box<str>, String> {
    if bytes.is_empty() || bytes.len() > 32 {
        return Err(format!("hash: must have 1 to 32 bytes, it has {}", bytes.len()));
    }
    Ok(hex(bytes).into())
}

/// A hash as it was sent.
pub(super) fn hash_bytes(hash: &str) -> Vec<u8> {
    let pairs = hash.as_bytes().chunks(2);
    pairs.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// Reads a Route. An error names the field.
pub(super) fn route(name: &RouteName, hash: &str, route: &v1::Route) -> Result<RouteSpec, String> {
    let (kind, namespace, name) = name.parts().ok_or("key: names no source")?;
    text::check(&route.spec)?;
    let json = &mut serde_json::Deserializer::from_slice(&route.spec);
    let spec: RouteSpec = serde_path_to_error::deserialize(&mut *json).map_err(|error| {
        let message = error.inner().to_string();
        format!("{}: {}", error.path(), message.chars().take(256).collect::<String>())
    })?;
    json.end().map_err(|error| error.to_string())?;
    check(&spec)?;
    let source = Source { kind, namespace: namespace.into(), name: name.into(), ..spec.source };
    Ok(RouteSpec { source, content_hash: hash.into(), ..spec })
}

/// Bounds that the custom resource has too; checked here so that a refusal names the field.
fn check(spec: &RouteSpec) -> Result<(), String> {
    for (field, count, most) in [
        ("listeners", spec.listeners.len(), MAX_PORTS),
        ("rules", spec.rules.len(), MAX_PORTS),
        ("backends", spec.backends.len(), MAX_BACKENDS),
    ] {
        if count > most {
            return Err(format!("{field}: at most {most} are allowed, there are {count}"));
        }
    }
    let http = spec.listeners.iter().any(|listener| listener.protocol.is_http());
    if !http && spec.backends.len() > MAX_PORTS {
        return Err(format!("backends: at most {MAX_PORTS} are allowed"));
    }
    for (index, backend) in spec.backends.iter().enumerate() {
        let at = |what: &str| format!("backends[{index}].{what}");
        let slots = backend.slots.iter().map(|slot| (slot.node_port, slot.nodes.len()));
        let mut ports = slots.chain([(backend.node_port, backend.nodes.names.len())]);
        if ports.clone().any(|(port, _)| port == 0) {
            return Err(at("nodePort: must be 1 to 65535, it is 0"));
        }
        if ports.any(|(_, nodes)| nodes > MAX_NODES) {
            return Err(at(&format!("nodes: at most {MAX_NODES} are allowed")));
        }
    }
    Ok(())
}

/// Checks a Secret: what Envoy would refuse is not stored, so that the last good one stays.
pub(super) fn secret(hash: &str, secret: v1::Secret) -> Result<SecretContent, String> {
    let v1::Secret { tls_crt, tls_key, ca_crt, auth } = secret;
    if !tls_crt.is_empty() || !tls_key.is_empty() {
        fairlead_process::secret::pair(&tls_crt, &tls_key)?;
    }
    if !ca_crt.is_empty() {
        fairlead_process::secret::trusted(&ca_crt)?;
    }
    if !auth.is_empty() {
        fairlead_process::secret::users(&auth)?;
    }
    let parts = [("tls.crt", tls_crt), ("tls.key", tls_key), ("ca.crt", ca_crt), ("auth", auth)];
    let data = parts.into_iter().filter(|(_, bytes)| !bytes.is_empty());
    Ok(SecretContent {
        hash: hash.into(),
        data: data.map(|(name, bytes)| (name.to_owned(), ByteString(bytes))).collect(),
    })
}

/// Reads a `NodeSet`. An error names the field.
pub(super) fn nodes(hash: &str, nodes: v1::NodeSet) -> Result<NodeSetSpec, String> {
    let nodes = nodes.nodes;
    if nodes.len() > MAX_NODES {
        return Err(format!("nodes: at most {MAX_NODES} are allowed, there are {}", nodes.len()));
    }
    let nodes = indexed(nodes, "nodes", |node| {
        let v1::Node { name, addresses } = node;
        if name.len() > MAX_NAME || name.contains(text::is_unprintable) {
            let shown: String = name.chars().take(64).collect();
            return Err(format!("name: {shown:?} is no name"));
        }
        if let Some(bad) = addresses.iter().find(|text| text.parse::<std::net::IpAddr>().is_err()) {
            let shown: String = bad.chars().take(64).collect();
            return Err(format!("addresses: {shown:?} is not an IP address"));
        }
        Ok(Node { name, addresses })
    })?;
    Ok(NodeSetSpec { content_hash: hash.into(), nodes })
}

fn indexed<A, B>(
    list: Vec<A>,
    field: &str,
    read: impl Fn(A) -> Result<B, String>,
) -> Result<Vec<B>, String> {
    let read = |(index, one)| read(one).map_err(|error| format!("{field}[{index}].{error}"));
    list.into_iter().enumerate().map(read).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_hash_survives_the_way_there_and_back() {
        let bytes = [0, 1, 0xab, 0xff];
        assert_eq!(hash_bytes(&hash(&bytes).unwrap()), bytes);
        assert!(hash(&[]).is_err() && hash(&[0; 33]).is_err());
    }

    #[test]
    fn a_refusal_names_the_field() {
        let name = RouteName::new(SourceKind::Service, "shop", "web").unwrap();
        let read = |listeners: Value| {
            let spec = json!({
                "source": {"kind": "Ingress", "namespace": "other", "name": "other", "uid": "u"},
                "contentHash": "",
                "listeners": listeners,
            });
            route(&name, "00", &v1::Route { spec: serde_json::to_vec(&spec).unwrap() })
        };
        let listener =
            |port: u32, protocol: &str| json!({"name": "http", "port": port, "protocol": protocol});
        let refused = read(json!([listener(80, "TCP"), listener(70_000, "TCP")])).unwrap_err();
        assert!(
            refused.starts_with("listeners[1].port: invalid value: integer `70000`"),
            "{refused}"
        );
        let refused = read(json!([listener(80, "SCTP")])).unwrap_err();
        assert!(refused.starts_with("listeners[0].protocol: unknown variant `SCTP`"), "{refused}");
        let many = Value::Array(vec![listener(80, "TCP"); 65]);
        assert!(read(many).unwrap_err().starts_with("listeners: at most 64"));
        // Whose it is, the key says.
        let spec = read(json!([listener(80, "TCP")])).unwrap();
        assert_eq!(spec.source.to_string(), "Service/shop/web");
    }

    #[test]
    fn names_of_nodes_are_names() {
        let node = |name: &str| v1::NodeSet {
            nodes: vec![v1::Node { name: name.into(), addresses: vec!["10.0.0.1".into()] }],
        };
        assert!(nodes("00", node("n1.example")).is_ok());
        for bad in ["n\u{7f}", "n\n1", &"n".repeat(254)] {
            assert!(nodes("00", node(bad)).unwrap_err().starts_with("nodes[0].name: "), "{bad}");
        }
    }

    #[test]
    fn keys_name_items_and_nothing_else() {
        assert_eq!(item(&v1::Key::nodes()), Ok(Item::Nodes));
        let web = item(&v1::Key::service("shop", "web")).unwrap();
        assert_eq!(key(&web), v1::Key::service("shop", "web"));
        assert!(item(&v1::Key::service("../../other", "web")).is_err());
        assert!(item(&v1::Key { kind: 77, ..v1::Key::default() }).is_err());
    }
}
