//! The hub's objects, read and watched: each kind is told as single changes, and once as complete.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::net::IpAddr;

use fairlead_api::claim::{ClaimKey, HostKey};
use fairlead_api::node_set::NODE_SET;
use fairlead_api::pool::FINALIZER;
use fairlead_api::{
    AddressClaim, AddressPool, AddressPoolSpec, Agent, AgentId, AgentSpec, AgentStatus,
    HostnameClaim, NodeSet, NodeSetSpec, NodeSetStatus, Route, RouteId, RouteName, SecretName,
    Tenant, TenantId, TenantSpec, Uid,
};
use fairlead_core::claims::Claim;
use fairlead_core::engine::{Guard, SeenBalancer};
use fairlead_core::hosts::HostClaim;
use fairlead_core::http::{Pair, Secret};
use fairlead_process::{lean, secret as check};
use futures::{Stream, TryStreamExt};
use ipnet::IpNet;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, Pod, Secret as ApiSecret, Service};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tracing::warn;

use crate::balancers::{self, BALANCER};
use crate::hub::{HASH, SECRET_LABEL};

/// What changed on the hub. One is kept for each object, so it is small.
#[derive(Debug)]
pub(crate) enum Observed {
    /// A Tenant, with its uid; one that is being deleted is told of by [`Observed::Leaving`] instead.
    Tenant(TenantId, Option<Box<(String, TenantSpec)>>),
    /// A Tenant is being deleted.
    Leaving(TenantId),
    /// An `AddressPool`, with what keeps it from going.
    Pool(String, Option<Box<(AddressPoolSpec, Guard)>>),
    /// A tenant's `NodeSet`.
    Nodes(TenantId, Option<Box<(NodeSetSpec, Option<NodeSetStatus>)>>),
    /// A Route.
    Route(RouteId, Option<Box<Route>>),
    /// An `AddressClaim`, with its version.
    Claim(Box<Claim>, u64),
    /// The `AddressClaim` with this uid is gone, and the version in which it was seen last.
    ClaimGone(ClaimKey, Uid, u64),
    /// A `HostnameClaim`, with its version.
    Host(Box<HostClaim>, u64),
    /// The `HostnameClaim` with this uid is gone, and the version in which it was seen last.
    HostGone(HostKey, Uid, u64),
    /// What is stored of a tenant's Secret, with the agent's hash of it.
    Secret(TenantId, SecretName, Option<Box<(Box<str>, Secret)>>),
    /// A hub's Service of a pool.
    Balancer(String, Option<Box<SeenBalancer>>),
    /// The pod of an Envoy, and whether it is ready; `None`: it is gone.
    Envoy(String, Option<bool>),
    /// A node of the hub, with its addresses and its pods'.
    Node(String, Vec<IpNet>),
    /// An agent.
    Agent(TenantId, AgentId, Option<Box<(AgentSpec, Option<AgentStatus>, u64)>>),
    /// A kind was read once.
    Complete(Kind),
}

impl Observed {
    /// The word that an object is gone, from the word that it is there.
    fn gone(&self) -> Option<Self> {
        Some(match self {
            Self::Tenant(id, _) | Self::Leaving(id) => Self::Tenant(id.clone(), None),
            Self::Pool(name, _) => Self::Pool(name.clone(), None),
            Self::Nodes(id, _) => Self::Nodes(id.clone(), None),
            Self::Route(id, _) => Self::Route(id.clone(), None),
            Self::Claim(claim, version) => {
                Self::ClaimGone(claim.key, claim.object.clone(), *version)
            }
            Self::Host(claim, version) => {
                Self::HostGone(claim.key.clone(), claim.object.clone(), *version)
            }
            Self::Secret(tenant, name, _) => Self::Secret(tenant.clone(), name.clone(), None),
            Self::Balancer(name, _) => Self::Balancer(name.clone(), None),
            Self::Envoy(name, _) => Self::Envoy(name.clone(), None),
            Self::Node(name, _) => Self::Node(name.clone(), Vec::new()),
            Self::Agent(tenant, id, _) => Self::Agent(tenant.clone(), id.clone(), None),
            Self::ClaimGone(..) | Self::HostGone(..) | Self::Complete(_) => return None,
        })
    }
}

/// The kinds that are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Tenant,
    Pool,
    Nodes,
    Route,
    Claim,
    Host,
    Secret,
    Balancer,
    Envoy,
    Node,
    Agent,
}

