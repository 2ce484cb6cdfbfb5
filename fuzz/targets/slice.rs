//! The claim of a slice.

#![no_main]

use std::time::Duration;

use data_encoding::BASE64;
use libfuzzer_sys::fuzz_target;
use zonemesh_discovery::zone::slice::{SignedClaim, SliceClaim};
use zonemesh_fuzz::{Bytes, identity, key, network, sow, wall, with_lengths, zone};

/// Signed by the target.
const SIGNED: u8 = 1;

fuzz_target!(
    init: {
        let claim = SliceClaim {
            node: key(1),
            slice: slice(),
            sequence: 1,
            expires: wall() + Duration::from_secs(3600),
            certificate: Some(network::chain(&key(1))),
        };
        let claim = claim.sign(&identity(1), &zone()).expect("a good claim");
        let (_, body) = claim.txt().split_last().expect("signed");
        sow("slice", &[
            [&[0][..], &with_lengths(claim.txt())].concat(),
            [&[SIGNED][..], &with_lengths(body)].concat(),
        ]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        let signed = bytes.byte() & SIGNED != 0;
        let mut txt = bytes.short_strings();
        if signed {
            txt.push(signature(&txt));
        }
        // What any owner's name says goes by a way of its own.
        let labels = txt.iter().map(|label| &label[..label.len().min(63)]);
        if let Ok(mut name) = hickory_proto::rr::Name::from_labels(labels) {
            name.set_fqdn(true);
            if let Some(slice) = zone().slice_of(&name) {
                assert_eq!(zone().slice(&slice), name);
            }
        }
        let Ok(read) = SignedClaim::verify(&zone(), &slice(), &txt, wall()) else { return };
        let claim = read.claim();
        assert_eq!((claim.node, claim.slice), (key(1), slice()));
        if let Ok(again) = claim.sign(&identity(1), &zone()) {
            let read = SignedClaim::verify(&zone(), &slice(), again.txt(), wall());
            assert_eq!(read.expect("just signed").claim(), claim);
        }
    }
);

fn slice() -> ipnet::IpNet {
    "10.42.7.0/24".parse().expect("literal")
}

/// Node 1's signature, made by the book.
fn signature(txt: &[Vec<u8>]) -> Vec<u8> {
    let mut message = b"zonemesh slice v1\0".to_vec();
    for part in [&b"mesh"[..], b"example", b""].into_iter().chain(txt.iter().map(Vec::as_slice)) {
        message.extend((part.len() as u32).to_be_bytes());
        message.extend(part);
    }
    format!("sig={}", BASE64.encode(&identity(1).sign(&message))).into_bytes()
}
