//! In: from the network to the TUN device.
//!
//! One call gives several buffers, each of one datagram or of several of one source
//! and size that the kernel has put together. Every datagram gets its name; a run of
//! data messages of one peer is opened under one lock, its packets' sources checked
//! against the routes, and what passed goes to the TUN device, joined again. STUN
//! and news go up to the control plane, which never holds a packet up.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::{Arc, atomic::Ordering},
};

use parking_lot::MutexGuard;
use quinn_udp::{BATCH_SIZE, RecvMeta};
use rustix::net::{RecvFlags, recv};
use zonemesh_punch::{Route, Via, turn::channel};

use super::{
    Shared, Upcall,
    counters::Drop,
    device::{self, Writer},
    links::{Links, Relay, RelayLink},
    mss,
    offload::MAX_PACKET,
    peer::Peer,
    snapshot::Snapshot,
    udp::Udp,
    wait::{self, Wake},
};
use crate::{
    demux::{self, Kind, Message},
    tunnel::{Examined, HANDSHAKE_MAX, Opened, Rejection, Tunnel, peer_index},
};

/// Buffers of one call. Each holds up to 64 KB of segments, so that more would only
/// spread over more of the cache.
const BUFFERS: usize = if BATCH_SIZE < 16 { BATCH_SIZE } else { 16 };

/// Frames that are read from a relay's stream before others have their turn.
const FRAMES: usize = 64;

/// The thread from the network to the TUN device. Ends when told to, or with the
/// device's failure.
pub(super) fn run(shared: &Shared) -> io::Result<()> {
    let mut buffers = vec![vec![0; MAX_PACKET]; BUFFERS];
    let mut inbound = Inbound::new(shared);
    loop {
        // Cleared before they are read: a change after that wakes the next wait.
        shared.links_changed.clear();
        let links = shared.links.load_full();
        let sockets: Vec<(Via, &Udp)> = std::iter::once(&shared.sockets.v4)
            .chain(&shared.sockets.v6)
            .map(|udp| (Via::Socket, udp))
            .chain(links.extras().iter().map(|(via, udp)| (*via, &**udp)))
            .collect();
        inbound.serve(shared, &links, &sockets, &mut buffers)?;
        if inbound.stopped {
            return Ok(());
        }
    }
}

/// What came in and is on its way to the TUN device.
struct Inbound {
    writer: Writer,
    /// For what goes back to the sender.
    reply: [u8; HANDSHAKE_MAX],
    /// For handshake messages and what had to wait for their end.
    scratch: Vec<u8>,
    /// The word to stop was given.
    stopped: bool,
}

impl Inbound {
    fn new(shared: &Shared) -> Self {
        Self {
            writer: Writer::new(&shared.device),
            reply: [0; HANDSHAKE_MAX],
            scratch: vec![0; 2 * MAX_PACKET],
            stopped: false,
        }
    }

    /// Handles what comes in at these ends, until there are others.
    fn serve(
        &mut self,
        shared: &Shared,
        links: &Links,
        sockets: &[(Via, &Udp)],
        buffers: &mut [Vec<u8>],
    ) -> io::Result<()> {
        let streams: Vec<(u32, &Relay)> = links
            .relays()
            .iter()
            .filter(|(_, relay)| matches!(*relay.link, RelayLink::Stream(_)))
            .map(|(id, relay)| (*id, relay))
            .collect();
        let mut sources: Vec<&dyn AsFd> = vec![&shared.links_changed];
        sources.extend(sockets.iter().map(|(_, udp)| *udp as &dyn AsFd));
        sources.extend(streams.iter().filter_map(|(_, relay)| match &*relay.link {
            RelayLink::Stream(fd) => Some(fd as &dyn AsFd),
            RelayLink::Udp(_) => None,
        }));
        loop {
            if wait::readable(&shared.stop, &sources, None)? == Wake::Stop {
                self.stopped = true;
                return Ok(());
            }
            if !std::ptr::eq(Arc::as_ptr(&shared.links.load()), links) {
                return Ok(());
            }
            for (via, udp) in sockets {
                self.receive(shared, links, *via, udp, buffers)?;
            }
            for (id, relay) in &streams {
                self.read_stream(shared, *id, relay, &mut buffers[0])?;
            }
        }
    }

