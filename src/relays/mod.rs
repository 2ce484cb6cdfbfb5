//! The relays of this node: which TURN servers it has an allocation on, and by which
//! transport.
//!
//! # Life
//!
//! 1. [`Relays::set_servers`] tells where relays are: *servers*, each one address and
//!    transport, of which those of one host belong together.
//! 2. All hosts are tried at once. Of a host's servers those of UDP are asked first,
//!    those of TCP 600 ms later, those of TLS 600 ms after that, unless one has answered
//!    by then; the first that gives an allocation wins, and the others are closed. So a node
//!    whose firewall lets out nothing but TCP to port 443 has its relayed address within
//!    three seconds of its start, and one that lets UDP out opens no stream at all.
//! 3. Once all have answered, or after three seconds, the nearest host by round trip is
//!    the *primary*, the next one the *spare*; both keep their allocations warm, and the
//!    others let theirs go and are remembered. All are measured again every half an
//!    hour, and when this node's own network has changed.
//! 4. A relay that dies is tried again at once, and another host in its place; only the
//!    pauses between failures grow. Where a host is reached by a stream though it has a
//!    datagram server too, that is tried again from time to time, and takes over.
//! 5. A credential lasts a day. Before it ends, the allocation is let go and made anew,
//!    after traffic has been told to prefer the spare.
//!
//! What changes the primary takes both 10 ms and 20 % (or datagrams in place of a
//! stream), so that nothing swings to and fro.
//!
//! # Manner
//!
//! [`Relays`] does no I/O and reads no clock. Its output is one queue, since the order
//! counts: a link is opened before what goes through it, and closed after. Drain
//! [`Relays::poll_event`] after each call, and call [`Relays::handle_timeout`] at
//! [`Relays::poll_timeout`]. Around it stand [`stream`], which keeps TCP and TLS
//! connections, and [`resolve`], which finds the servers.

mod choose;
mod event;
mod host;
mod leg;
mod report;
pub mod resolve;
pub mod stream;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use zonemesh_punch::{
    LocalRelay,
    turn::{self, Credentials},
};

pub use self::{
    event::{Event, Link, RelayServer, Settings, Transport},
    report::{RelayReport, RelayState},
};
use self::{host::Host, leg::Leg};

/// The most servers that are used; a zone that names more names enough.
pub const MAX_SERVERS: usize = 32;

/// How many allocations are kept: one, and one for when it dies. A peer's agent tries
/// no more, and an advert has no more room.
pub const KEPT: usize = 2;

/// How long all hosts are measured before the nearest are chosen: the last transport
/// starts after 1.2 s, and has two round trips of its own and two of TURN's to make.
const SETTLE: Duration = Duration::from_secs(3);

/// How often all hosts are measured again: routes in the Internet move seldom.
const MEASURE_AGAIN: Duration = Duration::from_secs(1800);

/// How long an allocation that another one replaces is kept for its peers to move.
const GRACE: Duration = Duration::from_secs(5);

/// How long credentials last, in seconds: a day at least. They end on the half of a day,
/// so that a node that starts again soon has the same user name as before, and may end
/// the allocation that it has left behind.
const CREDENTIAL_LIFE: u64 = 24 * 3600;
const CREDENTIAL_STEP: u64 = 12 * 3600;

/// How long before its credential ends an allocation is replaced: up to twice this.
const RENEW_AHEAD: Duration = Duration::from_secs(3600);

/// The most events that wait which a relay can cause without end.
const MAX_QUEUED: usize = 1024;

/// The relays of this node.
#[derive(Debug)]
pub struct Relays {
    settings: Settings,
    rng: StdRng,
    hosts: Vec<Host>,
    legs: BTreeMap<u32, Leg>,
    next_id: u32,
    /// The host that is first, and since when.
    primary: Option<(String, Instant)>,
    /// All hosts are being measured until then.
    measuring: Option<Instant>,
    measure_again: Instant,
    listed: Vec<LocalRelay>,
    events: VecDeque<Event>,
    now: Instant,
    wall: SystemTime,
}

impl Relays {
    /// No relays yet.
    pub fn new(settings: Settings, now: Instant, wall: SystemTime) -> Self {
        let rng = StdRng::from_seed(settings.seed);
        Self {
            settings,
            rng,
            hosts: Vec::new(),
            legs: BTreeMap::new(),
            next_id: 0,
            primary: None,
            measuring: None,
            measure_again: now + MEASURE_AGAIN,
            listed: Vec::new(),
            events: VecDeque::new(),
            now,
            wall,
        }
    }

