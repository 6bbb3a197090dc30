//! The first certificate, by a join token; and a new one, by the bound key, after the last expired.

use anyhow::{Context, Result, bail};
use fairlead_process::proof::{BoundKey, enroll_message, recover_message};
use fairlead_process::tls::{self, Credentials};
use fairlead_process::token::Token;
use fairlead_proto::v1;
use fairlead_proto::v1::enroll_request::Credential;
use fairlead_proto::v1::identity_client::IdentityClient;
use fairlead_proto::v1::recover_response::Answer;
use tonic::transport::Channel;

use super::keeper::Hub;
use super::store::Kept;
use crate::link::brief;

/// Joins. What is kept afterwards comes back.
pub(super) async fn join(hub: &Hub, token: &Token, kept: &Kept) -> Result<Kept> {
    let bound = kept.bound_key()?;
    let (config, _) = tls::pinned(token.pin, &hub.clock)?;
    let channel = tls::open(&hub.address, &hub.name, config).await?;
    let mut client = IdentityClient::new(channel);
    let (mut key, mut csr) = tls::request(None)?;
    let mut issued = enroll(&mut client, token, &bound, &csr).await?;
    if issued.chain.is_empty() {
        // The hub's issuer takes names from requests only.
        (key, csr) = tls::request(Some(&issued.id))?;
        issued = enroll(&mut client, token, &bound, &csr).await?;
    }
    keep(kept, issued, key)
}

async fn enroll(
    client: &mut IdentityClient<Channel>,
    token: &Token,
    bound: &BoundKey,
    csr: &[u8],
) -> Result<v1::Issued> {
    let id = token.id.as_str();
    let join = v1::Join {
        id: id.to_owned(),
        secret: token.secret().to_vec(),
        bound_key: bound.public(),
        signature: bound.sign(&enroll_message(id, csr))?,
    };
    let request = v1::EnrollRequest { csr: csr.to_vec(), credential: Some(Credential::Join(join)) };
    Ok(client.enroll(request).await.map_err(brief)?.into_inner())
}

/// Gets a certificate though the last one has expired.
pub(super) async fn recover(hub: &Hub, kept: &Kept) -> Result<Kept> {
    let (tenant, agent) = names(&kept.id)?;
    let bound = kept.bound_key()?;
    let mut anonymous = Credentials::from_pem(kept.roots.as_bytes(), None)?;
    anonymous.clock = hub.clock.clone();
    let channel = tls::connect(&hub.address, &hub.name, &anonymous).await?;
    let mut client = IdentityClient::new(channel);
    let (key, csr) = tls::request(Some(&kept.id))?;
    let mut request = v1::RecoverRequest {
        tenant: tenant.to_owned(),
        agent: agent.to_owned(),
        csr: csr.clone(),
        challenge: Vec::new(),
        signature: Vec::new(),
    };
    let answer = client.recover(request.clone()).await.map_err(brief)?.into_inner().answer;
    let Some(Answer::Challenge(challenge)) = answer else { bail!("the hub gave no challenge") };
    request.signature = bound.sign(&recover_message(&challenge, &csr))?;
    request.challenge = challenge;
    let answer = client.recover(request).await.map_err(brief)?.into_inner().answer;
    let Some(Answer::Issued(issued)) = answer else { bail!("the hub gave no certificate") };
    keep(kept, issued, key)
}

/// What is kept once a certificate was issued.
pub(super) fn keep(before: &Kept, issued: v1::Issued, key: String) -> Result<Kept> {
    let v1::Issued { id, chain, trust, not_after: _ } = issued;
    let v1::Trust { sequence, roots, hub_time: _ } =
        trust.context("the hub did not say whom to trust")?;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).context("the hub's answer is not PEM");
    let kept = Kept {
        bound_key: before.bound_key.clone(),
        id,
        chain: text(chain)?,
        key,
        roots: text(roots)?,
        sequence,
        next_id: String::new(),
        next_key: String::new(),
    };
    kept.credentials()?.context("the hub gave no certificate")?;
    Ok(kept)
}

/// The tenant and the agent of a SPIFFE id.
pub(super) fn names(id: &str) -> Result<(&str, &str)> {
    let parts: Vec<&str> = id.split('/').collect();
    match parts.as_slice() {
        ["spiffe:", "", _, "tenant", tenant, "agent", agent] => Ok((tenant, agent)),
        _ => bail!("the SPIFFE id {id:?} is no agent's"),
    }
}
