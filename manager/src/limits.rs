//! How often something may happen, per address and per tenant.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

/// A bucket of so many tokens, refilled steadily.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    tokens: f64,
    at: Instant,
}

/// How large buckets are, and how fast they fill.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rate {
    pub(crate) burst: f64,
    pub(crate) per_second: f64,
}

impl Bucket {
    pub(crate) fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst, at: now }
    }

    fn fill(&mut self, rate: Rate, now: Instant) {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * rate.per_second;
        self.tokens = (self.tokens + earned).min(rate.burst);
        self.at = now;
    }

    /// Takes a token, if there is one.
    fn take(&mut self, rate: Rate, now: Instant) {
        if !self.is_empty(rate, now) {
            self.tokens -= 1.0;
        }
    }

    /// Takes so much even if there is less, but never more than a burst.
    pub(crate) fn spend(&mut self, rate: Rate, tokens: f64, now: Instant) {
        self.fill(rate, now);
        self.tokens = (self.tokens - tokens).max(-rate.burst);
    }

    /// How much there is; less than nothing where more was taken.
    pub(crate) fn left(&mut self, rate: Rate, now: Instant) -> f64 {
        self.fill(rate, now);
        self.tokens
    }

    fn is_empty(&mut self, rate: Rate, now: Instant) -> bool {
        self.fill(rate, now);
        self.tokens < 1.0
    }
}

/// Addresses that are remembered. One more, and those that did nothing of late are forgotten.
const ADDRESSES: usize = 4_096;

/// Refusals by address. Whoever was refused too often is not even listened to for a while; who is never
/// refused may come as often as it likes.
#[derive(Debug)]
pub(crate) struct Refusals {
    rate: Rate,
    all: HashMap<IpAddr, Bucket>,
}

impl Refusals {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, all: HashMap::new() }
    }

    /// Whether this address has been refused too often.
    pub(crate) fn too_many(&mut self, address: IpAddr, now: Instant) -> bool {
        let rate = self.rate;
        self.all.get_mut(&network(address)).is_some_and(|bucket| bucket.is_empty(rate, now))
    }

    /// An address was refused.
    pub(crate) fn note(&mut self, address: IpAddr, now: Instant) {
        let rate = self.rate;
        if self.all.len() >= ADDRESSES {
            self.all.retain(|_, bucket| {
                bucket.fill(rate, now);
                bucket.tokens < rate.burst
            });
        }
        if self.all.len() >= ADDRESSES {
            // As many attackers: all are forgiven, and nothing grows.
            self.all.clear();
        }
        let bucket = self.all.entry(network(address)).or_insert_with(|| Bucket::full(rate, now));
        bucket.take(rate, now);
    }
}

/// Who has an IPv6 address has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            [a, b, c, d, 0, 0, 0, 0].into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const RATE: Rate = Rate { burst: 3.0, per_second: 0.5 };

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::full(RATE, start);
        for _ in 0..3 {
            assert!(!bucket.is_empty(RATE, start));
            bucket.take(RATE, start);
        }
        assert!(bucket.is_empty(RATE, start + Duration::from_millis(1_999)));
        let later = start + Duration::from_secs(2);
        assert!(!bucket.is_empty(RATE, later));
        bucket.take(RATE, later);
        assert!(bucket.is_empty(RATE, later));
    }

    #[test]
    fn who_is_refused_too_often_has_to_wait_and_others_do_not() {
        let (now, mut refusals) = (Instant::now(), Refusals::new(RATE));
        let (bad, same, good): (IpAddr, IpAddr, IpAddr) = (
            "2001:db8::1".parse().unwrap(),
            "2001:db8::2".parse().unwrap(),
            "10.0.0.1".parse().unwrap(),
        );
        for _ in 0..3 {
            assert!(!refusals.too_many(bad, now));
            refusals.note(bad, now);
        }
        assert!(refusals.too_many(bad, now) && refusals.too_many(same, now));
        assert!(!refusals.too_many(good, now));
        assert!(!refusals.too_many(bad, now + Duration::from_secs(2)));
    }

    #[test]
    fn it_does_not_grow() {
        let (now, mut refusals) = (Instant::now(), Refusals::new(RATE));
        for number in 0..20_000_u32 {
            refusals.note(IpAddr::from(number.to_be_bytes()), now);
        }
        assert!(refusals.all.len() <= ADDRESSES);
    }
}
