//! What holds a path: WireGuard's own packets, and what the peer tells of them.
//!
//! Packets that come in prove the way in. For the way out, each check and each answer
//! tells how long ago WireGuard's data last arrived at its sender over the same route
//! ([`Receipt`]). Where this node has been sending, and the peer tells that nothing has
//! arrived since, data dies although checks pass: a firewall that knows WireGuard, or a
//! way that loses what is large. The pair is suspect then, and the next best is taken.
//!
//! The data plane tells of packets some four times a second: a *tick* is one such word
//! that something was sent. So many ticks in a row without an arrival are no chance.
//! One tick alone is none to judge by, nor is it reason to check more often: that is
//! what WireGuard's keepalives look like.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::Agent;
use crate::{
    check::Receipt,
    pair::{Pair, SILENCE, Tier, Use},
    route::Route,
};

/// Two ticks within this are data that flows.
const FLOW: Duration = Duration::from_secs(3);

/// For so long after it flowed, the peer is active.
const ACTIVE_FOR: Duration = Duration::from_secs(10);

/// For so long after it flowed, the NATs' mappings are kept up.
const MAPPED_FOR: Duration = Duration::from_secs(90);

/// While it is not known yet how long they live, they are believed to live so long: NATs that
/// forget sooner are not known.
const UNMEASURED: Duration = Duration::from_secs(15);

/// The part of a mapping's life after which it is renewed: the answer to a check comes late,
/// and so may the next one.
const RENEWED_AT: f64 = 0.8;

/// So much longer rests who was asked by the peer meanwhile.
const PUT_OFF: f64 = 1.125;

/// The data plane tells of what came and went at most this late.
const GRANULARITY: Duration = Duration::from_millis(300);

/// So long must data have died for.
const DEAD_FOR: Duration = Duration::from_millis(1500);

/// After this without an arrival the peer is asked again at once.
const DOUBT_AFTER: Duration = Duration::from_millis(700);
const ASK_AGAIN: Duration = Duration::from_millis(300);

/// Where nothing ever arrived on a route, it counts only when something arrived on
/// another within this before: else it is the session that is missing, not the way.
const SESSION_FOR: Duration = Duration::from_secs(15);

/// The most ticks that are remembered.
const MAX_TICKS: usize = 32;

/// When data was sent, and when it came in.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    ticks: VecDeque<Instant>,
    /// When data last went out after other data.
    flowed_out: Option<Instant>,
    /// When data last came in after other data.
    flowed_in: Option<Instant>,
    /// When data last came in on any route.
    pub(super) last_in: Option<Instant>,
}

impl Traffic {
    pub(super) fn sent(&mut self, now: Instant) {
        if self.ticks.back().is_some_and(|last| now <= *last + FLOW) {
            self.flowed_out = Some(now);
        }
        if self.ticks.len() == MAX_TICKS {
            self.ticks.pop_front();
        }
        self.ticks.push_back(now);
    }

    pub(super) fn received(&mut self, at: Instant) {
        if self.last_in.is_some_and(|last| at > last && at <= last + FLOW) {
            self.flowed_in = self.flowed_in.max(Some(at));
        }
        self.last_in = self.last_in.max(Some(at));
    }

    /// Whether data goes out.
    pub(super) fn is_sending(&self, now: Instant) -> bool {
        self.flowed_out.is_some_and(|at| now <= at + FLOW)
    }

    /// Whether data flowed of late, either way.
    pub(super) fn is_active(&self, now: Instant) -> bool {
        self.flowed_since(now, ACTIVE_FOR)
    }

    fn flowed_since(&self, now: Instant, within: Duration) -> bool {
        self.flowed_out.max(self.flowed_in).is_some_and(|at| now <= at + within)
    }

    fn ticks_within(&self, from: Instant, to: Instant) -> usize {
        self.ticks.iter().filter(|tick| from <= **tick && **tick <= to).count()
    }
}

