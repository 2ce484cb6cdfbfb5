//! A network in virtual time: segments, hosts, NATs and firewalls, with delay, loss
//! and reordering, all from one seed.
//!
//! Segment 0 is the Internet. Every other segment lies behind one gateway, and a
//! gateway's outside is any segment, so NATs nest. Addresses mean something within
//! their segment only: two sites may have the same prefix.

#![allow(dead_code, unused_imports, reason = "each test binary uses the part that it needs")]

mod gateway;
mod hard;
mod relay;
mod traffic;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use zonemesh_punch::{
    Agent, Candidate, CandidateKind, CheckError, CheckKeys, Event, Route, SelectedPath, Via,
};

use self::{gateway::Gateway, relay::Relay, traffic::Cut};
pub(crate) use self::{
    gateway::{Behaviour, DEPENDS, Depends, Ports, direct_is_possible},
    relay::RelayId,
    traffic::Traffic,
};

/// The UDP port of every host.
pub(crate) const PORT: u16 = 51820;

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// The Internet.
pub(crate) const INTERNET: Segment = Segment(0);

/// Where the STUN server stands that tells hosts their reflexive address.
const STUN: &str = "198.51.100.1:3478";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Segment(usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostId(usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GatewayId(usize);

/// What the Internet does to a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) delay: Duration,
    /// On top of the delay, at random: packets overtake each other.
    pub(crate) jitter: Duration,
    pub(crate) loss: f64,
}

pub(crate) const FAIR: Weather =
    Weather { delay: Duration::from_millis(20), jitter: Duration::from_millis(2), loss: 0.0 };

/// The number of a host's second uplink.
const UPLINK: u32 = 3;

/// A LAN's delay.
const LAN_DELAY: Duration = Duration::from_micros(300);

/// How many routers a packet passes, if nobody says otherwise.
const HOPS: u8 = 64;

/// A datagram on its way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Packet {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) payload: Vec<u8>,
    pub(crate) hops: u8,
    pub(crate) dont_fragment: bool,
}

impl Packet {
    pub(crate) fn new(from: SocketAddr, to: SocketAddr, payload: Vec<u8>) -> Self {
        Self { from, to, payload, hops: HOPS, dont_fragment: false }
    }

    /// One router farther, if it gets there.
    fn passed(self) -> Option<Self> {
        let hops = self.hops.checked_sub(1).filter(|hops| *hops > 0)?;
        Some(Self { hops, ..self })
    }
}

/// Where a packet arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Segment(Segment),
    /// A host, from its relay: by the number of its allocation.
    Link(HostId, u32),
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) start: Instant,
    pub(crate) weather: Weather,
    /// Every datagram that crossed the Internet, if `record` is set.
    pub(crate) seen: Vec<Packet>,
    pub(crate) record: bool,
    rng: StdRng,
    segments: usize,
    hosts: Vec<Host>,
    gateways: Vec<Gateway>,
    under_way: BinaryHeap<Reverse<(Instant, u64, Place, Packet)>>,
    sent: u64,
    slow: HashMap<IpAddr, Duration>,
    relays: Vec<Relay>,
    cuts: Vec<Cut>,
    /// The largest IP packet that the Internet carries; what is larger and may not be
    /// fragmented is lost, and nobody is told.
    pub(crate) mtu: usize,
    /// Each node sends something of WireGuard this long after it last did.
    pub(crate) keepalive: Option<Duration>,
    next_poll: Instant,
    /// Nodes know their NATs, and try what is hard.
    pub(crate) hard: bool,
    samples: Vec<(Instant, HostId, SocketAddr)>,
}

