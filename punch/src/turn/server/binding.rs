//! STUN: where does a client come from? (RFC 8489), and how does its NAT treat answers
//! from elsewhere and to elsewhere? (RFC 5780)
//!
//! Anybody may ask, so an answer must not be worth asking for in somebody else's name.
//! An answer to a request of 20 bytes has 32 (IPv4) or 44 (IPv6), and where there is a
//! second address 56 or 92: with the headers below at most 2.1 times the request. An
//! answer that shall go elsewhere (RESPONSE-PORT) stays at the address that asked, and
//! PADDING, which would be answered by as much, is refused.

use std::net::{IpAddr, SocketAddr};

use stun_rs::{
    MessageClass, MessageEncoder, StunMessageBuilder, TransactionId,
    attributes::{
        discovery::{OtherAddress, ResponseOrigin},
        stun::{ErrorCode, Fingerprint, UnknownAttributes, XorMappedAddress},
    },
    methods::BINDING,
};

use super::{ClientAddr, ClientTransport, Transmit};
use crate::turn::message;

/// RFC 5780 §7.2, §7.5; the bits of CHANGE-REQUEST stand in its last byte.
const CHANGE_REQUEST: u16 = 0x0003;
const CHANGE_IP: u8 = 0x04;
const CHANGE_PORT: u8 = 0x02;
const RESPONSE_PORT: u16 = 0x0027;

/// RFC 8489 §14: what a request may carry besides, and what is done with it: nothing.
/// USERNAME, MESSAGE-INTEGRITY, REALM, NONCE; MESSAGE-INTEGRITY-SHA256 and its kin; and
/// ICE's PRIORITY and USE-CANDIDATE (RFC 8445 §16.1).
const IGNORED: [u16; 9] = [0x0006, 0x0008, 0x0014, 0x0015, 0x001c, 0x001d, 0x001e, 0x0024, 0x0025];

const FINGERPRINT: u16 = 0x8028;

/// Types up to here have to be understood (RFC 8489 §14).
const LAST_REQUIRED: u16 = 0x7fff;

/// Room for the longest answer: the header, three addresses, FINGERPRINT.
const MAX_ANSWER_LEN: usize = 20 + 3 * 24 + 8;

/// An error names at most so many types that were not understood: the answer stays
/// shorter than what it answers.
const MAX_UNKNOWN: usize = 4;

/// Two addresses of one family and two ports, on all four of which this machine listens
/// for datagrams: what RFC 5780 needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alternates {
    /// The two addresses.
    pub ips: [IpAddr; 2],
    /// The two ports.
    pub ports: [u16; 2],
}

impl Alternates {
    /// The other address and the other port, as seen from one of the four.
    fn other(&self, local: SocketAddr) -> Option<SocketAddr> {
        let swap_ip = self.ips.iter().position(|ip| *ip == local.ip())?;
        let swap_port = self.ports.iter().position(|port| *port == local.port())?;
        Some(SocketAddr::new(self.ips[1 - swap_ip], self.ports[1 - swap_port]))
    }
}

/// What a request asks for.
#[derive(Debug, Default)]
struct Asked {
    change_ip: bool,
    change_port: bool,
    response_port: Option<u16>,
    fingerprint: bool,
    not_understood: Vec<u16>,
}

/// Answers a Binding request; `None` for what is none.
pub(super) fn answer(
    client: ClientAddr,
    bytes: &[u8],
    alternates: &[Alternates],
) -> Option<Transmit> {
    let (_, _, id) = message::peek(bytes)?;
    let asked = read(bytes)?;
    let mut alternates = alternates.iter();
    let other = match client.transport {
        ClientTransport::Udp => alternates.find_map(|pair| pair.other(client.local)),
        // Streams have no other end to answer from.
        ClientTransport::Tcp | ClientTransport::Tls => None,
    };
    let mut to = client;
    let mut not_understood = asked.not_understood;
    // RFC 5780 §6.1: a server without a second address does not know this.
    if (asked.change_ip || asked.change_port) && other.is_none() {
        not_understood.push(CHANGE_REQUEST);
    }
    if asked.response_port.is_some() && client.transport != ClientTransport::Udp {
        not_understood.push(RESPONSE_PORT);
    }
    if !not_understood.is_empty() {
        return refuse(to, id, &not_understood, asked.fingerprint);
    }
    let mut answer = StunMessageBuilder::new(BINDING, MessageClass::SuccessResponse)
        .with_transaction_id(TransactionId::from(id))
        .with_attribute(XorMappedAddress::from(client.remote));
    if let Some(other) = other {
        if asked.change_ip {
            to.local.set_ip(other.ip());
        }
        if asked.change_port {
            to.local.set_port(other.port());
        }
        answer = answer
            .with_attribute(ResponseOrigin::from(to.local))
            .with_attribute(OtherAddress::from(other));
    }
    if let Some(port) = asked.response_port {
        to.remote.set_port(port);
    }
    if asked.fingerprint {
        answer = answer.with_attribute(Fingerprint::default());
    }
    encode(to, answer)
}

