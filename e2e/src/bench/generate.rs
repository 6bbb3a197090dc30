//! The tenant's objects: the same for the same seed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::probe::{Target, Wanted};
use super::stage::{BACKENDS, NODES};

/// Namespaces that the objects are spread over.
const NAMESPACES: usize = 20;
/// Objects that are written at the same time.
const WRITERS: usize = 24;
/// Endpoints of each Service.
const ENDPOINTS: usize = 5;

/// What is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Services of type `LoadBalancer`, each with a TCP port of its own on one shared address.
    Layer4,
    /// Ingresses, each with a host name of its own, and a Service behind each.
    Hosts,
}

impl Layout {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Layer4, Self::Hosts];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Layer4 => "layer 4",
            Self::Hosts => "host names",
        }
    }
}

/// A generator of numbers that are the same for the same seed (xorshift64*).
#[derive(Debug, Clone)]
pub struct Seeded(u64);

impl Seeded {
    /// Begins anew.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap_or(0) % bound.max(1)
    }
}

/// A change of the tenant's objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// All pods of a Service move to the other node.
    Endpoints,
    /// A Service's port, or an Ingress's path.
    Edit,
    /// One more.
    Add,
    /// One less.
    Delete,
}

impl Change {
    /// 70 % endpoints, 20 % edits, 5 % each of additions and deletions.
    pub fn draw(seeded: &mut Seeded) -> Self {
        match seeded.below(100) {
            0..70 => Self::Endpoints,
            70..90 => Self::Edit,
            90..95 => Self::Add,
            _ => Self::Delete,
        }
    }
}

/// One Service, with what belongs to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Item {
    /// Which of [`NODES`] its pods are on.
    node: usize,
    edited: bool,
    gone: bool,
}

/// The tenant's objects, and how they are changed.
pub struct Objects {
    layout: Layout,
    /// Services are asked whether they are healthy.
    checked: bool,
    client: Client,
    items: Vec<Item>,
    /// Where Envoy listens, once that is known.
    address: Option<std::net::IpAddr>,
}

fn namespace(index: usize) -> String {
    format!("ns-{}", index % NAMESPACES)
}

fn name(index: usize) -> String {
    format!("s-{index}")
}

fn parse<K: DeserializeOwned>(value: Value) -> Result<K> {
    serde_json::from_value(value).context("an object of the bench")
}

impl Objects {
    /// None yet, but the namespaces and nodes.
    pub async fn new(layout: Layout, checked: bool, client: Client) -> Result<Self> {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        for index in 0..NAMESPACES {
            let made = parse(json!({"metadata": {"name": namespace(index)}}))?;
            namespaces.create(&PostParams::default(), &made).await?;
        }
        let nodes: Api<Node> = Api::all(client.clone());
        for (name, address) in NODES {
            let made = parse(json!({"metadata": {"name": name}}))?;
            nodes.create(&PostParams::default(), &made).await?;
            let status = json!({"status": {
                "addresses": [{"type": "InternalIP", "address": address}],
                "conditions": [{"type": "Ready", "status": "True"}],
            }});
            nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
        }
        Ok(Self { layout, checked, client, items: Vec::new(), address: None })
    }

