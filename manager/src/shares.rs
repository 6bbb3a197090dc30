//! Whose turn it is to write to the hub. What all tenants share is its apiserver: each write of one makes the others'
//! slower once it is busy, and so does all that follows from it, in the manager and in Envoys.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fairlead_api::TenantId;
use fairlead_process::locks::lock;

use crate::limits::{Bucket, Rate};

/// For so many seconds a tenant's writes may take longer than usual, in all, and for how many more each second. Who
/// changes something now and then does not come near, and where nothing is much slower than usual nobody does. Where
/// each write takes 7 ms longer it is 35 changes a second.
const DELAY: Rate = Rate { burst: 1.0, per_second: 0.25 };
/// What one write counts at most, in seconds: an apiserver that hangs is nobody's doing.
const MOST: f64 = 0.25;
/// Nobody waits for others that changed nothing for so long.
const ALONE: Duration = Duration::from_secs(60);
/// What is usual is the shortest time of the last one or two of these. An apiserver that is slow but not busy, because
/// its disk is, slows nobody's turn.
const WINDOW: Duration = Duration::from_secs(30);

/// What each tenant's writes took.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    all: Mutex<All>,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// A Route that was there.
    Route,
    /// A Route that was not.
    NewRoute,
    /// Anything else, or nothing: it was refused, or failed.
    Other,
    /// A Route, of which nobody saw the end.
    Unknown,
}

#[derive(Debug, Default)]
struct All {
    buckets: HashMap<TenantId, Bucket>,
    /// Who wrote last, and when.
    last: Option<(TenantId, Instant)>,
    /// When somebody else did.
    other: Option<Instant>,
    usual: Usual,
    usual_of_new: Usual,
    /// What the last one took of which somebody saw the end.
    latest: Duration,
}

impl Shares {
    /// A tenant's write ended, and so long it took.
    pub(crate) fn spent(&self, tenant: &TenantId, what: Written, took: Duration, now: Instant) {
        let mut all = lock(&self.all);
        match all.last.take() {
            Some((last, at)) if last != *tenant => all.other = Some(at),
            _ => {}
        }
        all.last = Some((tenant.clone(), now));
        // Only like is compared with like: what is not there is deleted in no time.
        let delay = match what {
            Written::Route => took.saturating_sub(all.usual.note(took, now)),
            Written::NewRoute => took.saturating_sub(all.usual_of_new.note(took, now)),
            Written::Other => return,
            // Whole, as long as they take now: who ends its stream after each write shall not be better off.
            Written::Unknown => took.max(all.latest),
        };
        if what != Written::Unknown {
            all.latest = took;
        }
        let delay = delay.as_secs_f64().min(MOST);
        let bucket = all.buckets.entry(tenant.clone());
        bucket.or_insert_with(|| Bucket::full(DELAY, now)).spend(DELAY, delay, now);
    }

    /// A tenant is gone.
    pub(crate) fn forget(&self, tenant: &TenantId) {
        lock(&self.all).buckets.remove(tenant);
    }

    /// Whether a tenant may write now.
    pub(crate) fn turn(&self, tenant: &TenantId, now: Instant) -> Turn {
        let mut all = lock(&self.all);
        let other = match &all.last {
            Some((last, at)) if last != tenant => Some(*at),
            _ => all.other,
        };
        let is_alone = other.is_none_or(|at| now.saturating_duration_since(at) > ALONE);
        let bucket = all.buckets.get_mut(tenant).filter(|_| !is_alone);
        match bucket.map(|bucket| bucket.left(DELAY, now)) {
            Some(left) if left < 0.0 => {
                Turn::After(Duration::from_secs_f64(-left / DELAY.per_second))
            }
            Some(left) if left < DELAY.burst / 2.0 => Turn::OneAtATime,
            _ => Turn::Now,
        }
    }
}

/// Whether a tenant may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Now,
    /// Once it has no other write under way: of several at once each waits for the others, and all that would count.
    OneAtATime,
    /// Not for so long.
    After(Duration),
}

/// A write, which counts however it ends: also when nobody waits for it any more.
#[derive(Debug)]
pub(crate) struct Write {
    shares: Arc<Shares>,
    tenant: TenantId,
    start: Instant,
    what: Written,
}

impl Write {
    /// It begins. `is_route`: it is a Route that is written.
    pub(crate) fn begin(shares: Arc<Shares>, tenant: TenantId, is_route: bool) -> Self {
        let what = if is_route { Written::Unknown } else { Written::Other };
        Self { shares, tenant, start: Instant::now(), what }
    }

    /// It ended; when it had begun comes back.
    pub(crate) fn end(mut self, what: Written) -> Instant {
        self.what = what;
        self.start
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        self.shares.spent(&self.tenant, self.what, self.start.elapsed(), Instant::now());
    }
}

/// How long a write takes when nothing is in its way.
#[derive(Debug, Default)]
struct Usual {
    /// The shortest of this window, and when that began.
    current: Option<(Duration, Instant)>,
    /// The shortest of the one before.
    before: Option<Duration>,
}

