//! Cutting up what the kernel hands over whole, and joining what it takes whole.
//!
//! The TUN device speaks of super-packets: up to 64 KB of one TCP or UDP flow behind
//! one header, as a network card with segmentation offload would get them, told by a
//! virtio header in front (Linux: `include/uapi/linux/virtio_net.h`).
//!
//! [`Cut`] makes packets of one, in place: the headers of the second packet are written
//! over the end of the first one's payload, which by then has been sealed. [`Join`] is
//! the way back, in place too: a packet is opened such that its payload comes to lie
//! right behind the one before, its headers over that one's end, which is put back when
//! the headers have been found to continue the flow.
//!
//! What does not continue the flow in every byte but the expected ones is not joined:
//! nothing is lost or changed by having been joined and cut again. IPv4 options, IPv6
//! extension headers and fragments are left alone, as nothing fast uses them.

use std::net::IpAddr;

use super::packet;

/// Bytes of the virtio header.
pub(super) const VNET_HEADER: usize = 10;

/// The largest packet, super-packets included.
pub(super) const MAX_PACKET: usize = 65_535;

/// The longest headers that are cut: IPv4 with all options and TCP with all options, or
/// IPv6 with a few extension headers.
const MAX_HEADERS: usize = 256;

/// The longest headers that are joined: IPv6, and TCP with all options.
const MAX_JOINED_HEADERS: usize = 100;

/// Segments of one UDP super-packet (Linux: UDP_MAX_SEGMENTS, 64 before 6.9).
const MAX_UDP_SEGMENTS: usize = 64;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// Set beside the type when the first packet carries congestion window reduced.
const GSO_ECN: u8 = 0x80;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// The virtio header, all in the machine's own byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Vnet {
    flags: u8,
    gso_type: u8,
    header_len: u16,
    gso_size: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl Vnet {
    fn read(bytes: [u8; VNET_HEADER]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            header_len: word(2),
            gso_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }

    fn bytes(self) -> [u8; VNET_HEADER] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        let words = [self.header_len, self.gso_size, self.checksum_start, self.checksum_offset];
        for (place, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// The two transports that have super-packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Where its checksum stands.
    const fn checksum_at(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }

    /// Bytes of the header that `bytes` starts with.
    fn header_len(self, bytes: &[u8]) -> Option<usize> {
        let length = match self {
            Self::Tcp => usize::from(*bytes.get(12)? >> 4) * 4,
            Self::Udp => 8,
        };
        let least = if self == Self::Tcp { 20 } else { 8 };
        (length >= least && length <= bytes.len()).then_some(length)
    }
}

/// The packets of what was read from the device at once.
#[derive(Debug)]
pub(super) struct Cut<'b> {
    packet: &'b mut [u8],
    destination: IpAddr,
    /// None: there is one packet only, and nothing to do.
    segments: Option<Segments>,
    /// The packets handed out so far.
    count: usize,
}

#[derive(Debug)]
struct Segments {
    transport: Transport,
    ip_len: usize,
    headers: [u8; MAX_HEADERS],
    headers_len: usize,
    size: usize,
}

impl<'b> Cut<'b> {
    /// The packets in `bytes`, as read: a virtio header and a packet. `None` where they
    /// are not well made.
    pub(super) fn new(bytes: &'b mut [u8]) -> Option<Self> {
        let (vnet, packet) = bytes.split_first_chunk_mut::<VNET_HEADER>()?;
        let vnet = Vnet::read(*vnet);
        let destination = packet::destination(packet)?;
        let start = usize::from(vnet.checksum_start);
        let segments = match vnet.gso_type & !GSO_ECN {
            GSO_NONE => {
                if vnet.flags & NEEDS_CHECKSUM != 0 {
                    complete_checksum(packet, start, usize::from(vnet.checksum_offset))?;
                }
                None
            }
            GSO_TCP4 | GSO_TCP6 => Some(Segments::new(packet, &vnet, Transport::Tcp)?),
            GSO_UDP => Some(Segments::new(packet, &vnet, Transport::Udp)?),
            _ => return None,
        };
        Some(Self { packet, destination, segments, count: 0 })
    }

