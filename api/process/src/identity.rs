//! Who a peer is, by the SPIFFE id in its certificate (<https://spiffe.io>, X.509-SVID: exactly
//! one URI among the subject alternative names).

use fairlead_api::TenantId;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

/// The bearer of a certificate of Fairlead's CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// `spiffe://<trust domain>/tenant/<tenant>/agent/<agent>`
    Agent {
        /// Whose agent.
        tenant: TenantId,
    },
    /// `spiffe://<trust domain>/fleet/<fleet>/envoy`
    Envoy,
    /// `spiffe://<trust domain>/manager`
    Manager,
}

/// Why a certificate names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not a certificate.
    #[error("the peer's certificate cannot be read")]
    Malformed,
    /// None, or several.
    #[error("the peer's certificate must have exactly one SPIFFE id, it has {0}")]
    Ids(usize),
    /// A SPIFFE id of something else.
    #[error("the SPIFFE id {0:?} names no tenant's agent, Envoy or manager of trust domain {1:?}")]
    Unknown(String, String),
}

impl Identity {
    /// Reads the identity from a certificate (DER) that was verified already.
    pub fn of_certificate(der: &[u8], trust_domain: &str) -> Result<Self, IdentityError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| IdentityError::Malformed)?;
        let extensions = certificate.extensions().iter();
        let names = extensions.filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        });
        let ids: Vec<&str> = names
            .flatten()
            .filter_map(|name| match name {
                GeneralName::URI(uri) if uri.starts_with("spiffe://") => Some(*uri),
                _ => None,
            })
            .collect();
        match ids.as_slice() {
            [id] => Self::of_id(id, trust_domain),
            several => Err(IdentityError::Ids(several.len())),
        }
    }

    /// Reads a SPIFFE id.
    pub fn of_id(id: &str, trust_domain: &str) -> Result<Self, IdentityError> {
        let unknown =
            || IdentityError::Unknown(id.chars().take(200).collect(), trust_domain.into());
        let path = id.strip_prefix("spiffe://").and_then(|rest| rest.strip_prefix(trust_domain));
        let parts: Vec<&str> = path.ok_or_else(unknown)?.split('/').collect();
        match parts.as_slice() {
            ["", "tenant", tenant, "agent", agent] if !agent.is_empty() => {
                let tenant = tenant.parse().map_err(|_| unknown())?;
                Ok(Self::Agent { tenant })
            }
            ["", "fleet", fleet, "envoy"] if !fleet.is_empty() => Ok(Self::Envoy),
            ["", "manager"] => Ok(Self::Manager),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_name_agents_envoys_and_managers_of_one_trust_domain() {
        let read = |id| Identity::of_id(id, "fairlead.local");
        let agent = Identity::Agent { tenant: "blue".parse().unwrap() };
        assert_eq!(read("spiffe://fairlead.local/tenant/blue/agent/1"), Ok(agent));
        assert_eq!(read("spiffe://fairlead.local/fleet/default/envoy"), Ok(Identity::Envoy));
        assert_eq!(read("spiffe://fairlead.local/manager"), Ok(Identity::Manager));
        for bad in [
            "spiffe://fairlead.local.evil/manager",
            "spiffe://other/manager",
            "spiffe://fairlead.local/tenant/BLUE/agent/1",
            "spiffe://fairlead.local/tenant/blue/agent/",
            "spiffe://fairlead.local/tenant/blue/agent/1/more",
            "spiffe://fairlead.local/tenant//agent/1",
            "https://fairlead.local/manager",
            "",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
