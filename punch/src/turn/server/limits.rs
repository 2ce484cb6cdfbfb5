//! How much one may have: rates of bytes, and answers to strangers.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    time::{Duration, Instant},
};

/// How much may be saved up of a rate: a second's worth, so that a rate limit is about
/// the load on the network and not about bursts.
const SAVED: Duration = Duration::from_secs(1);

/// Two of the largest trains of segments: whatever the rate, one passes at once.
const LEAST_SAVED: u64 = 128 << 10;

/// How many sources of strangers' requests are told apart. Those that fall together
/// share an allowance; the memory stays the same whoever asks.
const SOURCES: usize = 4096;

/// A limit on bytes per second (the generic cell rate algorithm of ITU-T I.371).
#[derive(Debug)]
pub(super) struct Bucket {
    /// Bytes per second; `None` is no limit.
    rate: Option<u64>,
    full_at: Instant,
}

impl Bucket {
    pub(super) fn new(rate: Option<u64>, now: Instant) -> Self {
        Self { rate, full_at: now }
    }

    /// Whether this many bytes fit now; [`Bucket::spend`] spends them.
    pub(super) fn has(&self, bytes: u64, now: Instant) -> bool {
        let Some(rate) = self.rate else { return true };
        let saved = SAVED.max(cost(LEAST_SAVED, rate));
        self.full_at.max(now) + cost(bytes, rate) <= now + saved
    }

    /// Spends bytes, whether there are as many or not.
    pub(super) fn spend(&mut self, bytes: u64, now: Instant) {
        if let Some(rate) = self.rate {
            self.full_at = self.full_at.max(now) + cost(bytes, rate);
        }
    }
}

/// How long a rate takes to give this many bytes.
fn cost(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 2))
}

/// How many answers strangers get: each source address a rate, in a table of fixed size.
#[derive(Debug)]
pub(super) struct Strangers {
    /// What nobody else knows, so that nobody can make his requests fall together with
    /// those of another.
    key: [u8; 32],
    interval: Duration,
    saved: Duration,
    full_at: Vec<Option<Instant>>,
}

impl Strangers {
    /// `rate` answers each second, and twice as many saved up.
    pub(super) fn new(key: [u8; 32], rate: u32) -> Self {
        let interval = Duration::from_secs(1) / rate.max(1);
        Self { key, interval, saved: interval * (2 * rate.max(1)), full_at: vec![None; SOURCES] }
    }

    /// Spends one answer to this address, if there is one to spend.
    pub(super) fn take(&mut self, source: IpAddr, now: Instant) -> bool {
        let mut hasher = DefaultHasher::new();
        (self.key, network(source)).hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % SOURCES as u64).unwrap_or_default();
        let full_at = self.full_at[index].unwrap_or(now).max(now);
        if full_at + self.interval > now + self.saved {
            return false;
        }
        self.full_at[index] = Some(full_at + self.interval);
        true
    }
}

/// What counts as one source: an IPv4 address, or the /64 that an IPv6 host can make
/// addresses in as it likes (RFC 8981).
pub(super) fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => {
            let high = u128::from(v6) & (u128::MAX << 64);
            IpAddr::V6(high.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_passes_than_the_rate_and_what_was_saved() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Some(1_000_000), start);
        let mut passed = 0;
        for ms in 0..10_000 {
            let now = start + Duration::from_millis(ms);
            while bucket.has(1_200, now) {
                bucket.spend(1_200, now);
                passed += 1_200;
            }
        }
        assert!((10_900_000..=11_000_000).contains(&passed), "{passed}");
    }

    #[test]
    fn a_slow_rate_lets_a_whole_train_pass_and_then_waits() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Some(1_000), start);
        assert!(bucket.has(65_507, start));
        bucket.spend(65_507, start);
        bucket.spend(65_507, start);
        assert!(!bucket.has(1_200, start));
        assert!(!bucket.has(1_200, start + Duration::from_millis(500)));
        assert!(bucket.has(1_200, start + Duration::from_secs(2)));
        let unlimited = Bucket::new(None, start);
        assert!(unlimited.has(u64::MAX, start));
    }

    #[test]
    fn a_stranger_gets_his_rate_and_another_one_his_own() {
        let start = Instant::now();
        let mut strangers = Strangers::new([7; 32], 10);
        let flood: IpAddr = "192.0.2.1".parse().expect("an address");
        let answered = (0..1000).filter(|_| strangers.take(flood, start)).count();
        assert_eq!(answered, 20);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..1000).filter(|_| strangers.take(flood, later)).count(), 10);
        assert!(strangers.take("192.0.2.2".parse().expect("an address"), start));
        // All addresses of one IPv6 host are one.
        let host = |n: u16| format!("2001:db8::{n:x}").parse().expect("an address");
        assert_eq!((0..1000).filter(|n| strangers.take(host(*n), start)).count(), 20);
    }
}
