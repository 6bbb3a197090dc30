//! Whether somebody may join by a token, or recover.

use fairlead_api::{AgentSpec, AgentStatus, JoinTokenSpec, JoinTokenStatus};
use fairlead_process::token::sha256;

/// Why somebody gets no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No token, or not its secret: the two cannot be told apart from outside.
    #[error("this join token is not known here; make a new one with `fairlead token create`")]
    UnknownToken,
    /// Too late.
    #[error("this join token has expired; make a new one with `fairlead token create`")]
    Expired,
    /// Another key was first.
    #[error(
        "this join token was used with another key: an agent joins once; make a new one with `fairlead token create`, \
         and if nobody of yours used it, revoke agent {0}"
    )]
    UsedByAnother(String),
    /// Somebody deleted the agent.
    #[error(
        "the agent that joined by this token was removed; make a new one with `fairlead token create`"
    )]
    Removed,
    /// Somebody revoked the agent.
    #[error("this agent was revoked on the hub; make a new token with `fairlead token create`")]
    Revoked,
    /// No proof of the key.
    #[error("the request is not signed by the agent's bound key")]
    NoProof,
    /// It recovered too often.
    #[error(
        "this agent has recovered {0} times, as often as it may; raise spec.maxRecoveries of Agent {1}"
    )]
    TooManyRecoveries(u32, String),
    /// None of that name.
    #[error("the hub knows no such agent; make a new token with `fairlead token create`")]
    UnknownAgent,
}

/// Whether the bearer of `secret` and of the bound key with this SHA-256 may join by a token, now. `agent`
/// is the agent of that token's name, where there is one.
///
/// # Errors
/// Why not.
pub fn may_join(
    id: &str,
    (spec, status): (&JoinTokenSpec, Option<&JoinTokenStatus>),
    agent: Option<(&AgentSpec, &str)>,
    secret: &[u8],
    bound_key: &str,
    now: i64,
) -> Result<(), Refusal> {
    if sha256(secret) != spec.secret_hash {
        return Err(Refusal::UnknownToken);
    }
    if now >= spec.expires_at.0.as_second() {
        return Err(Refusal::Expired);
    }
    let used = status.and_then(|status| status.bound_key.as_deref());
    if used.is_some_and(|key| key != bound_key) {
        return Err(Refusal::UsedByAnother(id.to_owned()));
    }
    match agent {
        None if used.is_some() => Err(Refusal::Removed),
        Some((_, key)) if key != bound_key => Err(Refusal::UsedByAnother(id.to_owned())),
        Some((agent, _)) if agent.revoked => Err(Refusal::Revoked),
        _ => Ok(()),
    }
}

/// Whether an agent may recover once more.
///
/// # Errors
/// Why not.
pub fn may_recover(
    id: &str,
    spec: &AgentSpec,
    status: Option<&AgentStatus>,
) -> Result<(), Refusal> {
    if spec.revoked {
        return Err(Refusal::Revoked);
    }
    let recoveries = status.map_or(0, |status| status.recoveries);
    if recoveries >= spec.max_recoveries {
        return Err(Refusal::TooManyRecoveries(recoveries, id.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn token(used: Option<&str>) -> (JoinTokenSpec, JoinTokenStatus) {
        let spec = JoinTokenSpec {
            tenant: "blue".into(),
            secret_hash: sha256(b"secret"),
            expires_at: Time("2026-01-01T00:00:00Z".parse().unwrap()),
        };
        (spec, JoinTokenStatus { bound_key: used.map(str::to_owned), used_at: None })
    }

    fn agent(revoked: bool) -> AgentSpec {
        AgentSpec { bound_key: "…".into(), revoked, max_recoveries: 2 }
    }

    #[test]
    fn a_token_lets_one_key_in_as_often_as_it_asks_until_it_expires() {
        let end = token(None).0.expires_at.0.as_second();
        let join = |used: Option<&str>, there: Option<(bool, &str)>, secret: &[u8], now: i64| {
            let (spec, status) = token(used);
            let agent = there.map(|(revoked, key)| (agent(revoked), key));
            let agent = agent.as_ref().map(|(spec, key)| (spec, *key));
            may_join("t", (&spec, Some(&status)), agent, secret, "mine", now)
        };
        assert_eq!(join(None, None, b"secret", end - 1), Ok(()));
        assert_eq!(join(None, Some((false, "mine")), b"secret", end - 1), Ok(()), "answer lost");
        assert_eq!(join(Some("mine"), Some((false, "mine")), b"secret", end - 1), Ok(()));
        assert_eq!(join(None, None, b"wrong", end - 1), Err(Refusal::UnknownToken));
        assert_eq!(join(None, None, b"secret", end), Err(Refusal::Expired));
        let another = Err(Refusal::UsedByAnother("t".into()));
        assert_eq!(join(Some("theirs"), Some((false, "theirs")), b"secret", end - 1), another);
        assert_eq!(join(None, Some((false, "theirs")), b"secret", end - 1), another);
        assert_eq!(join(Some("theirs"), None, b"secret", end - 1), another, "the agent is gone");
        assert_eq!(join(Some("mine"), None, b"secret", end - 1), Err(Refusal::Removed));
        let revoked = Some((true, "mine"));
        assert_eq!(join(Some("mine"), revoked, b"secret", end - 1), Err(Refusal::Revoked));
    }

    #[test]
    fn recoveries_are_counted() {
        let after = |recoveries| {
            let status = AgentStatus { recoveries, ..AgentStatus::default() };
            may_recover("t", &agent(false), Some(&status))
        };
        assert_eq!(after(1), Ok(()));
        assert_eq!(after(2), Err(Refusal::TooManyRecoveries(2, "t".into())));
        assert_eq!(may_recover("t", &agent(true), None), Err(Refusal::Revoked));
    }
}