    /// The destination address of all of them.
    pub(super) fn destination(&self) -> IpAddr {
        self.destination
    }

    /// How many there are yet to come.
    pub(super) fn remaining(&self) -> usize {
        let all = match &self.segments {
            None => 1,
            Some(segments) => (self.packet.len() - segments.headers_len).div_ceil(segments.size),
        };
        all - self.count
    }

    /// The next one.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        if self.remaining() == 0 {
            return None;
        }
        let number = self.count;
        self.count += 1;
        match &self.segments {
            None => Some(self.packet),
            Some(segments) => Some(segments.cut(self.packet, number)),
        }
    }
}

impl Segments {
    fn new(packet: &[u8], vnet: &Vnet, transport: Transport) -> Option<Self> {
        let ip_len = usize::from(vnet.checksum_start);
        let size = usize::from(vnet.gso_size);
        let least = if packet.first()? >> 4 == 4 { 20 } else { 40 };
        // The header's own length field is but a hint: for forwarded packets it is the
        // length of the whole first segment.
        let headers_len = ip_len + transport.header_len(packet.get(ip_len..)?)?;
        if ip_len < least || size == 0 || headers_len >= packet.len() || headers_len > MAX_HEADERS {
            return None;
        }
        if usize::from(vnet.checksum_offset) != transport.checksum_at() {
            return None;
        }
        let mut headers = [0; MAX_HEADERS];
        headers[..headers_len].copy_from_slice(&packet[..headers_len]);
        Some(Self { transport, ip_len, headers, headers_len, size })
    }

    /// The packet `number`. All before it are lost to their successors' headers.
    fn cut<'p>(&self, whole: &'p mut [u8], number: usize) -> &'p [u8] {
        let Self { ip_len, headers_len, .. } = *self;
        let start = number * self.size;
        let end = (start + headers_len + self.size).min(whole.len());
        let is_last = end == whole.len();
        let packet = &mut whole[start..end];
        packet[..headers_len].copy_from_slice(&self.headers[..headers_len]);

        let is_v4 = packet[0] >> 4 == 4;
        let length = packet.len();
        if is_v4 {
            put_u16(packet, 2, length);
            let id = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(number as u16);
            put_u16(packet, 4, usize::from(id));
            packet[10..12].fill(0);
            let checksum = !fold(sum(&packet[..ip_len]));
            packet[10..12].copy_from_slice(&checksum.to_ne_bytes());
        } else {
            put_u16(packet, 4, length - 40);
        }

        let pseudo = pseudo_header(packet, self.transport, length - ip_len);
        let segment = &mut packet[ip_len..];
        match self.transport {
            Transport::Tcp => {
                let first = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
                let sequence = first.wrapping_add(start as u32);
                segment[4..8].copy_from_slice(&sequence.to_be_bytes());
                if number > 0 {
                    segment[13] &= !CWR;
                }
                if !is_last {
                    segment[13] &= !(FIN | PSH);
                }
            }
            Transport::Udp => put_u16(segment, 4, length - ip_len),
        }
        let at = self.transport.checksum_at();
        segment[at..at + 2].fill(0);
        let checksum = match !fold(pseudo + sum(segment)) {
            // RFC 768: zero would say that there is none.
            0 if self.transport == Transport::Udp => u16::MAX,
            checksum => checksum,
        };
        segment[at..at + 2].copy_from_slice(&checksum.to_ne_bytes());
        packet
    }
}

