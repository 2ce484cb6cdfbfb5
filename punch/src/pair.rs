//! One pair: an end of this node and an address of the peer, what is known of the way
//! there, and when it is looked at next.
//!
//! A pair is keyed by its [`Route`]: the end that datagrams leave from, and the remote
//! address. The end is a socket or an allocation on a relay, not an address: the kernel
//! picks the source address, so that half is not chosen but learned: an answer tells
//! which address of ours the peer saw ([`Pair::own`]).
//!
//! A pair begins *probing*: checks go out fast at first and ever slower then. Where
//! nothing better is known they never end, because each one also holds our own NAT open
//! for the peer. The first answer makes it *valid*; from then on it is looked at with
//! the patience that its use deserves. When more checks in a row stay without an answer
//! than chance explains ([`Quality::patience`]), it is back at the beginning.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    budget::Budget,
    candidate::{Candidate, CandidateKind},
    quality::{MISSES_MAX, Quality},
    route::{Route, Via},
};

/// Fast probing: a hole is open within this of both sides knowing each other. Twice
/// as fast as RFC 8445 §14.3's 500 ms, because checks through a NAT that is not yet
/// open on the other side are lost by nature.
const FAST: Duration = Duration::from_millis(250);
const FAST_FOR: Duration = Duration::from_secs(4);

/// A peer may learn of a changed address this late from a zone that is polled.
const BRISK: Duration = Duration::from_secs(1);
const BRISK_FOR: Duration = Duration::from_secs(30);
const SLOW: Duration = Duration::from_secs(5);
const SLOW_FOR: Duration = Duration::from_secs(120);

/// Probing for ever: below the 30 s after which the commonest NATs forget a UDP
/// mapping that was never answered (RFC 4787 REQ-5 asks for 2 minutes), so that the
/// hole stays open and the peer's own check comes in whenever the peer learns of us.
const PATIENT: Duration = Duration::from_secs(20);

/// Probing for something better than what is in use: each wait half as long as all that
/// came before, up to this. A change that could let a check through restarts it.
const BETTER_MIN: Duration = Duration::from_secs(2);
const BETTER_MAX: Duration = Duration::from_secs(1800);

/// So many tries has a pair that would be no better than what is in use.
const UNWANTED_TRIES: u32 = 6;

/// A round of checks through two NATs: so many, so far apart.
pub(crate) const ROUND_CHECKS: u8 = 3;
const ROUND_GAP: Duration = Duration::from_millis(250);

/// How often a check of the peer's triggers one the other way. Two NATs that both map
/// anew for each destination make each check come from yet another address, and
/// without a bound each answer would chase the next for ever.
const TRIGGER_INTERVAL: Duration = Duration::from_secs(5);
const TRIGGER_BURST: u32 = 8;

/// The pair in use while data flows. RFC 7675 §5.1 asks for consent each 5 s; here a
/// dead path has to be left within 3 s.
const ACTIVE: Duration = Duration::from_secs(1);

/// The pair in use while none does, where not even WireGuard's keepalives come; those
/// are sent each 25 s, and so hold it alone where they do.
const IDLE: Duration = Duration::from_secs(25);
pub(crate) const SILENCE: Duration = Duration::from_secs(30);

/// The best spares, while data flows and while none does.
const SPARE: Duration = Duration::from_secs(25);
const SPARE_IDLE: Duration = Duration::from_secs(600);

/// One that may be better than what was just selected.
const RIVAL: Duration = Duration::from_secs(2);

/// Any other pair that once answered. It is looked at when it may be needed.
const DISTANT: Duration = Duration::from_secs(3600);

/// The commonest NATs forget a mapping after this (see [`PATIENT`]).
const STALE: Duration = Duration::from_secs(30);

/// How long the peer is waited for at our relay, before the relay is asked to send first.
const PASSIVE_FOR: Duration = Duration::from_secs(5);

/// A pair that has just missed this many answers is no longer one to fall back on.
const DOUBTS: u32 = 2;

/// A pair that answered within this, and owes no answer, is one to move up to.
const FRESH: Duration = Duration::from_secs(2);

