//! `AddressClaim`: whose an (address, protocol, port) is. `HostnameClaim`: whose a host name is.
//!
//! The object's name is the key, so creating it is a lock that the apiserver keeps: there are never
//! two holders, even with two leaders for a moment.

use std::net::IpAddr;
use std::sync::Arc;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::route::Protocol;

/// Whose one port of one address is. Created and deleted by the manager, never changed.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "AddressClaim",
    plural = "addressclaims",
    shortname = "claim",
    shortname = "claims",
    category = "fairlead",
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address"),
    printcolumn(name = "Protocol", type_ = "string", json_path = ".spec.protocol"),
    printcolumn(name = "Port", type_ = "integer", json_path = ".spec.port"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Tenant", type_ = "string", json_path = ".spec.tenant"),
    printcolumn(name = "Route", type_ = "string", json_path = ".spec.route"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("a claim is immutable"))]
pub struct AddressClaimSpec {
    /// The address.
    #[schemars(with = "String")]
    pub address: IpAddr,
    /// Transport: `TCP` or `UDP`.
    pub protocol: Protocol,
    /// The port.
    #[schemars(with = "i32", range(min = 1, max = 65535))]
    pub port: u16,
    /// The pool that the address was taken from.
    #[schemars(length(max = 253))]
    pub pool: String,
    /// `HTTP` or `HTTPS`: Routes share the port by host names, and it is held as long as one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<Protocol>,
    /// The tenant that holds it; empty: Routes of any tenant share it.
    #[serde(default)]
    #[schemars(length(max = 63))]
    pub tenant: String,
    /// The Route that holds it, in the tenant's namespace; empty where it is shared.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub route: String,
    /// The Route's `metadata.uid`: a Route that was deleted and made again does not inherit.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub route_uid: String,
    /// The listener that takes any port, and was given this one; empty for one that names its port.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub listener: String,
    /// Nobody else is given a port of the address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub alone: bool,
    /// Where the pool's exposure is `Service`: the port of the hub's nodes at which Envoy listens. It is
    /// claimed, too, at the unspecified address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 65535))]
    pub target_port: Option<u16>,
}

/// Whose a host name is, for as long as one of the tenant's Routes wants it. Created and deleted by
/// the manager, never changed.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "HostnameClaim",
    plural = "hostnameclaims",
    shortname = "hostclaim",
    shortname = "hostclaims",
    category = "fairlead",
    printcolumn(name = "Hostname", type_ = "string", json_path = ".spec.hostname"),
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address"),
    printcolumn(name = "Tenant", type_ = "string", json_path = ".spec.tenant"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("a claim is immutable"))]
pub struct HostnameClaimSpec {
    /// `shop.example.com`, `*.example.com`, or `*`.
    #[schemars(length(min = 1, max = 253))]
    pub hostname: String,
    /// Of `*` only: the address at which it is claimed. Names are claimed at all addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub address: Option<IpAddr>,
    /// The tenant that holds it.
    #[schemars(length(max = 63))]
    pub tenant: String,
}

/// What a claim of a host name is a claim to. Ordered by name, so that a domain's wildcard comes before its names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostKey {
    /// `shop.example.com`, `*.example.com`, or `*`.
    pub hostname: Arc<str>,
    /// Set for `*` only.
    pub address: Option<IpAddr>,
}

impl HostKey {
    /// The key of a host name that is served at an address.
    pub fn new(hostname: &str, address: IpAddr) -> Self {
        let any = hostname == crate::http::ANY_HOST;
        Self { hostname: hostname.into(), address: any.then_some(address) }
    }

    /// The name of the claim's object: `exact.shop.example.com`, `wildcard.example.com`, or
    /// `any.172.18.0.200`.
    pub fn object_name(&self) -> String {
        match (self.address, self.hostname.strip_prefix("*.")) {
            (Some(address), _) => format!("any.{}", address_name(address)),
            (None, Some(parent)) => format!("wildcard.{parent}"),
            (None, None) => format!("exact.{}", self.hostname),
        }
    }
}

impl HostnameClaimSpec {
    /// What is claimed.
    pub fn key(&self) -> HostKey {
        HostKey { hostname: self.hostname.as_str().into(), address: self.address }
    }
}

/// What a claim is a claim to.
#[derive(
    Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
pub struct ClaimKey {
    /// The address.
    #[schemars(with = "String")]
    pub address: IpAddr,
    /// Transport.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

impl ClaimKey {
    /// The name of the claim's object: `172.18.0.200-tcp-80`, or all eight groups of an IPv6
    /// address with dashes between (`fd00-0-0-0-0-0-0-1-udp-53`).
    pub fn object_name(&self) -> String {
        let protocol = match self.protocol.transport() {
            Protocol::Udp => "udp",
            _ => "tcp",
        };
        format!("{}-{protocol}-{}", address_name(self.address), self.port)
    }
}

/// An address as a part of a DNS label.
fn address_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => v6.segments().map(|group| format!("{group:x}")).join("-"),
    }
}

impl AddressClaimSpec {
    /// What is claimed.
    pub fn key(&self) -> ClaimKey {
        ClaimKey { address: self.address, protocol: self.protocol, port: self.port }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_name_that_is_a_dns_subdomain() {
        let name = |address: &str, protocol, port| {
            ClaimKey { address: address.parse().unwrap(), protocol, port }.object_name()
        };
        assert_eq!(name("172.18.0.200", Protocol::Tcp, 80), "172.18.0.200-tcp-80");
        assert_eq!(name("fd00::1", Protocol::Udp, 53), "fd00-0-0-0-0-0-0-1-udp-53");
    }

    #[test]
    fn host_names_never_meet() {
        let name = |host| HostKey::new(host, "172.18.0.200".parse().unwrap()).object_name();
        let names = ["*", "*.example.com", "example.com", "wildcard.example.com"].map(name);
        assert_eq!(
            names,
            [
                "any.172.18.0.200",
                "wildcard.example.com",
                "exact.example.com",
                "exact.wildcard.example.com"
            ]
        );
    }
}
