//! Out: from the TUN device to the network.
//!
//! One read gives the packets of one super-packet, all of one flow. They are sealed
//! under one lock, side by side into one buffer; as many of one size as follow each
//! other, also over several reads, go to the kernel as one datagram of segments, the
//! last of which may be shorter.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use rustix::{event::PollFlags, io::Errno};

use zonemesh_punch::{Route, turn::channel::HEADER_LEN};

use super::{
    Shared, Upcall,
    counters::Drop,
    device::{self, Reader},
    links::{Links, Target},
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
        let (snapshot, links) = (shared.snapshot.load(), shared.links.load());
        for _ in 0..READS {
            match reader.read(&shared.device) {
                Ok(Some(packets)) => send_packets(shared, &snapshot, &links, packets, &mut sender),
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
fn send_packets(
    shared: &Shared,
    snapshot: &Snapshot,
    links: &Links,
    mut packets: Cut<'_>,
    sender: &mut Sender,
) {
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
    if !sender.turn_to(shared, links, peer, path) {
        return shared.counters.add(Drop::NoChannel, packets.remaining() as u64);
    }
    packets.clamp_mss(shared.mtu.load(Ordering::Relaxed));
    let mut tunnel = peer.tunnel.lock();
    while let Some(packet) = packets.next() {
        let room = sender.room(shared, packet.len() + OVERHEAD);
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
    to: Option<Destination>,
    max_segments: usize,
}

/// Where the messages go.
struct Destination {
    peer: Arc<Peer>,
    path: Route,
    target: Target,
}

impl Sender {
    fn new() -> Self {
        Self {
            // A message that turns out too long to be one more segment is sealed
            // behind the others before it is known to be.
            buffer: vec![0; MAX_CONTENTS + MAX_CONTENTS + HEADER_LEN + HANDSHAKE_MAX],
            used: 0,
            segments: 0,
            segment: 0,
            closed: false,
            to: None,
            max_segments: 1,
        }
    }

    /// The messages that follow go to this peer, after what is in the way has gone out.
    /// `false` where its path leads nowhere.
    fn turn_to(&mut self, shared: &Shared, links: &Links, peer: &Arc<Peer>, path: Route) -> bool {
        if self.to.as_ref().is_some_and(|to| Arc::ptr_eq(&to.peer, peer) && to.path == path) {
            return true;
        }
        self.flush(shared);
        let Some(target) = links.target(&path) else { return false };
        let alone = peer.no_segments.load(Ordering::Relaxed);
        self.max_segments = if alone { 1 } else { target.max_segments(&shared.sockets) };
        self.to = Some(Destination { peer: Arc::clone(peer), path, target });
        true
    }

    /// Bytes that stand in front of each message.
    fn header(&self) -> usize {
        self.to.as_ref().map_or(0, |to| to.target.header_len())
    }

    /// Room for one message of at most `size` bytes.
    fn room(&mut self, shared: &Shared, size: usize) -> &mut [u8] {
        let header = self.header();
        let fits = !self.closed
            && self.segments < self.max_segments
            && self.used + header + size <= MAX_CONTENTS
            && (self.segments == 0 || header + size <= self.segment);
        if !fits {
            self.send(shared);
        }
        let start = self.used + header;
        &mut self.buffer[start..start + size.max(HANDSHAKE_MAX)]
    }

    /// Takes the message of `length` bytes that was written into the room.
    fn push(&mut self, shared: &Shared, length: usize) {
        if length == 0 {
            return;
        }
        let length = self.header() + length;
        if let Some(to) = &self.to {
            to.target.frame(&mut self.buffer[self.used..self.used + length]);
        }
        if self.segments > 0 && length > self.segment {
            // The session has just ended, and this is an initiation in the place of a
            // small packet: it cannot follow the others.
            let start = self.used;
            self.send(shared);
            self.buffer.copy_within(start..start + length, 0);
        }
        if self.segments == 0 {
            self.segment = length;
        }
        self.closed = length < self.segment;
        self.segments += 1;
        self.used += length;
    }

    /// Sends what was gathered, and forgets where it went: until the next batch that may
    /// have changed.
    fn flush(&mut self, shared: &Shared) {
        self.send(shared);
        self.to = None;
    }

    /// Sends what was gathered.
    fn send(&mut self, shared: &Shared) {
        let (used, segments) = (self.used, self.segments);
        (self.used, self.segments, self.closed) = (0, 0, false);
        let Some(to) = self.to.as_ref().filter(|_| segments > 0) else { return };
        let contents = &self.buffer[..used];
        to.peer.note_sent(used - segments * to.target.header_len());
        let result = if segments == 1 {
            send(shared, &to.target, contents, None)
        } else {
            match send(shared, &to.target, contents, Some(self.segment)) {
                Err(error) if refuses_segments(&error) => {
                    // The kernel fragments single datagrams where they are too large
                    // for the link; segments it does not.
                    to.peer.no_segments.store(true, Ordering::Relaxed);
                    self.max_segments = 1;
                    let mut messages = contents.chunks(self.segment);
                    messages.try_for_each(|message| send(shared, &to.target, message, None))
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
                tracing::trace!(%error, path = %to.path, "send refused");
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
    target: &Target,
    contents: &[u8],
    segment: Option<usize>,
) -> io::Result<()> {
    let full = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
    let result = target.send(&shared.sockets, contents, segment);
    match (result, target.socket(&shared.sockets)) {
        (Err(error), Some(udp)) if full(&error) => {
            wait::ready(udp, PollFlags::OUT, SEND_WAIT)?;
            target.send(&shared.sockets, contents, segment)
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
        let links = Links::default();
        assert!(sender.turn_to(&plane.shared, &links, &peer, Route::direct(path)));
        for (number, (expected, size)) in sizes.iter().enumerate() {
            let room = sender.room(&plane.shared, *expected);
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
