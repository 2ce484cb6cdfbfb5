//! The largest packet that passes whole.
//!
//! Checks padded to the size of an IP packet go out unfragmentable; what is answered has
//! passed. That needs no ICMP, which many networks lose. A lost one says nothing of the
//! path, only of the size, and is tried again before it does so. The largest size comes
//! first, for most ways pass it; if it does not pass, the rest is halved.
//!
//! Only the selected pair is measured, when it has been for a moment, and again after
//! ten minutes of use or when packets of that size are lost.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{Agent, checks::What};
use crate::route::Route;

/// The sizes that links have, in bytes of the IP packet: IPv6's least (RFC 8200 §5),
/// several tunnels, LTE, tunnels in IPv4, PPPoE (RFC 2516 §7), Ethernet.
const SIZES: [u16; 8] = [1280, 1380, 1400, 1420, 1460, 1480, 1492, 1500];

/// So long must a path have been selected.
const SETTLED: Duration = Duration::from_secs(1);

/// So often is a size tried: at a loss of a fifth each way, all tries of a size that
/// passes get lost once in twenty; what is found then is too small, and nothing breaks.
const TRIES: u32 = 3;

/// When a path in use is measured again (RFC 8899 §5.1.1's PMTU_RAISE_TIMER).
const AGAIN: Duration = Duration::from_secs(600);

/// Bytes of the IP and UDP headers.
pub(super) fn headers(remote: &SocketAddr) -> u16 {
    if remote.is_ipv4() { 20 + 8 } else { 40 + 8 }
}

/// The search on the selected pair.
#[derive(Debug, Default)]
pub(super) struct MtuSearch {
    route: Option<Route>,
    /// How many of [`SIZES`] are known to pass, and of which it is open.
    passing: usize,
    open: usize,
    /// Which is tried, and how often it was.
    size: usize,
    tries: u32,
    due: Option<Instant>,
    done_at: Option<Instant>,
}

impl MtuSearch {
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Begins anew, if there is a path; the next one is measured in any case.
    pub(super) fn restart(&mut self, now: Instant) {
        self.passing = 0;
        self.open = SIZES.len();
        self.size = SIZES.len() - 1;
        self.tries = 0;
        self.due = self.route.map(|_| now);
        self.done_at = None;
    }

    /// The path is in use: measures again if that was long ago.
    pub(super) fn renew(&mut self, now: Instant) {
        if self.done_at.is_some_and(|at| now >= at + AGAIN) {
            self.restart(now);
        }
    }

    /// Goes on to the next size; returns what passes when there is none.
    fn step(&mut self, now: Instant) -> Option<Option<u16>> {
        self.tries = 0;
        self.due = Some(now);
        if self.passing < self.open {
            self.size = usize::midpoint(self.passing, self.open);
            return None;
        }
        self.due = None;
        self.done_at = Some(now);
        Some(self.passing.checked_sub(1).map(|largest| SIZES[largest]))
    }
}

impl Agent {
    /// Sends the next check of the search, if it is due.
    pub(super) fn measure(&mut self, now: Instant) {
        if self.mtu.route != self.selected {
            self.mtu = MtuSearch { route: self.selected, ..MtuSearch::default() };
            if self.selected.is_some() {
                self.mtu.restart(now + SETTLED);
            }
        }
        let (Some(route), Some(due)) = (self.mtu.route, self.mtu.due) else { return };
        if due > now {
            return;
        }
        if self.mtu.tries == TRIES {
            self.mtu.open = self.mtu.size;
            if let Some(found) = self.mtu.step(now) {
                return self.set_mtu(route, found);
            }
        }
        let Some(wait) = self.pair_mut(route).and_then(|pair| Some(pair.quality()?.wait())) else {
            self.mtu.due = None;
            return;
        };
        if self.checks.take(now) {
            self.mtu.tries += 1;
            self.mtu.due = Some(now + wait);
            self.send_check(route, What::Size(SIZES[self.mtu.size]), now);
        }
    }

    /// A packet of that size has passed.
    pub(super) fn passed(&mut self, route: Route, size: u16, now: Instant) {
        if self.mtu.route != Some(route) || self.mtu.due.is_none() {
            return;
        }
        let passing = SIZES.partition_point(|known| *known <= size);
        self.mtu.passing = self.mtu.passing.max(passing);
        self.mtu.open = self.mtu.open.max(self.mtu.passing);
        if let Some(found) = self.mtu.step(now) {
            self.set_mtu(route, found);
        }
    }

    fn set_mtu(&mut self, route: Route, mtu: Option<u16>) {
        if let Some(pair) = self.pair_mut(route) {
            pair.mtu = mtu;
        }
    }
}