/// Does what the kernel left to the network card: the checksum's field holds the sum of
/// the pseudo-header, the rest is to be added.
fn complete_checksum(packet: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let part = packet.get_mut(start..)?;
    let checksum = !fold(sum(part));
    let field = part.get_mut(offset..offset + 2)?;
    let is_udp = offset == Transport::Udp.checksum_at();
    let checksum = if checksum == 0 && is_udp { u16::MAX } else { checksum };
    field.copy_from_slice(&checksum.to_ne_bytes());
    Some(())
}

/// Packets on their way to the device, of which those of one flow that follow each other
/// become one.
#[derive(Debug)]
pub(super) struct Join {
    /// A virtio header, what is joined so far, and room for one more packet.
    buffer: Vec<u8>,
    /// Where that ends; [`VNET_HEADER`] when there is nothing.
    end: usize,
    flow: Option<Flow>,
    /// A packet that turned out not to continue the flow, and the one it may start.
    other: Vec<u8>,
    other_flow: Option<Flow>,
    /// Whether the device takes UDP super-packets.
    udp: bool,
}

/// The flow of which more packets are wanted.
#[derive(Debug, Clone)]
struct Flow {
    transport: Transport,
    is_v4: bool,
    ip_len: usize,
    headers_len: usize,
    /// The headers, with zeros where packets of one flow differ.
    common: [u8; MAX_JOINED_HEADERS],
    /// The payload of each packet but the last.
    size: usize,
    segments: usize,
    /// The sequence number that continues it (TCP).
    next: u32,
    /// The last one was pushed (TCP).
    pushed: bool,
    /// No packet can follow.
    closed: bool,
}

impl Join {
    pub(super) fn new(udp: bool) -> Self {
        Self {
            buffer: vec![0; VNET_HEADER + 2 * MAX_PACKET],
            end: VNET_HEADER,
            flow: None,
            other: Vec::new(),
            other_flow: None,
            udp,
        }
    }

    /// Takes one packet: `fill` writes it into the room of `room` bytes and says how
    /// long it became, or that it became nothing. `true` beside `fill`'s own result:
    /// something is complete, and [`Join::settle`] has to follow.
    pub(super) fn push<T>(
        &mut self,
        room: usize,
        fill: impl FnOnce(&mut [u8]) -> (Option<usize>, T),
    ) -> (T, bool) {
        let headers_len = self.flow.as_ref().map_or(0, |flow| flow.headers_len);
        let start = self.end - headers_len;
        let mut hidden = [0; MAX_JOINED_HEADERS];
        hidden[..headers_len].copy_from_slice(&self.buffer[start..self.end]);
        let (length, result) = fill(&mut self.buffer[start..start + room.min(MAX_PACKET)]);
        let packet = &self.buffer[start..start + length.unwrap_or(0)];
        if length.is_some() {
            let new = Flow::of(packet, self.udp);
            let end = start + packet.len();
            let joined = match (&mut self.flow, &new) {
                (Some(flow), Some(new)) => flow.join(new, end - VNET_HEADER),
                _ => false,
            };
            if joined || self.flow.is_none() {
                self.end = end;
            }
            if self.flow.is_none() {
                self.flow = new;
            } else if !joined {
                self.other.extend_from_slice(packet);
                self.other_flow = new;
            }
        }
        self.buffer[start..start + headers_len].copy_from_slice(&hidden[..headers_len]);
        (result, self.is_complete() || !self.other.is_empty())
    }

    /// Hands out what is complete.
    pub(super) fn settle(&mut self, write: &mut impl FnMut(&[u8])) {
        if !self.other.is_empty() {
            self.write(write);
            self.end = VNET_HEADER + self.other.len();
            self.buffer[VNET_HEADER..self.end].copy_from_slice(&self.other);
            self.other.clear();
            self.flow = self.other_flow.take();
        }
        if self.is_complete() {
            self.write(write);
        }
    }

    /// Hands out everything.
    pub(super) fn flush(&mut self, write: &mut impl FnMut(&[u8])) {
        self.settle(write);
        if self.end > VNET_HEADER {
            self.write(write);
        }
    }