/// How long a pair stays behind all others after WireGuard's packets died on it: a fault
/// that passes is to cost no more than half a minute of a worse path. Twice as long each
/// time that they die again, up to three quarters of an hour, because each try costs the
/// time until it is seen that nothing arrives.
const SUSPECT_FOR: Duration = Duration::from_secs(20);
const SUSPECT_DOUBLINGS: u32 = 7;

/// How good a way is, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// From host address to host address, no NAT between: one LAN, as a rule.
    Lan,
    /// Straight to the peer, through NATs.
    Direct,
    /// Through a relay.
    Relayed,
}

/// The order in which pairs are preferred, best first. The derived `Ord` is the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// WireGuard's packets died on it of late.
    pub(crate) suspect: bool,
    /// Its last checks are without an answer.
    pub(crate) doubtful: bool,
    pub(crate) tier: Tier,
    /// Of 50 ms each: less than that is not worth an order.
    rtt_class: u128,
    /// IPv6 first: as a rule there is no NAT whose mapping can be lost.
    ipv4: bool,
    /// So that no two are equal.
    route: Route,
}

/// What a pair is used for, and so how often it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Data flows on it.
    Active,
    /// It is selected, but there is nothing to send.
    Idle,
    /// One of the best to fall back on, while data flows.
    Spare,
    /// The best to fall back on, while none does.
    SpareIdle,
    /// It answers, and may be better than what was just selected because it answered first.
    Rival,
    /// It answers, but others are better.
    Distant,
    /// Still probing, and nothing else is there.
    Wanted,
    /// Still probing, and better than what is selected.
    Better,
    /// The same, but looked at in rounds that both sides agree on.
    Punched,
    /// Still probing, but at best as good as what is selected.
    Unwanted,
}

impl Use {
    /// How long a valid pair rests after an answer. `jitter` is between 0 and 1.
    pub(crate) fn interval(self, jitter: f64) -> Duration {
        let interval = match self {
            Self::Active => ACTIVE,
            Self::Idle => IDLE,
            Self::Spare => SPARE,
            Self::Rival => RIVAL,
            Self::SpareIdle => SPARE_IDLE,
            Self::Distant | Self::Wanted | Self::Better | Self::Punched | Self::Unwanted => DISTANT,
        };
        spread(interval, jitter)
    }
}

/// WireGuard's packets died on a pair.
#[derive(Debug, Clone, Copy)]
struct Suspicion {
    until: Instant,
    /// The peer said so: it is what we send that dies, so what comes in proves nothing.
    told: bool,
}

/// One way to the peer.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) route: Route,
    /// What kind of the peer's candidates its address is.
    pub(crate) kind: CandidateKind,
    /// The peer's present candidates name it.
    pub(crate) listed: bool,
    pub(crate) state: State,
    /// When the next check goes out, or the last one counts as lost.
    pub(crate) due: Option<Instant>,
    /// How many checks of a round are still to be sent.
    pub(crate) round: u8,
    /// The next check goes out before other pairs' checks.
    pub(crate) urgent: bool,
    /// Which address of ours the peer saw last.
    pub(crate) own: Option<SocketAddr>,
    suspicion: Option<Suspicion>,
    /// How often in a row WireGuard's packets died on it.
    deaths: u32,
    triggers: Budget,
    pub(crate) last_sent: Option<Instant>,
    pub(crate) last_answer: Option<Instant>,
    /// Since when it works.
    pub(crate) valid_since: Option<Instant>,
    /// When a check of the peer came from there.
    pub(crate) last_heard: Option<Instant>,
    /// When WireGuard's packets came from there.
    pub(crate) last_data: Option<Instant>,
    /// When WireGuard's packets arrived there, as the peer tells.
    pub(crate) last_arrival: Option<Instant>,
    /// The largest IP packet that passes whole.
    pub(crate) mtu: Option<u16>,
}

#[derive(Debug)]
pub(crate) enum State {
    /// No answer yet, or none any more.
    Probing { since: Instant, sent: u32 },
    /// The peer answered.
    Valid { quality: Quality, unanswered: u32 },
}

impl Pair {
    pub(crate) fn new(route: Route, kind: CandidateKind, listed: bool, now: Instant) -> Self {
        Self {
            route,
            kind,
            listed,
            state: State::Probing { since: now, sent: 0 },
            due: Some(now),
            round: 0,
            urgent: false,
            own: None,
            suspicion: None,
            deaths: 0,
            triggers: Budget::new(TRIGGER_INTERVAL, TRIGGER_BURST, now),
            last_sent: None,
            last_answer: None,
            valid_since: None,
            last_heard: None,
            last_data: None,
            last_arrival: None,
            mtu: None,
        }
    }