fn refuse(
    to: ClientAddr,
    id: message::TransactionId,
    not_understood: &[u16],
    fingerprint: bool,
) -> Option<Transmit> {
    let code = stun_rs::ErrorCode::new(420, "Unknown Attribute").ok()?;
    let mut unknown = UnknownAttributes::default();
    not_understood.iter().take(MAX_UNKNOWN).for_each(|kind| unknown.add(*kind));
    let mut answer = StunMessageBuilder::new(BINDING, MessageClass::ErrorResponse)
        .with_transaction_id(TransactionId::from(id))
        .with_attribute(ErrorCode::new(code))
        .with_attribute(unknown);
    if fingerprint {
        answer = answer.with_attribute(Fingerprint::default());
    }
    encode(to, answer)
}

fn encode(client: ClientAddr, answer: StunMessageBuilder) -> Option<Transmit> {
    let mut payload = vec![0; MAX_ANSWER_LEN];
    let length = MessageEncoder::default().encode(&mut payload, &answer.build()).ok()?;
    payload.truncate(length);
    Some(Transmit { client, payload })
}

/// Reads the attributes of a request; `None` where they do not add up.
fn read(bytes: &[u8]) -> Option<Asked> {
    let mut asked = Asked::default();
    let mut rest = &bytes[message::HEADER_LEN..];
    while !rest.is_empty() {
        let (header, after) = rest.split_first_chunk::<4>()?;
        let kind = u16::from_be_bytes([header[0], header[1]]);
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let value = after.get(..len)?;
        match kind {
            CHANGE_REQUEST => {
                let flags = *value.get(3)?;
                asked.change_ip = flags & CHANGE_IP != 0;
                asked.change_port = flags & CHANGE_PORT != 0;
            }
            RESPONSE_PORT => {
                let port = value.first_chunk::<2>()?;
                asked.response_port = Some(u16::from_be_bytes(*port)).filter(|port| *port != 0);
            }
            FINGERPRINT => asked.fingerprint = true,
            _ if kind <= LAST_REQUIRED && !IGNORED.contains(&kind) => {
                asked.not_understood.push(kind);
            }
            _ => {}
        }
        rest = after.get(len.next_multiple_of(4)..)?;
    }
    Some(asked)
}

#[cfg(test)]
mod tests {
    use stun_rs::{
        MessageDecoder, StunMessage,
        attributes::discovery::{ChangeRequest, ChangeRequestFlags, Padding, ResponsePort},
    };

    use super::*;

    const ID: [u8; 12] = [3; 12];

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn client(transport: ClientTransport) -> ClientAddr {
        ClientAddr { transport, local: addr("198.18.1.2:3478"), remote: addr("192.0.2.7:777") }
    }

    fn pair() -> [Alternates; 1] {
        let ip = |text: &str| text.parse().expect("an address");
        [Alternates { ips: [ip("198.18.1.2"), ip("198.18.1.3")], ports: [3478, 3479] }]
    }

    fn request(build: impl FnOnce(StunMessageBuilder) -> StunMessageBuilder) -> Vec<u8> {
        let message = build(
            StunMessageBuilder::new(BINDING, MessageClass::Request)
                .with_transaction_id(TransactionId::from(ID)),
        );
        let mut bytes = vec![0; 2000];
        let len = MessageEncoder::default().encode(&mut bytes, &message.build()).expect("it fits");
        bytes.truncate(len);
        bytes
    }

