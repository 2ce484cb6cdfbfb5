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
//! 3. The first pair that answers is selected, so that data flows at once: as a rule
//!    one over a relay. What would be better is looked at meanwhile, through both NATs
//!    at the same moment: see `agent/punching.rs`. The node with the lower key controls:
//!    it moves on to a better pair when there is one and nominates what it selects; the
//!    other node follows where it can.
//! 4. The selected pair is checked on: each second while data is sent, not at all while
//!    there is none but WireGuard's own keepalives arrive. Both sides tell each other
//!    what arrives, so that a path on which checks pass and data dies is left
//!    (`agent/hold.rs`). When the pair no longer answers, the next best takes its place,
//!    which was looked at when the first answer was missing; where there is none, the
//!    path is lost, and everything is probed afresh. An agent never gives up.
//! 5. Where the NATs are such that ordinary checks cannot pass them, more is tried, if
//!    the node has a turn for it: see `agent/hard.rs`.
//! 6. On the selected pair the largest packet that passes whole is looked for
//!    (`agent/mtu.rs`).
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
//! one component and few pairs), role conflicts (the keys decide), and error responses.

mod checks;
mod explain;
mod hard;
mod hold;
mod mtu;
mod pairs;
mod punching;
mod select;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};

pub use self::hard::MAX_SOCKETS;
use self::{checks::InFlight, hard::Hard, hold::Traffic, mtu::MtuSearch, punching::Punching};
use crate::{
    budget::Budget,
    candidate::{Candidate, CandidateKind, canonical},
    check::{Check, CheckKeys, OpenError, Username},
    pair::{Pair, Tier},
    quality::Quality,
    replay::Replay,
    route::{LocalRelay, Route, Via},
    status::{Event, PairStatus, SelectedPath, Transmit},
};

/// The most candidates of the peer that are used: as many as an advert carries.
pub const MAX_REMOTE: usize = 8;

/// The most allocations of this node that are used: one, and one to fall back on.
pub const MAX_RELAYS: usize = 2;

/// The most candidates of the peer that are looked at through each.
const MAX_BY_RELAY: usize = 4;

/// The most interfaces that are other ways to the Internet.
pub const MAX_UPLINKS: usize = 2;

/// The most candidates of the peer that are looked at by each.
const MAX_BY_UPLINK: usize = 4;

/// The most pairs of the peer's candidates.
pub const MAX_LISTED: usize = MAX_REMOTE + MAX_RELAYS * MAX_BY_RELAY + MAX_UPLINKS * MAX_BY_UPLINK;

/// The most other pairs: learned from checks, or of former candidates that still work.
pub const MAX_LEARNED: usize = 8;

/// The most candidates of its own that a node is believed to have.
const MAX_LOCAL: usize = 64;

/// One check each 25 ms, twice the pace that RFC 8445 §14.2 has by default, because a
/// relay doubles the pairs; and as many at once as there are candidates.
const CHECK_INTERVAL: Duration = Duration::from_millis(25);
const CHECK_BURST: u32 = 16;

/// Answers: twice the checks that a peer of this version sends.
const ANSWER_INTERVAL: Duration = Duration::from_micros(12_500);
const ANSWER_BURST: u32 = 48;

/// A check to where a stale request came from, to learn the peer's clock.
const CHALLENGE_INTERVAL: Duration = Duration::from_secs(1);

/// How often a pair is learned from a check, once there are many: a NAT gives few
/// new addresses, and two that never agree on one give new ones for ever.
const LEARN_INTERVAL: Duration = Duration::from_secs(15);
const LEARN_BURST: u32 = 8;

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
    uplinks: Vec<u32>,
    pairs: Vec<Pair>,
    selected: Option<Route>,
    selected_at: Instant,
    /// The peer is known to have heard the selected pair's nomination.
    told: bool,
    /// What this node nominated last, and when by its clock.
    nominating: Option<(Route, u64)>,
    /// What the controlling peer nominated last, and when by its clock.
    nominated: Option<(Route, u64)>,
    /// Until when the peer's choice of a better pair is waited for.
    choice_by: Option<Instant>,
    /// A pair that was faster than the selected one, and how often.
    gaining: Option<(Route, u32)>,
    replay: Replay,
    in_flight: VecDeque<InFlight>,
    checks: Budget,
    answers: Budget,
    challenges: Budget,
    learns: Budget,
    wakes: Budget,
    traffic: Traffic,
    punching: Punching,
    mtu: MtuSearch,
    hard: Hard,
    mapping_lifetime: Option<Duration>,
    queue: VecDeque<Transmit>,
    reported: Option<Report>,
}

