//! A UDP socket of the rendezvous: one that clients talk to, or a relayed address.
//!
//! Trains of datagrams come in by UDP_GRO and go out by UDP_SEGMENT. What is relayed may
//! be fragmented on its way unless a client forbids it (RFC 8656 §14).

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
};

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};

use crate::sys;

/// Segments of one UDP_SEGMENT datagram (Linux: UDP_MAX_SEGMENTS was 64 before 6.9).
pub(super) const MAX_SEGMENTS: usize = 64;

/// Bytes of one UDP_SEGMENT datagram: what one IPv4 datagram holds.
pub(super) const MAX_CONTENTS: usize = 65_507;

/// The largest train that is received: one IPv6 datagram.
const BUFFER_LEN: usize = 65_535;

/// A UDP socket.
pub(super) struct Udp {
    socket: Socket,
    state: UdpSocketState,
    local: SocketAddr,
    /// Whether the kernel knows UDP_SEGMENT.
    gso: bool,
}

impl Udp {
    /// Binds a socket whose buffers hold `buffer` bytes each way.
    pub(super) fn bind(local: SocketAddr, buffer: usize) -> io::Result<Self> {
        let domain = Domain::for_address(local);
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if local.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Past the system's limit with CAP_NET_ADMIN, up to it without.
        if sockopt::set_socket_recv_buffer_size_force(&socket, buffer).is_err() {
            socket.set_recv_buffer_size(buffer)?;
        }
        if sockopt::set_socket_send_buffer_size_force(&socket, buffer).is_err() {
            socket.set_send_buffer_size(buffer)?;
        }
        socket.bind(&local.into())?;
        let state = UdpSocketState::new((&socket).into())?;
        let gso = state.max_gso_segments() > 1;
        let udp = Self { socket, state, local, gso };
        udp.forbid_fragments(false)?;
        Ok(udp)
    }

    /// Where it is bound.
    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }

    /// The same socket once more, for who waits for it in another way.
    pub(super) fn duplicate(&self) -> io::Result<std::net::UdpSocket> {
        self.socket.set_nonblocking(true)?;
        Ok(self.socket.try_clone()?.into())
    }

    /// How many segments one send may carry.
    pub(super) fn max_segments(&self) -> usize {
        // Only whether the kernel knows it at all: after one failed send the library
        // would say 1 for every other destination, too.
        if self.gso { MAX_SEGMENTS } else { 1 }
    }

    /// Receives what is there, as much as there is room for.
    pub(super) fn receive(&self, buffers: &mut Buffers) -> io::Result<usize> {
        let mut chunks = buffers.bytes.chunks_mut(BUFFER_LEN);
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        self.state.recv((&self.socket).into(), &mut slices, &mut buffers.metas)
    }

    /// Sends a train: datagrams of `segment` bytes each, the last one perhaps shorter.
    /// Does not wait. Where the kernel takes no train, because a datagram is larger than
    /// the link, they go one by one, in fragments.
    pub(super) fn send_train(
        &self,
        from: Option<IpAddr>,
        to: SocketAddr,
        contents: &[u8],
        segment: Option<usize>,
    ) -> io::Result<()> {
        let sent = self.send(from, to, contents, segment);
        let (Some(segment), Err(error)) = (segment, &sent) else { return sent };
        // Linux: udp_send_skb() for datagrams that do not fit the link.
        if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO)) {
            return sent;
        }
        contents.chunks(segment).try_for_each(|datagram| self.send(from, to, datagram, None))
    }

    /// Sends `contents` from `from` to `to`: one datagram, or with `segment` several of
    /// that size (the last may be shorter). Does not wait.
    pub(super) fn send(
        &self,
        from: Option<IpAddr>,
        to: SocketAddr,
        contents: &[u8],
        segment: Option<usize>,
    ) -> io::Result<()> {
        let transmit =
            Transmit { destination: to, ecn: None, contents, segment_size: segment, src_ip: from };
        self.state.try_send((&self.socket).into(), &transmit)
    }

    /// Sends one datagram that must not be fragmented.
    pub(super) fn send_whole(&self, to: SocketAddr, contents: &[u8]) -> io::Result<()> {
        self.forbid_fragments(true)?;
        let sent = self.send(None, to, contents, None);
        self.forbid_fragments(false)?;
        sent
    }

    fn forbid_fragments(&self, forbid: bool) -> io::Result<()> {
        if self.local.is_ipv4() {
            use sockopt::Ipv4PathMtuDiscovery as Discovery;
            let discovery = if forbid { Discovery::DO } else { Discovery::DONT };
            Ok(sockopt::set_ip_mtu_discover(&self.socket, discovery)?)
        } else {
            use sockopt::Ipv6PathMtuDiscovery as Discovery;
            let discovery = if forbid { Discovery::DO } else { Discovery::DONT };
            sockopt::set_ipv6_mtu_discover(&self.socket, discovery)?;
            sys::set_ipv6_dont_fragment(&self.socket, forbid)
        }
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Room for one batch of trains.
pub(super) struct Buffers {
    bytes: Vec<u8>,
    metas: [RecvMeta; BATCH_SIZE],
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; BUFFER_LEN * BATCH_SIZE], metas: [RecvMeta::default(); BATCH_SIZE] }
    }

    /// The `index`th train that came in, with what is known of it.
    pub(super) fn train(&self, index: usize) -> (RecvMeta, &[u8]) {
        let meta = self.metas[index];
        let start = index * BUFFER_LEN;
        (meta, &self.bytes[start..start + meta.len])
    }
}
