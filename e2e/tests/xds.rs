//! Property test of `fairlead-xds` against a real Envoy: whatever is published in whatever order, and whenever connections
//! break, Envoy ends with what is published, but for what it refuses: of that it has a good one, or none.

#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_match,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy;
use envoy_types::pb::google::protobuf::Any;
use fairlead_e2e::envoy::{Envoy, Listen, ads, any, pipe};
use fairlead_xds::{Change, Event, Key, Outcome, Resource, ResourceType as Ty};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// How many services there may be; every other one is of layer 7.
const SERVICES: u8 = 6;
/// The content that Envoy refuses.
const BAD: u32 = 3;
/// What shows a Listener of layer 7: its content is in its `RouteConfiguration`.
const HTTP: &str = "http";
/// So long Envoy may take to have everything: less than the 15 s after which it waits for endpoints no more.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
enum Step {
    /// A service and the content of its Cluster, of its endpoints, and of its Listener or `RouteConfiguration`.
    Put(u8, [u32; 3]),
    Gone(u8),
    /// Until Envoy says something, or for a moment.
    Wait,
    Reconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let content = [0..3_u32, 0..3, 0..BAD + 1];
    let step = prop_oneof![
        8 => (0..SERVICES, content).prop_map(|(service, content)| Step::Put(service, content)),
        4 => (0..SERVICES).prop_map(Step::Gone),
        4 => Just(Step::Wait),
        1 => Just(Step::Reconnect),
    ];
    prop::collection::vec(step, 1..60)
}

fn name(service: u8) -> String {
    format!("s{service}")
}

/// Whether a service is of layer 7.
fn is_http(service: u8) -> bool {
    service % 2 == 1
}

fn cluster(service: u8, content: u32) -> Resource {
    let discovery = ClusterDiscoveryType::Type(DiscoveryType::Eds.into());
    let message = Cluster {
        name: name(service),
        alt_stat_name: format!("content-{content}"),
        cluster_discovery_type: Some(discovery),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ads()),
            ..EdsClusterConfig::default()
        }),
        ..Cluster::default()
    };
    let key = Key::new(Ty::Cluster, name(service));
    Resource::new(key, &message, []).renewing(Key::new(Ty::Endpoints, name(service)))
}

/// The endpoint that shows the content: EDS resources have no version in Envoy's dump.
fn endpoint(content: u32) -> String {
    format!("/tmp/content-{content}")
}

fn endpoints(service: u8, content: u32) -> Resource {
    let endpoint = Endpoint { address: Some(pipe(endpoint(content))), ..Endpoint::default() };
    let endpoint = LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
        ..LbEndpoint::default()
    };
    let message = ClusterLoadAssignment {
        cluster_name: name(service),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![endpoint],
            ..LocalityLbEndpoints::default()
        }],
        ..ClusterLoadAssignment::default()
    };
    Resource::new(Key::new(Ty::Endpoints, name(service)), &message, [])
}

fn listener(service: u8, filter: (&str, Any), at: &str) -> Resource {
    let filter = Filter {
        name: filter.0.to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(filter.1)),
    };
    let message = Listener {
        name: name(service),
        address: Some(pipe(at.to_owned())),
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
        ..Listener::default()
    };
    let needs = [Ty::Cluster, Ty::Endpoints].map(|kind| Key::new(kind, name(service)));
    Resource::new(Key::new(Ty::Listener, name(service)), &message, needs)
}

/// Envoy wants a prefix for statistics.
fn tcp(service: u8, content: u32, at: &str) -> Resource {
    let stat_prefix = if content == BAD { String::new() } else { format!("content-{content}") };
    let proxy = TcpProxy {
        stat_prefix,
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(name(service))),
        ..TcpProxy::default()
    };
    listener(service, ("envoy.filters.network.tcp_proxy", any(&proxy)), at)
}

fn http(service: u8, at: &str) -> Resource {
    let router = HttpFilter {
        name: "envoy.filters.http.router".into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(&Router::default()))),
        ..HttpFilter::default()
    };
    let rds = Rds { config_source: Some(ads()), route_config_name: name(service) };
    let manager = HttpConnectionManager {
        stat_prefix: HTTP.into(),
        route_specifier: Some(RouteSpecifier::Rds(rds)),
        http_filters: vec![router],
        ..HttpConnectionManager::default()
    };
    listener(service, ("envoy.filters.network.http_connection_manager", any(&manager)), at)
}

