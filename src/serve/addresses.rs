//! Which of this machine's addresses are relayed from, which networks are its own, and
//! where a second address for RFC 5780 is.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use zonemesh_discovery::interfaces::{InterfaceAddress, host_candidates};
use zonemesh_punch::turn::server::{Alternates, RelayAddress, is_public};

use crate::config::ServeConfig;

/// What the machine's addresses are good for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    /// From where is relayed.
    pub(super) relay: Vec<RelayAddress>,
    /// The networks that the machine is attached to.
    pub(super) own: Vec<IpNet>,
    /// Pairs of addresses for RFC 5780.
    pub(super) alternates: Vec<Alternates>,
}

impl Addresses {
    /// Sorts a machine's addresses; `overlay` is the device of the node beside, whose
    /// addresses are nobody's but its peers'.
    pub(super) fn of(
        config: &ServeConfig,
        interfaces: &[InterfaceAddress],
        overlay: Option<&str>,
    ) -> Self {
        // Those of `lo` as well: a public address may be there (anycast).
        let own = interfaces
            .iter()
            // A prefix of no length at all would be everybody's network.
            .filter(|interface| interface.prefix_len > 0)
            .filter_map(|interface| IpNet::new(interface.addr, interface.prefix_len).ok())
            .map(|network| network.trunc())
            .collect();
        let listening = listening(config, interfaces, overlay);
        let relay_from =
            if config.relay_addresses.is_empty() { &listening } else { &config.relay_addresses };
        let relay = relay_from
            .iter()
            .map(|bind| RelayAddress { bind: *bind, external: external(config, *bind) });
        Self { relay: once(relay), own, alternates: alternates(config, &listening) }
    }
}

/// The addresses that are listened on: those that the configuration names, and for "all"
/// those of the machine, public ones first.
fn listening(
    config: &ServeConfig,
    interfaces: &[InterfaceAddress],
    overlay: Option<&str>,
) -> Vec<IpAddr> {
    let mut all = host_candidates(interfaces, overlay.unwrap_or_default());
    all.sort_by_key(|ip| !is_public(*ip));
    let mut listening = Vec::new();
    for addr in &config.listen {
        if addr.ip().is_unspecified() {
            listening.extend(all.iter().filter(|ip| ip.is_ipv4() == addr.is_ipv4()));
        } else {
            listening.push(addr.ip());
        }
    }
    listening
}

/// As which address peers see this one.
fn external(config: &ServeConfig, bind: IpAddr) -> IpAddr {
    let mut external = config.external_addresses.iter();
    external.find(|ip| ip.is_ipv4() == bind.is_ipv4()).copied().unwrap_or(bind)
}

/// A one-to-one NAT maps one address: of those that look the same from outside, the
/// first is the one.
fn once(addresses: impl Iterator<Item = RelayAddress>) -> Vec<RelayAddress> {
    let mut once: Vec<RelayAddress> = Vec::new();
    for address in addresses {
        if once.iter().all(|other| other.external != address.external) {
            once.push(address);
        }
    }
    once
}

/// The ports that have to be open for RFC 5780: the first one listened on and the next.
pub(super) fn alternate_port(listen: &[SocketAddr]) -> Option<[u16; 2]> {
    let port = listen.first()?.port();
    Some([port, port.checked_add(1)?])
}

