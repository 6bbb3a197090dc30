//! `fairlead token …`

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use fairlead_api::{JoinToken, JoinTokenSpec, Tenant, TenantId};
use fairlead_process::tls::spki_hash;
use fairlead_process::token::Token;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::{age, table};

const DAY_MINUTES: i64 = 24 * 60;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Prints the one line that lets a tenant's agent join.
    Create {
        /// The tenant.
        tenant: String,
        #[command(flatten)]
        join: Join,
    },
    /// Lists tokens. Their secrets are kept nowhere.
    List,
    /// Makes a token of no use. An agent that joined by it stays; see `fairlead agent revoke`.
    Revoke {
        /// The token's id: its second part.
        id: String,
    },
}

/// What the line that is printed says.
#[derive(Debug, Args)]
pub(crate) struct Join {
    /// For how many minutes the token is of use; a day at most.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(i64).range(1..=DAY_MINUTES))]
    minutes: i64,
    /// Where tenants reach the hub's agent API, as host:port. Found by the Service fairlead-agents unless given.
    #[arg(long)]
    hub_address: Option<String>,
    /// The agent's chart.
    #[arg(long, default_value = "deploy/fairlead-agent")]
    chart: String,
    /// Print the token alone.
    #[arg(long)]
    token_only: bool,
}

impl Command {
    pub(crate) async fn run(self, client: &Client, namespace: &str) -> Result<()> {
        let api: Api<JoinToken> = Api::all(client.clone());
        match self {
            Self::Create { tenant, join } => {
                let tenant: TenantId = tenant.parse()?;
                let there = Api::<Tenant>::all(client.clone()).get_opt(tenant.as_str()).await?;
                if there.is_none() {
                    bail!(
                        "the hub has no tenant {tenant}; `fairlead tenant add {tenant}` makes it"
                    );
                }
                create(client, namespace, &tenant, &join).await
            }
            Self::List => {
                let now = Timestamp::now().as_second();
                let rows: Vec<_> = api.list(&ListParams::default()).await?.items;
                let rows: Vec<_> = rows.iter().map(|token| row(token, now)).collect();
                print!("{}", table(&["ID", "TENANT", "EXPIRES", "USED"], &rows));
                Ok(())
            }
            Self::Revoke { id } => {
                // Whoever has the whole token at hand may give that.
                let id = id.parse::<Token>().map_or(id, |token| token.id.to_string());
                match api.delete(&id, &DeleteParams::default()).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => {
                        bail!(
                            "there is no token {id}; `fairlead token list` shows those that there are"
                        )
                    }
                    deleted => drop(deleted?),
                }
                println!("token {id} is of no use any more");
                Ok(())
            }
        }
    }
}

fn row(token: &JoinToken, now: i64) -> Vec<String> {
    let left = token.spec.expires_at.0.as_second() - now;
    let expires = if left > 0 { age(-left) } else { "expired".to_owned() };
    let used = token.status.as_ref().and_then(|status| status.used_at.as_ref());
    let used = used.map_or_else(|| "no".to_owned(), |at| age(now - at.0.as_second()) + " ago");
    vec![token.name_any(), token.spec.tenant.clone(), expires, used]
}

/// Makes a token, and prints the line that its tenant runs.
pub(crate) async fn create(
    client: &Client,
    namespace: &str,
    tenant: &TenantId,
    join: &Join,
) -> Result<()> {
    let token = Token::new(pin(client, namespace).await?)?;
    let address = match &join.hub_address {
        Some(address) => address.clone(),
        None => hub_address(client, namespace).await?,
    };
    let now = Timestamp::now();
    let expires_at = now + jiff::SignedDuration::from_mins(join.minutes);
    let spec = JoinTokenSpec {
        tenant: tenant.to_string(),
        secret_hash: token.secret_hash(),
        expires_at: Time(Timestamp::from_second(expires_at.as_second())?),
    };
    let api: Api<JoinToken> = Api::all(client.clone());
    api.create(&PostParams::default(), &JoinToken::new(token.id.as_str(), spec)).await?;
    if join.token_only {
        println!("{}", token.reveal());
        return Ok(());
    }
    eprintln!(
        "Run this once against the cluster of tenant {tenant}, within {} min. It lets one agent join; whoever has \
         it first is that agent.\n",
        join.minutes
    );
    println!(
        "helm upgrade --install fairlead-agent {} -n fairlead-system --create-namespace \
         --set hub.address={address} --set joinToken={}",
        join.chart,
        token.reveal()
    );
    Ok(())
}

/// The hash of the public key of the CA that signs now, which the manager publishes.
async fn pin(client: &Client, namespace: &str) -> Result<[u8; 32]> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let trust = api.get_opt("fairlead-trust").await?;
    let trust = trust.with_context(|| {
        format!("the ConfigMap fairlead-trust is not in namespace {namespace}: does the manager run there?")
    })?;
    let anchor = trust.data.unwrap_or_default().remove("anchor.crt").unwrap_or_default();
    let der = CertificateDer::from_pem_slice(anchor.as_bytes()).context("the hub's CA")?;
    spki_hash(&der).context("the hub's CA cannot be read")
}

/// Where tenants reach the hub, by the Service that the chart makes.
async fn hub_address(client: &Client, namespace: &str) -> Result<String> {
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let service = services.get("fairlead-agents").await.context("Service fairlead-agents")?;
    let spec = service.spec.unwrap_or_default();
    let port = spec.ports.iter().flatten().next().context("Service fairlead-agents has no port")?;
    let ingress =
        service.status.and_then(|status| status.load_balancer?.ingress?.into_iter().next());
    if let Some(ingress) = ingress {
        let host = ingress
            .ip
            .or(ingress.hostname)
            .context("the Service's load balancer has no address")?;
        return Ok(format!("{host}:{}", port.port));
    }
    let hint =
        "give --hub-address, the host:port at which tenants reach the Service fairlead-agents";
    let node_port = port.node_port.context(hint)?;
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?.items;
    let addresses = |kind: &'static str| {
        let all =
            nodes.iter().filter_map(|node| node.status.as_ref()?.addresses.as_ref()).flatten();
        all.filter(move |one| one.type_ == kind).map(|one| one.address.clone()).next()
    };
    let address = addresses("ExternalIP").or_else(|| addresses("InternalIP")).context(hint)?;
    Ok(format!("{address}:{node_port}"))
}