    /// Whether there is something to which nothing can be added.
    fn is_complete(&self) -> bool {
        self.end > VNET_HEADER && self.flow.as_ref().is_none_or(|flow| flow.closed)
    }

    fn write(&mut self, write: &mut impl FnMut(&[u8])) {
        let whole = &mut self.buffer[..self.end];
        self.end = VNET_HEADER;
        let vnet = match self.flow.take().filter(|flow| flow.segments > 1) {
            Some(flow) => flow.finish(&mut whole[VNET_HEADER..]),
            None => Vnet::default(),
        };
        whole[..VNET_HEADER].copy_from_slice(&vnet.bytes());
        write(whole);
    }
}

impl Flow {
    /// The flow that this packet could be the first one of.
    fn of(packet: &[u8], udp: bool) -> Option<Self> {
        let is_v4 = packet.first()? >> 4 == 4;
        let (ip_len, protocol) = if is_v4 {
            let header = packet.get(..20)?;
            // No options; no fragment; a good header.
            let whole = header[0] == 0x45 && header[6] & 0x3f == 0 && header[7] == 0;
            let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
            if !whole || length != packet.len() || fold(sum(header)) != u16::MAX {
                return None;
            }
            (20, header[9])
        } else {
            let header = packet.get(..40)?;
            if usize::from(u16::from_be_bytes([header[4], header[5]])) + 40 != packet.len() {
                return None;
            }
            (40, header[6])
        };
        let transport = match protocol {
            6 => Transport::Tcp,
            17 if udp => Transport::Udp,
            _ => return None,
        };
        let segment = packet.get(ip_len..)?;
        let headers_len = ip_len + transport.header_len(segment)?;
        let size = packet.len() - headers_len;
        if size == 0 || headers_len > MAX_JOINED_HEADERS {
            return None;
        }
        let mut pushed = false;
        let mut next = 0;
        match transport {
            Transport::Tcp => {
                if segment[13] & !PSH != ACK {
                    return None;
                }
                pushed = segment[13] & PSH != 0;
                let first = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
                next = first.wrapping_add(size as u32);
            }
            Transport::Udp => {
                let length = usize::from(u16::from_be_bytes([segment[4], segment[5]]));
                if length != segment.len() || segment[6..8] == [0, 0] {
                    return None;
                }
            }
        }
        // A super-packet's checksum is taken for good: the packet's must have been.
        if fold(pseudo_header(packet, transport, segment.len()) + sum(segment)) != u16::MAX {
            return None;
        }
        let mut common = [0; MAX_JOINED_HEADERS];
        common[..headers_len].copy_from_slice(&packet[..headers_len]);
        if is_v4 {
            common[2..6].fill(0);
            common[10..12].fill(0);
        } else {
            common[4..6].fill(0);
        }
        let header = &mut common[ip_len..];
        match transport {
            Transport::Tcp => {
                header[4..8].fill(0);
                header[13] &= !PSH;
                header[16..18].fill(0);
            }
            Transport::Udp => header[4..8].fill(0),
        }
        Some(Self {
            transport,
            is_v4,
            ip_len,
            headers_len,
            common,
            size,
            segments: 1,
            next,
            pushed,
            closed: pushed,
        })
    }

    /// Takes `new` behind it, if it continues it; the whole then has `length` bytes.
    fn join(&mut self, new: &Self, length: usize) -> bool {
        let continues = !self.closed
            && new.size <= self.size
            && new.headers_len == self.headers_len
            && new.common == self.common
            && length <= MAX_PACKET
            && match self.transport {
                Transport::Tcp => new.next == self.next.wrapping_add(new.size as u32),
                Transport::Udp => self.segments < MAX_UDP_SEGMENTS,
            };
        if continues {
            self.segments += 1;
            self.next = new.next;
            self.pushed = new.pushed;
            self.closed = new.pushed || new.size < self.size || length + self.size > MAX_PACKET;
        }
        continues
    }

