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

mod cut;
mod join;
#[cfg(test)]
mod tests;

pub(super) use self::{cut::Cut, join::Join};

/// Bytes of the virtio header.
pub(super) const VNET_HEADER: usize = 10;

/// The largest packet, super-packets included.
pub(super) const MAX_PACKET: usize = 65_535;

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
