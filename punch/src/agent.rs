//! The agent: one per peer, from two sets of candidates to a working path.
//!
//! # Life
//!
//! 1. An agent is made from the two nodes' keys. It is told the addresses of its own
//!    node ([`Agent::set_local_candidates`]) and those that the peer says it has
//!    ([`Agent::set_remote_candidates`]), in any order and again whenever they change.
//! 2. Each address of the peer is a pair, and a check goes to each. An allocation of
//!    this node on a relay ([`Agent::set_relays`]) makes further pairs: from there to
//!    those addresses that a relay may be asked to send to. Where a check of the peer
//!    comes from an address that nobody named (a NAT that maps anew for each
//!    destination), that is a pair as well. Each check that comes in is answered and,
//!    while its pair is not known to work, answered by a check the other way: the
//!    peer's check got out through its own NAT, so a check back gets in.
//! 3. The first pair that answers is selected, so that data flows at once. The node
//!    with the lower key controls: it moves on to a better pair when there is one and
//!    nominates what it selects; the other node follows where it can.
//! 4. The selected pair is checked on, seldom while idle, often while data flows.
//!    When it no longer answers, the next best takes its place; where there is none,
//!    the path is lost, and everything is probed afresh. An agent never gives up.
//!
//! # Manner
//!
//! Nothing here does I/O, reads a clock or draws a random number of its own. After
//! each call, drain [`Agent::poll_transmit`] and [`Agent::poll_event`], then call
//! [`Agent::handle_timeout`] at [`Agent::poll_timeout`]. To leave something undrained
//! delays it but stalls nothing: the deadline is due at once while something waits.
//!
//! What a peer, or somebody between, can make an agent do is bounded: so many pairs,
//! so many checks and answers a second, one answer and one check for each request,
//! the answer never longer than the request, and nothing at all for what does not
//! verify.
//!
//! A node with several addresses of one family should send from the one that it was
//! sent to (`IP_PKTINFO`). Where the kernel answers from another, the pair stays
//! silent, and the pair of the other address is used.
//!
//! Left out on purpose: foundations and frozen pairs (RFC 8445 §6.1.2.6; there is
//! one component and few pairs), role conflicts (the keys decide), error responses,
//! and port prediction for NATs that choose ports at random.

mod pairs;
mod select;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use crate::{
    budget::Budget,
    candidate::{Candidate, CandidateKind, canonical},
    check::{Answer, Check, CheckKeys, OpenError, Request, Username},
    pair::{self, Pair, Tier},
    replay::{Old, Replay},
    route::{LocalRelay, Route, Via},
    status::{Event, PairStatus, SelectedPath, Transmit},
};

/// The most candidates of the peer that are used: as many as an advert carries.
pub const MAX_REMOTE: usize = 8;

/// The most allocations of this node that are used: one, and one to fall back on.
pub const MAX_RELAYS: usize = 2;

/// The most candidates of the peer that are looked at through each.
const MAX_BY_RELAY: usize = 4;

/// The most pairs of the peer's candidates.
pub const MAX_LISTED: usize = MAX_REMOTE + MAX_RELAYS * MAX_BY_RELAY;

/// The most other pairs: learned from checks, or of former candidates that still work.
pub const MAX_LEARNED: usize = 8;

/// The most candidates of its own that a node is believed to have.
const MAX_LOCAL: usize = 64;

/// One check each 50 ms (RFC 8445 §14.2), and as many at once as there are candidates.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
const CHECK_BURST: u32 = 8;

/// Answers: twice the checks that a peer of this version sends.
const ANSWER_INTERVAL: Duration = Duration::from_millis(25);
const ANSWER_BURST: u32 = 32;

/// A check to where a stale request came from, to learn the peer's clock.
const CHALLENGE_INTERVAL: Duration = Duration::from_secs(1);