    pub(crate) fn is_valid(&self) -> bool {
        matches!(self.state, State::Valid { .. })
    }

    pub(crate) fn quality(&self) -> Option<&Quality> {
        match &self.state {
            State::Valid { quality, .. } => Some(quality),
            State::Probing { .. } => None,
        }
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// The next check goes out at `at` at the latest.
    pub(crate) fn hurry(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    pub(crate) fn unanswered(&self) -> u32 {
        match self.state {
            State::Valid { unanswered, .. } => unanswered,
            State::Probing { sent, .. } => sent,
        }
    }

    pub(crate) fn is_suspect(&self, now: Instant) -> bool {
        self.suspicion.is_some_and(|suspicion| now < suspicion.until)
    }

    /// WireGuard's packets died on it, whatever its checks say; `told` by the peer, or
    /// because none come.
    pub(crate) fn suspect(&mut self, told: bool, now: Instant) {
        let until = now + SUSPECT_FOR * 2u32.pow(self.deaths);
        self.suspicion = Some(Suspicion { until, told });
        self.deaths = (self.deaths + 1).min(SUSPECT_DOUBLINGS);
    }

    /// WireGuard's packets arrive on it.
    pub(crate) fn note_data(&mut self, at: Instant) {
        self.last_data = self.last_data.max(Some(at));
        if self.suspicion.is_none_or(|suspicion| !suspicion.told || suspicion.until <= at) {
            self.clear();
        }
    }

    /// The peer tells that WireGuard's packets arrive there.
    pub(crate) fn note_arrival(&mut self, at: Instant) {
        self.last_arrival = self.last_arrival.max(Some(at));
        // What arrives while it is suspect may have been sent before.
        if self.suspicion.is_none_or(|suspicion| suspicion.until <= at) {
            self.clear();
        }
    }

    /// Nothing is held against it any more.
    fn clear(&mut self) {
        self.suspicion = None;
        self.deaths = 0;
    }

    /// Whether the peer is only let in at our relay for now. What the relay would send to
    /// the peer's NAT may come there before anything of the peer's went out, and the peer
    /// sends to the relay as soon as it knows of it.
    pub(crate) fn is_passive(&self, now: Instant) -> bool {
        let by_relay = matches!(self.route.via, Via::Relay(_));
        let behind_nat = self.kind != CandidateKind::Relayed && self.last_heard.is_none();
        let State::Probing { since, .. } = self.state else { return false };
        by_relay && behind_nat && now < since + PASSIVE_FOR
    }

    /// Whether it carries what we send, as far as can be known now.
    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        self.unanswered() == 0 && self.last_answer.is_some_and(|at| now <= at + FRESH)
    }

    /// Whether nothing came from there for so long that the NATs may have closed.
    pub(crate) fn is_stale(&self, now: Instant) -> bool {
        let seen = self.last_answer.max(self.last_data).max(self.last_heard);
        seen.is_none_or(|at| now > at + STALE)
    }

    /// Whether so many checks in a row got no answer that the way has ended. Where it
    /// is the one in use and idle there is no hurry, and little was measured.
    pub(crate) fn has_failed(&self, is_idle: bool, now: Instant) -> bool {
        match &self.state {
            State::Valid { quality, unanswered } => {
                let patience = if is_idle { MISSES_MAX } else { quality.patience() };
                *unanswered >= patience && self.is_due(now)
            }
            State::Probing { .. } => false,
        }
    }

    /// How good the way is; while probing, how good it would be at best.
    pub(crate) fn tier(&self, locals: &[Candidate]) -> Tier {
        let unseen = || match self.own {
            Some(own) => locals.iter().any(|c| c.kind == CandidateKind::Host && c.addr == own),
            None => true,
        };
        match (self.route.via, self.kind) {
            (Via::Relay(_), _) | (_, CandidateKind::Relayed) => Tier::Relayed,
            (_, CandidateKind::Host) if unseen() => Tier::Lan,
            _ => Tier::Direct,
        }
    }

    /// The rank of a valid pair.
    pub(crate) fn rank(&self, locals: &[Candidate], now: Instant) -> Option<Rank> {
        let State::Valid { quality, unanswered } = &self.state else { return None };
        Some(Rank {
            suspect: self.is_suspect(now),
            doubtful: *unanswered > DOUBTS,
            tier: self.tier(locals),
            rtt_class: quality.rtt().as_millis() / 50,
            ipv4: self.route.remote.is_ipv4(),
            route: self.route,
        })
    }

    /// Probing begins anew: something has changed that may let a check through, or checks
    /// have died as well. Either way what they find next can be believed.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.suspicion = None;
        self.state = State::Probing { since: now, sent: 0 };
        self.due = Some(now);
        self.round = 0;
    }

