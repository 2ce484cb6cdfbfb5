//! The name of a datagram, and the frames of a relay's stream.

#![no_main]

use libfuzzer_sys::fuzz_target;
use zonemesh_fuzz::{
    demux::{Kind, MAX_STUN, name},
    sow,
};
use zonemesh_punch::turn::channel;

fuzz_target!(
    init: {
        let mut stun = vec![0, 1, 0, 4, 0x21, 0x12, 0xa4, 0x42];
        stun.resize(24, 7);
        let mut data = vec![4, 0, 0, 0];
        data.resize(64, 9);
        let frame = channel::encode(0x4001, &data).expect("short");
        sow("demux", &[stun, data, frame]);
    },
    |data: &[u8]| {
        match name(data) {
            Kind::WireGuard(_) => assert!(data.len() >= 32 && data[1..4] == [0; 3]),
            Kind::Stun => assert!((20..=MAX_STUN).contains(&data.len())),
            Kind::Junk => {}
        }
        if let Some((number, payload)) = channel::decode_old(data) {
            assert!(channel::OLD_NUMBERS.contains(&number));
            assert!(payload.len() + channel::HEADER_LEN <= data.len());
            assert_eq!(name(data), Kind::Junk, "a frame is nothing else");
            let _ = name(payload);
            let again = channel::encode(number, payload).expect("it was in a frame");
            assert!(data.starts_with(&again));
        }
        // A stream is cut to its end, or to where it is of no more use.
        let mut rest = data;
        while let Some(start) = rest.first_chunk() {
            let Some(framed) = channel::framed(*start) else { break };
            assert!(framed.len >= 4 && framed.on_stream >= framed.len);
            assert!(framed.on_stream - framed.len < 4);
            rest = rest.get(framed.on_stream..).unwrap_or_default();
        }
    }
);
