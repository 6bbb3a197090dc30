//! What is kept on the hub of tokens, agents and the authority.

use anyhow::{Context, Result};
use fairlead_api::{Agent, AgentId, AgentSpec, AgentStatus, JoinToken, JoinTokenStatus, TenantId};
use fairlead_identity::Authority;
use fairlead_process::retry::absent_is_fine;
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

/// The Secret with the authority.
pub(crate) const CA_SECRET: &str = "fairlead-ca";
/// Its one key.
pub(crate) const CA_KEY: &str = "authority.json";
/// On that Secret: when a new authority was asked for (RFC 3339).
pub(crate) const ROTATE: &str = "fairlead.dev/rotate-ca";
/// What is trusted, for Envoys' pods and for `fairlead token create`.
const TRUST: &str = "fairlead-trust";

/// The hub's apiserver, as far as identities go.
#[derive(Clone)]
pub(crate) struct Store {
    client: Client,
    namespace: String,
}

impl Store {
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned() }
    }

    pub(crate) fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The stored authority with its version, and when a new one was asked for; `None`: there is none yet.
    pub(crate) async fn authority(&self) -> Result<Option<StoredAuthority>> {
        let secret = self.secrets().get_opt(CA_SECRET).await?;
        secret.as_ref().map(read_authority).transpose()
    }

    /// Keeps the first authority; whoever is first has it.
    pub(crate) async fn create_authority(&self, authority: &Authority) -> Result<()> {
        let secret = ca_secret(authority, None)?;
        match self.secrets().create(&PostParams::default(), &secret).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            made => made.map(drop).context("Secret fairlead-ca"),
        }
    }

    /// Replaces the authority, if nobody else did meanwhile.
    pub(crate) async fn replace_authority(
        &self,
        old: &StoredAuthority,
        new: &Authority,
    ) -> Result<()> {
        let mut secret = ca_secret(new, Some(&old.version))?;
        secret.metadata.annotations.clone_from(&old.annotations);
        let replaced = self.secrets().replace(CA_SECRET, &PostParams::default(), &secret).await;
        replaced.map(drop).context("Secret fairlead-ca")
    }

    /// Tells everybody on the hub what is trusted, and which certificate tokens are pinned to.
    pub(crate) async fn publish_trust(&self, roots: &str, anchor: &str) -> Result<()> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": TRUST},
            "data": {"ca.crt": roots, "anchor.crt": anchor},
        });
        let params = PatchParams::apply("fairlead-manager").force();
        api.patch(TRUST, &params, &Patch::Apply(&object)).await.map(drop).context("ConfigMap")
    }

    pub(crate) async fn token(&self, id: &AgentId) -> kube::Result<Option<JoinToken>> {
        Api::<JoinToken>::all(self.client.clone()).get_opt(id.as_str()).await
    }

    /// Notes that a token was used, if nobody changed it since it was read.
    pub(crate) async fn mark_used(
        &self,
        mut token: JoinToken,
        status: JoinTokenStatus,
    ) -> kube::Result<()> {
        let api: Api<JoinToken> = Api::all(self.client.clone());
        token.status = Some(status);
        api.replace_status(&token.name_any(), &PostParams::default(), &token).await.map(drop)
    }

    pub(crate) async fn delete_token(&self, id: &str) -> kube::Result<()> {
        let api: Api<JoinToken> = Api::all(self.client.clone());
        absent_is_fine(api.delete(id, &DeleteParams::default()).await.map(drop))
    }

    pub(crate) async fn tokens(&self) -> kube::Result<Vec<JoinToken>> {
        let api: Api<JoinToken> = Api::all(self.client.clone());
        Ok(api.list(&kube::api::ListParams::default()).await?.items)
    }

    fn agents(&self, tenant: &TenantId) -> Api<Agent> {
        Api::namespaced(self.client.clone(), &tenant.namespace())
    }

    pub(crate) async fn agent(
        &self,
        tenant: &TenantId,
        id: &AgentId,
    ) -> kube::Result<Option<Agent>> {
        self.agents(tenant).get_opt(id.as_str()).await
    }

    /// Makes an agent; the one that is there, where somebody was faster.
    pub(crate) async fn create_agent(
        &self,
        tenant: &TenantId,
        id: &AgentId,
        spec: AgentSpec,
    ) -> kube::Result<Agent> {
        let api = self.agents(tenant);
        match api.create(&PostParams::default(), &Agent::new(id.as_str(), spec)).await {
            Err(kube::Error::Api(status)) if status.code == 409 => api.get(id.as_str()).await,
            made => made,
        }
    }

    /// Writes an agent's status, if nobody changed it since it was read.
    pub(crate) async fn report_agent(
        &self,
        tenant: &TenantId,
        mut agent: Agent,
        status: AgentStatus,
    ) -> kube::Result<Agent> {
        agent.status = Some(status);
        let (api, name) = (self.agents(tenant), agent.name_any());
        api.replace_status(&name, &PostParams::default(), &agent).await
    }

    /// Whose a token of a service account is: (user, pod). `None`: it is not valid for this audience.
    pub(crate) async fn review(
        &self,
        token: &str,
        audience: &str,
    ) -> kube::Result<Option<(String, String)>> {
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(vec![audience.to_owned()]),
            },
            ..TokenReview::default()
        };
        let status = api.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
        let meant = status.audiences.iter().flatten().any(|one| one == audience);
        if status.authenticated != Some(true) || !meant {
            return Ok(None);
        }
        let user = status.user.unwrap_or_default();
        let pod = user
            .extra
            .and_then(|extra| extra.get("authentication.kubernetes.io/pod-name")?.first().cloned());
        Ok(user.username.zip(pod))
    }
}

/// The authority as the hub has it.
#[derive(Debug, Clone)]
pub(crate) struct StoredAuthority {
    pub(crate) authority: Authority,
    /// When a new one was asked for, in seconds since 1970.
    pub(crate) asked: Option<i64>,
    version: String,
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

/// Reads the Secret.
pub(crate) fn read_authority(secret: &Secret) -> Result<StoredAuthority> {
    let data = secret.data.as_ref().and_then(|data| data.get(CA_KEY));
    let data = data.context("Secret fairlead-ca has no authority.json")?;
    let asked = secret.annotations().get(ROTATE);
    let asked = asked.and_then(|time| time.parse::<jiff::Timestamp>().ok());
    Ok(StoredAuthority {
        authority: Authority::parse(&data.0)?,
        asked: asked.map(jiff::Timestamp::as_second),
        version: secret.resource_version().unwrap_or_default(),
        annotations: secret.metadata.annotations.clone(),
    })
}

fn ca_secret(authority: &Authority, version: Option<&str>) -> Result<Secret> {
    let mut secret = Secret {
        data: Some([(CA_KEY.to_owned(), ByteString(authority.stored()?))].into()),
        ..Secret::default()
    };
    secret.metadata.name = Some(CA_SECRET.into());
    secret.metadata.resource_version = version.map(str::to_owned);
    Ok(secret)
}