/// Envoy wants each domain once.
fn routes(service: u8, content: u32) -> Resource {
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix("/".into())),
            ..RouteMatch::default()
        }),
        action: Some(route::Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(name(service))),
            ..RouteAction::default()
        })),
        ..Route::default()
    };
    let host = VirtualHost {
        name: "host".into(),
        domains: vec!["*".into(); if content == BAD { 2 } else { 1 }],
        routes: vec![route],
        ..VirtualHost::default()
    };
    let message = RouteConfiguration {
        name: name(service),
        virtual_hosts: vec![host],
        max_direct_response_body_size_bytes: Some(envoy_types::pb::google::protobuf::UInt32Value {
            value: 1 + content,
        }),
        ..RouteConfiguration::default()
    };
    let needs = [Ty::Cluster, Ty::Endpoints].map(|kind| Key::new(kind, name(service)));
    Resource::new(Key::new(Ty::Routes, name(service)), &message, needs)
}

/// By key, the version, or what stands for it.
type Has = BTreeMap<(Ty, String), String>;

/// An Envoy, and what it was given in this case.
struct World {
    envoy: Envoy,
    said: mpsc::UnboundedReceiver<Vec<Event>>,
    /// What is published.
    wanted: Has,
    /// Published versions that are bad.
    refused: BTreeSet<u64>,
    /// What would show that Envoy took one of them.
    bad: BTreeSet<String>,
    /// Good versions that were published in this case, of what may be bad.
    good: BTreeMap<(Ty, String), BTreeSet<String>>,
}

/// What shows in Envoy's dump that it has a resource. There endpoints have no version, and a Listener whose filter chain
/// was replaced in place has the older one's.
fn shown(resource: &Resource, of_endpoints: u32, last: u32, is_http: bool) -> String {
    match resource.key.kind {
        Ty::Endpoints => endpoint(of_endpoints),
        Ty::Listener if is_http => HTTP.into(),
        Ty::Listener => format!("content-{last}"),
        _ => format!("{:016x}", resource.version),
    }
}

impl World {
    fn start() -> Self {
        let (send, said) = mpsc::unbounded_channel();
        let envoy = Envoy::start("xds", Listen(send), &["--drain-time-s", "1"]).unwrap();
        let (refused, bad, good) = Default::default();
        Self { envoy, said, wanted: Has::new(), refused, bad, good }
    }

    fn put(&mut self, service: u8, [of_cluster, of_endpoints, last]: [u32; 3]) {
        let at = self.envoy.file(&name(service)).display().to_string();
        let mut all = vec![cluster(service, of_cluster), endpoints(service, of_endpoints)];
        if is_http(service) {
            all.push(http(service, &at));
            all.push(routes(service, last));
        } else {
            all.push(tcp(service, last, &at));
        }
        for resource in &all {
            let key = (resource.key.kind, resource.key.name.to_string());
            self.wanted.insert(key, shown(resource, of_endpoints, last, is_http(service)));
        }
        let Some(uncertain) = all.last() else { return };
        let key = (uncertain.key.kind, uncertain.key.name.to_string());
        let text = shown(uncertain, of_endpoints, last, is_http(service));
        if last == BAD {
            self.refused.insert(uncertain.version);
            self.bad.insert(text);
        } else {
            self.good.entry(key).or_default().insert(text);
        }
        self.envoy.cache.publish(all.into_iter().map(Change::from).collect());
    }

    fn gone(&mut self, service: u8) {
        let keys: Vec<_> =
            self.wanted.keys().filter(|key| key.1 == name(service)).cloned().collect();
        for key in &keys {
            self.wanted.remove(key);
        }
        let remove = |(kind, name): (Ty, String)| Change::Remove(Key::new(kind, name));
        self.envoy.cache.publish(keys.into_iter().map(remove).collect());
    }

    /// Takes what Envoy says until it has been silent for so long.
    async fn listen(&mut self, silence: Duration) -> Result<(), TestCaseError> {
        while let Ok(Some(events)) = tokio::time::timeout(silence, self.said.recv()).await {
            for Event { key, outcome } in events {
                if let Outcome::Rejected(version, why) = outcome {
                    prop_assert!(self.refused.contains(&version), "{key} is good, but: {why}");
                }
            }
        }
        Ok(())
    }

