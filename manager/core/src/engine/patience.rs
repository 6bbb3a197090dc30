//! Routes that Envoys are about to have.

use std::collections::{BTreeSet, HashMap};

use fairlead_api::RouteId;

/// How long nothing is said of it that Envoys do not have a Route yet, in milliseconds. They take some; what
/// takes them longer is worth a word.
const PATIENCE: i64 = 1_000;

/// Routes that are awaited, by when that began (milliseconds since 1970).
#[derive(Debug, Default)]
pub(super) struct Patience {
    since: HashMap<RouteId, i64>,
    /// Those of which nothing was said yet, by when patience ends.
    ends: BTreeSet<(i64, RouteId)>,
}

impl Patience {
    /// Whether a Route that is awaited, perhaps from now on, was so for long enough to speak of it.
    pub(super) fn is_over(&mut self, id: &RouteId, now: i64) -> bool {
        let since = match self.since.get(id) {
            Some(since) => *since,
            None => {
                self.since.insert(id.clone(), now);
                self.ends.insert((now + PATIENCE, id.clone()));
                now
            }
        };
        // A clock that was set back must not make it wait.
        !(since..since + PATIENCE).contains(&now)
    }

    /// A Route is awaited no more; since when it was.
    pub(super) fn over(&mut self, id: &RouteId) -> Option<i64> {
        let since = self.since.remove(id)?;
        self.ends.remove(&(since + PATIENCE, id.clone()));
        Some(since)
    }

    /// The Routes that are spoken of from now on.
    pub(super) fn due(&mut self, now: i64) -> Vec<RouteId> {
        let mut due = Vec::new();
        let is_due = |end: i64| end <= now || end > now + PATIENCE;
        while self.ends.first().is_some_and(|(end, _)| is_due(*end)) {
            due.extend(self.ends.pop_first().map(|(_, id)| id));
        }
        due
    }

    /// When the next one's patience ends.
    pub(super) fn next(&self) -> Option<i64> {
        self.ends.first().map(|(end, _)| *end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_said_once_patience_ends() {
        use fairlead_api::RouteName;
        use fairlead_api::route::SourceKind;
        let id = RouteId {
            tenant: "blue".parse().unwrap(),
            name: RouteName::new(SourceKind::Service, "shop", "web").unwrap(),
        };
        let mut patience = Patience::default();
        assert!(!patience.is_over(&id, 5_000));
        assert!(!patience.is_over(&id, 5_999));
        assert_eq!((patience.next(), patience.due(5_999)), (Some(6_000), Vec::new()));
        assert_eq!(patience.due(6_000), std::slice::from_ref(&id));
        assert!(patience.is_over(&id, 6_000));
        assert_eq!(patience.over(&id), Some(5_000));
        assert!(!patience.is_over(&id, 7_000), "the next time is another");
        assert_eq!(patience.due(2_000).len(), 1, "the clock was set back");
        assert!(patience.is_over(&id, 2_000));
        patience.over(&id);
        assert_eq!(patience.next(), None);
    }
}
