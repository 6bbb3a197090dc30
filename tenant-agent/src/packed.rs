//! Objects of the cluster as they are kept: as text, packed with an example of their kind.
//!
//! A cluster has thousands of Services and Ingresses, of which one or two are looked at for a change. As `k8s-openapi` has
//! them, each is 2 to 3 KB, most of it empty fields and maps with room for eleven entries; packed it is a few hundred bytes,
//! since what they have in common is in the example. Nothing is left out: to unpack gives the object back.

use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use fairlead_process::{lean, same_kind_as};
use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::runtime::reflector::{ObjectRef, Store};
use lz4_flex::block::{compress_prepend_size_with_dict, decompress_size_prepended_with_dict};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tracing::error;

use crate::endpoints::ServiceKey;

/// A kind that is kept packed.
pub(crate) trait Kind: lean::Kind + Serialize + DeserializeOwned + Sync {
    /// An object as the apiserver writes it, with whatever most of them have. It changes nothing but how small they become.
    const EXAMPLE: &'static str;
}

impl Kind for Service {
    const EXAMPLE: &'static str = include_str!("packed/service.json");
}

impl Kind for Ingress {
    const EXAMPLE: &'static str = include_str!("packed/ingress.json");
}

impl Kind for IngressClass {
    const EXAMPLE: &'static str = "";
}

/// An object that is packed.
#[derive(Debug)]
pub(crate) struct Packed<K> {
    namespace: Option<Box<str>>,
    name: Box<str>,
    text: Box<[u8]>,
    /// Its name and namespace as `kube` wants to see them, once it asked. That is as much as all the rest, so a copy, which is
    /// what a [`Store`] keeps, begins without.
    meta: OnceLock<Box<ObjectMeta>>,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Packed<K> {
    fn clone(&self) -> Self {
        let Self { namespace, name, text, meta: _, kind } = self;
        let (namespace, name, text) = (namespace.clone(), name.clone(), text.clone());
        Self { namespace, name, text, meta: OnceLock::new(), kind: *kind }
    }
}

impl<K> Packed<K> {
    fn named(&self) -> Box<ObjectMeta> {
        let (name, namespace) = (Some(self.name.to_string()), self.namespace.as_deref());
        let namespace = namespace.map(str::to_owned);
        Box::new(ObjectMeta { name, namespace, ..ObjectMeta::default() })
    }
}

impl<K: Kind> Packed<K> {
    /// Packs an object.
    pub(crate) fn of(object: &K) -> Self {
        let ObjectMeta { name, namespace, .. } = object.meta();
        let (name, namespace) = (name.as_deref().unwrap_or_default(), namespace.as_deref());
        // Every key of its maps is text: it can be written.
        let text = serde_json::to_vec(object).unwrap_or_default();
        let text = compress_prepend_size_with_dict(&text, K::EXAMPLE.as_bytes());
        Self {
            namespace: namespace.map(Into::into),
            name: name.into(),
            text: text.into(),
            meta: OnceLock::new(),
            kind: PhantomData,
        }
    }

    /// The object as it was packed.
    ///
    /// # Errors
    /// None, of what was packed by [`Packed::of`].
    pub(crate) fn unpack(&self) -> serde_json::Result<K> {
        let text = decompress_size_prepended_with_dict(&self.text, K::EXAMPLE.as_bytes());
        serde_json::from_slice(&text.map_err(serde_json::Error::custom)?)
    }
}

/// `kube`'s controllers want to be able to read what they control; they never do.
impl<'de, K: Kind> Deserialize<'de> for Packed<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        K::deserialize(deserializer).map(|object| Self::of(&object))
    }
}

impl<K: Kind> Resource for Packed<K> {
    same_kind_as!(K);

    fn meta(&self) -> &ObjectMeta {
        self.meta.get_or_init(|| self.named())
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.meta();
        self.meta.get_mut().unwrap_or_else(|| unreachable!("it was made"))
    }
}

/// All objects of a kind, as they were seen last.
#[derive(Debug, Clone)]
pub(crate) struct Objects<K: Kind>(Store<Packed<K>>);

impl<K: Kind> Objects<K> {
    /// What a store holds.
    pub(crate) fn new(store: Store<Packed<K>>) -> Self {
        Self(store)
    }

    /// An object of a namespace.
    pub(crate) fn get(&self, (namespace, name): &ServiceKey) -> Option<K> {
        self.find(&ObjectRef::new(name).within(namespace))
    }

    /// An object that is in no namespace.
    pub(crate) fn of_cluster(&self, name: &str) -> Option<K> {
        self.find(&ObjectRef::new(name))
    }

