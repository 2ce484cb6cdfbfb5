//! The messages of TURN (RFC 8656) and of the STUN that it is built on (RFC 8489):
//! all that client and server know of their bytes.
//!
//! A [`Message`] is the header and those attributes that matter here, each as an
//! optional field. [`Message::parse`] reads one, [`Message::encode`] writes one and
//! signs it with a [`Key`], [`verify`] says whether one was signed with a key.
//! Parsing believes nothing: a message without a valid signature parses as well.
//!
//! stun-rs does the attributes. The signature is verified here, since stun-rs neither
//! requires MESSAGE-INTEGRITY nor compares it in constant time.

#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use hkdf::hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use stun_rs::{
    AddressFamily, Algorithm, AlgorithmId, HMACKey, MessageClass, MessageDecoder, MessageEncoder,
    MessageMethod, StunAttribute, StunMessageBuilder,
    attributes::{
        stun::{
            AlternateServer, ErrorCode, Fingerprint, MessageIntegrity, Nonce, Realm,
            UnknownAttributes, UserName, XorMappedAddress,
        },
        turn::{
            AdditionalAddressFamily, AddressErrorCode, ChannelNumber, Data, DontFragment, EvenPort,
            LifeTime, RequestedAddressFamily, RequestedTrasport, ReservationToken, XorPeerAddress,
            XorRelayedAddress,
        },
    },
    methods,
};

/// The 96 random bits by which an answer finds its request (RFC 8489 §5).
pub type TransactionId = [u8; 12];

/// Bytes of the header (RFC 8489 §5).
pub const HEADER_LEN: usize = 20;

/// The magic cookie at bytes 4 to 7 (RFC 8489 §5).
pub const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// The protocol number of UDP, the only one that can be allocated (RFC 8656 §18.7).
pub const UDP: u8 = 17;

/// MESSAGE-INTEGRITY: type, and bytes with its header (RFC 8489 §14.5).
const INTEGRITY: u16 = 0x0008;
const INTEGRITY_LEN: usize = 4 + 20;

/// Room for the header and for one of every attribute, without the texts' and data's own
/// bytes, but with their padding.
const FIXED_LEN: usize = 256;

/// Room for a text: at most 763 bytes (RFC 8489 §14), padded.
const TEXT_LEN: usize = 764;

/// Bytes of an IPv6 address attribute with its header.
const ADDRESS_LEN: usize = 24;

/// What a message is about (RFC 8656 §17).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Where do I come from?
    Binding,
    /// Give me a relayed address.
    Allocate,
    /// Keep my allocation, or end it.
    Refresh,
    /// Client to server: send this to a peer. An indication.
    Send,
    /// Server to client: this came from a peer. An indication.
    Data,
    /// Let this peer's datagrams in.
    CreatePermission,
    /// Give this peer a channel.
    ChannelBind,
}

impl Method {
    const ALL: [(Self, MessageMethod); 7] = [
        (Self::Binding, methods::BINDING),
        (Self::Allocate, methods::ALLOCATE),
        (Self::Refresh, methods::REFRESH),
        (Self::Send, methods::SEND),
        (Self::Data, methods::DATA),
        (Self::CreatePermission, methods::CREATE_PERMMISSION),
        (Self::ChannelBind, methods::CHANNEL_BIND),
    ];

    fn to_stun(self) -> MessageMethod {
        Self::ALL.into_iter().find(|(own, _)| *own == self).map_or(methods::BINDING, |(_, m)| m)
    }

    fn from_stun(method: MessageMethod) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, theirs)| *theirs == method).map(|(own, _)| own)
    }
}

/// What a message is for (RFC 8489 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Wants an answer.
    Request,
    /// Wants none.
    Indication,
    /// The answer: done.
    Success,
    /// The answer: refused.
    Error,
}

impl Class {
    fn to_stun(self) -> MessageClass {
        match self {
            Self::Request => MessageClass::Request,
            Self::Indication => MessageClass::Indication,
            Self::Success => MessageClass::SuccessResponse,
            Self::Error => MessageClass::ErrorResponse,
        }
    }

    fn from_stun(class: MessageClass) -> Self {
        match class {
            MessageClass::Request => Self::Request,
            MessageClass::Indication => Self::Indication,
            MessageClass::SuccessResponse => Self::Success,
            MessageClass::ErrorResponse => Self::Error,
        }
    }
}

/// An address family (RFC 8656 §18.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(addr: &SocketAddr) -> Self {
        Self::of_ip(addr.ip())
    }

    /// The family of an address without a port.
    pub fn of_ip(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn to_stun(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::IPv4,
            Self::V6 => AddressFamily::IPv6,
        }
    }

    fn from_stun(family: AddressFamily) -> Self {
        match family {
            AddressFamily::IPv4 => Self::V4,
            AddressFamily::IPv6 => Self::V6,
        }
    }
}

