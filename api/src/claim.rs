//! `AddressClaim`: whose an (address, protocol, port) is.
//!
//! The object's name is the key, so creating it is a lock that the apiserver keeps: there are never
//! two holders, even with two leaders for a moment.

use std::net::IpAddr;

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
    /// Transport.
    pub protocol: Protocol,
    /// The port.
    #[schemars(with = "i32", range(min = 1, max = 65535))]
    pub port: u16,
    /// The pool that the address was taken from.
    #[schemars(length(max = 253))]
    pub pool: String,
    /// The tenant that holds it.
    #[schemars(length(max = 63))]
    pub tenant: String,
    /// The Route that holds it, in the tenant's namespace.
    #[schemars(length(max = 253))]
    pub route: String,
    /// The Route's `metadata.uid`: a Route that was deleted and made again does not inherit.
    #[schemars(length(max = 64))]
    pub route_uid: String,
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
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        let address = match self.address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => v6.segments().map(|group| format!("{group:x}")).join("-"),
        };
        format!("{address}-{protocol}-{}", self.port)
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
}
