//! A world of virtual time: the client behind a modelled NAT, and scripted servers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use stun_rs::{
    MessageClass, MessageDecoder, MessageEncoder, StunMessageBuilder, TransactionId,
    attributes::{
        discovery::{ChangeRequest, ChangeRequestFlags, OtherAddress},
        stun::XorMappedAddress,
    },
    methods::BINDING,
};

use super::super::{Behaviour, ReflexiveClient, StunEvent, Transmit};

pub(super) const LOCAL: &str = "10.0.0.2:51820";

/// From the client to a server, or back.
pub(super) const TRIP: Duration = Duration::from_millis(10);

/// The client, its NAT, its servers, and the datagrams between them.
pub(super) struct World {
    pub(super) start: Instant,
    pub(super) now: Instant,
    pub(super) client: ReflexiveClient,
    pub(super) nat: Nat,
    pub(super) servers: Vec<Server>,
    /// What is on its way, by the time of its arrival.
    arriving: BTreeMap<(Instant, u64), Arrival>,
    pub(super) lose: Box<dyn Fn(u32) -> bool>,
    pub(super) answers: u32,
    pub(super) sent: u64,
    pub(super) asked: Vec<SocketAddr>,
    pub(super) trip: Duration,
    pub(super) events: Vec<StunEvent>,
}

enum Arrival {
    AtServer { from: SocketAddr, transmit: Transmit },
    AtClient { from: SocketAddr, payload: Vec<u8> },
}

impl World {
    pub(super) fn behind(nat: Nat) -> Self {
        let now = Instant::now();
        Self {
            start: now,
            now,
            client: ReflexiveClient::new([1; 32]),
            nat,
            servers: Vec::new(),
            arriving: BTreeMap::new(),
            lose: Box::new(|_| false),
            answers: 0,
            sent: 0,
            asked: Vec::new(),
            trip: TRIP,
            events: Vec::new(),
        }
    }

    pub(super) fn with(mut self, servers: &[Server]) -> Self {
        self.servers = servers.to_vec();
        let list: Vec<SocketAddr> = servers.iter().map(|server| server.addr).collect();
        self.client.set_servers(&list, self.now);
        self
    }

    pub(super) fn ask(&mut self, servers: &[&str]) {
        let list: Vec<SocketAddr> = servers.iter().map(|server| addr(server)).collect();
        self.client.set_servers(&list, self.now);
    }

    pub(super) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        for step in 0.. {
            assert!(step < 100_000, "it never comes to rest");
            self.drain();
            let due = self.client.poll_timeout();
            let arrival = self.arriving.keys().next().map(|(at, _)| *at);
            let Some(next) = [due, arrival].into_iter().flatten().min() else { break };
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            match self.arriving.first_entry() {
                Some(entry) if entry.key().0 <= self.now => {
                    let arrival = entry.remove();
                    self.arrive(arrival);
                }
                _ => self.client.handle_timeout(self.now),
            }
        }
        self.now = end;
        self.client.handle_timeout(end);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(event) = self.client.poll_event() {
            self.events.push(event);
        }
        while let Some(transmit) = self.client.poll_transmit() {
            self.sent += 1;
            self.asked.push(transmit.to);
            let from = self.nat.outbound(transmit.to);
            self.post(Arrival::AtServer { from, transmit });
        }
    }

    fn post(&mut self, arrival: Arrival) {
        let number = self.arriving.last_key_value().map_or(0, |((_, number), _)| number + 1);
        self.arriving.insert((self.now + self.trip, number), arrival);
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::AtServer { from, transmit } => {
                let answer = self.servers.iter().find_map(|s| s.answer(from, &transmit));
                let Some((source, payload)) = answer else { return };
                self.answers += 1;
                let lost = (self.lose)(self.answers - 1);
                if !lost && self.nat.lets_in(source, from) {
                    self.post(Arrival::AtClient { from: source, payload });
                }
            }
            Arrival::AtClient { from, payload } => {
                self.client.handle_datagram(from, &payload, self.now);
            }
        }
    }

    pub(super) fn reflexive(&self) -> Vec<String> {
        self.client.reflexive().map(|addr| addr.to_string()).collect()
    }

    pub(super) fn told(&self, event: StunEvent) -> bool {
        self.count(&event) > 0
    }

    pub(super) fn count(&self, event: &StunEvent) -> usize {
        self.events.iter().filter(|told| *told == event).count()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("at {:?}: {:?}", self.now - self.start, self.events);
        }
    }
}

/// A NAT for the one client behind it (RFC 4787 §4.1 and §5); IPv6 passes it.
pub(super) struct Nat {
    pub(super) mapping: Behaviour,
    pub(super) filtering: Behaviour,
    /// Whether every packet gets a mapping of its own.
    pub(super) forgets: bool,
    /// The port of each new mapping, by its number.
    pub(super) port: fn(usize) -> u16,
    pub(super) public: IpAddr,
    pub(super) mappings: Vec<(SocketAddr, u16, BTreeSet<SocketAddr>)>,
}

impl Default for Nat {
    fn default() -> Self {
        Self {
            mapping: Behaviour::EndpointIndependent,
            filtering: Behaviour::AddressAndPortDependent,
            forgets: false,
            port: |number| 40_000 + number as u16,
            public: "203.0.113.7".parse().expect("an address"),
            mappings: Vec::new(),
        }
    }
}

