//! Responses on the wire: messages that are encoded already are joined, not encoded again. Those that are kept packed are
//! unpacked on the way.

use std::sync::Arc;

use bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint};

use crate::resource::{field_len, put_field};
use crate::{Resource, ResourceType};

/// A `Resource`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire {
    /// As this client is told.
    pub version: String,
    /// Its message, encoded once, is shared by all clients.
    pub resource: Arc<Resource>,
}

impl Wire {
    /// As field `tag`: `Resource { version = 1, … }`.
    fn encode(&self, tag: u32, scratch: &mut Vec<u8>, out: &mut impl BufMut) {
        encode_key(tag, WireType::LengthDelimited, out);
        encode_varint(self.size() as u64, out);
        put_field(out, 1, self.version.as_bytes());
        self.resource.encode(scratch, out);
    }

    /// Size on the wire, in bytes.
    pub fn size(&self) -> usize {
        field_len(1, self.version.len()) + self.resource.size()
    }
}

/// A `DeltaDiscoveryResponse`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Type of all resources in it.
    pub kind: ResourceType,
    /// Names the response in the client's answer.
    pub nonce: String,
    /// The resources.
    pub resources: Vec<Wire>,
    /// Names that are gone.
    pub removed: Vec<Arc<str>>,
}

impl Response {
    /// Writes the message as it is sent, without gRPC's frame.
    pub fn encode(&self, out: &mut impl BufMut) {
        let mut scratch = Vec::new();
        // DeltaDiscoveryResponse: resources = 2, type_url = 4, nonce = 5, removed_resources = 6.
        for resource in &self.resources {
            resource.encode(2, &mut scratch, out);
        }
        put_field(out, 4, self.kind.url().as_bytes());
        put_field(out, 5, self.nonce.as_bytes());
        for name in &self.removed {
            put_field(out, 6, name.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
    use prost::Message;

    use super::*;
    use crate::Key;

    #[test]
    fn a_response_decodes_as_the_generated_type() {
        let key = Key::new(ResourceType::Cluster, "blue");
        let resource = Resource::new(key, &Cluster::default(), []);
        let response = Response {
            kind: ResourceType::Cluster,
            nonce: "7".into(),
            resources: vec![Wire { version: "v".into(), resource: resource.into() }],
            removed: vec!["red".into()],
        };
        let mut bytes = Vec::new();
        response.encode(&mut bytes);
        let read = DeltaDiscoveryResponse::decode(bytes.as_slice()).unwrap();
        assert_eq!((&*read.resources[0].name, &*read.resources[0].version), ("blue", "v"));
        assert_eq!(read.type_url, ResourceType::Cluster.url());
        assert_eq!((read.nonce.as_str(), read.removed_resources), ("7", vec!["red".to_owned()]));
    }
}