    /// What Envoy has that it should not, or the other way round; empty: all is as it should be.
    fn differences(&self, has: &Has) -> Vec<String> {
        let mut differences = Vec::new();
        for (key, version) in has {
            let last_good = || self.good.get(key).is_some_and(|good| good.contains(version));
            match self.wanted.get(key) {
                Some(wanted) if wanted == version => {}
                Some(wanted) if self.bad.contains(wanted) && last_good() => {}
                wanted => differences.push(format!("{key:?}: {version}, wanted {wanted:?}")),
            }
        }
        for (key, wanted) in &self.wanted {
            if !has.contains_key(key) && !self.bad.contains(wanted) {
                differences.push(format!("{key:?}: none, wanted {wanted}"));
            }
        }
        differences
    }

    /// Waits until Envoy has what it should.
    async fn settle(&mut self) -> Result<(), TestCaseError> {
        let start = Instant::now();
        loop {
            self.listen(Duration::from_millis(20)).await?;
            let differences = self.differences(&self.has().await);
            if differences.is_empty() {
                return Ok(());
            }
            prop_assert!(start.elapsed() < PATIENCE, "{differences:#?}");
        }
    }

    /// What Envoy has, in its own words.
    async fn has(&self) -> Has {
        let dump = self.dump().await;
        let mut has = Has::new();
        let list =
            |section: &Value, name: &str| section[name].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for section in list(&dump, "configs") {
            // Those that warm are used by nobody.
            for one in list(&section, "dynamic_active_clusters") {
                let key = (Ty::Cluster, text(&one["cluster"]["name"]));
                has.insert(key, text(&one["version_info"]));
            }
            for one in list(&section, "dynamic_listeners") {
                let chain = |state: &str| &one[state]["listener"]["filter_chains"][0];
                let states = ["warming_state", "active_state"].map(chain);
                let contents =
                    states.map(|chain| &chain["filters"][0]["typed_config"]["stat_prefix"]);
                if let Some(content) = contents.into_iter().find(|content| content.is_string()) {
                    has.insert((Ty::Listener, text(&one["name"])), text(content));
                }
            }
            for one in list(&section, "dynamic_route_configs") {
                // Subscribed to, but never taken.
                if one["version_info"].as_str().is_some_and(|version| !version.is_empty()) {
                    let key = (Ty::Routes, text(&one["route_config"]["name"]));
                    has.insert(key, text(&one["version_info"]));
                }
            }
            for one in list(&section, "dynamic_endpoint_configs") {
                let config = &one["endpoint_config"];
                let first = &config["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"];
                let key = (Ty::Endpoints, text(&config["cluster_name"]));
                has.insert(key, text(&first["pipe"]["path"]));
            }
        }
        has
    }

    async fn dump(&self) -> Value {
        let admin = self.envoy.file("admin");
        let stream = loop {
            match UnixStream::connect(&admin).await {
                Ok(stream) => break stream,
                // It is not there yet.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let (mut send, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let ask = http::Request::get("/config_dump?include_eds").header("host", "admin");
        let answer = send.send_request(ask.body(Empty::<&[u8]>::new()).unwrap()).await.unwrap();
        serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    async fn run(&mut self, steps: Vec<Step>) -> Result<(), TestCaseError> {
        for step in steps {
            match step {
                Step::Put(service, content) => self.put(service, content),
                Step::Gone(service) => self.gone(service),
                Step::Wait => self.listen(Duration::from_millis(2)).await?,
                Step::Reconnect => self.envoy.disconnect(),
            }
        }
        self.settle().await?;
        // The next case begins with nothing.
        (0..SERVICES).for_each(|service| self.gone(service));
        self.settle().await?;
        self.good.clear();
        Ok(())
    }
}

#[test]
fn whatever_happens_envoy_ends_with_what_is_published() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(async { World::start() });
    let world = std::cell::RefCell::new(world);
    let mut runner = TestRunner::new(Config { cases: 24, ..Config::default() });
    let run = |steps| runtime.block_on(world.borrow_mut().run(steps));
    if let Err(error) = runner.run(&steps(), run) {
        panic!("{error}");
    }
}
