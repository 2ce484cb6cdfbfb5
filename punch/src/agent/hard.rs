//! Through NATs that ordinary checks do not pass.
//!
//! A NAT that gives each destination another port hides its node from a peer whose own
//! NAT lets in only what comes from an address and port that it has sent to. What helps
//! depends on how the ports are chosen ([`NatProfile::parts`]):
//!
//! - *In sequence.* A fresh socket asks a STUN server which port it got; the next
//!   ones follow. The peer is told the window over the relay and sends to all of it, while
//!   further fresh sockets send to the peer. Where both sides count, each sends to the
//!   other's window in order, so that the n-th mapping of one meets the n-th of the other.
//! - *At random.* Up to 256 sockets send to the peer, which sends to random ports: of
//!   1,024 of them some four meet an open one.
//!
//! # An attempt
//!
//! The path is one over a relay, and ordinary checks have had their time. The agent asks
//! for its turn ([`Event::WantTurn`]): only one peer of a node has it at a time. Both sides
//! tell over the relay that they are *willing*, and where they are to be met. A side whose
//! port stays opens a fresh socket for that, whose outer port it knows
//! ([`Event::WantKnownSocket`]): what peers and relays have sent to WireGuard's own may have
//! had the NAT make an exception, so that what goes to a new destination leaves from a port
//! that nobody knows. Then the one with the hard NAT opens its sockets
//! ([`Event::WantSample`], [`Event::WantSockets`]), sends from them, and tells that they are
//! *open*; then the other sends. Every other try it is the other that sends first: what is
//! sent first only opens the sender's NAT, and is not to reach the peer's. As soon as a direct
//! pair is selected, or when nothing came of it, all sockets go but the one in use
//! ([`Event::ReleaseSockets`]), and the turn is over. Attempts that fail are repeated after
//! pauses that double.
//!
//! What one try does is in `hard/attempt.rs`.
//!
//! Nobody is sent to but an address of the Internet that the peer's candidates name as its
//! own, at 200 datagrams a second and no more than [`PROBES`] in a try. Probes share one
//! secret, from which each derives its transaction, so that they need no memory; an answer
//! to one proves nothing but that a check should go there.

mod attempt;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::Rng;
use sha2::{Digest, Sha256};

use super::{Agent, checks::What};
use crate::{
    candidate::{Candidate, CandidateKind},
    check::{Plan, Stage, Window},
    nat::{NatProfile, Part},
    pair::Tier,
    route::{Route, Via},
    status::Event,
};

/// The most sockets that are opened against one peer, and the most probes of a try.
pub const MAX_SOCKETS: u16 = 256;
const PROBES: usize = 1024;

/// Ordinary checks have so long before.
const SETTLED: Duration = Duration::from_millis(2500);

/// The word over the relay is repeated so often, and believed for so long.
const TELL: Duration = Duration::from_millis(300);
const TOLD_FOR: Duration = Duration::from_secs(3);

/// How long each step may take: until both sides are willing, until the sockets are
/// there, and what is sent may still be met after the last of it.
const WILLING_FOR: Duration = Duration::from_secs(10);
const PREPARE_FOR: Duration = Duration::from_secs(3);
const LINGER: Duration = Duration::from_millis(1500);

/// A turn is over after this, whatever goes on.
const TURN: Duration = Duration::from_secs(25);

/// A path that was found is waited for so long, until both sides use it.
const CLOSING: Duration = Duration::from_secs(2);

/// Pauses after an attempt that failed.
const PAUSE_MIN: Duration = Duration::from_secs(30);
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// What is known of attempts.
#[derive(Debug)]
pub(super) struct Hard {
    enabled: bool,
    own: NatProfile,
    peer: Option<(Plan, Instant)>,
    step: Step,
    /// When the turn was granted.
    turn: Option<Instant>,
    not_before: Instant,
    pause: Duration,
    number: u8,
    tries: u8,
    /// How many probes are left in this turn.
    probes: usize,
    /// What this side sends from, where its port stays.
    end: Via,
    /// The sockets that were asked for are there.
    has_sockets: bool,
    /// They were asked to be closed.
    releasing: bool,
    sample: Option<SocketAddr>,
    window: Option<Window>,
    secret: [u8; 16],
    /// Of the peer's tries, the last that was answered to.
    answered: Option<u8>,
    /// Where the peer's port stays, the last number with which it told one.
    aimed: Option<u8>,
    tell_at: Option<Instant>,
    pub(super) events: VecDeque<Event>,
}