    /// Makes one header for all: lengths, and the pseudo-header's sum for the checksum.
    fn finish(&self, packet: &mut [u8]) -> Vnet {
        let length = packet.len();
        if self.is_v4 {
            put_u16(packet, 2, length);
            packet[10..12].fill(0);
            let checksum = !fold(sum(&packet[..20]));
            packet[10..12].copy_from_slice(&checksum.to_ne_bytes());
        } else {
            put_u16(packet, 4, length - 40);
        }
        let pseudo = fold(pseudo_header(packet, self.transport, length - self.ip_len));
        let segment = &mut packet[self.ip_len..];
        match self.transport {
            // Cutting gives it to the last one, which had it.
            Transport::Tcp if self.pushed => segment[13] |= PSH,
            Transport::Tcp => {}
            Transport::Udp => put_u16(segment, 4, length - self.ip_len),
        }
        let at = self.transport.checksum_at();
        segment[at..at + 2].copy_from_slice(&pseudo.to_ne_bytes());
        Vnet {
            flags: NEEDS_CHECKSUM,
            gso_type: match (self.transport, self.is_v4) {
                (Transport::Tcp, true) => GSO_TCP4,
                (Transport::Tcp, false) => GSO_TCP6,
                (Transport::Udp, _) => GSO_UDP,
            },
            header_len: self.headers_len as u16,
            gso_size: self.size as u16,
            checksum_start: self.ip_len as u16,
            checksum_offset: at as u16,
        }
    }
}

/// The Internet checksum's sum (RFC 1071), in the machine's byte order: it does not
/// matter to the result, as long as that is written back in it. Eight lanes of 32 bits,
/// so that the compiler makes vectors of them.
fn sum(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; 8];
    let chunks = bytes.chunks_exact(32);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(4)) {
            *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    let words = rest.chunks(2).map(|word| match *word {
        [a, b] => u64::from(u16::from_ne_bytes([a, b])),
        [a] => u64::from(u16::from_ne_bytes([a, 0])),
        _ => 0,
    });
    lanes.iter().sum::<u64>() + words.sum::<u64>()
}

/// Folds a sum into 16 bits.
fn fold(mut sum: u64) -> u16 {
    while sum > u64::from(u16::MAX) {
        sum = (sum >> 16) + (sum & u64::from(u16::MAX));
    }
    sum as u16
}

/// The sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1) of a packet.
fn pseudo_header(packet: &[u8], transport: Transport, length: usize) -> u64 {
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    let protocol = u16::from_ne_bytes([0, transport.protocol()]);
    let length = u16::from_ne_bytes((length as u16).to_be_bytes());
    sum(addresses) + u64::from(protocol) + u64::from(length)
}

