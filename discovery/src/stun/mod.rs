//! The keeper of our reflexive addresses: a STUN client without I/O of its own
//! (RFC 8489), whose datagrams go through the very socket that WireGuard uses.
//!
//! A server is asked with Binding requests for the address that our packets come
//! from. The first server of a family is asked at once, the others as soon as it
//! has answered or would be asked again. From then on one server of the family is
//! asked every five seconds, all in turn: that keeps the NAT's mapping alive,
//! and a NAT that restarts with another public address is found out by the next
//! answer, which hurries the questions to all others.
//!
//! What the servers said last are *words*, and the current addresses are the
//! words that are at most 21 s older than the newest one of their family.
//! So an address that no server confirms any more goes when others still answer;
//! a server that lies adds an address but takes none away; and when all fall
//! silent, what is known stays, for 10 minutes: an outage of the servers
//! must not drop what works.
//!
//! A server with a second address (OTHER-ADDRESS) is used for one test of the
//! NAT's behaviour (RFC 5780) per new reflexive address, see [`NatBehaviour`]. The
//! ports that were seen meanwhile tell how the NAT chooses them, see [`PortPattern`].
//!
//! Beside the keeper stand small machines for sockets of their own: [`Sample`] asks which
//! port a new mapping gets, [`LifetimeTest`] how long one lives, [`HairpinTest`] whether
//! the NAT turns packets round, [`MappingTest`] which mappings a socket gets that nobody
//! knows: its word counts more than the keeper's own test.
//!
//! Not here, on purpose: TCP and TLS, authentication and redirection
//! (ALTERNATE-SERVER), and MAPPED-ADDRESS of RFC 3489 servers.

mod behaviour;
mod hairpin;
mod lifetime;
mod mapping;
mod message;
mod ports;
mod request;
mod sample;
#[cfg(test)]
mod tests;
mod words;

use std::{
    cmp::Reverse,
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use self::{
    behaviour::{Progress, Test},
    message::Answer,
    request::{Outcome, RTO, Request},
    words::{Word, mapping_by, newest_of},
};

pub use self::{
    behaviour::{Behaviour, NatBehaviour},
    hairpin::HairpinTest,
    lifetime::{LifetimeTest, MappingLifetime, Socket},
    mapping::{MappingFound, MappingTest},
    ports::PortPattern,
    sample::{Sample, SampleEvent},
};

/// The most servers that are asked; more tell nothing new.
pub const MAX_SERVERS: usize = 8;

/// How often a server of each family is asked. Twice this is the longest that a
/// changed public address stays unnoticed with two servers of which one is away;
/// the shortest NAT timeouts seen in the field are 20 to 30 s (RFC 4787 §4.3 asks
/// for 2 minutes).
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Every server of a family is asked within this, so that each one's word is
/// renewed in time, however many they are.
const ROUND: Duration = Duration::from_secs(15);

/// How much older than the newest word of its family a word may be: a round and
/// all the tries of one request.
const WORD_LIFE: Duration = Duration::from_secs(21);

/// How long the last known addresses count when no server answers any more.
const OUTAGE_LIFE: Duration = Duration::from_secs(600);

/// Tries before a server counts as silent: 5.75 s with the waits between.
const TRIES: u32 = 5;

/// The wait before a silent server is asked again: at first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The least time between two rounds of hurried questions, so that a NAT that
/// gives every packet another port makes no storm.
const HURRY_SPACING: Duration = Duration::from_secs(1);

/// The least time between two behaviour tests: they send to an address that the
/// server names, and no server shall make us a source of traffic to others. Six
/// datagrams of 28 bytes in this time are none.
const TEST_SPACING: Duration = Duration::from_secs(10);

/// The most datagrams that wait to be sent; above it, the caller has stopped
/// sending, and older ones are worth less.
const MAX_QUEUED: usize = 4 * MAX_SERVERS;

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where it goes.
    pub to: SocketAddr,
    /// The UDP payload.
    pub payload: Vec<u8>,
}

/// What the client has to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StunEvent {
    /// The set of reflexive addresses is another one.
    Changed,
    /// A server answers, for the first time or again.
    ServerAnswered {
        /// The server.
        server: SocketAddr,
    },
    /// A server does not answer, or nothing that is of use.
    ServerSilent {
        /// The server.
        server: SocketAddr,
    },
    /// The NAT's mappings are to be tested by a [`MappingTest`]: see
    /// [`ReflexiveClient::set_mapping`].
    MappingWanted {
        /// Whom to ask.
        server: SocketAddr,
        /// Its other address.
        other: SocketAddr,
    },
    /// More or something else is known of the NAT.
    Behaviour(NatBehaviour),
    /// Something else is known of how the NAT chooses ports.
    Ports(PortPattern),
}