#[derive(Debug)]
enum Step {
    Rest,
    /// Asked for the turn.
    Asked,
    /// Has the turn, and waits for the peer.
    Willing {
        since: Instant,
    },
    /// Waits for sample and sockets.
    Preparing {
        since: Instant,
    },
    /// Sends, and waits for what comes of it.
    Sending(Sending),
    /// There is a direct path.
    Closing {
        until: Instant,
    },
}

/// Datagrams on their way out.
#[derive(Debug)]
struct Sending {
    routes: VecDeque<Route>,
    what: What,
    next: Instant,
    until: Instant,
    phase: Phase,
}

/// What datagrams are sent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// They open this side's NAT: the peer is told when they are out.
    Opening,
    /// Nothing is sent yet: the peer, which knows where to, is to open its side first.
    Inviting,
    /// They are to meet the peer, whose side is open.
    Meeting,
}

impl Hard {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            enabled: true,
            own: NatProfile::default(),
            peer: None,
            step: Step::Rest,
            turn: None,
            not_before: now,
            pause: PAUSE_MIN,
            number: 0,
            tries: 0,
            probes: 0,
            end: Via::Socket,
            has_sockets: false,
            releasing: false,
            sample: None,
            window: None,
            secret: [0; 16],
            answered: None,
            aimed: None,
            tell_at: None,
            events: VecDeque::new(),
        }
    }

    /// The transaction of the probe to this route.
    fn probe_id(&self, route: Route) -> [u8; 12] {
        let mut hash = Sha256::new();
        hash.update(self.secret);
        hash.update(route.to_string());
        let mut id = [0; 12];
        id.copy_from_slice(&hash.finalize()[..12]);
        id
    }

    fn is_probing(&self) -> bool {
        matches!(self.step, Step::Willing { .. } | Step::Sending(_))
    }

    fn parts(&self) -> Option<(Part, Part)> {
        self.own.parts(self.peer?.0.nat)
    }

    /// What the peer told of late.
    fn told(&self, now: Instant) -> Option<Plan> {
        self.peer.filter(|(_, at)| now < *at + TOLD_FOR).map(|(plan, _)| plan)
    }

    pub(super) fn due(&self) -> Option<Instant> {
        let step = match &self.step {
            Step::Rest | Step::Asked => None,
            Step::Willing { since } => Some(*since + WILLING_FOR),
            Step::Preparing { since } => Some(*since + PREPARE_FOR),
            Step::Sending(sending) if sending.routes.is_empty() => Some(sending.until),
            Step::Sending(sending) => Some(sending.next),
            Step::Closing { until } => Some(*until),
        };
        step.into_iter().chain(self.tell_at).chain(self.turn.map(|turn| turn + TURN)).min()
    }
}

impl Agent {
    /// Takes what is known of this node's own NAT.
    pub fn set_nat(&mut self, nat: NatProfile, now: Instant) {
        if nat != self.hard.own {
            self.hard.own = nat;
            // The peer is told.
            if let Some(route) = self.selected.filter(|route| self.is_relayed(*route))
                && let Some(pair) = self.pair_mut(route)
            {
                pair.ask_again(now);
            }
        }
        self.drive(now);
    }

    /// Whether hard NATs are tried at all; they are unless this says otherwise.
    pub fn set_hard(&mut self, enabled: bool, now: Instant) {
        self.hard.enabled = enabled;
        self.drive(now);
    }

