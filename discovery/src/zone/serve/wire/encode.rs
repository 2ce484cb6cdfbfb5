//! A response as bytes: within what who asked can take, with EDNS and signature.

use hickory_proto::op::{Edns, Message, ResponseCode};

use super::request::Asked;
use crate::zone::message::UDP_PAYLOAD;

/// What every client takes by UDP (RFC 1035 §2.3.4).
const PLAIN_UDP: usize = 512;

/// What a message over a stream can have.
pub(super) const STREAM_LIMIT: usize = u16::MAX as usize;

/// How much of an answer goes by UDP to a client that says it takes so much: nothing that
/// would be cut into fragments on its way (DNS Flag Day 2020).
pub(super) fn udp_limit(edns: Option<&Edns>) -> usize {
    let wanted = edns.map_or(PLAIN_UDP, |edns| usize::from(edns.max_payload()));
    wanted.clamp(PLAIN_UDP, usize::from(UDP_PAYLOAD))
}

/// The EDNS of an answer.
pub(super) fn edns_reply() -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD);
    edns
}

/// A response with EDNS where its request has it (RFC 6891 §6.1.1).
pub(super) fn with_edns(asked: &Asked, mut response: Message) -> Message {
    if asked.edns().is_some() && response.edns.is_none() {
        response.set_edns(edns_reply());
    }
    response
}

/// Encodes a response in at most `room` bytes. What does not fit goes: additional records
/// first, without a sign (RFC 2181 §9), then everything, and the client is told to ask over
/// TCP.
pub(super) fn encode(mut response: Message, room: usize) -> Vec<u8> {
    let mut wire = bytes_of(&response);
    if wire.len() > room && !response.additionals.is_empty() {
        response.additionals.clear();
        wire = bytes_of(&response);
    }
    if wire.len() > room { bytes_of(&cut(response)) } else { wire }
}

/// A response that has nothing but its question, and says that there is more.
pub(super) fn cut(mut response: Message) -> Message {
    response.answers.clear();
    response.authorities.clear();
    response.additionals.clear();
    response.metadata.truncation = true;
    response
}

/// An answer of nothing but a code to what is not read, but for its header (RFC 1035 §4.1.1).
pub(super) fn bare(wire: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let [id0, id1, flags, ..] = *wire.first_chunk::<12>()?;
    // A response, the opcode and the wish for recursion as they came, and the code.
    let flags = 0x80 | (flags & 0x79);
    Some([&[id0, id1, flags, code.low()][..], &[0; 8]].concat())
}

fn bytes_of(response: &Message) -> Vec<u8> {
    // The only failures are a name that is none and too many records, neither of which a
    // zone has.
    response.to_vec().unwrap_or_else(|_| {
        let mut failed = Message::new(
            response.metadata.id,
            response.metadata.message_type,
            response.metadata.op_code,
        );
        failed.metadata.response_code = ResponseCode::ServFail;
        failed.to_vec().unwrap_or_default()
    })
}
