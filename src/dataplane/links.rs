//! The ends of this node beside its two sockets: relays, sockets that were opened for a hard
//! NAT, and those that leave by another interface.
//!
//! A relay is reached through WireGuard's own socket (UDP), so that it sees the same
//! mapping of the NAT as everybody, or through a stream (TCP, TLS) that somebody else
//! keeps: then the link is a socket pair, of which each datagram is one frame of the
//! stream. What goes to a peer through a relay is framed as ChannelData (RFC 8656 §12.4),
//! four bytes in front of each message, and nothing is copied for it.
//!
//! The packet threads read a set of links as a whole; the control plane publishes the
//! next one.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::Arc,
};

use rustix::net::{SendFlags, send};
use zonemesh_punch::{
    Route, Via,
    turn::channel::{self, HEADER_LEN},
};

use super::udp::{MAX_SEGMENTS, Sockets, Udp};

/// How the server of a relay is reached.
#[derive(Debug)]
pub enum RelayLink {
    /// By UDP from WireGuard's own socket, at this address.
    Udp(SocketAddr),
    /// By a stream that somebody else keeps. This is an end of a pair of `SOCK_SEQPACKET`
    /// sockets: each datagram is one whole STUN message, or one ChannelData frame without
    /// padding.
    Stream(OwnedFd),
}

/// A relay on which this node has an allocation, and the channels that are bound on it.
#[derive(Debug, Clone)]
pub(super) struct Relay {
    pub(super) link: Arc<RelayLink>,
    numbers: HashMap<SocketAddr, u16>,
    peers: HashMap<u16, SocketAddr>,
}

impl Relay {
    /// The sender and the payload of a ChannelData frame; `None` where it is not well
    /// made or its channel is not bound.
    pub(super) fn open<'d>(&self, frame: &'d [u8]) -> Option<(SocketAddr, &'d [u8])> {
        let (number, payload) = channel::decode(frame)?;
        Some((*self.peers.get(&number)?, payload))
    }
}

/// All of them.
#[derive(Default, Clone)]
pub(super) struct Links {
    relays: BTreeMap<u32, Relay>,
    extras: BTreeMap<Via, Arc<Udp>>,
}

impl Links {
    pub(super) fn add_relay(&mut self, id: u32, link: &Arc<RelayLink>) {
        let link = Arc::clone(link);
        self.relays.insert(id, Relay { link, numbers: HashMap::new(), peers: HashMap::new() });
    }

    pub(super) fn remove_relay(&mut self, id: u32) {
        self.relays.remove(&id);
    }

    /// Binds a channel to a peer: each has at most one.
    pub(super) fn bind(&mut self, id: u32, peer: SocketAddr, number: u16) {
        self.unbind(id, &peer);
        if let Some(relay) = self.relays.get_mut(&id) {
            relay.numbers.insert(peer, number);
            relay.peers.insert(number, peer);
        }
    }

    pub(super) fn unbind(&mut self, id: u32, peer: &SocketAddr) {
        if let Some(relay) = self.relays.get_mut(&id)
            && let Some(number) = relay.numbers.remove(peer)
        {
            relay.peers.remove(&number);
        }
    }

    pub(super) fn set_extras(&mut self, extras: BTreeMap<Via, Arc<Udp>>) {
        self.extras = extras;
    }

    /// The further sockets.
    pub(super) fn extras(&self) -> &BTreeMap<Via, Arc<Udp>> {
        &self.extras
    }

    /// The relays, by number.
    pub(super) fn relays(&self) -> &BTreeMap<u32, Relay> {
        &self.relays
    }

    /// The relay whose server is reached by UDP at this address.
    pub(super) fn relay_at(&self, server: &SocketAddr) -> Option<(u32, &Relay)> {
        let is_there = |(_, relay): &(&u32, &Relay)| matches!(*relay.link, RelayLink::Udp(at) if at == *server);
        self.relays.iter().find(is_there).map(|(id, relay)| (*id, relay))
    }

