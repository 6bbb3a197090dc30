//! The hub's time, by which certificates are judged: a node whose clock is days off, or jumps, still speaks to the hub.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

use crate::locks::lock;

/// For how long it counts what was told: the hub tells its time at least once an hour. A node that slept, whose `Instant`
/// stood still meanwhile, is right again after this.
const COUNTS: Duration = Duration::from_secs(2 * 3_600);

/// The time as somebody who is trusted told it last, and this process' own before and long after that.
#[derive(Debug, Default)]
pub struct Clock {
    /// Seconds since 1970, and when that was told.
    told: Mutex<Option<(i64, Instant)>>,
}

impl Clock {
    /// Somebody who is trusted says that it is now so many seconds since 1970.
    pub fn follow(&self, time: i64) {
        *lock(&self.told) = Some((time, Instant::now()));
    }

    /// Seconds since 1970.
    pub fn now(&self) -> i64 {
        match *lock(&self.told) {
            Some((time, at)) if at.elapsed() < COUNTS => time.saturating_add(seconds(at.elapsed())),
            _ => own(),
        }
    }
}

fn own() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, seconds)
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.now()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_by_its_own_until_it_was_told() {
        let (clock, now) = (Clock::default(), own());
        assert!((now..now + 5).contains(&clock.now()));
        let told = now + 2 * 86_400;
        clock.follow(told);
        assert!((told..told + 5).contains(&clock.now()));
        let judged_by = clock.current_time().unwrap().as_secs();
        assert!(judged_by >= u64::try_from(told).unwrap());
    }
}
