//! The client's side of an allocation (RFC 8656), without I/O of its own.
//!
//! # Life
//!
//! 1. A client is made for one server and one transport, and asks for an allocation at
//!    once: first without a credential, to be told realm and nonce, then with it.
//! 2. [`Event::Allocated`] names the relayed address. Where the server knows an
//!    allocation of our address and port already (437: this node was started again), it
//!    is asked once to end that one, and then for a new one until it is done with that.
//! 3. For each peer that is to be reached, [`Client::bind`] wants a channel: one
//!    ChannelBind, which opens the way back as well. It is repeated every four minutes,
//!    before the permission of five ends. [`Event::Bound`] tells the channel's number,
//!    with which a data plane makes ChannelData of its own.
//! 4. Every ten seconds a Refresh asks whether relay and allocation are still there.
//!    A Binding would be cheaper, but a relay that was restarted answers it gladly. If
//!    nothing comes back, eight more tries within four seconds; so a relay that is gone,
//!    cut off one way, or behind a TCP connection that only looks alive, is known within
//!    15 s, and at once with [`Client::check_now`].
//! 5. The end is [`Event::Ended`], with the reason. An ended client does nothing more;
//!    whoever wants another allocation makes another client.
//!
//! # Manner
//!
//! What comes from the server is handed in whole, one STUN message at a time
//! ([`Client::handle_message`]); ChannelData is the data plane's. After each call, drain
//! [`Client::poll_transmit`] and [`Client::poll_event`], then call
//! [`Client::handle_timeout`] at [`Client::poll_timeout`].
//!
//! A relay is not trusted. It can withhold and invent what peers send, which their own
//! keys show; it cannot make this client send more than a request for each answer, a
//! bounded number of times, and nothing to anybody else: another server that it names
//! (300) is reported, not asked. A relayed address that is none of the Internet is taken
//! only from a server that has none either: peers send to it what we tell them. Answers to signed requests must be signed. Refusals need
//! not be, since servers do not sign all of them; who can invent one has seen the
//! request, and could as well hold it back.
//!
//! Left out on purpose: SHA-256 credentials and USERHASH (coturn offers neither; what
//! needs more than SHA-1 has TLS around it), CreatePermission (a ChannelBind does both),
//! a second address family in one allocation, EVEN-PORT and reservations (RTP's), TCP
//! allocations (RFC 6062), mobility (RFC 8016), and ICMP errors from peers.

mod channels;
mod status;
#[cfg(test)]
mod tests;
mod transaction;

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

pub use self::status::{ClientConfig, EndReason, Event, RefuseReason, Transport};
use self::{
    channels::{Channels, Wanted},
    transaction::{Outcome, Purpose, Transaction},
};
use super::{
    channel,
    credentials::Credentials,
    message::{self, Class, Family, IntegrityError, Key, Message, Method, UDP},
};
use crate::candidate::{Candidate, CandidateKind, canonical, is_public};

/// The most peers with a channel: there are so many numbers.
pub const MAX_PEERS: usize = 4096;

/// How often the relay is asked whether it still has our allocation.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A relay that gives shorter lifetimes cannot make us ask oftener than this.
const LEAST_KEEPALIVE: Duration = Duration::from_secs(2);

/// How long a server may take to end an allocation of an earlier run, and when it is asked
/// again meanwhile: coturn says that it has, and does so within a second or two.
const CLEAR_LIMIT: Duration = Duration::from_secs(4);
const CLEAR_PAUSE: Duration = Duration::from_millis(400);

/// The most channels that are asked for at a time, so that a start with a thousand
/// peers is no burst.
const MAX_BINDS: usize = 20;

/// The most that waits to be sent or told. Above it, the caller has stopped draining
/// or a relay floods us, and what more there is gets dropped.
const MAX_QUEUED: usize = 256;

