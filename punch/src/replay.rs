//! Old requests told from new ones, without trust in anybody's wall clock.
//!
//! A check's integrity says who made it, not when: somebody who looks on may send it
//! again, from another address. So a request carries its sender's clock, and each is
//! taken once, within [`WINDOW`] of what the peer's clock shows *now*. What it shows
//! is known from the peer's answers: an answer carries the clock too, and it echoes
//! the random transaction of a check of our own, so it cannot be an old one. The two
//! nodes' clocks need not agree; the difference between them is what is learned.
//!
//! Until the first answer the requests themselves move the reference, and only
//! forwards. A peer whose clock stepped (a restart of a machine without a clock
//! battery, a suspension) sends requests that look stale: those get no answer, but
//! the agent sends one check to where they came from, once a second at most, and the
//! answer to that check puts the reference right.
//!
//! What remains open: after a step back by more than the window, requests that were
//! recorded before the step can be sent again, once each, when the clock passes
//! their time again. All they gain is an answer and a check to the address they
//! come from: a path is never made from a request alone.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::check::Request;

/// How far a request's clock may stand from the peer's: reordering and queues in a
/// network stay well below, and the requests seen within it are few.
const WINDOW: Duration = Duration::from_secs(30);

/// The most requests remembered: more than the peer's pacing lets it send in two
/// windows, about 20 a second.
const MAX_SEEN: usize = 1500;

/// What is known of one peer's clock, and its requests of late.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    reference: Option<Reference>,
    /// Nothing of before is taken.
    floor_ms: u64,
    seen: BTreeSet<(u64, [u8; 12])>,
}

#[derive(Debug)]
struct Reference {
    clock_ms: u64,
    at: Instant,
    /// An answer told it, not just a request.
    proven: bool,
}

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Old {
    /// It was here before.
    Seen,
    /// The peer's clock shows another time, as far as is known.
    Stale,
}

impl Replay {
    /// Takes a verified request, once.
    pub(crate) fn admit(&mut self, request: &Request, now: Instant) -> Result<(), Old> {
        let window_ms = millis(WINDOW);
        let clock_ms = request.clock_ms;
        let shown = self.reference.as_ref().map(|reference| reference.shown(now));
        let ahead = shown.is_none_or(|shown| clock_ms > shown.saturating_add(window_ms));
        if ahead {
            if self.reference.as_ref().is_some_and(|reference| reference.proven) {
                return Err(Old::Stale);
            }
            self.reference = Some(Reference { clock_ms, at: now, proven: false });
        }
        let oldest = shown.map_or(0, |shown| shown.saturating_sub(window_ms)).max(self.floor_ms);
        if clock_ms < oldest {
            return Err(Old::Stale);
        }
        if !self.seen.insert((clock_ms, request.id)) {
            return Err(Old::Seen);
        }
        self.seen = self.seen.split_off(&(oldest, [0; 12]));
        if self.seen.len() > MAX_SEEN
            && let Some((forgotten_ms, _)) = self.seen.pop_first()
        {
            self.floor_ms = forgotten_ms.saturating_add(1);
        }
        Ok(())
    }

    /// Learns the peer's clock from a verified answer to a check of our own; tells
    /// whether it has stepped, so that times of before mean nothing any more.
    pub(crate) fn learn(&mut self, clock_ms: u64, now: Instant) -> bool {
        let shown = self.reference.as_ref().map(|reference| reference.shown(now));
        let stepped = shown.is_some_and(|shown| shown.abs_diff(clock_ms) > millis(WINDOW));
        if stepped {
            // Another timeline begins: nothing from before this answer counts in it.
            self.seen.clear();
            self.floor_ms = clock_ms;
        }
        self.reference = Some(Reference { clock_ms, at: now, proven: true });
        stepped
    }
}

impl Reference {
    fn shown(&self, now: Instant) -> u64 {
        self.clock_ms.saturating_add(millis(now.saturating_duration_since(self.at)))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn request(clock_s: u64, id: u8) -> Request {
        Request {
            id: [id; 12],
            clock_ms: clock_s * 1000,
            priority: 0,
            nominate: false,
            receipt: crate::check::Receipt::default(),
            plan: None,
        }
    }

    #[test]
    fn a_request_is_taken_once_and_in_any_order() {
        let (mut replay, now) = (Replay::default(), Instant::now());
        for (clock_s, id) in [(1000, 1), (1002, 2), (1001, 3), (1001, 4)] {
            assert_eq!(replay.admit(&request(clock_s, id), now), Ok(()));
            assert_eq!(replay.admit(&request(clock_s, id), now), Err(Old::Seen));
        }
    }

    #[test]
    fn a_request_that_waited_too_long_is_stale() {
        let (mut replay, now) = (Replay::default(), Instant::now());
        replay.learn(1_000_000, now);
        assert_eq!(replay.admit(&request(1000, 1), now + 29 * SECOND), Ok(()));
        assert_eq!(replay.admit(&request(1000, 2), now + 31 * SECOND), Err(Old::Stale));
        // Not even when it has been forgotten that it was seen.
        assert_eq!(replay.admit(&request(1000, 1), now + 31 * SECOND), Err(Old::Stale));
    }

    #[test]
    fn a_peers_clock_may_stand_anywhere_and_an_answer_proves_it() {
        for clock_s in [0, 1, 1_800_000_000, u64::MAX / 1000] {
            let (mut replay, now) = (Replay::default(), Instant::now());
            assert_eq!(replay.admit(&request(clock_s, 1), now), Ok(()));
            replay.learn(clock_s * 1000, now);
            assert_eq!(replay.admit(&request(clock_s, 2), now), Ok(()));
        }
    }

    #[test]
    fn a_clock_that_stepped_heals_with_the_next_answer() {
        for (before_s, after_s) in [(50_000, 1000), (1000, 50_000)] {
            let (mut replay, now) = (Replay::default(), Instant::now());
            replay.learn(before_s * 1000, now);
            assert_eq!(replay.admit(&request(before_s, 1), now), Ok(()));
            assert_eq!(replay.admit(&request(after_s, 2), now), Err(Old::Stale));
            replay.learn(after_s * 1000, now);
            assert_eq!(replay.admit(&request(after_s, 3), now), Ok(()));
            assert_eq!(replay.admit(&request(before_s, 4), now), Err(Old::Stale));
        }
    }

    #[test]
    fn before_the_first_answer_an_old_record_cannot_lock_the_peer_out() {
        let (mut replay, now) = (Replay::default(), Instant::now());
        assert_eq!(replay.admit(&request(1000, 1), now), Ok(()));
        assert_eq!(replay.admit(&request(90_000, 2), now), Ok(()));
        assert_eq!(replay.admit(&request(1000, 3), now), Err(Old::Stale));
    }

    #[test]
    fn a_flood_is_remembered_within_bounds_and_nothing_of_it_twice() {
        let (mut replay, now) = (Replay::default(), Instant::now());
        let flood = |n: u32| {
            let mut request = request(1000, 0);
            request.clock_ms += u64::from(n / 8);
            request.id[..4].copy_from_slice(&n.to_be_bytes());
            request
        };
        for n in 0..20_000 {
            // Of one millisecond that is half forgotten, the rest is refused as well.
            let _ = replay.admit(&flood(n), now);
            assert!(replay.seen.len() <= MAX_SEEN);
        }
        for n in 0..20_000 {
            assert!(replay.admit(&flood(n), now).is_err());
        }
    }
}