    /// A check of the peer came from there. The peer's NAT is open this way now, so
    /// one of ours goes back unless the pair is known to work (RFC 8445 §7.3.1.4).
    pub(crate) fn heard(&mut self, now: Instant) {
        self.last_heard = Some(now);
        if !self.is_valid() && self.triggers.take(now) {
            self.urgent = true;
            self.due = Some(now);
        }
    }

    /// A check goes out now. `jitter` is between 0 and 1.
    pub(crate) fn sent(&mut self, usage: Use, jitter: f64, now: Instant) {
        self.urgent = false;
        self.last_sent = Some(now);
        self.round = self.round.saturating_sub(1);
        let wait = match &mut self.state {
            State::Probing { since, sent } => {
                *sent += 1;
                let elapsed = now.saturating_duration_since(*since);
                let interval = probing_interval(elapsed, *sent, self.listed, usage);
                match interval {
                    _ if self.round > 0 => Some(ROUND_GAP),
                    interval => interval.map(|interval| spread(interval, jitter)),
                }
            }
            State::Valid { quality, unanswered } => {
                *unanswered += 1;
                Some(quality.repeat(*unanswered))
            }
        };
        self.due = wait.map(|wait| now + wait);
    }

    /// The peer answered a check that was sent at `sent`.
    pub(crate) fn answered(&mut self, sent: Instant, own: SocketAddr, now: Instant) {
        let sample = now.saturating_duration_since(sent);
        let quality = match &self.state {
            State::Valid { quality, unanswered } => {
                let mut quality = *quality;
                quality.answered(sample, unanswered.saturating_sub(1));
                quality
            }
            State::Probing { .. } => {
                self.valid_since = Some(now);
                Quality::new(sample)
            }
        };
        self.state = State::Valid { quality, unanswered: 0 };
        self.round = 0;
        self.own = Some(own);
        self.last_answer = Some(now);
    }

    /// A valid pair whose last check was answered is looked at again after this.
    pub(crate) fn rest(&mut self, interval: Duration, now: Instant) {
        self.urgent = false;
        self.due = Some(now + interval);
    }

    /// Its next check goes out at `at` at the latest, unless one is under way.
    pub(crate) fn ask_again(&mut self, at: Instant) {
        if self.unanswered() == 0 {
            self.hurry(at);
        }
    }

    /// Data goes out on it, or what it goes out on may need it: it is looked at more
    /// often than an idle one.
    pub(crate) fn hasten(&mut self, usage: Use) {
        let interval = match usage {
            Use::Active => ACTIVE,
            Use::Spare => SPARE,
            _ => return,
        };
        if let (State::Valid { unanswered: 0, .. }, Some(answer)) = (&self.state, self.last_answer)
        {
            self.hurry(answer + interval);
        }
    }
}

/// Up to a quarter earlier, so that a thousand peers do not keep step.
fn spread(interval: Duration, jitter: f64) -> Duration {
    interval.mul_f64(1.0 - jitter / 4.0)
}

