//! How good a way is, by the answers to the checks that went over it: the round trip,
//! how much it varies, and how many checks are lost.

use std::time::Duration;

/// How long an answer is waited for, at least and at most: a shorter wait would take
/// jitter for loss, and what takes longer is no path for people.
const WAIT_MIN: Duration = Duration::from_millis(250);
const WAIT_MAX: Duration = Duration::from_secs(3);

/// Loss is an average over about so many checks: at one check a second, of a quarter of
/// a minute.
const LOSS_WINDOW: f64 = 16.0;

/// The round trip is one over so many (RFC 6298 §2).
const RTT_WINDOW: f64 = 8.0;

/// So many checks in a row without an answer end a valid pair, at least and at most.
const MISSES_MIN: u32 = 4;
pub(crate) const MISSES_MAX: u32 = 14;

/// How likely so many misses in a row may be by chance.
const CHANCE: f64 = 3e-5;

/// What is added to the loss that was measured when it is judged what chance may do, and
/// what is added besides while little was measured: bad luck is not to end a path.
const DOUBT: f64 = 0.1;
const FIRST_DOUBT: f64 = 0.2;

/// Less difference in loss than this, over [`LOSS_WINDOW`], is chance.
const LOSS_NOISE: f64 = 0.15;

/// A way must be better by both of these to count as better: a change of path costs
/// reordered packets.
const GAIN: Duration = Duration::from_millis(10);
const GAIN_RATIO: f64 = 0.8;

/// Two round trips as near as either of these are the same.
const TIE: Duration = Duration::from_millis(5);
const TIE_RATIO: f64 = 0.1;

/// What was measured of one way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quality {
    rtt: Duration,
    variation: Duration,
    loss: f64,
    samples: u32,
}

impl Quality {
    /// After the first answer.
    pub(crate) fn new(sample: Duration) -> Self {
        Self { rtt: sample, variation: sample / 2, loss: 0.0, samples: 1 }
    }

    /// Another answer came, after so many checks that got none.
    pub(crate) fn answered(&mut self, sample: Duration, missed: u32) {
        for _ in 0..missed.min(MISSES_MAX) {
            self.note_loss(1.0);
        }
        self.note_loss(0.0);
        self.samples = self.samples.saturating_add(1);
        // A mean at first, an average that forgets later.
        let weight = 1.0 / f64::from(self.samples).min(RTT_WINDOW);
        let mix = |old: Duration, new: Duration, weight: f64| {
            old.mul_f64(1.0 - weight) + new.mul_f64(weight)
        };
        self.variation = mix(self.variation, self.rtt.abs_diff(sample), (2.0 * weight).min(0.5));
        self.rtt = mix(self.rtt, sample, weight);
    }

    fn note_loss(&mut self, lost: f64) {
        let weight = 1.0 / (f64::from(self.samples) + 4.0).min(LOSS_WINDOW);
        self.loss += (lost - self.loss) * weight;
    }

    /// The smoothed round trip.
    pub(crate) fn rtt(&self) -> Duration {
        self.rtt
    }

    /// Which part of the checks got no answer of late, from 0 to 1.
    pub(crate) fn loss(&self) -> f64 {
        self.loss
    }

    /// How long the answer to a check is waited for.
    pub(crate) fn wait(&self) -> Duration {
        (2 * self.rtt).clamp(WAIT_MIN, WAIT_MAX)
    }

    /// After how long the next check goes out, when so many are without an answer. Once
    /// chance gets less likely they follow each other faster than answers could come: each
    /// is a witness of its own. The last one gets all its time.
    pub(crate) fn repeat(&self, unanswered: u32) -> Duration {
        let in_doubt = (3..self.patience()).contains(&unanswered);
        if in_doubt { self.wait() / 2 } else { self.wait() }
    }

    /// How many checks in a row without an answer are no chance any more.
    pub(crate) fn patience(&self) -> u32 {
        let first = FIRST_DOUBT * 2.0 / (f64::from(self.samples) + 1.0);
        let likely = (self.loss + DOUBT + first).min(0.9);
        let misses = (CHANCE.ln() / likely.ln()).ceil();
        (MISSES_MIN..MISSES_MAX).find(|n| f64::from(*n) >= misses).unwrap_or(MISSES_MAX)
    }

    /// Whether this way is notably better than the other.
    pub(crate) fn gains_on(&self, other: &Self) -> bool {
        let (new, old) = self.costs(other);
        let noise = self.variation.max(other.variation).max(GAIN);
        new < old.mul_f64(GAIN_RATIO) && new + noise < old
    }

    /// Whether neither of the two is better.
    pub(crate) fn ties_with(&self, other: &Self) -> bool {
        let (one, two) = self.costs(other);
        let apart = one.abs_diff(two);
        apart <= TIE || apart <= one.max(two).mul_f64(TIE_RATIO)
    }

    /// What the two cost: the round trip over the square of what gets through. A stream
    /// over a way with loss does not only wait, it slows down, and so its loss counts
    /// more than once; but not where chance makes the difference.
    fn costs(&self, other: &Self) -> (Duration, Duration) {
        let differs = (self.loss - other.loss).abs() > LOSS_NOISE;
        let cost = |quality: &Self| {
            let passes = if differs { (1.0 - quality.loss).max(0.1) } else { 1.0 };
            quality.rtt.div_f64(passes * passes)
        };
        (cost(self), cost(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(rtt_ms: u64, loss_every: u32) -> Quality {
        let sample = Duration::from_millis(rtt_ms);
        let mut quality = Quality::new(sample);
        for n in 1..100 {
            quality.answered(sample, u32::from(loss_every > 0 && n % loss_every == 0));
        }
        quality
    }

    #[test]
    fn better_means_by_ten_milliseconds_and_a_fifth() {
        for (new, old, gains) in
            [(70, 100, true), (85, 100, false), (5, 14, false), (5, 16, true), (250, 300, false)]
        {
            assert_eq!(measured(new, 0).gains_on(&measured(old, 0)), gains, "{new} {old}");
            assert!(!measured(old, 0).gains_on(&measured(new, 0)));
        }
    }

    #[test]
    fn a_round_trip_that_varies_must_be_better_by_more_than_that() {
        let mut restless = Quality::new(Duration::from_millis(70));
        for n in 0..100 {
            restless.answered(Duration::from_millis(30 + n % 2 * 80), 0);
        }
        assert!(restless.rtt() < Duration::from_millis(76));
        assert!(!restless.gains_on(&measured(100, 0)));
    }

    #[test]
    fn loss_costs_but_chance_does_not_count() {
        // One of three is lost here, none there.
        assert!(measured(60, 0).gains_on(&measured(60, 2)));
        // One of eleven is within chance.
        assert!(!measured(60, 0).gains_on(&measured(60, 10)));
    }

    #[test]
    fn the_more_is_lost_by_chance_the_more_misses_are_borne() {
        assert_eq!(measured(60, 0).patience(), 5);
        assert!((6..=8).contains(&measured(60, 10).patience()));
        assert_eq!(measured(60, 1).patience(), 14);
        assert!(Quality::new(Duration::from_millis(60)).patience() > 4);
    }

    #[test]
    fn near_round_trips_are_the_same() {
        assert!(measured(20, 0).ties_with(&measured(24, 0)));
        assert!(measured(200, 0).ties_with(&measured(215, 0)));
        assert!(!measured(20, 0).ties_with(&measured(30, 0)));
    }
}