    /// It is this peer's turn, after [`Event::WantTurn`]. [`Event::TurnOver`] ends it.
    pub fn grant_turn(&mut self, now: Instant) {
        if matches!(self.hard.step, Step::Asked) {
            self.hard.turn = Some(now);
            self.hard.tries = 0;
            self.hard.probes = PROBES;
            (self.hard.answered, self.hard.aimed) = (None, None);
            self.rng.fill_bytes(&mut self.hard.secret);
            self.hard.step = Step::Willing { since: now };
            self.hard.tell_at = Some(now);
        } else {
            self.hard.events.push_back(Event::TurnOver);
        }
        self.drive(now);
    }

    /// Takes which address a fresh socket of this node had outside, after
    /// [`Event::WantSample`] or [`Event::WantKnownSocket`]; `None` where no STUN server
    /// answered.
    pub fn handle_sample(&mut self, external: Option<SocketAddr>, now: Instant) {
        if matches!(self.hard.step, Step::Preparing { .. }) {
            match (external, self.hard.parts()) {
                (Some(external), _) => self.hard.sample = Some(external),
                (None, Some((Part::Steady, _))) => self.be_met_as_ever(now),
                (None, _) => self.end_attempt(false, now),
            }
        }
        self.drive(now);
    }

    /// This node's NAT and the peer's, once both are known.
    pub(super) fn nats(&self) -> Option<(NatProfile, NatProfile)> {
        Some((self.hard.own, self.hard.peer?.0.nat))
    }

    /// What the peer is told by this route, if anything.
    pub(super) fn plan(&self, route: Route) -> Option<Plan> {
        let relayed = self.is_relayed(route) && self.hard.enabled && !self.has_direct();
        let stage = match &self.hard.step {
            Step::Willing { .. } | Step::Preparing { .. } => Stage::Willing,
            Step::Sending(sending)
                if sending.phase == Phase::Opening && !sending.routes.is_empty() =>
            {
                Stage::Willing
            }
            Step::Sending(_) => Stage::Open,
            Step::Rest | Step::Asked | Step::Closing { .. } => Stage::None,
        };
        let (nat, number, window) = (self.hard.own, self.hard.number, self.hard.window);
        let is_known = nat != NatProfile::default();
        (relayed && is_known).then_some(Plan { nat, stage, number, window })
    }

    /// Takes what the peer tells.
    pub(super) fn handle_plan(&mut self, from: Route, plan: Option<Plan>, now: Instant) {
        if let Some(plan) = plan
            && self.is_relayed(from)
        {
            self.hard.peer = Some((plan, now));
        }
    }

    /// Whether an answer is one to a probe of the attempt that goes on.
    pub(super) fn is_probe(&self, from: Route, id: &[u8; 12]) -> bool {
        self.hard.is_probing() && self.hard.turn.is_some() && self.hard.probe_id(from) == *id
    }

    /// Goes on with the attempt.
    pub(super) fn pass_hard(&mut self, now: Instant) {
        let is_over = self.hard.turn.is_some_and(|turn| now >= turn + TURN);
        if self.has_direct() {
            return self.close(now);
        }
        if is_over || !self.hard.enabled {
            return self.end_attempt(false, now);
        }
        self.release_unused();
        match &self.hard.step {
            Step::Rest if self.turn_due(now).is_some_and(|due| due <= now) => {
                self.hard.step = Step::Asked;
                self.hard.events.push_back(Event::WantTurn);
            }
            Step::Rest | Step::Asked => {}
            Step::Closing { .. } => self.hard.step = Step::Willing { since: now },
            Step::Willing { since } if now >= *since + WILLING_FOR => self.end_attempt(false, now),
            Step::Willing { .. } => self.begin_try(now),
            Step::Preparing { since } if now >= *since + PREPARE_FOR => {
                self.end_attempt(false, now);
            }
            Step::Preparing { .. } => self.go_on_prepared(now),
            Step::Sending(_) => self.send_probes(now),
        }
        if self.hard.tell_at.is_some_and(|at| at <= now) {
            self.hard.tell_at = Some(now + TELL);
            if let Some(route) = self.selected {
                self.send_check(route, What::Check { nominate: false }, now);
            }
        }
    }