/// A STUN client for many servers.
#[derive(Debug)]
pub struct ReflexiveClient {
    rng: StdRng,
    servers: Vec<Server>,
    /// Words of servers that have been taken from the list.
    former: Vec<Word>,
    local: Vec<SocketAddr>,
    current: Vec<SocketAddr>,
    test: Option<Test>,
    /// What the last test found.
    tested: Option<Tested>,
    /// What a fresh socket found.
    fresh: Option<MappingFound>,
    last_test: Option<Instant>,
    last_hurry: Option<Instant>,
    behaviour: NatBehaviour,
    ports: PortPattern,
    transmits: VecDeque<Transmit>,
    events: VecDeque<StunEvent>,
    now: Option<Instant>,
}

/// One server.
#[derive(Debug)]
struct Server {
    addr: SocketAddr,
    state: State,
    health: Health,
    word: Option<Word>,
}

#[derive(Debug)]
enum State {
    /// To be asked at this time.
    Waiting(Instant),
    Asking(Request),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    /// It has neither answered nor kept silent yet.
    New,
    Answering,
    /// So many requests in a row went unanswered.
    Silent(u32),
}

/// What a behaviour test found.
#[derive(Debug, Clone)]
struct Tested {
    /// The reflexive address that was tested.
    mapped: SocketAddr,
    behaviour: NatBehaviour,
    /// The ports of the mappings that the test made, in that order.
    ports: Vec<u16>,
}

