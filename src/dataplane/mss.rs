//! The largest segment that TCP may send, lowered to what the tunnel carries.
//!
//! The interface's MTU tells this machine's own connections how large their segments may
//! be. Connections that are only forwarded here (containers behind another interface,
//! hosts of a LAN) see no more of it than an ICMP message, which firewalls like to drop:
//! RFC 879's option in their SYNs is lowered on its way, as routers in front of narrow
//! links do.

/// IPv4 and TCP header without options.
const V4_HEADERS: u16 = 40;

/// IPv6 and TCP header without options.
const V6_HEADERS: u16 = 60;

const TCP: u8 = 6;
const SYN: u8 = 0x02;

/// Kinds of TCP options (RFC 9293 §3.1).
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAX_SEGMENT_SIZE: u8 = 2;

/// Lowers the maximum segment size that a TCP SYN tells, where it does not fit packets of
/// `mtu` bytes. Every other packet stays as it is.
pub(super) fn clamp(packet: &mut [u8], mtu: u16) {
    let Some((start, headers)) = tcp_syn(packet) else { return };
    let limit = mtu.saturating_sub(headers);
    let tcp = &mut packet[start..];
    let Some(at) = option(tcp) else { return };
    let told = u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    if told <= limit {
        return;
    }
    tcp[at..at + 2].copy_from_slice(&limit.to_be_bytes());
    let checksum = u16::from_be_bytes([tcp[16], tcp[17]]);
    // The sum is of words at even places: an option at an odd one has its bytes swapped.
    let swap = |word: u16| if at.is_multiple_of(2) { word } else { word.swap_bytes() };
    let checksum = updated(checksum, swap(told), swap(limit));
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
}

/// Where TCP starts in a packet that is a SYN, and how long the headers are without
/// options. Extension headers and fragments are left alone.
fn tcp_syn(packet: &[u8]) -> Option<(usize, u16)> {
    let (start, headers) = match packet.first()? >> 4 {
        4 => {
            let is_first = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff == 0;
            let is_tcp = *packet.get(9)? == TCP;
            (is_first && is_tcp).then_some((usize::from(packet[0] & 0x0f) * 4, V4_HEADERS))?
        }
        6 => (*packet.get(6)? == TCP).then_some((40, V6_HEADERS))?,
        _ => return None,
    };
    (packet.get(start + 13)? & SYN != 0).then_some((start, headers))
}

/// Where the value of the option stands in a TCP header, if it is there.
fn option(tcp: &[u8]) -> Option<usize> {
    let length = usize::from(*tcp.get(12)? >> 4) * 4;
    let header = tcp.get(..length)?;
    let mut at = 20;
    loop {
        match *header.get(at)? {
            END => return None,
            NO_OPERATION => at += 1,
            kind => {
                let length = usize::from(*header.get(at + 1)?);
                if kind == MAX_SEGMENT_SIZE && length == 4 {
                    return header.get(at + 2..at + 4).map(|_| at + 2);
                }
                // Shorter than itself: it would never end.
                at += Some(length).filter(|length| *length >= 2)?;
            }
        }
    }
}

/// A checksum after one word of what it is over has changed (RFC 1624 §3).
fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A SYN with these options, its checksum right.
    fn syn(v6: bool, options: &[u8]) -> Vec<u8> {
        let mut tcp = vec![0; 20];
        tcp[12] = (((20 + options.len()) / 4) << 4) as u8;
        tcp[13] = SYN;
        tcp.extend_from_slice(options);
        let mut packet = if v6 { vec![0x60; 40] } else { vec![0x45; 20] };
        if v6 {
            packet[6] = TCP;
        } else {
            packet[6..8].fill(0);
            packet[9] = TCP;
        }
        packet.extend_from_slice(&tcp);
        let start = if v6 { 40 } else { 20 };
        let checksum = !sum(&packet[start..]);
        packet[start + 16..start + 18].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    fn sum(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn what_does_not_fit_is_lowered_and_the_checksum_holds() {
        for (v6, limit) in [(false, 1360u16), (true, 1340)] {
            let at_even = [2, 4, 0x05, 0xb4];
            let at_odd = [1, 2, 4, 0x05, 0xb4, 1, 1, 0];
            for options in [&at_even[..], &at_odd] {
                let mut packet = syn(v6, options);
                clamp(&mut packet, 1400);
                let start = if v6 { 40 } else { 20 };
                let at = start + option(&packet[start..]).expect("it is there");
                assert_eq!(packet[at..at + 2], limit.to_be_bytes());
                assert_eq!(sum(&packet[start..]), 0xffff, "the checksum holds");
                let before = packet.clone();
                clamp(&mut packet, 1400);
                assert_eq!(packet, before, "it fits now");
            }
        }
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        let no_option = syn(false, &[]);
        let endless = syn(false, &[8, 0, 8, 0]);
        let mut no_syn = syn(false, &[2, 4, 0x05, 0xb4]);
        no_syn[33] = 0x10;
        let mut fragment = syn(false, &[2, 4, 0x05, 0xb4]);
        fragment[7] = 9;
        let mut udp = syn(true, &[2, 4, 0x05, 0xb4]);
        udp[6] = 17;
        for packet in [no_option, endless, no_syn, fragment, udp] {
            let mut clamped = packet.clone();
            clamp(&mut clamped, 1280);
            assert_eq!(clamped, packet);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_pass(mut packet in proptest::collection::vec(any::<u8>(), 0..120), v6: bool) {
            if let Some(first) = packet.first_mut() {
                *first = if v6 { 0x60 } else { 0x40 | (*first & 0x0f) };
            }
            let length = packet.len();
            clamp(&mut packet, 1280);
            prop_assert_eq!(packet.len(), length);
        }
    }
}
