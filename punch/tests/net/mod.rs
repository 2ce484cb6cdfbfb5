//! A network in virtual time: segments, hosts, NATs and firewalls, with delay, loss
//! and reordering, all from one seed.
//!
//! Segment 0 is the Internet. Every other segment lies behind one gateway, and a
//! gateway's outside is any segment, so NATs nest. Addresses mean something within
//! their segment only: two sites may have the same prefix.

#![allow(dead_code, reason = "each test binary uses the part that it needs")]

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use zonemesh_punch::{
    Agent, Candidate, CandidateKind, CheckError, CheckKeys, Event, Route, SelectedPath,
};

/// The UDP port of every host.
pub(crate) const PORT: u16 = 51820;

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// The Internet.
pub(crate) const INTERNET: Segment = Segment(0);

/// Where the STUN server stands that tells hosts their reflexive address.
const STUN: &str = "198.51.100.1:3478";

/// RFC 4787 §4.1 and §5: on what a mapping, or a filter, depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depends {
    Nothing,
    Address,
    AddressAndPort,
}

pub(crate) const DEPENDS: [Depends; 3] =
    [Depends::Nothing, Depends::Address, Depends::AddressAndPort];

/// RFC 4787 §4.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ports {
    Preserving,
    Sequential,
    Random,
}

/// How a NAT behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Behaviour {
    pub(crate) mapping: Depends,
    pub(crate) filtering: Depends,
    pub(crate) ports: Ports,
    pub(crate) hairpin: bool,
    /// How long a mapping, and a hole in the filter, outlive the last packet *out*.
    pub(crate) timeout: Duration,
}

impl Behaviour {
    pub(crate) fn new(mapping: Depends, filtering: Depends, ports: Ports) -> Self {
        Self { mapping, filtering, ports, hairpin: false, timeout: Duration::from_secs(30) }
    }

    pub(crate) fn full_cone() -> Self {
        Self::new(Depends::Nothing, Depends::Nothing, Ports::Preserving)
    }

    pub(crate) fn address_restricted() -> Self {
        Self::new(Depends::Nothing, Depends::Address, Ports::Preserving)
    }

    pub(crate) fn port_restricted() -> Self {
        Self::new(Depends::Nothing, Depends::AddressAndPort, Ports::Preserving)
    }

    pub(crate) fn symmetric() -> Self {
        Self::new(Depends::AddressAndPort, Depends::AddressAndPort, Ports::Random)
    }
}

/// Whether two sites behind these NATs can have a direct path when both know each
/// other's reflexive address and neither guesses ports.
///
/// A side with endpoint-independent mapping has one address that the other knows. A
/// side without has a new one for each destination: the other side learns it from a
/// packet that gets in, so it must not filter on the port. Where both sides lack it,
/// the first packet gets in only where nothing is filtered, at the address that the
/// STUN server saw; the answer comes from a third address; and the chase ends only
/// where one side keeps its mapping while the other's port changes.
pub(crate) fn direct_is_possible(a: &Behaviour, b: &Behaviour) -> bool {
    use Depends::{AddressAndPort, Nothing};
    let open_to_any_port = |nat: &Behaviour| nat.filtering != AddressAndPort;
    match (a.mapping == Nothing, b.mapping == Nothing) {
        (true, true) => true,
        (true, false) => open_to_any_port(a),
        (false, true) => open_to_any_port(b),
        (false, false) => {
            let settles = a.mapping != AddressAndPort || b.mapping != AddressAndPort;
            let enters = a.filtering == Nothing || b.filtering == Nothing;
            settles && enters && open_to_any_port(a) && open_to_any_port(b)
        }
    }
}

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

/// A LAN's delay.
const LAN_DELAY: Duration = Duration::from_micros(300);

/// A datagram on its way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Packet {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) payload: Vec<u8>,
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
    under_way: BinaryHeap<Reverse<(Instant, u64, Segment, Packet)>>,
    sent: u64,
    slow: HashMap<IpAddr, Duration>,
}

/// A host; with an agent it is a node.
pub(crate) struct Host {
    segment: Segment,
    pub(crate) ips: Vec<IpAddr>,
    secret: [u8; 32],
    public: [u8; 32],
    pub(crate) agent: Option<Agent>,
    pub(crate) events: Vec<(Duration, Event)>,
    pub(crate) errors: HashMap<CheckError, u32>,
    pub(crate) received: Vec<Packet>,
    pub(crate) packets_out: u64,
    pub(crate) bytes_out: u64,
    /// What its clock shows beyond the world's.
    pub(crate) clock_ms: u64,
}

struct Gateway {
    outside: Segment,
    inside: Segment,
    ip: Option<IpAddr>,
    behaviour: Behaviour,
    next_port: u16,
    mappings: Vec<Mapping>,
}

