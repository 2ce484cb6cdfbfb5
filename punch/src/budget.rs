//! How many datagrams may go out: a rate and a burst.

use std::time::{Duration, Instant};

/// A budget of one datagram each `interval`, of which up to `burst` may be saved up
/// (the generic cell rate algorithm of ITU-T I.371).
#[derive(Debug)]
pub(crate) struct Budget {
    interval: Duration,
    saved: Duration,
    full_at: Instant,
}

impl Budget {
    pub(crate) fn new(interval: Duration, burst: u32, now: Instant) -> Self {
        Self { interval, saved: interval * burst, full_at: now }
    }

    /// Spends one datagram, if there is one to spend.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let free = self.free_at() <= now;
        if free {
            self.full_at = self.full_at.max(now) + self.interval;
        }
        free
    }

    /// When there is one to spend.
    pub(crate) fn free_at(&self) -> Instant {
        let earliest = self.full_at + self.interval;
        earliest.checked_sub(self.saved).unwrap_or(earliest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_then_one_each_interval() {
        let now = Instant::now() + Duration::from_secs(60);
        let interval = Duration::from_millis(50);
        let mut budget = Budget::new(interval, 8, now);
        assert!((0..8).all(|_| budget.take(now)));
        assert!(!budget.take(now));
        assert_eq!(budget.free_at(), now + interval);
        assert!(budget.take(now + interval));
        assert!(!budget.take(now + interval));
        // A long rest saves up no more than the burst.
        let later = now + Duration::from_secs(60);
        assert_eq!((0..100).filter(|_| budget.take(later)).count(), 8);
    }
}