fn probing_interval(elapsed: Duration, sent: u32, listed: bool, usage: Use) -> Option<Duration> {
    if !listed {
        // The peer's checks from there trigger ours; more of them hold nothing open.
        return Some(if elapsed < FAST_FOR { BRISK } else { SLOW });
    }
    match usage {
        Use::Unwanted if sent >= UNWANTED_TRIES => None,
        _ if elapsed < FAST_FOR => Some(FAST),
        Use::Punched => None,
        Use::Better => Some((elapsed / 2).clamp(BETTER_MIN, BETTER_MAX)),
        _ if elapsed < BRISK_FOR => Some(BRISK),
        _ if elapsed < SLOW_FOR => Some(SLOW),
        _ => Some(PATIENT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(kind: CandidateKind, remote: &str, now: Instant) -> Pair {
        let addr = remote.parse().expect("a literal address");
        Pair::new(Route::direct(addr), kind, true, now)
    }

    #[test]
    fn a_pair_that_carries_data_after_its_time_begins_anew() {
        let start = Instant::now();
        let mut pair = pair(CandidateKind::Host, "192.168.1.3:5", start);
        pair.suspect(true, start);
        let first = pair.suspicion.expect("it is suspect").until;
        pair.note_arrival(start);
        pair.note_data(start);
        assert!(pair.is_suspect(start), "what comes in does not prove the way out");
        pair.note_arrival(first);
        pair.suspect(true, first);
        let again = pair.suspicion.expect("it is suspect").until;
        assert_eq!(again - first, first - start, "no longer than the first time");
        pair.suspect(true, again);
        assert!(pair.suspicion.expect("it is suspect").until - again > first - start);
    }

    #[test]
    fn the_order_is_lan_then_direct_then_relayed_whatever_the_round_trip() {
        let now = Instant::now();
        let own: SocketAddr = "192.168.1.2:5".parse().expect("a literal address");
        let locals = [Candidate { kind: CandidateKind::Host, addr: own }];
        let nat: SocketAddr = "203.0.113.1:5".parse().expect("a literal address");
        let after = |ms| now + Duration::from_millis(ms);
        let mut lan = pair(CandidateKind::Host, "192.168.1.3:5", now);
        lan.answered(now, own, after(300));
        let mut ipv6 = pair(CandidateKind::ServerReflexive, "[2001:db8::1]:5", now);
        ipv6.answered(now, nat, after(110));
        let mut direct = pair(CandidateKind::Host, "192.168.7.3:5", now);
        direct.answered(now, nat, after(105));
        let mut relayed = pair(CandidateKind::Relayed, "203.0.113.9:5", now);
        relayed.answered(now, own, after(1));
        let mut died = pair(CandidateKind::Host, "192.168.1.4:5", now);
        died.answered(now, own, after(1));
        died.suspect(false, now);
        let ranks = [&lan, &ipv6, &direct, &relayed, &died]
            .map(|pair| pair.rank(&locals, now).expect("it is valid"));
        assert!(ranks.is_sorted(), "{ranks:?}");
        assert_eq!(ranks[2].tier, Tier::Direct);
        assert_eq!(pair(CandidateKind::Host, "192.168.1.5:5", now).rank(&locals, now), None);
    }

    #[test]
    fn probing_slows_down_but_holds_the_hole_open_for_ever() {
        let start = Instant::now();
        let mut pair = pair(CandidateKind::Host, "192.168.1.3:5", start);
        let mut sent = Vec::new();
        while let Some(now) = pair.due.filter(|due| *due < start + Duration::from_secs(600)) {
            pair.sent(Use::Wanted, 0.0, now);
            sent.push(now - start);
        }
        let within = |s| sent.iter().filter(|at| **at < Duration::from_secs(s)).count();
        assert_eq!((within(4), within(30), within(120)), (16, 42, 60));
        assert!(sent.windows(2).all(|w| w[1] - w[0] <= Duration::from_secs(20)));
        assert_eq!(sent.len(), 84);
    }

    #[test]
    fn an_unwanted_pair_is_left_in_peace_after_a_few_tries() {
        let start = Instant::now();
        let mut pair = pair(CandidateKind::ServerReflexive, "203.0.113.1:5", start);
        let tries = std::iter::from_fn(|| {
            pair.sent(Use::Unwanted, 0.0, pair.due?);
            Some(())
        });
        assert_eq!(tries.count(), 6);
    }

    #[test]
    fn what_dies_on_its_way_out_is_not_proved_by_what_comes_in() {
        let now = Instant::now();
        for (told, stays) in [(false, false), (true, true)] {
            let mut pair = pair(CandidateKind::ServerReflexive, "203.0.113.1:5", now);
            pair.suspect(told, now);
            pair.note_data(now);
            assert_eq!(pair.is_suspect(now), stays);
            assert!(!pair.is_suspect(now + SUSPECT_FOR));
        }
    }
}
