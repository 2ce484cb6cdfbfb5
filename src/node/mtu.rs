//! The interface's MTU, which follows the paths.
//!
//! What one peer's path cannot carry whole would be fragmented on its way, or be lost
//! where somebody drops fragments. So the interface takes what the narrowest path of all
//! carries, at once when it becomes narrower, and after a while when it becomes wider: a
//! path that comes and goes must not have every connection's segments change in size.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::Node;

/// What is set before any path was measured, and at most: 1,500 less IPv6 (40), UDP (8)
/// and WireGuard (32), as every WireGuard has it.
pub(super) const DEFAULT: u16 = 1420;

/// What IPv6 demands of every link (RFC 8200 §5); a path that carries less has its packets
/// fragmented.
const LEAST: u16 = 1280;

/// How long all paths have to be wider before the MTU rises.
const RISE_AFTER: Duration = Duration::from_secs(60);

/// The MTU as it is set.
#[derive(Debug)]
pub(super) struct Mtu {
    set: u16,
    /// Since when all paths carry more.
    wider_since: Option<Instant>,
    /// It is set, and the interface has to be told.
    is_news: bool,
}

impl Mtu {
    pub(super) fn new(set: u16) -> Self {
        Self { set, wider_since: None, is_news: false }
    }

    /// Takes the most that a packet in the tunnel may have on the narrowest path, if any was
    /// measured. To be called some times a second.
    pub(super) fn follow(&mut self, narrowest: Option<u16>, now: Instant) {
        let wanted = narrowest.unwrap_or(DEFAULT).clamp(LEAST, DEFAULT);
        if wanted <= self.set {
            self.wider_since = None;
        }
        let is_due = wanted < self.set
            || (wanted > self.set
                && now.saturating_duration_since(*self.wider_since.get_or_insert(now))
                    >= RISE_AFTER);
        if is_due {
            *self = Self { is_news: true, ..Self::new(wanted) };
        }
    }
}

impl Node {
    /// Sets what the paths carry, where that changed.
    pub(super) async fn apply_mtu(&mut self) {
        if !std::mem::take(&mut self.mtu.is_news) {
            return;
        }
        let mtu = self.mtu.set;
        match self.applier.set_mtu(mtu).await {
            Ok(()) => info!(mtu, "the interface follows the narrowest path"),
            Err(error) => warn!("{error}"),
        }
        self.data.set_mtu(mtu);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_at_once_and_rises_when_that_lasts() {
        let start = Instant::now();
        let after = |s| start + Duration::from_secs(s);
        let mut mtu = Mtu::new(DEFAULT);
        let mut follow = |narrowest, now| {
            mtu.follow(narrowest, now);
            std::mem::take(&mut mtu.is_news).then_some(mtu.set)
        };
        assert_eq!(follow(None, start), None);
        assert_eq!(follow(Some(1500), start), None, "never above what all take");
        assert_eq!(follow(Some(1340), after(1)), Some(1340));
        assert_eq!(follow(Some(1340), after(2)), None);
        assert_eq!(follow(Some(1400), after(3)), None, "not yet");
        assert_eq!(follow(Some(1340), after(50)), None);
        assert_eq!(follow(None, after(60)), None, "from the beginning");
        assert_eq!(follow(None, after(119)), None);
        assert_eq!(follow(None, after(120)), Some(DEFAULT));
        assert_eq!(follow(Some(600), after(121)), Some(LEAST), "what IPv6 demands");
    }
}