/// How often a pair is learned from a check, once there are many: a NAT gives few
/// new addresses, and two that never agree on one give new ones for ever.
const LEARN_INTERVAL: Duration = Duration::from_secs(15);
const LEARN_BURST: u32 = 8;

/// How long an answer is waited for: what queues longer than that is no path.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How often a sign of life from the peer restarts fast probing of all pairs.
const WAKE_INTERVAL: Duration = Duration::from_secs(120);

/// The most datagrams that wait for [`Agent::poll_transmit`].
const MAX_QUEUED: usize = 64;

/// Why a datagram had no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CheckError {
    /// It is no check of the peer.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A request that was here before.
    #[error("a request that was here before")]
    Replayed,
    /// A request of another time than the peer's clock shows.
    #[error("a request of another time")]
    Stale,
    /// An answer to nothing that was asked of late.
    #[error("an answer to nothing that was asked")]
    Unsolicited,
    /// An answer from another address, or at another end, than was asked
    /// (RFC 8445 §7.2.5.2.1).
    #[error("an answer from another address than was asked")]
    Elsewhere,
    /// More requests than anybody needs.
    #[error("more requests than anybody needs")]
    Busy,
    /// It came in at a relay or a socket that is not this node's any more.
    #[error("at an end that is gone")]
    Gone,
}

/// The machine that finds and keeps the path to one peer.
#[derive(Debug)]
pub struct Agent {
    keys: CheckKeys,
    rng: StdRng,
    started: Instant,
    started_unix_ms: u64,
    /// The latest time that any call told.
    now: Instant,
    locals: Vec<Candidate>,
    remotes: Vec<Candidate>,
    relays: Vec<LocalRelay>,
    extra: Vec<u32>,
    pairs: Vec<Pair>,
    selected: Option<Route>,
    /// The peer is known to have heard the selected pair's nomination.
    told: bool,
    /// What the controlling peer nominated last, and when by its clock.
    nominated: Option<(Route, u64)>,
    /// A pair that was faster than the selected one, and how often.
    gaining: Option<(Route, u32)>,
    replay: Replay,
    in_flight: VecDeque<InFlight>,
    checks: Budget,
    answers: Budget,
    challenges: Budget,
    learns: Budget,
    wakes: Budget,
    last_data: Option<Instant>,
    queue: VecDeque<Transmit>,
    reported: Option<(Route, Tier)>,
}

#[derive(Debug)]
struct InFlight {
    id: [u8; 12],
    route: Route,
    at: Instant,
    nominate: bool,
}

impl Agent {
    /// An agent for the peer that `keys` are shared with. All randomness comes from
    /// `seed`; `unix_ms` is what the wall clock shows at `now`.
    pub fn new(keys: CheckKeys, seed: [u8; 32], now: Instant, unix_ms: u64) -> Self {
        Self {
            keys,
            rng: StdRng::from_seed(seed),
            started: now,
            started_unix_ms: unix_ms,
            now,
            locals: Vec::new(),
            remotes: Vec::new(),
            relays: Vec::new(),
            extra: Vec::new(),
            pairs: Vec::new(),
            selected: None,
            told: false,
            nominated: None,
            gaining: None,
            replay: Replay::default(),
            in_flight: VecDeque::new(),
            checks: Budget::new(CHECK_INTERVAL, CHECK_BURST, now),
            answers: Budget::new(ANSWER_INTERVAL, ANSWER_BURST, now),
            challenges: Budget::new(CHALLENGE_INTERVAL, 1, now),
            learns: Budget::new(LEARN_INTERVAL, LEARN_BURST, now),
            wakes: Budget::new(WAKE_INTERVAL, 1, now),
            last_data: None,
            queue: VecDeque::new(),
            reported: None,
        }
    }

    /// The user name that the peer's datagrams carry, requests and answers alike: see
    /// [`Username::peek`].
    pub fn inbound_username(&self) -> Username {
        self.keys.inbound_username()
    }

