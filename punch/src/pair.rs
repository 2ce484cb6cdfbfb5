//! One pair: an end of this node and an address of the peer, what is known of the way
//! there, and when it is looked at next.
//!
//! A pair is keyed by its [`Route`]: the end that datagrams leave from, and the remote
//! address. The end is a socket or an allocation on a relay, not an address: the kernel
//! picks the source address, so that half is not chosen but learned: an answer tells
//! which address of ours the peer saw ([`Pair::own`]).
//!
//! A pair begins *probing*: checks go out fast at first and ever slower then, but
//! never end, because each one also holds our own NAT open for the peer. The first
//! answer makes it *valid*; from then on it is looked at with the patience that its
//! use deserves. When [`LOSSES`] checks in a row stay without an answer, it is back
//! at the beginning.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    budget::Budget,
    candidate::{Candidate, CandidateKind},
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

/// Probing a pair that would be no better than the one in use.
const UNWANTED: Duration = Duration::from_secs(60);
const UNWANTED_TRIES: u32 = 3;

/// How often a check of the peer's triggers one the other way. Two NATs that both map
/// anew for each destination make each check come from yet another address, and
/// without a bound each answer would chase the next for ever.
const TRIGGER_INTERVAL: Duration = Duration::from_secs(5);
const TRIGGER_BURST: u32 = 8;

/// The pair in use while data flows (RFC 7675 §5.1's consent interval).
const ACTIVE: Duration = Duration::from_secs(5);

/// The same while data goes out and none comes back: a dead path is left within
/// 5 s, early enough that a TCP connection over it hardly stalls.
const MUTE: Duration = Duration::from_secs(2);

/// The pair in use while none does, and the best spares: see [`PATIENT`].
const IDLE: Duration = Duration::from_secs(20);
const SPARE: Duration = Duration::from_secs(25);

/// Any other pair that once answered.
const DISTANT: Duration = Duration::from_secs(120);

/// How long an answer is waited for, at least and at most: RFC 8489 §6.2.1's initial
/// RTO, and what is still a path for people.
const WAIT_MIN: Duration = Duration::from_millis(500);
const WAIT_MAX: Duration = Duration::from_secs(3);

/// So many checks in a row without an answer end a valid pair: at 20 % loss each way
/// one of 170 rounds would do so by chance, and a dead path is left within 2.5 s.
pub(crate) const LOSSES: u32 = 5;

/// A pair that has just lost this many is no longer one to fall back on.
pub(crate) const DOUBTS: u32 = 2;

/// How long a pair stays behind all others after WireGuard's packets died on it; twice
/// as long each time that they do so again, up to an hour, because each try costs the
/// time until the data plane sees that nothing comes back.
const SUSPECT_FOR: Duration = Duration::from_secs(120);
const SUSPECT_DOUBLINGS: u32 = 5;

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
    /// IPv6 first: as a rule there is no NAT whose mapping can be lost.
    ipv4: bool,
    /// Of 50 ms each: less than that is not worth an order.
    rtt_class: u128,
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
    /// One of the best to fall back on.
    Spare,
    /// None of these, or still probing and better than what is selected.
    Wanted,
    /// Still probing, but at best as good as what is selected.
    Unwanted,
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
    pub(crate) due: Instant,
    /// The next check goes out before other pairs' checks.
    pub(crate) urgent: bool,
    /// Which address of ours the peer saw last.
    pub(crate) own: Option<SocketAddr>,
    suspect_until: Option<Instant>,
    /// How often in a row WireGuard's packets died on it.
    deaths: u32,
    triggers: Budget,
    pub(crate) last_sent: Option<Instant>,
    pub(crate) last_answer: Option<Instant>,
    /// When a check of the peer came from there.
    pub(crate) last_heard: Option<Instant>,
    /// When WireGuard's packets came from there.
    pub(crate) last_data: Option<Instant>,
}

#[derive(Debug)]
pub(crate) enum State {
    /// No answer yet, or none any more.
    Probing { since: Instant, sent: u32 },
    /// The peer answered.
    Valid { rtt: Duration, unanswered: u32 },
}

impl Pair {
    pub(crate) fn new(route: Route, kind: CandidateKind, listed: bool, now: Instant) -> Self {
        Self {
            route,
            kind,
            listed,
            state: State::Probing { since: now, sent: 0 },
            due: now,
            urgent: false,
            own: None,
            suspect_until: None,
            deaths: 0,
            triggers: Budget::new(TRIGGER_INTERVAL, TRIGGER_BURST, now),
            last_sent: None,
            last_answer: None,
            last_heard: None,
            last_data: None,
        }
    }

    pub(crate) fn is_valid(&self) -> bool {
        matches!(self.state, State::Valid { .. })
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        match self.state {
            State::Valid { rtt, .. } => Some(rtt),
            State::Probing { .. } => None,
        }
    }

    pub(crate) fn unanswered(&self) -> u32 {
        match self.state {
            State::Valid { unanswered, .. } => unanswered,
            State::Probing { sent, .. } => sent,
        }
    }

    pub(crate) fn is_suspect(&self, now: Instant) -> bool {
        self.suspect_until.is_some_and(|until| now < until)
    }

    /// WireGuard's packets died on it, whatever its checks say.
    pub(crate) fn suspect(&mut self, now: Instant) {
        self.suspect_until = Some(now + SUSPECT_FOR * 2u32.pow(self.deaths));
        self.deaths = (self.deaths + 1).min(SUSPECT_DOUBLINGS);
    }

