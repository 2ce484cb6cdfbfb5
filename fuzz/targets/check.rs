//! One check, as it comes from anybody and as a member could make it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use zonemesh_fuzz::{Bytes, check_keys, sow};
use zonemesh_punch::{
    Username,
    check::{Check, Plan, Receipt, Request},
};

/// The attributes are the bytes', the rest is genuine.
const SEALED: u8 = 1;

fuzz_target!(
    init: {
        let peer = check_keys(2, 1);
        let request = Request {
            id: [7; 12],
            clock_ms: 1_800_000_000_000,
            priority: 0x6eff_ffff,
            nominate: true,
            receipt: Receipt { data_ms: Some(3), any_ms: Some(1), opened_ms: None },
            plan: Some(Plan::default()),
        };
        let request = peer.seal(&Check::Request(request));
        let answer = zonemesh_punch::check::Answer {
            id: [7; 12],
            clock_ms: 1_800_000_000_000,
            mapped: "198.51.100.7:51820".parse().expect("literal"),
            receipt: Receipt::default(),
            plan: Some(Plan::default()),
        };
        let answer = peer.seal(&Check::Answer(answer));
        // Without the end, which the target makes: 36 bytes of integrity, 8 of FINGERPRINT.
        let sealed = |message: &[u8]| [&[SEALED][..], &message[..message.len() - 44]].concat();
        sow("check", &[
            [&[0][..], &request].concat(),
            [&[0][..], &answer].concat(),
            sealed(&request),
            sealed(&answer),
        ]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        let (own, peer) = (check_keys(1, 2), check_keys(2, 1));
        let sealed = bytes.byte() & SEALED != 0;
        let mut datagram = bytes.take(1456).to_vec();
        if sealed {
            // Header, user name and a multiple of four: anything else is never opened.
            let genuine = peer.seal(&Check::Answer(answer()));
            datagram.resize(datagram.len().next_multiple_of(4).max(40), 0);
            datagram[4..8].copy_from_slice(&genuine[4..8]);
            datagram[20..40].copy_from_slice(&genuine[20..40]);
            peer.close(&mut datagram);
        }
        let username = Username::peek(&datagram);
        let Ok(check) = own.open(&datagram) else { return };
        assert!(sealed || data.starts_with(&[0]), "nobody guesses a key");
        assert_eq!(username, Some(own.inbound_username()));
        assert!(peer.open(&datagram).is_err(), "thrown back it is nobody's");
        // What was understood can be said, and is understood alike; a port 0 and the like
        // cannot.
        let again = own.open(&peer.seal(&check)).expect("just sealed");
        assert_eq!(again, check);
    }
);

fn answer() -> zonemesh_punch::check::Answer {
    zonemesh_punch::check::Answer {
        id: [0; 12],
        clock_ms: 0,
        mapped: "192.0.2.1:1".parse().expect("literal"),
        receipt: Receipt::default(),
        plan: None,
    }
}
