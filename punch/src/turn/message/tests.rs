//! What was written is read back, and nothing else is believed.

use proptest::prelude::*;

use super::*;

const ID: TransactionId = *b"transaction!";

fn full() -> Message {
    let v4: SocketAddr = "192.0.2.1:4000".parse().expect("an address");
    let v6: SocketAddr = "[2001:db8::1]:4001".parse().expect("an address");
    Message {
        username: Some("1700000000:node".into()),
        realm: Some("mesh.example".into()),
        nonce: Some("0123456789abcdef".into()),
        failure: Some(Failure { code: 438, reason: "Stale Nonce".into() }),
        unknown: vec![0x7001, 0x7002],
        alternate_server: Some(v4),
        mapped: Some(v6),
        relayed: vec![v4, v6],
        peers: vec![v6, v4],
        channel: Some(0x4abc),
        lifetime: Some(600),
        data: Some(b"some bytes".to_vec()),
        requested_transport: Some(UDP),
        requested_family: Some(Family::V6),
        additional_family: Some(Family::V6),
        even_port: Some(true),
        reservation_token: Some(*b"12345678"),
        dont_fragment: true,
        fingerprint: true,
        ..Message::new(Method::Allocate, Class::Request, ID)
    }
}

fn key() -> Key {
    Key::new("1700000000:node", "mesh.example", "secret").expect("plain text")
}

#[test]
fn every_field_comes_back() {
    let message = full();
    let bytes = message.encode(Some(&key())).expect("it can be written");
    assert_eq!(Message::parse(&bytes), Ok(message));
    assert_eq!(peek(&bytes), Some((Method::Allocate, Class::Request, ID)));
    for (method, _) in Method::ALL {
        for class in [Class::Request, Class::Indication, Class::Success, Class::Error] {
            let message = Message::new(method, class, ID);
            let bytes = message.encode(None).expect("it can be written");
            assert_eq!(bytes.len(), HEADER_LEN);
            assert_eq!(Message::parse(&bytes), Ok(message));
        }
    }
}

/// Found by fuzzing (`fuzz/targets/turn_message.rs`).
#[test]
fn of_two_lists_of_unknown_attributes_the_first_counts() {
    let unknown = vec![0x7001];
    let message = Message { unknown, ..Message::new(Method::Refresh, Class::Error, ID) };
    let mut bytes = message.encode(None).expect("it can be written");
    bytes.extend([0x00, 0x0a, 0x00, 0x02, 0x70, 0x02, 0x00, 0x00]);
    let length = u16::try_from(bytes.len() - HEADER_LEN).expect("short");
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    assert_eq!(Message::parse(&bytes), Ok(message));
}

#[test]
fn what_is_longer_than_a_message_can_be_is_refused() {
    let peer: SocketAddr = "[2001:db8::1]:4001".parse().expect("an address");
    let indication = |len| Message {
        peers: vec![peer],
        data: Some(vec![7; len]),
        ..Message::new(Method::Data, Class::Indication, ID)
    };
    let longest = indication(65_000);
    let bytes = longest.encode(None).expect("it can be written");
    assert_eq!(Message::parse(&bytes), Ok(longest));
    for len in (65_400..=65_600).chain([131_072]) {
        assert_eq!(indication(len).encode(None), Err(EncodeError), "{len} bytes");
    }
    let crowd = Message { data: None, peers: vec![peer; 4000], ..indication(0) };
    assert_eq!(crowd.encode(None), Err(EncodeError));
}

#[test]
fn only_the_key_that_signed_verifies() {
    let message = full();
    let signed = message.encode(Some(&key())).expect("it can be written");
    assert_eq!(verify(&signed, &key()), Ok(()));
    let other = Key::new("1700000000:node", "mesh.example", "other").expect("plain text");
    assert_eq!(verify(&signed, &other), Err(IntegrityError::Wrong));
    let unsigned = message.encode(None).expect("it can be written");
    assert_eq!(verify(&unsigned, &key()), Err(IntegrityError::Missing));
    let fingerprint = 8;
    for at in 8..signed.len() - fingerprint {
        let mut changed = signed.clone();
        changed[at] ^= 1;
        assert!(verify(&changed, &key()).is_err(), "byte {at} is signed");
    }
}

#[test]
fn what_follows_the_signature_is_not_read() {
    let short = Message::new(Method::Refresh, Class::Success, ID);
    let mut bytes = short.encode(Some(&key())).expect("it can be written");
    bytes.extend_from_slice(&[0x00, 0x0d, 0x00, 0x04, 0, 0, 0, 99]);
    let length = u16::try_from(bytes.len() - HEADER_LEN).expect("short");
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    assert_eq!(verify(&bytes, &key()), Ok(()));
    assert_eq!(Message::parse(&bytes).map(|message| message.lifetime), Ok(None));
}

#[test]
fn the_long_term_key_is_that_of_the_rfc() {
    // RFC 8489 §9.2.2 names the example user:realm:pass.
    let key = Key::new("user", "realm", "pass").expect("plain text");
    let expected = [
        0x84, 0x93, 0xfb, 0xc5, 0x3b, 0xa5, 0x82, 0xfb, 0x4c, 0x04, 0x4c, 0x45, 0x6b, 0xdc, 0x40,
        0xeb,
    ];
    assert_eq!(key.0.as_bytes(), expected);
    assert!(!format!("{key:?}").contains("84"), "a key is not shown");
}

#[test]
fn what_has_to_be_understood_and_is_not_is_told() {
    let mut bytes =
        Message::new(Method::Allocate, Class::Request, ID).encode(None).expect("written");
    bytes.extend_from_slice(&[0x70, 0x01, 0, 0, 0xf0, 0x01, 0, 0]);
    bytes[3] = 8;
    let message = Message::parse(&bytes).expect("a message");
    assert_eq!(message.not_understood, [0x7001]);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = Message::parse(&bytes);
        let _ = verify(&bytes, &key());
    }

    #[test]
    fn a_changed_message_is_read_or_refused(at in 0usize..300, with in any::<u8>()) {
        let mut bytes = full().encode(Some(&key())).expect("it can be written");
        let at = at % bytes.len();
        bytes[at] ^= with;
        if let Ok(message) = Message::parse(&bytes) {
            let _ = message.encode(Some(&key()));
        }
        let _ = verify(&bytes, &key());
    }
}
