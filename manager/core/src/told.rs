//! What is kept of a status that was written, or that the hub's object has.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use fairlead_api::condition::{
    ACCEPTED, CONFLICTED, DRAINING, HEALTHY, PARTIALLY_INVALID, PROGRAMMED, RESOLVED_REFS, Reason,
    Verdict,
};
use fairlead_api::route::{GivenPort, RouteStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The types of a Route's conditions.
const KINDS: [&str; 7] =
    [ACCEPTED, RESOLVED_REFS, PROGRAMMED, HEALTHY, CONFLICTED, PARTIALLY_INVALID, DRAINING];

/// A status as hashes, with what the next one, or a process that begins, takes from it: a quarter of its text, and there is
/// one of each Route.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    whole: u64,
    /// Of what is news when it changes: not times and generations.
    news: u64,
    /// Where the Route was served.
    pub addresses: Box<[IpAddr]>,
    /// What its listeners that take any port were given.
    pub ports: Box<[GivenPort]>,
    /// Endpoints that were not healthy.
    pub unhealthy: Box<[String]>,
    conditions: Box<[Known]>,
    healthy: Option<Box<Verdict>>,
}

/// What is known of a condition.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    /// Its place in [`KINDS`].
    kind: u8,
    holds: bool,
    since: Time,
    /// 0, which no object has: none.
    generation: i64,
}

impl Known {
    fn is(&self, kind: &str) -> bool {
        KINDS.get(usize::from(self.kind)).is_some_and(|known| *known == kind)
    }
}

impl Told {
    /// What is kept of a status.
    pub fn of(status: &RouteStatus) -> Self {
        let known = |condition: &Condition| {
            Some(Known {
                kind: u8::try_from(KINDS.iter().position(|kind| *kind == condition.type_)?).ok()?,
                holds: condition.status == "True",
                since: condition.last_transition_time.clone(),
                generation: condition.observed_generation.unwrap_or(0),
            })
        };
        let (whole, news) = digests(status);
        Self {
            whole,
            news,
            addresses: status.addresses.iter().filter_map(|text| text.parse().ok()).collect(),
            ports: status.ports.as_slice().into(),
            unhealthy: status.unhealthy.as_slice().into(),
            conditions: status.conditions.iter().filter_map(known).collect(),
            healthy: status.conditions.iter().find_map(healthy).map(Box::new),
        }
    }

    /// Whether this says anything that the one before did not, but for a later generation.
    pub fn is_news(&self, before: &Self) -> bool {
        self.news != before.news
    }

    /// Since when a condition holds, or does not.
    pub fn since(&self, kind: &str, holds: bool) -> Option<&Time> {
        let same = |known: &&Known| known.is(kind) && known.holds == holds;
        self.conditions.iter().find(same).map(|known| &known.since)
    }

    /// Whether it was told that a generation is programmed.
    pub fn is_programmed(&self, generation: i64) -> bool {
        let is =
            |known: &Known| known.is(PROGRAMMED) && known.holds && known.generation == generation;
        self.conditions.iter().any(is)
    }

    /// On `Healthy`, once somebody had asked.
    pub fn healthy(&self) -> Option<&Verdict> {
        self.healthy.as_deref()
    }
}

fn healthy(condition: &Condition) -> Option<Verdict> {
    let known = condition.type_ == HEALTHY && condition.reason != Reason::Pending.as_str();
    let holds = condition.status == "True";
    known.then(|| Verdict {
        holds,
        reason: if holds { Reason::Healthy } else { Reason::Unhealthy },
        message: condition.message.clone(),
    })
}

/// Hashes of a status: of all of it, and of what is news.
fn digests(status: &RouteStatus) -> (u64, u64) {
    let RouteStatus { observed_generation, addresses, ports, unhealthy, conditions, display } =
        status;
    let (mut news, mut rest) = (DefaultHasher::new(), DefaultHasher::new());
    (addresses, ports, unhealthy, display, conditions.len()).hash(&mut news);
    observed_generation.hash(&mut rest);
    for Condition { type_, status, reason, message, last_transition_time, observed_generation } in
        conditions
    {
        (type_, status, reason, message).hash(&mut news);
        (last_transition_time.0, observed_generation).hash(&mut rest);
    }
    let news = news.finish();
    news.hash(&mut rest);
    (rest.finish(), news)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn status(message: &str, generation: i64, second: i64) -> RouteStatus {
        let at = Time(Timestamp::from_second(second).unwrap());
        let verdict = Verdict { message: message.into(), ..Verdict::yes(Reason::Programmed) };
        RouteStatus {
            observed_generation: Some(generation),
            addresses: vec!["10.9.0.1".into()],
            conditions: vec![verdict.condition(PROGRAMMED, generation, at)],
            ..RouteStatus::default()
        }
    }

    #[test]
    fn what_differs_is_another_and_news_unless_it_is_a_generation() {
        let told = Told::of(&status("", 1, 5));
        assert_eq!(told, Told::of(&status("", 1, 5)));
        let later = Told::of(&status("", 2, 5));
        assert!(told != later && !later.is_news(&told));
        let other = Told::of(&status("waiting", 1, 5));
        assert!(told != other && other.is_news(&told));
        assert!(told.is_programmed(1) && !told.is_programmed(2));
    }

    #[test]
    fn a_condition_is_known_since_it_came_to_be_as_it_is() {
        let told = Told::of(&status("", 1, 5));
        assert_eq!(told.since(PROGRAMMED, true).map(|at| at.0.as_second()), Some(5));
        assert_eq!(told.since(PROGRAMMED, false), None);
        assert_eq!(told.since(ACCEPTED, true), None);
    }

    #[test]
    fn health_is_known_once_somebody_had_asked() {
        let at = Time(Timestamp::from_second(5).unwrap());
        for (reason, known) in [(Reason::Unhealthy, true), (Reason::Pending, false)] {
            let verdict = Verdict::no(reason, "10.0.0.1:30000");
            let conditions = vec![verdict.clone().condition(HEALTHY, 1, at.clone())];
            let told = Told::of(&RouteStatus { conditions, ..RouteStatus::default() });
            assert_eq!(told.healthy(), known.then_some(&verdict));
        }
    }
}