/// Two public addresses of one family on one port. What is private behind a NAT would be
/// told to clients who cannot reach it.
fn alternates(config: &ServeConfig, listening: &[IpAddr]) -> Vec<Alternates> {
    let Some(ports) = alternate_port(&config.listen).filter(|_| config.stun) else {
        return vec![];
    };
    let on_port = |ip: &&IpAddr| {
        let mut listen = config.listen.iter().filter(|addr| addr.port() == ports[0]);
        listen.any(|addr| {
            addr.is_ipv4() == ip.is_ipv4() && (addr.ip() == **ip || addr.ip().is_unspecified())
        })
    };
    let named =
        |ip: &&IpAddr| is_public(**ip) || config.listen.iter().any(|listen| listen.ip() == **ip);
    [true, false]
        .into_iter()
        .filter(|v4| config.external_addresses.iter().all(|ip| ip.is_ipv4() != *v4))
        .filter_map(|v4| {
            let mut ips = listening.iter().filter(|ip| ip.is_ipv4() == v4);
            let mut ips = ips.by_ref().filter(on_port).filter(named);
            Some(Alternates { ips: [*ips.next()?, *ips.next()?], ports })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn config(text: &str) -> ServeConfig {
        let text = format!("[serve]\n{text}");
        let config = Config::parse(Path::new("zonemesh.toml"), &text).expect("a configuration");
        config.serve.expect("a [serve] section")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn interface(name: &str, addr: &str, prefix_len: u8) -> InterfaceAddress {
        InterfaceAddress {
            index: 1,
            name: name.to_owned(),
            addr: ip(addr),
            prefix_len,
            up: true,
            loopback: name == "lo",
            point_to_point: false,
            multicast: true,
            tentative: false,
            deprecated: false,
            temporary: false,
            default_route: false,
        }
    }

    fn machine() -> Vec<InterfaceAddress> {
        vec![
            interface("lo", "127.0.0.1", 8),
            interface("lo", "192.0.2.53", 32),
            interface("eth1", "10.0.0.5", 16),
            interface("eth0", "198.18.1.2", 24),
            interface("eth0", "2001:db8::2", 64),
            interface("docker0", "172.17.0.1", 16),
            interface("zm0", "10.42.1.1", 24),
        ]
    }

    fn relay(bind: &str, external: &str) -> RelayAddress {
        RelayAddress { bind: ip(bind), external: ip(external) }
    }

    #[test]
    fn all_addresses_means_the_machine_s_own_with_public_ones_first() {
        let addresses = Addresses::of(&config("turn = false"), &machine(), Some("zm0"));
        assert_eq!(
            addresses.relay,
            [
                relay("198.18.1.2", "198.18.1.2"),
                relay("10.0.0.5", "10.0.0.5"),
                relay("2001:db8::2", "2001:db8::2"),
            ]
        );
        let own: Vec<String> = addresses.own.iter().map(ToString::to_string).collect();
        let expected = [
            "127.0.0.0/8",
            "192.0.2.53/32",
            "10.0.0.0/16",
            "198.18.1.0/24",
            "2001:db8::/64",
            "172.17.0.0/16",
            "10.42.1.0/24",
        ];
        assert_eq!(own, expected, "what is on lo, containers and the overlay are its own, too");
        assert_eq!(addresses.alternates, [], "there is one public address of each family");
    }

    #[test]
    fn a_one_to_one_nat_makes_one_address_look_like_another() {
        let text = "turn = false\nexternal_address = [\"203.0.113.5\"]";
        let interfaces = [interface("eth0", "10.0.0.5", 16), interface("eth0", "10.0.0.6", 16)];
        let addresses = Addresses::of(&config(text), &interfaces, None);
        assert_eq!(addresses.relay, [relay("10.0.0.5", "203.0.113.5")]);
        assert_eq!(addresses.alternates, [], "what is private is not told to clients");
    }

    #[test]
    fn two_addresses_of_a_family_are_alternates() {
        let mut interfaces = machine();
        interfaces.push(interface("eth0", "198.18.1.3", 24));
        let addresses = Addresses::of(&config("turn = false"), &interfaces, Some("zm0"));
        let pair = Alternates { ips: [ip("198.18.1.2"), ip("198.18.1.3")], ports: [3478, 3479] };
        assert_eq!(addresses.alternates, [pair]);
        // Also private ones, where they are named.
        let text = "turn = false\nlisten = [\"10.0.0.5:99\", \"10.0.0.6:99\", \"10.0.0.7:98\"]";
        let addresses = Addresses::of(&config(text), &[], None);
        let pair = Alternates { ips: [ip("10.0.0.5"), ip("10.0.0.6")], ports: [99, 100] };
        assert_eq!(addresses.alternates, [pair]);
        let text = format!("{text}\nrelay_addresses = [\"198.18.7.7\"]");
        let addresses = Addresses::of(&config(&text), &[], None);
        assert_eq!(addresses.relay, [relay("198.18.7.7", "198.18.7.7")]);
    }
}
