//! Annotations under `fairlead.dev/`: how values are read, and what is said of those that cannot be.

use std::collections::BTreeMap;

use fairlead_api::http::Balancing;

/// What all our annotations begin with.
pub(crate) const PREFIX: &str = "fairlead.dev/";

/// The longest time that a connection may take, in milliseconds.
pub(crate) const MAX_CONNECT: u32 = 600_000;

/// An annotation that is not, or not wholly, followed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Complaint {
    /// `CamelCase`.
    pub(crate) reason: &'static str,
    /// Names the annotation, and says the way out.
    pub(crate) message: String,
}

impl Complaint {
    /// A value that cannot be read. `then`: what becomes of that, after the reason.
    pub(crate) fn unreadable(name: &str, value: &str, why: &str, then: &str) -> Self {
        let shown: String = value.chars().take(64).collect();
        let message = format!("annotation {name}: {shown:?}: {why}{then}");
        Self { reason: "InvalidAnnotation", message }
    }
}

/// An annotation: its name without the prefix, how it is read, and whether it restricts who is let in.
pub(crate) struct Known<S> {
    pub(crate) name: &'static str,
    pub(crate) read: fn(&mut S, &str) -> Result<(), String>,
    pub(crate) restricts: bool,
}

/// An annotation without which all else works.
pub(crate) const fn plain<S>(
    name: &'static str,
    read: fn(&mut S, &str) -> Result<(), String>,
) -> Known<S> {
    Known { name, read, restricts: false }
}

/// An annotation that keeps somebody out.
pub(crate) const fn strict<S>(
    name: &'static str,
    read: fn(&mut S, &str) -> Result<(), String>,
) -> Known<S> {
    Known { name, read, restricts: true }
}

/// What is said of names that nobody reads. `others`: read elsewhere, or written by us.
pub(crate) fn unknown<S>(
    annotations: &BTreeMap<String, String>,
    known: &[Known<S>],
    others: &[&str],
) -> impl Iterator<Item = Complaint> {
    let ours = annotations.keys().filter_map(|name| name.strip_prefix(PREFIX));
    let read = |name: &str| known.iter().any(|one| one.name == name) || others.contains(&name);
    ours.filter(move |name| !read(name)).map(|name| {
        let message = format!("annotation {PREFIX}{name} is unknown, and has no effect");
        Complaint { reason: "UnknownAnnotation", message }
    })
}

/// Sets something to what was read.
pub(crate) fn set<T>(slot: &mut T, value: T) -> Result<(), String> {
    *slot = value;
    Ok(())
}

pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "must be true or false".to_owned())
}

pub(crate) fn number(text: &str, least: u32, most: u32) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("must be a number from {least} to {most}"))
}

/// `500ms`, `30s`, `5m`, `1h`, or `0`.
pub(crate) fn millis(text: &str) -> Result<u32, String> {
    let rule = || "must be a duration like 500ms, 30s, 5m or 1h".to_owned();
    if text == "0" {
        return Ok(0);
    }
    let place = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(rule)?;
    let (digits, unit) = text.split_at(place);
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(rule()),
    };
    let number: u32 = digits.parse().map_err(|_| rule())?;
    let millis = number.checked_mul(factor).filter(|millis| i32::try_from(*millis).is_ok());
    millis.ok_or_else(|| "must be a duration of at most 500h".to_owned())
}

/// Separated by commas.
pub(crate) fn list(text: &str) -> Vec<String> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries.map(str::to_owned).collect()
}

pub(crate) fn cidrs(text: &str) -> Result<Vec<String>, String> {
    let all = list(text);
    let is_range = |text: &String| {
        let (address, length) = text.split_once('/').unwrap_or((text, "0"));
        let address: Option<std::net::IpAddr> = address.parse().ok();
        let most = address.map_or(0, |ip| if ip.is_ipv4() { 32 } else { 128 });
        address.is_some() && length.parse::<u8>().is_ok_and(|length| length <= most)
    };
    match all.iter().find(|entry| !is_range(entry)) {
        Some(bad) => {
            let shown: String = bad.chars().take(64).collect();
            Err(format!("{shown:?} is no CIDR like 10.0.0.0/8"))
        }
        None if all.is_empty() => Err("names no CIDR".into()),
        None if all.len() > 256 => Err("names more than 256 CIDRs".into()),
        None => Ok(all),
    }
}

pub(crate) fn balancing(text: &str) -> Result<Balancing, String> {
    match text {
        "round-robin" => Ok(Balancing::RoundRobin),
        "least-request" => Ok(Balancing::LeastRequest),
        "random" => Ok(Balancing::Random),
        _ => Err("must be round-robin, least-request or random".into()),
    }
}