    /// Says where relays are: the first [`MAX_SERVERS`]. What goes on with those that
    /// were named before goes on.
    pub fn set_servers(&mut self, servers: &[RelayServer], now: Instant, wall: SystemTime) {
        (self.now, self.wall) = (now, wall);
        let mut wanted: Vec<(String, Vec<RelayServer>)> = Vec::new();
        for server in servers.iter().take(MAX_SERVERS) {
            match wanted.iter_mut().find(|(host, _)| *host == server.host) {
                Some((_, list)) if list.contains(server) => {}
                Some((_, list)) => list.push(server.clone()),
                None => wanted.push((server.host.clone(), vec![server.clone()])),
            }
        }
        let gone: Vec<u32> = self
            .legs
            .iter()
            .filter(|(_, leg)| !wanted.iter().any(|(_, list)| list.contains(&leg.server)))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.close(id);
        }
        let mut fresh = false;
        let mut former = std::mem::take(&mut self.hosts);
        for (name, list) in wanted {
            let known = former.iter().position(|host| host.name == name);
            let mut host = known.map(|at| former.swap_remove(at)).unwrap_or_else(|| {
                fresh = true;
                Host::new(name, now)
            });
            host.set_servers(list, now);
            self.hosts.push(host);
        }
        if fresh {
            self.measure(now);
        }
        self.handle_timeout(now, wall);
    }

    /// Wants channels on this relay to these peers and to no others.
    pub fn set_peers(&mut self, id: u32, peers: &BTreeSet<SocketAddr>, now: Instant) {
        self.now = now;
        let Some(leg) = self.legs.get_mut(&id) else { return };
        let dropped = std::mem::replace(&mut leg.peers, peers.clone());
        let Some(client) = &mut leg.client else { return };
        client.set_peers(peers, now);
        let dropped = dropped.into_iter().filter(|peer| !peers.contains(peer));
        self.events.extend(dropped.map(|peer| Event::Unbound { id, peer }));
        self.drain(id);
    }

    /// Sends to a peer whose channel may not be bound yet: then it is wanted from now on,
    /// and the payload waits a little, or goes without a channel.
    pub fn send(&mut self, id: u32, peer: SocketAddr, payload: &[u8], now: Instant) {
        self.now = now;
        let Some(leg) = self.legs.get_mut(&id) else { return };
        leg.peers.insert(peer);
        if let Some(client) = &mut leg.client {
            client.bind(peer, now);
            client.send(peer, payload, now);
            self.drain(id);
        }
    }

    /// Lets a peer send to this node by a relay, and sends it nothing.
    pub fn admit(&mut self, id: u32, peer: SocketAddr, now: Instant) {
        self.now = now;
        let Some(leg) = self.legs.get_mut(&id) else { return };
        leg.peers.insert(peer);
        if let Some(client) = &mut leg.client {
            client.bind(peer, now);
            self.drain(id);
        }
    }

    /// The connection that relay `id` wanted is open.
    pub fn handle_opened(&mut self, id: u32, now: Instant, wall: SystemTime) {
        (self.now, self.wall) = (now, wall);
        self.start_client(id);
        self.handle_timeout(now, wall);
    }

    /// The connection could not be opened, or has ended.
    pub fn handle_closed(&mut self, id: u32, reason: &str, now: Instant, wall: SystemTime) {
        (self.now, self.wall) = (now, wall);
        self.handle_end(id, reason.to_owned());
        self.handle_timeout(now, wall);
    }

    /// Takes a STUN message that came by the connection of a relay. True if it was for
    /// the relay's client.
    pub fn handle_message(
        &mut self,
        id: u32,
        bytes: &[u8],
        now: Instant,
        wall: SystemTime,
    ) -> bool {
        (self.now, self.wall) = (now, wall);
        let Some(client) = self.legs.get_mut(&id).and_then(|leg| leg.client.as_mut()) else {
            return false;
        };
        let taken = client.handle_message(bytes, now);
        self.drain(id);
        self.handle_timeout(now, wall);
        taken
    }

    /// Takes a STUN message that came by WireGuard's own socket. True if it was an answer
    /// or indication of a relay that is reached by UDP there; anything else is left
    /// untouched, since the same server may be asked for reflexive addresses too.
    pub fn handle_datagram(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
        wall: SystemTime,
    ) -> bool {
        let is_from = |leg: &Leg| leg.server.transport == Transport::Udp && leg.server.addr == from;
        let id = self.legs.iter().find(|(_, leg)| is_from(leg)).map(|(id, _)| *id);
        id.is_some_and(|id| self.handle_message(id, bytes, now, wall))
    }

    /// Something is not as it was: the relays are asked at once whether they still know us.
    pub fn check_now(&mut self, now: Instant, wall: SystemTime) {
        (self.now, self.wall) = (now, wall);
        for id in self.ids() {
            if let Some(client) = self.legs.get_mut(&id).and_then(|leg| leg.client.as_mut()) {
                client.check_now(now);
            }
            self.drain(id);
        }
        self.handle_timeout(now, wall);
    }

    /// This node's network has changed: the relays are asked whether they still know us,
    /// and all are measured again.
    pub fn handle_moved(&mut self, now: Instant, wall: SystemTime) {
        self.check_now(now, wall);
        let legs = &self.legs;
        for host in &mut self.hosts {
            host.forgive(now);
            // A stream that was opened from another address is dead, as a rule, and takes
            // its time to show it.
            let up = host.up.and_then(|id| legs.get(&id));
            if up.is_some_and(|leg| leg.server.transport != Transport::Udp) {
                host.begin(now);
            }
        }
        self.measure(now);
        self.handle_timeout(now, wall);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, wall: SystemTime) {
        (self.now, self.wall) = (now, wall);
        for id in self.ids() {
            if let Some(client) = self.legs.get_mut(&id).and_then(|leg| leg.client.as_mut()) {
                client.handle_timeout(now);
            }
            self.drain(id);
        }
        self.let_go(now);
        self.renew(now);
        if self.measure_again <= now {
            self.measure(now);
        }
        self.settle(now);
        self.elect(now);
        self.trim(now);
        self.call(now);
        self.climb(now);
        self.list();
    }

    /// The next thing to do or tell.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] is due: at once while events wait.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.events.is_empty() {
            return Some(self.now);
        }
        if self.hosts.is_empty() {
            return None;
        }
        let legs = self.legs.values().filter_map(Leg::poll_timeout);
        let wants_more = self.up().count() < KEPT;
        let hosts = self.hosts.iter().filter_map(|host| {
            host.poll_timeout(wants_more && !self.has_leaving(&host.name), self.now)
        });
        let dwell = self
            .primary
            .as_ref()
            .map(|(_, since)| *since + choose::DWELL)
            .filter(|at| self.now < *at);
        let own = [self.measuring, Some(self.measure_again), dwell];
        legs.chain(hosts).chain(own.into_iter().flatten()).min()
    }

    /// This node's allocations, best first.
    pub fn listed(&self) -> &[LocalRelay] {
        &self.listed
    }

    /// The label of the server that a relay is on.
    pub fn label(&self, id: u32) -> Option<&str> {
        self.legs.get(&id).map(|leg| leg.server.label.as_str())
    }

    /// Each server and what it does, best first.
    pub fn report(&self) -> Vec<RelayReport> {
        let mut report: Vec<RelayReport> = Vec::new();
        for host in &self.hosts {
            for server in host.servers() {
                let leg = self.legs.iter().find(|(_, leg)| leg.server == server.server);
                let state = match leg {
                    Some((id, _)) if host.up == Some(*id) => {
                        if self.primary.as_ref().is_some_and(|(name, _)| *name == host.name) {
                            RelayState::Primary
                        } else {
                            RelayState::Spare
                        }
                    }
                    Some((_, leg)) if leg.leaving.is_some() => RelayState::Leaving,
                    Some(_) => RelayState::Trying,
                    None if server.error.is_some() => RelayState::Failed,
                    None => RelayState::Resting,
                };
                let client = leg.and_then(|(_, leg)| leg.client.as_ref());
                report.push(RelayReport {
                    id: leg.map(|(id, _)| *id),
                    label: server.server.label.clone(),
                    host: host.name.clone(),
                    transport: server.server.transport,
                    addr: server.server.addr,
                    state,
                    relayed: client.and_then(turn::Client::relayed),
                    mapped: client.and_then(turn::Client::mapped),
                    rtt: client.and_then(turn::Client::rtt).or(server.rtt),
                    error: server.error.clone(),
                });
            }
        }
        report.sort_by_key(|relay| (relay.state, relay.rtt.unwrap_or(Duration::MAX)));
        report
    }

    /// Ends all allocations, as far as one message each does.
    pub fn close_all(&mut self, now: Instant) {
        self.now = now;
        for id in self.ids() {
            self.close(id);
        }
        self.hosts.clear();
        self.list();
    }

    fn ids(&self) -> Vec<u32> {
        self.legs.keys().copied().collect()
    }

    /// The hosts with an allocation, and its number.
    fn up(&self) -> impl Iterator<Item = (&Host, u32)> {
        self.hosts.iter().filter_map(|host| host.up.map(|id| (host, id)))
    }

    fn has_leaving(&self, host: &str) -> bool {
        self.legs.values().any(|leg| leg.server.host == host && leg.leaving.is_some())
    }

    fn host_mut(&mut self, name: &str) -> Option<&mut Host> {
        self.hosts.iter_mut().find(|host| host.name == name)
    }

    /// Measures all hosts from now on.
    fn measure(&mut self, now: Instant) {
        self.measuring = Some(now + SETTLE);
        self.measure_again = now + MEASURE_AGAIN;
    }

    /// Tries hosts: all while they are measured or there is no relay, else the nearest
    /// until there are enough.
    fn call(&mut self, now: Instant) {
        let mut ready: Vec<(Duration, String)> = self
            .hosts
            .iter()
            .filter(|host| host.is_ready(now) && !self.has_leaving(&host.name))
            .map(|host| (host.rtt().unwrap_or(Duration::MAX), host.name.clone()))
            .collect();
        ready.sort();
        let up = self.up().count();
        let trying = self.hosts.iter().filter(|host| host.up.is_none() && host.is_trying()).count();
        let wanted = if self.measuring.is_some() || up == 0 {
            ready.len()
        } else {
            KEPT.saturating_sub(up + trying)
        };
        for (_, name) in ready.into_iter().take(wanted) {
            if let Some(host) = self.host_mut(&name) {
                host.begin(now);
            }
        }
        let answering: Vec<_> = self
            .legs
            .values()
            .filter(|leg| leg.is_answering())
            .map(|leg| (leg.server.host.clone(), leg.server.transport))
            .collect();
        for (name, transport) in answering {
            if let Some(host) = self.host_mut(&name) {
                host.hold(transport, now);
            }
        }
        // A new ladder's first step is due at once.
        self.open_due(now);
    }

    /// Tries datagrams again where there is only a stream.
    fn climb(&mut self, now: Instant) {
        for at in 0..self.hosts.len() {
            let host = &self.hosts[at];
            let Some(leg) = host.up.and_then(|id| self.legs.get(&id)) else { continue };
            let transport = leg.server.transport;
            if transport == Transport::Udp || self.has_leaving(&host.name) {
                continue;
            }
            self.hosts[at].climb(transport, now);
        }
        self.open_due(now);
    }

    /// Opens the connections to the servers whose turn it is.
    fn open_due(&mut self, now: Instant) {
        let due: Vec<RelayServer> = self.hosts.iter().flat_map(|host| host.due(now)).collect();
        for server in due {
            self.open(server);
        }
    }

    fn open(&mut self, server: RelayServer) {
        let id = self.next_id;
        self.next_id += 1;
        if let Some(host) = self.host_mut(&server.host) {
            host.running(&server, id);
        }
        let link = match (server.transport, &server.tls_name) {
            (Transport::Udp, _) => Link::Udp(server.addr),
            (Transport::Tcp, _) => Link::Tcp(server.addr),
            (Transport::Tls, Some(name)) => Link::Tls(server.addr, name.clone()),
            (Transport::Tls, None) => Link::Tls(server.addr, server.addr.ip().to_string()),
        };
        let is_open = matches!(link, Link::Udp(_));
        self.legs.insert(id, Leg::new(server));
        self.events.push_back(Event::Open { id, link });
        if is_open {
            self.start_client(id);
        }
    }

    /// Asks for an allocation.
    fn start_client(&mut self, id: u32) {
        let now_s = self.wall.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let expires = (now_s + CREDENTIAL_LIFE).next_multiple_of(CREDENTIAL_STEP);
        let Settings { secret, name, .. } = &self.settings;
        let credentials = Credentials::time_limited(secret.expose().as_bytes(), name, expires);
        let seed = self.rng.random();
        let Some(leg) = self.legs.get_mut(&id).filter(|leg| leg.client.is_none()) else { return };
        // Not all nodes of a mesh at once.
        let ahead = RENEW_AHEAD.mul_f64(self.rng.random_range(1.0..2.0));
        let renew = self.now + Duration::from_secs(expires - now_s) - ahead;
        leg.start(credentials, seed, renew, self.now);
        self.drain(id);
    }

    /// Takes what a client has to send and to tell.
    fn drain(&mut self, id: u32) {
        loop {
            let Some(client) = self.legs.get_mut(&id).and_then(|leg| leg.client.as_mut()) else {
                return;
            };
            while let Some(bytes) = client.poll_transmit() {
                self.events.push_back(Event::Transmit { id, bytes });
            }
            match client.poll_event() {
                None => return,
                Some(turn::Event::Allocated { relayed, .. }) => self.handle_allocated(id, relayed),
                Some(turn::Event::Bound { peer, channel }) => {
                    self.events.push_back(Event::Channel { id, peer, channel });
                }
                Some(turn::Event::Refused { peer, reason }) => {
                    tracing::debug!(relay = id, %peer, "no channel: {reason}");
                }
                Some(turn::Event::Data { peer, payload }) => {
                    if self.events.len() < MAX_QUEUED {
                        self.events.push_back(Event::Data { id, peer, payload });
                    }
                }
                Some(turn::Event::Ended(reason)) => self.handle_end(id, reason.to_string()),
            }
        }
    }

    fn handle_allocated(&mut self, id: u32, relayed: SocketAddr) {
        let now = self.now;
        let Some(leg) = self.legs.get(&id) else { return };
        let (label, name) = (leg.server.label.clone(), leg.server.host.clone());
        let rtt = leg.client.as_ref().and_then(turn::Client::rtt);
        let server = leg.server.clone();
        self.events.push_back(Event::Up { label, relayed });
        let Some(host) = self.host_mut(&name) else { return };
        let former = host.up.filter(|former| *former != id);
        let losers = host.won(id, &server, rtt, now);
        for loser in losers {
            self.close(loser);
        }
        // Peers move to the better transport while the former one still works.
        if let Some(leg) = former.and_then(|former| self.legs.get_mut(&former)) {
            leg.leaving = Some(now + GRACE);
        }
    }

    /// A relay has ended by itself.
    fn handle_end(&mut self, id: u32, reason: String) {
        let Some(leg) = self.legs.remove(&id) else { return };
        self.events.push_back(Event::Close { id });
        if leg.leaving.is_some() {
            return;
        }
        let (now, jitter) = (self.now, self.rng.random_range(0.8..1.2));
        let RelayServer { host: name, label, .. } = leg.server.clone();
        let Some(host) = self.host_mut(&name) else { return };
        if host.lost(id, &leg.server, &reason, jitter, now) {
            self.events.push_back(Event::Died { label, reason });
        }
    }

    /// Ends a relay of our own accord.
    fn close(&mut self, id: u32) {
        let Some(mut leg) = self.legs.remove(&id) else { return };
        if let Some(client) = &mut leg.client {
            client.close(self.now);
            while let Some(bytes) = client.poll_transmit() {
                self.events.push_back(Event::Transmit { id, bytes });
            }
        }
        self.events.push_back(Event::Close { id });
        let now = self.now;
        if let Some(host) = self.host_mut(&leg.server.host) {
            host.forget(id, now);
        }
    }

    /// Has a host's allocation end in a while, for peers to move from it.
    fn leave(&mut self, host: &str, id: u32, now: Instant) {
        let Some(host) = self.host_mut(host) else { return };
        host.up = None;
        for climbing in host.rest() {
            self.close(climbing);
        }
        let is_listed = self.listed.iter().any(|relay| relay.id == id);
        if let Some(leg) = self.legs.get_mut(&id).filter(|_| is_listed) {
            leg.leaving = Some(now + GRACE);
        } else {
            self.close(id);
        }
    }

    /// Closes the allocations whose time to leave is over.
    fn let_go(&mut self, now: Instant) {
        for id in self.ids() {
            if self.legs.get(&id).and_then(|leg| leg.leaving).is_some_and(|until| until <= now) {
                self.close(id);
            }
        }
    }
}
