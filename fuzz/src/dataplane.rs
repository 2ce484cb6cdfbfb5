//! The packet threads' parsers. They stand in the daemon, of which nothing else is needed
//! here, and are built from where they stand.

#[path = "../../src/dataplane/mss.rs"]
mod mss;
#[path = "../../src/dataplane/offload/mod.rs"]
mod offload;
#[path = "../../src/dataplane/packet.rs"]
mod packet;

use offload::{Cut, Join};

/// The packets of what was read from the device at once; `None` where it is not well made.
pub fn cut(whole: &mut [u8], mtu: u16) -> Option<Vec<Vec<u8>>> {
    let mut cut = Cut::new(whole)?;
    let _ = cut.destination();
    cut.clamp_mss(mtu);
    let expected = cut.remaining();
    let mut packets = Vec::new();
    while let Some(packet) = cut.next() {
        packets.push(packet.to_vec());
    }
    assert_eq!(packets.len(), expected);
    Some(packets)
}

/// What is written to the device where these packets come in one after the other.
pub fn join(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
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

/// Lowers what a TCP SYN says of the largest segment.
pub fn clamp(packet: &mut [u8], mtu: u16) {
    mss::clamp(packet, mtu);
}