/// ERROR-CODE (RFC 8489 §14.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// 300 to 699.
    pub code: u16,
    /// For people; whatever the other side wrote.
    pub reason: String,
}

/// One message. Fields that are `None`, empty or false are not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is about.
    pub method: Method,
    /// What it is for.
    pub class: Class,
    /// Which transaction it belongs to.
    pub id: TransactionId,
    /// USERNAME
    pub username: Option<String>,
    /// REALM
    pub realm: Option<String>,
    /// NONCE
    pub nonce: Option<String>,
    /// ERROR-CODE
    pub failure: Option<Failure>,
    /// ADDRESS-ERROR-CODE: the family that could not be allocated beside the other, and
    /// why.
    pub address_failure: Option<(Family, Failure)>,
    /// UNKNOWN-ATTRIBUTES: which ones the other side did not understand.
    pub unknown: Vec<u16>,
    /// ALTERNATE-SERVER
    pub alternate_server: Option<SocketAddr>,
    /// XOR-MAPPED-ADDRESS
    pub mapped: Option<SocketAddr>,
    /// XOR-RELAYED-ADDRESS: one, or one of each family.
    pub relayed: Vec<SocketAddr>,
    /// XOR-PEER-ADDRESS: one, or several in a CreatePermission.
    pub peers: Vec<SocketAddr>,
    /// CHANNEL-NUMBER
    pub channel: Option<u16>,
    /// LIFETIME, in seconds.
    pub lifetime: Option<u32>,
    /// DATA
    pub data: Option<Vec<u8>>,
    /// REQUESTED-TRANSPORT: a protocol number; only [`UDP`] can be encoded.
    pub requested_transport: Option<u8>,
    /// REQUESTED-ADDRESS-FAMILY
    pub requested_family: Option<Family>,
    /// ADDITIONAL-ADDRESS-FAMILY
    pub additional_family: Option<Family>,
    /// EVEN-PORT, and whether the next port is to be kept free.
    pub even_port: Option<bool>,
    /// RESERVATION-TOKEN
    pub reservation_token: Option<[u8; 8]>,
    /// DONT-FRAGMENT
    pub dont_fragment: bool,
    /// FINGERPRINT
    pub fingerprint: bool,
    /// Attributes of a parsed message that have to be understood (RFC 8489 §14) and
    /// are not. Never encoded.
    pub not_understood: Vec<u16>,
}

/// The bytes are no message of these methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no STUN or TURN message")]
pub struct ParseError;

/// A field holds what no message can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a text or number that a STUN message cannot carry")]
pub struct EncodeError;

/// A message was not signed with the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IntegrityError {
    /// It has no MESSAGE-INTEGRITY.
    #[error("the message is not signed")]
    Missing,
    /// It was signed with another key, or changed.
    #[error("the message was signed with another key")]
    Wrong,
}

/// The key of a long-term credential (RFC 8489 §9.2.2): MD5(username:realm:password).
#[derive(Clone)]
pub struct Key(HMACKey);

