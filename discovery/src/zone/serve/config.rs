//! What the operator decides: the zone, the records at its top, and how much it may hold.

use std::net::IpAddr;

use hickory_proto::rr::{
    Name, RData, Record,
    rdata::{NS, SRV},
};

use crate::{advert::Zone, membership::NetworkId, sealed::Seal};

/// How long resolvers may keep what the zone says, in seconds: the same as nodes give
/// their own records.
pub(super) const TTL: u32 = 30;

/// The label of the host that serves the zone, and of the services on it.
const RENDEZVOUS: &str = "rendezvous";

/// The zone and what is fixed in it.
#[derive(Debug, Clone)]
pub struct ZoneConfig {
    /// The zone that is served.
    pub zone: Zone,
    /// The network whose members may write their own names. Without one, only who has a
    /// TSIG key writes.
    pub network: Option<NetworkId>,
    /// Where the zone is sealed: to open what is written, for only then can it be verified.
    pub seal: Option<Seal>,
    /// The addresses of this host, as nodes reach it: those of `rendezvous.<zone>`, which
    /// is the zone's primary server and the target of its services.
    pub addresses: Vec<IpAddr>,
    /// The secondary servers: `ns2.<zone>`, `ns3.<zone>`, … in this order.
    pub secondaries: Vec<IpAddr>,
    /// What else runs on this host.
    pub services: Vec<Service>,
    /// Other hosts on which the same runs: `rendezvous2.<zone>`, … in this order.
    pub others: Vec<IpAddr>,
    /// Whether the zone is another server's, and follows that one: nothing is fixed here.
    pub mirror: bool,
    /// How much the zone may hold.
    pub limits: Limits,
}

/// One service of this host, told by an SRV record (RFC 2782).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// Which service.
    pub kind: ServiceKind,
    /// Its port.
    pub port: u16,
}

/// The services that nodes look for in the zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceKind {
    /// STUN over UDP (RFC 8489 §8).
    Stun,
    /// TURN over UDP (RFC 8656 §3).
    TurnUdp,
    /// TURN over TCP.
    TurnTcp,
    /// TURN over TLS.
    TurnTls,
}

impl ServiceKind {
    fn labels(self) -> [&'static [u8]; 2] {
        match self {
            Self::Stun => [b"_stun", b"_udp"],
            Self::TurnUdp => [b"_turn", b"_udp"],
            Self::TurnTcp => [b"_turn", b"_tcp"],
            Self::TurnTls => [b"_turns", b"_tcp"],
        }
    }
}

/// Bounds on what the zone holds, so that no member can fill this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Nodes, those included that have left and whose last number is still remembered.
    pub nodes: usize,
    /// Slices that are claimed.
    pub claims: usize,
    /// Bytes of all records.
    pub bytes: usize,
    /// Nodes in the list of instances, one PTR record each: 800 still fit a message of
    /// 64 KiB, but BIND as a secondary takes no zone with more than 100 as it comes. The
    /// others are found by transfer.
    pub pointers: usize,
    /// Changes kept for IXFR (RFC 1995 §5).
    pub diffs: usize,
    /// Bytes of the changes kept for IXFR.
    pub diff_bytes: usize,
}

impl Default for Limits {
    /// What a node reads of a zone: 4,096 instances and less than 16 MiB.
    fn default() -> Self {
        Self {
            nodes: 4096,
            claims: 4096,
            bytes: 12 << 20,
            pointers: 100,
            diffs: 16_384,
            diff_bytes: 8 << 20,
        }
    }
}

impl ZoneConfig {
    /// A zone with nothing in it but its server.
    pub fn new(zone: Zone) -> Self {
        Self {
            zone,
            network: None,
            seal: None,
            addresses: Vec::new(),
            secondaries: Vec::new(),
            services: Vec::new(),
            others: Vec::new(),
            mirror: false,
            limits: Limits::default(),
        }
    }

    /// `rendezvous.<zone>`: the zone's primary server (the SOA's MNAME).
    pub fn primary(&self) -> Name {
        self.zone.below(&[RENDEZVOUS.as_bytes()])
    }

    /// The records that no update may touch, but for the SOA, which has the serial.
    pub(super) fn fixed_records(&self) -> Vec<Record> {
        let apex = self.zone.name();
        let mut records = Vec::new();
        if self.mirror {
            return records;
        }
        let mut push = |name: &Name, data| {
            records.push(Record::from_rdata(name.clone(), TTL, data));
        };
        let primary = self.primary();
        push(apex, RData::NS(NS(primary.clone())));
        for address in &self.addresses {
            push(&primary, RData::from(*address));
        }
        for (number, address) in (2..).zip(&self.secondaries) {
            let name = self.zone.below(&[format!("ns{number}").as_bytes()]);
            push(apex, RData::NS(NS(name.clone())));
            push(&name, RData::from(*address));
        }
        // A target without an address helps nobody.
        let mut hosts = Vec::new();
        if !self.addresses.is_empty() {
            hosts.push(primary);
        }
        for (number, address) in (2..).zip(&self.others) {
            let name = self.zone.below(&[format!("{RENDEZVOUS}{number}").as_bytes()]);
            push(&name, RData::from(*address));
            hosts.push(name);
        }
        for host in hosts {
            for Service { kind, port } in &self.services {
                let srv = SRV::new(0, 0, *port, host.clone());
                push(&self.zone.below(&kind.labels()), RData::SRV(srv));
            }
        }
        records
    }
}
