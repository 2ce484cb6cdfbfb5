//! To whom is relayed, and to whom never.
//!
//! A relay stands inside its own network, and whoever may use it would like to reach
//! what is behind. So it relays to public addresses alone: nothing that only has a
//! meaning near the relay, nothing on the relay's own networks, and not to the relay's
//! own machine — but to its own relayed addresses, so that two of its clients can meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// To whom a relay relays.
#[derive(Debug, Clone, Default)]
pub struct PeerPolicy {
    /// Networks that are relayed to although they would be refused.
    pub allow: Vec<IpNet>,
    /// The networks that this machine is attached to, its own addresses included.
    pub own: Vec<IpNet>,
    /// Ports of this machine itself that are as open to peers as to everybody: a node's
    /// WireGuard port beside its relay.
    pub own_ports: Vec<u16>,
}

impl PeerPolicy {
    /// Whether datagrams may go to this address, which is none that the relay itself
    /// gave away.
    pub(super) fn permits(&self, peer: SocketAddr, relay: impl Fn(IpAddr) -> bool) -> bool {
        peer.port() != 0
            && if relay(peer.ip()) {
                self.own_ports.contains(&peer.port()) || self.allows(peer.ip())
            } else {
                self.permits_ip(peer.ip())
            }
    }

    /// Whether an address that is not one of the relay's own may be a peer's at all.
    pub(super) fn permits_ip(&self, ip: IpAddr) -> bool {
        if is_nobody(ip) {
            return false;
        }
        self.allows(ip) || (is_public(ip) && !self.own.iter().any(|network| network.contains(&ip)))
    }

    fn allows(&self, ip: IpAddr) -> bool {
        self.allow.iter().any(|network| network.contains(&ip))
    }
}

/// Whether this is the address of no single machine, wherever one looks from.
fn is_nobody(ip: IpAddr) -> bool {
    ip.is_unspecified()
        || ip.is_multicast()
        || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast())
        // An IPv4 address in disguise would get around every rule.
        || matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// Whether an address means the same machine from everywhere (the IANA registries of
/// special-purpose addresses, RFC 6890). The ranges kept for documentation and for
/// tests of network equipment name nobody's machines and are left to those who use them.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let shared = a == 100 && b & 0xc0 == 64; // RFC 6598
    let protocols = [a, b, c] == [192, 0, 0]; // RFC 6890 §2.1
    let this_network = a == 0; // RFC 791 §3.2
    let reserved = a >= 240; // RFC 1112 §4
    !(ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local()
        || ip.is_multicast()
        || shared
        || protocols
        || this_network
        || reserved)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    match segments {
        // NAT64 (RFC 6052): what is behind it is an IPv4 host.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            is_public_v4(Ipv4Addr::new(a, b, c, d))
        }
        // Teredo and other protocols' (RFC 2928, of which 2001:2::/48 is for tests), 6to4
        // (RFC 3056).
        [0x2001, 0 | 1, ..] | [0x2002, ..] => false,
        // All that IANA gives away is in 2000::/3 (RFC 4291 §2.4). What is not there is
        // loopback, local or a group, or IPv4 in one of its disguises (RFC 4291 §2.5.5,
        // RFC 2765 §2.1, RFC 8215).
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(nets: &[&str]) -> Vec<IpNet> {
        nets.iter().map(|net| net.parse().expect("a network")).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn only_public_addresses_are_relayed_to() {
        let policy = PeerPolicy::default();
        for refused in [
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.168.1.1",
            "224.0.0.251",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:0:8.8.8.8",
            "::ffff:0:127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a01:203",
            "64:ff9b:1::1",
            "100::1",
            "200::1",
            "1fff::1",
            "4000::1",
            "5f00::1",
            "2001::1",
            "2002:7f00:1::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!policy.permits_ip(ip(refused)), "{refused}");
        }
        for permitted in [
            "8.8.8.8",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "198.18.1.2",
            "198.51.100.1",
            "2001:2:0:1::2",
            "2001:db8::1",
            "2606:4700::1111",
            "64:ff9b::808:808",
        ] {
            assert!(policy.permits_ip(ip(permitted)), "{permitted}");
        }
    }

    #[test]
    fn the_relay_s_own_networks_are_refused_unless_they_are_allowed() {
        let mut policy =
            PeerPolicy { own: nets(&["198.51.100.0/24", "2001:db8::/64"]), ..Default::default() };
        assert!(!policy.permits_ip(ip("198.51.100.77")));
        assert!(!policy.permits_ip(ip("2001:db8::77")));
        assert!(policy.permits_ip(ip("198.51.101.77")));
        policy.allow = nets(&["198.51.100.64/26", "10.0.0.0/8", "224.0.0.0/4", "127.0.0.0/8"]);
        assert!(policy.permits_ip(ip("198.51.100.77")));
        assert!(!policy.permits_ip(ip("198.51.100.7")));
        assert!(policy.permits_ip(ip("10.1.2.3")));
        assert!(policy.permits_ip(ip("127.0.0.1")));
        assert!(!policy.permits_ip(ip("224.0.0.1")), "a group is nobody to relay to");
    }

    #[test]
    fn of_the_relay_itself_only_the_ports_that_are_open_to_all() {
        let own = ip("198.51.100.1");
        let policy = PeerPolicy { own: nets(&["198.51.100.0/24"]), ..Default::default() };
        let relay = |ip| ip == own;
        assert!(!policy.permits(SocketAddr::new(own, 22), relay));
        let policy = PeerPolicy { own_ports: vec![51820], ..policy };
        assert!(policy.permits(SocketAddr::new(own, 51820), relay));
        assert!(!policy.permits(SocketAddr::new(own, 22), relay));
        assert!(!policy.permits(SocketAddr::new(ip("198.51.100.2"), 51820), relay));
        assert!(!policy.permits(SocketAddr::new(ip("8.8.8.8"), 0), relay), "port 0 is nobody's");
    }
}
