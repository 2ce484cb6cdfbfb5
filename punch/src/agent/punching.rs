//! Through two NATs at the same moment.
//!
//! While the path is one over a relay, the direct pairs are looked at in *rounds*. A
//! round has three steps:
//!
//! 1. *Openers* go to all of the peer's addresses: checks that get only a router or two
//!    far. They open this node's own NAT, and do not reach the peer's.
//! 2. A check over the relay tells the peer so ([`Receipt::opened_ms`]). That is the call: the
//!    peer opens its own NAT in the same way, and its answer tells that it has.
//! 3. Each side that knows both NATs open sends whole checks, three to each address.
//!
//! The order matters for NATs that answer what comes unsolicited, as Linux ones do where
//! nothing drops it: they remember it, and give what their own host sends to that address
//! later another port than all else. To be direct, each side must have sent something
//! out before anything of the other comes in.
//!
//! The same happens at the very beginning, and whenever all is probed afresh: where a
//! relay promises that the peer can be told, whole checks wait for it, for a while. Where
//! there is no relay, they do not, but for a moment at the very first: a node that has
//! just started may know its peers before it has a relay.
//!
//! A NAT that was met in the wrong order forgets that after 30 s without a packet
//! (Linux's nf_conntrack_udp_timeout). So pairs that never worked are left in peace for
//! longer than that between two rounds, after the first few.

use std::time::{Duration, Instant};

use rand::RngExt;

use super::{Agent, checks::What};
use crate::{
    budget::Budget,
    candidate::CandidateKind,
    check::Receipt,
    pair::{Pair, ROUND_CHECKS, Tier},
    route::Route,
};

/// How many routers an opener passes, round by round: a host's own router is the first
/// as a rule, and some stand behind two or three.
const HOPS: [u8; 4] = [2, 3, 2, 4];

/// How long whole checks wait for the peer to be ready: at the beginning, when it may
/// have yet to learn of this node; and in a later round.
const HOLD_FIRST: Duration = Duration::from_secs(5);
const HOLD: Duration = Duration::from_secs(2);

/// The same at the very beginning, where no relay is known: an allocation takes two round
/// trips.
const GRACE: Duration = Duration::from_millis(500);

/// The peer is ready when it opened its NAT no longer than this before this node did.
const READY_FOR: Duration = Duration::from_secs(4);

/// A receipt that tells of openers this long ago is a call, and no sooner after the last round than this.
const CALL_AGE: Duration = Duration::from_secs(1);
const CALL_GAP: Duration = Duration::from_secs(2);

/// How many calls are answered by a round of this node's own: each sends more than it was
/// sent, and to whom the peer's advert names. A peer of this version calls no oftener.
const CALL_INTERVAL: Duration = Duration::from_secs(8);
const CALL_BURST: u32 = 6;

/// Rounds while data flows: a path that returns is found within two. Those of pairs that
/// never worked are farther apart after the first few, see above.
const ROUND: Duration = Duration::from_secs(8);
const ROUND_RESTED: Duration = Duration::from_secs(40);
const EARLY_ROUNDS: u32 = 3;

/// Rounds while none flows: ever farther apart, up to this.
const ROUND_MAX: Duration = Duration::from_secs(120);

/// How often openers go out at most: candidates change one after the other when a node
/// starts.
const OPENING_INTERVAL: Duration = Duration::from_secs(2);
const OPENING_BURST: u32 = 6;

/// What is known of the rounds.
#[derive(Debug)]
pub(super) struct Punching {
    /// When openers last went out.
    pub(super) opened: Option<Instant>,
    /// When the peer's did, as it told.
    peer_opened: Option<Instant>,
    /// Whole checks are held back until then at most.
    held: Option<Held>,
    /// When the last round began.
    begun: Option<Instant>,
    /// How many there were since all was probed afresh.
    rounds: u32,
    /// From 0 to 1, so that a thousand peers do not keep step.
    jitter: f64,
    openings: Budget,
    calls: Budget,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    until: Instant,
    /// All is probed afresh: fast probing follows.
    first: bool,
}

impl Punching {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            opened: None,
            peer_opened: None,
            held: None,
            begun: None,
            rounds: 0,
            jitter: 0.0,
            openings: Budget::new(OPENING_INTERVAL, OPENING_BURST, now),
            calls: Budget::new(CALL_INTERVAL, CALL_BURST, now),
        }
    }

    fn peer_is_ready(&self) -> bool {
        match (self.peer_opened, self.opened) {
            (Some(peer), Some(own)) => own <= peer + READY_FOR,
            _ => false,
        }
    }
}

/// Whether a pair leads through the NATs, and does not yet, or was not seen to do so for
/// long enough that they may have closed.
fn is_shut(pair: &Pair, selected: Option<Route>, now: Instant) -> bool {
    let direct = pair.route.via.is_lasting_socket() && pair.kind != CandidateKind::Relayed;
    direct && pair.listed && !is_open(pair, selected, now)
}

fn is_open(pair: &Pair, selected: Option<Route>, now: Instant) -> bool {
    pair.is_valid() && (selected == Some(pair.route) || !pair.is_stale(now))
}

impl Agent {
    /// All is probed afresh: whole checks wait until both sides have opened their NATs.
    pub(super) fn open_first(&mut self, now: Instant) {
        let is_beginning = self.punching.begun.is_none() && !self.remotes.is_empty();
        if (self.has_prospects() || is_beginning) && !self.has_direct() {
            self.punching.rounds = 0;
            self.begin_round(true, now);
        }
    }

