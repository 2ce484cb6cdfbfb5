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
//! tell over the relay that they are *willing*, the one with the hard NAT opens its
//! sockets ([`Event::WantSample`], [`Event::WantSockets`]), sends from them, and tells that
//! they are *open*; then the other sends. As soon as a direct pair is selected, or when
//! nothing came of it, all sockets go but the one in use ([`Event::ReleaseSockets`]), and
//! the turn is over. Attempts that fail are repeated after pauses that double.
//!
//! Nobody is sent to but an address of the Internet that the peer's candidates name as its
//! own, at 200 datagrams a second and no more than [`PROBES`] in a try. Probes share one
//! secret, from which each derives its transaction, so that they need no memory; an answer
//! to one proves nothing but that a check should go there.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::Rng;
use sha2::{Digest, Sha256};

use super::{Agent, checks::What};
use crate::{
    candidate::CandidateKind,
    check::{Plan, Stage, Window},
    nat::{NatProfile, Part, PortPattern},
    pair::Tier,
    route::{Route, Via},
    status::Event,
};

/// The most sockets that are opened against one peer, and the most probes of a try.
pub const MAX_SOCKETS: u16 = 256;
const PROBES: usize = 1024;

/// Sockets of a side that counts: one loses its check now and then.
const COUNTING_SOCKETS: u16 = 4;

/// Ports of the other side that are met in order, where both count.
const DIAGONAL: u8 = 16;

/// 200 probes a second.
const PACE: Duration = Duration::from_millis(5);

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

/// So many tries in one turn: of a sequence others may have taken the next port.
const TRIES: u8 = 3;

/// A path that was found is waited for so long, until both sides use it.
const CLOSING: Duration = Duration::from_secs(2);

/// Pauses after an attempt that failed.
const PAUSE_MIN: Duration = Duration::from_secs(30);
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// Openers get so many routers far; every other try goes all the way, for NATs that
/// stand farther off.
const HOPS: u8 = 2;