    /// Where what takes this route is handed to; `None` where there is no such end, or no
    /// channel to the peer.
    pub(super) fn target(&self, route: &Route) -> Option<Target> {
        match route.via {
            Via::Socket => Some(Target { end: End::Socket(route.remote), channel: None }),
            Via::Extra(_) | Via::Uplink(_) => {
                let udp = Arc::clone(self.extras.get(&route.via)?);
                Some(Target { end: End::Extra(udp, route.remote), channel: None })
            }
            Via::Relay(id) => {
                let relay = self.relays.get(&id)?;
                let channel = *relay.numbers.get(&route.remote)?;
                let end = match *relay.link {
                    RelayLink::Udp(server) => End::Socket(server),
                    RelayLink::Stream(_) => End::Stream(Arc::clone(&relay.link)),
                };
                Some(Target { end, channel: Some(channel) })
            }
        }
    }
}

/// Where messages for a peer are handed to.
#[derive(Clone)]
pub(super) struct Target {
    end: End,
    /// Each message is framed for this channel.
    channel: Option<u16>,
}

#[derive(Clone)]
enum End {
    Socket(SocketAddr),
    Extra(Arc<Udp>, SocketAddr),
    Stream(Arc<RelayLink>),
}

impl Target {
    /// Bytes that stand in front of each message.
    pub(super) fn header_len(&self) -> usize {
        if self.channel.is_some() { HEADER_LEN } else { 0 }
    }

    /// Frames the message that fills `frame` behind its [`Self::header_len`].
    pub(super) fn frame(&self, frame: &mut [u8]) {
        if let Some(channel) = self.channel
            && let Some((header, message)) = frame.split_first_chunk_mut::<HEADER_LEN>()
            && let Some(filled) = channel::header(channel, message.len())
        {
            *header = filled;
        }
    }

    /// How many messages one send may hold.
    pub(super) fn max_segments(&self, sockets: &Sockets) -> usize {
        match &self.end {
            End::Socket(to) => sockets.max_segments(to),
            End::Extra(udp, _) => udp.max_segments(),
            End::Stream(_) => MAX_SEGMENTS,
        }
    }

    /// Sends framed messages: one, or with `segment` several of that size, of which the last
    /// may be shorter. Does not wait.
    pub(super) fn send(
        &self,
        sockets: &Sockets,
        contents: &[u8],
        segment: Option<usize>,
    ) -> io::Result<()> {
        match &self.end {
            End::Socket(to) => sockets.send(*to, contents, segment),
            End::Extra(udp, to) => udp.send(*to, contents, segment),
            End::Stream(link) => {
                let mut frames = contents.chunks(segment.unwrap_or(contents.len()).max(1));
                frames.try_for_each(|frame| send_frame(link, frame))
            }
        }
    }

    /// Sends one framed message that nobody may fragment. A stream knows no such thing.
    pub(super) fn send_whole(&self, sockets: &Sockets, contents: &[u8]) -> io::Result<()> {
        match &self.end {
            End::Socket(to) => {
                sockets.of(to).ok_or(io::ErrorKind::NetworkUnreachable)?.send_whole(*to, contents)
            }
            End::Extra(udp, to) => udp.send_whole(*to, contents),
            End::Stream(_) => self.send(sockets, contents, None),
        }
    }

    /// The socket that empties, where a send would have to wait; none for a stream, which
    /// is not waited for: what it cannot take is lost as on any full link.
    pub(super) fn socket<'s>(&'s self, sockets: &'s Sockets) -> Option<&'s Udp> {
        match &self.end {
            End::Socket(to) => sockets.of(to),
            End::Extra(udp, _) => Some(udp),
            End::Stream(_) => None,
        }
    }
}

/// Hands one frame or message to the server of a relay.
pub(super) fn send_frame(link: &RelayLink, frame: &[u8]) -> io::Result<()> {
    match link {
        RelayLink::Udp(_) => Err(io::ErrorKind::InvalidInput.into()),
        RelayLink::Stream(fd) => {
            send(fd, frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
            Ok(())
        }
    }
}
