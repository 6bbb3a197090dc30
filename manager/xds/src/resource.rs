//! Resources, their types and the order between types.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::BufMut;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::body::{Body, Example};

/// The types that are served, in the order in which a client is brought up to date: what is needed
/// comes before what needs it (Envoy, "Eventual consistency considerations").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// `envoy.extensions.transport_sockets.tls.v3.Secret`
    Secret,
    /// `envoy.config.cluster.v3.Cluster`
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`
    Endpoints,
    /// `envoy.config.listener.v3.Listener`
    Listener,
    /// `envoy.config.route.v3.ScopedRouteConfiguration`
    ScopedRoutes,
    /// `envoy.config.route.v3.RouteConfiguration`
    Routes,
}

impl ResourceType {
    /// All types, in order.
    pub const ALL: [Self; 6] = [
        Self::Secret,
        Self::Cluster,
        Self::Endpoints,
        Self::Listener,
        Self::ScopedRoutes,
        Self::Routes,
    ];

    /// The type URL of its `Any`.
    pub fn url(self) -> &'static str {
        match self {
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::ScopedRoutes => {
                "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration"
            }
            Self::Routes => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// How many resources one response may have. Of several `RouteConfiguration`s or `Secret`s in one
    /// response with a bad one among them, Envoy applies an unpredictable part of the good ones. To add a listener among
    /// 10,000 takes Envoy's main thread some 4 ms: for as long as it works at a response it answers nobody.
    pub(crate) fn per_response(self) -> usize {
        match self {
            Self::Routes | Self::Secret => 1,
            Self::Listener => 50,
            _ => 500,
        }
    }

    /// How many responses may be under way.
    pub(crate) fn window(self) -> usize {
        if matches!(self, Self::Routes | Self::Secret) { 32 } else { 1 }
    }

    /// The type of a URL; `None` for one that is not served.
    pub fn of_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }
}

/// A hash that is the same in every process: what versions are made of.
pub fn hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// A resource's identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its type.
    pub kind: ResourceType,
    /// Its name, unique in the type.
    pub name: Arc<str>,
}

impl Key {
    /// The key of resource `name` of type `kind`.
    pub fn new(kind: ResourceType, name: impl Into<Arc<str>>) -> Self {
        Self { kind, name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.name)
    }
}

/// A resource, encoded once.
#[derive(Debug, Clone)]
pub struct Resource {
    /// Which one.
    pub key: Key,
    /// Hash of its content: equal content has equal versions, in every process.
    pub version: u64,
    /// What a client must have acknowledged before it is sent this.
    pub needs: Arc<[Key]>,
    /// What is sent again whenever this is: a Cluster that is replaced warms with a new answer
    /// for its endpoints, even where these did not change.
    pub renews: Option<Key>,
    pub(crate) body: Body,
}

/// Equal versions are equal content.
impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        let Self { key, version, needs, renews, body: _ } = self;
        (key, version, needs, renews) == (&other.key, &other.version, &other.needs, &other.renews)
    }
}

impl Eq for Resource {}

impl Resource {
    /// Encodes `message` as resource `key`. Maps with more than one entry encode in random order:
    /// the caller has to avoid them, or versions flap.
    pub fn new(key: Key, message: &impl Message, needs: impl Into<Arc<[Key]>>) -> Self {
        Self::of_bytes(key, message.encode_to_vec(), needs)
    }

    /// Takes a message that is encoded already as resource `key`.
    pub fn of_bytes(key: Key, value: Vec<u8>, needs: impl Into<Arc<[Key]>>) -> Self {
        let needs: Arc<[Key]> = needs.into();
        // Of nothing there is one for all.
        let needs = if needs.is_empty() { Arc::default() } else { needs };
        Self { version: hash(&value), key, needs, renews: None, body: value.into() }
    }

    /// Keeps of the message what it has besides `example`, where that is much less. Clients are sent the same.
    pub fn pack(&mut self, example: &'static Example) {
        self.body.pack(example);
    }

    /// Names what is to be sent again with it.
    #[must_use]
    pub fn renewing(self, renews: Key) -> Self {
        Self { renews: Some(renews), ..self }
    }

    /// Size on the wire, in bytes, but for its version.
    pub fn size(&self) -> usize {
        field_len(2, self.any_len()) + field_len(3, self.key.name.len())
    }

    /// The message, for tests and dumps.
    pub fn decode<M: Message + Default>(&self) -> Result<M, prost::DecodeError> {
        M::decode(self.body.read(&mut Vec::new()))
    }

    /// `Resource { name = 3, resource = 2: Any { type_url = 1, value = 2 } }`. What says which resource it is, is
    /// written for each client anew: kept with each resource it would be a third of it. `scratch`: where it is unpacked.
    pub(crate) fn encode(&self, scratch: &mut Vec<u8>, out: &mut impl BufMut) {
        encode_key(2, WireType::LengthDelimited, out);
        encode_varint(self.any_len() as u64, out);
        put_field(out, 1, self.key.kind.url().as_bytes());
        put_field(out, 2, self.body.read(scratch));
        put_field(out, 3, self.key.name.as_bytes());
    }

    fn any_len(&self) -> usize {
        field_len(1, self.key.kind.url().len()) + field_len(2, self.body.len())
    }
}

pub(crate) fn field_len(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

pub(crate) fn put_field(out: &mut impl BufMut, tag: u32, bytes: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.put_slice(bytes);
}

/// What a client is told as a resource's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    /// The resource's own.
    pub(crate) own: u64,
    /// That of what it was sent again with ([`Resource::renews`]): a client that received the one, and then lost its
    /// connection, says by this that it lacks the other.
    pub(crate) with: Option<NonZeroU64>,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.with {
            None => write!(f, "{:016x}", self.own),
            Some(with) => write!(f, "{:016x}-{with:016x}", self.own),
        }
    }
}

impl Version {
    /// Reads what a client says; `None`: not a version of ours.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let number = |text| u64::from_str_radix(text, 16).ok();
        match text.split_once('-') {
            None => Some(Self { own: number(text)?, with: None }),
            Some((own, with)) => {
                Some(Self { own: number(own)?, with: NonZeroU64::new(number(with)?) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use envoy_types::pb::envoy::service::discovery::v3::Resource as Proto;

    use super::*;

    fn cluster(name: &str) -> Cluster {
        Cluster { name: name.into(), alt_stat_name: "x".repeat(300), ..Default::default() }
    }

    static EXAMPLE: LazyLock<Example> = LazyLock::new(|| {
        let other = Key::new(ResourceType::Cluster, "red");
        [Resource::new(other, &cluster("red"), [])].iter().collect()
    });

    #[test]
    fn the_hand_written_encoding_is_the_generated_one_packed_or_not() {
        let cluster = cluster("blue");
        let key = Key::new(ResourceType::Cluster, "blue");
        let resource = Resource::new(key, &cluster, []);
        let mut packed = resource.clone();
        packed.pack(&EXAMPLE);
        assert!(packed.body.kept() * 2 < resource.body.kept(), "it is packed");
        assert_eq!(packed, resource);
        for one in [resource, packed] {
            let mut body = Vec::new();
            one.encode(&mut Vec::new(), &mut body);
            let wire = Proto::decode(&*body).unwrap();
            assert_eq!(wire.name, "blue");
            assert_eq!(wire.resource.as_ref().unwrap().type_url, ResourceType::Cluster.url());
            assert_eq!((wire.encode_to_vec(), body.len()), (body.clone(), one.size()));
            assert_eq!(one.decode::<Cluster>().unwrap(), cluster);
        }
    }

    #[test]
    fn a_version_is_read_as_it_is_written() {
        let with = NonZeroU64::new(1);
        for version in [Version { own: 7, with: None }, Version { own: u64::MAX, with }] {
            assert_eq!(Version::parse(&version.to_string()), Some(version));
        }
        for bad in ["", "x", "1-", "-1", "1-2-3"] {
            assert_eq!(Version::parse(bad), None, "{bad}");
        }
    }
}
