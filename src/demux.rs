//! Names one datagram: WireGuard, STUN or junk.
//!
//! WireGuard and STUN share one socket, so that the address a STUN server sees is
//! the address WireGuard's packets have. Their first bytes can coincide: a
//! WireGuard message starts with its type (1 to 4) and three zeros, which STUN
//! could read as a message type with the length 0. Such a STUN message would be
//! 20 bytes long, and no WireGuard message is shorter than 32: with the sizes
//! checked on both sides nothing is ever both.
//!
//! Only the shape is looked at. Whether a message is authentic is for
//! [`crate::tunnel`] or for the control plane to say.

/// Bytes of a STUN header, and where its magic cookie stands (RFC 8489 §5).
const STUN_HEADER: usize = 20;
const STUN_COOKIE: [u8; 4] = 0x2112_A442_u32.to_be_bytes();

/// A STUN message longer than this is none of ours: requests and answers over UDP
/// stay below the path's MTU (RFC 8489 §6.1).
pub const MAX_STUN: usize = 1500;

/// Sizes of WireGuard's messages (WireGuard paper §5.4; the last one is a data
/// message with nothing in it: a keepalive).
const INITIATION: usize = 148;
const RESPONSE: usize = 92;
const COOKIE_REPLY: usize = 64;
const DATA_MIN: usize = 32;

/// What a datagram is, by its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A WireGuard message.
    WireGuard(Message),
    /// A STUN message.
    Stun,
    /// Neither.
    Junk,
}

/// The four messages of WireGuard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// The first message of a handshake.
    Initiation,
    /// The second message of a handshake.
    Response,
    /// What a node under load answers to a handshake message.
    CookieReply,
    /// A sealed packet, or a keepalive. Carries the receiver's index.
    Data(u32),
}

/// Names `datagram`.
pub fn name(datagram: &[u8]) -> Kind {
    let Some(&[kind, a, b, c, word @ ..]) = datagram.first_chunk::<8>() else {
        return Kind::Junk;
    };
    if [a, b, c] == [0; 3] {
        let message = match (kind, datagram.len()) {
            (1, INITIATION) => Some(Message::Initiation),
            (2, RESPONSE) => Some(Message::Response),
            (3, COOKIE_REPLY) => Some(Message::CookieReply),
            (4, DATA_MIN..) => Some(Message::Data(u32::from_le_bytes(word))),
            _ => None,
        };
        if let Some(message) = message {
            return Kind::WireGuard(message);
        }
    }
    let length = usize::from(u16::from_be_bytes([b, c]));
    let is_stun = kind >> 6 == 0
        && word == STUN_COOKIE
        && length % 4 == 0
        && datagram.len() == STUN_HEADER + length
        && datagram.len() <= MAX_STUN;
    if is_stun { Kind::Stun } else { Kind::Junk }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wireguard(kind: u8, size: usize) -> Vec<u8> {
        let mut message = vec![0; size];
        message[0] = kind;
        message[4..8].copy_from_slice(&0x0102_0304_u32.to_le_bytes());
        message
    }

    fn stun(kind: u16, attributes: usize) -> Vec<u8> {
        let mut message = vec![0; STUN_HEADER + attributes];
        message[..2].copy_from_slice(&kind.to_be_bytes());
        message[2..4].copy_from_slice(&u16::try_from(attributes).expect("small").to_be_bytes());
        message[4..8].copy_from_slice(&STUN_COOKIE);
        message
    }

    #[test]
    fn wireguard_messages_are_named_by_type_and_size() {
        for (kind, size, message) in [
            (1, 148, Message::Initiation),
            (2, 92, Message::Response),
            (3, 64, Message::CookieReply),
            (4, 32, Message::Data(0x0102_0304)),
            (4, 1452, Message::Data(0x0102_0304)),
        ] {
            assert_eq!(name(&wireguard(kind, size)), Kind::WireGuard(message));
        }
        for (kind, size) in [(1, 147), (1, 149), (2, 91), (3, 65), (4, 31), (0, 148), (5, 148)] {
            assert_eq!(name(&wireguard(kind, size)), Kind::Junk, "type {kind}, {size} bytes");
        }
        let mut reserved = wireguard(4, 64);
        reserved[2] = 1;
        assert_eq!(name(&reserved), Kind::Junk);
    }

    #[test]
    fn stun_messages_are_named_by_cookie_and_length() {
        for attributes in [0, 4, 108, MAX_STUN - STUN_HEADER] {
            assert_eq!(name(&stun(0x0001, attributes)), Kind::Stun);
            assert_eq!(name(&stun(0x0101, attributes)), Kind::Stun);
        }
        assert_eq!(name(&stun(1, MAX_STUN - STUN_HEADER + 4)), Kind::Junk, "too long");
        assert_eq!(name(&stun(1, 6)), Kind::Junk, "length is no multiple of four");
        assert_eq!(name(&stun(0x4001, 8)), Kind::Junk, "ChannelData, not STUN");
        let mut cut = stun(1, 8);
        cut.pop();
        assert_eq!(name(&cut), Kind::Junk);
        let mut old = stun(1, 8);
        old[4] = 0;
        assert_eq!(name(&old), Kind::Junk, "no magic cookie");
    }

    #[test]
    fn a_wireguard_index_that_equals_the_magic_cookie_stays_wireguard() {
        for (kind, size) in [(1, 148), (2, 92), (3, 64), (4, 32), (4, 1452)] {
            let mut message = wireguard(kind, size);
            message[4..8].copy_from_slice(&STUN_COOKIE);
            assert!(matches!(name(&message), Kind::WireGuard(_)));
        }
        assert_eq!(name(&stun(0x0100, 0)), Kind::Stun, "WireGuard's type 1, but 20 bytes");
    }

    proptest! {
        #[test]
        fn any_bytes_get_a_name(bytes in proptest::collection::vec(any::<u8>(), 0..1600)) {
            let _ = name(&bytes);
        }

        #[test]
        fn bytes_that_start_like_either_get_a_name(
            kind in 0u8..6,
            rest in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            for cookie in [[0; 4], STUN_COOKIE] {
                let bytes = [&[kind, 0, 0, 0][..], &cookie, &rest].concat();
                match name(&bytes) {
                    Kind::WireGuard(_) => prop_assert!(bytes.len() >= DATA_MIN),
                    Kind::Stun => prop_assert_eq!(bytes.len(), STUN_HEADER),
                    Kind::Junk => {}
                }
            }
        }
    }
}
