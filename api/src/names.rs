//! Names that are parsed once: whoever holds one holds a valid one.

use std::fmt;
use std::sync::Arc;

use crate::route::{Source, SourceKind};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?}: {rule}")]
pub struct NameError {
    what: &'static str,
    text: String,
    rule: &'static str,
}

/// A tenant's name: an RFC 1123 label of at most 56 characters, since `tenant-<name>` is a namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(Arc<str>);

const NAMESPACE_PREFIX: &str = "tenant-";

impl TenantId {
    /// The hub's namespace that holds this tenant's objects.
    pub fn namespace(&self) -> String {
        format!("{NAMESPACE_PREFIX}{}", self.0)
    }

    /// The tenant whose objects live in `namespace`; `None` for any other namespace.
    pub fn of_namespace(namespace: &str) -> Option<Self> {
        namespace.strip_prefix(NAMESPACE_PREFIX)?.parse().ok()
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for TenantId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let rule = "must be an RFC 1123 label of at most 56 characters";
        if is_label(text) && text.len() <= 56 {
            return Ok(Self(text.into()));
        }
        Err(NameError { what: "tenant", text: clip(text), rule })
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An agent's name: that of the token that it joined with, 10 of `a` to `z` and `0` to `9`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId(Box<str>);

impl AgentId {
    /// How long one is.
    pub const LENGTH: usize = 10;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for AgentId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if text.len() == Self::LENGTH && text.bytes().all(fits) {
            return Ok(Self(text.into()));
        }
        let rule = "must be 10 of a to z and 0 to 9";
        Err(NameError { what: "agent", text: clip(text), rule })
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a Route object: `<svc|ing>.<namespace>.<name>`.
///
/// A namespace holds no dot, so the three parts can always be read back; with dashes `a-b/c` and
/// `a/b-c` would be one Route.
///
/// Shared, since one name is a key in many maps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteName(Arc<str>);

impl RouteName {
    /// The name of the Route that publishes `kind` `namespace`/`name`.
    pub fn new(kind: SourceKind, namespace: &str, name: &str) -> Result<Self, NameError> {
        if !is_label(namespace) {
            let rule = "must be an RFC 1123 label";
            return Err(NameError { what: "namespace", text: clip(namespace), rule });
        }
        let prefix = match kind {
            SourceKind::Service => "svc",
            SourceKind::Ingress => "ing",
        };
        let text = format!("{prefix}.{namespace}.{name}");
        if !name.split('.').all(is_label) || text.len() > 253 {
            let rule = "must be RFC 1123 labels with dots between";
            return Err(NameError { what: "name", text: clip(name), rule });
        }
        Ok(Self(text.into()))
    }

    /// The name of the Route that publishes `source`.
    pub fn of(source: &Source) -> Result<Self, NameError> {
        Self::new(source.kind, &source.namespace, &source.name)
    }

    /// The kind, namespace and name that the name was made of.
    pub fn parts(&self) -> Option<(SourceKind, &str, &str)> {
        let (prefix, rest) = self.0.split_once('.')?;
        let (namespace, name) = rest.split_once('.')?;
        let kind = match prefix {
            "svc" => SourceKind::Service,
            "ing" => SourceKind::Ingress,
            _ => return None,
        };
        Some((kind, namespace, name))
    }

    /// A name as it is read from an object of the hub.
    pub fn of_object(name: &str) -> Self {
        Self(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a Secret on the hub that holds what Routes need of a tenant's Secret:
/// `tls.<namespace>.<name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretName(Box<str>);

const SECRET_PREFIX: &str = "tls.";

impl SecretName {
    /// The name for the tenant's Secret `namespace`/`name`.
    pub fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
        // What holds for Routes holds here.
        let RouteName(route) = RouteName::new(SourceKind::Ingress, namespace, name)?;
        let rest = route.split_once('.').map_or("", |(_, rest)| rest);
        Ok(Self(format!("{SECRET_PREFIX}{rest}").into()))
    }

    /// The namespace and name that the name was made of.
    pub fn parts(&self) -> Option<(&str, &str)> {
        self.0.strip_prefix(SECRET_PREFIX)?.split_once('.')
    }

    /// A name as it is read from an object of the hub.
    pub fn of_object(name: &str) -> Self {
        Self(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A Route among those of all tenants.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteId {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name in the tenant's namespace.
    pub name: RouteName,
}

impl fmt::Display for RouteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.name)
    }
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn clip(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_name_is_a_label_that_fits_a_namespace() {
        let longest = "a".repeat(56);
        for good in ["a", "blue-2", longest.as_str()] {
            assert_eq!(good.parse::<TenantId>().unwrap().as_str(), good);
        }
        let too_long = "a".repeat(57);
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "ä", too_long.as_str()] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_namespace_leads_back_to_its_tenant() {
        let tenant: TenantId = "blue".parse().unwrap();
        assert_eq!(TenantId::of_namespace(&tenant.namespace()), Some(tenant));
        assert_eq!(TenantId::of_namespace("kube-system"), None);
        assert_eq!(TenantId::of_namespace("tenant-"), None);
    }

    #[test]
    fn route_names_of_different_sources_never_meet() {
        let name = |namespace, name| RouteName::new(SourceKind::Service, namespace, name).unwrap();
        assert_ne!(name("a-b", "c"), name("a", "b-c"));
        assert_eq!(name("shop", "web").as_str(), "svc.shop.web");
        assert_eq!(name("shop", "web").parts(), Some((SourceKind::Service, "shop", "web")));
        assert!(RouteName::new(SourceKind::Service, "a.b", "c").is_err());
        assert!(RouteName::new(SourceKind::Service, "a", "../c").is_err());
    }

    #[test]
    fn an_error_repeats_at_most_64_characters_of_what_was_sent() {
        let error = "X".repeat(10_000).parse::<TenantId>().unwrap_err().to_string();
        assert!(error.len() < 200, "{error}");
    }
}
