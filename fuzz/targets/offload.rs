//! What the TUN device gives is cut into packets, and what peers send is joined again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use zonemesh_fuzz::{
    Bytes,
    dataplane::{clamp, cut, join},
    sow,
};

fuzz_target!(
    init: {
        let tcp = super_packet(6, 20);
        let udp = super_packet(17, 8);
        let packets: Vec<Vec<u8>> = cut(&mut tcp.clone(), 1280).expect("well made");
        let mut joined = vec![1];
        for packet in &packets {
            joined.extend((packet.len() as u16).to_be_bytes());
            joined.extend(packet);
        }
        sow("offload", &[
            [&[0][..], &tcp].concat(),
            [&[0][..], &udp].concat(),
            joined,
        ]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        if bytes.byte() & 1 == 0 {
            let mut whole = bytes.0.to_vec();
            let length = whole.len();
            if let Some(packets) = cut(&mut whole, 1280) {
                assert!(packets.iter().all(|packet| packet.len() <= length));
            }
            return;
        }
        let mut packets = Vec::new();
        while !bytes.is_empty() {
            let mut packet = bytes.string().to_vec();
            let length = packet.len();
            clamp(&mut packet, 1280);
            assert_eq!(packet.len(), length);
            packets.push(packet);
        }
        let sent: usize = packets.iter().map(Vec::len).sum();
        // Nothing is lost or added by having been joined and cut again.
        let mut received = 0;
        for mut whole in join(&packets) {
            assert!(whole.len() <= 10 + 65_535);
            let single = whole[1] == 0;
            match cut(&mut whole, u16::MAX) {
                Some(again) => received += again.iter().map(Vec::len).sum::<usize>(),
                None => {
                    assert!(single, "what was joined can be cut");
                    received += whole.len() - 10;
                }
            }
        }
        assert_eq!(received, sent);
    }
);

/// Three segments of 100 bytes behind one header, as the kernel hands them over.
fn super_packet(protocol: u8, transport_len: usize) -> Vec<u8> {
    let gso_type = if protocol == 6 { 1 } else { 5 };
    let mut whole = vec![1, gso_type];
    let checksum_at: u16 = if protocol == 6 { 16 } else { 6 };
    for word in [(20 + transport_len) as u16, 100, 20, checksum_at] {
        whole.extend(word.to_ne_bytes());
    }
    let mut packet = vec![0; 20 + transport_len + 300];
    let length = packet.len() as u16;
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[8..10].copy_from_slice(&[64, protocol]);
    packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    if protocol == 6 {
        packet[32..34].copy_from_slice(&[0x50, 0x10]);
    }
    whole.extend(packet);
    whole
}
