//! Objects as a watch needs them: without `metadata.managedFields`.
//!
//! Who manages each field is half of an object's text or more, and as a tree in memory several times that. Nothing here
//! reads it, an apiserver cannot be asked to leave it out, and `kube` would parse all of it for each event.

use std::collections::BTreeMap;
use std::fmt::Debug;

use fairlead_api::{
    AddressClaim, AddressClaimSpec, HostnameClaim, HostnameClaimSpec, Route, RouteSpec, RouteStatus,
};
use futures::{Stream, TryStreamExt};
use k8s_openapi::api::core::v1::{Service, ServiceSpec, ServiceStatus};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::api::networking::v1::{
    Ingress, IngressClass, IngressClassSpec, IngressSpec, IngressStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    ManagedFieldsEntry, ObjectMeta, OwnerReference, Time,
};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};

/// A kind of object that can be read without its managed fields.
pub trait Kind: Resource<DynamicType = ()> + Clone + Debug + Send + 'static {
    /// What is read of it.
    type Text: DeserializeOwned;

    /// The object that was read.
    fn of(text: Self::Text) -> Self;
}

/// Watches all objects of a kind, as [`watcher::watcher`] does.
pub fn watch<K: Kind>(
    client: Client,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send {
    let bare = |Lean(object)| object;
    watcher::watcher(Api::<Lean<K>>::all(client), config).map_ok(move |event| map(event, bare))
}

/// An event of what is made of its object.
pub fn map<A, B>(event: Event<A>, make: impl FnOnce(A) -> B) -> Event<B> {
    match event {
        Event::Apply(object) => Event::Apply(make(object)),
        Event::Delete(object) => Event::Delete(make(object)),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(make(object)),
        Event::InitDone => Event::InitDone,
    }
}

/// In an `impl Resource`: the same kind as another one, whose objects this is another form of.
#[macro_export]
macro_rules! same_kind_as {
    ($kind:ty) => {
        type DynamicType = ();
        type Scope = <$kind as ::kube::Resource>::Scope;

        fn kind(kind: &()) -> ::std::borrow::Cow<'_, str> {
            <$kind as ::kube::Resource>::kind(kind)
        }

        fn group(kind: &()) -> ::std::borrow::Cow<'_, str> {
            <$kind as ::kube::Resource>::group(kind)
        }

        fn version(kind: &()) -> ::std::borrow::Cow<'_, str> {
            <$kind as ::kube::Resource>::version(kind)
        }

        fn plural(kind: &()) -> ::std::borrow::Cow<'_, str> {
            <$kind as ::kube::Resource>::plural(kind)
        }
    };
}

/// An object that was read without its managed fields.
#[derive(Debug, Clone)]
struct Lean<K>(K);

impl<'de, K: Kind> Deserialize<'de> for Lean<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        K::Text::deserialize(deserializer).map(|text| Self(K::of(text)))
    }
}

impl<K: Kind> Resource for Lean<K> {
    crate::same_kind_as!(K);

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

/// How `ObjectMeta` is read: what is skipped is not parsed.
#[derive(Deserialize, Default)]
#[serde(remote = "ObjectMeta", rename_all = "camelCase", default)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
    finalizers: Option<Vec<String>>,
    #[serde(skip)]
    deletion_grace_period_seconds: Option<i64>,
    #[serde(skip)]
    generate_name: Option<String>,
    #[serde(skip)]
    managed_fields: Option<Vec<ManagedFieldsEntry>>,
    #[serde(skip)]
    self_link: Option<String>,
}

/// The text of an object with a spec and a status.
#[derive(Deserialize)]
pub struct Parts<S, T> {
    #[serde(default, with = "Metadata")]
    metadata: ObjectMeta,
    spec: S,
    status: Option<T>,
}

macro_rules! kinds {
    ($($kind:ident, $spec:ty, $status:ty;)*) => {$(
        impl Kind for $kind {
            type Text = Parts<$spec, $status>;

            fn of(Parts { metadata, spec, status }: Self::Text) -> Self {
                Self { metadata, spec, status }
            }
        }
    )*};
}

kinds! {
    Route, RouteSpec, RouteStatus;
    Service, Option<ServiceSpec>, ServiceStatus;
    Ingress, Option<IngressSpec>, IngressStatus;
}

macro_rules! without_status {
    ($($kind:ident, $spec:ty;)*) => {$(
        impl Kind for $kind {
            type Text = Parts<$spec, IgnoredAny>;

            fn of(Parts { metadata, spec, status: _ }: Self::Text) -> Self {
                Self { metadata, spec }
            }
        }
    )*};
}

without_status! {
    IngressClass, Option<IngressClassSpec>;
    AddressClaim, AddressClaimSpec;
    HostnameClaim, HostnameClaimSpec;
}

/// The text of an `EndpointSlice`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Slice {
    #[serde(default, with = "Metadata")]
    metadata: ObjectMeta,
    #[serde(default)]
    address_type: String,
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<EndpointPort>>,
}

impl Kind for EndpointSlice {
    type Text = Slice;

    fn of(Slice { metadata, address_type, endpoints, ports }: Slice) -> Self {
        Self { metadata, address_type, endpoints, ports }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_read_as_it_is_but_for_who_manages_its_fields() {
        let text = r#"{
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 2,
                "creationTimestamp": "2026-01-02T03:04:05Z", "deletionTimestamp": "2026-01-02T03:04:06Z",
                "labels": {"a": "b"}, "annotations": {"c": "d"}, "finalizers": ["e"],
                "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "o", "uid": "p"}],
                "managedFields": [{"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:spec": {}}}]
            },
            "spec": {"type": "ClusterIP", "ports": [{"port": 80}]},
            "status": {"loadBalancer": {}}
        }"#;
        let Lean(lean) = serde_json::from_str::<Lean<Service>>(text).unwrap();
        let mut whole: Service = serde_json::from_str(text).unwrap();
        assert!(whole.metadata.managed_fields.take().is_some());
        assert_eq!(lean, whole);
    }

    #[test]
    fn a_slice_and_a_route_without_a_status_are_read_as_they_are() {
        let slice = r#"{"metadata": {"name": "web-1"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]}"#;
        let Lean(lean) = serde_json::from_str::<Lean<EndpointSlice>>(slice).unwrap();
        assert_eq!(lean, serde_json::from_str(slice).unwrap());
        let route = r#"{"metadata": {"name": "svc.shop.web", "generation": 3}, "spec": {
            "source": {"kind": "Service", "namespace": "shop", "name": "web", "uid": "u"},
            "contentHash": "00", "listeners": [], "backends": []}}"#;
        let Lean(lean) = serde_json::from_str::<Lean<Route>>(route).unwrap();
        let whole: Route = serde_json::from_str(route).unwrap();
        assert_eq!((lean.metadata, lean.spec), (whole.metadata, whole.spec));
        assert_eq!(lean.status, None);
    }
}