struct Mapping {
    inside: SocketAddr,
    key: Key,
    outside: SocketAddr,
    last_out: Instant,
    contacted: BTreeMap<SocketAddr, Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Any,
    Address(IpAddr),
    AddressAndPort(SocketAddr),
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
        let mappings = Vec::new();
        self.gateways.push(Gateway { outside, inside, ip, behaviour, next_port, mappings });
        (GatewayId(self.gateways.len() - 1), inside)
    }

    /// Cuts the power of a NAT: it forgets all, and comes back as `ip`.
    pub(crate) fn restart_nat(&mut self, nat: GatewayId, ip: &str) {
        let nat = &mut self.gateways[nat.0];
        nat.mappings.clear();
        nat.ip = Some(ip.parse().expect("a literal address"));
    }

    pub(crate) fn host(&mut self, segment: Segment, ips: &[&str]) -> HostId {
        let mut secret = [0; 32];
        self.rng.fill_bytes(&mut secret);
        let public = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(secret));
        self.hosts.push(Host {
            segment,
            ips: ips.iter().map(|ip| ip.parse().expect("a literal address")).collect(),
            secret,
            public: public.to_bytes(),
            agent: None,
            events: Vec::new(),
            errors: HashMap::new(),
            received: Vec::new(),
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
        self.hosts[host.0].agent = Some(agent);
    }

    /// What a host's own gathering would find: host addresses, and the reflexive one
    /// through every NAT on the way.
    pub(crate) fn candidates(&mut self, host: HostId) -> Vec<Candidate> {
        let stun: SocketAddr = STUN.parse().expect("a literal address");
        let ips = self.hosts[host.0].ips.clone();
        let mut candidates: Vec<Candidate> = Vec::new();
        for ip in ips {
            let addr = SocketAddr::new(ip, PORT);
            candidates.push(Candidate { kind: CandidateKind::Host, addr });
            if ip.is_ipv4() {
                let (mut addr, mut segment) = (addr, self.hosts[host.0].segment);
                while let Some(gateway) = self.gateway_of(segment, stun.ip()) {
                    addr =
                        self.gateways[gateway].translate_out(addr, stun, self.now, &mut self.rng);
                    segment = self.gateways[gateway].outside;
                }
                candidates.push(Candidate { kind: CandidateKind::ServerReflexive, addr });
            }
        }
        candidates
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
            let next = timeouts.chain(arrival).min();
            match next.filter(|next| *next <= end) {
                Some(next) => self.now = self.now.max(next),
                None => {
                    self.now = end;
                    return None;
                }
            }
            while self.under_way.peek().is_some_and(|Reverse((at, ..))| *at <= self.now) {
                let Some(Reverse((_, _, segment, packet))) = self.under_way.pop() else { break };
                self.route(segment, packet);
            }
            let now = self.now;
            for agent in self.hosts.iter_mut().filter_map(|host| host.agent.as_mut()) {
                if agent.poll_timeout().is_some_and(|at| at <= now) {
                    agent.handle_timeout(now);
                }
            }
        }
    }

    /// Runs until both have selected a path that carries packets both ways.
    pub(crate) fn connect(&mut self, a: HostId, b: HostId, limit: Duration) -> Option<Duration> {
        self.run_until(limit, |world| world.carries(a, b) && world.carries(b, a))
    }

    /// Whether what `from` sends on its selected path reaches `to`, now. Tried on the
    /// gateways as they stand, so it counts as data that flows.
    pub(crate) fn carries(&mut self, from: HostId, to: HostId) -> bool {
        let Some(path) = self.selected(from) else { return false };
        let family = |ip: &&IpAddr| ip.is_ipv4() == path.route.remote.is_ipv4();
        let Some(ip) = self.hosts[from.0].ips.iter().find(family) else { return false };
        let packet =
            Packet { from: SocketAddr::new(*ip, PORT), to: path.route.remote, payload: Vec::new() };
        let mut at = Some((self.hosts[from.0].segment, packet));
        while let Some((segment, packet)) = at {
            match self.hop(segment, packet) {
                Hop::Host(host, _) => return host == to,
                Hop::Segment(segment, packet) => at = Some((segment, packet)),
                Hop::Dropped => return false,
            }
        }
        false
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
            let elapsed = self.elapsed();
            let host = &mut self.hosts[index];
            let Some(agent) = &mut host.agent else { continue };
            let mut packets = Vec::new();
            while let Some(transmit) = agent.poll_transmit() {
                packets.push(transmit);
            }
            while let Some(event) = agent.poll_event() {
                host.events.push((elapsed, event));
            }
            let segment = host.segment;
            for transmit in packets {
                let host = &mut self.hosts[index];
                host.packets_out += 1;
                host.bytes_out += u64::try_from(transmit.payload.len()).expect("short");
                let family = |ip: &&IpAddr| ip.is_ipv4() == transmit.route.remote.is_ipv4();
                // No address of the family: the kernel says "unreachable".
                let Some(ip) = host.ips.iter().find(family) else { continue };
                let from = SocketAddr::new(*ip, PORT);
                let packet = Packet { from, to: transmit.route.remote, payload: transmit.payload };
                self.put(segment, packet, LAN_DELAY);
            }
        }
    }

    /// Lets a packet into a segment; on the Internet the weather is upon it.
    fn put(&mut self, segment: Segment, packet: Packet, delay: Duration) {
        let mut delay = delay;
        if segment == INTERNET {
            if self.record {
                self.seen.push(packet.clone());
            }
            if self.rng.random_bool(self.weather.loss) {
                return;
            }
            delay += self.slow.get(&packet.to.ip()).copied().unwrap_or_default();
            delay += self.weather.delay + self.weather.jitter.mul_f64(self.rng.random());
        }
        self.sent += 1;
        self.under_way.push(Reverse((self.now + delay, self.sent, segment, packet)));
    }

    fn route(&mut self, segment: Segment, packet: Packet) {
        match self.hop(segment, packet) {
            Hop::Host(host, packet) => self.deliver(host, packet),
            Hop::Segment(segment, packet) => self.put(segment, packet, LAN_DELAY),
            Hop::Dropped => {}
        }
    }

    fn deliver(&mut self, host: HostId, packet: Packet) {
        let host = &mut self.hosts[host.0];
        if let Some(agent) = &mut host.agent
            && let Err(error) =
                agent.handle_datagram(Route::direct(packet.from), &packet.payload, self.now)
        {
            *host.errors.entry(error).or_default() += 1;
        }
        host.received.push(packet);
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
        let here = |host: &Host| host.segment == segment && host.ips.contains(&to);
        if let Some(host) = self.hosts.iter().position(here) {
            let fits = packet.to.port() == PORT;
            return if fits { Hop::Host(HostId(host), packet) } else { Hop::Dropped };
        }
        let now = self.now;
        let behind = |gateway: &Gateway| match gateway.ip {
            Some(ip) => ip == to,
            None => self.hosts.iter().any(|h| h.segment == gateway.inside && h.ips.contains(&to)),
        };
        let inward = |gateway: &Gateway| gateway.outside == segment && behind(gateway);
        if let Some(gateway) = self.gateways.iter().position(inward) {
            let gateway = &mut self.gateways[gateway];
            return match gateway.translate_in(packet.from, packet.to, now) {
                Some(to) => Hop::Segment(gateway.inside, Packet { to, ..packet }),
                None => Hop::Dropped,
            };
        }
        match self.gateway_of(segment, to) {
            Some(gateway) => {
                let gateway = &mut self.gateways[gateway];
                let from = gateway.translate_out(packet.from, packet.to, now, &mut self.rng);
                Hop::Segment(gateway.outside, Packet { from, ..packet })
            }
            None => Hop::Dropped,
        }
    }
}

