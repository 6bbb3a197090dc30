//! `Agent` and `JoinToken`: who may connect as a tenant's agent, and how one becomes it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An agent that has joined, in its tenant's namespace and named by the token that it joined with. Only
/// those that are here, and not revoked, may connect. Deleting one closes its connections, too, and its
/// token is then of no use.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "Agent",
    plural = "agents",
    namespaced,
    status = "AgentStatus",
    category = "fairlead",
    printcolumn(name = "Revoked", type_ = "boolean", json_path = ".spec.revoked"),
    printcolumn(name = "Serial", type_ = "string", json_path = ".status.serial"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.notAfter"),
    printcolumn(name = "Recoveries", type_ = "integer", json_path = ".status.recoveries"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AgentSpec {
    /// The public key (`SubjectPublicKeyInfo`, DER, base64) whose bearer this agent is, for as long as it
    /// exists. It signs nothing but the requests to join and to recover.
    pub bound_key: String,
    /// Its connections are closed within 5 s, and it gets no further certificate.
    #[serde(default)]
    pub revoked: bool,
    /// How often it may recover from an expired certificate. An administrator may raise it.
    #[serde(default = "recoveries")]
    #[schemars(with = "i32", range(min = 0))]
    pub max_recoveries: u32,
}

fn recoveries() -> u32 {
    5
}

/// What was issued to an agent.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// The serial number (hexadecimal) of the certificate that it uses.
    #[serde(default)]
    pub serial: String,
    /// That of a newer one, which counts once it is used; the older one is then of no use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_serial: Option<String>,
    /// When the newest of them ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Time>,
    /// How often it recovered.
    #[serde(default)]
    #[schemars(with = "i32")]
    pub recoveries: u32,
}

/// Lets one agent of a tenant join, until it expires. It holds no secret: the token's is known to the
/// one it was printed for alone.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "JoinToken",
    plural = "jointokens",
    status = "JoinTokenStatus",
    category = "fairlead",
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]{10}$')").message("metadata.name must be the token's id: 10 of a to z and 0 to 9"),
    printcolumn(name = "Tenant", type_ = "string", json_path = ".spec.tenant"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".spec.expiresAt"),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.usedAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("spec is immutable: make another token"))]
pub struct JoinTokenSpec {
    /// Whose agent joins by it.
    #[schemars(length(max = 56))]
    pub tenant: String,
    /// SHA-256 of the token's secret, hexadecimal.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub secret_hash: String,
    /// Of no use from then on; at most 24 h after it was made.
    pub expires_at: Time,
}

/// Who used a token.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct JoinTokenStatus {
    /// SHA-256 of the key that it was used with, hexadecimal. The same key may use it again until it
    /// expires, since an answer may be lost; another one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_key: Option<String>,
    /// When it was used first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_at: Option<Time>,
}
