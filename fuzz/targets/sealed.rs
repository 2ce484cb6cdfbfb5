//! A sealed record: from anybody, and by a member that means harm.

#![no_main]

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload},
};
use hkdf::Hkdf;
use libfuzzer_sys::fuzz_target;
use sha2::Sha256;
use zonemesh_discovery::{
    membership::Secret,
    sealed::{Place, Seal},
};
use zonemesh_fuzz::{Bytes, advert, key, sow, with_lengths, zone};

/// The plain text is the bytes', the seal is genuine.
const SEALED: u8 = 1;
/// As it comes on the LAN.
const LAN: u8 = 2;

fuzz_target!(
    init: {
        let seal = seal();
        let txt = advert(1).txt().to_vec();
        let sealed = seal.seal(&seal.node(&zone(), &key(1)), &txt).concat();
        sow("sealed", &[
            [&[0][..], &sealed].concat(),
            [&[LAN][..], &seal.seal_for(Place::Lan, &txt)].concat(),
            [&[SEALED][..], &with_lengths(&txt)].concat(),
            [&[SEALED | LAN][..], &with_lengths(&txt)].concat(),
        ]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        let flags = bytes.byte();
        let seal = seal();
        let owner = seal.node(&zone(), &key(1));
        let sealed = if flags & SEALED != 0 {
            let mut covered = Vec::new();
            owner.iter().for_each(|label| {
                covered.push(label.len() as u8);
                covered.extend(label);
            });
            covered.push(0);
            let covered = if flags & LAN != 0 { b"local" } else { &covered[..] };
            by_the_book(covered, bytes.0)
        } else {
            bytes.0.to_vec()
        };
        let opened = if flags & LAN != 0 {
            seal.open_from(Place::Lan, &sealed)
        } else {
            let strings: Vec<Vec<u8>> = sealed.chunks(255).map(<[u8]>::to_vec).collect();
            seal.open(&owner, &strings)
        };
        let Some(txt) = opened else { return };
        assert!(txt.iter().all(|string| (1..=255).contains(&string.len())));
        // A record of nothing is never sealed.
        if txt.is_empty() {
            return;
        }
        assert_eq!(seal.open(&owner, &seal.seal(&owner, &txt)), Some(txt));
    }
);

fn seal() -> Seal {
    Seal::new(&Secret::new(vec![7; 32]))
}

/// After `docs/protocol.md`, and not by the project's code.
fn by_the_book(covered: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut key = [0; 32];
    Hkdf::<Sha256>::new(Some(b"zonemesh seal v1"), &[7; 32])
        .expand(b"content", &mut key)
        .expect("short");
    let mut plain = plain.to_vec();
    plain.resize(plain.len().next_multiple_of(64), 0);
    let payload = Payload { msg: &plain, aad: covered };
    let nonce = [9; 24];
    let sealed = XChaCha20Poly1305::new(&key.into()).encrypt(&nonce.into(), payload);
    [&[1][..], &nonce, &sealed.expect("short")].concat()
}
