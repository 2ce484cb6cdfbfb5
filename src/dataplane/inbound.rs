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
    sync::Arc,
};

use parking_lot::MutexGuard;
use quinn_udp::{BATCH_SIZE, RecvMeta};

use super::{
    Shared, Upcall,
    counters::Drop,
    device::{self, Writer},
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

/// The thread from the network to the TUN device. Ends when told to, or with the
/// device's failure.
pub(super) fn run(shared: &Shared) -> io::Result<()> {
    let mut buffers = vec![vec![0; MAX_PACKET]; BUFFERS];
    let mut inbound = Inbound::new(shared);
    let sockets: Vec<&Udp> =
        std::iter::once(&shared.sockets.v4).chain(&shared.sockets.v6).collect();
    let sources: Vec<_> = sockets.iter().map(|udp| *udp as &dyn std::os::fd::AsFd).collect();
    loop {
        if wait::readable(&shared.stop, &sources, None)? == Wake::Stop {
            return Ok(());
        }
        for udp in &sockets {
            let mut metas = [RecvMeta::default(); BUFFERS];
            let mut slices: Vec<_> =
                buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
            let count = match udp.receive(&mut slices, &mut metas) {
                Ok(count) => count,
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        tracing::debug!(%error, "receive failed");
                    }
                    continue;
                }
            };
            let snapshot = shared.snapshot.load();
            for (meta, buffer) in metas.iter().zip(&buffers).take(count) {
                inbound.handle(shared, &snapshot, meta, &buffer[..meta.len]);
            }
            inbound.flush(shared)?;
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
}

impl Inbound {
    fn new(shared: &Shared) -> Self {
        Self {
            writer: Writer::new(&shared.device),
            reply: [0; HANDSHAKE_MAX],
            scratch: vec![0; 2 * MAX_PACKET],
        }
    }

    /// Handles the datagrams in `bytes`, all of one source.
    fn handle(&mut self, shared: &Shared, snapshot: &Snapshot, meta: &RecvMeta, bytes: &[u8]) {
        let mut datagrams = bytes.chunks(meta.stride.max(1)).peekable();
        while let Some(datagram) = datagrams.next() {
            match demux::name(datagram) {
                Kind::WireGuard(Message::Data(index)) => {
                    let index = peer_index(index);
                    let same = |next: &&[u8]| {
                        matches!(demux::name(next),
                            Kind::WireGuard(Message::Data(other)) if peer_index(other) == index)
                    };
                    let run = std::iter::from_fn(|| datagrams.next_if(same));
                    let run = std::iter::once(datagram).chain(run);
                    match snapshot.by_index(index) {
                        Some(peer) => self.open_run(shared, snapshot, peer, meta.addr, run),
                        None => shared.counters.add(Drop::NoSession, run.count() as u64),
                    }
                }
                Kind::WireGuard(_) => self.handshake(shared, snapshot, meta.addr, datagram),
                Kind::Stun => shared.tell(Upcall::Stun {
                    from: meta.addr,
                    local: meta.dst_ip,
                    bytes: datagram.to_vec(),
                }),
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
        from: SocketAddr,
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
    fn handshake(
        &mut self,
        shared: &Shared,
        snapshot: &Snapshot,
        from: SocketAddr,
        message: &[u8],
    ) {
        let peer = match shared.key.examine(from.ip(), message, &mut self.reply) {
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

    fn note_received(&self, shared: &Shared, peer: &Peer, from: SocketAddr, bytes: usize) {
        if peer.note_received(from, bytes) {
            shared.tell(Upcall::SourceChanged { peer: peer.key, from });
        }
    }
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
fn send_queued(
    shared: &Shared,
    peer: &Peer,
    tunnel: &mut Tunnel,
    to: SocketAddr,
    scratch: &mut [u8],
) {
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