    fn decode(transmit: &Transmit) -> StunMessage {
        MessageDecoder::default().decode(&transmit.payload).expect("a message").0
    }

    #[test]
    fn a_client_is_told_where_it_comes_from_and_little_else() {
        let plain = request(|message| message);
        for (alternates, len) in [(&[][..], 32), (&pair()[..], 56)] {
            let sent = answer(client(ClientTransport::Udp), &plain, alternates).expect("answered");
            assert_eq!(sent.client, client(ClientTransport::Udp));
            assert_eq!(sent.payload.len(), len);
            let message = decode(&sent);
            let mapped = message.get::<XorMappedAddress>().expect("there");
            assert_eq!(*mapped.expect_xor_mapped_address().socket_address(), addr("192.0.2.7:777"));
        }
        let sent = answer(client(ClientTransport::Tcp), &plain, &pair()).expect("answered");
        assert_eq!(sent.payload.len(), 32, "a stream has no second address");
    }

    #[test]
    fn answers_come_from_where_they_are_asked_to_come_from() {
        for (flags, from) in [
            (ChangeRequestFlags::ChangePort.into(), "198.18.1.2:3479"),
            (ChangeRequestFlags::ChangeIp.into(), "198.18.1.3:3478"),
            (ChangeRequestFlags::ChangeIp | ChangeRequestFlags::ChangePort, "198.18.1.3:3479"),
        ] {
            let asked = request(|message| message.with_attribute(ChangeRequest::new(Some(flags))));
            let sent = answer(client(ClientTransport::Udp), &asked, &pair()).expect("answered");
            assert_eq!(sent.client.local, addr(from));
            let message = decode(&sent);
            let origin = message.get::<ResponseOrigin>().expect("there");
            assert_eq!(*origin.expect_response_origin().socket_address(), addr(from));
            let other = message.get::<OtherAddress>().expect("there");
            assert_eq!(*other.expect_other_address().socket_address(), addr("198.18.1.3:3479"));
        }
    }

    #[test]
    fn an_answer_goes_to_another_port_but_never_to_another_address() {
        let asked = request(|message| message.with_attribute(ResponsePort::from(99)));
        let sent = answer(client(ClientTransport::Udp), &asked, &[]).expect("answered");
        assert_eq!(sent.client.remote, addr("192.0.2.7:99"));
        let mapped = decode(&sent);
        let mapped = mapped.get::<XorMappedAddress>().expect("there");
        let mapped = *mapped.expect_xor_mapped_address().socket_address();
        assert_eq!(mapped, addr("192.0.2.7:777"), "it still tells where the request came from");
    }

    #[test]
    fn what_is_not_served_is_named_in_a_short_refusal() {
        let padding = Padding::new("x".repeat(1200)).expect("plain text");
        let (udp, tcp) = (ClientTransport::Udp, ClientTransport::Tcp);
        for (transport, asked, alternates, kind) in [
            (udp, request(|m| m.with_attribute(padding)), &pair()[..], 0x0026),
            (
                udp,
                request(|m| {
                    let flags = Some(ChangeRequestFlags::ChangePort.into());
                    m.with_attribute(ChangeRequest::new(flags))
                }),
                &[][..],
                CHANGE_REQUEST,
            ),
            (tcp, request(|m| m.with_attribute(ResponsePort::from(99))), &[][..], RESPONSE_PORT),
        ] {
            let sent = answer(client(transport), &asked, alternates).expect("answered");
            assert!(sent.payload.len() <= 64, "{}", sent.payload.len());
            assert_eq!(sent.client, client(transport));
            let message = decode(&sent);
            let code = message.get::<ErrorCode>().expect("there");
            assert_eq!(code.expect_error_code().error_code().error_code(), 420);
            let unknown = message.get::<UnknownAttributes>().expect("there");
            assert_eq!(unknown.expect_unknown_attributes().attributes(), [kind]);
        }
    }

    #[test]
    fn cut_attributes_are_no_request() {
        let mut bytes = request(|message| message.with_attribute(ResponsePort::from(99)));
        let len = bytes.len();
        bytes[len - 6] = 0x40;
        assert!(answer(client(ClientTransport::Udp), &bytes, &pair()).is_none());
    }
}
