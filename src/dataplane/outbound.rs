//! Out: from the TUN device to the network.
//!
//! One read gives the packets of one super-packet, all of one flow. They are sealed
//! under one lock, side by side into one buffer; as many of one size as follow each
//! other, also over several reads, go to the kernel as one datagram of segments, the
//! last of which may be shorter.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use rustix::{event::PollFlags, io::Errno};

use super::{
    Shared, Upcall,
    counters::Drop,
    device::{self, Reader},
    offload::Cut,
    peer::Peer,
    snapshot::Snapshot,
    udp::MAX_CONTENTS,
    wait::{self, Wake},
};
use crate::tunnel::{HANDSHAKE_MAX, OVERHEAD};

/// Reads in a row before everything gathered goes out: bounds how long a small
/// packet waits for company.
const READS: usize = 32;

/// How long a full socket buffer is waited for. A buffer of some megabytes empties
/// in less; what takes longer is lost, as on any full link.
const SEND_WAIT: std::time::Duration = std::time::Duration::from_millis(20);

/// The thread from the TUN device to the network. Ends when told to, or with the
/// device's failure.
pub(super) fn run(shared: &Shared) -> io::Result<()> {
    let mut reader = Reader::new();
    let mut sender = Sender::new();
    loop {
        match wait::readable(&shared.stop, &[&shared.device], None)? {
            Wake::Stop => return Ok(()),
            Wake::Ready | Wake::Timeout => {}
        }
        let snapshot = shared.snapshot.load();
        for _ in 0..READS {
            match reader.read(&shared.device) {
                Ok(Some(packets)) => send_packets(shared, &snapshot, packets, &mut sender),
                Ok(None) => shared.counters.count(Drop::Malformed),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if device::is_gone(&error) => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "cannot read from the TUN device");
                    break;
                }
            }
        }
        sender.flush(shared);
    }
}

/// Sends the packets of one read to the peer that they are for.
fn send_packets(shared: &Shared, snapshot: &Snapshot, mut packets: Cut<'_>, sender: &mut Sender) {
    let Some(peer) = snapshot.route(packets.destination()) else {
        return shared.counters.add(Drop::NoRoute, packets.remaining() as u64);
    };
    let Some(path) = peer.path() else {
        shared.counters.add(Drop::NoPath, packets.remaining() as u64);
        if peer.wishes_path() {
            shared.tell(Upcall::NoPath { peer: peer.key });
        }
        return;
    };
    let mut tunnel = peer.tunnel.lock();
    while let Some(packet) = packets.next() {
        let room = sender.room(shared, peer, path, packet.len() + OVERHEAD);
        let length = tunnel.seal(packet, room).map_or(0, |message| message.len());
        sender.push(shared, length);
    }
}

/// Messages to one peer, gathered into one datagram of segments.
struct Sender {
    buffer: Vec<u8>,
    used: usize,
    segments: usize,
    /// The size of all segments but the last.
    segment: usize,
    /// The last segment was shorter: none can follow.
    closed: bool,
    to: Option<(Arc<Peer>, SocketAddr)>,
    max_segments: usize,
}

impl Sender {
    fn new() -> Self {
        Self {
            // A message that turns out too long to be one more segment is sealed
            // behind the others before it is known to be.
            buffer: vec![0; MAX_CONTENTS + MAX_CONTENTS + HANDSHAKE_MAX],
            used: 0,
            segments: 0,
            segment: 0,
            closed: false,
            to: None,
            max_segments: 1,
        }
    }

    /// Room for one message of at most `size` bytes to `peer`, after what is in the
    /// way has gone out.
    fn room(
        &mut self,
        shared: &Shared,
        peer: &Arc<Peer>,
        path: SocketAddr,
        size: usize,
    ) -> &mut [u8] {
        let same = self.to.as_ref().is_some_and(|(p, a)| Arc::ptr_eq(p, peer) && *a == path);
        let fits = !self.closed
            && self.segments < self.max_segments
            && self.used + size <= MAX_CONTENTS
            && (self.segments == 0 || size <= self.segment);
        if !same || !fits {
            self.flush(shared);
        }
        if !same {
            self.to = Some((Arc::clone(peer), path));
            let alone = peer.no_segments.load(Ordering::Relaxed);
            self.max_segments = if alone { 1 } else { shared.sockets.max_segments(&path) };
        }
        let end = self.used + size.max(HANDSHAKE_MAX);
        &mut self.buffer[self.used..end]
    }

    /// Takes the message of `length` bytes that was written into the room.
    fn push(&mut self, shared: &Shared, length: usize) {
        if length == 0 {
            return;
        }
        if self.segments > 0 && length > self.segment {
            // The session has just ended, and this is an initiation in the place of a
            // small packet: it cannot follow the others.
            let start = self.used;
            self.flush(shared);
            self.buffer.copy_within(start..start + length, 0);
        }
        if self.segments == 0 {
            self.segment = length;
        }
        self.closed = length < self.segment;
        self.segments += 1;
        self.used += length;
    }