impl Agent {
    /// Takes what the peer tells of a route.
    pub(super) fn handle_receipt(&mut self, route: Route, receipt: &Receipt, now: Instant) {
        let ago = |ms: u32| now.checked_sub(Duration::from_millis(ms.into()));
        if let Some(pair) = self.pair_mut(route)
            && let Some(arrival) = receipt.data_ms.and_then(ago)
        {
            pair.note_arrival(arrival);
        }
        self.handle_opened(receipt.opened_ms.and_then(ago), now);
        let Some(selected) = self.selected.filter(|_| self.traffic.is_sending(now)) else { return };
        let Some(pair) = self.pairs.iter().find(|pair| pair.route == selected) else { return };
        let Some(quality) = pair.quality() else { return };
        // What arrived nowhere did not arrive on the selected route.
        let anywhere = receipt.any_ms.and_then(ago);
        let arrival = if route == selected { pair.last_arrival } else { anywhere };
        let since = arrival.map_or(self.selected_at, |at| at.max(self.selected_at));
        let silent_for = now.saturating_duration_since(since);
        let has_session = anywhere.is_some_and(|at| at + SESSION_FOR > self.selected_at);
        if !has_session || silent_for < DOUBT_AFTER + quality.rtt() {
            return;
        }
        let latest = now.checked_sub(quality.rtt() + GRANULARITY).unwrap_or(now);
        let ticks = self.traffic.ticks_within(since + GRANULARITY, latest);
        // Half of a round trip is lost on the way out.
        let enough = usize::try_from(quality.patience() * 2 / 3).unwrap_or(usize::MAX);
        if silent_for >= DEAD_FOR + quality.rtt() && ticks >= enough && !pair.is_suspect(now) {
            self.suspect_selected(true, now);
        } else if ticks > 0
            && let Some(pair) = self.pair_mut(selected)
        {
            pair.ask_again(now + ASK_AGAIN);
        }
    }

    /// The selected pair steps behind all others for a while; `told` by the peer that
    /// what we send dies.
    pub(super) fn suspect_selected(&mut self, told: bool, now: Instant) {
        if let Some(pair) = self.selected.and_then(|route| self.pair_mut(route))
            && !pair.is_suspect(now)
        {
            pair.suspect(told, now);
            self.recheck(now);
        }
    }

    /// Whether WireGuard's packets hold a pair although its checks are lost: the peer
    /// still uses it, or tells that what we send there arrives.
    pub(super) fn is_held(pair: &Pair, now: Instant) -> bool {
        const HOLDS_FOR: Duration = Duration::from_millis(1200);
        let proof = pair.last_data.max(pair.last_arrival);
        !pair.is_suspect(now) && proof.is_some_and(|at| now < at + HOLDS_FOR)
    }

    /// Data goes out: what it goes out on, and what could take its place, is looked at
    /// more often.
    pub(super) fn hasten(&mut self) {
        let now = self.now;
        for index in 0..self.pairs.len() {
            let usage = self.usage(self.pairs[index].route, now);
            self.pairs[index].hasten(usage);
        }
    }

    /// How long a pair may rest after an answer.
    pub(super) fn rest_interval(&mut self, route: Route, now: Instant) -> Duration {
        let jitter = rand::RngExt::random(&mut self.rng);
        let interval = self.usage(route, now).interval(jitter);
        interval.min(self.upkeep(route, now).unwrap_or(interval))
    }

    /// After how long without a packet the mappings of the path are renewed, while the peer is
    /// active. Each side's checks, and its answers, renew its own.
    pub(super) fn upkeep(&self, route: Route, now: Instant) -> Option<Duration> {
        if self.selected != Some(route) || !self.traffic.flowed_since(now, MAPPED_FOR) {
            return None;
        }
        let is_direct = self.selected().is_some_and(|path| path.tier == Tier::Direct);
        let lifetime = self.mapping_lifetime.or(is_direct.then_some(UNMEASURED))?;
        Some(lifetime.mul_f64(RENEWED_AT))
    }

    /// What came from the peer by the selected pair at `at` spares a check of it, where nothing
    /// else is to be told or found out.
    pub(super) fn put_off(&mut self, route: Route, at: Instant) {
        let must_tell = self.keys.controlling() && !self.told;
        if must_tell || self.usage(route, at) != Use::Idle {
            return;
        }
        // A little longer than who asked rests: one of the two goes on to ask.
        let rests = self.upkeep(route, at).map_or(SILENCE, |upkeep| upkeep.mul_f64(PUT_OFF));
        let rests = rests.min(SILENCE);
        if let Some(pair) = self.pair_mut(route)
            && !pair.urgent
            && pair.is_valid()
            && pair.unanswered() == 0
        {
            pair.due = Some(at + rests);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keepalive_now_and_then_is_no_flow() {
        let start = Instant::now();
        let mut traffic = Traffic::default();
        for n in 0..10 {
            let now = start + n * Duration::from_secs(25);
            traffic.sent(now);
            traffic.received(now);
            assert!(!traffic.is_sending(now) && !traffic.is_active(now));
        }
        let now = start + Duration::from_secs(226);
        traffic.sent(now);
        assert!(traffic.is_sending(now) && traffic.is_active(now));
        assert!(!traffic.is_sending(now + Duration::from_secs(4)));
        assert!(!traffic.is_active(now + Duration::from_secs(11)));
    }
}