    /// What is published.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.items.iter().filter(|item| !item.gone).count()
    }

    fn of<K>(&self, index: usize) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &namespace(index))
    }

    /// Makes as many more as are missing.
    pub async fn fill(&mut self, count: usize) -> Result<()> {
        let missing = count.saturating_sub(self.count());
        let first = self.items.len();
        let new = |index: usize| Item { node: index % NODES.len(), ..Item::default() };
        self.items.extend((first..first + missing).map(new));
        let writes = (first..first + missing).map(|index| self.create(index));
        stream::iter(writes).buffer_unordered(WRITERS).try_collect::<Vec<()>>().await.map(drop)
    }

    async fn create(&self, index: usize) -> Result<()> {
        let slices: Api<EndpointSlice> = self.of(index);
        slices.create(&PostParams::default(), &parse(self.slice(index))?).await?;
        let services: Api<Service> = self.of(index);
        services.create(&PostParams::default(), &parse(self.service(index))?).await?;
        if self.layout == Layout::Hosts {
            let ingresses: Api<Ingress> = self.of(index);
            ingresses.create(&PostParams::default(), &parse(self.ingress(index))?).await?;
        }
        Ok(())
    }

    fn slice(&self, index: usize) -> Value {
        let (node, _) = NODES[self.items[index].node];
        let endpoint = |pod: usize| {
            let address = format!("10.244.{}.{}", (index * ENDPOINTS + pod) / 250 % 250, pod + 1);
            json!({
                "addresses": [address], "nodeName": node, "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "namespace": namespace(index), "name": format!("s-{index}-{pod}")},
            })
        };
        json!({
            "metadata": {"name": name(index), "labels": {
                "kubernetes.io/service-name": name(index),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            }},
            "addressType": "IPv4",
            "endpoints": (0..ENDPOINTS).map(endpoint).collect::<Vec<_>>(),
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        })
    }

    fn service(&self, index: usize) -> Value {
        let mut spec = json!({
            "type": "NodePort",
            "externalTrafficPolicy": "Local",
            "selector": {"app": name(index)},
            "ports": [{"name": "http", "port": self.port(index), "targetPort": 8080}],
        });
        if self.layout == Layout::Layer4 {
            spec["type"] = "LoadBalancer".into();
            spec["loadBalancerClass"] = "fairlead.dev/fairlead".into();
        }
        let mut service = json!({"metadata": {"name": name(index)}, "spec": spec});
        if !self.checked {
            service["metadata"]["annotations"] = json!({"fairlead.dev/health-check": "none"});
        }
        service
    }

    /// Each Service's own, and another once it was edited.
    fn port(&self, index: usize) -> usize {
        match self.layout {
            Layout::Hosts => 80,
            // Above what the nodes themselves listen on.
            Layout::Layer4 => 20_000 + index + if self.items[index].edited { 15_000 } else { 0 },
        }
    }

    fn host(index: usize) -> String {
        format!("h{index}.t{}.bench.example", index % 100)
    }

    fn ingress(&self, index: usize) -> Value {
        let backend = json!({"service": {"name": name(index), "port": {"number": 80}}});
        let path = |path: &str| json!({"path": path, "pathType": "Prefix", "backend": backend});
        let edited = if self.items[index].edited { "/after" } else { "/before" };
        json!({
            "metadata": {"name": name(index)},
            "spec": {
                "ingressClassName": "fairlead",
                "rules": [{
                    "host": Self::host(index),
                    "http": {"paths": [path("/shop"), path("/api"), path(edited)]},
                }],
            },
        })
    }

    /// How one is reached.
    pub fn target(&self, index: usize) -> Result<Target> {
        let ip = self.address.context("the address is not known yet")?;
        let (port, path) = match self.layout {
            Layout::Layer4 => (u16::try_from(self.port(index))?, "/"),
            Layout::Hosts if self.items[index].edited => (80, "/after"),
            Layout::Hosts => (80, "/before"),
        };
        Ok(Target { address: (ip, port).into(), host: Self::host(index), path: path.into() })
    }

    /// What it answers.
    pub fn wanted(&self, index: usize) -> Wanted {
        if self.items[index].gone {
            return Wanted::Gone;
        }
        Wanted::Good(BACKENDS[self.items[index].node])
    }

    /// All that are there.
    pub fn all(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.items.len()).filter(|index| !self.items[*index].gone)
    }

    /// Whether its pods are on the second node.
    pub fn is_on_second(&self, index: usize) -> bool {
        self.items[index].node == 1
    }

    /// Waits until the tenant is shown an address, which all share.
    pub async fn wait_for_address(&mut self) -> Result<()> {
        let shown = || async {
            let status = match self.layout {
                Layout::Layer4 => {
                    serde_json::to_value(self.of::<Service>(0).get_status(&name(0)).await?)?
                }
                Layout::Hosts => {
                    serde_json::to_value(self.of::<Ingress>(0).get_status(&name(0)).await?)?
                }
            };
            let ip = status["status"]["loadBalancer"]["ingress"][0]["ip"].as_str();
            ip.context("no address yet")?.parse().context("an address")
        };
        for _ in 0..1_200 {
            if let Ok(ip) = shown().await {
                self.address = Some(ip);
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        anyhow::bail!("the tenant is shown no address")
    }

    /// What a change is about: one that is there, or one more.
    pub fn pick(&mut self, change: Change, seeded: &mut Seeded) -> usize {
        if change == Change::Add {
            self.items.push(Item::default());
            return self.items.len() - 1;
        }
        loop {
            // The first one is asked for all the time, and stays as it is.
            let index = 1 + seeded.below(self.items.len() - 1);
            if !self.items[index].gone {
                return index;
            }
        }
    }

    /// Notes a change, which [`Objects::write`] carries out; what is to be asked then comes back.
    pub fn change(&mut self, change: Change, index: usize) -> Result<(Target, Wanted)> {
        let item = &mut self.items[index];
        match change {
            Change::Endpoints => item.node = 1 - item.node,
            Change::Edit => item.edited = !item.edited,
            Change::Delete => item.gone = true,
            Change::Add => {}
        }
        Ok((self.target(index)?, self.wanted(index)))
    }

    /// Writes what [`Objects::change`] noted.
    pub async fn write(&self, change: Change, index: usize) -> Result<()> {
        let (name, params) = (name(index), PatchParams::default());
        match (change, self.layout) {
            (Change::Add, _) => return self.create(index).await,
            (Change::Endpoints, _) => {
                let patch = json!({"endpoints": self.slice(index)["endpoints"]});
                self.of::<EndpointSlice>(index).patch(&name, &params, &Patch::Merge(patch)).await?;
            }
            (Change::Edit, Layout::Layer4) => {
                let patch = json!([{"op": "replace", "path": "/spec/ports/0/port", "value": self.port(index)}]);
                let patch = Patch::<Service>::Json(serde_json::from_value(patch)?);
                self.of::<Service>(index).patch(&name, &params, &patch).await?;
            }
            (Change::Edit, Layout::Hosts) => {
                let patch = json!({"spec": {"rules": self.ingress(index)["spec"]["rules"]}});
                self.of::<Ingress>(index).patch(&name, &params, &Patch::Merge(patch)).await?;
            }
            (Change::Delete, Layout::Layer4) => {
                self.of::<Service>(index).delete(&name, &DeleteParams::default()).await?;
            }
            (Change::Delete, Layout::Hosts) => {
                self.of::<Ingress>(index).delete(&name, &DeleteParams::default()).await?;
            }
        }
        Ok(())
    }

    /// Two writes, one after the other: what a change costs before Fairlead has done anything. `hub`: its apiserver.
    pub async fn two_writes(&self, hub: &Client, number: usize) -> Result<Duration> {
        let patch =
            Patch::Merge(json!({"metadata": {"annotations": {"bench": number.to_string()}}}));
        let params = PatchParams::default();
        let maps = |client: &Client| Api::<ConfigMap>::namespaced(client.clone(), "default");
        if number == 0 {
            for client in [&self.client, hub] {
                let made = parse(json!({"metadata": {"name": "bench"}}))?;
                // It is there from the size before.
                let _ = maps(client).create(&PostParams::default(), &made).await;
            }
        }
        let start = Instant::now();
        maps(&self.client).patch("bench", &params, &patch).await?;
        maps(hub).patch("bench", &params, &patch).await?;
        Ok(start.elapsed())
    }

    /// Takes the second node out of all load balancers, or back in.
    pub async fn exclude_node(&self, excluded: bool) -> Result<()> {
        let label = "node.kubernetes.io/exclude-from-external-load-balancers";
        let value = if excluded { json!("true") } else { json!(null) };
        let patch = json!({"metadata": {"labels": {label: value}}});
        let nodes: Api<Node> = Api::all(self.client.clone());
        nodes.patch(NODES[1].0, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }
}
