//! How often the zone is asked again, and how often a failure is told.

use std::time::Duration;

use rand::RngExt;
use tracing::{info, warn};
use zonemesh_discovery::zone::ZoneError;

/// The pauses after failures: doubled from the first to the last. A zone that comes
/// back is noticed within half a minute; one that is away is not stormed.
pub(super) const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Pauses that double.
#[derive(Debug, Default)]
pub(super) struct Backoff(Option<Duration>);

impl Backoff {
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.0.map_or(BACKOFF.0, |last| (last * 2).min(BACKOFF.1));
        self.0 = Some(pause);
        jittered(pause)
    }
}

/// Within a fifth of `pause`, so that a thousand nodes do not ask in step.
pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.8..1.2))
}

/// Tells a failure once, and its end.
pub(super) struct Health {
    failed: &'static str,
    mended: &'static str,
    last: Option<String>,
}

impl Health {
    pub(super) fn new(failed: &'static str, mended: &'static str) -> Self {
        Self { failed, mended, last: None }
    }

    pub(super) fn note<T>(&mut self, outcome: &Result<T, ZoneError>) -> Result<(), String> {
        let error = outcome.as_ref().err().map(ToString::to_string);
        match (&error, &self.last) {
            (Some(error), last) if last.as_ref() != Some(error) => {
                warn!("{}: {error}", self.failed);
            }
            (None, Some(_)) => info!("{}", self.mended),
            _ => {}
        }
        self.last.clone_from(&error);
        error.map_or(Ok(()), Err)
    }
}
