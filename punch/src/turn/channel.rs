//! ChannelData: four bytes before the payload instead of a whole message
//! (RFC 8656 §12.4).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-------------------------------+-------------------------------+
//! |        Channel number         |            Length             |
//! +-------------------------------+-------------------------------+
//! |                       Application data                        |
//! ```
//!
//! The length is that of the application data. On a stream the frame is padded to a
//! multiple of four bytes that the length does not count; in a datagram it need not be.

use std::ops::RangeInclusive;

/// Bytes before the payload.
pub const HEADER_LEN: usize = 4;

/// The numbers that a client may bind (RFC 8656 §12). The first byte of a frame is
/// 0x40 to 0x4F, which is neither STUN's (0x00 to 0x3F) nor WireGuard's (1 to 4).
pub const NUMBERS: RangeInclusive<u16> = 0x4000..=0x4fff;

/// The numbers that a client could bind before (RFC 5766 §11). coturn's client still
/// does, so that a server has to take them.
pub const OLD_NUMBERS: RangeInclusive<u16> = 0x4000..=0x7fff;

/// The four bytes before a payload of `len` bytes; `None` where the length has no
/// room in them.
pub fn header(channel: u16, len: usize) -> Option<[u8; HEADER_LEN]> {
    let [a, b] = channel.to_be_bytes();
    let [c, d] = u16::try_from(len).ok()?.to_be_bytes();
    Some([a, b, c, d])
}

/// A whole frame, without padding; `None` where the payload is longer than the length
/// can say.
pub fn encode(channel: u16, payload: &[u8]) -> Option<Vec<u8>> {
    let header = header(channel, payload.len())?;
    let mut frame = Vec::with_capacity(HEADER_LEN + payload.len());
    frame.extend_from_slice(&header);
    frame.extend_from_slice(payload);
    Some(frame)
}

/// Whether these bytes start like a frame: the first one tells.
pub fn is_frame(bytes: &[u8]) -> bool {
    matches!(bytes.first(), Some(0x40..=0x4f))
}

/// Channel number and payload of a datagram. What comes after the payload is left
/// out: a sender may pad (RFC 8656 §12.5). `None` where it is no frame, or a frame
/// that was cut.
pub fn decode(datagram: &[u8]) -> Option<(u16, &[u8])> {
    decode_old(datagram).filter(|(channel, _)| NUMBERS.contains(channel))
}

/// The same, with the numbers that could be bound before.
pub fn decode_old(datagram: &[u8]) -> Option<(u16, &[u8])> {
    let (header, rest) = datagram.split_first_chunk::<HEADER_LEN>()?;
    let channel = u16::from_be_bytes([header[0], header[1]]);
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if !OLD_NUMBERS.contains(&channel) {
        return None;
    }
    rest.get(..len).map(|payload| (channel, payload))
}

/// Bytes that follow a frame or message of `len` bytes on a stream until the next one
/// starts (RFC 8656 §12.5); none after a STUN message, whose length is a multiple of
/// four already.
pub const fn padding(len: usize) -> usize {
    len.wrapping_neg() % 4
}

/// What a stream of STUN messages and ChannelData frames goes on with, by its first
/// four bytes (RFC 8489 §6.2.2, RFC 8656 §12.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framed {
    /// Bytes of the message or frame, header included, padding not.
    pub len: usize,
    /// Bytes that it takes on the stream.
    pub on_stream: usize,
}

/// How long the message or frame is that starts with these four bytes; `None` where
/// they start neither, and the stream is of no more use.
pub fn framed(start: [u8; 4]) -> Option<Framed> {
    let length = usize::from(u16::from_be_bytes([start[2], start[3]]));
    let len = match start[0] {
        0x00..=0x3f if length % 4 == 0 => 20 + length,
        0x40..=0x7f => HEADER_LEN + length,
        _ => return None,
    };
    Some(Framed { len, on_stream: len + padding(len) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_is_four_bytes_and_the_payload() {
        let frame = encode(0x4001, b"hello").expect("short enough");
        assert_eq!(frame, b"\x40\x01\x00\x05hello");
        assert!(is_frame(&frame));
        assert_eq!(decode(&frame), Some((0x4001, &b"hello"[..])));
        assert_eq!(decode(b"\x40\x01\x00\x05hello\0\0\0"), Some((0x4001, &b"hello"[..])), "padded");
        assert_eq!(decode(b"\x4f\xff\x00\x00"), Some((0x4fff, &b""[..])), "empty");
        assert_eq!(encode(0x4001, &vec![0; 65_536]), None);
    }

    #[test]
    fn what_is_cut_or_has_no_channel_number_is_none() {
        for bytes in [
            &b""[..],
            b"\x40\x01\x00",
            b"\x40\x01\x00\x05hell",
            b"\x50\x00\x00\x00",
            b"\x3f\xff\x00\x00",
            b"\x00\x01\x00\x00",
        ] {
            assert_eq!(decode(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_server_takes_the_numbers_of_old_clients() {
        let frame = b"\x7f\xff\x00\x02hi";
        assert_eq!(decode(frame), None);
        assert_eq!(decode_old(frame), Some((0x7fff, &b"hi"[..])));
        assert_eq!(decode_old(b"\x80\x00\x00\x02hi"), None);
    }

    #[test]
    fn a_stream_is_cut_where_the_first_four_bytes_say() {
        for (start, len, on_stream) in [
            ([0x00, 0x01, 0x00, 0x08], 28, 28),
            ([0x40, 0x00, 0x00, 0x00], 4, 4),
            ([0x40, 0x00, 0x00, 0x05], 9, 12),
            ([0x4f, 0xff, 0xff, 0xff], 65_539, 65_540),
        ] {
            assert_eq!(framed(start), Some(Framed { len, on_stream }));
        }
        // A STUN length is a multiple of four; 0x80 and above is nothing.
        assert_eq!(framed([0x00, 0x01, 0x00, 0x07]), None);
        assert_eq!(framed([0x80, 0x00, 0x00, 0x00]), None);
    }

    proptest! {
        #[test]
        fn what_was_encoded_comes_back(
            channel in NUMBERS,
            payload in proptest::collection::vec(any::<u8>(), 0..1600),
        ) {
            let frame = encode(channel, &payload).expect("short enough");
            prop_assert_eq!(decode(&frame), Some((channel, &payload[..])));
            let framed = framed(frame[..4].try_into().expect("four")).expect("a frame");
            prop_assert_eq!(framed.len, frame.len());
            prop_assert_eq!(framed.on_stream % 4, 0);
        }
    }
}
