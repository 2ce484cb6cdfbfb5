//! Where a node may be reached: its candidates, and the endpoint that they make.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use super::AdvertError;

/// Where a candidate's address comes from (RFC 8445 §5.1.1), best known first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateKind {
    /// An address of one of the node's own interfaces.
    Host,
    /// As seen by a STUN server.
    ServerReflexive,
    /// Leased from the NAT by PCP, NAT-PMP or UPnP.
    Mapped,
    /// Allocated on a TURN server.
    Relayed,
}

impl CandidateKind {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Host, "h"),
        (Self::ServerReflexive, "s"),
        (Self::Mapped, "m"),
        (Self::Relayed, "r"),
    ];

    fn letter(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, letter)| letter)
    }
}

/// One address at which a node may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate {
    /// Where the address comes from.
    pub kind: CandidateKind,
    /// The address and UDP port.
    pub addr: SocketAddr,
}

impl Candidate {
    pub(super) fn is_usable(&self) -> bool {
        self.addr.port() != 0 && is_reachable(self.addr.ip())
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.letter(), self.addr)
    }
}

impl FromStr for Candidate {
    type Err = AdvertError;

    fn from_str(text: &str) -> Result<Self, AdvertError> {
        let bad = AdvertError::Value("cand");
        let (letter, addr) = text.split_once(':').ok_or(bad)?;
        let (kind, _) =
            CandidateKind::ALL.into_iter().find(|(_, known)| *known == letter).ok_or(bad)?;
        let candidate = Self { kind, addr: addr.parse().map_err(|_| bad)? };
        if candidate.is_usable() { Ok(candidate) } else { Err(bad) }
    }
}

/// A UDP port and the addresses that go with it: what SRV, A and AAAA say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub(super) port: u16,
    pub(super) addresses: Vec<IpAddr>,
}

impl Endpoint {
    /// An endpoint; the addresses are put in order and freed of duplicates.
    pub fn new(port: u16, mut addresses: Vec<IpAddr>) -> Self {
        addresses.sort_unstable();
        addresses.dedup();
        Self { port, addresses }
    }

    /// The UDP port of the SRV record.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The addresses of A and AAAA, in order, without duplicates.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Every address with the port.
    pub fn socket_addrs(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.addresses.iter().map(|addr| SocketAddr::new(*addr, self.port))
    }
}

/// What SRV, A and AAAA say for these candidates: see [`super::Advert::endpoint`].
pub(crate) fn endpoint_of(candidates: &[Candidate]) -> Option<Endpoint> {
    let public = |candidate: &&Candidate| match candidate.kind {
        CandidateKind::Host => is_public(candidate.addr.ip()),
        CandidateKind::ServerReflexive | CandidateKind::Mapped => true,
        CandidateKind::Relayed => false,
    };
    let mut chosen: Vec<SocketAddr> = candidates.iter().filter(public).map(|c| c.addr).collect();
    if chosen.is_empty() {
        chosen = candidates.iter().map(|c| c.addr).collect();
    }
    let port = chosen.first()?.port();
    let addresses = chosen.iter().filter(|addr| addr.port() == port).map(|addr| addr.ip());
    Some(Endpoint::new(port, addresses.collect()))
}

/// Whether a packet may be sent to this address because an advert names it:
/// unicast, and not this very machine.
pub(super) fn is_reachable(ip: IpAddr) -> bool {
    let own = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast();
    !own && match ip {
        IpAddr::V4(v4) => !v4.is_broadcast() && v4.octets()[0] != 0,
        // A mapped address would be an IPv4 one in disguise; a link-local one means
        // nothing without the interface that it belongs to.
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_none() && !v6.is_unicast_link_local(),
    }
}

/// Whether the address is worth telling to the whole Internet: not private (RFC
/// 1918), not shared (RFC 6598), not link-local, not unique-local (RFC 4193).
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_private() && !v4.is_link_local() && !is_shared(v4),
        IpAddr::V6(v6) => !is_unique_local(v6) && !v6.is_unicast_link_local(),
    }
}

fn is_shared(v4: Ipv4Addr) -> bool {
    let [a, b, ..] = v4.octets();
    a == 100 && b & 0xc0 == 64
}

fn is_unique_local(v6: Ipv6Addr) -> bool {
    v6.octets()[0] & 0xfe == 0xfc
}
