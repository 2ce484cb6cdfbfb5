//! NATs and firewalls, in the words of RFC 4787.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use rand::{RngExt, rngs::StdRng};
pub(crate) use zonemesh_punch::oracle::Depends;
use zonemesh_punch::{
    PortPattern,
    oracle::{Best, Nat, best_possible},
};

use super::Segment;

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
    /// As Linux does where nothing drops it: what came unsolicited is remembered, and
    /// what goes out to its sender later gets another port, as does all that is new after
    /// that.
    pub(crate) remaps: bool,
    /// UDP does not pass.
    pub(crate) blocks_udp: bool,
    /// How long a mapping, and a hole in the filter, outlive the last packet *out*.
    pub(crate) timeout: Duration,
}

impl Behaviour {
    pub(crate) fn new(mapping: Depends, filtering: Depends, ports: Ports) -> Self {
        Self {
            mapping,
            filtering,
            ports,
            hairpin: false,
            remaps: false,
            blocks_udp: false,
            timeout: Duration::from_secs(30),
        }
    }

    /// In the oracle's words.
    pub(crate) fn nat(&self) -> Nat {
        let ports = match self.ports {
            Ports::Preserving => PortPattern::Preserving,
            Ports::Sequential => PortPattern::Sequential { step: 1 },
            Ports::Random => PortPattern::Random,
        };
        let (mapping, filtering) = (self.mapping, self.filtering);
        Nat { udp: !self.blocks_udp, mapping, filtering, ports }
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

    pub(crate) fn open_input() -> Self {
        Self { remaps: true, ..Self::port_restricted() }
    }

    pub(crate) fn blocked() -> Self {
        Self { blocks_udp: true, ..Self::port_restricted() }
    }

    pub(crate) fn sequential() -> Self {
        Self::new(Depends::AddressAndPort, Depends::AddressAndPort, Ports::Sequential)
    }

    pub(crate) fn symmetric() -> Self {
        Self::new(Depends::AddressAndPort, Depends::AddressAndPort, Ports::Random)
    }
}

/// Whether two sites behind these NATs can have a direct path when both know each
/// other's reflexive address and neither guesses ports.
pub(crate) fn direct_is_possible(a: &Behaviour, b: &Behaviour) -> bool {
    best_possible(a.nat(), b.nat()) == Best::Direct
}

pub(super) struct Gateway {
    pub(super) outside: Segment,
    pub(super) inside: Segment,
    pub(super) ip: Option<IpAddr>,
    pub(super) behaviour: Behaviour,
    pub(super) next_port: u16,
    pub(super) mappings: Vec<Mapping>,
    /// What came unsolicited: from whom, to where, and when last.
    pub(super) unsolicited: Vec<(SocketAddr, SocketAddr, Instant)>,
}

pub(super) struct Mapping {
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

impl Gateway {
    pub(super) fn translate_out(
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
        let known = match self.behaviour.remaps {
            true => self.current(from, to),
            false => self.mappings.iter().position(|m| m.inside == from && m.key == key),
        };
        let index = known.unwrap_or_else(|| {
            let outside = match self.ip {
                Some(ip) => SocketAddr::new(ip, self.free_port(from.port(), to, rng)),
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

    pub(super) fn translate_in(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        now: Instant,
    ) -> Option<SocketAddr> {
        self.expire(now);
        if self.ip == Some(from.ip()) && !self.behaviour.hairpin {
            return None;
        }
        let passes = self.admit(from, to);
        if passes.is_none() && self.behaviour.remaps {
            self.unsolicited.retain(|(by, at, _)| (*by, *at) != (from, to));
            self.unsolicited.push((from, to, now));
        }
        passes
    }

    fn admit(&self, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        let mapping = self.mappings.iter().find(|mapping| mapping.outside == to)?;
        let open = match self.behaviour.filtering {
            Depends::Nothing => true,
            Depends::Address => mapping.contacted.keys().any(|known| known.ip() == from.ip()),
            Depends::AddressAndPort => mapping.contacted.contains_key(&from),
        };
        open.then_some(mapping.inside)
    }

    /// The mapping that Linux gives what goes there: a flow keeps the one that it has; a new
    /// one gets that of the socket's latest new flow, unless its destination came there
    /// unsolicited.
    fn current(&mut self, from: SocketAddr, to: SocketAddr) -> Option<usize> {
        let own = |m: &Mapping| m.inside == from && m.contacted.contains_key(&to);
        if let Some(index) = self.mappings.iter().position(own) {
            return Some(index);
        }
        let index = self.mappings.iter().rposition(|m| m.inside == from)?;
        let outside = self.mappings[index].outside;
        if self.came_unsolicited(to, outside) {
            return None;
        }
        // The latest stands last.
        let latest = self.mappings.remove(index);
        self.mappings.push(latest);
        Some(self.mappings.len() - 1)
    }

    fn came_unsolicited(&self, from: SocketAddr, to: SocketAddr) -> bool {
        self.unsolicited.iter().any(|(by, at, _)| (*by, *at) == (from, to))
    }

    fn free_port(&mut self, wish: u16, to: SocketAddr, rng: &mut StdRng) -> u16 {
        let taken = |port| self.mappings.iter().any(|mapping| mapping.outside.port() == port);
        let spoilt = |port| self.ip.is_some_and(|ip| self.came_unsolicited(to, (ip, port).into()));
        match self.behaviour.ports {
            // Linux takes any where the wish is not to be had.
            Ports::Preserving if self.behaviour.remaps && (taken(wish) || spoilt(wish)) => loop {
                let port = rng.random_range(1024..=u16::MAX);
                if !taken(port) && !spoilt(port) {
                    break port;
                }
            },
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
        self.unsolicited.retain(|(_, _, last)| now < *last + timeout);
        self.mappings.retain(|mapping| now < mapping.last_out + timeout);
        for mapping in &mut self.mappings {
            mapping.contacted.retain(|_, last| now < *last + timeout);
        }
    }
}
