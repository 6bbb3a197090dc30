//! Writing to the hub's apiserver.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fairlead_api::claim::{ClaimKey, HostKey};
use fairlead_api::node_set::NODE_SET;
use fairlead_api::pool::FINALIZER;
use fairlead_api::{
    AddressClaim, AddressPool, AddressPoolStatus, HostnameClaim, NodeSet, NodeSetSpec,
    NodeSetStatus, Route, RouteId, RouteSpec, RouteStatus, SecretName, Tenant, TenantId,
    TenantStatus, Uid,
};
use fairlead_core::claims::Claim;
use fairlead_core::engine::Balancer;
use fairlead_core::hosts::HostClaim;
use fairlead_process::retry::{absent_is_fine, between};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request};
use k8s_openapi::api::core::v1::{Namespace, Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ByteString, ClusterResourceScope, NamespaceResourceScope};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde_json::json;

use crate::balancers;
use crate::seen::Seen;
use crate::watch::{uid, version};

/// The field manager of what agents push.
const AGENT_API: &str = "fairlead-agent-api";
/// The field manager of finalizers.
const GUARD: &str = "fairlead-manager-guard";
/// The field manager of what the manager itself makes.
const MANAGER: &str = "fairlead-manager";

/// The hub's apiserver.
#[derive(Clone)]
pub(crate) struct Hub {
    client: Client,
    /// The manager's namespace.
    namespace: Arc<str>,
    /// The labels of the Envoys' pods.
    envoys: Arc<BTreeMap<String, String>>,
    /// What is known of claims.
    pub(crate) claims: Seen<ClaimKey>,
    /// What is known of host names' claims.
    pub(crate) hosts: Seen<HostKey>,
}

impl Hub {
    /// `envoys`: the label selector of the Envoys' pods in `namespace`.
    pub(crate) fn new(client: Client, namespace: &str, envoys: &str) -> Self {
        Self {
            client,
            namespace: namespace.into(),
            envoys: Arc::new(balancers::labels(envoys)),
            claims: Seen::default(),
            hosts: Seen::default(),
        }
    }