    /// Takes this node's own candidates. The host addresses among them tell a path on
    /// the LAN from one through a NAT; none of them is ever checked as the peer's.
    pub fn set_local_candidates(&mut self, candidates: &[Candidate], now: Instant) {
        let locals = pairs::usable(candidates, MAX_LOCAL);
        if locals != self.locals {
            self.locals = locals;
            self.sync_pairs(now);
        }
        self.drive(now);
    }

    /// Takes the candidates that the peer says it has, best first; those past
    /// [`MAX_REMOTE`] are left alone. Pairs that work stay, also when the peer no
    /// longer names them. What leads through the mesh itself must not be among them.
    pub fn set_remote_candidates(&mut self, candidates: &[Candidate], now: Instant) {
        let remotes = pairs::usable(candidates, MAX_REMOTE);
        if remotes != self.remotes {
            self.remotes = remotes;
            self.sync_pairs(now);
            // The peer has moved, or the network around it: the selected pair may be
            // dead, and what was closed may be open.
            self.recheck(now);
        }
        self.drive(now);
    }

    /// Takes this node's allocations on relays, best first; those past [`MAX_RELAYS`]
    /// are left alone. What went over one that is gone has another path, or none, at once.
    pub fn set_relays(&mut self, relays: &[LocalRelay], now: Instant) {
        let relays: Vec<LocalRelay> = relays
            .iter()
            .take(MAX_RELAYS)
            .map(|relay| LocalRelay { relayed: canonical(relay.relayed), ..*relay })
            .collect();
        if relays != self.relays {
            let gone = |old: &&LocalRelay| !relays.contains(old);
            let gone: Vec<u32> = self.relays.iter().filter(gone).map(|relay| relay.id).collect();
            self.relays = relays;
            self.drop_pairs(|via| matches!(via, Via::Relay(id) if gone.contains(&id)), now);
            self.sync_pairs(now);
        }
        self.drive(now);
    }

    /// Takes the numbers of the further sockets that this node has open for the peer.
    pub fn set_extra(&mut self, sockets: &[u32], now: Instant) {
        self.drop_pairs(|via| matches!(via, Via::Extra(id) if !sockets.contains(&id)), now);
        self.extra = sockets.to_vec();
        self.drive(now);
    }

    /// This node's own addresses or routes have changed: looks at everything at once.
    pub fn local_changed(&mut self, now: Instant) {
        self.recheck(now);
        self.drive(now);
    }

    /// Somebody wants to reach the peer now: probes fast again if there is no path.
    pub fn wake(&mut self, now: Instant) {
        if self.selected.is_none() {
            self.recheck(now);
        }
        self.drive(now);
    }

    /// Takes a datagram whose user name is this agent's: where it came in, and from whom.
    ///
    /// # Errors
    /// [`CheckError`] says why it had no effect, to be counted.
    pub fn handle_datagram(
        &mut self,
        from: Route,
        datagram: &[u8],
        now: Instant,
    ) -> Result<(), CheckError> {
        let from = plain(from);
        if !self.has_end(from.via) {
            return Err(CheckError::Gone);
        }
        let result = match self.keys.open(datagram)? {
            Check::Request(request) => self.handle_request(from, &request, now),
            Check::Answer(answer) => self.handle_answer(from, &answer, now),
        };
        self.drive(now);
        result
    }

    /// WireGuard sent data to the peer.
    pub fn note_data_sent(&mut self, now: Instant) {
        self.last_data = Some(now);
        if let Some(pair) = self.selected.and_then(|route| self.pair_mut(route)) {
            pair.hasten(now);
        }
    }

    /// WireGuard authenticated data that came in there, `from` the peer.
    pub fn note_data_received(&mut self, from: Route, now: Instant) {
        self.last_data = Some(now);
        let from = plain(from);
        match self.pair_mut(from) {
            Some(pair) => pair.note_data(now),
            // The peer's NAT maps anew, and its data is here before its checks.
            None => {
                if let Some(pair) = self.pair_or_learn(from, CandidateKind::PeerReflexive, now) {
                    pair.heard(now);
                    self.drive(now);
                }
            }
        }
    }