/// A TURN client for one server.
#[derive(Debug)]
pub struct Client {
    credentials: Credentials,
    server: SocketAddr,
    transport: Transport,
    rng: StdRng,
    phase: Phase,
    challenge: Option<Challenge>,
    transactions: Vec<Transaction>,
    channels: Channels,
    last_answer: Option<Instant>,
    rtt: Option<Duration>,
    transmits: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
    now: Instant,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Allocating {
        /// The family that is asked for; without one the server decides.
        family: Option<Family>,
        /// Since when an earlier allocation is being ended, if there was one.
        clearing: Option<Instant>,
        /// When to ask again, where the server is not done with that.
        again: Option<Instant>,
    },
    Allocated {
        relayed: SocketAddr,
        mapped: Option<SocketAddr>,
        /// When the next Refresh is due.
        refresh: Instant,
    },
    Ended,
}

/// What the server wants to be told along with our credential.
#[derive(Debug)]
struct Challenge {
    realm: String,
    nonce: String,
    key: Key,
}

impl Client {
    /// A client that asks for an allocation at once.
    pub fn new(config: ClientConfig, now: Instant) -> Self {
        let mut rng = StdRng::from_seed(config.seed);
        // Not from the first number on: a server may still have bindings of an earlier
        // run to other peers.
        let channels = Channels::new(rng.random());
        let mut client = Self {
            credentials: config.credentials,
            server: plain(config.server),
            transport: config.transport,
            rng,
            phase: Phase::Allocating { family: None, clearing: None, again: None },
            challenge: None,
            transactions: Vec::new(),
            channels,
            last_answer: None,
            rtt: None,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            now,
        };
        client.start(Purpose::Allocate, None, now);
        client.handle_timeout(now);
        client
    }

    /// Wants a channel to this peer, until [`Self::unbind`]. May be called at any time
    /// and again; [`Event::Bound`] or [`Event::Refused`] follows.
    pub fn bind(&mut self, peer: SocketAddr, now: Instant) {
        if matches!(self.phase, Phase::Ended) {
            return;
        }
        let peer = plain(peer);
        match self.channels.want(peer, now) {
            Wanted::Known => return,
            Wanted::Scheduled => {}
            Wanted::Bound(channel) => self.tell(Event::Bound { peer, channel }),
            Wanted::Full => {
                self.tell(Event::Refused { peer, reason: RefuseReason::NoNumber });
            }
        }
        self.handle_timeout(now);
    }

    /// Wants no channel to this peer any more. What it has is not renewed; its number is
    /// no other peer's before the relay has forgotten it.
    pub fn unbind(&mut self, peer: SocketAddr, now: Instant) {
        self.now = now;
        self.channels.unwant(&plain(peer), now);
    }

    /// Wants channels to these peers and to no others.
    pub fn set_peers(&mut self, peers: &BTreeSet<SocketAddr>, now: Instant) {
        let peers: BTreeSet<SocketAddr> = peers.iter().map(|peer| plain(*peer)).collect();
        let dropped: Vec<SocketAddr> =
            self.channels.wanted().filter(|peer| !peers.contains(peer)).collect();
        for peer in dropped {
            self.unbind(peer, now);
        }
        for peer in peers {
            self.bind(peer, now);
        }
    }

    /// Sends to a peer: on its channel; without one, but with another to the same
    /// address, in a Send indication; and where the channel is just being bound, as
    /// soon as it is. Otherwise the payload is dropped, as it is when there is too much.
    pub fn send(&mut self, peer: SocketAddr, payload: &[u8], now: Instant) {
        self.now = now;
        let peer = plain(peer);
        if !matches!(self.phase, Phase::Allocated { .. }) {
            self.channels.queue(&peer, payload, now);
            return;
        }
        let bytes = if let Some(number) = self.channels.number(&peer) {
            channel::encode(number, payload)
        } else if self.channels.is_permitted(peer.ip(), now) {
            let indication = Message {
                peers: vec![peer],
                data: Some(payload.to_vec()),
                ..Message::new(Method::Send, Class::Indication, self.rng.random())
            };
            indication.encode(None).ok()
        } else {
            self.channels.queue(&peer, payload, now);
            None
        };
        if let Some(bytes) = bytes.filter(|_| self.transmits.len() < MAX_QUEUED) {
            self.transmits.push_back(bytes);
        }
    }