    fn of<K>(&self, tenant: &TenantId) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &tenant.namespace())
    }

    /// Stores what an agent pushed. `known`: there is a Route of that name already, as far as is known.
    ///
    /// The spec is the agent's alone and is replaced as a whole: to merge it by server-side apply would cost the
    /// apiserver several times as much.
    pub(crate) async fn store_route(
        &self,
        id: &RouteId,
        spec: &RouteSpec,
        known: bool,
    ) -> kube::Result<()> {
        let code = |result: &kube::Result<()>| match result {
            Err(kube::Error::Api(status)) => status.code,
            _ => 0,
        };
        if !known {
            let made = self.write(id, Writing::New(spec)).await;
            if code(&made) != 409 {
                return made;
            }
        }
        let replaced = self.write(id, Writing::Spec(spec)).await;
        match code(&replaced) {
            404 if known => self.write(id, Writing::New(spec)).await,
            _ => replaced,
        }
    }

    /// Writes a Route. The watch brings what became of it: of the answer nobody needs more than that it is one.
    async fn write(&self, id: &RouteId, writing: Writing<'_>) -> kube::Result<()> {
        let all = Route::url_path(&(), Some(&id.tenant.namespace()));
        let (verb, method, path, media_type, manager, body) = match writing {
            Writing::New(spec) => {
                let body = serde_json::to_vec(&Route::new(id.name.as_str(), spec.clone()));
                ("create", Method::POST, all, "application/json", AGENT_API, body)
            }
            Writing::Spec(value) => {
                let path = format!("{all}/{}", id.name);
                let spec = Operation { op: "replace", path: "/spec", value };
                let body = serde_json::to_vec(&(spec, UNMANAGED));
                ("patch", Method::PATCH, path, "application/json-patch+json", AGENT_API, body)
            }
            Writing::Status(status) => {
                let path = format!("{all}/{}/status", id.name);
                let body = serde_json::to_vec(&Told { status });
                ("patch_status", Method::PATCH, path, "application/merge-patch+json", MANAGER, body)
            }
        };
        // What is written is of these types: to look for fields that are not would cost the apiserver time.
        let uri = format!("{path}?fieldManager={manager}&fieldValidation=Ignore");
        let request = Request::builder().method(method).uri(uri).header(CONTENT_TYPE, media_type);
        let request = request.header(ACCEPT, METADATA);
        let mut request =
            request.body(body.map_err(kube::Error::SerdeError)?).map_err(kube::Error::HttpError)?;
        // By this kube names the request in its spans.
        request.extensions_mut().insert(verb);
        self.client.request_text(request).await.map(drop)
    }

    /// Stores a tenant's nodes.
    pub(crate) async fn store_nodes(
        &self,
        tenant: &TenantId,
        spec: NodeSetSpec,
    ) -> kube::Result<()> {
        let nodes = NodeSet::new(NODE_SET, spec);
        let params = PatchParams::apply(AGENT_API).force();
        let api: Api<NodeSet> = self.of(tenant);
        api.patch(NODE_SET, &params, &Patch::Apply(&nodes)).await.map(drop)
    }

    /// Deletes a Route; one that is not there is fine.
    pub(crate) async fn delete_route(&self, id: &RouteId) -> kube::Result<()> {
        let api: Api<Route> = self.of(&id.tenant);
        absent_is_fine(api.delete(id.name.as_str(), &DeleteParams::default()).await.map(drop))
    }

    /// Stores what Routes need of a tenant's Secret.
    pub(crate) async fn store_secret(
        &self,
        tenant: &TenantId,
        name: &SecretName,
        content: &SecretContent,
    ) -> kube::Result<()> {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.as_str().to_owned()),
                labels: Some([(SECRET_LABEL.to_owned(), "true".to_owned())].into()),
                annotations: Some([(HASH.to_owned(), content.hash.to_string())].into()),
                ..ObjectMeta::default()
            },
            data: Some(content.data.clone()),
            type_: Some("Opaque".into()),
            ..Secret::default()
        };
        let params = PatchParams::apply(AGENT_API).force();
        let api: Api<Secret> = self.of(tenant);
        api.patch(name.as_str(), &params, &Patch::Apply(&secret)).await.map(drop)
    }

    /// Deletes a Secret; one that is not there is fine.
    pub(crate) async fn delete_secret(
        &self,
        tenant: &TenantId,
        name: &SecretName,
    ) -> kube::Result<()> {
        let api: Api<Secret> = self.of(tenant);
        absent_is_fine(api.delete(name.as_str(), &DeleteParams::default()).await.map(drop))
    }

    /// Deletes a tenant's nodes; none is fine.
    pub(crate) async fn delete_nodes(&self, tenant: &TenantId) -> kube::Result<()> {
        let api: Api<NodeSet> = self.of(tenant);
        absent_is_fine(api.delete(NODE_SET, &DeleteParams::default()).await.map(drop))
    }

    /// Creates claims, all or none. What stands in the way comes back as an error, or as the claim
    /// that is there already.
    pub(crate) async fn claim(&self, mut claims: Vec<Claim>) -> Result<Vec<Claim>, Obstacle> {
        let mut created: Vec<(ClaimKey, Uid)> = Vec::new();
        for claim in &mut claims {
            match self.claim_one(claim).await {
                Ok(new) => created.extend(new.then(|| (claim.key, claim.object.clone()))),
                Err(obstacle) => {
                    for (key, object) in created {
                        // What cannot be taken back now has no user, and goes with the next look.
                        let _ = self.release(&key, &object).await;
                    }
                    return Err(obstacle);
                }
            }
        }
        Ok(claims)
    }

    /// True when the claim was made, false when it was this Route's already.
    async fn claim_one(&self, claim: &mut Claim) -> Result<bool, Obstacle> {
        let api: Api<AddressClaim> = Api::all(self.client.clone());
        let name = claim.key.object_name();
        let object = AddressClaim::new(&name, claim.spec());
        match api.create(&PostParams::default(), &object).await {
            Ok(made) => {
                self.claims.note(&claim.key, version(&made));
                claim.object = uid(&made);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let there = api.get(&name).await.map_err(Obstacle::Failed)?;
                self.claims.note(&claim.key, version(&there));
                let uid = uid(&there);
                match Claim::parse(there.spec, uid) {
                    // The same in all that it says: another one of the same Route is an older wish's.
                    Some(held)
                        if (Claim { object: claim.object.clone(), ..held.clone() }) == *claim =>
                    {
                        claim.object = held.object;
                        Ok(false)
                    }
                    held => Err(Obstacle::Held(held.map(Box::new))),
                }
            }
            Err(error) => Err(Obstacle::Failed(error)),
        }
    }

    /// Deletes a claim, if it is still the object that is meant.
    pub(crate) async fn release(&self, key: &ClaimKey, object: &Uid) -> kube::Result<()> {
        let api: Api<AddressClaim> = Api::all(self.client.clone());
        delete_exactly(&api, &key.object_name(), object).await?;
        self.claims.deleted(key);
        Ok(())
    }

    /// Claims a host name. What is there in the end comes back: this claim, or another's.
    pub(crate) async fn claim_host(&self, claim: &HostClaim) -> Result<HostClaim, Obstacle> {
        let api: Api<HostnameClaim> = Api::all(self.client.clone());
        let name = claim.key.object_name();
        let object = HostnameClaim::new(&name, claim.spec());
        let there = match api.create(&PostParams::default(), &object).await {
            Err(kube::Error::Api(status)) if status.code == 409 => api.get(&name).await,
            made => made,
        };
        let there = there.map_err(Obstacle::Failed)?;
        self.hosts.note(&claim.key, version(&there));
        HostClaim::parse(&there.spec, uid(&there)).ok_or(Obstacle::Held(None))
    }

    /// Deletes a host name's claim, if it is still the object that is meant.
    pub(crate) async fn release_host(&self, key: &HostKey, object: &Uid) -> kube::Result<()> {
        let api: Api<HostnameClaim> = Api::all(self.client.clone());
        delete_exactly(&api, &key.object_name(), object).await?;
        self.hosts.deleted(key);
        Ok(())
    }

    /// Gives a pool the finalizer, or takes it away.
    pub(crate) async fn guard_pool(&self, name: &str, there: bool) -> kube::Result<()> {
        guard::<AddressPool>(&self.client, name, FINALIZER, there).await
    }

    /// Makes a hub's Service of a pool as it shall be; `None`: deletes it.
    pub(crate) async fn balance(
        &self,
        name: &str,
        balancer: Option<&Balancer>,
    ) -> kube::Result<()> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), &self.namespace);
        let Some(balancer) = balancer else {
            return absent_is_fine(api.delete(name, &DeleteParams::default()).await.map(drop));
        };
        let service = balancers::service(name, balancer, &self.envoys);
        let params = PatchParams::apply(MANAGER).force();
        api.patch(name, &params, &Patch::Apply(&service)).await.map(drop)
    }

    /// Writes a Route's status; a Route that is gone is fine.
    pub(crate) async fn report(&self, id: &RouteId, status: &RouteStatus) -> kube::Result<()> {
        absent_is_fine(self.write(id, Writing::Status(status)).await)
    }

    /// Writes a pool's status.
    pub(crate) async fn report_pool(
        &self,
        name: &str,
        status: &AddressPoolStatus,
    ) -> kube::Result<()> {
        let api: Api<AddressPool> = Api::all(self.client.clone());
        let patch = Patch::Merge(json!({ "status": status }));
        absent_is_fine(api.patch_status(name, &PatchParams::default(), &patch).await.map(drop))
    }

    /// Writes what became of a tenant's nodes.
    pub(crate) async fn report_nodes(
        &self,
        id: &TenantId,
        status: &NodeSetStatus,
    ) -> kube::Result<()> {
        let api: Api<NodeSet> = self.of(id);
        let patch = Patch::Merge(json!({ "status": status }));
        absent_is_fine(api.patch_status(NODE_SET, &PatchParams::default(), &patch).await.map(drop))
    }

    /// Writes a tenant's status.
    pub(crate) async fn report_tenant(
        &self,
        id: &TenantId,
        status: &TenantStatus,
    ) -> kube::Result<()> {
        let api: Api<Tenant> = Api::all(self.client.clone());
        let patch = Patch::Merge(json!({ "status": status }));
        absent_is_fine(
            api.patch_status(id.as_str(), &PatchParams::default(), &patch).await.map(drop),
        )
    }

    /// Makes a tenant's namespace. It belongs to the Tenant, and goes with it.
    /// Its annotation with the tenant's domains is what the `ValidatingAdmissionPolicy` goes by.
    pub(crate) async fn ensure_namespace(
        &self,
        id: &TenantId,
        uid: &str,
        domains: &[String],
    ) -> kube::Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let name = id.namespace();
        let owner = json!({
            "apiVersion": Tenant::api_version(&()), "kind": "Tenant", "name": id.as_str(), "uid": uid,
        });
        let annotations = match domains {
            [] => json!({}),
            domains => json!({"fairlead.dev/domains": domains.join(",")}),
        };
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": name,
                "labels": {"fairlead.dev/tenant": id.as_str()},
                "annotations": annotations,
                "ownerReferences": [owner],
            },
        });
        let params = PatchParams::apply(MANAGER).force();
        api.patch(&name, &params, &Patch::Apply(&namespace)).await.map(drop)
    }
}

