//! Cutting and joining against each other, and against RFC 1071 done by hand.

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
