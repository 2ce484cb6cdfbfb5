//! A token, as it was pasted, and the membership that it becomes.

#![no_main]

use data_encoding::BASE64URL_NOPAD;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use zonemesh_discovery::membership::{Membership, Token};
use zonemesh_fuzz::{
    Bytes, key,
    network::{self, invite_part, network},
    sow, wall,
};

/// Whole and unaltered; with an invite that the network has signed.
const WHOLE: u8 = 1;
const SIGNED: u8 = 2;
/// A membership as it is kept, instead.
const KEPT: u8 = 4;

fuzz_target!(
    init: {
        let text = network::token().to_string();
        let bytes = BASE64URL_NOPAD.decode(text[3..].as_bytes()).expect("it was printed");
        let payload = &bytes[2..bytes.len() - 4];
        let at = payload.windows(32).position(|w| w == network::invite()).expect("it is in there");
        let limits = &payload[at + 32..];
        // Validity 8 bytes, no name, two routes of 3 and 7 bytes, one group of 6 bytes.
        let body = &limits[..8 + 1 + 1 + 3 + 7 + 1 + 7];
        let access = &limits[body.len() + 64..];
        let signed = [&[WHOLE | SIGNED, body.len() as u8], body, access].concat();
        let membership =
            network::token().admit(&key(1), "node-1", &[], &["site-1"], wall()).expect("allowed");
        sow("token", &[
            [&[0][..], text.as_bytes()].concat(),
            [&[WHOLE][..], payload].concat(),
            signed,
            [&[KEPT][..], &membership.to_bytes()].concat(),
        ]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        let flags = bytes.byte();
        if flags & KEPT != 0 {
            if let Some(kept) = Membership::from_bytes(bytes.0) {
                assert_eq!(Membership::from_bytes(&kept.to_bytes()), Some(kept.clone()));
                let _ = kept.certified(&key(1), wall());
            }
            return;
        }
        let text = if flags & WHOLE != 0 {
            let payload = if flags & SIGNED != 0 {
                let invite = invite_part(bytes.short_string());
                let zone = b"\x04mesh\x07example\0";
                [&zone[..], network().as_bytes(), &[0x49; 32], &invite, bytes.0].concat()
            } else {
                bytes.0.to_vec()
            };
            whole(&payload)
        } else {
            String::from_utf8_lossy(bytes.0).into_owned()
        };
        let Ok(token) = text.parse::<Token>() else { return };
        assert_eq!(token.to_string().parse::<Token>().map(|again| again.to_string()), Ok(token.to_string()));
        let routes = token.limits().routes().to_vec();
        let name = match token.limits().name() {
            "" => "any",
            name => name,
        };
        if let Ok(membership) = token.admit(&key(1), name, &routes, token.limits().groups(), wall()) {
            let certified = membership.certified(&key(1), wall()).expect("just signed");
            assert_eq!(certified.name, name);
            assert_eq!(certified.invite, token.invite());
            let kept = Membership::from_bytes(&membership.to_bytes());
            assert_eq!(kept, Some(membership));
        }
    }
);

/// The payload as a token is printed.
fn whole(payload: &[u8]) -> String {
    let payload = &payload[..payload.len().min(usize::from(u16::MAX))];
    let mut bytes = (payload.len() as u16).to_be_bytes().to_vec();
    bytes.extend(payload);
    let check = Sha256::digest(&bytes);
    bytes.extend(&check[..4]);
    format!("zm1{}", BASE64URL_NOPAD.encode(&bytes))
}