impl ReflexiveClient {
    /// A client without servers. The seed makes its transaction numbers, which
    /// nobody may guess.
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            rng: StdRng::from_seed(seed),
            servers: Vec::new(),
            former: Vec::new(),
            local: Vec::new(),
            current: Vec::new(),
            test: None,
            tested: None,
            fresh: None,
            last_test: None,
            last_hurry: None,
            behaviour: NatBehaviour::default(),
            ports: PortPattern::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            now: None,
        }
    }

    /// Says which servers to ask: the first [`MAX_SERVERS`]. Those that are asked
    /// already stay as they are, and what a removed one said counts for a while.
    pub fn set_servers(&mut self, servers: &[SocketAddr], now: Instant) {
        let mut wanted: Vec<SocketAddr> = Vec::with_capacity(MAX_SERVERS);
        for server in servers.iter().map(|server| canonical(*server)) {
            if wanted.len() < MAX_SERVERS && !wanted.contains(&server) {
                wanted.push(server);
            }
        }
        let (kept, removed): (Vec<Server>, Vec<Server>) = std::mem::take(&mut self.servers)
            .into_iter()
            .partition(|server| wanted.contains(&server.addr));
        self.servers = kept;
        self.former.extend(removed.into_iter().filter_map(|server| server.word));
        wanted.retain(|addr| !self.servers.iter().any(|server| server.addr == *addr));
        self.servers.extend(wanted.iter().map(|addr| Server {
            addr: *addr,
            state: State::Waiting(now),
            health: Health::New,
            word: None,
        }));
        self.pace(now, |server| wanted.contains(&server.addr));
        self.handle_timeout(now);
    }

    /// Says at which addresses and ports our socket itself is reached, to tell
    /// whether there is a NAT at all.
    pub fn set_local_addresses(&mut self, local: &[SocketAddr]) {
        self.local = local.iter().map(|addr| canonical(*addr)).collect();
        self.update_behaviour();
    }

    /// Takes what a fresh socket found of the NAT's mappings. It counts while the NAT has
    /// the same public address.
    pub fn set_mapping(&mut self, found: MappingFound) {
        self.fresh = Some(found);
        self.update_behaviour();
    }

    /// Asks all servers now, since the machine's interfaces have changed.
    pub fn refresh(&mut self, now: Instant) {
        for server in &mut self.servers {
            server.state = State::Waiting(now);
        }
        self.pace(now, |_| true);
        self.handle_timeout(now);
    }

    /// Takes a datagram from the socket. True if it was an answer to a question of
    /// ours, from where it was asked for; anything else is left untouched.
    pub fn handle_datagram(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> bool {
        let Some(id) = message::response_id(datagram) else { return false };
        let from = canonical(from);
        self.now = Some(now);
        let asked = self.servers.iter().position(|server| {
            matches!(&server.state, State::Asking(request)
                if request.is(&id) && from == request.answered_by())
        });
        if let Some(index) = asked {
            match message::answer(from, datagram) {
                Some(answer) => self.handle_answer(index, answer, now),
                None => self.handle_silence(index, now),
            }
            return true;
        }
        let next_id = self.rng.random();
        let Some(test) = self.test.as_mut().filter(|test| test.expects(from, &id)) else {
            return false;
        };
        let progress = test.handle_answer(from, message::answer(from, datagram), next_id, now);
        self.take_progress(progress);
        true
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = Some(now);
        let next_id = self.rng.random();
        if let Some(test) = &mut self.test {
            let progress = test.handle_timeout(next_id, now);
            self.take_progress(progress);
        }
        for index in 0..self.servers.len() {
            self.drive(index, now);
        }
        self.update(now);
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next thing to tell.
    pub fn poll_event(&mut self) -> Option<StunEvent> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] is due: at once while output waits.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.transmits.is_empty() || !self.events.is_empty() {
            return self.now;
        }
        let servers = self.servers.iter().filter_map(|server| match &server.state {
            State::Waiting(_) if self.is_held(server.addr) => None,
            State::Waiting(at) => Some(*at),
            State::Asking(request) => Some(request.due()),
        });
        let test = self.test.as_ref().map(Test::poll_timeout);
        let words = [true, false].into_iter().filter_map(|ipv4| newest_of(self.words(), ipv4));
        servers.chain(test).chain(words.map(|at| at + OUTAGE_LIFE)).min()
    }

    /// The current reflexive addresses: first those that most servers agree on.
    pub fn reflexive(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.current.iter().copied()
    }

    /// The same addresses, each with the server that named it last, and when.
    pub fn named(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr, Instant)> + '_ {
        self.current.iter().filter_map(|addr| {
            let words = self.words().filter(|word| word.mapped == *addr);
            words.max_by_key(|word| word.at).map(|word| (*addr, word.server, word.at))
        })
    }

    /// How the NAT behaves, as far as it is known: the IPv4 one where there is one.
    pub fn behaviour(&self) -> NatBehaviour {
        self.behaviour
    }

    /// How the NAT chooses ports, as far as it is known: the IPv4 one where there is one.
    pub fn ports(&self) -> PortPattern {
        self.ports
    }

    /// Whether every server has answered or counts as silent, and no behaviour
    /// test is under way: nothing more is to be learned by a short wait.
    pub fn is_settled(&self) -> bool {
        self.test.is_none() && self.servers.iter().all(|server| server.health != Health::New)
    }

    /// Asks the server when it is due, and again, and gives it up.
    fn drive(&mut self, index: usize, now: Instant) {
        let held = self.is_held(self.servers[index].addr);
        let server = &mut self.servers[index];
        match &server.state {
            State::Waiting(at) if held || now < *at => return,
            State::Waiting(_) => {
                let request = Request::new(self.rng.random(), server.addr, TRIES, now);
                server.state = State::Asking(request);
            }
            State::Asking(_) => {}
        }
        let State::Asking(request) = &mut server.state else { return };
        match request.poll(now) {
            Outcome::Waiting => {}
            Outcome::Send(transmit) => self.send(transmit),
            Outcome::Lost => self.handle_silence(index, now),
        }
    }

    fn handle_answer(&mut self, index: usize, answer: Answer, now: Instant) {
        let turn = self.turn(index, now);
        let server = &mut self.servers[index];
        let addr = server.addr;
        let news = server.word.is_none_or(|word| word.mapped != answer.mapped)
            || server.health != Health::Answering;
        if server.health != Health::Answering {
            server.health = Health::Answering;
            self.tell(StunEvent::ServerAnswered { server: addr });
        }
        let server = &mut self.servers[index];
        server.state = State::Waiting(turn);
        let mapped = answer.mapped;
        let since = server.word.filter(|word| word.mapped == mapped).map_or(now, |w| w.since);
        let before = server.word.replace(Word { server: addr, mapped, since, at: now });
        self.update(now);
        if let Some(other) = answer.other {
            self.begin_test(addr, other, answer.mapped, now);
        }
        if news {
            // The first words are no haste; a changed one must not wait for them.
            self.hurry(addr, before.is_some(), now);
        }
    }

    fn handle_silence(&mut self, index: usize, now: Instant) {
        let server = &mut self.servers[index];
        let times = match server.health {
            Health::Silent(times) => times,
            Health::New | Health::Answering => 0,
        };
        let (first, longest) = BACKOFF;
        let wait = first.saturating_mul(1 << times.min(5)).min(longest);
        server.health = Health::Silent(times.saturating_add(1));
        server.state = State::Waiting(now + wait);
        if times == 0 {
            let server = server.addr;
            self.tell(StunEvent::ServerSilent { server });
        }
    }

    /// When the server that has just answered is asked again: after all others of
    /// its family, a step apart.
    fn turn(&self, index: usize, now: Instant) -> Instant {
        let addr = self.servers[index].addr;
        let family = || {
            self.servers.iter().filter(move |server| {
                server.addr.is_ipv4() == addr.is_ipv4()
                    && (server.addr == addr || !matches!(server.health, Health::Silent(_)))
            })
        };
        let last = family().filter(|server| server.addr != addr).filter_map(|server| match &server
            .state
        {
            State::Waiting(at) => Some(*at),
            State::Asking(_) => None,
        });
        let number = family().count().max(1) as u32;
        last.max().unwrap_or(now).max(now) + KEEP_ALIVE.min(ROUND / number)
    }

    /// Has one of the chosen servers of a family asked at once, and the others
    /// when the first would be asked again: if it answers before and names a
    /// second address, the NAT's filter can still be seen as it is.
    fn pace(&mut self, now: Instant, chosen: impl Fn(&Server) -> bool) {
        for ipv4 in [true, false] {
            let mut first = true;
            for server in self.servers.iter_mut().filter(|server| chosen(server)) {
                if server.addr.is_ipv4() == ipv4 && matches!(server.state, State::Waiting(_)) {
                    server.state = State::Waiting(if first { now } else { now + RTO });
                    first = false;
                }
            }
        }
    }

    /// Has all other servers of the family asked at once: something has changed.
    fn hurry(&mut self, because_of: SocketAddr, changed: bool, now: Instant) {
        if changed && self.last_hurry.is_some_and(|last| now < last + HURRY_SPACING) {
            return;
        }
        if changed {
            self.last_hurry = Some(now);
        }
        for server in &mut self.servers {
            let other = server.addr != because_of
                && server.addr.is_ipv4() == because_of.is_ipv4()
                && (changed || server.health != Health::Answering);
            if let State::Waiting(at) = &mut server.state
                && other
            {
                *at = now.min(*at);
            }
        }
    }

    /// Works out the current addresses, and tells when they are others.
    fn update(&mut self, now: Instant) {
        let words: Vec<Word> =
            self.servers.iter().filter_map(|s| s.word).chain(self.former.drain(..)).collect();
        let counts = |word: &Word| {
            let newest = newest_of(&words, word.mapped.is_ipv4());
            newest.is_some_and(|at| at <= word.at + WORD_LIFE && now < at + OUTAGE_LIFE)
        };
        let counting: Vec<Word> = words.iter().copied().filter(counts).collect();
        let listed = |server: SocketAddr| self.servers.iter().any(|s| s.addr == server);
        self.former = counting.iter().copied().filter(|word| !listed(word.server)).collect();
        for server in &mut self.servers {
            server.word = server.word.filter(counts);
        }

        let mut current: Vec<SocketAddr> = counting.iter().map(|word| word.mapped).collect();
        current.sort_unstable();
        current.dedup();
        let before = std::mem::take(&mut self.current);
        let changed = before.len() != current.len() || before.iter().any(|a| !current.contains(a));
        let witnesses = |addr: &SocketAddr| counting.iter().filter(|w| w.mapped == *addr).count();
        current.sort_by_key(|addr| (Reverse(witnesses(addr)), *addr));
        self.current = current;
        if changed {
            self.tell(StunEvent::Changed);
        }
        if self.test.as_ref().is_some_and(|test| !self.current.contains(&test.mapped())) {
            self.test = None;
        }
        self.update_behaviour();
    }

    /// Works out how the NAT behaves, and tells when that is news.
    fn update_behaviour(&mut self) {
        let primary = |addr: &SocketAddr| addr.is_ipv4() == self.is_primary_ipv4();
        let seen: Vec<SocketAddr> = self.current.iter().copied().filter(primary).collect();
        let tested = self.tested.as_ref().filter(|tested| seen.contains(&tested.mapped));
        let mut behaviour = tested.map(|tested| tested.behaviour).unwrap_or_default();
        let mut words: Vec<Word> =
            self.words().filter(|word| primary(&word.mapped)).copied().collect();
        words.sort_by_key(|word| word.since);
        let inner = self.local.first().map(SocketAddr::port);
        let seen_ports: Vec<u16> = words.iter().map(|word| word.mapped.port()).collect();
        // The test's questions follow each other more closely than the servers' words.
        let tested_ports = tested.map_or(&[][..], |tested| &tested.ports);
        let mut ports = PortPattern::told_by(inner, [tested_ports, &seen_ports]);
        let at = |fresh: &MappingFound| seen.iter().any(|addr| addr.ip() == fresh.mapped.ip());
        if let Some(fresh) = self.fresh.filter(at) {
            (behaviour.mapping, ports) = (fresh.mapping, fresh.ports);
        }
        if !seen.is_empty() && seen.iter().all(|addr| self.local.contains(addr)) {
            behaviour.mapping = Behaviour::None;
        } else if behaviour.mapping == Behaviour::Unknown {
            behaviour.mapping = mapping_by(&words);
        }
        if behaviour != self.behaviour {
            self.behaviour = behaviour;
            // Only the latest is of interest.
            self.events.retain(|event| !matches!(event, StunEvent::Behaviour(_)));
            self.tell(StunEvent::Behaviour(behaviour));
        }
        if ports != self.ports {
            self.ports = ports;
            self.events.retain(|event| !matches!(event, StunEvent::Ports(_)));
            self.tell(StunEvent::Ports(ports));
        }
    }

    /// Begins a behaviour test, unless this mapping has been tested already.
    fn begin_test(
        &mut self,
        server: SocketAddr,
        other: SocketAddr,
        mapped: SocketAddr,
        now: Instant,
    ) {
        let known = self.tested.as_ref().is_some_and(|Tested { mapped, .. }| {
            mapped.is_ipv4() == server.is_ipv4() && self.current.contains(mapped)
        });
        let too_soon = self.last_test.is_some_and(|last| now < last + TEST_SPACING);
        if self.test.is_some() || known || too_soon || server.is_ipv4() != self.is_primary_ipv4() {
            return;
        }
        let untouched = |s: &Server| match (&s.state, s.health) {
            (State::Waiting(_), Health::New) => true,
            // What it was asked went through another mapping, now gone.
            (State::Waiting(_), Health::Answering) => {
                s.word.is_some_and(|word| word.mapped != mapped)
            }
            _ => false,
        };
        let clean = self.servers.iter().filter(|s| s.addr.ip() == other.ip()).all(untouched);
        let mut test = Test::new(server, other, mapped, clean, self.rng.random(), now);
        let progress = test.handle_timeout(self.rng.random(), now);
        self.tell(StunEvent::MappingWanted { server, other });
        self.test = Some(test);
        self.last_test = Some(now);
        self.take_progress(progress);
    }

    fn take_progress(&mut self, progress: Progress) {
        match progress {
            Progress::Running => {}
            Progress::Send(transmit) => self.send(transmit),
            Progress::Done(behaviour, ports) => {
                self.tested = self.test.take().map(|test| {
                    let mapped = test.mapped();
                    Tested { mapped, behaviour, ports }
                });
                self.update_behaviour();
            }
        }
    }

    fn is_held(&self, server: SocketAddr) -> bool {
        self.test.as_ref().is_some_and(|test| test.holds(server))
    }

    /// Whether the behaviour that is told is that of IPv4.
    fn is_primary_ipv4(&self) -> bool {
        self.current.is_empty() || self.current.iter().any(SocketAddr::is_ipv4)
    }

    fn words(&self) -> impl Iterator<Item = &Word> {
        self.servers.iter().filter_map(|server| server.word.as_ref()).chain(&self.former)
    }

    fn send(&mut self, transmit: Transmit) {
        if self.transmits.len() == MAX_QUEUED {
            self.transmits.pop_front();
        }
        self.transmits.push_back(transmit);
    }

    /// Queues an event, once: they name a state to look at, not a history.
    fn tell(&mut self, event: StunEvent) {
        if !self.events.contains(&event) {
            self.events.push_back(event);
        }
    }
}

/// The address without what the socket adds to it: an IPv4 one in its own form,
/// an IPv6 one without scope and flow.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