impl Key {
    /// The key of these three.
    ///
    /// # Errors
    /// [`EncodeError`] where realm or password has characters that the profile
    /// OpaqueString (RFC 8265 §4.2) does not allow.
    pub fn new(username: &str, realm: &str, password: &str) -> Result<Self, EncodeError> {
        let algorithm = Algorithm::from(AlgorithmId::MD5);
        HMACKey::new_long_term(username, realm, password, algorithm)
            .map(Self)
            .map_err(|_| EncodeError)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// Method, class and transaction of what has a STUN message's header and length,
/// without a look at the attributes.
pub fn peek(bytes: &[u8]) -> Option<(Method, Class, TransactionId)> {
    let (header, attributes) = bytes.split_first_chunk::<HEADER_LEN>()?;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] & 0xc0 != 0
        || header[4..8] != COOKIE
        || length != attributes.len()
        || !length.is_multiple_of(4)
    {
        return None;
    }
    let kind = stun_rs::MessageType::from(u16::from_be_bytes([header[0], header[1]]));
    let method = Method::from_stun(kind.method())?;
    let id = header[8..20].try_into().ok()?;
    Some((method, Class::from_stun(kind.class()), id))
}

/// Whether the message has a MESSAGE-INTEGRITY, right or wrong.
pub fn is_signed(bytes: &[u8]) -> bool {
    integrity_at(bytes).is_some()
}

/// Whether the message is signed with the key: MESSAGE-INTEGRITY is there and right.
/// Attributes behind it are none of the message's (RFC 8489 §14.5), and
/// [`Message::parse`] leaves them out.
///
/// # Errors
/// [`IntegrityError`] says which of the two it is not.
pub fn verify(bytes: &[u8], key: &Key) -> Result<(), IntegrityError> {
    let at = integrity_at(bytes).ok_or(IntegrityError::Missing)?;
    let (text, integrity) = bytes.split_at(at);
    let integrity = integrity.get(4..INTEGRITY_LEN).ok_or(IntegrityError::Wrong)?;
    // The length that was signed ends with the attribute itself.
    let length = u16::try_from(at + INTEGRITY_LEN - HEADER_LEN);
    let length = length.map_err(|_| IntegrityError::Wrong)?;
    let mut mac =
        Hmac::<Sha1>::new_from_slice(key.0.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(&text[..2]);
    mac.update(&length.to_be_bytes());
    mac.update(&text[4..]);
    mac.verify_slice(integrity).map_err(|_| IntegrityError::Wrong)
}

/// Where the first MESSAGE-INTEGRITY starts.
fn integrity_at(bytes: &[u8]) -> Option<usize> {
    let mut at = HEADER_LEN;
    while let Some(&[a, b, c, d]) = bytes.get(at..at + 4) {
        let len = usize::from(u16::from_be_bytes([c, d]));
        if u16::from_be_bytes([a, b]) == INTEGRITY {
            return (len == INTEGRITY_LEN - 4).then_some(at);
        }
        at += 4 + len.next_multiple_of(4);
    }
    None
}

impl Message {
    /// A message without attributes.
    pub fn new(method: Method, class: Class, id: TransactionId) -> Self {
        Self {
            method,
            class,
            id,
            username: None,
            realm: None,
            nonce: None,
            failure: None,
            address_failure: None,
            unknown: Vec::new(),
            alternate_server: None,
            mapped: None,
            relayed: Vec::new(),
            peers: Vec::new(),
            channel: None,
            lifetime: None,
            data: None,
            requested_transport: None,
            requested_family: None,
            additional_family: None,
            even_port: None,
            reservation_token: None,
            dont_fragment: false,
            fingerprint: false,
            not_understood: Vec::new(),
        }
    }

    /// Reads one whole message. Of attributes that must not be repeated, the first
    /// counts (RFC 8489 §14).
    ///
    /// # Errors
    /// [`ParseError`] where the bytes are none, or an attribute's are not what its
    /// type says.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let (method, class, id) = peek(bytes).ok_or(ParseError)?;
        let (decoded, _) = MessageDecoder::default().decode(bytes).map_err(|_| ParseError)?;
        let mut message = Self::new(method, class, id);
        for attribute in decoded.attributes() {
            message.take(attribute);
        }
        Ok(message)
    }

    fn take(&mut self, attribute: &StunAttribute) {
        fn first<T>(field: &mut Option<T>, value: T) {
            field.get_or_insert(value);
        }
        match attribute {
            StunAttribute::UserName(name) => first(&mut self.username, name.as_str().to_owned()),
            StunAttribute::Realm(realm) => first(&mut self.realm, realm.as_str().to_owned()),
            StunAttribute::Nonce(nonce) => first(&mut self.nonce, nonce.as_str().to_owned()),
            StunAttribute::ErrorCode(error) => {
                let error = error.error_code();
                let failure =
                    Failure { code: error.error_code(), reason: error.reason().to_owned() };
                first(&mut self.failure, failure);
            }
            StunAttribute::AddressErrorCode(error) => {
                let (family, error) = (Family::from_stun(error.family()), error.error_code());
                let failure =
                    Failure { code: error.error_code(), reason: error.reason().to_owned() };
                first(&mut self.address_failure, (family, failure));
            }
            StunAttribute::UnknownAttributes(list) => {
                if self.unknown.is_empty() {
                    self.unknown.extend_from_slice(list.attributes());
                }
            }
            StunAttribute::AlternateServer(addr) => {
                first(&mut self.alternate_server, *addr.socket_address());
            }
            StunAttribute::XorMappedAddress(addr) => {
                first(&mut self.mapped, *addr.socket_address());
            }
            StunAttribute::XorRelayedAddress(addr) => self.relayed.push(*addr.socket_address()),
            StunAttribute::XorPeerAddress(addr) => self.peers.push(*addr.socket_address()),
            StunAttribute::ChannelNumber(channel) => first(&mut self.channel, channel.number()),
            StunAttribute::LifeTime(lifetime) => first(&mut self.lifetime, *lifetime.as_ref()),
            StunAttribute::Data(data) => first(&mut self.data, data.as_bytes().to_vec()),
            StunAttribute::RequestedTrasport(transport) => {
                first(&mut self.requested_transport, transport.protocol().as_u8());
            }
            StunAttribute::RequestedAddressFamily(family) => {
                first(&mut self.requested_family, Family::from_stun(family.family()));
            }
            StunAttribute::AdditionalAddressFamily(family) => {
                first(&mut self.additional_family, Family::from_stun(family.family()));
            }
            StunAttribute::EvenPort(even) => first(&mut self.even_port, even.reserve()),
            StunAttribute::ReservationToken(token) => {
                if let Ok(token) = token.token().try_into() {
                    first(&mut self.reservation_token, token);
                }
            }
            StunAttribute::DontFragment(_) => self.dont_fragment = true,
            StunAttribute::Fingerprint(_) => self.fingerprint = true,
            other => {
                let kind = other.attribute_type();
                if other.is_unknown() && kind.is_comprehension_required() {
                    self.not_understood.push(kind.as_u16());
                }
            }
        }
    }

    /// Writes the message, signed where there is a key.
    ///
    /// # Errors
    /// [`EncodeError`] where a text has characters that its attribute does not allow,
    /// or all together is longer than a message can be.
    pub fn encode(&self, key: Option<&Key>) -> Result<Vec<u8>, EncodeError> {
        let room = self.room();
        // stun-rs adds up 16 bits, the header's length among them.
        if room > usize::from(u16::MAX) {
            return Err(EncodeError);
        }
        let mut builder = StunMessageBuilder::new(self.method.to_stun(), self.class.to_stun())
            .with_transaction_id(self.id.into());
        macro_rules! attribute {
            ($value:expr) => {
                builder = builder.with_attribute($value)
            };
        }
        if let Some(failure) = &self.failure {
            let code = stun_rs::ErrorCode::new(failure.code, &failure.reason);
            attribute!(ErrorCode::new(code.map_err(|_| EncodeError)?));
        }
        if let Some((family, failure)) = &self.address_failure {
            let code = stun_rs::ErrorCode::new(failure.code, &failure.reason);
            attribute!(AddressErrorCode::new(family.to_stun(), code.map_err(|_| EncodeError)?));
        }
        if !self.unknown.is_empty() {
            let mut list = UnknownAttributes::default();
            self.unknown.iter().for_each(|kind| list.add(*kind));
            attribute!(list);
        }
        if let Some(addr) = self.alternate_server {
            attribute!(AlternateServer::from(addr));
        }
        if let Some(transport) = self.requested_transport {
            if transport != UDP {
                return Err(EncodeError);
            }
            attribute!(RequestedTrasport::default());
        }
        if let Some(family) = self.requested_family {
            attribute!(RequestedAddressFamily::new(family.to_stun()));
        }
        if let Some(family) = self.additional_family {
            attribute!(AdditionalAddressFamily::new(family.to_stun()));
        }
        if let Some(reserve) = self.even_port {
            attribute!(EvenPort::new(reserve));
        }
        if let Some(token) = self.reservation_token {
            attribute!(ReservationToken::from(token));
        }
        if self.dont_fragment {
            attribute!(DontFragment::default());
        }
        for addr in &self.relayed {
            attribute!(XorRelayedAddress::from(*addr));
        }
        if let Some(addr) = self.mapped {
            attribute!(XorMappedAddress::from(addr));
        }
        if let Some(channel) = self.channel {
            attribute!(ChannelNumber::new(channel));
        }
        for addr in &self.peers {
            attribute!(XorPeerAddress::from(*addr));
        }
        if let Some(lifetime) = self.lifetime {
            attribute!(LifeTime::from(lifetime));
        }
        if let Some(data) = &self.data {
            attribute!(Data::new(data));
        }
        if let Some(username) = &self.username {
            attribute!(UserName::new(username).map_err(|_| EncodeError)?);
        }
        if let Some(realm) = &self.realm {
            attribute!(Realm::new(realm).map_err(|_| EncodeError)?);
        }
        if let Some(nonce) = &self.nonce {
            attribute!(Nonce::new(nonce).map_err(|_| EncodeError)?);
        }
        if let Some(Key(key)) = key {
            attribute!(MessageIntegrity::new(key.clone()));
        }
        if self.fingerprint {
            attribute!(Fingerprint::default());
        }
        let mut bytes = vec![0; room];
        let length = MessageEncoder::default()
            .encode(&mut bytes, &builder.build())
            .map_err(|_| EncodeError)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    /// How long it is at most.
    fn room(&self) -> usize {
        let texts = [&self.username, &self.realm, &self.nonce];
        FIXED_LEN
            + TEXT_LEN * texts.into_iter().flatten().count()
            + ADDRESS_LEN * (self.peers.len() + self.relayed.len())
            + 2 * self.unknown.len()
            + self.data.as_ref().map_or(0, Vec::len)
            + self.failure.as_ref().map_or(0, |failure| failure.reason.len())
            + self.address_failure.as_ref().map_or(0, |(_, failure)| failure.reason.len())
    }
}