    /// When there is something to do here.
    pub(super) fn hard_due(&self) -> Option<Instant> {
        let turn = match self.hard.step {
            Step::Rest if self.hard.enabled && !self.has_direct() => self.turn_due(self.now),
            _ => None,
        };
        self.hard.due().into_iter().chain(turn).min()
    }

    /// When the turn is asked for, if there is anything to be gained.
    fn turn_due(&self, now: Instant) -> Option<Instant> {
        let relayed = self.selected.is_some_and(|route| self.is_relayed(route));
        if !relayed || self.hard.parts().is_none() || self.target().is_none() {
            return None;
        }
        // The peer's pause may be over a little sooner than ours.
        let called = self.hard.told(now).is_some_and(|plan| plan.stage > Stage::None);
        let early = if called { self.hard.pause / 8 } else { Duration::ZERO };
        let rested = self.hard.not_before.checked_sub(early).unwrap_or(now);
        Some(rested.max(self.selected_at + SETTLED))
    }

    /// There is a direct path: what is not needed goes when both sides use it.
    fn close(&mut self, now: Instant) {
        match self.hard.step {
            Step::Rest => {}
            Step::Asked => self.end_attempt(true, now),
            Step::Closing { until } if now < until => {}
            Step::Closing { .. } => self.end_attempt(true, now),
            _ => {
                self.hard.tell_at = None;
                self.hard.step = Step::Closing { until: now + CLOSING };
            }
        }
    }

    fn end_attempt(&mut self, success: bool, now: Instant) {
        let asked = matches!(self.hard.step, Step::Asked);
        if matches!(self.hard.step, Step::Rest) {
            return;
        }
        self.hard.step = Step::Rest;
        self.hard.tell_at = None;
        (self.hard.sample, self.hard.window) = (None, None);
        self.hard.end = Via::Socket;
        if asked {
            // The turn is given back when it comes.
            return;
        }
        self.hard.turn = None;
        self.hard.not_before = now + self.hard.pause;
        self.hard.pause = if success { PAUSE_MIN } else { (self.hard.pause * 2).min(PAUSE_MAX) };
        if !self.extra.is_empty() {
            let keep = match self.selected.map(|route| route.via) {
                Some(Via::Extra(id)) => Some(id),
                _ => None,
            };
            self.hard.releasing = true;
            self.hard.events.push_back(Event::ReleaseSockets { keep });
        }
        self.hard.events.push_back(Event::TurnOver);
    }

    /// Further sockets are there or gone.
    pub(super) fn note_sockets(&mut self) {
        self.hard.has_sockets = !self.extra.is_empty();
        self.hard.releasing = false;
    }

    /// A socket whose path has ended goes.
    fn release_unused(&mut self) {
        let resting = matches!(self.hard.step, Step::Rest | Step::Asked);
        let used = self.pairs.iter().any(|p| p.is_valid() && matches!(p.route.via, Via::Extra(_)));
        if resting && !used && !self.extra.is_empty() && !self.hard.releasing {
            self.hard.releasing = true;
            self.hard.events.push_back(Event::ReleaseSockets { keep: None });
        }
    }

    /// An address of the Internet that the peer names as its own.
    fn target(&self) -> Option<SocketAddr> {
        public(&self.remotes)
    }

    fn is_relayed(&self, route: Route) -> bool {
        let mut pairs = self.pairs.iter();
        pairs.any(|pair| pair.route == route && pair.tier(&self.locals) == Tier::Relayed)
    }
}

/// The address of the Internet by which a node is to be met.
fn public(candidates: &[Candidate]) -> Option<SocketAddr> {
    let named = |kind| {
        let mut named = candidates.iter().filter(|c| c.kind == kind && c.is_for_relays());
        named.find(|candidate| candidate.addr.is_ipv4()).map(|candidate| candidate.addr)
    };
    named(CandidateKind::ServerReflexive).or_else(|| named(CandidateKind::Host))
}
