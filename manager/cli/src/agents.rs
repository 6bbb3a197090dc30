//! `fairlead agent …`

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use fairlead_api::{Agent, TenantId};
use jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::{age, table};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the agents of all tenants.
    List,
    /// Closes an agent's connections within 5 s and lets it in no more. What it published stays until the tenant is
    /// removed or another agent of it joins.
    Revoke {
        /// The tenant.
        tenant: String,
        /// The agent.
        agent: String,
    },
    /// Lets an agent recover from an expired certificate so many more times.
    AllowRecovery {
        /// The tenant.
        tenant: String,
        /// The agent.
        agent: String,
        /// How many more times.
        #[arg(long, default_value_t = 5)]
        times: u32,
    },
}

impl Command {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        match self {
            Self::List => list(client).await,
            Self::Revoke { tenant, agent } => {
                change(client, &tenant, &agent, |_| json!({"revoked": true})).await?;
                println!("agent {agent} of tenant {tenant} is revoked");
                Ok(())
            }
            Self::AllowRecovery { tenant, agent, times } => {
                let raised = |found: &Agent| {
                    let used = found.status.as_ref().map_or(0, |status| status.recoveries);
                    json!({"maxRecoveries": used.saturating_add(times).min(i32::MAX.unsigned_abs())})
                };
                change(client, &tenant, &agent, raised).await?;
                println!("agent {agent} of tenant {tenant} may recover {times} more times");
                Ok(())
            }
        }
    }
}

async fn change(
    client: &Client,
    tenant: &str,
    agent: &str,
    spec: impl FnOnce(&Agent) -> serde_json::Value,
) -> Result<()> {
    let tenant: TenantId = tenant.parse()?;
    let api: Api<Agent> = Api::namespaced(client.clone(), &tenant.namespace());
    let found = api.get_opt(agent).await?;
    let found = found.with_context(|| {
        format!(
            "tenant {tenant} has no agent {agent}; `fairlead agent list` shows those that there are"
        )
    })?;
    let patch = Patch::Merge(json!({ "spec": spec(&found) }));
    if let Err(error) = api.patch(agent, &PatchParams::default(), &patch).await {
        bail!("agent {agent}: {error}");
    }
    Ok(())
}

async fn list(client: &Client) -> Result<()> {
    let now = Timestamp::now().as_second();
    let all = Api::<Agent>::all(client.clone()).list(&ListParams::default()).await?.items;
    let row = |agent: &Agent| {
        let tenant = TenantId::of_namespace(&agent.namespace().unwrap_or_default());
        let status = agent.status.clone().unwrap_or_default();
        let left = status.not_after.map(|end| end.0.as_second() - now);
        let expires = match left {
            None => String::new(),
            Some(left) if left <= 0 => "expired".to_owned(),
            Some(left) => age(-left),
        };
        let revoked = if agent.spec.revoked { "yes" } else { "no" };
        vec![
            tenant.map_or_else(String::new, |tenant| tenant.to_string()),
            agent.name_any(),
            revoked.to_owned(),
            expires,
            format!("{}/{}", status.recoveries, agent.spec.max_recoveries),
            status.serial,
        ]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    print!("{}", table(&["TENANT", "AGENT", "REVOKED", "EXPIRES", "RECOVERIES", "SERIAL"], &rows));
    Ok(())
}
