//! What a member hands over: the note, from anybody and sealed by the member, and the advert
//! that may be in it.

#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use zonemesh_discovery::advert::SignedAdvert;
use zonemesh_fuzz::{Bytes, advert, check_keys, key, sow, wall, with_lengths, zone};
use zonemesh_punch::{Courier, Route};

/// The attributes are the bytes', the rest is genuine.
const SEALED: u8 = 1;

fuzz_target!(
    init: {
        let note = genuine(with_lengths(advert(2).txt()));
        sow("note", &[
            [&[0][..], &note].concat(),
            [&[SEALED][..], &note[..note.len() - 44]].concat(),
        ]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        let sealed = bytes.byte() & SEALED != 0;
        let mut datagram = bytes.take(1188).to_vec();
        if sealed {
            let genuine = genuine(Vec::new());
            datagram.resize(datagram.len().next_multiple_of(4).max(40), 0);
            datagram[4..8].copy_from_slice(&genuine[4..8]);
            datagram[20..40].copy_from_slice(&genuine[20..40]);
            check_keys(2, 1).close(&mut datagram);
        }
        let now = Instant::now();
        let mut courier = Courier::new(check_keys(1, 2), [3; 32], now);
        courier.offer(b"own".to_vec(), now);
        if let Ok(Some(content)) = courier.handle_datagram(route(), &datagram, now) {
            let answer = courier.poll_transmit().expect("an acknowledgement");
            assert!(answer.payload.len() <= datagram.len(), "nobody is amplified");
            let txt = Bytes(&content).short_strings();
            if let Ok(signed) = SignedAdvert::verify(&zone(), &txt, wall()) {
                assert_eq!(signed.advert().node, key(2), "nobody else signs here");
            }
        }
        assert_eq!(courier.poll_transmit(), None, "nothing else gets an answer");
    }
);

fn route() -> Route {
    Route::direct("192.0.2.1:51820".parse().expect("literal"))
}

/// A note of node 2 to node 1.
fn genuine(content: Vec<u8>) -> Vec<u8> {
    let now = Instant::now();
    let mut courier = Courier::new(check_keys(2, 1), [9; 32], now);
    courier.offer(content, now);
    courier.handle_timeout(&[route()], now);
    courier.poll_transmit().expect("the note").payload
}
