//! Making one super-packet of the packets of a flow.

use super::{
    ACK, GSO_TCP4, GSO_TCP6, GSO_UDP, MAX_PACKET, NEEDS_CHECKSUM, PSH, Transport, VNET_HEADER,
    Vnet, fold, pseudo_header, put_u16, sum,
};

/// The longest headers that are joined: IPv6, and TCP with all options.
const MAX_JOINED_HEADERS: usize = 100;

/// Segments of one UDP super-packet (Linux: UDP_MAX_SEGMENTS, 64 before 6.9).
const MAX_UDP_SEGMENTS: usize = 64;

/// Packets on their way to the device, of which those of one flow that follow each other
/// become one.
#[derive(Debug)]
pub(in crate::dataplane) struct Join {
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
    pub(in crate::dataplane) fn new(udp: bool) -> Self {
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
    pub(in crate::dataplane) fn push<T>(
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
    pub(in crate::dataplane) fn settle(&mut self, write: &mut impl FnMut(&[u8])) {
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
    pub(in crate::dataplane) fn flush(&mut self, write: &mut impl FnMut(&[u8])) {
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