    /// WireGuard sends on the selected path, and nothing comes back although it
    /// should: the path steps behind all others for a while, whatever its checks say.
    pub fn note_data_dead(&mut self, now: Instant) {
        if let Some(pair) = self.selected.and_then(|route| self.pair_mut(route))
            && !pair.is_suspect(now)
        {
            pair.suspect(now);
            self.recheck(now);
        }
        self.drive(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.drive(now);
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.queue.pop_front()
    }

    /// What changed since the last call, as far as it still matters.
    pub fn poll_event(&mut self) -> Option<Event> {
        let selected = self.selected();
        let report = selected.map(|path| (path.route, path.tier));
        if report == self.reported {
            return None;
        }
        self.reported = report;
        Some(selected.map_or(Event::PathLost, Event::PathSelected))
    }

    /// When to call [`Agent::handle_timeout`] at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let report = self.selected().map(|path| (path.route, path.tier));
        if !self.queue.is_empty() || report != self.reported {
            return Some(self.now);
        }
        let due = self.pairs.iter().map(|pair| pair.due).min()?;
        Some(due.max(self.checks.free_at()).max(self.now))
    }

    /// The path in use.
    pub fn selected(&self) -> Option<SelectedPath> {
        let pair = self.pairs.iter().find(|pair| Some(pair.route) == self.selected)?;
        Some(SelectedPath {
            route: pair.route,
            own: pair.own,
            kind: pair.kind,
            tier: pair.tier(&self.locals),
            rtt: pair.rtt()?,
            mtu: None,
        })
    }

