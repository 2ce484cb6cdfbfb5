//! Making packets of a super-packet.

use std::net::IpAddr;

use super::{
    CWR, FIN, GSO_ECN, GSO_NONE, GSO_TCP4, GSO_TCP6, GSO_UDP, NEEDS_CHECKSUM, PSH, Transport,
    VNET_HEADER, Vnet, fold, pseudo_header, put_u16, sum,
};
use crate::dataplane::{mss, packet};

/// The longest headers that are cut: IPv4 with all options and TCP with all options, or
/// IPv6 with a few extension headers.
const MAX_HEADERS: usize = 256;

/// The packets of what was read from the device at once.
#[derive(Debug)]
pub(in crate::dataplane) struct Cut<'b> {
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
    pub(in crate::dataplane) fn new(bytes: &'b mut [u8]) -> Option<Self> {
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
    pub(in crate::dataplane) fn destination(&self) -> IpAddr {
        self.destination
    }

    /// How many there are yet to come.
    pub(in crate::dataplane) fn remaining(&self) -> usize {
        let all = match &self.segments {
            None => 1,
            Some(segments) => (self.packet.len() - segments.headers_len).div_ceil(segments.size),
        };
        all - self.count
    }

    /// Lowers what a TCP SYN says of the largest segment to what fits packets of `mtu`
    /// bytes. To be called before the first one is taken.
    pub(in crate::dataplane) fn clamp_mss(&mut self, mtu: u16) {
        // A SYN has no payload that could be cut.
        if self.segments.is_none() {
            mss::clamp(self.packet, mtu);
        }
    }

    /// The next one.
    pub(in crate::dataplane) fn next(&mut self) -> Option<&[u8]> {
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