/// Ports that no NAT gives out.
const FIRST_PORT: u16 = 1024;

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
    /// The sockets that were asked for are there.
    has_sockets: bool,
    /// They were asked to be closed.
    releasing: bool,
    sample: Option<SocketAddr>,
    window: Option<Window>,
    secret: [u8; 16],
    /// Of the peer's tries, the last that was answered to.
    answered: Option<u8>,
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
    /// They open this side: the peer is told when they are out.
    opens: bool,
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
            has_sockets: false,
            releasing: false,
            sample: None,
            window: None,
            secret: [0; 16],
            answered: None,
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
            self.hard.answered = None;
            self.rng.fill_bytes(&mut self.hard.secret);
            self.hard.step = Step::Willing { since: now };
            self.hard.tell_at = Some(now);
        } else {
            self.hard.events.push_back(Event::TurnOver);
        }
        self.drive(now);
    }

    /// Takes which address a fresh socket of this node had outside, after
    /// [`Event::WantSample`]; `None` where no STUN server answered.
    pub fn handle_sample(&mut self, external: Option<SocketAddr>, now: Instant) {
        if matches!(self.hard.step, Step::Preparing { .. }) {
            match external {
                Some(external) => self.hard.sample = Some(external),
                None => self.end_attempt(false, now),
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
            Step::Sending(sending) if sending.opens && !sending.routes.is_empty() => Stage::Willing,
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
            Step::Preparing { .. } => self.open_sockets(now),
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

    /// Both have the turn: the side with the hard NAT prepares, the other waits until it
    /// has and sends.
    fn begin_try(&mut self, now: Instant) {
        let Some(peer) = self.hard.told(now).filter(|plan| plan.stage > Stage::None) else {
            return;
        };
        match self.hard.parts() {
            Some((Part::Steady, other)) => {
                if peer.stage == Stage::Open && self.hard.answered != Some(peer.number) {
                    self.hard.answered = Some(peer.number);
                    self.send_to_ports(other, &peer, now);
                }
            }
            Some((own, other)) => {
                let tries = if own == Part::Counting { TRIES } else { 1 };
                if self.hard.tries == tries {
                    return self.end_attempt(false, now);
                }
                self.hard.tries += 1;
                self.hard.number = self.hard.number.wrapping_add(1);
                (self.hard.sample, self.hard.window) = (None, None);
                (self.hard.has_sockets, self.hard.releasing) = (false, false);
                let count = match (own, other) {
                    (Part::Guessed, _) => MAX_SOCKETS,
                    (_, Part::Counting) => 1,
                    _ => COUNTING_SOCKETS,
                };
                self.hard.events.push_back(Event::WantSockets { count });
                if own == Part::Counting {
                    self.hard.events.push_back(Event::WantSample);
                }
                self.hard.step = Step::Preparing { since: now };
            }
            None => self.end_attempt(false, now),
        }
    }

    /// The sockets are there, and the sample: they send to the peer.
    fn open_sockets(&mut self, now: Instant) {
        let (Some((own, other)), Some(target)) = (self.hard.parts(), self.target()) else {
            return self.end_attempt(false, now);
        };
        if !self.hard.has_sockets || (own == Part::Counting && self.hard.sample.is_none()) {
            return;
        }
        let socket = |id: &u32| Route { via: Via::Extra(*id), remote: target };
        if let (PortPattern::Sequential { step }, Some(sample)) =
            (self.hard.own.ports, self.hard.sample)
        {
            let next = i32::from(sample.port()).wrapping_add(step).rem_euclid(1 << 16);
            let count = if other == Part::Counting { DIAGONAL } else { Window::MAX };
            let base = u16::try_from(next).unwrap_or_default();
            self.hard.window = Some(Window { base, count });
        }
        self.hard.tell_at = Some(now);
        // Where both count, the ports that are sent to have yet to be told.
        let routes = match other {
            Part::Counting => VecDeque::new(),
            _ => self.extra.iter().take(MAX_SOCKETS.into()).map(socket).collect(),
        };
        let near = self.hard.number % 2 == 1;
        let what = if near { What::Opener { hops: HOPS } } else { What::Probe };
        self.send_all(routes, what, true, now);
    }

    /// The other side is open: its ports are sent to.
    fn send_to_ports(&mut self, other: Part, peer: &Plan, now: Instant) {
        let Some(target) = self.target() else { return };
        let to = |port| Route::direct(SocketAddr::new(target.ip(), port));
        let routes: VecDeque<Route> = match (other, peer.nat.ports, peer.window) {
            (Part::Counting, PortPattern::Sequential { step }, Some(window)) => {
                let ports: Vec<u16> = window.ports(step).collect();
                // What comes before the other's mapping is made is lost.
                ports.iter().chain(&ports).map(|port| to(*port)).collect()
            }
            (Part::Guessed, ..) => {
                let count = usize::from(u16::MAX - FIRST_PORT) + 1;
                let chosen = rand::seq::index::sample(&mut self.rng, count, PROBES);
                let port = |index| u16::try_from(index + usize::from(FIRST_PORT)).ok();
                chosen.into_iter().filter_map(port).map(to).collect()
            }
            _ => return,
        };
        self.send_all(routes, What::Probe, false, now);
    }

    fn send_all(&mut self, routes: VecDeque<Route>, what: What, opens: bool, now: Instant) {
        // Where nothing is sent yet, the other side's window is waited for.
        let until = now + if routes.is_empty() { PREPARE_FOR } else { LINGER };
        self.hard.step = Step::Sending(Sending { routes, what, next: now, until, opens });
        self.send_probes(now);
    }

    /// Sends what is due, and waits a while for what comes of it.
    fn send_probes(&mut self, now: Instant) {
        while let Step::Sending(sending) = &mut self.hard.step
            && sending.next <= now
            && self.queue.len() < super::MAX_QUEUED
            && let Some(route) = sending.routes.pop_front()
        {
            // At most one is made up for that could not go in time.
            sending.next = (sending.next + PACE).max(now.checked_sub(PACE).unwrap_or(now));
            sending.until = now + LINGER;
            // The peer waits for the word that all are out.
            if sending.routes.is_empty() && sending.opens {
                self.hard.tell_at = Some(now);
            }
            let what = sending.what;
            let is_opener = sending.opens;
            if !is_opener && self.hard.probes == 0 {
                continue;
            }
            self.hard.probes -= usize::from(!is_opener);
            self.send_probe(route, what, self.hard.probe_id(route), now);
        }
        let Step::Sending(sending) = &self.hard.step else { return };
        if !sending.routes.is_empty() {
            return;
        }
        let (opens, until) = (sending.opens, sending.until);
        let parts = self.hard.parts();
        let peer = self.hard.told(now);
        match (parts, peer) {
            // Both are open: the n-th port of one sends to the n-th of the other.
            (Some((Part::Counting, Part::Counting)), Some(peer))
                if opens
                    && peer.stage == Stage::Open
                    && peer.window.is_some()
                    && self.hard.answered != Some(peer.number) =>
            {
                self.hard.answered = Some(peer.number);
                self.send_diagonally(&peer, now);
            }
            // The other side takes its time, and says when it is through.
            (Some((Part::Guessed, Part::Steady)), Some(_)) if opens => {
                if now >= until + PACE * u32::try_from(PROBES).unwrap_or(u32::MAX) {
                    self.hard.step = Step::Willing { since: now };
                } else if now >= until {
                    self.wait_until(until + PACE * u32::try_from(PROBES).unwrap_or(u32::MAX));
                }
            }
            _ if now >= until => self.hard.step = Step::Willing { since: now },
            _ => {}
        }
    }

    fn wait_until(&mut self, until: Instant) {
        if let Step::Sending(sending) = &mut self.hard.step {
            sending.until = until;
            sending.opens = false;
        }
    }

    fn send_diagonally(&mut self, peer: &Plan, now: Instant) {
        let (PortPattern::Sequential { step }, Some(window), Some(target), Some(socket)) =
            (peer.nat.ports, peer.window, self.target(), self.extra.first().copied())
        else {
            return;
        };
        let to =
            |port| Route { via: Via::Extra(socket), remote: SocketAddr::new(target.ip(), port) };
        let once: Vec<Route> = window.ports(step).map(to).collect();
        let routes = once.iter().chain(&once).chain(&once).copied().collect();
        self.send_all(routes, What::Probe, false, now);
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
        let named = |kind| {
            let mut named = self.remotes.iter().filter(|c| c.kind == kind && c.is_for_relays());
            named.find(|candidate| candidate.addr.is_ipv4()).map(|candidate| candidate.addr)
        };
        named(CandidateKind::ServerReflexive).or_else(|| named(CandidateKind::Host))
    }

    fn is_relayed(&self, route: Route) -> bool {
        let mut pairs = self.pairs.iter();
        pairs.any(|pair| pair.route == route && pair.tier(&self.locals) == Tier::Relayed)
    }
}
