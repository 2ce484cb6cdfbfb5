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
        let own = interfaces.iter().filter(|interface| !interface.loopback);
        let own = own
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
