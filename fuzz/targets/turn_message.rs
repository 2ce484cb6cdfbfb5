//! A TURN message from anybody.

#![no_main]

use libfuzzer_sys::fuzz_target;
use zonemesh_fuzz::sow;
use zonemesh_punch::turn::message::{
    Class, Failure, Family, Key, Message, Method, UDP, is_signed, peek, verify,
};

fuzz_target!(
    init: {
        let full = Message {
            username: Some("1800000000:node".to_owned()),
            realm: Some("zonemesh".to_owned()),
            nonce: Some("0123456789abcdef".to_owned()),
            peers: vec!["198.51.100.7:51820".parse().expect("literal")],
            channel: Some(0x4001),
            lifetime: Some(600),
            requested_transport: Some(UDP),
            requested_family: Some(Family::V6),
            even_port: Some(true),
            reservation_token: Some([1; 8]),
            dont_fragment: true,
            fingerprint: true,
            data: Some(b"data".to_vec()),
            ..Message::new(Method::Allocate, Class::Request, [7; 12])
        };
        let refused = Message {
            failure: Some(Failure { code: 401, reason: "Unauthorized".to_owned() }),
            unknown: vec![0x7777],
            alternate_server: Some("198.51.100.9:3478".parse().expect("literal")),
            ..Message::new(Method::Refresh, Class::Error, [7; 12])
        };
        let done = Message {
            mapped: Some("198.51.100.7:4000".parse().expect("literal")),
            relayed: vec!["[2001:db8::1]:50000".parse().expect("literal")],
            address_failure: Some((Family::V4, Failure { code: 440, reason: "No".to_owned() })),
            ..Message::new(Method::Allocate, Class::Success, [7; 12])
        };
        let encode = |message: &Message| message.encode(Some(&key())).expect("a good message");
        sow("turn_message", &[encode(&full), encode(&refused), encode(&done)]);
    },
    |data: &[u8]| {
        let peeked = peek(data);
        assert!(verify(data, &key()).is_err() || is_signed(data));
        let Ok(message) = Message::parse(data) else { return };
        assert_eq!(peeked, Some((message.method, message.class, message.id)));
        // What was understood can be said, and is understood alike.
        let mut known = Message { not_understood: Vec::new(), ..message };
        // A list names nothing twice.
        let mut named = std::collections::BTreeSet::new();
        known.unknown.retain(|kind| named.insert(*kind));
        let Ok(again) = known.encode(Some(&key())) else { return };
        assert_eq!(verify(&again, &key()), Ok(()));
        assert_eq!(Message::parse(&again), Ok(known));
    }
);

fn key() -> Key {
    Key::new("user", "zonemesh", "secret").expect("plain text")
}