enum Hop {
    Host(HostId, Packet),
    Segment(Segment, Packet),
    Dropped,
}

impl Gateway {
    fn translate_out(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        now: Instant,
        rng: &mut StdRng,
    ) -> SocketAddr {
        self.expire(now);
        let key = match self.behaviour.mapping {
            Depends::Nothing => Key::Any,
            Depends::Address => Key::Address(to.ip()),
            Depends::AddressAndPort => Key::AddressAndPort(to),
        };
        let known = self.mappings.iter().position(|m| m.inside == from && m.key == key);
        let index = known.unwrap_or_else(|| {
            let outside = match self.ip {
                Some(ip) => SocketAddr::new(ip, self.free_port(from.port(), rng)),
                None => from,
            };
            let contacted = BTreeMap::new();
            self.mappings.push(Mapping { inside: from, key, outside, last_out: now, contacted });
            self.mappings.len() - 1
        });
        let mapping = &mut self.mappings[index];
        mapping.last_out = now;
        mapping.contacted.insert(to, now);
        mapping.outside
    }

    fn translate_in(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        now: Instant,
    ) -> Option<SocketAddr> {
        self.expire(now);
        if self.ip == Some(from.ip()) && !self.behaviour.hairpin {
            return None;
        }
        let mapping = self.mappings.iter().find(|mapping| mapping.outside == to)?;
        let open = match self.behaviour.filtering {
            Depends::Nothing => true,
            Depends::Address => mapping.contacted.keys().any(|known| known.ip() == from.ip()),
            Depends::AddressAndPort => mapping.contacted.contains_key(&from),
        };
        open.then_some(mapping.inside)
    }

    fn free_port(&mut self, wish: u16, rng: &mut StdRng) -> u16 {
        let taken = |port| self.mappings.iter().any(|mapping| mapping.outside.port() == port);
        match self.behaviour.ports {
            Ports::Preserving => {
                (wish..=u16::MAX).find(|port| !taken(*port)).expect("few mappings")
            }
            Ports::Sequential => {
                let port = (self.next_port..).find(|port| !taken(*port)).expect("few mappings");
                self.next_port = port + 1;
                port
            }
            Ports::Random => loop {
                let port = rng.random_range(1024..=u16::MAX);
                if !taken(port) {
                    break port;
                }
            },
        }
    }

    fn expire(&mut self, now: Instant) {
        let timeout = self.behaviour.timeout;
        self.mappings.retain(|mapping| now < mapping.last_out + timeout);
        for mapping in &mut self.mappings {
            mapping.contacted.retain(|_, last| now < *last + timeout);
        }
    }
}
