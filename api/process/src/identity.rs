//! Who a peer is, by the SPIFFE id in its certificate (<https://spiffe.io>, X.509-SVID: exactly
//! one URI among the subject alternative names).

use std::fmt;

use fairlead_api::{AgentId, TenantId};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

/// The hub's certificates are valid from so many seconds before they were issued, for clocks that differ a little.
pub const BACKDATED: i64 = 300;

/// The bearer of a certificate of Fairlead's CA.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// `spiffe://<trust domain>/tenant/<tenant>/agent/<agent>`
    Agent {
        /// Whose agent.
        tenant: TenantId,
        /// Which one.
        agent: AgentId,
    },
    /// `spiffe://<trust domain>/fleet/default/envoy/<pod>`
    Envoy {
        /// Its pod, which is its node id.
        pod: Box<str>,
    },
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

/// What a verified certificate says of its bearer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// Its SPIFFE id.
    pub id: String,
    /// The certificate's serial number, hexadecimal.
    pub serial: String,
    /// When the certificate ends, in seconds since 1970.
    pub not_after: i64,
}

impl Bearer {
    /// Reads a certificate (DER).
    ///
    /// # Errors
    /// It is none, or has not exactly one SPIFFE id.
    pub fn of(der: &[u8]) -> Result<Self, IdentityError> {
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
        let [id] = ids.as_slice() else { return Err(IdentityError::Ids(ids.len())) };
        Ok(Self {
            id: (*id).to_owned(),
            serial: format!("{:x}", certificate.serial),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }
}

impl Identity {
    /// Reads a SPIFFE id.
    ///
    /// # Errors
    /// It is not one of Fairlead's, in this trust domain.
    pub fn of_id(id: &str, trust_domain: &str) -> Result<Self, IdentityError> {
        let unknown =
            || IdentityError::Unknown(id.chars().take(200).collect(), trust_domain.into());
        let path = id.strip_prefix("spiffe://").and_then(|rest| rest.strip_prefix(trust_domain));
        let parts: Vec<&str> = path.ok_or_else(unknown)?.split('/').collect();
        match parts.as_slice() {
            ["", "tenant", tenant, "agent", agent] => Ok(Self::Agent {
                tenant: tenant.parse().map_err(|_| unknown())?,
                agent: agent.parse().map_err(|_| unknown())?,
            }),
            ["", "fleet", "default", "envoy", pod] if is_pod(pod) => {
                Ok(Self::Envoy { pod: (*pod).into() })
            }
            ["", "manager"] => Ok(Self::Manager),
            _ => Err(unknown()),
        }
    }

    /// Its SPIFFE id.
    pub fn id(&self, trust_domain: &str) -> String {
        format!("spiffe://{trust_domain}/{self}")
    }
}

/// The path of the SPIFFE id.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent { tenant, agent } => write!(f, "tenant/{tenant}/agent/{agent}"),
            Self::Envoy { pod } => write!(f, "fleet/default/envoy/{pod}"),
            Self::Manager => f.write_str("manager"),
        }
    }
}

/// Whether a text may be a pod's name (RFC 1123 subdomain), as far as it matters here: nothing in it leads
/// out of its part of the path.
pub fn is_pod(text: &str) -> bool {
    let fits = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.'
    };
    !text.is_empty() && text.len() <= 253 && text.bytes().all(fits) && !text.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fuzzing_found_is_taken_calmly() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manager/fuzz/corpus/certificate");
        let mut good = 0;
        for file in std::fs::read_dir(corpus).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            good += u32::from(Bearer::of(&bytes).is_ok());
            let _ = (crate::secret::trusted(&bytes), crate::secret::users(&bytes));
        }
        assert!(good > 0, "the corpus has a good one, from which others were made");
    }

    #[test]
    fn ids_name_agents_envoys_and_managers_of_one_trust_domain() {
        let agent = Identity::Agent {
            tenant: "blue".parse().unwrap(),
            agent: "abcdefghij".parse().unwrap(),
        };
        let envoy = Identity::Envoy { pod: "fairlead-envoy-x7k2p".into() };
        for identity in [agent, envoy, Identity::Manager] {
            let id = identity.id("fairlead.local");
            assert_eq!(Identity::of_id(&id, "fairlead.local"), Ok(identity));
        }
        for bad in [
            "spiffe://fairlead.local.evil/manager",
            "spiffe://other/manager",
            "spiffe://fairlead.local/tenant/BLUE/agent/abcdefghij",
            "spiffe://fairlead.local/tenant/blue/agent/",
            "spiffe://fairlead.local/tenant/blue/agent/abcdefghij/more",
            "spiffe://fairlead.local/tenant//agent/abcdefghij",
            "spiffe://fairlead.local/fleet/default/envoy",
            "spiffe://fairlead.local/fleet/default/envoy/",
            "spiffe://fairlead.local/fleet/default/envoy/../x",
            "https://fairlead.local/manager",
            "",
        ] {
            assert!(Identity::of_id(bad, "fairlead.local").is_err(), "{bad}");
        }
    }
}
