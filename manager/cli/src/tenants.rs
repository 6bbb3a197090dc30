//! `fairlead tenant …`

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use fairlead_api::condition::{CLOCK_SKEWED, CONNECTED};
use fairlead_api::{Tenant, TenantId, TenantSpec};
use ipnet::IpNet;
use jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::conditions::is_deleted;
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt};

use crate::tokens::{self, Join};
use crate::{age, table};

/// How long a removal may take before the command says that it goes on by itself.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes a tenant, and prints the one line that lets its agent join.
    Add(Add),
    /// Lists tenants.
    List,
    /// Removes a tenant with all that is its own: its agents' access at once, then its Routes, their Secrets, its
    /// namespace. Its addresses rest for their pool's hold time.
    Remove {
        /// The tenant.
        name: String,
        /// Yes, its traffic ends.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Its name: an RFC 1123 label of at most 56 characters.
    name: String,
    /// Where its nodes are; several times, or with commas between. Nothing else is sent traffic for it.
    #[arg(long = "node-cidr", value_delimiter = ',', required = true)]
    node_cidrs: Vec<IpNet>,
    /// Host names that it may publish: `shop.example.com`, or `*.example.com` for all below. Without any: each name
    /// that no other tenant holds.
    #[arg(long = "domain", value_delimiter = ',')]
    domains: Vec<String>,
    /// Pools that it may use, the first that fits being taken.
    #[arg(long = "pool", value_delimiter = ',', required = true)]
    pools: Vec<String>,
    #[command(flatten)]
    join: Join,
}

impl Command {
    pub(crate) async fn run(self, client: &Client, namespace: &str) -> Result<()> {
        let api: Api<Tenant> = Api::all(client.clone());
        match self {
            Self::Add(add) => self::add(&api, client, namespace, add).await,
            Self::List => {
                let now = Timestamp::now().as_second();
                let all = api.list(&ListParams::default()).await?.items;
                let rows: Vec<_> = all.iter().map(|tenant| row(tenant, now)).collect();
                let header = [
                    "NAME",
                    "CONNECTED",
                    "LAST SEEN",
                    "NODES",
                    "ROUTES",
                    "CERTIFICATE",
                    "AGENT",
                    "PROBLEM",
                ];
                print!("{}", table(&header, &rows));
                Ok(())
            }
            Self::Remove { name, yes } => remove(&api, &name, yes).await,
        }
    }
}

async fn add(api: &Api<Tenant>, client: &Client, namespace: &str, add: Add) -> Result<()> {
    let id: TenantId = add.name.parse()?;
    let spec = TenantSpec {
        pools: add.pools,
        node_cidrs: add.node_cidrs.iter().map(ToString::to_string).collect(),
        domains: add.domains,
        ..TenantSpec::default()
    };
    let tenant = Tenant::new(id.as_str(), spec.clone());
    match api.create(&PostParams::default(), &tenant).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let there = api.get(id.as_str()).await?;
            if there.spec != spec {
                bail!(
                    "tenant {id} is there already and is not the same; change it with `kubectl edit tenant {id}`, \
                     and get a token with `fairlead token create {id}`"
                );
            }
        }
        made => drop(made.with_context(|| format!("Tenant {id}"))?),
    }
    eprintln!("tenant {id} is on the hub");
    tokens::create(client, namespace, &id, &add.join).await
}

async fn remove(api: &Api<Tenant>, name: &str, yes: bool) -> Result<()> {
    let tenant =
        api.get_opt(name).await?.with_context(|| format!("the hub has no tenant {name}"))?;
    if !yes {
        let routes = tenant.status.as_ref().map_or(0, |status| status.routes);
        bail!(
            "this ends the traffic of {routes} Routes of tenant {name}; say --yes if that is meant"
        );
    }
    let uid = tenant.uid().unwrap_or_default();
    api.delete(name, &DeleteParams::default()).await?;
    println!("tenant {name} is being removed");
    let gone = await_condition(api.clone(), name, is_deleted(&uid));
    match tokio::time::timeout(PATIENCE, gone).await {
        Ok(ended) => {
            ended?;
            println!("tenant {name} is gone");
        }
        Err(_) => println!(
            "it goes on by itself; `kubectl get tenant {name}` shows whether it is there still"
        ),
    }
    Ok(())
}

fn row(tenant: &Tenant, now: i64) -> Vec<String> {
    let status = tenant.status.clone().unwrap_or_default();
    let condition = |kind: &str| status.conditions.iter().find(|condition| condition.type_ == kind);
    let connected = condition(CONNECTED).map_or("Unknown", |condition| condition.status.as_str());
    let certificate = status.certificate_not_after.as_ref().map(|end| end.0.as_second() - now);
    let certificate = match certificate {
        None => String::new(),
        Some(left) if left <= 0 => "expired".to_owned(),
        Some(left) => age(-left),
    };
    let problem = condition(CLOCK_SKEWED).map_or_else(String::new, |one| one.message.clone());
    vec![
        tenant.name_any(),
        connected.to_owned(),
        status.last_seen.map_or_else(String::new, |at| age(now - at.0.as_second()) + " ago"),
        status.nodes.to_string(),
        status.routes.to_string(),
        certificate,
        status.agent_version.unwrap_or_default(),
        problem,
    ]
}