/// How many kinds there are.
pub(crate) const KINDS: usize = 11;

/// Watches everything, for ever.
pub(crate) fn all(client: &Client, namespace: &str, envoys: &str, to: &mpsc::Sender<Observed>) {
    let everything = watcher::Config::default;
    spawn(Api::<Tenant>::all(client.clone()), everything(), Kind::Tenant, to, tenant);
    spawn(Api::<AddressPool>::all(client.clone()), everything(), Kind::Pool, to, pool);
    spawn(Api::<NodeSet>::all(client.clone()), everything(), Kind::Nodes, to, nodes);
    // Of these there are thousands: they are read without managed fields.
    tell(lean::watch(client.clone(), everything()), Kind::Route, to, route);
    tell(lean::watch(client.clone(), everything()), Kind::Claim, to, claim);
    tell(lean::watch(client.clone(), everything()), Kind::Host, to, host);
    let secrets = everything().labels(SECRET_LABEL);
    spawn(Api::<ApiSecret>::all(client.clone()), secrets, Kind::Secret, to, secret);
    let services = Api::<Service>::namespaced(client.clone(), namespace);
    spawn(services, everything().labels(BALANCER), Kind::Balancer, to, balancer);
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    spawn(pods, everything().labels(envoys), Kind::Envoy, to, envoy);
    spawn(Api::<Node>::all(client.clone()), everything(), Kind::Node, to, node);
    spawn(Api::<Agent>::all(client.clone()), everything(), Kind::Agent, to, agent);
}

/// What there is to tell of an object that is there.
type Translate<K> = fn(K) -> Option<Observed>;

fn spawn<K>(
    api: Api<K>,
    config: watcher::Config,
    kind: Kind,
    to: &mpsc::Sender<Observed>,
    translate: Translate<K>,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + DeserializeOwned + 'static,
{
    tell(watcher::watcher(api, config), kind, to, translate);
}

/// Has what a watch shows told.
fn tell<K>(
    stream: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    kind: Kind,
    to: &mpsc::Sender<Observed>,
    translate: Translate<K>,
) where
    K: Resource<DynamicType = ()> + Send + 'static,
{
    let to = to.clone();
    tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream.default_backoff());
        let mut relist = Relist::default();
        loop {
            let batch = match stream.try_next().await {
                Ok(Some(event)) => relist.take(event, kind, translate),
                Ok(None) => return,
                Err(error) => {
                    warn!(?kind, %error, "watch interrupted");
                    continue;
                }
            };
            for observed in batch {
                if to.send(observed).await.is_err() {
                    return;
                }
            }
        }
    });
}

/// An object's namespace and name, with a slash between.
type Id = Box<str>;

/// Turns a list into single changes: what a list no longer has was deleted meanwhile. Nothing is
/// withdrawn while a list is under way.
#[derive(Default)]
struct Relist {
    /// What to tell once the object is gone.
    known: HashMap<Id, Observed>,
    listed: HashSet<Id>,
}

impl Relist {
    fn take<K>(&mut self, event: Event<K>, kind: Kind, translate: Translate<K>) -> Vec<Observed>
    where
        K: Resource<DynamicType = ()>,
    {
        match event {
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                self.listed.insert(id(&object));
                self.apply(object, translate)
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let lost: Vec<_> =
                    self.known.keys().filter(|id| !listed.contains(*id)).cloned().collect();
                let gone = lost.iter().filter_map(|id| self.known.remove(id));
                gone.chain([Observed::Complete(kind)]).collect()
            }
            Event::Apply(object) => self.apply(object, translate),
            Event::Delete(object) => self.known.remove(&id(&object)).into_iter().collect(),
        }
    }

    fn apply<K>(&mut self, object: K, translate: Translate<K>) -> Vec<Observed>
    where
        K: Resource<DynamicType = ()>,
    {
        let id = id(&object);
        let told = translate(object);
        if let Some(gone) = told.as_ref().and_then(Observed::gone) {
            self.known.insert(id, gone);
        }
        told.into_iter().collect()
    }
}

fn id<K: Resource<DynamicType = ()>>(object: &K) -> Id {
    let name = object.meta().name.as_deref().unwrap_or_default();
    match &object.meta().namespace {
        Some(namespace) => format!("{namespace}/{name}").into(),
        None => name.into(),
    }
}

