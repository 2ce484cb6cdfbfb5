//! Binding requests out and their answers in: all that is known of STUN's bytes.

use std::net::{IpAddr, SocketAddr};

use stun_rs::{
    MessageClass, MessageDecoder, MessageEncoder, StunAttribute, StunMessageBuilder, TransactionId,
    attributes::{
        discovery::{ChangeRequest, ChangeRequestFlags, OtherAddress, ResponsePort},
        stun::{Fingerprint, XorMappedAddress},
    },
    methods::BINDING,
};

/// The 96 random bits by which an answer finds its request (RFC 8489 §5).
pub(super) type Id = [u8; 12];

/// Header (RFC 8489 §5), CHANGE-REQUEST, RESPONSE-PORT and FINGERPRINT.
const MAX_REQUEST_LEN: usize = 20 + 8 + 8 + 8;

/// The magic cookie at bytes 4 to 7 (RFC 8489 §5).
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// From where an answer is asked to come (RFC 5780 §7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// From where the request went.
    Nothing,
    /// From the same address and the other port.
    Port,
    /// From the other address and the other port.
    AddressAndPort,
}

/// What a Binding success says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    /// XOR-MAPPED-ADDRESS: where the request was seen to come from.
    pub(super) mapped: SocketAddr,
    /// OTHER-ADDRESS, where the server has a second address to answer from.
    pub(super) other: Option<SocketAddr>,
}

/// A Binding request, with FINGERPRINT so that a demultiplexer knows it for STUN. With a
/// port, the answer is asked to go there (RFC 5780 §7.5).
pub(super) fn request(id: Id, change: Change, response_port: Option<u16>) -> Vec<u8> {
    let flags = match change {
        Change::Nothing => None,
        Change::Port => Some(ChangeRequestFlags::ChangePort.into()),
        Change::AddressAndPort => {
            Some(ChangeRequestFlags::ChangeIp | ChangeRequestFlags::ChangePort)
        }
    };
    let mut message = StunMessageBuilder::new(BINDING, MessageClass::Request)
        .with_transaction_id(TransactionId::from(id));
    if flags.is_some() {
        message = message.with_attribute(ChangeRequest::new(flags));
    }
    if let Some(port) = response_port {
        message = message.with_attribute(ResponsePort::from(port));
    }
    let message = message.with_attribute(Fingerprint::default()).build();
    let mut buffer = vec![0; MAX_REQUEST_LEN];
    let length = MessageEncoder::default()
        .encode(&mut buffer, &message)
        .expect("a message without variable parts fits its buffer");
    buffer.truncate(length);
    buffer
}

/// The transaction that a datagram answers, if it has a STUN response's header.
/// Nothing else of it is looked at.
pub(super) fn response_id(datagram: &[u8]) -> Option<Id> {
    let header = datagram.get(..20)?;
    // The response classes have the upper class bit set (RFC 8489 §5).
    (header[0] & 0xc1 == 0x01 && header[4..8] == MAGIC_COOKIE)
        .then(|| header[8..20].try_into().expect("twelve bytes"))
}

/// The transaction of a datagram that has a STUN request's header.
pub(super) fn request_id(datagram: &[u8]) -> Option<Id> {
    let header = datagram.get(..20)?;
    (header[..2] == [0, 1] && header[4..8] == MAGIC_COOKIE)
        .then(|| header[8..20].try_into().expect("twelve bytes"))
}

/// Reads the answer of a server; `None` for what is no usable Binding success.
pub(super) fn answer(server: SocketAddr, datagram: &[u8]) -> Option<Answer> {
    let (message, _) = MessageDecoder::default().decode(datagram).ok()?;
    if message.method() != BINDING || message.class() != MessageClass::SuccessResponse {
        return None;
    }
    let unknown = |attribute: &StunAttribute| {
        attribute.is_unknown() && attribute.attribute_type().is_comprehension_required()
    };
    // RFC 8489 §6.3.3: what must be understood and is not, spoils the answer.
    if message.attributes().iter().any(unknown) {
        return None;
    }
    let mapped = message.get::<XorMappedAddress>()?.as_xor_mapped_address().ok()?;
    let mapped = *mapped.socket_address();
    // A server that is reached through a NAT64 sees the translator's IPv4 address.
    let translated = mapped.is_ipv4() && server.is_ipv6() && is_unicast(mapped);
    let other = message
        .get::<OtherAddress>()
        .and_then(|attribute| attribute.as_other_address().ok())
        .map(|other| *other.socket_address())
        .filter(|other| is_sensible(*other, server) && other.ip() != server.ip())
        .filter(|other| other.port() != server.port());
    (translated || is_sensible(mapped, server)).then_some(Answer { mapped, other })
}

/// Whether an address that `server` names can be one of the same network: a
/// server cannot make us send to ourselves, to a group, or to another family.
fn is_sensible(addr: SocketAddr, server: SocketAddr) -> bool {
    let on_loopback = addr.ip().is_loopback() && server.ip().is_loopback();
    addr.is_ipv4() == server.is_ipv4() && (is_unicast(addr) || on_loopback && addr.port() != 0)
}

/// Whether one host of a network can have this address and port.
fn is_unicast(addr: SocketAddr) -> bool {
    let ip = addr.ip();
    let unicast = match ip {
        IpAddr::V4(v4) => !v4.is_broadcast() && v4.octets()[0] != 0,
        IpAddr::V6(v6) => !v6.is_unspecified() && v6.to_ipv4_mapped().is_none(),
    };
    unicast && !ip.is_multicast() && !ip.is_loopback() && addr.port() != 0
}