/// A host; with an agent it is a node.
pub(crate) struct Host {
    segment: Segment,
    pub(crate) ips: Vec<IpAddr>,
    /// A second way to the Internet, and its address there.
    uplink: Option<(Segment, IpAddr)>,
    secret: [u8; 32],
    public: [u8; 32],
    pub(crate) agent: Option<Agent>,
    pub(crate) events: Vec<(Duration, Event)>,
    pub(crate) errors: HashMap<CheckError, u32>,
    pub(crate) received: Vec<Packet>,
    pub(crate) traffic: Traffic,
    pub(crate) packets_out: u64,
    pub(crate) bytes_out: u64,
    /// What its clock shows beyond the world's.
    pub(crate) clock_ms: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let start = Instant::now();
        Self {
            now: start,
            start,
            weather: FAIR,
            seen: Vec::new(),
            record: false,
            rng: StdRng::seed_from_u64(seed),
            segments: 1,
            hosts: Vec::new(),
            gateways: Vec::new(),
            under_way: BinaryHeap::new(),
            sent: 0,
            slow: HashMap::new(),
            relays: Vec::new(),
            cuts: Vec::new(),
            mtu: 1500,
            keepalive: None,
            next_poll: start + traffic::POLL,
            hard: false,
            samples: Vec::new(),
        }
    }

    /// A NAT with its outside at `ip` in `outside`; returns it with its new inside.
    pub(crate) fn nat(
        &mut self,
        outside: Segment,
        ip: &str,
        behaviour: Behaviour,
    ) -> (GatewayId, Segment) {
        let ip = ip.parse().expect("a literal address");
        self.gateway(outside, Some(ip), behaviour)
    }

    /// A stateful firewall that translates nothing.
    pub(crate) fn firewall(&mut self, outside: Segment) -> (GatewayId, Segment) {
        self.gateway(outside, None, Behaviour::port_restricted())
    }

    /// What a home router is: a NAT for IPv4 beside a firewall for IPv6.
    pub(crate) fn dual(
        &mut self,
        outside: Segment,
        ip: &str,
        behaviour: Behaviour,
    ) -> (GatewayId, Segment) {
        let (nat, inside) = self.nat(outside, ip, behaviour);
        self.firewall(outside);
        self.gateways.last_mut().expect("just made").inside = inside;
        (nat, inside)
    }

    fn gateway(
        &mut self,
        outside: Segment,
        ip: Option<IpAddr>,
        behaviour: Behaviour,
    ) -> (GatewayId, Segment) {
        let inside = Segment(self.segments);
        self.segments += 1;
        let next_port = self.rng.random_range(10_000..20_000);
        self.gateways.push(Gateway {
            outside,
            inside,
            ip,
            behaviour,
            next_port,
            mappings: Vec::new(),
            unsolicited: Vec::new(),
        });
        (GatewayId(self.gateways.len() - 1), inside)
    }

    /// Cuts the power of a NAT: it forgets all, and comes back as `ip`.
    pub(crate) fn restart_nat(&mut self, nat: GatewayId, ip: &str) {
        let nat = &mut self.gateways[nat.0];
        nat.mappings.clear();
        nat.unsolicited.clear();
        nat.ip = Some(ip.parse().expect("a literal address"));
    }

    pub(crate) fn host(&mut self, segment: Segment, ips: &[&str]) -> HostId {
        let mut secret = [0; 32];
        self.rng.fill_bytes(&mut secret);
        let public = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(secret));
        self.hosts.push(Host {
            segment,
            ips: ips.iter().map(|ip| ip.parse().expect("a literal address")).collect(),
            uplink: None,
            secret,
            public: public.to_bytes(),
            agent: None,
            events: Vec::new(),
            errors: HashMap::new(),
            received: Vec::new(),
            traffic: Traffic::default(),
            packets_out: 0,
            bytes_out: 0,
            clock_ms: 1_800_000_000_000,
        });
        HostId(self.hosts.len() - 1)
    }

    /// A site: one node behind a NAT of its own.
    pub(crate) fn site(&mut self, public: &str, private: &str, behaviour: Behaviour) -> HostId {
        let (_, lan) = self.nat(INTERNET, public, behaviour);
        self.host(lan, &[private])
    }

    /// Gives a host a second way to the Internet, behind a NAT of its own. Before its agent is
    /// started.
    pub(crate) fn second_uplink(&mut self, host: HostId, public: &str, behaviour: Behaviour) {
        let (_, lan) = self.nat(INTERNET, public, behaviour);
        self.of(host).uplink = Some((lan, "192.168.99.2".parse().expect("a literal address")));
    }

    pub(crate) fn of(&mut self, host: HostId) -> &mut Host {
        &mut self.hosts[host.0]
    }

    pub(crate) fn agent(&mut self, host: HostId) -> &mut Agent {
        self.hosts[host.0].agent.as_mut().expect("the host has an agent")
    }

    pub(crate) fn selected(&self, host: HostId) -> Option<SelectedPath> {
        self.hosts[host.0].agent.as_ref().and_then(Agent::selected)
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// The keys that `host` shares with `peer`.
    pub(crate) fn keys(&self, host: HostId, peer: HostId) -> CheckKeys {
        let (host, peer) = (&self.hosts[host.0], &self.hosts[peer.0]);
        CheckKeys::new(&host.secret, &host.public, &peer.public).expect("sound keys")
    }

    /// Starts, or starts again, the agent of `host` for `peer`.
    pub(crate) fn start_agent(&mut self, host: HostId, peer: HostId) {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let clock_ms = self.hosts[host.0].clock_ms
            + u64::try_from(self.elapsed().as_millis()).expect("tests are short");
        let mut agent = Agent::new(self.keys(host, peer), seed, self.now, clock_ms);
        agent.set_local_candidates(&self.candidates(host), self.now);
        agent.set_relays(&self.allocations(host), self.now);
        if self.hosts[host.0].uplink.is_some() {
            agent.set_uplinks(&[UPLINK], self.now);
        }
        if self.hard {
            agent.set_nat(self.profile(host), self.now);
        }
        self.hosts[host.0].agent = Some(agent);
    }

    /// Moves a host to another segment, and what it knows of itself with it.
    pub(crate) fn take_host(&mut self, host: HostId, segment: Segment, ips: &[&str]) {
        let ips = ips.iter().map(|ip| ip.parse().expect("a literal address")).collect();
        self.hosts[host.0].segment = segment;
        self.hosts[host.0].ips = ips;
        self.moved(host);
    }

    /// Tells a host's agent what its own gathering finds now.
    pub(crate) fn moved(&mut self, host: HostId) {
        let (candidates, now) = (self.candidates(host), self.now);
        self.agent(host).set_local_candidates(&candidates, now);
        self.agent(host).local_changed(now);
    }

    /// What a host's own gathering would find: host addresses, and the reflexive one
    /// through every NAT on the way.
    pub(crate) fn candidates(&mut self, host: HostId) -> Vec<Candidate> {
        let ips = self.hosts[host.0].ips.clone();
        let mut candidates: Vec<Candidate> = Vec::new();
        for ip in ips {
            let addr = SocketAddr::new(ip, PORT);
            candidates.push(Candidate { kind: CandidateKind::Host, addr });
            if ip.is_ipv4() {
                candidates.extend(self.reflexive(self.hosts[host.0].segment, addr));
            }
        }
        if let Some((segment, ip)) = self.hosts[host.0].uplink {
            candidates.extend(self.reflexive(segment, SocketAddr::new(ip, PORT)));
        }
        let relayed = self.allocations(host).into_iter();
        let kind = CandidateKind::Relayed;
        candidates.extend(relayed.map(|relay| Candidate { kind, addr: relay.relayed }));
        candidates
    }

    /// As what a STUN server sees a socket.
    fn reflexive(&mut self, segment: Segment, addr: SocketAddr) -> Option<Candidate> {
        if self.is_blocked(segment) {
            return None;
        }
        let stun: SocketAddr = STUN.parse().expect("a literal address");
        let (mut addr, mut segment) = (addr, segment);
        while let Some(gateway) = self.gateway_of(segment, stun.ip()) {
            addr = self.gateways[gateway].translate_out(addr, stun, self.now, &mut self.rng);
            segment = self.gateways[gateway].outside;
        }
        Some(Candidate { kind: CandidateKind::ServerReflexive, addr })
    }

    /// Tells `host` what `peer` gathered, as the zone would.
    pub(crate) fn tell(&mut self, host: HostId, peer: HostId) {
        let candidates = self.candidates(peer);
        let now = self.now;
        self.agent(host).set_remote_candidates(&candidates, now);
    }

    /// Starts both agents and tells each of the other.
    pub(crate) fn introduce(&mut self, a: HostId, b: HostId) {
        self.start_agent(a, b);
        self.start_agent(b, a);
        self.tell(a, b);
        self.tell(b, a);
    }

    /// Runs for a time.
    pub(crate) fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Runs until `done`, at most for `limit`; returns how long it took, or `None`.
    pub(crate) fn run_until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&mut World) -> bool,
    ) -> Option<Duration> {
        let (begin, end) = (self.now, self.now + limit);
        loop {
            self.drain();
            if done(self) {
                return Some(self.now - begin);
            }
            let timeouts = self.hosts.iter().filter_map(|host| host.agent.as_ref()?.poll_timeout());
            let arrival = self.under_way.peek().map(|Reverse((at, ..))| *at);
            let next = timeouts.chain(arrival).chain(self.next_traffic());
            let next = next.chain(self.samples.iter().map(|(at, ..)| *at)).min();
            match next.filter(|next| *next <= end) {
                Some(next) => self.now = self.now.max(next),
                None => {
                    self.now = end;
                    return None;
                }
            }
            while self.under_way.peek().is_some_and(|Reverse((at, ..))| *at <= self.now) {
                let Some(Reverse((_, _, place, packet))) = self.under_way.pop() else { break };
                match place {
                    Place::Segment(segment) => self.route(segment, packet),
                    Place::Link(host, id) => {
                        let route = Route::relayed(id, packet.from);
                        self.deliver(host, route, packet);
                    }
                }
            }
            self.pass_traffic();
            self.pass_samples();
            let now = self.now;
            for agent in self.hosts.iter_mut().filter_map(|host| host.agent.as_mut()) {
                if agent.poll_timeout().is_some_and(|at| at <= now) {
                    agent.handle_timeout(now);
                }
            }
        }
    }

    /// A stranger sends to where the host is known, and the host answers: a NAT that answers
    /// what comes unsolicited makes an exception of that.
    pub(crate) fn knock(&mut self, host: HostId) {
        let stranger: SocketAddr = "198.51.100.77:3478".parse().expect("a literal address");
        let known = self.candidates(host).into_iter();
        let mut known = known.filter(|c| c.kind == CandidateKind::ServerReflexive);
        let Some(known) = known.next() else { return };
        self.inject(INTERNET, Packet::new(stranger, known.addr, vec![0]));
        self.run(SECOND);
        let Host { segment, ips, .. } = &self.hosts[host.0];
        self.inject(*segment, Packet::new(SocketAddr::new(ips[0], PORT), stranger, vec![0]));
        self.run(SECOND);
    }

    /// Runs until both have selected a path that carries packets both ways.
    pub(crate) fn connect(&mut self, a: HostId, b: HostId, limit: Duration) -> Option<Duration> {
        self.run_until(limit, |world| world.carries(a, b) && world.carries(b, a))
    }

    /// Whether what `from` sends on its selected path reaches `to`, now. Tried on the
    /// gateways as they stand, so it counts as data that flows.
    pub(crate) fn carries(&mut self, from: HostId, to: HostId) -> bool {
        let Some(path) = self.selected(from) else { return false };
        let Some((segment, packet)) = self.outgoing(from, path.route, Vec::new()) else {
            return false;
        };
        let mut at = Some((segment, packet));
        while let Some((segment, packet)) = at {
            if segment == INTERNET && self.is_cut(&packet) {
                return false;
            }
            match self.hop(segment, packet) {
                Hop::Host(host, _) => return host == to,
                Hop::Relay(host, ..) => return host == to,
                Hop::Segment(segment, packet) => at = Some((segment, packet)),
                Hop::Dropped => return false,
            }
        }
        false
    }

    /// What a host sends by a route, where it comes out.
    fn outgoing(
        &mut self,
        host: HostId,
        route: Route,
        payload: Vec<u8>,
    ) -> Option<(Segment, Packet)> {
        match route.via {
            Via::Relay(id) => {
                let relayed = self.permit(host, id, route.remote)?;
                Some((INTERNET, Packet::new(relayed, route.remote, payload)))
            }
            Via::Uplink(_) => {
                let (segment, ip) = self.hosts[host.0].uplink?;
                Some((segment, Packet::new(SocketAddr::new(ip, PORT), route.remote, payload)))
            }
            Via::Socket | Via::Extra(_) => {
                let host = &self.hosts[host.0];
                let family = |ip: &&IpAddr| ip.is_ipv4() == route.remote.is_ipv4();
                // No address of the family: the kernel says "unreachable".
                let ip = host.ips.iter().find(family)?;
                let port = if let Via::Extra(id) = route.via { extra_port(id) } else { PORT };
                let from = SocketAddr::new(*ip, port);
                Some((host.segment, Packet::new(from, route.remote, payload)))
            }
        }
    }

    /// What goes to `ip` takes so much longer.
    pub(crate) fn slow_down(&mut self, ip: &str, delay: Duration) {
        self.slow.insert(ip.parse().expect("a literal address"), delay);
    }

    /// Puts a datagram into a segment, with whatever source address.
    pub(crate) fn inject(&mut self, segment: Segment, packet: Packet) {
        self.put(segment, packet, Duration::ZERO);
    }

    fn drain(&mut self) {
        for index in 0..self.hosts.len() {
            self.serve_hard(HostId(index));
            let host = &mut self.hosts[index];
            let Some(agent) = &mut host.agent else { continue };
            let mut packets = Vec::new();
            while let Some(transmit) = agent.poll_transmit() {
                packets.push(transmit);
            }
            for transmit in packets {
                if let (Via::Relay(id), Some(_)) = (transmit.route.via, transmit.hops) {
                    self.permit(HostId(index), id, transmit.route.remote);
                    continue;
                }
                let host = &mut self.hosts[index];
                host.packets_out += 1;
                host.bytes_out += u64::try_from(transmit.payload.len()).expect("short");
                self.send(HostId(index), transmit.route, transmit.payload, |packet| {
                    packet.hops = transmit.hops.unwrap_or(HOPS);
                    packet.dont_fragment = transmit.dont_fragment;
                });
            }
        }
    }

    fn send(&mut self, host: HostId, route: Route, payload: Vec<u8>, change: impl Fn(&mut Packet)) {
        let Some((segment, mut packet)) = self.outgoing(host, route, payload) else { return };
        change(&mut packet);
        let delay = match route.via {
            Via::Relay(id) => match self.link(host, id) {
                Some(delay) => delay,
                None => return,
            },
            Via::Socket | Via::Extra(_) | Via::Uplink(_) => LAN_DELAY,
        };
        self.put(segment, packet, delay);
    }

    /// Lets a packet into a segment; on the Internet the weather is upon it.
    fn put(&mut self, segment: Segment, packet: Packet, delay: Duration) {
        let mut delay = delay;
        if segment == INTERNET {
            if self.record {
                self.seen.push(packet.clone());
            }
            let size = packet.payload.len() + if packet.to.is_ipv4() { 28 } else { 48 };
            let too_big = packet.dont_fragment && size > self.mtu;
            if self.is_cut(&packet) || too_big || self.rng.random_bool(self.weather.loss) {
                return;
            }
            delay += self.slow.get(&packet.to.ip()).copied().unwrap_or_default();
            delay += self.weather.delay + self.weather.jitter.mul_f64(self.rng.random());
        }
        self.sent += 1;
        self.under_way.push(Reverse((
            self.now + delay,
            self.sent,
            Place::Segment(segment),
            packet,
        )));
    }

    fn route(&mut self, segment: Segment, packet: Packet) {
        match self.hop(segment, packet) {
            Hop::Host(host, packet) => {
                let uplink = self.hosts[host.0].uplink.map(|(_, ip)| ip);
                let route = match packet.to.port() {
                    _ if uplink == Some(packet.to.ip()) => {
                        Route { via: Via::Uplink(UPLINK), remote: packet.from }
                    }
                    PORT => Route::direct(packet.from),
                    port => Route { via: Via::Extra(extra_id(port)), remote: packet.from },
                };
                self.deliver(host, route, packet);
            }
            Hop::Relay(host, id, packet) => {
                if let Some(delay) = self.link(host, id) {
                    self.sent += 1;
                    let place = Place::Link(host, id);
                    self.under_way.push(Reverse((self.now + delay, self.sent, place, packet)));
                }
            }
            Hop::Segment(segment, packet) => self.put(segment, packet, LAN_DELAY),
            Hop::Dropped => {}
        }
    }

    fn deliver(&mut self, host: HostId, route: Route, packet: Packet) {
        let now = self.now;
        let host = &mut self.hosts[host.0];
        if traffic::is_data(&packet.payload) {
            host.traffic.received(route, &packet.payload, now);
        } else if let Some(agent) = &mut host.agent
            && let Err(error) = agent.handle_datagram(route, &packet.payload, now)
        {
            *host.errors.entry(error).or_default() += 1;
        }
        host.received.push(packet);
    }

    fn is_blocked(&self, inside: Segment) -> bool {
        let mut above = self.gateways.iter().filter(|gateway| gateway.inside == inside);
        above.any(|gateway| gateway.behaviour.blocks_udp || self.is_blocked(gateway.outside))
    }

    /// The way out of a segment, for a family.
    fn gateway_of(&self, inside: Segment, to: IpAddr) -> Option<usize> {
        let carries = |gateway: &Gateway| gateway.ip.is_none_or(|ip| ip.is_ipv4() == to.is_ipv4());
        let here = |gateway: &Gateway| gateway.inside == inside && carries(gateway);
        // A NAT comes before the firewall beside it, which would let IPv4 through.
        self.gateways.iter().position(here)
    }

    /// Where a packet in `segment` goes next.
    fn hop(&mut self, segment: Segment, packet: Packet) -> Hop {
        let to = packet.to.ip();
        let here = |host: &Host| {
            (host.segment == segment && host.ips.contains(&to))
                || host.uplink == Some((segment, to))
        };
        if let Some(host) = self.hosts.iter().position(here) {
            let port = packet.to.port();
            let extra = &self.hosts[host].traffic.extra;
            let fits = port == PORT || (port > PORT && extra.contains(&extra_id(port)));
            // The core is a router, a LAN is not.
            let packet = if segment == INTERNET { packet.passed() } else { Some(packet) };
            return match packet.filter(|_| fits) {
                Some(packet) => Hop::Host(HostId(host), packet),
                None => Hop::Dropped,
            };
        }
        let now = self.now;
        if segment == INTERNET && self.relays.iter().any(|relay| relay.ip == to) {
            return match self.relayed_to(&packet) {
                Some((host, id)) => Hop::Relay(host, id, packet),
                None => Hop::Dropped,
            };
        }
        let behind = |gateway: &Gateway| match gateway.ip {
            Some(ip) => ip == to,
            None => self.hosts.iter().any(|h| h.segment == gateway.inside && h.ips.contains(&to)),
        };
        let inward = |gateway: &Gateway| gateway.outside == segment && behind(gateway);
        if let Some(gateway) = self.gateways.iter().position(inward) {
            let gateway = &mut self.gateways[gateway];
            let packet = if segment == INTERNET { packet.passed() } else { Some(packet) };
            let Some(packet) = packet else { return Hop::Dropped };
            return match gateway.translate_in(packet.from, packet.to, now) {
                Some(to) => match (Packet { to, ..packet }).passed() {
                    Some(packet) => Hop::Segment(gateway.inside, packet),
                    None => Hop::Dropped,
                },
                None => Hop::Dropped,
            };
        }
        match self.gateway_of(segment, to) {
            Some(gateway) => {
                let gateway = &mut self.gateways[gateway];
                let Some(packet) = packet.passed().filter(|_| !gateway.behaviour.blocks_udp) else {
                    return Hop::Dropped;
                };
                let from = gateway.translate_out(packet.from, packet.to, now, &mut self.rng);
                Hop::Segment(gateway.outside, Packet { from, ..packet })
            }
            None => Hop::Dropped,
        }
    }
}

/// The port of a further socket, and its number.
fn extra_port(id: u32) -> u16 {
    PORT + 1 + u16::try_from(id).expect("few sockets")
}

fn extra_id(port: u16) -> u32 {
    u32::from(port - PORT - 1)
}

enum Hop {
    Host(HostId, Packet),
    /// To a host through its allocation of this number.
    Relay(HostId, u32, Packet),
    Segment(Segment, Packet),
    Dropped,
}