/// What of a Route is written.
enum Writing<'a> {
    New(&'a RouteSpec),
    Spec(&'a RouteSpec),
    Status(&'a RouteStatus),
}

/// The smallest form of an answer (`kubernetes.io/docs/reference/using-api/api-concepts`).
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// An operation of RFC 6902.
#[derive(Serialize)]
struct Operation<T> {
    op: &'static str,
    path: &'static str,
    value: T,
}

/// From now on the apiserver keeps no `managedFields` of the object (Kubernetes, "Clearing managedFields": a list of one
/// that is empty): nobody else writes a Route, and who wrote which of its fields is a third of an object.
const UNMANAGED: Operation<[BTreeMap<&str, &str>; 1]> =
    Operation { op: "add", path: "/metadata/managedFields", value: [BTreeMap::new()] };

/// A merge patch (RFC 7386) of a status.
#[derive(Serialize)]
struct Told<'a> {
    status: &'a RouteStatus,
}

/// Gives an object a finalizer, or takes it away. As the owner of that one only: others' stay.
pub(crate) async fn guard<K>(
    client: &Client,
    name: &str,
    finalizer: &str,
    there: bool,
) -> kube::Result<()>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::all(client.clone());
    let finalizers: &[&str] = if there { &[finalizer] } else { &[] };
    let object = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": name, "finalizers": finalizers},
    });
    let params = PatchParams::apply(GUARD).force();
    absent_is_fine(api.patch(name, &params, &Patch::Apply(&object)).await.map(drop))
}

