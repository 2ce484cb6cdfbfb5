//! One try to pass hard NATs: who prepares what, who sends first, and where to.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{LINGER, MAX_SOCKETS, PREPARE_FOR, PROBES, Phase, Sending, Step, public};
use crate::{
    agent::{Agent, MAX_QUEUED, checks::What},
    candidate::CandidateKind,
    check::{Plan, Stage, Window},
    nat::{Part, PortPattern},
    route::{Route, Via},
    status::Event,
};

/// Sockets of a side that counts: one loses its check now and then.
const COUNTING_SOCKETS: u16 = 4;

/// Ports of the other side that are met in order, where both count.
const DIAGONAL: u8 = 16;

/// 200 probes a second.
const PACE: Duration = Duration::from_millis(5);

/// So many tries in one turn: of a sequence others may have taken the next port.
const TRIES: u8 = 3;

/// Openers get so many routers far.
const HOPS: u8 = 2;

/// Ports that no NAT gives out.
const FIRST_PORT: u16 = 1024;

/// What a try with all its probes takes.
fn pace_of_all() -> Duration {
    PACE * u32::try_from(PROBES).unwrap_or(u32::MAX)
}

impl Agent {
    /// Both have the turn: each prepares its part, the side with the hard NAT once it knows
    /// where the other is.
    pub(super) fn begin_try(&mut self, now: Instant) {
        let Some(peer) = self.hard.told(now).filter(|plan| plan.stage > Stage::None) else {
            return;
        };
        match self.hard.parts() {
            Some((Part::Steady, other)) => {
                if self.hard.window.is_none() {
                    self.prepare_to_be_met(now);
                } else if peer.stage == Stage::Open && self.hard.answered != Some(peer.number) {
                    self.hard.answered = Some(peer.number);
                    self.send_to_ports(other, &peer, now);
                }
            }
            Some((own, other)) => {
                if other == Part::Steady {
                    // Each of its sockets is aimed at once.
                    if peer.window.is_none() || self.hard.aimed == Some(peer.number) {
                        return;
                    }
                    self.hard.aimed = Some(peer.number);
                }
                let tries = if own == Part::Counting { TRIES } else { 1 };
                if self.hard.tries == tries {
                    return self.end_attempt(false, now);
                }
                self.hard.tries += 1;
                self.begin_number();
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

    fn begin_number(&mut self) {
        self.hard.number = self.hard.number.wrapping_add(1);
        (self.hard.sample, self.hard.window) = (None, None);
        (self.hard.has_sockets, self.hard.releasing) = (false, false);
        self.hard.end = Via::Socket;
    }

    /// The port of this side stays: a fresh socket is where it is to be met, or where there
    /// is no NAT that could have made an exception, its own.
    fn prepare_to_be_met(&mut self, now: Instant) {
        self.begin_number();
        let own = public(&self.locals);
        let is_host =
            |own| self.locals.iter().any(|c| (c.kind, c.addr) == (CandidateKind::Host, own));
        if own.is_none_or(is_host) {
            return self.be_met_as_ever(now);
        }
        self.hard.events.push_back(Event::WantKnownSocket);
        self.hard.step = Step::Preparing { since: now };
    }

    /// The peer is to aim at where WireGuard's socket is known to be.
    pub(super) fn be_met_as_ever(&mut self, now: Instant) {
        let Some(own) = public(&self.locals) else { return self.end_attempt(false, now) };
        self.hard.end = Via::Socket;
        self.await_peer(own.port(), now);
    }

    fn await_peer(&mut self, port: u16, now: Instant) {
        self.hard.window = Some(Window { base: port, count: 1 });
        self.hard.tell_at = Some(now);
        self.hard.step = Step::Willing { since: now };
    }

    /// The sockets are there, and the sample.
    pub(super) fn go_on_prepared(&mut self, now: Instant) {
        let (Some((own, other)), Some(target)) = (self.hard.parts(), self.target()) else {
            return self.end_attempt(false, now);
        };
        let waits_for_sample = own != Part::Guessed && self.hard.sample.is_none();
        if !self.hard.has_sockets || waits_for_sample {
            return;
        }
        match own {
            Part::Steady => self.take_known_socket(now),
            Part::Counting | Part::Guessed => self.open_sockets(other, target, now),
        }
    }

    fn take_known_socket(&mut self, now: Instant) {
        let (Some(sample), Some(socket)) = (self.hard.sample, self.extra.first()) else { return };
        // The peer knows the address, and is told the port alone.
        if public(&self.locals).is_none_or(|own| own.ip() != sample.ip()) {
            return self.be_met_as_ever(now);
        }
        self.hard.end = Via::Extra(*socket);
        self.await_peer(sample.port(), now);
    }

    /// The sockets send to the peer, or let it send first.
    fn open_sockets(&mut self, other: Part, target: SocketAddr, now: Instant) {
        if let (PortPattern::Sequential { step }, Some(sample)) =
            (self.hard.own.ports, self.hard.sample)
        {
            let next = i32::from(sample.port()).wrapping_add(step).rem_euclid(1 << 16);
            let count = if other == Part::Counting { DIAGONAL } else { Window::MAX };
            let base = u16::try_from(next).unwrap_or_default();
            self.hard.window = Some(Window { base, count });
        }
        self.hard.tell_at = Some(now);
        let near = self.hard.number % 2 == 1;
        match other {
            // Where both count, the ports that are sent to have yet to be told.
            Part::Counting => self.send_all(VecDeque::new(), What::Probe, Phase::Opening, now),
            _ if near => {
                let what = What::Opener { hops: HOPS };
                self.send_all(self.routes_to(target), what, Phase::Opening, now);
            }
            _ => self.send_all(VecDeque::new(), What::Probe, Phase::Inviting, now),
        }
    }

    /// From each of the sockets to where the peer said it is to be met.
    fn routes_to(&self, target: SocketAddr) -> VecDeque<Route> {
        let window = self.hard.peer.and_then(|(plan, _)| plan.window);
        let port = window.map_or(target.port(), |window| window.base);
        let remote = SocketAddr::new(target.ip(), port);
        let sockets = self.extra.iter().take(MAX_SOCKETS.into());
        sockets.map(|id| Route { via: Via::Extra(*id), remote }).collect()
    }

    /// The other side is open, or ready: its ports are sent to.
    fn send_to_ports(&mut self, other: Part, peer: &Plan, now: Instant) {
        let Some(target) = self.target() else { return };
        let via = self.hard.end;
        let to = |port| Route { via, remote: SocketAddr::new(target.ip(), port) };
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
        self.send_all(routes, What::Probe, Phase::Opening, now);
    }

    fn send_all(&mut self, routes: VecDeque<Route>, what: What, phase: Phase, now: Instant) {
        let until = now
            + match phase {
                // The other side sends first, and takes its time.
                Phase::Inviting => PREPARE_FOR + pace_of_all(),
                // Its window is waited for.
                _ if routes.is_empty() => PREPARE_FOR,
                _ => LINGER,
            };
        self.hard.step = Step::Sending(Sending { routes, what, next: now, until, phase });
        self.send_probes(now);
    }

    /// Sends what is due, and waits a while for what comes of it.
    pub(super) fn send_probes(&mut self, now: Instant) {
        let parts = self.hard.parts();
        while let Step::Sending(sending) = &mut self.hard.step
            && sending.next <= now
            && self.queue.len() < MAX_QUEUED
            && let Some(route) = sending.routes.pop_front()
        {
            // At most one is made up for that could not go in time.
            sending.next = (sending.next + PACE).max(now.checked_sub(PACE).unwrap_or(now));
            sending.until = now + LINGER;
            if sending.routes.is_empty() && sending.phase == Phase::Opening {
                // The peer waits for the word that all are out.
                self.hard.tell_at = Some(now);
                if let Some((Part::Guessed, _)) = parts {
                    sending.until += pace_of_all();
                }
            }
            let what = sending.what;
            if what == What::Probe {
                if self.hard.probes == 0 {
                    continue;
                }
                self.hard.probes -= 1;
            }
            self.send_probe(route, what, self.hard.probe_id(route), now);
        }
        let Step::Sending(sending) = &self.hard.step else { return };
        if !sending.routes.is_empty() {
            return;
        }
        let (phase, until) = (sending.phase, sending.until);
        let open = self.hard.told(now).filter(|peer| peer.stage == Stage::Open);
        match (phase, parts, open) {
            // Both are open: the n-th port of one sends to the n-th of the other.
            (Phase::Opening, Some((Part::Counting, Part::Counting)), Some(peer))
                if peer.window.is_some() && self.hard.answered != Some(peer.number) =>
            {
                self.hard.answered = Some(peer.number);
                self.send_diagonally(&peer, now);
            }
            (Phase::Inviting, Some((_, Part::Steady)), Some(_)) => {
                if let Some(target) = self.target() {
                    self.send_all(self.routes_to(target), What::Probe, Phase::Meeting, now);
                }
            }
            _ if now >= until => {
                // The port of this side was aimed at: for the next try it needs another.
                if let Some((Part::Steady, _)) = parts {
                    self.hard.window = None;
                }
                self.hard.step = Step::Willing { since: now };
            }
            _ => {}
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
        self.send_all(routes, What::Probe, Phase::Meeting, now);
    }
}
