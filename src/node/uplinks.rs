//! Further ways to the Internet: interfaces with a default route beside the one that the
//! kernel chooses.
//!
//! WireGuard's socket leaves by what the routes say, so a STUN server sees it by one uplink
//! only. Each further one has a socket that is bound to its interface, and through that a
//! STUN client of its own: the advert names the address that is found out so, and the agents
//! look at the peers from there too. Where the first uplink dies without a word, its route
//! stays, and nothing but these sockets gets out.
//!
//! IPv4 alone: with IPv6 each interface has public addresses that the advert names anyhow.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Instant,
};

use socket2::{Domain, Protocol, Socket, Type};
use tracing::{info, warn};
use zonemesh_discovery::{
    interfaces::{InterfaceAddress, further_uplinks},
    stun::{ReflexiveClient, StunEvent, Transmit},
};
use zonemesh_punch::{MAX_UPLINKS, Route, Via};

use super::Node;
use crate::netcheck::source_address;

/// The further uplinks, and what is known of this machine.
#[derive(Default)]
pub(super) struct Uplinks {
    open: Vec<Uplink>,
    /// The STUN servers that are asked.
    servers: Vec<SocketAddr>,
    addresses: Vec<InterfaceAddress>,
}

struct Uplink {
    /// The interface's number.
    id: u32,
    /// Its address, and the socket's port.
    local: SocketAddr,
    stun: ReflexiveClient,
}

impl Uplinks {
    /// Their numbers.
    pub(super) fn ids(&self) -> Vec<u32> {
        self.open.iter().map(|uplink| uplink.id).collect()
    }

    /// What the socket of one is bound to.
    pub(super) fn local(&self, id: u32) -> Option<SocketAddr> {
        self.open.iter().find(|uplink| uplink.id == id).map(|uplink| uplink.local)
    }

    pub(super) fn set_servers(&mut self, servers: &[SocketAddr], now: Instant) {
        self.servers = servers.iter().copied().filter(SocketAddr::is_ipv4).collect();
        for uplink in &mut self.open {
            uplink.stun.set_servers(&self.servers, now);
        }
    }

    /// Takes what came in by one. Whether it was a STUN server's answer.
    pub(super) fn handle_datagram(
        &mut self,
        id: u32,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
    ) -> bool {
        let mut open = self.open.iter_mut();
        open.find(|uplink| uplink.id == id)
            .is_some_and(|uplink| uplink.stun.handle_datagram(from, bytes, now))
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.open.iter_mut().for_each(|uplink| uplink.stun.handle_timeout(now));
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.open.iter().filter_map(|uplink| uplink.stun.poll_timeout()).min()
    }

    /// What is to be sent by which. Whether an address has changed.
    fn drain(&mut self) -> (Vec<(Via, Transmit)>, bool) {
        let (mut transmits, mut changed) = (Vec::new(), false);
        for Uplink { id, stun, .. } in &mut self.open {
            while let Some(event) = stun.poll_event() {
                changed |= event == StunEvent::Changed;
            }
            while let Some(transmit) = stun.poll_transmit() {
                transmits.push((Via::Uplink(*id), transmit));
            }
        }
        (transmits, changed)
    }

    /// Closes those that lead nowhere any more, and opens new ones. Their sockets, and whether
    /// there is any change.
    fn follow(&mut self, overlay: &str, now: Instant) -> (Vec<(Via, UdpSocket)>, bool) {
        let out = |main| further_uplinks(&self.addresses, overlay, main);
        let leads_out = out(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let before = self.ids();
        // One that the routes choose by now stays: paths go by it.
        self.open.retain(|uplink| {
            leads_out.iter().any(|(id, _, ip)| (*id, *ip) == (uplink.id, uplink.local.ip()))
        });
        let main = self.servers.first().and_then(|server| source_address(*server));
        let mut sockets = Vec::new();
        for (id, name, ip) in main.map(out).unwrap_or_default() {
            if self.open.len() >= MAX_UPLINKS || self.local(id).is_some() {
                continue;
            }
            match open(&name) {
                Ok((socket, port)) => {
                    info!(interface = name, address = %ip, "a further uplink");
                    let mut stun = ReflexiveClient::new(rand::random());
                    stun.set_local_addresses(&[SocketAddr::new(ip, port)]);
                    stun.set_servers(&self.servers, now);
                    self.open.push(Uplink { id, local: SocketAddr::new(ip, port), stun });
                    sockets.push((Via::Uplink(id), socket));
                }
                Err(error) => warn!("{name} cannot be used as a further uplink: {error}"),
            }
        }
        (sockets, before != self.ids())
    }
}

impl Node {
    /// Takes this machine's addresses; `moved` where they, or the routes, are others.
    pub(super) fn follow_uplinks(
        &mut self,
        addresses: &[InterfaceAddress],
        moved: bool,
        now: Instant,
    ) {
        self.uplinks.addresses = addresses.to_vec();
        self.open_uplinks(now);
        if moved {
            self.uplinks.open.iter_mut().for_each(|uplink| uplink.stun.refresh(now));
        }
    }

    /// Has a socket on each further uplink that there is now.
    pub(super) fn open_uplinks(&mut self, now: Instant) {
        let (sockets, changed) = self.uplinks.follow(&self.config.interface.name, now);
        if changed {
            self.keep_handed(sockets);
            self.mesh.set_uplinks(&self.uplinks.ids(), now);
            self.handle_reflexive(now);
        }
    }

    /// Lets out what the STUN clients of the further uplinks have to say.
    pub(super) fn settle_uplinks(&mut self, now: Instant) {
        let (transmits, changed) = self.uplinks.drain();
        for (via, transmit) in transmits {
            self.data.send(Route { via, remote: transmit.to }, &transmit.payload, false);
        }
        if changed {
            self.handle_reflexive(now);
        }
    }

    /// The addresses as which this node is seen, with a server that does and when it last said
    /// so: first the best by each uplink, that of WireGuard's socket before the others.
    pub(super) fn named(&self) -> Vec<(SocketAddr, SocketAddr, Instant)> {
        let mut main = self.stun.named();
        let first = main.next();
        let further = self.uplinks.open.iter();
        let others = further.flat_map(|uplink| uplink.stun.named().take(1));
        first.into_iter().chain(others).chain(main).collect()
    }
}

/// A socket that leaves by this interface alone (socket(7), SO_BINDTODEVICE), and its port.
fn open(interface: &str) -> io::Result<(UdpSocket, u16)> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into())?;
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from(socket);
    let port = socket.local_addr()?.port();
    Ok((socket, port))
}
