//! Messages → specs. Everything here comes from a tenant and is believed of nothing.

use fairlead_api::http::{HttpPart, Upstream};
use fairlead_api::node_set::Node;
use fairlead_api::route::{
    AddressRequest, Backend, Listener, NodePolicy, Nodes, Protocol, RouteRule, Source, SourceKind,
};
use fairlead_api::{NodeSetSpec, RouteName, RouteSpec, SecretName};
use fairlead_proto::v1;
use k8s_openapi::ByteString;

use crate::hub::SecretContent;
use crate::records::Item;

/// Bounds that the custom resources have too; checked here so that a refusal names the field.
const MAX_PORTS: usize = 64;
const MAX_NODES: usize = 5_000;

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
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16);
    let text: String =
        bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).flatten().collect();
    Ok(text.into())
}

/// A hash as it was sent.
pub(super) fn hash_bytes(hash: &str) -> Vec<u8> {
    let pairs = hash.as_bytes().chunks(2);
    pairs.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// Reads a Route. An error names the field.
pub(super) fn route(name: &RouteName, hash: &str, route: v1::Route) -> Result<RouteSpec, String> {
    let v1::Route { uid, pool, ip, listeners, rules, backends, http, created } = route;
    let (kind, namespace, name) = name.parts().ok_or("key: names no source")?;
    for (field, count) in
        [("listeners", listeners.len()), ("rules", rules.len()), ("backends", backends.len())]
    {
        if count > MAX_PORTS {
            return Err(format!("{field}: at most {MAX_PORTS} are allowed, there are {count}"));
        }
    }
    let given = |text: String| (!text.is_empty()).then_some(text);
    let http = http_part(kind, &http)?;
    let backends = indexed(backends, "backends", backend)?;
    Ok(RouteSpec {
        source: Source { kind, namespace: namespace.into(), name: name.into(), uid, created },
        content_hash: hash.into(),
        address: AddressRequest { pool: given(pool), ip: given(ip) },
        listeners: indexed(listeners, "listeners", listener)?,
        rules: rules
            .into_iter()
            .map(|r| RouteRule { listener: r.listener, backend: r.backend })
            .collect(),
        backends: backends.into_iter().chain(http.backends).collect(),
        hosts: http.hosts,
        unresolved: http.unresolved,
    })
}

/// Reads layer 7. Its rules are checked by the core, which leaves out what cannot be served.
fn http_part(kind: SourceKind, bytes: &[u8]) -> Result<HttpPart, String> {
    if bytes.is_empty() {
        return Ok(HttpPart::default());
    }
    if kind == SourceKind::Service {
        return Err("http: a Service has none".into());
    }
    let part: HttpPart = serde_json::from_slice(bytes).map_err(|error| format!("http: {error}"))?;
    if let Some(bad) = part.backends.iter().find(|one| one.nodes.names.len() > MAX_NODES) {
        let name: String = bad.name.chars().take(64).collect();
        return Err(format!("http.backends: {name:?}: at most {MAX_NODES} nodes are allowed"));
    }
    if let Some(bad) = part.backends.iter().find(|one| one.node_port == 0) {
        let name: String = bad.name.chars().take(64).collect();
        return Err(format!("http.backends: {name:?}: nodePort must be 1 to 65535"));
    }
    Ok(part)
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

fn listener(listener: v1::Listener) -> Result<Listener, String> {
    let protocol = match listener.protocol() {
        v1::Protocol::Tcp => Protocol::Tcp,
        v1::Protocol::Udp => Protocol::Udp,
        v1::Protocol::Http => Protocol::Http,
        v1::Protocol::Https => Protocol::Https,
        v1::Protocol::Unspecified => {
            return Err(format!("protocol: {} is not known to this hub", listener.protocol));
        }
    };
    Ok(Listener { name: listener.name, protocol, port: port(listener.port, "port")? })
}

fn backend(backend: v1::Backend) -> Result<Backend, String> {
    let nodes = match backend.nodes {
        None => Nodes::default(),
        Some(v1::NodeNames { names }) if names.len() <= MAX_NODES => {
            Nodes { policy: NodePolicy::Named, names }
        }
        Some(_) => return Err(format!("nodes: at most {MAX_NODES} are allowed")),
    };
    let node_port = port(backend.node_port, "node_port")?;
    Ok(Backend { name: backend.name, node_port, nodes, upstream: Upstream::default() })
}

fn port(number: u32, field: &str) -> Result<u16, String> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("{field}: must be 1 to 65535, it is {number}"))
}

/// Reads a `NodeSet`. An error names the field.
pub(super) fn nodes(hash: &str, nodes: v1::NodeSet) -> Result<NodeSetSpec, String> {
    let nodes = nodes.nodes;
    if nodes.len() > MAX_NODES {
        return Err(format!("nodes: at most {MAX_NODES} are allowed, there are {}", nodes.len()));
    }
    let nodes = indexed(nodes, "nodes", |node| {
        let v1::Node { name, addresses } = node;
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
        let listener = |port, protocol| v1::Listener { name: "http".into(), protocol, port };
        let read = |listeners| route(&name, "00", v1::Route { listeners, ..Default::default() });
        let refused = read(vec![listener(80, 1), listener(70_000, 1)]).unwrap_err();
        assert_eq!(refused, "listeners[1].port: must be 1 to 65535, it is 70000");
        let refused = read(vec![listener(80, 9)]).unwrap_err();
        assert_eq!(refused, "listeners[0].protocol: 9 is not known to this hub");
        assert!(read(vec![listener(80, 1); 65]).unwrap_err().starts_with("listeners: at most 64"));
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