/// What an event tells of the path.
type Report = (Route, Tier, Option<u16>);

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
            uplinks: Vec::new(),
            pairs: Vec::new(),
            selected: None,
            selected_at: now,
            told: false,
            nominating: None,
            nominated: None,
            choice_by: None,
            gaining: None,
            replay: Replay::default(),
            in_flight: VecDeque::new(),
            checks: Budget::new(CHECK_INTERVAL, CHECK_BURST, now),
            answers: Budget::new(ANSWER_INTERVAL, ANSWER_BURST, now),
            challenges: Budget::new(CHALLENGE_INTERVAL, 1, now),
            learns: Budget::new(LEARN_INTERVAL, LEARN_BURST, now),
            wakes: Budget::new(WAKE_INTERVAL, 1, now),
            traffic: Traffic::default(),
            punching: Punching::new(now),
            mtu: MtuSearch::default(),
            hard: Hard::new(now),
            mapping_lifetime: None,
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
            self.hold_on();
        }
        self.drive(now);
    }

    /// Takes the numbers of the interfaces that are other ways to the Internet than the one that
    /// the routes choose, and have a socket each; those past [`MAX_UPLINKS`] are left alone.
    pub fn set_uplinks(&mut self, uplinks: &[u32], now: Instant) {
        let uplinks = &uplinks[..uplinks.len().min(MAX_UPLINKS)];
        if self.uplinks != uplinks {
            self.uplinks = uplinks.to_vec();
            self.drop_pairs(|via| matches!(via, Via::Uplink(id) if !uplinks.contains(&id)), now);
            self.sync_pairs(now);
        }
        self.drive(now);
    }

    /// Takes the numbers of the further sockets that this node has open for the peer.
    pub fn set_extra(&mut self, sockets: &[u32], now: Instant) {
        self.drop_pairs(|via| matches!(via, Via::Extra(id) if !sockets.contains(&id)), now);
        self.extra = sockets.iter().copied().take(MAX_SOCKETS.into()).collect();
        self.note_sockets();
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

    /// Takes for how long this node's NAT keeps the mapping of a socket that sends
    /// nothing, if it was measured: while the peer is active, it is kept up.
    pub fn set_mapping_lifetime(&mut self, lifetime: Option<Duration>) {
        self.mapping_lifetime = lifetime;
    }

    /// WireGuard has sent data to the peer since this was called last. To be called each
    /// second or oftener while it does: see `agent/hold.rs`.
    pub fn note_data_sent(&mut self, now: Instant) {
        self.traffic.sent(now);
        if self.traffic.is_sending(now) {
            self.hasten();
            self.mtu.renew(now);
        }
    }

    /// WireGuard authenticated data that came in there at `at`, `from` the peer.
    pub fn note_data_received(&mut self, from: Route, at: Instant) {
        self.traffic.received(at);
        let from = plain(from);
        // WireGuard's own packets hold an idle pair.
        self.put_off(from, at);
        match self.pair_mut(from) {
            Some(pair) => pair.note_data(at),
            // The peer's NAT maps anew, and its data is here before its checks.
            None => {
                if let Some(pair) = self.pair_or_learn(from, CandidateKind::PeerReflexive, at) {
                    pair.heard(at);
                    self.drive(at);
                }
            }
        }
    }

    /// WireGuard sends on the selected path, and nothing comes back although it
    /// should: the path steps behind all others for a while, whatever its checks say.
    pub fn note_data_dead(&mut self, now: Instant) {
        self.suspect_selected(false, now);
        self.drive(now);
    }

    /// A packet was too big for the selected path, or one as big as its MTU was lost
    /// again and again: looks for what passes now.
    pub fn note_too_big(&mut self, now: Instant) {
        self.mtu.restart(now);
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
        if let Some(event) = self.hard.events.pop_front() {
            return Some(event);
        }
        let selected = self.selected();
        let report = selected.as_ref().map(report);
        let before = std::mem::replace(&mut self.reported, report);
        match (before, selected) {
            _ if before == report => None,
            (Some((route, tier, _)), Some(path)) if (route, tier) == (path.route, path.tier) => {
                Some(Event::PathMtu(path))
            }
            (_, Some(path)) => Some(Event::PathSelected(path)),
            (_, None) => Some(Event::PathLost),
        }
    }

    /// When to call [`Agent::handle_timeout`] at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let news = !self.queue.is_empty() || !self.hard.events.is_empty();
        if news || self.selected().as_ref().map(report) != self.reported {
            return Some(self.now);
        }
        let checks = self.pairs.iter().filter_map(|pair| pair.due).chain(self.mtu.due());
        let checks = checks.min().map(|due| due.max(self.checks.free_at()));
        let due = checks.into_iter().chain(self.punching_due()).chain(self.hard_due());
        let due = due.chain(self.choice_by).min()?;
        Some(due.max(self.now))
    }

    /// The path in use.
    pub fn selected(&self) -> Option<SelectedPath> {
        let pair = self.pairs.iter().find(|pair| Some(pair.route) == self.selected)?;
        Some(SelectedPath {
            route: pair.route,
            own: pair.own,
            kind: pair.kind,
            tier: pair.tier(&self.locals),
            rtt: pair.quality()?.rtt(),
            mtu: pair.mtu,
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
            rtt: pair.quality().map(Quality::rtt),
            loss: pair.quality().map(Quality::loss),
            unanswered: pair.unanswered(),
            last_sent: pair.last_sent,
            last_answer: pair.last_answer,
            last_heard: pair.last_heard,
        })
    }

    /// Does everything that is due, and keeps the selection the best one.
    fn drive(&mut self, now: Instant) {
        // Data may be told of a moment after it came: a check that it triggers goes out now.
        let now = self.now.max(now);
        self.now = now;
        self.forget_in_flight(now);
        self.retire(now);
        self.select(now);
        self.punch(now);
        self.measure(now);
        self.pass_hard(now);
        while self.queue.len() < MAX_QUEUED
            && let Some(route) = self.next_due(now)
            && self.checks.take(now)
        {
            self.check_pair(route, now);
        }
    }

    fn clock_ms(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.started).as_millis();
        self.started_unix_ms.saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }
}

fn report(path: &SelectedPath) -> Report {
    (path.route, path.tier, path.mtu)
}

/// The route in the one spelling of its address.
fn plain(route: Route) -> Route {
    Route { remote: canonical(route.remote), ..route }
}
