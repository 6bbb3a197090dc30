//! A Tenant that is deleted, step by step: nobody of it is connected any more (the allow list has seen to that),
//! its Routes go, so that Envoy serves nothing of it; then what they needed; then who it was; its namespace; and
//! at last the Tenant itself. Addresses rest for their pool's hold time meanwhile, as after any Route.

use std::fmt::Debug;

use fairlead_api::{Agent, JoinToken, NodeSet, Route, Tenant, TenantId};
use fairlead_process::retry::absent_is_fine;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use crate::hub::{self, SECRET_LABEL};

/// On each Tenant: its things go before it does.
const FINALIZER: &str = "fairlead.dev/tenant";

/// The next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Routes,
    Things,
    Namespace,
    Done,
}

/// What is left to do, by what is left.
fn next(routes: usize, things: usize, namespace: bool) -> Step {
    match (routes, things, namespace) {
        (0, 0, false) => Step::Done,
        (0, 0, true) => Step::Namespace,
        (0, _, _) => Step::Things,
        _ => Step::Routes,
    }
}

/// Gives a Tenant the finalizer, or takes it away.
pub(crate) async fn guard(client: &Client, tenant: &TenantId, there: bool) -> kube::Result<()> {
    hub::guard::<Tenant>(client, tenant.as_str(), FINALIZER, there).await
}

/// Takes the next step of a removal. What it was comes back.
pub(crate) async fn advance(client: &Client, tenant: &TenantId) -> kube::Result<Step> {
    let name = tenant.namespace();
    let secrets = ListParams::default().labels(SECRET_LABEL);
    let all = ListParams::default();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let there = namespaces.get_opt(&name).await?.is_some();
    let (mut routes, mut things) = (0, 0);
    if there {
        routes = count::<Route>(client, &name, &all).await?;
        things = count::<Secret>(client, &name, &secrets).await?
            + count::<NodeSet>(client, &name, &all).await?
            + count::<Agent>(client, &name, &all).await?;
    }
    let step = next(routes, things, there);
    match step {
        Step::Routes => delete::<Route>(client, &name, &all).await?,
        Step::Things => {
            delete::<Secret>(client, &name, &secrets).await?;
            delete::<NodeSet>(client, &name, &all).await?;
            delete::<Agent>(client, &name, &all).await?;
        }
        Step::Namespace => {
            let deleted = namespaces.delete(&name, &DeleteParams::default()).await;
            match deleted {
                // It is going already.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                deleted => absent_is_fine(deleted.map(drop))?,
            }
        }
        Step::Done => {
            let tokens: Api<JoinToken> = Api::all(client.clone());
            for token in tokens.list(&all).await?.items {
                if token.spec.tenant == tenant.as_str() {
                    let name = token.metadata.name.unwrap_or_default();
                    absent_is_fine(tokens.delete(&name, &DeleteParams::default()).await.map(drop))?;
                }
            }
            guard(client, tenant, false).await?;
        }
    }
    Ok(step)
}

/// A kind of which tenants have objects.
trait Owned:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned
{
}

impl<K> Owned for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
{
}

/// At least how many there are: none, or some.
async fn count<K: Owned>(
    client: &Client,
    namespace: &str,
    which: &ListParams,
) -> kube::Result<usize> {
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    Ok(api.list_metadata(&which.clone().limit(1)).await?.items.len())
}

async fn delete<K: Owned>(
    client: &Client,
    namespace: &str,
    which: &ListParams,
) -> kube::Result<()> {
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    api.delete_collection(&DeleteParams::default(), which).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_go_first_and_the_tenant_last() {
        assert_eq!(next(1, 2, true), Step::Routes);
        assert_eq!(next(0, 2, true), Step::Things);
        assert_eq!(next(0, 0, true), Step::Namespace);
        assert_eq!(next(0, 0, false), Step::Done);
    }
}