    /// Every pair as it stands, for people.
    pub fn pairs(&self) -> impl Iterator<Item = PairStatus> + '_ {
        self.pairs.iter().map(|pair| PairStatus {
            route: pair.route,
            kind: pair.kind,
            tier: pair.tier(&self.locals),
            own: pair.own,
            listed: pair.listed,
            selected: Some(pair.route) == self.selected,
            suspect: pair.is_suspect(self.now),
            rtt: pair.rtt(),
            unanswered: pair.unanswered(),
            last_sent: pair.last_sent,
            last_answer: pair.last_answer,
            last_heard: pair.last_heard,
        })
    }

    fn handle_request(
        &mut self,
        from: Route,
        request: &Request,
        now: Instant,
    ) -> Result<(), CheckError> {
        match self.replay.admit(request, now) {
            Ok(()) => {}
            Err(Old::Seen) => return Err(CheckError::Replayed),
            Err(Old::Stale) => {
                if self.challenges.take(now) && self.checks.take(now) {
                    self.send_check(from, false, now);
                }
                return Err(CheckError::Stale);
            }
        }
        if !self.answers.take(now) {
            return Err(CheckError::Busy);
        }
        let answer = Answer { id: request.id, clock_ms: self.clock_ms(now), mapped: from.remote };
        self.transmit(from, &Check::Answer(answer));

        let silent = self.selected.is_none();
        let newest = self.nominated.is_none_or(|(_, clock_ms)| clock_ms <= request.clock_ms);
        if request.nominate && newest {
            self.nominated = Some((from, request.clock_ms));
        }
        if let Some(pair) = self.pair_or_learn(from, request.learned_kind(), now) {
            pair.heard(now);
        }
        // Who is heard is there: what did not answer a while ago may do so now.
        if silent && self.wakes.take(now) {
            self.recheck(now);
        }
        Ok(())
    }

    fn handle_answer(
        &mut self,
        from: Route,
        answer: &Answer,
        now: Instant,
    ) -> Result<(), CheckError> {
        let index = self
            .in_flight
            .iter()
            .position(|sent| sent.id == answer.id && now <= sent.at + ANSWER_WITHIN)
            .ok_or(CheckError::Unsolicited)?;
        if self.in_flight[index].route != from {
            return Err(CheckError::Elsewhere);
        }
        let Some(sent) = self.in_flight.remove(index) else { return Ok(()) };
        if self.replay.learn(answer.clock_ms, now)
            && let Some((_, clock_ms)) = &mut self.nominated
        {
            *clock_ms = 0;
        }
        let Some(pair) = self.pair_mut(from) else { return Ok(()) };
        pair.answered(sent.at, answer.mapped, now);
        self.told |= sent.nominate && self.selected == Some(from);
        self.note_gain(from, now);
        self.select(now);
        let usage = self.usage(from, now);
        let jitter = self.rng.random();
        // A nomination is repeated until it is heard.
        let hold = self.keys.controlling() && self.selected == Some(from) && !self.told;
        if let Some(pair) = self.pair_mut(from)
            && !hold
        {
            pair.rest(usage, jitter, now);
        }
        Ok(())
    }

    /// Does everything that is due, and keeps the selection the best one.
    fn drive(&mut self, now: Instant) {
        // Data may be told of a moment after it came: a check that it triggers goes out now.
        let now = self.now.max(now);
        self.now = now;
        let oldest = self.in_flight.partition_point(|sent| sent.at + ANSWER_WITHIN < now);
        self.in_flight.drain(..oldest);
        self.retire(now);
        self.select(now);
        while self.queue.len() < MAX_QUEUED
            && let Some(route) = self.next_due(now)
            && self.checks.take(now)
        {
            self.check_pair(route, now);
        }
    }

    /// The pair whose check is due most: urgent ones first, then the longest waiting.
    fn next_due(&self, now: Instant) -> Option<Route> {
        let due = self.pairs.iter().filter(|pair| pair.due <= now);
        due.min_by_key(|pair| (!pair.urgent, pair.due)).map(|pair| pair.route)
    }

    fn check_pair(&mut self, route: Route, now: Instant) {
        let nominate = self.keys.controlling() && self.selected == Some(route);
        self.send_check(route, nominate, now);
        let usage = self.usage(route, now);
        let jitter = self.rng.random();
        let Some(pair) = self.pair_mut(route) else { return };
        pair.sent(usage, jitter, now);
        // What may have to take its place is looked at while there is time.
        if self.selected == Some(route)
            && self.pair_mut(route).is_some_and(|pair| pair.unanswered() == pair::DOUBTS)
        {
            for pair in self.pairs.iter_mut().filter(|p| p.is_valid() && p.route != route) {
                pair.due = now;
            }
        }
    }

    fn send_check(&mut self, to: Route, nominate: bool, now: Instant) {
        let mut id = [0; 12];
        self.rng.fill_bytes(&mut id);
        // What the peer, where it does not know this end, will learn it as.
        let kind = match to.via {
            Via::Socket | Via::Extra(_) => CandidateKind::PeerReflexive,
            Via::Relay(_) => CandidateKind::Relayed,
        };
        let learned = Candidate { kind, addr: to.remote };
        let clock_ms = self.clock_ms(now);
        let request = Request { id, clock_ms, priority: learned.priority(), nominate };
        self.in_flight.push_back(InFlight { id, route: to, at: now, nominate });
        self.transmit(to, &Check::Request(request));
    }

    fn transmit(&mut self, route: Route, check: &Check) {
        // A datagram that finds no room is lost as any other may be.
        if self.queue.len() < MAX_QUEUED {
            let payload = self.keys.seal(check);
            self.queue.push_back(Transmit { route, payload, dont_fragment: false });
        }
    }

    fn clock_ms(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.started).as_millis();
        self.started_unix_ms.saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }
}

/// The route in the one spelling of its address.
fn plain(route: Route) -> Route {
    Route { remote: canonical(route.remote), ..route }
}