    /// Takes one STUN message from the server. True if it was for this client: the
    /// answer to a request of ours, or a Data indication.
    pub fn handle_message(&mut self, bytes: &[u8], now: Instant) -> bool {
        self.now = now;
        let Some((method, class, id)) = message::peek(bytes) else { return false };
        match class {
            Class::Request => false,
            Class::Indication => method == Method::Data && self.handle_data(bytes),
            Class::Success | Class::Error => {
                let Some(index) = self.transactions.iter().position(|asked| asked.id == id) else {
                    return false;
                };
                match self.read_answer(&self.transactions[index], method, bytes) {
                    None => self.transactions[index].rubbish = true,
                    Some(answer) => {
                        let asked = self.transactions.swap_remove(index);
                        self.handle_answer(&asked, answer, now);
                    }
                }
                self.handle_timeout(now);
                true
            }
        }
    }

    /// Asks the relay at once whether it still has our allocation, since this node's
    /// address may have changed.
    pub fn check_now(&mut self, now: Instant) {
        if let Phase::Allocated { refresh, .. } = &mut self.phase {
            *refresh = now;
        }
        self.handle_timeout(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        self.drive(now);
        if let Phase::Allocating { again, .. } = &mut self.phase
            && again.is_some_and(|at| at <= now)
        {
            *again = None;
            self.start(Purpose::Allocate, None, now);
            self.drive(now);
        }
        if let Phase::Allocated { relayed, refresh, .. } = self.phase {
            if refresh <= now && !self.is_refreshing() {
                self.start(Purpose::Refresh, None, now);
            }
            while self.binds() < MAX_BINDS {
                let Some((peer, number)) = self.channels.next_due(now) else { break };
                if peer.is_ipv4() == relayed.is_ipv4() {
                    self.start(Purpose::Bind(peer, number), None, now);
                } else {
                    self.handle_refused(peer, RefuseReason::Family, now);
                }
            }
            self.drive(now);
        }
    }

    /// The next bytes for the server: a STUN message, or a ChannelData frame without
    /// padding.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmits.pop_front()
    }

