//! `EndpointSlices` of a shadow without a selector: those of its Service, or the part of them that is in a
//! slot, under the shadow's name.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;

use crate::endpoints::{MANAGED_BY, SERVICE};
use crate::shadow::{self, SHADOW_OF};
use crate::slots::{self, Pod};

/// Who looks after a slice of ours.
const US: &str = "fairlead.dev";

/// Whether endpoints are looked after by a person, or another controller, rather than by a selector.
pub(crate) fn needs_mirror(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|spec| spec.selector.as_ref()).is_none_or(BTreeMap::is_empty)
}

/// The slice of a slot's shadow: the endpoints of `slice` whose pods are in the slot. `None`: there is
/// none.
pub(crate) fn slot(
    slice: &EndpointSlice,
    shadow: &Service,
    number: usize,
    pods: &BTreeSet<Pod>,
) -> Option<EndpointSlice> {
    let mut made = mirror(slice, shadow);
    made.metadata.name = Some(shadow::slot_name(&slice.name_any(), number));
    let inside = |endpoint: &Endpoint| slots::pod(endpoint).is_some_and(|pod| pods.contains(&pod));
    made.endpoints.iter_mut().for_each(|all| all.retain(inside));
    made.endpoints.as_ref().is_some_and(|all| !all.is_empty()).then_some(made)
}

/// The slice of a shadow that says what `slice` says of its Service.
pub(crate) fn mirror(slice: &EndpointSlice, shadow: &Service) -> EndpointSlice {
    let name = shadow.name_any();
    let of = shadow::shadow_of(shadow).cloned().unwrap_or_default();
    let labels = [(SERVICE, name.as_str()), (MANAGED_BY, US), (SHADOW_OF, of.as_str())];
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