    /// Takes one batch out of a socket.
    fn receive(
        &mut self,
        shared: &Shared,
        links: &Links,
        via: Via,
        udp: &Udp,
        buffers: &mut [Vec<u8>],
    ) -> io::Result<()> {
        let mut metas = [RecvMeta::default(); BUFFERS];
        let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let count = match udp.receive(&mut slices, &mut metas) {
            Ok(count) => count,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::debug!(%error, "receive failed");
                }
                return Ok(());
            }
        };
        let snapshot = shared.snapshot.load();
        for (meta, buffer) in metas.iter().zip(&*buffers).take(count) {
            let datagrams = buffer[..meta.len].chunks(meta.stride.max(1));
            let mut messages =
                datagrams.map(|datagram| unwrap(links, via, meta.addr, datagram)).peekable();
            self.handle(shared, &snapshot, &mut messages);
        }
        self.flush(shared)
    }

    /// Takes some frames out of a relay's stream.
    fn read_stream(
        &mut self,
        shared: &Shared,
        id: u32,
        relay: &Relay,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        let RelayLink::Stream(fd) = &*relay.link else { return Ok(()) };
        let snapshot = shared.snapshot.load();
        for _ in 0..FRAMES {
            // Where the other end is gone, the control plane knows, and takes the link away.
            let length = match recv(fd, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((length, _)) if length > 0 => length,
                Ok(_) | Err(_) => break,
            };
            let frame = &buffer[..length];
            if demux::name(frame) == Kind::Stun {
                shared.tell(Upcall::Relay { id, bytes: frame.to_vec() });
                continue;
            }
            let message =
                relay.open(frame).map(|(peer, payload)| (Route::relayed(id, peer), payload));
            self.handle(shared, &snapshot, &mut std::iter::once(message).peekable());
        }
        self.flush(shared)
    }

    /// Handles messages, each with the way that it came; `None` is one that came no known
    /// way.
    fn handle<'d>(
        &mut self,
        shared: &Shared,
        snapshot: &Snapshot,
        messages: &mut std::iter::Peekable<impl Iterator<Item = Option<(Route, &'d [u8])>>>,
    ) {
        while let Some(message) = messages.next() {
            let Some((route, message)) = message else {
                shared.counters.count(Drop::Junk);
                continue;
            };
            match demux::name(message) {
                Kind::WireGuard(Message::Data(index)) => {
                    let index = peer_index(index);
                    let same = |next: &Option<(Route, &[u8])>| {
                        next.is_some_and(|(other, next)| {
                            other == route
                                && matches!(demux::name(next),
                                    Kind::WireGuard(Message::Data(next)) if peer_index(next) == index)
                        })
                    };
                    let run = std::iter::from_fn(|| messages.next_if(same).flatten());
                    let run = std::iter::once(message).chain(run.map(|(_, message)| message));
                    match snapshot.by_index(index) {
                        Some(peer) => self.open_run(shared, snapshot, peer, route, run),
                        None => shared.counters.add(Drop::NoSession, run.count() as u64),
                    }
                }
                Kind::WireGuard(_) => self.handshake(shared, snapshot, route, message),
                Kind::Stun => shared.tell(Upcall::Stun { route, bytes: message.to_vec() }),
                Kind::Junk => shared.counters.count(Drop::Junk),
            }
        }
    }

    /// Writes out what is still here.
    ///
    /// # Errors
    /// When the TUN device is gone.
    fn flush(&mut self, shared: &Shared) -> io::Result<()> {
        match self.writer.flush(&shared.device) {
            Err(error) if device::is_gone(&error) => Err(error),
            Err(error) => {
                // As a rule EIO: the link is down.
                tracing::trace!(%error, "the TUN device refused a packet");
                shared.counters.count(Drop::DeviceFailed);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Opens data messages of one peer.
    fn open_run<'d>(
        &mut self,
        shared: &Shared,
        snapshot: &Snapshot,
        peer: &Arc<Peer>,
        from: Route,
        run: impl Iterator<Item = &'d [u8]>,
    ) {
        let mut received = 0;
        // Of one flow as a rule: the routes are asked once.
        let mut allowed: Option<IpAddr> = None;
        let mut tunnel = peer.tunnel.lock();
        for message in run {
            let room = message.len().max(HANDSHAKE_MAX);
            let (authentic, settle) = self.writer.push(room, |room| {
                let opened = tunnel.open(message, room);
                check(shared, snapshot, peer, opened, &mut allowed)
            });
            if settle {
                // The kernel may take its time with a whole super-packet.
                MutexGuard::unlocked(&mut tunnel, || self.writer.settle(&shared.device));
            }
            if authentic {
                received += message.len();
            }
        }
        if received > 0 {
            // The side that answered a handshake may use its session from the first
            // data message on (WireGuard paper §5.4.6): what waited can go now.
            send_queued(shared, peer, &mut tunnel, from, &mut self.scratch);
            drop(tunnel);
            self.note_received(shared, peer, from, received);
        }
    }

    /// Handles a handshake message or a cookie reply.
    fn handshake(&mut self, shared: &Shared, snapshot: &Snapshot, from: Route, message: &[u8]) {
        let peer = match shared.key.examine(from.remote.ip(), message, &mut self.reply) {
            Examined::From(key) => match snapshot.by_key(&key) {
                Some(peer) => peer,
                None => {
                    shared.counters.count(Drop::Stranger);
                    if shared.knocks.lock().take() {
                        shared.tell(Upcall::Knock { key, from });
                    }
                    return;
                }
            },
            Examined::For(index) => match snapshot.by_index(peer_index(index)) {
                Some(peer) => peer,
                None => return shared.counters.count(Drop::NoSession),
            },
            Examined::Reply(reply) => return shared.send_now(from, reply),
            Examined::Rejected => return shared.counters.count(Drop::NotForUs),
        };
        let mut tunnel = peer.tunnel.lock();
        match tunnel.open(message, &mut self.scratch) {
            Opened::Handshake(reply) => {
                peer.note_sent(reply.len());
                shared.send_now(from, reply);
                if demux::name(message) == Kind::WireGuard(Message::Response) {
                    send_queued(shared, peer, &mut tunnel, from, &mut self.scratch);
                }
                drop(tunnel);
                self.note_received(shared, peer, from, message.len());
                shared.tell(Upcall::Handshake { peer: peer.key, from });
            }
            Opened::Rejected(rejection) => shared.counters.count(rejection.into()),
            Opened::Cookie | Opened::Keepalive | Opened::Packet(..) => {}
        }
    }

    fn note_received(&self, shared: &Shared, peer: &Peer, from: Route, bytes: usize) {
        if peer.note_received(from, bytes) {
            shared.tell(Upcall::SourceChanged { peer: peer.key, from });
        }
    }
}

/// The way that a datagram came and what it carries: itself, or where it is a frame of a
/// relay's, what the relay's peer has sent.
fn unwrap<'d>(
    links: &Links,
    via: Via,
    from: SocketAddr,
    datagram: &'d [u8],
) -> Option<(Route, &'d [u8])> {
    if via == Via::Socket && channel::is_frame(datagram) {
        let (id, relay) = links.relay_at(&from)?;
        let (peer, payload) = relay.open(datagram)?;
        return Some((Route::relayed(id, peer), payload));
    }
    Some((Route { via, remote: from }, datagram))
}