impl Nat {
    pub(super) fn restart(&mut self, public: &str) {
        self.public = public.parse().expect("an address");
        self.mappings.clear();
    }

    pub(super) fn outbound(&mut self, to: SocketAddr) -> SocketAddr {
        if to.is_ipv6() {
            return addr("[2001:db8:7::2]:51820");
        }
        let same = |first: SocketAddr| match self.mapping {
            Behaviour::AddressDependent => first.ip() == to.ip(),
            Behaviour::AddressAndPortDependent => first == to,
            _ => true,
        };
        let known = self.mappings.iter().position(|(first, ..)| same(*first) && !self.forgets);
        let index = known.unwrap_or(self.mappings.len());
        if known.is_none() {
            self.mappings.push((to, (self.port)(index), BTreeSet::new()));
        }
        let (_, port, sent_to) = &mut self.mappings[index];
        sent_to.insert(to);
        match self.mapping {
            Behaviour::None => addr(LOCAL),
            _ => SocketAddr::new(self.public, *port),
        }
    }

    pub(super) fn lets_in(&self, from: SocketAddr, to: SocketAddr) -> bool {
        let mine =
            |port| self.mapping == Behaviour::None || to == SocketAddr::new(self.public, port);
        let open = |sent_to: &BTreeSet<SocketAddr>| match self.filtering {
            Behaviour::EndpointIndependent => true,
            Behaviour::AddressDependent => sent_to.iter().any(|peer| peer.ip() == from.ip()),
            _ => sent_to.contains(&from),
        };
        to.is_ipv6() || self.mappings.iter().any(|(_, port, peers)| mine(*port) && open(peers))
    }
}

#[derive(Clone)]
pub(super) struct Server {
    pub(super) addr: SocketAddr,
    pub(super) second: Option<IpAddr>,
    pub(super) dead: bool,
    pub(super) lie: Option<SocketAddr>,
    pub(super) claims_other: Option<SocketAddr>,
    pub(super) ignores_change: bool,
    pub(super) second_is_dead: bool,
}

pub(super) fn plain(text: &str) -> Server {
    Server {
        addr: addr(text),
        second: None,
        dead: false,
        lie: None,
        claims_other: None,
        ignores_change: false,
        second_is_dead: false,
    }
}

/// A server with two addresses, and the port above its own as second port.
pub(super) fn double(first: &str, second: &str) -> Server {
    Server { second: Some(addr(second).ip()), ..plain(first) }
}

impl Server {
    pub(super) fn answer(
        &self,
        from: SocketAddr,
        transmit: &Transmit,
    ) -> Option<(SocketAddr, Vec<u8>)> {
        let ips: Vec<IpAddr> = [Some(self.addr.ip()), self.second].into_iter().flatten().collect();
        let ports = [self.addr.port(), self.addr.port() + 1];
        let asked = transmit.to;
        if self.dead || !ips.contains(&asked.ip()) || !ports.contains(&asked.port()) {
            return None;
        }
        let swapped_ip = *ips.iter().find(|ip| **ip != asked.ip()).unwrap_or(&asked.ip());
        let swapped_port = ports[0] + ports[1] - asked.port();
        let (message, _) =
            MessageDecoder::default().decode(&transmit.payload).expect("a proper request");
        let change = message
            .get::<ChangeRequest>()
            .map(|attribute| attribute.as_change_request().expect("a CHANGE-REQUEST").flags());
        let change = change.filter(|_| !self.ignores_change).unwrap_or_default();
        let port = match change.contains(ChangeRequestFlags::ChangePort) {
            true => swapped_port,
            false => asked.port(),
        };
        let ip = match change.contains(ChangeRequestFlags::ChangeIp) {
            true => swapped_ip,
            false => asked.ip(),
        };
        if self.second_is_dead && [ip, asked.ip()].iter().any(|ip| Some(*ip) == self.second) {
            return None;
        }
        let other = self.second.map(|_| SocketAddr::new(swapped_ip, swapped_port));
        let answer =
            Answered { mapped: self.lie.unwrap_or(from), other: self.claims_other.or(other) };
        Some((SocketAddr::new(ip, port), answer.encode(message.transaction_id())))
    }
}

pub(super) struct Answered {
    pub(super) mapped: SocketAddr,
    pub(super) other: Option<SocketAddr>,
}

impl Answered {
    pub(super) fn encode(&self, id: &TransactionId) -> Vec<u8> {
        let mut message = StunMessageBuilder::new(BINDING, MessageClass::SuccessResponse)
            .with_transaction_id(*id)
            .with_attribute(XorMappedAddress::from(self.mapped));
        if let Some(other) = self.other {
            message = message.with_attribute(OtherAddress::from(other));
        }
        let mut buffer = vec![0; 128];
        let length = MessageEncoder::default()
            .encode(&mut buffer, &message.build())
            .expect("the answer fits");
        buffer.truncate(length);
        buffer
    }
}

pub(super) fn id_of(request: &[u8]) -> TransactionId {
    let id: [u8; 12] = request[8..20].try_into().expect("twelve bytes");
    TransactionId::from(id)
}

pub(super) fn addr(text: &str) -> SocketAddr {
    text.parse().expect("an address with port")
}
