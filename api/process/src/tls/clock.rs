//! The hub's time, by which certificates are judged: a node whose clock is days off still speaks to the hub.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// This process' clock, put right by what somebody who is trusted says the time is.
#[derive(Debug, Default)]
pub struct Clock {
    /// How far the one who is trusted is ahead, in seconds.
    ahead: AtomicI64,
}

impl Clock {
    /// Somebody who is trusted says that it is now so many seconds since 1970.
    pub fn follow(&self, time: i64) {
        self.ahead.store(time.saturating_sub(own()), Ordering::Relaxed);
    }

    /// Seconds since 1970.
    pub fn now(&self) -> i64 {
        own().saturating_add(self.ahead.load(Ordering::Relaxed))
    }
}

fn own() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.now()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}