fn tenant(object: Tenant) -> Option<Observed> {
    let id = object.name_any().parse().ok()?;
    if object.metadata.deletion_timestamp.is_some() {
        return Some(Observed::Leaving(id));
    }
    let content = (object.uid().unwrap_or_default(), object.spec);
    Some(Observed::Tenant(id, Some(Box::new(content))))
}

fn pool(object: AddressPool) -> Option<Observed> {
    let guard = Guard {
        there: object.finalizers().iter().any(|one| one == FINALIZER),
        leaving: object.metadata.deletion_timestamp.is_some(),
    };
    Some(Observed::Pool(object.name_any(), Some(Box::new((object.spec, guard)))))
}

fn nodes(object: NodeSet) -> Option<Observed> {
    if object.name_any() != NODE_SET {
        return None;
    }
    let tenant = TenantId::of_namespace(&object.namespace()?)?;
    Some(Observed::Nodes(tenant, Some(Box::new((object.spec, object.status)))))
}

fn route(object: Route) -> Option<Observed> {
    let tenant = TenantId::of_namespace(&object.namespace()?)?;
    let id = RouteId { tenant, name: RouteName::of_object(&object.name_any()) };
    Some(Observed::Route(id, Some(Box::new(object))))
}

fn claim(object: AddressClaim) -> Option<Observed> {
    let (uid, version) = (uid(&object), version(&object));
    let claim = Claim::parse(object.spec, uid)?;
    Some(Observed::Claim(Box::new(claim), version))
}

fn host(object: HostnameClaim) -> Option<Observed> {
    let claim = HostClaim::parse(&object.spec, uid(&object))?;
    Some(Observed::Host(Box::new(claim), version(&object)))
}

fn secret(object: ApiSecret) -> Option<Observed> {
    let tenant = TenantId::of_namespace(&object.namespace()?)?;
    let name = SecretName::of_object(&object.name_any());
    name.parts()?;
    let hash = object.annotations().get(HASH).map_or("", String::as_str);
    let content = (hash.into(), checked(object.data.as_ref()));
    Some(Observed::Secret(tenant, name, Some(Box::new(content))))
}

/// A Secret with its parts checked: somebody may have edited the object.
fn checked(data: Option<&BTreeMap<String, ByteString>>) -> Secret {
    let part = |name: &str| data.and_then(|data| data.get(name)).map(|bytes| bytes.0.as_slice());
    let pair = part("tls.crt").zip(part("tls.key")).map(|(chain, key)| {
        check::pair(chain, key).map(|_| Pair { chain: chain.to_vec(), key: key.to_vec() })
    });
    Secret {
        certificate: pair,
        ca: part("ca.crt").map(|ca| check::trusted(ca).map(|()| ca.to_vec())),
        users: part("auth").map(check::users),
    }
}

fn balancer(object: Service) -> Option<Observed> {
    let seen = balancers::seen(&object)?;
    Some(Observed::Balancer(object.name_any(), Some(Box::new(seen))))
}

fn envoy(object: Pod) -> Option<Observed> {
    let conditions = object.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    Some(Observed::Envoy(object.name_any(), Some(ready)))
}

fn node(object: Node) -> Option<Observed> {
    let name = object.name_any();
    let addresses = object.status.and_then(|status| status.addresses).unwrap_or_default();
    let addresses = addresses.into_iter();
    // Others are names.
    let addresses = addresses.filter_map(|one| one.address.parse().ok()).map(IpAddr::into);
    let pods = object.spec.and_then(|spec| spec.pod_cidrs).unwrap_or_default();
    let ranges = addresses.chain(pods.iter().filter_map(|range| range.parse().ok())).collect();
    Some(Observed::Node(name, ranges))
}

/// `metadata.uid`.
pub(crate) fn uid<K: Resource<DynamicType = ()>>(object: &K) -> Uid {
    object.meta().uid.as_deref().unwrap_or_default().into()
}

/// `metadata.resourceVersion`; 0 where it is no number.
pub(crate) fn version<K: Resource<DynamicType = ()>>(object: &K) -> u64 {
    object.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0)
}

fn agent(object: Agent) -> Option<Observed> {
    let tenant = TenantId::of_namespace(&object.namespace()?)?;
    let id = object.name_any().parse().ok()?;
    let version = version(&object);
    Some(Observed::Agent(tenant, id, Some(Box::new((object.spec, object.status, version)))))
}