    /// WireGuard's packets arrive on it.
    pub(crate) fn note_data(&mut self, now: Instant) {
        self.last_data = Some(now);
        self.suspect_until = None;
        self.deaths = 0;
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
        let State::Valid { rtt, unanswered } = self.state else { return None };
        Some(Rank {
            suspect: self.is_suspect(now),
            doubtful: unanswered > DOUBTS,
            tier: self.tier(locals),
            ipv4: self.route.remote.is_ipv4(),
            rtt_class: rtt.as_millis() / 50,
            route: self.route,
        })
    }

    /// Probing begins anew: something has changed that may let a check through.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.state = State::Probing { since: now, sent: 0 };
        self.due = now;
    }

    /// A check of the peer came from there. The peer's NAT is open this way now, so
    /// one of ours goes back unless the pair is known to work (RFC 8445 §7.3.1.4).
    pub(crate) fn heard(&mut self, now: Instant) {
        self.last_heard = Some(now);
        if !self.is_valid() && self.triggers.take(now) {
            self.urgent = true;
            self.due = now;
        }
    }

    /// A check goes out now. `jitter` is between 0 and 1.
    pub(crate) fn sent(&mut self, usage: Use, jitter: f64, now: Instant) {
        self.urgent = false;
        self.last_sent = Some(now);
        let wait = match &mut self.state {
            State::Probing { since, sent } => {
                *sent += 1;
                let elapsed = now.saturating_duration_since(*since);
                spread(probing_interval(elapsed, *sent, self.listed, usage), jitter)
            }
            State::Valid { rtt, unanswered } => {
                *unanswered += 1;
                (2 * *rtt).clamp(WAIT_MIN, WAIT_MAX)
            }
        };
        self.due = now + wait;
    }

    /// The peer answered a check that was sent at `sent`.
    pub(crate) fn answered(&mut self, sent: Instant, own: SocketAddr, now: Instant) {
        let sample = now.saturating_duration_since(sent);
        let rtt = match self.state {
            // Smoothed as RFC 6298 §2 does.
            State::Valid { rtt, .. } => (7 * rtt + sample) / 8,
            State::Probing { .. } => sample,
        };
        self.state = State::Valid { rtt, unanswered: 0 };
        self.own = Some(own);
        self.last_answer = Some(now);
    }

    /// When a valid pair whose last check was answered is looked at again.
    pub(crate) fn rest(&mut self, usage: Use, jitter: f64, now: Instant) {
        let interval = match usage {
            Use::Active => ACTIVE,
            Use::Idle => IDLE,
            Use::Spare => SPARE,
            Use::Wanted | Use::Unwanted => DISTANT,
        };
        self.urgent = false;
        self.due = now + spread(interval, jitter);
    }

    /// Data goes out on it: it is looked at more often than an idle one, and more
    /// often still while nothing comes back.
    pub(crate) fn hasten(&mut self, now: Instant) {
        let echoes = self.last_data.is_some_and(|at| now < at + MUTE);
        let interval = if echoes { ACTIVE } else { MUTE };
        if let (State::Valid { unanswered: 0, .. }, Some(answer)) = (&self.state, self.last_answer)
        {
            self.due = self.due.min(answer + interval);
        }
    }
}

/// Up to a quarter earlier, so that a thousand peers do not keep step.
fn spread(interval: Duration, jitter: f64) -> Duration {
    interval.mul_f64(1.0 - jitter / 4.0)
}

fn probing_interval(elapsed: Duration, sent: u32, listed: bool, usage: Use) -> Duration {
    if !listed {
        // The peer's checks from there trigger ours; more of them hold nothing open.
        if elapsed < FAST_FOR { BRISK } else { SLOW }
    } else if usage == Use::Unwanted && sent >= UNWANTED_TRIES {
        UNWANTED
    } else if elapsed < FAST_FOR {
        FAST
    } else if elapsed < BRISK_FOR {
        BRISK
    } else if elapsed < SLOW_FOR {
        SLOW
    } else {
        PATIENT
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
    fn the_order_is_lan_then_direct_then_relayed_whatever_the_round_trip() {
        let now = Instant::now();
        let own: SocketAddr = "192.168.1.2:5".parse().expect("a literal address");
        let locals = [Candidate { kind: CandidateKind::Host, addr: own }];
        let nat: SocketAddr = "203.0.113.1:5".parse().expect("a literal address");
        let after = |ms| now + Duration::from_millis(ms);
        let mut lan = pair(CandidateKind::Host, "192.168.1.3:5", now);
        lan.answered(now, own, after(300));
        let mut ipv6 = pair(CandidateKind::ServerReflexive, "[2001:db8::1]:5", now);
        ipv6.answered(now, nat, after(200));
        let mut direct = pair(CandidateKind::Host, "192.168.7.3:5", now);
        direct.answered(now, nat, after(100));
        let mut relayed = pair(CandidateKind::Relayed, "203.0.113.9:5", now);
        relayed.answered(now, own, after(1));
        let mut died = pair(CandidateKind::Host, "192.168.1.4:5", now);
        died.answered(now, own, after(1));
        died.suspect(now);
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
        while pair.due < start + Duration::from_secs(600) {
            let now = pair.due;
            pair.sent(Use::Wanted, 0.0, now);
            sent.push(now - start);
        }
        let within = |s| sent.iter().filter(|at| **at < Duration::from_secs(s)).count();
        assert_eq!((within(4), within(30), within(120)), (16, 42, 60));
        assert!(sent.windows(2).all(|w| w[1] - w[0] <= Duration::from_secs(20)));
        assert_eq!(sent.len(), 84);
    }

    #[test]
    fn an_unwanted_pair_is_left_in_peace_after_three_tries() {
        let start = Instant::now();
        let mut pair = pair(CandidateKind::ServerReflexive, "203.0.113.1:5", start);
        for _ in 0..3 {
            pair.sent(Use::Unwanted, 0.0, pair.due);
        }
        assert!(pair.due > start + Duration::from_secs(59));
    }
}
