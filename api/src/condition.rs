//! Condition types and reasons, in the Gateway API's words where it has them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The hub took the Route in and holds an address for it.
pub const ACCEPTED: &str = "Accepted";
/// Every backend of the Route leads to at least one node that may serve it.
pub const RESOLVED_REFS: &str = "ResolvedRefs";
/// Every ready Envoy of the fleet acknowledged exactly this generation.
pub const PROGRAMMED: &str = "Programmed";
/// True: some host names are another tenant's; the others are served.
pub const CONFLICTED: &str = "Conflicted";
/// True: some rules cannot be served as they are; the others are.
pub const PARTIALLY_INVALID: &str = "PartiallyInvalid";
/// True: the Route holds an address of a pool that is being drained.
pub const DRAINING: &str = "Draining";
/// Every endpoint that is checked is healthy; only on Routes with health checks.
pub const HEALTHY: &str = "Healthy";
/// On a Tenant: its agent has a stream open.
pub const CONNECTED: &str = "Connected";
/// On a Tenant: true where its agent's clock is more than a minute off the hub's.
pub const CLOCK_SKEWED: &str = "ClockSkewed";

/// Why a condition has its status: the `CamelCase` word in `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// `Accepted`: taken in.
    Accepted,
    /// `Accepted`: a field has a value that cannot be served.
    Invalid,
    /// `Accepted`: the tenant may use no pool.
    NoPool,
    /// `Accepted`: the pool asked for does not exist or is not the tenant's.
    UnknownPool,
    /// `Accepted`: the address asked for is in none of the tenant's pools.
    AddressNotInPool,
    /// `Accepted`: no address of the pool has all the ports free.
    PoolExhausted,
    /// `Accepted`: a port of the address that was asked for, or is held already, is taken.
    PortTaken,
    /// `Accepted`: the pool, group or sharing asked for is not that of the address that is held.
    AddressHeld,
    /// `Accepted`: the group's address cannot take the Route.
    GroupConflict,
    /// `Accepted`: the hub's own load balancer has yet to give the address.
    AddressPending,
    /// `Accepted`, `Draining`: the pool gives out nothing new.
    PoolDraining,
    /// `Healthy`: all endpoints that are checked are.
    Healthy,
    /// `Healthy`: some endpoints are not.
    Unhealthy,
    /// `Accepted`: the hub has no such tenant.
    UnknownTenant,
    /// `Accepted`, `Conflicted`: host names are another tenant's.
    HostnameConflict,
    /// `PartiallyInvalid`: some rules cannot be served as they are.
    UnsupportedValue,
    /// `ResolvedRefs`: the source names an object that is not there, or is broken.
    RefNotFound,
    /// `ResolvedRefs`: a certificate is missing, broken or has expired.
    InvalidCertificate,
    /// `ResolvedRefs`: all backends lead somewhere.
    ResolvedRefs,
    /// `ResolvedRefs`: a backend has no ready endpoint in the tenant.
    NoReadyEndpoints,
    /// `ResolvedRefs`: the tenant's agent has told of no node.
    NoNodes,
    /// `ResolvedRefs`: a node's address is outside `Tenant.spec.nodeCIDRs` or never allowed.
    NodeNotAllowed,
    /// `ResolvedRefs`: a node port is outside `Tenant.spec.nodePorts`.
    NodePortNotAllowed,
    /// `Accepted`, `Conflicted`: host names are outside `Tenant.spec.domains`.
    HostnameNotAllowed,
    /// `Accepted`, `Conflicted`: the tenant holds as much as `Tenant.spec.quotas` allows.
    QuotaReached,
    /// `ClockSkewed` of a Tenant: its agent's clock differs from the hub's.
    ClockSkewed,
    /// `Programmed`: every ready Envoy acknowledged this generation.
    Programmed,
    /// `Programmed`: some ready Envoy has not answered yet.
    Pending,
    /// `Programmed`: no Envoy of the fleet is ready.
    NoEnvoy,
    /// `Programmed`: Envoy refused the configuration; the message is Envoy's.
    Rejected,
    /// `Programmed`: nothing to program, since the Route is not accepted.
    NotAccepted,
    /// `Connected` of a Tenant: an agent has a stream open.
    Connected,
    /// `Connected` of a Tenant: no agent has a stream open.
    NotConnected,
}

impl Reason {
    /// The word in a condition's `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Invalid => "Invalid",
            Self::NoPool => "NoPool",
            Self::UnknownPool => "UnknownPool",
            Self::AddressNotInPool => "AddressNotInPool",
            Self::PoolExhausted => "PoolExhausted",
            Self::PortTaken => "PortTaken",
            Self::AddressHeld => "AddressHeld",
            Self::GroupConflict => "GroupConflict",
            Self::AddressPending => "AddressPending",
            Self::PoolDraining => "PoolDraining",
            Self::Healthy => "Healthy",
            Self::Unhealthy => "Unhealthy",
            Self::UnknownTenant => "UnknownTenant",
            Self::HostnameConflict => "HostnameConflict",
            Self::UnsupportedValue => "UnsupportedValue",
            Self::RefNotFound => "RefNotFound",
            Self::InvalidCertificate => "InvalidCertificate",
            Self::ResolvedRefs => "ResolvedRefs",
            Self::NoReadyEndpoints => "NoReadyEndpoints",
            Self::NoNodes => "NoNodes",
            Self::NodeNotAllowed => "NodeNotAllowed",
            Self::NodePortNotAllowed => "NodePortNotAllowed",
            Self::HostnameNotAllowed => "HostnameNotAllowed",
            Self::QuotaReached => "QuotaReached",
            Self::ClockSkewed => "ClockSkewed",
            Self::Programmed => "Programmed",
            Self::Pending => "Pending",
            Self::NoEnvoy => "NoEnvoy",
            Self::Rejected => "Rejected",
            Self::NotAccepted => "NotAccepted",
            Self::Connected => "Connected",
            Self::NotConnected => "NotConnected",
        }
    }
}

/// A verdict on one condition, before it has a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the condition holds.
    pub holds: bool,
    /// Why.
    pub reason: Reason,
    /// What a person can act on.
    pub message: String,
}

impl Verdict {
    /// The condition holds.
    pub fn yes(reason: Reason) -> Self {
        Self { holds: true, reason, message: String::new() }
    }

    /// The condition does not hold, and what to do about it.
    pub fn no(reason: Reason, message: impl Into<String>) -> Self {
        Self { holds: false, reason, message: message.into() }
    }

    /// The verdict as a condition. `since`: `lastTransitionTime`, which moves only when the status does
    /// (Kubernetes API conventions, "Typical status properties").
    pub fn condition(
        self,
        kind: &str,
        generation: impl Into<Option<i64>>,
        since: Time,
    ) -> Condition {
        Condition {
            type_: kind.to_owned(),
            status: if self.holds { "True" } else { "False" }.to_owned(),
            reason: self.reason.as_str().to_owned(),
            message: self.message,
            observed_generation: generation.into(),
            last_transition_time: since,
        }
    }
}