/// Deletes the object with this uid; another one of that name, or none, is fine: then it is gone.
async fn delete_exactly<K>(api: &Api<K>, name: &str, uid: &Uid) -> kube::Result<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let exactly = Preconditions { uid: Some(uid.to_string()), resource_version: None };
    let params = DeleteParams::default().preconditions(exactly);
    match api.delete(name, &params).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        result => absent_is_fine(result.map(drop)),
    }
}

/// What is stored of a tenant's Secret.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SecretContent {
    /// The agent's hash of it, hexadecimal.
    pub(crate) hash: Box<str>,
    /// Its `data`.
    pub(crate) data: BTreeMap<String, ByteString>,
}

/// The label of the Secrets that agents push.
pub(crate) const SECRET_LABEL: &str = "fairlead.dev/tenant-secret";
/// The annotation with the agent's hash.
pub(crate) const HASH: &str = "fairlead.dev/content-hash";

/// Why claims were not made.
#[derive(Debug)]
pub(crate) enum Obstacle {
    /// Another holds one of them; `None` where its claim cannot be read.
    Held(Option<Box<Claim>>),
    /// The apiserver did not do it.
    Failed(kube::Error),
}

/// How long to leave the apiserver alone after it failed: half a second to one and a half, so that
/// not everybody comes back at once.
pub(crate) async fn pause_after_failure() {
    let pause = between(Duration::from_millis(500), Duration::from_millis(1_500));
    tokio::time::sleep(pause).await;
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
