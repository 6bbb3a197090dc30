//! `fairlead ca …`

use anyhow::{Context, Result};
use clap::Subcommand;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::{age, table};

const SECRET: &str = "fairlead-ca";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows the CA, and those that it follows and that will follow it.
    Status,
    /// Replaces the CA: everybody who is connected is told of the new one, then it signs, and once nothing that the
    /// old one signed is valid, that is trusted no more. Nothing is interrupted.
    Rotate,
}

impl Command {
    pub(crate) async fn run(self, client: &Client, namespace: &str) -> Result<()> {
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let secret = api.get_opt(SECRET).await?;
        let secret = secret.with_context(|| {
            format!("there is no Secret {SECRET} in namespace {namespace}: the hub's issuer is not builtin")
        })?;
        match self {
            Self::Status => {
                let data = secret.data.unwrap_or_default();
                let stored =
                    data.get("authority.json").context("the Secret has no authority.json")?;
                print!("{}", status(&serde_json::from_slice(&stored.0)?));
            }
            Self::Rotate => {
                let now = Timestamp::now().to_string();
                let patch = json!({"metadata": {"annotations": {"fairlead.dev/rotate-ca": now}}});
                api.patch(SECRET, &PatchParams::default(), &Patch::Merge(&patch)).await?;
                println!("the CA is being replaced; `fairlead ca status` shows how far that is");
            }
        }
        Ok(())
    }
}

fn status(stored: &Value) -> String {
    let now = Timestamp::now().as_second();
    let number = |one: &Value, name: &str| one.get(name).and_then(Value::as_i64).unwrap_or(0);
    let all = stored.get("generations").and_then(Value::as_array).cloned().unwrap_or_default();
    let row = |one: &Value| {
        let phase = one.get("phase").and_then(Value::as_str).unwrap_or_default();
        vec![
            phase.to_owned(),
            age(now - number(one, "since")) + " ago",
            age(now - number(one, "notAfter")),
        ]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    format!(
        "sequence {}\n{}",
        number(stored, "sequence"),
        table(&["PHASE", "SINCE", "EXPIRES"], &rows)
    )
}
