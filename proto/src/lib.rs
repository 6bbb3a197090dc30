//! The contract between a tenant's agent and the hub's manager; `fairlead/v1/hub.proto` and `identity.proto` explain it.

use prost::Message;

/// Messages and services of `fairlead.v1`.
pub mod v1 {
    #![allow(missing_docs, clippy::pedantic)]
    tonic::include_proto!("fairlead.v1");
}

/// No message on the stream is larger, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// No request for a certificate is larger, in bytes.
pub const MAX_IDENTITY_BYTES: usize = 16 << 10;
/// What the hub says when it ends a stream because its connection is old: the agent connects again at once.
pub const OLD_CONNECTION: &str = "the connection is old; connect again";
/// What the hub says of a certificate that is not the last one that it issued to its bearer.
pub const REPLACED_CERTIFICATE: &str = "was replaced by a newer one";
/// The audience of the tokens that Envoys show.
pub const ENVOY_AUDIENCE: &str = "fairlead-manager";
/// Items in one chunk of an inventory, and keys in one `Want`: well below `MAX_MESSAGE_BYTES`.
pub const MAX_ITEMS: usize = 1_000;

/// A status without its key and hash, as it is sent: of what there are thousands of, that takes a fifth of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedStatus(Box<[u8]>);

impl PackedStatus {
    /// Packs a status; its key and hash are left out.
    pub fn of(status: v1::Status) -> Self {
        let bare = v1::Status { key: None, hash: Vec::new(), ..status };
        Self(bare.encode_to_vec().into())
    }

    /// The status, without key and hash.
    pub fn unpack(&self) -> v1::Status {
        // What was encoded can be decoded.
        v1::Status::decode(&*self.0).unwrap_or_default()
    }
}

impl v1::Key {
    /// The key of a tenant's one `NodeSet`.
    pub fn nodes() -> Self {
        Self { kind: v1::Kind::Nodes.into(), ..Self::default() }
    }

    /// The key of the Route of a Service.
    pub fn service(namespace: &str, name: &str) -> Self {
        Self { kind: v1::Kind::Service.into(), namespace: namespace.into(), name: name.into() }
    }

    /// The key of the Route of an Ingress.
    pub fn ingress(namespace: &str, name: &str) -> Self {
        Self { kind: v1::Kind::Ingress.into(), namespace: namespace.into(), name: name.into() }
    }

    /// The key of a Secret.
    pub fn secret(namespace: &str, name: &str) -> Self {
        Self { kind: v1::Kind::Secret.into(), namespace: namespace.into(), name: name.into() }
    }
}