/// What of an opened message goes to the device (its length), and whether the peer
/// sent it. `allowed` is a source that was found to be the peer's.
fn check(
    shared: &Shared,
    snapshot: &Snapshot,
    peer: &Arc<Peer>,
    opened: Opened<'_>,
    allowed: &mut Option<IpAddr>,
) -> (Option<usize>, bool) {
    match opened {
        Opened::Packet(packet, source) => {
            if *allowed != Some(source) {
                let owner = snapshot.route(source);
                if !owner.is_some_and(|owner| Arc::ptr_eq(owner, peer)) {
                    shared.counters.count(Drop::ForeignSource);
                    return (None, true);
                }
                *allowed = Some(source);
            }
            mss::clamp(packet, shared.mtu.load(Ordering::Relaxed));
            (Some(packet.len()), true)
        }
        Opened::Keepalive => (None, true),
        Opened::Handshake(_) | Opened::Cookie => (None, false),
        Opened::Rejected(rejection) => {
            shared.counters.count(rejection.into());
            (None, false)
        }
    }
}

/// Sends the packets that waited for the session.
fn send_queued(shared: &Shared, peer: &Peer, tunnel: &mut Tunnel, to: Route, scratch: &mut [u8]) {
    while let Some(message) = tunnel.poll_queued(scratch) {
        peer.note_sent(message.len());
        shared.send_now(to, message);
    }
}

impl From<Rejection> for Drop {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Replay => Self::Replay,
            Rejection::Forged => Self::Forged,
            Rejection::NoSession => Self::NoSession,
            Rejection::NotIp => Self::NotIp,
        }
    }
}
