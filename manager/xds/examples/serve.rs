//! Serves one Cluster to every Envoy that connects, and changes it each second: `serve <address>`.
//!
//! In Envoy's bootstrap: `dynamic_resources: {ads_config: {api_type: DELTA_GRPC, …}, cds_config: {ads: {}}}`.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use fairlead_xds::{Cache, Change, Event, Key, Observer, Resource, ResourceType, Server};
use http::Extensions;
use tonic::Status;

/// Lets everybody in, and says what they say.
struct Everybody;

impl Observer for Everybody {
    type Client = String;

    fn admit(&self, _: &Extensions, node_id: &str) -> Result<String, Status> {
        Ok(node_id.to_owned())
    }

    fn observe(&self, node_id: &String, events: Vec<Event>) {
        for Event { key, outcome } in events {
            println!("{node_id}: {key}: {outcome:?}");
        }
    }
}

fn cluster(number: u32) -> Change {
    let alt_stat_name = format!("number-{number}");
    let message = Cluster { name: "web".into(), alt_stat_name, ..Cluster::default() };
    // Encoded here, once, for however many clients.
    Resource::new(Key::new(ResourceType::Cluster, "web"), &message, []).into()
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:18000".into());
    let cache = Arc::new(Cache::default());
    cache.publish(vec![cluster(0)]);
    // Before this nobody is answered: an empty answer would take away what a client has.
    cache.complete();
    let server = Server::new(cache.clone(), Arc::new(Everybody));
    tokio::spawn(async move {
        for number in 1.. {
            tokio::time::sleep(Duration::from_secs(1)).await;
            cache.publish(vec![cluster(number)]);
        }
    });
    println!("serving at {address}");
    let mut builder = tonic::transport::Server::builder();
    builder.add_service(server).serve(address.parse().unwrap()).await.unwrap();
}
