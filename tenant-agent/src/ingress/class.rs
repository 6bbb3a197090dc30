//! Whose an Ingress is.

use fairlead_api::INGRESS_CONTROLLER;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};

/// The annotation from before `spec.ingressClassName` (Ingress, "Deprecated annotation").
const OLD_CLASS: &str = "kubernetes.io/ingress.class";
/// What the annotation may name also where there is no such `IngressClass`.
const OLD_NAME: &str = "fairlead";

/// Whether we publish an Ingress. One without a class is nobody's: where there is a default class, the
/// apiserver gives it to new ones.
pub(crate) fn is_ours(ingress: &Ingress, class: &dyn Fn(&str) -> Option<IngressClass>) -> bool {
    let annotations = ingress.metadata.annotations.as_ref();
    let old = annotations.and_then(|all| all.get(OLD_CLASS));
    let new = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_ref());
    match (old, new) {
        (Some(name), _) => class(name).map_or(name == OLD_NAME, |class| is_our_class(&class)),
        (None, Some(name)) => class(name).is_some_and(|class| is_our_class(&class)),
        (None, None) => false,
    }
}

fn is_our_class(class: &IngressClass) -> bool {
    let controller = class.spec.as_ref().and_then(|spec| spec.controller.as_deref());
    controller == Some(INGRESS_CONTROLLER)
}
