//! The two UDP sockets, one port: everything of this node goes out and comes in
//! here, so that a NAT sees one mapping.
//!
//! Datagrams may be fragmented on their way, as the kernel's WireGuard has it: a
//! tunnel that forbids it dies on the first link that is smaller than it thinks.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};

use super::StartError;
use crate::sys;

/// A burst of a few milliseconds at 10 Gbit/s. With the default of 208 KB bursts are
/// lost while the thread is at work.
const BUFFER: usize = 8 << 20;

/// Segments of one UDP_SEGMENT datagram (Linux: UDP_MAX_SEGMENTS was 64 before 6.9).
pub(super) const MAX_SEGMENTS: usize = 64;

/// Bytes of one UDP_SEGMENT datagram: what one IPv4 datagram holds.
pub(super) const MAX_CONTENTS: usize = 65_507;

/// How often a pair of equal ports is looked for when any will do.
const PORT_TRIES: usize = 16;

/// One of the two sockets.
pub(super) struct Udp {
    socket: Socket,
    state: UdpSocketState,
    is_ipv4: bool,
    /// Whether the kernel knows UDP_SEGMENT.
    gso: bool,
}

impl Udp {
    fn open(address: IpAddr, port: u16) -> io::Result<Self> {
        let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&SocketAddr::new(address, port).into())?;
        Self::prepare(socket, address.is_ipv4())
    }

    fn prepare(socket: Socket, is_ipv4: bool) -> io::Result<Self> {
        // Past the system's limit with CAP_NET_ADMIN, up to it without.
        if sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
            socket.set_recv_buffer_size(BUFFER)?;
        }
        if sockopt::set_socket_send_buffer_size_force(&socket, BUFFER).is_err() {
            socket.set_send_buffer_size(BUFFER)?;
        }
        let state = UdpSocketState::new((&socket).into())?;
        let gso = state.max_gso_segments() > 1;
        let udp = Self { socket, state, is_ipv4, gso };
        udp.allow_fragments()?;
        Ok(udp)
    }

    /// Takes over a bound socket.
    pub(super) fn adopt(socket: UdpSocket) -> io::Result<Self> {
        let socket = Socket::from(socket);
        let is_ipv4 = socket.local_addr()?.is_ipv4();
        Self::prepare(socket, is_ipv4)
    }

    fn port(&self) -> io::Result<u16> {
        let address = self.socket.local_addr()?;
        Ok(address.as_socket().map_or(0, |address| address.port()))
    }

    /// Lets the kernel and the routers fragment what is too large for a link.
    fn allow_fragments(&self) -> io::Result<()> {
        if self.is_ipv4 {
            sockopt::set_ip_mtu_discover(&self.socket, sockopt::Ipv4PathMtuDiscovery::DONT)?;
        } else {
            sockopt::set_ipv6_mtu_discover(&self.socket, sockopt::Ipv6PathMtuDiscovery::DONT)?;
            sys::set_ipv6_dont_fragment(&self.socket, false)?;
        }
        Ok(())
    }

    /// The opposite, also past what the kernel believes to be the path's MTU: to find it
    /// out.
    fn forbid_fragments(&self) -> io::Result<()> {
        if self.is_ipv4 {
            sockopt::set_ip_mtu_discover(&self.socket, sockopt::Ipv4PathMtuDiscovery::PROBE)?;
        } else {
            sockopt::set_ipv6_mtu_discover(&self.socket, sockopt::Ipv6PathMtuDiscovery::PROBE)?;
            sys::set_ipv6_dont_fragment(&self.socket, true)?;
        }
        Ok(())
    }

    /// Sends one datagram that nobody may fragment. The kernel knows that of a socket and
    /// not of a datagram: what other threads send in the same moment must fit too, or is
    /// lost.
    pub(super) fn send_whole(&self, to: SocketAddr, contents: &[u8]) -> io::Result<()> {
        self.forbid_fragments()?;
        let sent = self.send(to, contents, None);
        self.allow_fragments()?;
        sent
    }

    /// Sends one datagram that gets at most `hops` routers far.
    pub(super) fn send_near(&self, to: SocketAddr, contents: &[u8], hops: u8) -> io::Result<()> {
        let destination = SocketAddr::new(to.ip().to_canonical(), to.port());
        let destination = if destination.is_ipv4() { destination } else { to };
        sys::send_near(&self.socket, destination, contents, hops)
    }

    /// Sends `contents` to `to`: one datagram, or with `segment` several of that
    /// size (the last may be shorter). Does not wait.
    pub(super) fn send(
        &self,
        to: SocketAddr,
        contents: &[u8],
        segment: Option<usize>,
    ) -> io::Result<()> {
        let destination = SocketAddr::new(to.ip().to_canonical(), to.port());
        // A scope must not get lost: link-local addresses mean nothing without.
        let destination = if destination.is_ipv4() { destination } else { to };
        let transmit =
            Transmit { destination, ecn: None, contents, segment_size: segment, src_ip: None };
        self.state.try_send((&self.socket).into(), &transmit)
    }

    /// How many segments one datagram may carry.
    pub(super) fn max_segments(&self) -> usize {
        // Only whether the kernel knows it at all: after one failed send the
        // library would say 1 for every other destination, too.
        if self.gso { MAX_SEGMENTS } else { 1 }
    }

    /// Receives what is there, up to as many as there are buffers.
    pub(super) fn receive(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> io::Result<usize> {
        self.state.recv((&self.socket).into(), buffers, metas)
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Both sockets. IPv6 may be missing on this machine.
pub(super) struct Sockets {
    pub(super) v4: Udp,
    pub(super) v6: Option<Udp>,
    port: u16,
}

impl Sockets {
    /// Binds `port` on both; 0 picks one that is free on both.
    pub(super) fn open(port: u16) -> Result<Self, StartError> {
        let mut tries = if port == 0 { PORT_TRIES } else { 1 };
        loop {
            tries -= 1;
            match Self::try_open(port) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    if tries == 0 {
                        return Err(StartError::PortTaken { port });
                    }
                }
                other => return other.map_err(StartError::Socket),
            }
        }
    }

    fn try_open(port: u16) -> io::Result<Self> {
        let v4 = Udp::open(Ipv4Addr::UNSPECIFIED.into(), port)?;
        let port = v4.port()?;
        let v6 = match Udp::open(Ipv6Addr::UNSPECIFIED.into(), port) {
            Ok(v6) => Some(v6),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(error) => {
                tracing::info!(%error, "no IPv6 on this machine: going on with IPv4 alone");
                None
            }
        };
        Ok(Self { v4, v6, port })
    }

    /// The port of both.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Sends `contents` to `to`: one datagram, or with `segment` several of that
    /// size (the last may be shorter). Does not wait.
    pub(super) fn send(
        &self,
        to: SocketAddr,
        contents: &[u8],
        segment: Option<usize>,
    ) -> io::Result<()> {
        self.of(&to).ok_or(io::ErrorKind::NetworkUnreachable)?.send(to, contents, segment)
    }

    /// The socket for this destination.
    pub(super) fn of(&self, to: &SocketAddr) -> Option<&Udp> {
        if to.ip().to_canonical().is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() }
    }

    /// How many segments one datagram to `to` may carry.
    pub(super) fn max_segments(&self, to: &SocketAddr) -> usize {
        self.of(to).map_or(1, Udp::max_segments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picked_port_is_the_same_for_both_families() {
        let sockets = Sockets::open(0).expect("some port is free");
        assert_ne!(sockets.port(), 0);
        assert_eq!(sockets.v4.port().expect("bound"), sockets.port());
        if let Some(v6) = &sockets.v6 {
            assert_eq!(v6.port().expect("bound"), sockets.port());
        }
    }

    #[test]
    fn a_taken_port_is_told_with_the_key_to_change() {
        let first = Sockets::open(0).expect("some port is free");
        let error = Sockets::open(first.port()).err().expect("it is taken");
        let text = error.to_string();
        assert!(text.contains(&first.port().to_string()), "{text}");
        assert!(text.contains("interface.listen_port"), "{text}");
    }

    #[test]
    fn the_kernel_may_fragment_what_is_larger_than_a_link() {
        let sockets = Sockets::open(0).expect("some port is free");
        assert_eq!(
            sockopt::ip_mtu_discover(&sockets.v4).expect("set"),
            sockopt::Ipv4PathMtuDiscovery::DONT
        );
        if let Some(v6) = &sockets.v6 {
            assert_eq!(
                sockopt::ipv6_mtu_discover(v6).expect("set"),
                sockopt::Ipv6PathMtuDiscovery::DONT
            );
        }
    }

    #[test]
    fn one_send_of_segments_arrives_as_datagrams() {
        let (a, b) = (Sockets::open(0).expect("free"), Sockets::open(0).expect("free"));
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, b.port()));
        let contents: Vec<u8> = (0..=249).collect();
        a.send(to, &contents, Some(100)).expect("loopback takes it");
        let mut received = Vec::new();
        let mut buffer = vec![0; 65_535];
        while received.len() < contents.len() {
            let mut poll = [rustix::event::PollFd::new(&b.v4, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut poll, None).expect("poll");
            let mut metas = [RecvMeta::default()];
            let mut buffers = [IoSliceMut::new(&mut buffer)];
            b.v4.receive(&mut buffers, &mut metas).expect("something is there");
            assert!(metas[0].stride == 100 || metas[0].len == 50);
            assert_eq!(metas[0].addr.port(), a.port());
            received.extend_from_slice(&buffer[..metas[0].len]);
        }
        assert_eq!(received, contents);
    }
}
