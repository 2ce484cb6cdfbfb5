//! An advert's TXT strings, and the instance that they make with SRV and addresses.

#![no_main]

use data_encoding::BASE64;
use libfuzzer_sys::fuzz_target;
use zonemesh_discovery::advert::{
    Endpoint, Entry, InstanceRecords, MAX_ADDRESSES, MAX_CANDIDATES, MAX_ROUTES, MAX_TXT_LEN,
    SignedAdvert,
};
use zonemesh_fuzz::{Bytes, advert, identity, key, sow, wall, with_lengths, zone};

/// Signed by the target; with the endpoint that was signed, or what the bytes say.
const SIGNED: u8 = 1;
const ENDPOINT: u8 = 2;
const OTHER: u8 = 4;

fuzz_target!(
    init: {
        let strings = advert(1);
        let (_, body) = strings.txt().split_last().expect("signed");
        let body = with_lengths(body);
        sow("advert", &[
            [&[0][..], &with_lengths(strings.txt())].concat(),
            [&[SIGNED][..], &body].concat(),
            [&[SIGNED | ENDPOINT, 0], &body[..]].concat(),
            [&[SIGNED | OTHER][..], &body].concat(),
        ]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        let flags = bytes.byte();
        let endpoint = (flags & ENDPOINT != 0).then(|| {
            let port = bytes.addr().port();
            let addresses = (0..bytes.byte() % 4).map(|_| bytes.addr().ip()).collect();
            Endpoint::new(port, addresses)
        });
        let mut txt = bytes.short_strings();
        if flags & SIGNED != 0 {
            txt.push(signature(&txt));
        }
        let verified = SignedAdvert::verify(&zone(), &txt, wall());
        let node = key(if flags & OTHER != 0 { 2 } else { 1 });
        let records = InstanceRecords { node, txt: txt.clone(), endpoint };
        let entry = records.verify(&zone(), wall());
        let Ok(signed) = verified else {
            assert!(!matches!(entry, Ok(Entry::Signed(_))), "from the zone it is no better");
            return;
        };
        let advert = signed.advert();
        assert_eq!(advert.node, key(1), "nobody else's key is known here");
        assert!(advert.routes.len() <= MAX_ROUTES);
        assert!(advert.candidates.len() <= MAX_CANDIDATES);
        assert!(advert.addresses.len() <= MAX_ADDRESSES);
        assert!(txt.iter().map(|string| string.len() + 1).sum::<usize>() <= MAX_TXT_LEN);
        if let Ok(Entry::Signed(same)) = entry {
            assert_eq!(same.advert(), advert);
            assert_eq!(records.endpoint, advert.endpoint());
            assert_eq!(records.node, advert.node);
        }
        // What was understood can be said, and is understood alike.
        if let Ok(again) = advert.sign(&identity(1), &zone()) {
            let read = SignedAdvert::verify(&zone(), again.txt(), wall()).expect("just signed");
            assert_eq!(read.advert(), advert);
        }
    }
);

/// Node 1's signature, made by the book (`docs/protocol.md`) and not by the project's code.
fn signature(txt: &[Vec<u8>]) -> Vec<u8> {
    let mut message = b"zonemesh advert v1\0".to_vec();
    for part in [&b"mesh"[..], b"example", b""].into_iter().chain(txt.iter().map(Vec::as_slice)) {
        message.extend((part.len() as u32).to_be_bytes());
        message.extend(part);
    }
    format!("sig={}", BASE64.encode(&identity(1).sign(&message))).into_bytes()
}
