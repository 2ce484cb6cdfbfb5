//! How much one network may have, in time and without a list of who asks.
//!
//! A [`Meter`] is a table of buckets, and a source's bucket is found by a keyed hash of its
//! network. Sources that fall together share, which with thousands of buckets is rare; and
//! however many sources there are, made up or not, they take no more memory.

use std::{
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

/// How many buckets a meter has: with 1,000 sources one in 16 shares.
const BUCKETS: usize = 1 << 14;

/// So much a second, and so much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that come back each second.
    pub per_second: u32,
    /// Tokens that are there after a rest.
    pub burst: u32,
}

/// What one network (an IPv4 /24, an IPv6 /56) may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Answers by UDP: each counts one, and one more for each 512 bytes.
    pub answers: Rate,
    /// Updates.
    pub updates: Rate,
    /// Transfers of the whole zone.
    pub transfers: Rate,
}

impl Default for Rates {
    /// For a site of some hundred nodes behind one address that all start at a time, and
    /// no more use than that to who wants to flood somebody.
    fn default() -> Self {
        let rate = |per_second, burst| Rate { per_second, burst };
        Self { answers: rate(100, 300), updates: rate(50, 500), transfers: rate(10, 300) }
    }
}

/// What becomes of an answer by UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes.
    Whole,
    /// Only its question goes, with the word to ask over TCP, where nobody can pretend to be
    /// somebody else.
    Cut,
    /// It stays.
    Nothing,
}

/// The buckets for one kind of thing.
#[derive(Debug)]
pub(super) struct Meter {
    rate: Rate,
    start: Instant,
    hasher: RandomState,
    buckets: Box<[Bucket]>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Thousandths of a token; below zero what was promised already.
    tokens: i64,
    /// When that was so, in milliseconds since the meter's start.
    at: u64,
    /// How often something was denied.
    denied: u32,
}

impl Meter {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        let full = Bucket { tokens: i64::from(rate.burst) * 1000, at: 0, denied: 0 };
        let buckets = vec![full; BUCKETS].into_boxed_slice();
        Self { rate, start: now, hasher: RandomState::new(), buckets }
    }

    /// Takes so many tokens, if they are there.
    pub(super) fn take(&mut self, source: IpAddr, tokens: u32, now: Instant) -> bool {
        let bucket = self.bucket(source, now);
        let enough = bucket.tokens >= i64::from(tokens) * 1000;
        if enough {
            bucket.tokens -= i64::from(tokens) * 1000;
        } else {
            bucket.denied = bucket.denied.wrapping_add(1);
        }
        enough
    }

    /// Takes a token, or promises it: how long that is to be waited for. `None` where it
    /// would take longer than `patience`.
    pub(super) fn reserve(
        &mut self,
        source: IpAddr,
        patience: Duration,
        now: Instant,
    ) -> Option<Duration> {
        let per_second = u64::from(self.rate.per_second.max(1));
        let bucket = self.bucket(source, now);
        let missing = u64::try_from(1000 - bucket.tokens).unwrap_or_default();
        // Thousandths of a token, so many of them each millisecond.
        let wait = Duration::from_millis(missing.div_ceil(per_second));
        if wait > patience {
            return None;
        }
        bucket.tokens -= 1000;
        Some(wait)
    }

    /// Whether an answer of so many bytes goes to a source that anybody may have made up.
    /// Of those that do not, every second goes cut: one that is real asks again soon.
    pub(super) fn judge(&mut self, source: IpAddr, bytes: usize, now: Instant) -> Verdict {
        let tokens = 1 + bytes / 512;
        if self.take(source, u32::try_from(tokens).unwrap_or(u32::MAX), now) {
            return Verdict::Whole;
        }
        let denied = self.bucket(source, now).denied;
        if denied.is_multiple_of(2) { Verdict::Cut } else { Verdict::Nothing }
    }

    fn bucket(&mut self, source: IpAddr, now: Instant) -> &mut Bucket {
        let hash = self.hasher.hash_one(network(source));
        let now = now.saturating_duration_since(self.start).as_millis();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        let Rate { per_second, burst } = self.rate;
        let number = usize::try_from(hash % self.buckets.len() as u64).unwrap_or_default();
        let bucket = &mut self.buckets[number];
        let passed = i64::try_from(now.saturating_sub(bucket.at)).unwrap_or(i64::MAX);
        let fresh = passed.saturating_mul(i64::from(per_second));
        bucket.tokens = bucket.tokens.saturating_add(fresh).min(i64::from(burst) * 1000);
        bucket.at = bucket.at.max(now);
        bucket
    }
}

/// The network that a source counts by: who floods somebody by made-up addresses takes many
/// of one network (as BIND's response rate limiting has it).
fn network(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            Ipv4Addr::new(a, b, c, 0).into()
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => network(v4.into()),
            None => Ipv6Addr::from_bits(v6.to_bits() & !(u128::MAX >> 56)).into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_gets_its_rate_and_others_are_not_touched_by_it() {
        let start = Instant::now();
        let mut meter = Meter::new(Rate { per_second: 10, burst: 20 }, start);
        let victim = |last| IpAddr::from([192, 0, 2, last]);
        // A second of flood, by all addresses of one network.
        let mut sent = (0, 0, 0);
        for number in 0..1000u64 {
            let now = start + Duration::from_millis(number);
            match meter.judge(victim((number % 256) as u8), 100, now) {
                Verdict::Whole => sent.0 += 1,
                Verdict::Cut => sent.1 += 1,
                Verdict::Nothing => sent.2 += 1,
            }
        }
        assert!((29..=31).contains(&sent.0), "{sent:?}");
        assert!(sent.1 + 2 >= sent.2 && sent.2 + 2 >= sent.1, "{sent:?}");
        let now = start + Duration::from_secs(1);
        assert_eq!(meter.judge([198, 51, 100, 7].into(), 100, now), Verdict::Whole);
        // Large answers count for more.
        let other = [203, 0, 113, 7].into();
        let large = (0..20).filter(|_| meter.judge(other, 1232, now) == Verdict::Whole).count();
        assert_eq!(large, 6);
    }

    #[test]
    fn a_token_that_is_not_there_yet_is_promised() {
        let start = Instant::now();
        let mut meter = Meter::new(Rate { per_second: 10, burst: 2 }, start);
        let source = [192, 0, 2, 1].into();
        let mut reserve = |now| meter.reserve(source, Duration::from_millis(250), now);
        let ms = Duration::from_millis;
        assert_eq!(reserve(start), Some(ms(0)));
        assert_eq!(reserve(start), Some(ms(0)));
        assert_eq!(reserve(start), Some(ms(100)));
        assert_eq!(reserve(start), Some(ms(200)));
        assert_eq!(reserve(start), None);
        assert_eq!(reserve(start + ms(100)), Some(ms(200)));
    }

    #[test]
    fn a_site_is_one_network() {
        let same = |a: &str, b: &str| {
            let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
            network(ip(a)) == network(ip(b))
        };
        assert!(same("192.0.2.1", "192.0.2.254"));
        assert!(!same("192.0.2.1", "192.0.3.1"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.9"));
        assert!(same("2001:db8:0:ff01::1", "2001:db8:0:ffff::2"));
        assert!(!same("2001:db8:0:ff01::1", "2001:db8:0:fe01::1"));
    }
}
