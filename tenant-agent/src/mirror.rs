//! `EndpointSlices` of a shadow without a selector: those of its Service, under the shadow's name.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;

use crate::shadow;

/// The label that names a slice's Service.
pub(crate) const SERVICE: &str = "kubernetes.io/service-name";
/// The label that names who looks after a slice.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// What it says of ours.
const US: &str = "fairlead.dev";

/// Whether endpoints are looked after by a person, or another controller, rather than by a selector.
pub(crate) fn needs_mirror(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|spec| spec.selector.as_ref()).is_none_or(BTreeMap::is_empty)
}

/// The slice of a shadow that says what `slice` says of its Service.
pub(crate) fn mirror(slice: &EndpointSlice, shadow: &Service) -> EndpointSlice {
    let name = shadow.name_any();
    let labels = [(SERVICE, name.as_str()), (MANAGED_BY, US)];
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(shadow::name(&slice.name_any())),
            namespace: shadow.namespace(),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Service".into(),
                name,
                uid: shadow.uid().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        address_type: slice.address_type.clone(),
        endpoints: slice.endpoints.clone(),
        ports: slice.ports.clone(),
    }
}