impl Usual {
    /// What is usual, with this one.
    fn note(&mut self, took: Duration, now: Instant) -> Duration {
        let (shortest, since) = match self.current {
            Some((shortest, since)) if now.saturating_duration_since(since) < WINDOW => {
                (shortest.min(took), since)
            }
            ended => {
                self.before = ended.map(|(shortest, _)| shortest);
                (took, now)
            }
        };
        self.current = Some((shortest, since));
        self.before.map_or(shortest, |before| before.min(shortest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Duration = Duration::from_millis(4);

    fn tenants() -> (TenantId, TenantId) {
        ("loud".parse().unwrap(), "quiet".parse().unwrap())
    }

    /// So many writes, one after another; how many there were before it was another's turn.
    fn flood(shares: &Shares, tenant: &TenantId, took: Duration, now: &mut Instant) -> usize {
        let may = |now: &mut Instant| {
            *now += took;
            shares.spent(tenant, Written::Route, took, *now);
            !matches!(shares.turn(tenant, *now), Turn::After(_))
        };
        (0..1_000).take_while(|_| may(now)).count()
    }

    #[test]
    fn who_makes_all_slow_waits_while_others_want_something_too() {
        let (shares, (loud, quiet), mut now) = (Shares::default(), tenants(), Instant::now());
        shares.spent(&quiet, Written::Route, USUAL, now);
        let slow = Duration::from_millis(14);
        let many = flood(&shares, &loud, slow, &mut now);
        assert!((130..170).contains(&many), "{many}");
        let Turn::After(turn) = shares.turn(&loud, now) else { panic!("it waits") };
        assert!(turn < Duration::from_millis(100), "{turn:?}");
        let then = now + turn + Duration::from_millis(1);
        assert_eq!(shares.turn(&loud, then), Turn::OneAtATime);
        assert_eq!(shares.turn(&loud, then + Duration::from_secs(2)), Turn::Now);
        shares.spent(&quiet, Written::Route, slow, now);
        assert_eq!(shares.turn(&quiet, now), Turn::Now, "it may at any time");
    }

    #[test]
    fn nobody_waits_where_nothing_is_slow_or_nobody_else_is_there() {
        let (shares, (loud, quiet), mut now) = (Shares::default(), tenants(), Instant::now());
        shares.spent(&quiet, Written::Route, USUAL, now);
        assert_eq!(flood(&shares, &loud, USUAL, &mut now), 1_000);
        now += ALONE + Duration::from_secs(1);
        assert_eq!(flood(&shares, &loud, USUAL * 4, &mut now), 1_000);
        // Its disk became slow: after a while that is usual.
        now += WINDOW;
        shares.spent(&loud, Written::Route, USUAL * 20, now);
        now += WINDOW;
        shares.spent(&quiet, Written::Route, USUAL * 20, now);
        now += Duration::from_secs(10);
        assert_eq!(flood(&shares, &loud, USUAL * 20, &mut now), 1_000);
    }

    #[test]
    fn who_writes_once_does_not_wait_whatever_it_took() {
        let (shares, (loud, quiet), now) = (Shares::default(), tenants(), Instant::now());
        shares.spent(&loud, Written::Route, USUAL, now);
        shares.spent(&quiet, Written::Route, Duration::from_secs(15), now);
        assert_eq!(shares.turn(&quiet, now), Turn::Now);
    }

    #[test]
    fn who_ends_its_stream_after_each_write_is_no_better_off() {
        let (shares, (loud, quiet), mut now) = (Shares::default(), tenants(), Instant::now());
        shares.spent(&quiet, Written::Route, USUAL, now);
        shares.spent(&quiet, Written::Route, USUAL * 10, now);
        let may = |now: &mut Instant| {
            *now += Duration::from_millis(1);
            shares.spent(&loud, Written::Unknown, Duration::from_millis(1), *now);
            !matches!(shares.turn(&loud, *now), Turn::After(_))
        };
        let many = (0..1_000).take_while(|_| may(&mut now)).count();
        assert!((20..30).contains(&many), "{many}");
    }

    #[test]
    fn a_write_that_nobody_waits_for_counts() {
        let (shares, (loud, quiet)) = (Arc::new(Shares::default()), tenants());
        let begin = |is_route| Write::begin(shares.clone(), loud.clone(), is_route);
        let waits = || matches!(shares.turn(&loud, Instant::now()), Turn::After(_));
        for _ in 0..3 {
            begin(true).end(Written::Other);
            drop(begin(false));
        }
        shares.spent(&quiet, Written::Route, Duration::from_secs(1), Instant::now());
        assert!(!waits());
        (0..5).for_each(|_| drop(begin(true)));
        shares.spent(&quiet, Written::Other, USUAL, Instant::now());
        assert!(waits());
        shares.forget(&loud);
        assert!(!waits());
    }

    #[test]
    fn what_fails_at_once_makes_nothing_else_look_slow() {
        let (shares, (loud, quiet), mut now) = (Shares::default(), tenants(), Instant::now());
        shares.spent(&quiet, Written::Other, Duration::ZERO, now);
        shares.spent(&quiet, Written::NewRoute, USUAL / 4, now);
        assert_eq!(flood(&shares, &loud, USUAL, &mut now), 1_000);
    }
}