    /// Whether an object of a namespace is there.
    pub(crate) fn has(&self, (namespace, name): &ServiceKey) -> bool {
        self.0.get(&ObjectRef::new(name).within(namespace)).is_some()
    }

    fn find(&self, reference: &ObjectRef<Packed<K>>) -> Option<K> {
        unpacked(&*self.0.get(reference)?)
    }

    /// All of them, each unpacked when it is its turn.
    pub(crate) fn iter(&self) -> impl Iterator<Item = K> {
        self.0.state().into_iter().filter_map(|one: Arc<_>| unpacked(&*one))
    }

    /// Names all of them, each time that it is told to. (`Controller::reconcile_all_on` would have each made as `kube` wants to
    /// see it.)
    pub(crate) fn each_time(
        &self,
        trigger: mpsc::UnboundedReceiver<()>,
    ) -> impl Stream<Item = ObjectRef<Packed<K>>> + Send + use<K> {
        let store = self.0.clone();
        let reference = |one: Arc<Packed<K>>| match &one.namespace {
            Some(namespace) => ObjectRef::new(&one.name).within(namespace),
            None => ObjectRef::new(&one.name),
        };
        UnboundedReceiverStream::new(trigger)
            .flat_map(move |()| stream::iter(store.state().into_iter().map(reference)))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The packed objects.
    pub(crate) fn store(&self) -> Store<Packed<K>> {
        self.0.clone()
    }
}

/// An object as it was packed. That it cannot be unpacked is told, should it ever be.
pub(crate) fn unpacked<K: Kind>(packed: &Packed<K>) -> Option<K> {
    let object = packed.unpack();
    object.inspect_err(|error| error!(kind = %K::kind(&()), %error, "not unpacked")).ok()
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use serde_json::{Value, json};

    use super::*;

    /// Packs an object and unpacks it again; how many bytes of its text are left.
    fn there_and_back<K: Kind + PartialEq + Debug>(object: Value) -> (usize, usize) {
        let object: K = serde_json::from_value(object).unwrap();
        let packed = Packed::of(&object);
        assert_eq!(packed.unpack().unwrap(), object);
        assert_eq!(packed.meta().name, object.meta().name.clone().or(Some(String::new())));
        assert!(packed.clone().meta.get().is_none(), "what is kept has no more than it needs");
        (packed.text.len(), serde_json::to_vec(&object).unwrap().len())
    }

    fn service(number: u32) -> Value {
        json!({
            "metadata": {
                "name": format!("s-{number}"), "namespace": "shop", "resourceVersion": (number * 7).to_string(),
                "uid": format!("9b2f6c1e-0d5a-4c3b-8a7e-{number:012}"), "creationTimestamp": "2026-01-02T03:04:05Z",
                "finalizers": ["service.kubernetes.io/load-balancer-cleanup", "fairlead.dev/withdraw"],
            },
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": "fairlead.dev/fairlead", "clusterIP": "10.96.7.9",
                "clusterIPs": ["10.96.7.9"], "selector": {"app": format!("s-{number}")},
                "ports": [{"name": "http", "port": 80, "nodePort": 30_000 + number, "targetPort": "web"}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}},
        })
    }

    #[test]
    fn an_object_comes_back_as_it_was_from_less_than_half_of_its_text() {
        let (packed, text) = there_and_back::<Service>(service(7));
        assert!(packed * 2 < text, "{packed} of {text} bytes");
        let ingress = json!({
            "metadata": {"name": "front", "namespace": "blog", "uid": "9b2f6c1e-0d5a-4c3b-8a7e-000000000001"},
            "spec": {"ingressClassName": "fairlead", "rules": [{"host": "blog.example.com", "http": {"paths": [
                {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "blog", "port": {"number": 80}}}},
                {"path": "/a", "pathType": "Exact", "backend": {"service": {"name": "blog", "port": {"name": "x"}}}},
            ]}}]},
        });
        let (packed, text) = there_and_back::<Ingress>(ingress);
        assert!(packed * 2 < text, "{packed} of {text} bytes");
        there_and_back::<IngressClass>(json!({"metadata": {"name": "fairlead"}}));
    }

    #[test]
    fn what_is_unlike_the_example_comes_back_as_well() {
        let many: serde_json::Map<_, _> = (0..500)
            .map(|n| (format!("key-{n}"), Value::from("ä\u{0}\"x".repeat(n % 50))))
            .collect();
        there_and_back::<Service>(json!({"metadata": {"name": "odd", "annotations": many}}));
        there_and_back::<Service>(json!({"metadata": {}}));
    }
}