    /// Sends what was gathered.
    fn flush(&mut self, shared: &Shared) {
        let (used, segments) = (self.used, self.segments);
        (self.used, self.segments, self.closed) = (0, 0, false);
        let Some((peer, path)) = self.to.as_ref().filter(|_| segments > 0) else { return };
        let contents = &self.buffer[..used];
        peer.note_sent(used);
        let result = if segments == 1 {
            send(shared, *path, contents, None)
        } else {
            match send(shared, *path, contents, Some(self.segment)) {
                Err(error) if refuses_segments(&error) => {
                    // The kernel fragments single datagrams where they are too large
                    // for the link; segments it does not.
                    peer.no_segments.store(true, Ordering::Relaxed);
                    self.max_segments = 1;
                    let mut messages = contents.chunks(self.segment);
                    messages.try_for_each(|message| send(shared, *path, message, None))
                }
                result => result,
            }
        };
        match result {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                shared.counters.add(Drop::SendBufferFull, segments as u64);
            }
            Err(error) => {
                tracing::trace!(%error, to = %path, "send refused");
                shared.counters.add(Drop::SendFailed, segments as u64);
            }
        }
    }
}

/// Whether a datagram of several segments may have failed for being one: the interface
/// cannot, or the segments are larger than its MTU.
fn refuses_segments(error: &io::Error) -> bool {
    let error = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(error, Some(Errno::IO | Errno::INVAL | Errno::MSGSIZE))
}

/// Sends, waiting a little where the socket's buffer is full.
fn send(
    shared: &Shared,
    to: SocketAddr,
    contents: &[u8],
    segment: Option<usize>,
) -> io::Result<()> {
    let full = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
    match (shared.sockets.send(to, contents, segment), shared.sockets.of(&to)) {
        (Err(error), Some(udp)) if full(&error) => {
            wait::ready(udp, PollFlags::OUT, SEND_WAIT)?;
            shared.sockets.send(to, contents, segment)
        }
        (result, _) => result,
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, time::Duration};

    use zonemesh_discovery::identity::Identity;

    use super::*;
    use crate::dataplane::{Config, DataPlane, EndpointMode, PeerConfig, device::Device};

    /// Sends messages of these sizes and gives the datagrams that arrive. Each message
    /// is made of its own number.
    fn sent(sizes: &[(usize, usize)]) -> Vec<Vec<u8>> {
        let config = Config { interface: "pair".to_owned(), listen_port: 0, private_key: [1; 32] };
        let (device, _kernel) = Device::pair();
        let (plane, _upcalls) = DataPlane::with_device(&config, device).expect("starts");
        let peer = Arc::new(Peer::new(
            &plane.shared.key,
            1,
            &PeerConfig {
                public_key: Identity::from_seed(&[2; 32]).public_key(),
                preshared_key: None,
                keepalive: None,
                allowed: Vec::new(),
                mode: EndpointMode::Managed,
            },
        ));
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        receiver.set_read_timeout(Some(Duration::from_secs(10))).expect("not zero");
        let path = receiver.local_addr().expect("bound");
        let mut sender = Sender::new();
        for (number, (expected, size)) in sizes.iter().enumerate() {
            let room = sender.room(&plane.shared, &peer, path, *expected);
            room[..*size].fill(number as u8);
            sender.push(&plane.shared, *size);
        }
        sender.flush(&plane.shared);
        let count = sizes.iter().filter(|(_, size)| *size > 0).count();
        let mut buffer = [0; 2048];
        (0..count)
            .map(|_| {
                let length = receiver.recv(&mut buffer).expect("it arrives");
                buffer[..length].to_vec()
            })
            .collect()
    }

    fn messages(sizes: &[(usize, usize)]) -> Vec<Vec<u8>> {
        let numbered = sizes.iter().enumerate().filter(|(_, (_, size))| *size > 0);
        numbered.map(|(number, (_, size))| vec![number as u8; *size]).collect()
    }

    #[test]
    fn every_message_arrives_as_a_datagram_of_its_own() {
        // More than one send holds, in bytes and in number; less than the receiver does.
        let (large, small) = ([(1452, 1452); 60], [(84, 84); 100]);
        let falling = [(1452, 1452), (1452, 1452), (84, 84), (84, 84), (1452, 1452), (100, 100)];
        let waiting = [(84, 84), (84, 0), (84, 84)];
        for sizes in [&large[..], &small, &falling, &waiting] {
            assert_eq!(sent(sizes), messages(sizes));
        }
    }

    #[test]
    fn an_initiation_in_the_place_of_a_small_packet_stays_whole() {
        let sizes = [(84, 84), (84, 84), (84, 148), (84, 84)];
        assert_eq!(sent(&sizes), messages(&sizes));
    }
}