    /// Whether there is a relay by which the peer can be told.
    fn has_prospects(&self) -> bool {
        !self.relays.is_empty() || self.remotes.iter().any(|c| c.kind == CandidateKind::Relayed)
    }

    /// Whole checks wait as long as a relay that has come to be known deserves.
    pub(super) fn hold_on(&mut self) {
        if let (true, Some(held), Some(begun)) =
            (self.has_prospects(), &mut self.punching.held, self.punching.begun)
            && held.first
        {
            let until = begun + HOLD_FIRST;
            held.until = until;
            self.each_shut(|pair| pair.due = Some(until));
        }
    }

    /// Begins the round that is due, and ends the wait that is over.
    pub(super) fn punch(&mut self, now: Instant) {
        if let Some(held) = self.punching.held
            && held.until <= now
        {
            if held.first {
                self.release(now);
            } else {
                // The peer cannot be told: whole checks alone would do harm.
                self.punching.held = None;
                self.each_shut(|pair| (pair.due, pair.round) = (None, 0));
            }
        }
        if self.round_due().is_some_and(|due| due <= now) {
            self.begin_round(false, now);
        }
    }

    /// When there is something to do here.
    pub(super) fn punching_due(&self) -> Option<Instant> {
        let held = self.punching.held.map(|held| held.until);
        held.into_iter().chain(self.round_due()).min()
    }

    /// Takes when the peer opened its NAT.
    pub(super) fn handle_opened(&mut self, at: Option<Instant>, now: Instant) {
        self.punching.peer_opened = self.punching.peer_opened.max(at);
        if self.punching.held.is_some() && self.punching.peer_is_ready() {
            self.release(now);
        }
    }

    /// Takes a request as the call to open this node's NAT, if it came by a relay.
    pub(super) fn handle_call(&mut self, from: Route, receipt: &Receipt, now: Instant) {
        let by_relay = self
            .pairs
            .iter()
            .any(|pair| pair.route == from && pair.tier(&self.locals) == Tier::Relayed);
        let calls = receipt.opened_ms.is_some_and(|ms| u128::from(ms) < CALL_AGE.as_millis());
        let rested = self.punching.begun.is_none_or(|begun| now >= begun + CALL_GAP);
        if by_relay && calls && rested && !self.has_direct() && self.punching.calls.take(now) {
            self.begin_round(self.selected.is_none(), now);
        }
    }

    pub(super) fn has_direct(&self) -> bool {
        self.pairs.iter().any(|pair| {
            is_open(pair, self.selected, self.now) && pair.tier(&self.locals) != Tier::Relayed
        })
    }

    /// When the next round begins, while the path is one over a relay.
    fn round_due(&self) -> Option<Instant> {
        let relayed = self.selected().is_some_and(|path| path.tier == Tier::Relayed);
        let is_shut = |pair: &&Pair| is_shut(pair, self.selected, self.now);
        let mut shut = self.pairs.iter().filter(is_shut).peekable();
        if !relayed || self.has_direct() {
            return None;
        }
        shut.peek()?;
        let early = self.punching.rounds <= EARLY_ROUNDS;
        let worked = shut.any(|pair| pair.last_answer.is_some());
        let interval = if self.traffic.is_active(self.now) {
            if worked || early { ROUND } else { ROUND_RESTED }
        } else {
            let doublings = self.punching.rounds.min(8);
            let slow = (ROUND * 2u32.pow(doublings)).min(ROUND_MAX);
            if worked || early { slow } else { slow.max(ROUND_RESTED) }
        };
        let begun = self.punching.begun.unwrap_or(self.selected_at);
        Some(begun + interval.mul_f64(1.0 - self.punching.jitter / 8.0))
    }

    fn begin_round(&mut self, first: bool, now: Instant) {
        self.punching.begun = Some(now);
        let is_shut = |pair: &&Pair| is_shut(pair, self.selected, now);
        let shut: Vec<Route> = self.pairs.iter().filter(is_shut).map(|pair| pair.route).collect();
        if shut.is_empty() || !self.punching.openings.take(now) {
            return;
        }
        let hops = HOPS[usize::try_from(self.punching.rounds).unwrap_or(0) % HOPS.len()];
        self.punching.rounds = self.punching.rounds.saturating_add(1);
        self.punching.jitter = self.rng.random();
        for route in shut {
            if self.checks.take(now) {
                self.send_check(route, What::Opener { hops }, now);
            }
        }
        self.punching.opened = Some(now);
        let until = now
            + match (first, self.has_prospects()) {
                (true, true) => HOLD_FIRST,
                (true, false) => GRACE,
                (false, _) => HOLD,
            };
        self.punching.held = Some(Held { until, first });
        self.each_shut(|pair| {
            pair.due = Some(until);
            pair.round = ROUND_CHECKS;
        });
        // The call.
        if let Some(pair) = self.selected.and_then(|route| self.pair_mut(route)) {
            pair.urgent = true;
            pair.due = Some(now);
        }
        if self.punching.peer_is_ready() {
            self.release(now);
        }
    }

    /// Both sides have opened their NATs, or the peer cannot be told to.
    fn release(&mut self, now: Instant) {
        let Some(held) = self.punching.held.take() else { return };
        self.each_shut(|pair| {
            if held.first && !pair.is_valid() {
                pair.restart(now);
            }
            pair.due = Some(now);
            pair.round = ROUND_CHECKS;
        });
    }

    fn each_shut(&mut self, change: impl Fn(&mut Pair)) {
        let (selected, now) = (self.selected, self.now);
        let shut = |pair: &&mut Pair| is_shut(pair, selected, now) && !pair.urgent;
        self.pairs.iter_mut().filter(shut).for_each(change);
    }
}
