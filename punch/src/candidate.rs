//! Candidates: the addresses at which a node may be reached, and their order.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// Where a candidate's address comes from (RFC 8445 §5.1.1), best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateKind {
    /// An address of one of the node's own interfaces.
    Host,
    /// Learned from a check that came from it (RFC 8445 §7.3.1.3).
    PeerReflexive,
    /// Leased from the NAT by a port mapping protocol.
    Mapped,
    /// As seen by a STUN server.
    ServerReflexive,
    /// Allocated on a relay.
    Relayed,
}

impl CandidateKind {
    /// The type preference (RFC 8445 §5.1.2.2). The RFC knows no mapped kind: it is
    /// like a server-reflexive one, but stands open to anybody.
    fn preference(self) -> u32 {
        match self {
            Self::Host => 126,
            Self::PeerReflexive => 110,
            Self::Mapped => 105,
            Self::ServerReflexive => 100,
            Self::Relayed => 0,
        }
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
    /// The candidate's priority (RFC 8445 §5.1.2.1). There is one component, and
    /// one address per family matters most, so IPv6 takes the higher local
    /// preference (RFC 8421 §4).
    pub fn priority(&self) -> u32 {
        let local = if self.addr.is_ipv6() { 65535 } else { 65534 };
        (self.kind.preference() << 24) | (local << 8) | (256 - 1)
    }

    /// Whether a check may be sent there: a unicast address that means the same
    /// whoever says it, and a port.
    pub(crate) fn is_usable(&self) -> bool {
        let usable = match self.addr.ip() {
            IpAddr::V4(v4) => v4.octets()[0] != 0 && !v4.is_broadcast() && !v4.is_multicast(),
            IpAddr::V6(v6) => {
                // A link-local address means nothing without its interface.
                let scoped = matches!(self.addr, SocketAddr::V6(v6) if v6.scope_id() != 0);
                !v6.is_unspecified()
                    && !v6.is_multicast()
                    && (scoped || !v6.is_unicast_link_local())
            }
        };
        usable && self.addr.port() != 0
    }

    /// Whether a relay may be asked to send there: an address of the Internet. Anything
    /// else would mean something else at the relay, and make it look around for us.
    pub(crate) fn is_for_relays(&self) -> bool {
        self.is_usable() && is_public(self.addr.ip())
    }
}

/// Whether an address is one of the Internet: not loopback, private (RFC 1918), shared
/// (RFC 6598), link-local or unique-local (RFC 4193).
pub(crate) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let shared = a == 100 && b & 0xc0 == 64;
            !v4.is_loopback() && !v4.is_private() && !v4.is_link_local() && !shared
        }
        IpAddr::V6(v6) => {
            let unique_local = v6.octets()[0] & 0xfe == 0xfc;
            !v6.is_loopback() && !v6.is_unicast_link_local() && !unique_local
        }
    }
}

/// One spelling for one address: no IPv4 in IPv6 disguise, and no flow label, which
/// the kernel may report but which names nobody.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(_) => addr,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(kind: CandidateKind, addr: &str) -> Candidate {
        Candidate { kind, addr: addr.parse().expect("a literal address") }
    }

    #[test]
    fn priority_is_that_of_rfc_8445() {
        let host = candidate(CandidateKind::Host, "192.0.2.1:1");
        assert_eq!(host.priority(), 126 * (1 << 24) + 65534 * 256 + 255);
        let order = [
            candidate(CandidateKind::Host, "[2001:db8::1]:1"),
            host,
            candidate(CandidateKind::PeerReflexive, "192.0.2.1:1"),
            candidate(CandidateKind::Mapped, "192.0.2.1:1"),
            candidate(CandidateKind::ServerReflexive, "192.0.2.1:1"),
            candidate(CandidateKind::Relayed, "[2001:db8::1]:1"),
        ];
        assert!(order.is_sorted_by(|a, b| a.priority() > b.priority()));
    }

    #[test]
    fn nobody_is_checked_at_an_address_that_names_nobody() {
        for addr in [
            "0.0.0.0:1",
            "0.1.2.3:1",
            "255.255.255.255:1",
            "224.0.0.1:1",
            "192.0.2.1:0",
            "[::]:1",
            "[ff02::1]:1",
            "[fe80::1]:1",
        ] {
            assert!(!candidate(CandidateKind::Host, addr).is_usable(), "{addr}");
        }
        for addr in ["192.0.2.1:1", "[2001:db8::1]:1", "[fe80::1%2]:1"] {
            assert!(candidate(CandidateKind::Host, addr).is_usable(), "{addr}");
        }
    }

    #[test]
    fn one_address_has_one_spelling() {
        let disguised: SocketAddr = "[::ffff:192.0.2.1]:5".parse().expect("a literal address");
        assert_eq!(canonical(disguised), "192.0.2.1:5".parse().expect("a literal address"));
        let labelled = SocketAddrV6::new("2001:db8::1".parse().expect("a literal"), 5, 77, 0);
        assert_eq!(canonical(labelled.into()).to_string(), "[2001:db8::1]:5");
    }
}
