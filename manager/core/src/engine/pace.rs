//! How often it is told of Routes that all is as it was, but for a later generation.

use std::collections::{HashMap, HashSet, VecDeque};

use fairlead_api::{RouteId, TenantId};

/// So many of a tenant's at once.
const BURST: i64 = 100;
/// So many of a tenant's a second. A write costs the hub's apiserver as much as the change of which it tells, and all
/// tenants share that.
const PER_SECOND: i64 = 25;

/// Who may be told of at once, and who waits. What is news waits for nothing, and is not counted here.
#[derive(Debug, Default)]
pub(super) struct Pace {
    lanes: HashMap<TenantId, Lane>,
}

/// One tenant's.
#[derive(Debug)]
struct Lane {
    /// In thousandths.
    tokens: i64,
    /// As of then, in milliseconds since 1970.
    at: i64,
    /// Those that wait, the next one first.
    order: VecDeque<RouteId>,
    waiting: HashSet<RouteId>,
    /// Those whose turn it is: their tokens are taken.
    granted: HashSet<RouteId>,
}

impl Lane {
    fn full(now: i64) -> Self {
        let (order, waiting, granted) = Default::default();
        Self { tokens: BURST * 1_000, at: now, order, waiting, granted }
    }

    fn fill(&mut self, now: i64) {
        // A clock that was set back earns nothing, and one that was set ahead no more than the burst.
        let earned = (now - self.at).clamp(0, BURST * 1_000) * PER_SECOND;
        self.tokens = (self.tokens + earned).min(BURST * 1_000);
        self.at = now;
    }
}

impl Pace {
    /// Whether a Route may be told of now (milliseconds since 1970). If not it waits: see [`Pace::due`].
    pub(super) fn allows(&mut self, id: &RouteId, now: i64) -> bool {
        let lane = self.lanes.entry(id.tenant.clone()).or_insert_with(|| Lane::full(now));
        lane.fill(now);
        if lane.granted.remove(id) {
            return true;
        }
        // Who comes now does not come before those that wait.
        if lane.tokens >= 1_000 && lane.order.is_empty() {
            lane.tokens -= 1_000;
            return true;
        }
        if lane.waiting.insert(id.clone()) {
            lane.order.push_back(id.clone());
        }
        false
    }

    /// Routes that waited long enough, to be looked at again.
    pub(super) fn due(&mut self, now: i64) -> Vec<RouteId> {
        let mut due = Vec::new();
        self.lanes.retain(|_, lane| {
            // Of those whose turn it was before there was nothing to tell, or it was news.
            for _ in lane.granted.drain() {
                lane.tokens += 1_000;
            }
            lane.fill(now);
            while lane.tokens >= 1_000
                && let Some(id) = lane.order.pop_front()
            {
                lane.tokens -= 1_000;
                lane.waiting.remove(&id);
                lane.granted.insert(id.clone());
                due.push(id);
            }
            // Whose bucket is full is as one that was never seen.
            lane.tokens < BURST * 1_000
        });
        due
    }

    /// When there may be somebody due, in milliseconds since 1970.
    pub(super) fn next(&self) -> Option<i64> {
        let waits = |lane: &&Lane| !lane.order.is_empty();
        self.lanes.values().filter(waits).map(|lane| lane.at + 1_000 / PER_SECOND).min()
    }
}

#[cfg(test)]
mod tests {
    use fairlead_api::RouteName;
    use fairlead_api::route::SourceKind;

    use super::*;

    fn id(tenant: &str, number: i64) -> RouteId {
        let name = RouteName::new(SourceKind::Service, "shop", &format!("r{number}")).unwrap();
        RouteId { tenant: tenant.parse().unwrap(), name }
    }

    #[test]
    fn who_changes_much_is_told_of_less_often_and_in_order() {
        let mut pace = Pace::default();
        let allowed = (0..150).filter(|number| pace.allows(&id("loud", *number), 0)).count();
        assert_eq!(allowed, 100);
        assert!(pace.allows(&id("quiet", 0), 0), "another tenant is not concerned");
        assert!(!pace.allows(&id("loud", 120), 0), "it waits already");
        assert_eq!((pace.next(), pace.due(39)), (Some(40), Vec::new()));
        let due = pace.due(1_000);
        assert_eq!(due, (100..125).map(|number| id("loud", number)).collect::<Vec<_>>());
        assert!(!pace.allows(&id("loud", 7), 1_000), "not before those that wait");
        assert!(due.iter().all(|id| pace.allows(id, 1_000)), "those that are due may");
        assert!(!pace.allows(&due[0], 1_000), "and no more than those");
        assert_eq!(pace.due(-60_000), [], "the clock was set back");
        assert_eq!(pace.due(-59_000).len(), 25);
        // Of these nothing was told: others have their turns.
        assert_eq!(pace.due(-59_000).len(), 2);
        assert_eq!(pace.due(i64::from(u32::MAX)), []);
        assert_eq!((pace.next(), pace.lanes.len()), (None, 0), "nothing is kept");
    }
}