/// Writes a length or the like, which fits as no packet is longer than 65,535 bytes.
fn put_u16(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One packet of a flow, with good checksums.
    #[derive(Clone, Copy)]
    struct Spec {
        v4: bool,
        udp: bool,
        port: u8,
        sequence: u32,
        flags: u8,
        size: usize,
    }

    impl Spec {
        fn headers_len(&self) -> usize {
            (if self.v4 { 20 } else { 40 }) + if self.udp { 8 } else { 32 }
        }

        fn packet(&self, payload: &[u8]) -> Vec<u8> {
            let mut packet = vec![0; self.headers_len()];
            packet.extend_from_slice(payload);
            let (length, ip_len) = (packet.len(), if self.v4 { 20 } else { 40 });
            let protocol = if self.udp { 17 } else { 6 };
            if self.v4 {
                packet[0] = 0x45;
                put_u16(&mut packet, 2, length);
                packet[8..10].copy_from_slice(&[64, protocol]);
                packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
                let checksum = naive(&[&packet[..20]]);
                packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            } else {
                packet[0] = 0x60;
                put_u16(&mut packet, 4, length - 40);
                packet[6..8].copy_from_slice(&[protocol, 64]);
                packet[8] = 0xfd;
                packet[24..26].copy_from_slice(&[0xfd, 1]);
            }
            let segment = &mut packet[ip_len..];
            segment[1] = self.port;
            if self.udp {
                put_u16(segment, 4, length - ip_len);
            } else {
                segment[4..8].copy_from_slice(&self.sequence.to_be_bytes());
                segment[12..14].copy_from_slice(&[0x80, self.flags]);
                segment[20..32].copy_from_slice(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
            }
            let at = ip_len + if self.udp { 6 } else { 16 };
            let checksum = transport_checksum(&packet);
            packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
            packet
        }
    }

    const TCP: Spec =
        Spec { v4: true, udp: false, port: 80, sequence: u32::MAX - 2000, flags: ACK, size: 1000 };
    const UDP: Spec = Spec { udp: true, ..TCP };

    /// Written after RFC 1071, with nothing of what is tested.
    fn naive(parts: &[&[u8]]) -> u16 {
        let mut sum = 0u32;
        for part in parts {
            for pair in part.chunks(2) {
                sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            }
        }
        while sum >> 16 != 0 {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        !(sum as u16)
    }

    fn transport_checksum(packet: &[u8]) -> u16 {
        let v4 = packet[0] >> 4 == 4;
        let (ip_len, protocol) = if v4 { (20, packet[9]) } else { (40, packet[6]) };
        let addresses = if v4 { &packet[12..20] } else { &packet[8..40] };
        let length = u16::try_from(packet.len() - ip_len).expect("fits");
        naive(&[addresses, &[0, protocol], &length.to_be_bytes(), &packet[ip_len..]])
    }

    /// A flow of `count` packets, the last of which has `last` bytes.
    fn flow(spec: Spec, count: usize, last: usize) -> Vec<Vec<u8>> {
        let mut spec = spec;
        (0..count)
            .map(|number| {
                let size = if number + 1 == count { last } else { spec.size };
                let payload: Vec<u8> = (0..size).map(|at| (number * 7 + at) as u8).collect();
                let packet = spec.packet(&payload);
                spec.sequence = spec.sequence.wrapping_add(size as u32);
                packet
            })
            .collect()
    }

    fn join(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut written = Vec::new();
        let mut join = Join::new(true);
        let mut write = |whole: &[u8]| written.push(whole.to_vec());
        for packet in packets {
            let fill = |room: &mut [u8]| {
                room[..packet.len()].copy_from_slice(packet);
                // What opening leaves behind the packet.
                room[packet.len()..].fill(0xee);
                (Some(packet.len()), ())
            };
            if join.push(packet.len() + 16, fill).1 {
                join.settle(&mut write);
            }
        }
        join.flush(&mut write);
        written
    }

    fn cut(whole: &[u8]) -> Vec<Vec<u8>> {
        let mut whole = whole.to_vec();
        let mut cut = Cut::new(&mut whole).expect("well made");
        let expected = cut.remaining();
        let mut packets = Vec::new();
        while let Some(packet) = cut.next() {
            packets.push(packet.to_vec());
        }
        assert_eq!(packets.len(), expected);
        packets
    }

    /// A packet that stayed alone may be one that cannot be cut.
    fn one_or_cut(whole: &[u8]) -> Vec<Vec<u8>> {
        if whole[1] == GSO_NONE { vec![whole[VNET_HEADER..].to_vec()] } else { cut(whole) }
    }

    /// The identification counts up when a packet is cut, wherever it came from.
    fn without_id(mut packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        for packet in packets.iter_mut().filter(|packet| packet[0] >> 4 == 4) {
            assert_eq!(naive(&[&packet[..20]]), 0, "the IPv4 header's checksum is good");
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
        packets
    }

    #[test]
    fn a_flow_becomes_one_and_is_cut_into_the_same_packets() {
        for v4 in [true, false] {
            for base in [TCP, UDP] {
                for last in [1, 999, 1000] {
                    let packets = flow(Spec { v4, ..base }, 40, last);
                    let written = join(&packets);
                    assert_eq!(written.len(), 1, "IPv4 {v4}, UDP {}, last {last}", base.udp);
                    assert_eq!(without_id(cut(&written[0])), without_id(packets));
                }
            }
        }
    }

    #[test]
    fn a_flow_longer_than_a_packet_can_be_becomes_several() {
        for base in [TCP, UDP] {
            let packets = flow(base, 150, 1000);
            let written = join(&packets);
            assert_eq!(written.len(), 3);
            let again: Vec<_> = written.iter().flat_map(|whole| cut(whole)).collect();
            assert_eq!(without_id(again), without_id(packets));
        }
    }

    #[test]
    fn what_does_not_continue_the_flow_stays_apart_and_whole() {
        let first = flow(TCP, 2, 1000).remove(0);
        let sequence = TCP.sequence.wrapping_add(1000);
        let next = Spec { sequence, ..TCP };
        let payload = [5; 1000];
        let mut other_ttl = next.packet(&payload);
        other_ttl[8] = 63;
        other_ttl[10..12].fill(0);
        let checksum = naive(&[&other_ttl[..20]]);
        other_ttl[10..12].copy_from_slice(&checksum.to_be_bytes());
        let mut corrupt = next.packet(&payload);
        corrupt[500] ^= 1;
        let mut fragment = next.packet(&payload);
        fragment[6] = 0x20;
        for (case, second) in [
            ("a gap", Spec { sequence: sequence.wrapping_add(1), ..TCP }.packet(&payload)),
            ("another flow", Spec { port: 81, ..next }.packet(&payload)),
            ("UDP", Spec { udp: true, ..next }.packet(&payload)),
            ("IPv6", Spec { v4: false, ..next }.packet(&payload)),
            ("larger", next.packet(&[5; 1001])),
            ("no payload", next.packet(&[])),
            ("FIN", Spec { flags: ACK | FIN, ..next }.packet(&payload)),
            ("another TTL", other_ttl),
            ("a wrong checksum", corrupt),
            ("a fragment", fragment),
            ("no IP", vec![0; 30]),
        ] {
            let packets = [first.clone(), second.clone(), first.clone()];
            let written = join(&packets);
            assert_eq!(written.len(), 3, "{case}");
            for (whole, packet) in written.iter().zip(&packets) {
                assert_eq!(whole[..VNET_HEADER], [0; VNET_HEADER], "{case}");
                assert_eq!(whole[VNET_HEADER..], packet[..], "{case}");
            }
        }
    }

    #[test]
    fn a_pushed_segment_ends_its_super_packet_and_stays_pushed() {
        let mut packets = flow(TCP, 2, 1000);
        let sequence = TCP.sequence.wrapping_add(2000);
        let pushed = Spec { sequence, flags: ACK | PSH, ..TCP };
        packets.push(pushed.packet(&[1; 1000]));
        let after = Spec { sequence: sequence.wrapping_add(1000), ..TCP };
        packets.push(after.packet(&[2; 1000]));
        let written = join(&packets);
        assert_eq!(written.len(), 2);
        let again: Vec<_> = written.iter().flat_map(|whole| one_or_cut(whole)).collect();
        assert_eq!(without_id(again), without_id(packets));
    }

    #[test]
    fn nothing_filled_leaves_everything_as_it_was() {
        let packets = flow(TCP, 3, 1000);
        let mut written = Vec::new();
        let mut write = |whole: &[u8]| written.push(whole.to_vec());
        let mut join = Join::new(true);
        for packet in &packets {
            let fill = |room: &mut [u8]| {
                room[..packet.len()].copy_from_slice(packet);
                (Some(packet.len()), ())
            };
            assert!(!join.push(packet.len(), fill).1);
            let nothing = |room: &mut [u8]| {
                room.fill(0xdd);
                (None, ())
            };
            assert!(!join.push(500, nothing).1);
        }
        join.flush(&mut write);
        join.flush(&mut write);
        assert_eq!(written.len(), 1);
        assert_eq!(without_id(cut(&written[0])), without_id(packets));
    }

    #[test]
    fn the_kernel_leaves_a_checksum_to_us() {
        for spec in [TCP, UDP, Spec { v4: false, ..TCP }] {
            let good = spec.packet(&[7; 333]);
            let (ip_len, at) = (spec.headers_len() - if spec.udp { 8 } else { 32 }, spec.udp);
            let at = if at { 6 } else { 16 };
            let transport = if spec.udp { Transport::Udp } else { Transport::Tcp };
            let mut packet = good.clone();
            let pseudo = fold(pseudo_header(&packet, transport, packet.len() - ip_len));
            packet[ip_len + at..ip_len + at + 2].copy_from_slice(&pseudo.to_ne_bytes());
            let vnet = Vnet {
                flags: NEEDS_CHECKSUM,
                checksum_start: ip_len as u16,
                checksum_offset: at as u16,
                ..Vnet::default()
            };
            assert_eq!(cut(&[&vnet.bytes()[..], &packet].concat()), [good]);
        }
    }

    #[test]
    fn only_the_last_packet_of_a_cut_has_the_final_flags() {
        let packets = flow(TCP, 3, 1000);
        let mut whole = join(&packets).remove(0);
        whole[VNET_HEADER + 20 + 13] |= PSH | FIN | CWR;
        let flags: Vec<u8> = cut(&whole).iter().map(|packet| packet[33]).collect();
        assert_eq!(flags, [ACK | CWR, ACK, ACK | PSH | FIN]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_cut_or_refused(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
            gso in 0u8..7,
            start in 0u16..80,
        ) {
            if let Some(head) = bytes.first_chunk_mut::<VNET_HEADER>() {
                head[1] = gso;
                head[6..8].copy_from_slice(&start.to_ne_bytes());
            }
            for version in [0x45, 0x60] {
                for offset in [6u16, 16, 9000] {
                    let mut bytes = bytes.clone();
                    if let Some(place) = bytes.get_mut(8..11) {
                        place[..2].copy_from_slice(&offset.to_ne_bytes());
                        place[2] = version;
                    }
                    if let Some(mut cut) = Cut::new(&mut bytes) {
                        while cut.next().is_some() {}
                    }
                }
            }
        }

        #[test]
        fn any_packets_come_out_as_they_went_in(
            kinds in proptest::collection::vec((0usize..5, 0usize..3), 0..60),
        ) {
            let mut sequence = [0u32; 2];
            let packets: Vec<_> = kinds
                .iter()
                .map(|(kind, size)| {
                    let size = [0, 400, 1000][*size];
                    let base = [TCP, TCP, UDP, Spec { v4: false, ..UDP }, TCP][*kind];
                    if *kind == 4 {
                        return vec![0x45; size.max(1)];
                    }
                    let line = kind % 2;
                    let port = line as u8;
                    let spec = Spec { port, sequence: sequence[line], ..base };
                    sequence[line] = sequence[line].wrapping_add(size as u32);
                    spec.packet(&vec![*kind as u8; size])
                })
                .collect();
            let again: Vec<_> = join(&packets).iter().flat_map(|whole| one_or_cut(whole)).collect();
            prop_assert_eq!(again.len(), packets.len());
            for (again, packet) in again.iter().zip(&packets) {
                if packet[0] == 0x45 && packet.len() > 40 && packet[1] == 0 {
                    prop_assert_eq!(&again[20..], &packet[20..]);
                } else {
                    prop_assert_eq!(again, packet);
                }
            }
        }
    }
}