    /// The next thing to tell.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] is due: at once while output waits, never once the
    /// client has ended and is drained.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.transmits.is_empty() || !self.events.is_empty() {
            return Some(self.now);
        }
        let requests = self.transactions.iter().map(Transaction::due).min();
        let refresh = match self.phase {
            Phase::Allocated { refresh, .. } => refresh,
            Phase::Allocating { again, .. } => return requests.into_iter().chain(again).min(),
            Phase::Ended => return None,
        };
        let refresh = (!self.is_refreshing()).then_some(refresh);
        let bind = self.channels.poll_timeout().filter(|_| self.binds() < MAX_BINDS);
        [requests, refresh, bind].into_iter().flatten().min()
    }

    /// The channel to this peer, while it is bound and wanted.
    pub fn channel(&self, peer: &SocketAddr) -> Option<u16> {
        matches!(self.phase, Phase::Allocated { .. })
            .then(|| self.channels.number(&plain(*peer)))
            .flatten()
    }

    /// Where peers reach this node, while there is an allocation.
    pub fn relayed(&self) -> Option<SocketAddr> {
        match self.phase {
            Phase::Allocated { relayed, .. } => Some(relayed),
            _ => None,
        }
    }

    /// Where the relay sees this node, while there is an allocation.
    pub fn mapped(&self) -> Option<SocketAddr> {
        match self.phase {
            Phase::Allocated { mapped, .. } => mapped,
            _ => None,
        }
    }

    /// The round trip to the relay, smoothed.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Ends the allocation: tells the relay once, and waits for nothing.
    pub fn close(&mut self, now: Instant) {
        self.now = now;
        if matches!(self.phase, Phase::Ended) {
            return;
        }
        // Also while the answer is not there yet: the relay may have allocated.
        let is_known = self.challenge.is_some() || self.relayed().is_some();
        let goodbye = is_known.then(|| {
            let id = self.rng.random();
            self.sign(Message {
                lifetime: Some(0),
                ..Message::new(Method::Refresh, Class::Request, id)
            })
        });
        self.end(EndReason::Closed);
        self.transmits.extend(goodbye.flatten());
    }

    fn handle_data(&mut self, bytes: &[u8]) -> bool {
        if !matches!(self.phase, Phase::Allocated { .. }) {
            return false;
        }
        if let Ok(Message { peers, data: Some(payload), .. }) = Message::parse(bytes)
            && let [peer] = peers[..]
        {
            self.tell(Event::Data { peer: plain(peer), payload });
        }
        true
    }

    /// The answer, if it is one that may be believed.
    fn read_answer(&self, asked: &Transaction, method: Method, bytes: &[u8]) -> Option<Message> {
        let answer = Message::parse(bytes).ok()?;
        if method != asked.purpose.method() || !answer.not_understood.is_empty() {
            return None;
        }
        if asked.signed {
            let key = &self.challenge.as_ref()?.key;
            match message::verify(bytes, key) {
                Ok(()) => {}
                Err(IntegrityError::Missing) if answer.class == Class::Error => {}
                Err(_) => return None,
            }
        }
        Some(answer)
    }

    fn handle_answer(&mut self, asked: &Transaction, answer: Message, now: Instant) {
        self.last_answer = Some(now);
        if let Some(sample) = asked.round_trip(now) {
            // RFC 6298 §2
            self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
        }
        match (answer.class, answer.failure.as_ref().map(|failure| failure.code)) {
            (Class::Success, _) => self.handle_success(asked, &answer, now),
            (_, Some(401 | 438)) => self.handle_challenge(asked, answer, now),
            (_, Some(code)) => self.handle_error(asked, code, answer.alternate_server, now),
            (_, None) => self.end(EndReason::Unusable),
        }
    }

    fn handle_success(&mut self, asked: &Transaction, answer: &Message, now: Instant) {
        match asked.purpose {
            Purpose::Allocate => {
                let relayed = match self.pick_relayed(answer) {
                    Ok(relayed) => relayed,
                    Err(reason) => return self.end(reason),
                };
                let mapped = answer.mapped.map(plain);
                let refresh = now + keepalive(answer.lifetime);
                self.phase = Phase::Allocated { relayed, mapped, refresh };
                self.tell(Event::Allocated { relayed, mapped });
            }
            Purpose::Clear => self.start(Purpose::Allocate, None, now),
            Purpose::Refresh => {
                if let Phase::Allocated { refresh, .. } = &mut self.phase {
                    *refresh = now + keepalive(answer.lifetime);
                }
            }
            Purpose::Bind(peer, _) => {
                let Some((fresh, waiting)) = self.channels.bound(peer, asked.started, now) else {
                    return;
                };
                if let Some(channel) = fresh {
                    self.tell(Event::Bound { peer, channel });
                }
                for payload in waiting {
                    self.send(peer, &payload, now);
                }
            }
        }
    }

    /// The relayed address, if it may be told to peers: they will all check it.
    fn pick_relayed(&self, answer: &Message) -> Result<SocketAddr, EndReason> {
        let relayed = answer.relayed.iter().copied().map(plain).find(is_usable);
        let relayed = relayed.ok_or(EndReason::Unusable)?;
        if is_public(self.server.ip()) && !is_public(relayed.ip()) {
            return Err(EndReason::PrivateRelayed(relayed));
        }
        Ok(relayed)
    }

    /// The server wants a credential, or a newer nonce.
    fn handle_challenge(&mut self, asked: &Transaction, answer: Message, now: Instant) {
        let stale = answer.failure.is_some_and(|failure| failure.code == 438);
        let realm = answer.realm.or_else(|| self.challenge.as_ref().map(|last| last.realm.clone()));
        let (Some(realm), Some(nonce)) = (realm, answer.nonce) else {
            return self.end(if asked.signed {
                EndReason::Unauthorized
            } else {
                EndReason::Unusable
            });
        };
        // Once there is an allocation, 401 to a signed request is what a restarted relay
        // says, which knows nothing of the nonce. Before, it means what it says.
        let allocated = matches!(self.phase, Phase::Allocated { .. });
        if asked.signed && !stale && !allocated {
            return self.end(EndReason::Unauthorized);
        }
        if !asked.may_be_challenged() {
            return self.end(if stale { EndReason::Unusable } else { EndReason::Unauthorized });
        }
        let Ok(key) = self.credentials.key(&realm) else { return self.end(EndReason::Unusable) };
        self.challenge = Some(Challenge { realm, nonce, key });
        self.start(asked.purpose, Some(asked), now);
    }

    fn handle_error(
        &mut self,
        asked: &Transaction,
        code: u16,
        alternate: Option<SocketAddr>,
        now: Instant,
    ) {
        let reason = match (asked.purpose, code, &mut self.phase) {
            (Purpose::Allocate, 437, Phase::Allocating { clearing: clearing @ None, .. }) => {
                *clearing = Some(now);
                return self.start(Purpose::Clear, None, now);
            }
            (Purpose::Allocate, 437, Phase::Allocating { clearing: Some(since), again, .. })
                if now < *since + CLEAR_LIMIT =>
            {
                *again = Some(now + CLEAR_PAUSE);
                return;
            }
            // It is gone already.
            (Purpose::Clear, 437, _) => return self.start(Purpose::Allocate, None, now),
            (Purpose::Allocate | Purpose::Clear, 437 | 441, _) => EndReason::Mismatch,
            // The server has no IPv4 address, which is what it gives without being told.
            (Purpose::Allocate, 440, Phase::Allocating { family: family @ None, .. }) => {
                *family = Some(Family::V6);
                return self.start(Purpose::Allocate, None, now);
            }
            (Purpose::Refresh | Purpose::Bind(..), 437 | 441, _) => EndReason::Lost,
            (Purpose::Bind(peer, _), code, _) => {
                let reason = match code {
                    403 => RefuseReason::Forbidden,
                    440 | 443 => RefuseReason::Family,
                    486 | 508 => RefuseReason::NoCapacity,
                    code => RefuseReason::Failed(code),
                };
                return self.handle_refused(peer, reason, now);
            }
            (_, 300, _) => alternate
                .map(plain)
                .filter(is_usable)
                .map_or(EndReason::Failed(300), EndReason::AlternateServer),
            (_, 403, _) => EndReason::Forbidden,
            (_, 486, _) => EndReason::Quota,
            (_, 508, _) => EndReason::NoCapacity,
            (_, code, _) => EndReason::Failed(code),
        };
        self.end(reason);
    }

    fn handle_refused(&mut self, peer: SocketAddr, reason: RefuseReason, now: Instant) {
        if self.channels.refused(peer, now) {
            self.tell(Event::Refused { peer, reason });
        }
    }

    /// The last try of a request has gone unanswered.
    fn handle_silence(&mut self, asked: &Transaction, now: Instant) {
        // Something else was answered since: it is only the network that loses much.
        if self.last_answer.is_some_and(|answered| asked.started < answered) {
            match asked.purpose {
                // The Refresh is due, and will be sent anew.
                Purpose::Refresh => return,
                Purpose::Bind(peer, _) => return self.channels.ask_again(peer, now),
                Purpose::Allocate | Purpose::Clear => {}
            }
        }
        self.end(if asked.rubbish { EndReason::Unusable } else { EndReason::NoAnswer });
    }

    /// Sends what is due of the requests that are on their way.
    fn drive(&mut self, now: Instant) {
        let mut index = 0;
        while let Some(asked) = self.transactions.get_mut(index) {
            match asked.poll(now) {
                Outcome::Waiting => index += 1,
                Outcome::Send(bytes) => {
                    self.transmits.push_back(bytes);
                    index += 1;
                }
                Outcome::Lost => {
                    let asked = self.transactions.swap_remove(index);
                    self.handle_silence(&asked, now);
                }
            }
        }
    }

    fn start(&mut self, purpose: Purpose, former: Option<&Transaction>, now: Instant) {
        let id = self.rng.random();
        let mut request = Message::new(purpose.method(), Class::Request, id);
        match purpose {
            Purpose::Allocate => {
                request.requested_transport = Some(UDP);
                if let Phase::Allocating { family, .. } = self.phase {
                    request.requested_family = family;
                }
            }
            Purpose::Clear => request.lifetime = Some(0),
            Purpose::Refresh => {}
            Purpose::Bind(peer, number) => {
                request.channel = Some(number);
                request.peers = vec![peer];
            }
        }
        let signed = self.challenge.is_some();
        let Some(bytes) = self.sign(request) else { return self.end(EndReason::Unusable) };
        let mut asked = Transaction::new(id, purpose, bytes, signed, self.transport, now);
        if let Some(former) = former {
            asked = asked.after_challenge(former);
        }
        self.transactions.push(asked);
    }

    /// The bytes of a request, signed if the server has told how; `None` where the
    /// credential or what the server wants repeated fits no message.
    fn sign(&self, mut request: Message) -> Option<Vec<u8>> {
        if let Some(Challenge { realm, nonce, .. }) = &self.challenge {
            request.username = Some(self.credentials.username().to_owned());
            request.realm = Some(realm.clone());
            request.nonce = Some(nonce.clone());
        }
        request.encode(self.challenge.as_ref().map(|challenge| &challenge.key)).ok()
    }

    fn end(&mut self, reason: EndReason) {
        if matches!(self.phase, Phase::Ended) {
            return;
        }
        self.phase = Phase::Ended;
        self.transactions.clear();
        self.transmits.clear();
        // The end is told in any case.
        self.events.push_back(Event::Ended(reason));
    }

    /// What a relay can cause without end is dropped when nobody listens.
    fn tell(&mut self, event: Event) {
        if self.events.len() < MAX_QUEUED || !matches!(event, Event::Data { .. }) {
            self.events.push_back(event);
        }
    }

    fn is_refreshing(&self) -> bool {
        self.transactions.iter().any(|asked| asked.purpose == Purpose::Refresh)
    }

    fn binds(&self) -> usize {
        self.transactions.iter().filter(|asked| matches!(asked.purpose, Purpose::Bind(..))).count()
    }
}

/// An address as it is compared: no IPv4 in IPv6's clothes, no flow label.
fn plain(addr: SocketAddr) -> SocketAddr {
    let addr = canonical(addr);
    SocketAddr::new(addr.ip(), addr.port())
}

/// Whether an address that a relay names can be one at all.
fn is_usable(addr: &SocketAddr) -> bool {
    Candidate { kind: CandidateKind::Relayed, addr: *addr }.is_usable()
}

/// When to ask again, by the lifetime that the server gives (in seconds).
fn keepalive(lifetime: Option<u32>) -> Duration {
    let half = lifetime.map_or(KEEPALIVE, |seconds| Duration::from_secs(seconds.into()) / 2);
    half.clamp(LEAST_KEEPALIVE, KEEPALIVE)
}
