//! The check: an authenticated STUN Binding request and its answer, byte for byte.
//!
//! # Keys
//!
//! Two nodes share the X25519 secret of their static (WireGuard) keys. HKDF-SHA256
//! (RFC 5869) with the salt `zonemesh check v1` and the info `low ‖ high` (the two
//! public keys, the lower one first, compared as bytes) makes 88 bytes of it:
//!
//! | Bytes | What |
//! |---|---|
//! | 0–11 | user name of what the lower key's node sends |
//! | 12–43 | integrity key of what the lower key's node sends |
//! | 44–55 | user name of what the higher key's node sends |
//! | 56–87 | integrity key of what the higher key's node sends |
//!
//! User name and key travel and work as Base64url text (RFC 4648 §5, 16 and 43
//! characters), so that each direction is a plain short-term credential of RFC 8489
//! §9.1. To somebody who looks on, a user name is random text that stays the same
//! for a direction between two nodes; it tells neither of their keys.
//!
//! # Messages
//!
//! All are of the STUN method Binding; numbers are big-endian.
//!
//! | Attribute | Type | Length | Request | Answer |
//! |---|---|---|---|---|
//! | USERNAME, always first | 0x0006 | 16 | yes | yes |
//! | ICE-CONTROLLING (lower key) or ICE-CONTROLLED | 0x802A, 0x8029 | 8 | yes | yes |
//! | PRIORITY | 0x0024 | 4 | yes | |
//! | USE-CANDIDATE | 0x0025 | 0 | to nominate | |
//! | PADDING, characters `0` | 0x0026 | from 12 | yes | |
//! | XOR-MAPPED-ADDRESS | 0x0020 | 8, 20 | | yes |
//! | RECEIPT, see [`Receipt`] | 0xC05A | 12 | yes | yes |
//! | PLAN, see [`Plan`] | 0xC05B | 12 | over a relay, while there is no direct path | where the request has it |
//! | MESSAGE-INTEGRITY-SHA256, last but one | 0x001C | 32 | yes | yes |
//! | FINGERPRINT, last | 0x8028 | 4 | yes | yes |
//!
//! A request has 136 bytes (140 with USE-CANDIDATE), an answer 124 (IPv4) or 136
//! (IPv6), each 16 more with PLAN: the padding makes sure that no answer is longer than what it answers. A
//! request that finds out what passes whole is padded to that size.
//!
//! PRIORITY is that of the address that the receiver sees (RFC 8445 §7.1.1), with type
//! preference 0 where the request leaves from a relay: so a receiver that does not
//! know the address yet knows it for a relay's.
//!
//! RECEIPT and PLAN are of this protocol alone, from the range of attributes that whoever does
//! not know them passes over (RFC 8489 §14, expert review); nobody else sees it, for
//! all that does not verify is dropped unread.
//!
//! Where this differs from RFC 8489 and RFC 8445, and why:
//!
//! - An answer has the user name and the key of *its own* direction. So the peer of
//!   an answer is found by a look at its user name, and no message that is thrown
//!   back at its sender verifies.
//! - The roles are fixed, the lower key controls: there is no conflict to break. The
//!   64 bits of the tie-breaker carry the sender's clock instead, in milliseconds.
//!   The receiver takes each request once, within 30 s of what the sender's clock
//!   shows now, as the sender's answers tell it. An older or newer one gets no answer,
//!   but (once a second at most) a check to where it came from, whose answer tells the
//!   clock anew. The clocks of two nodes need not agree.
//! - MESSAGE-INTEGRITY-SHA256 is required, whole, and verified before anything else
//!   of a message is looked at. There are no error responses: what does not verify
//!   is dropped without an answer.

mod plan;
mod receipt;

use std::{fmt, net::SocketAddr};

use crc::{CRC_32_ISO_HDLC, Crc};
use data_encoding::BASE64URL_NOPAD;
use hkdf::{
    Hkdf,
    hmac::{Hmac, KeyInit, Mac},
};
use sha2::Sha256;
use stun_rs::{
    HMACKey, MessageClass, MessageDecoder, MessageEncoder, StunMessage, StunMessageBuilder,
    TransactionId,
    attributes::{
        discovery::Padding,
        ice::{IceControlled, IceControlling, Priority, UseCandidate},
        stun::{Fingerprint, UserName, XorMappedAddress},
        turn::Data,
    },
    methods::BINDING,
};
use x25519_dalek::{PublicKey, StaticSecret};

pub use self::{
    plan::{Plan, Stage, Window},
    receipt::Receipt,
};
use crate::{
    candidate::{CandidateKind, canonical},
    courier::Note,
};

/// What no other use of the same shared secret says.
const SALT: &[u8] = b"zonemesh check v1";

/// Bytes of a user name before it becomes text.
const TAG_LEN: usize = 12;

/// Bytes of an integrity key before it becomes text: the hash's length (RFC 2104 §3).
const KEY_LEN: usize = 32;

/// Bytes of the STUN header (RFC 8489 §5).
const HEADER_LEN: usize = 20;

/// Bytes of USERNAME with its header, the first attribute.
const USERNAME_LEN: usize = 4 + Username::LEN;

/// Bytes of MESSAGE-INTEGRITY-SHA256 and FINGERPRINT with their headers, the last two.
const INTEGRITY_LEN: usize = 4 + 32;
const FINGERPRINT_LEN: usize = 4 + 4;

/// The longest message that is made or looked at: one that fills an Ethernet frame.
pub(crate) const MAX_LEN: usize = 1500;

/// Makes a request as long as the longest answer to it.
const PADDING_LEN: usize = 12;

/// What FINGERPRINT's checksum is combined with (RFC 8489 §14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// The type of a Binding indication (RFC 8489 §5), which carries a note.
const NOTE: [u8; 2] = [0x00, 0x11];

/// The longest note: what every IPv6 link carries whole, less IPv6 and UDP.
const MAX_NOTE: usize = 1232;

/// The magic cookie (RFC 8489 §5).
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// What names a direction between two nodes on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Username([u8; Self::LEN]);

impl Username {
    const LEN: usize = 16;

    /// Reads the user name of a datagram that has the form of a check or of an answer
    /// to one, without any cryptography: to find the agent that it is for. Nothing of
    /// it is to be believed before that agent has verified it.
    pub fn peek(datagram: &[u8]) -> Option<Self> {
        let (header, attributes) = datagram.split_at_checked(HEADER_LEN)?;
        let binding =
            matches!(header[..2], [0x00, 0x01] | [0x01, 0x01]) || header.starts_with(&NOTE);
        let name = attributes.get(..USERNAME_LEN)?.strip_prefix(&[0x00, 0x06, 0x00, 0x10])?;
        if !binding || header[4..8] != COOKIE {
            return None;
        }
        name.try_into().ok().map(Self)
    }

    /// Whether this datagram, whose user name was found, is a note: for the courier and
    /// not for the agent.
    pub fn is_of_note(datagram: &[u8]) -> bool {
        datagram.starts_with(&NOTE)
    }

    /// The same of a request alone: what nobody asked for is no knock.
    pub fn peek_request(datagram: &[u8]) -> Option<Self> {
        Self::peek(datagram).filter(|_| datagram.starts_with(&[0x00, 0x01]))
    }

    fn as_str(&self) -> &str {
        // A peeked one may be anything; those that are sent are Base64.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Username({})", self.0.escape_ascii())
    }
}

/// The two nodes' keys do not make a secret that only they share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a weak public key, or the node's own: it makes no shared secret")]
pub struct WeakKey;

/// What two nodes need to make and verify each other's checks.
pub struct CheckKeys {
    outbound: Direction,
    inbound: Direction,
    controlling: bool,
}

/// One direction's credential.
struct Direction {
    username: Username,
    key: HMACKey,
}

impl CheckKeys {
    /// Derives the keys from the nodes' static X25519 (WireGuard) keys.
    ///
    /// # Errors
    /// [`WeakKey`] where the shared secret is all zero (RFC 7748 §6.1) or the peer's
    /// key is the node's own.
    pub fn new(
        own_private: &[u8; 32],
        own_public: &[u8; 32],
        peer_public: &[u8; 32],
    ) -> Result<Self, WeakKey> {
        let secret = StaticSecret::from(*own_private);
        let shared = secret.diffie_hellman(&PublicKey::from(*peer_public));
        if !shared.was_contributory() || own_public == peer_public {
            return Err(WeakKey);
        }
        let controlling = own_public < peer_public;
        let (low, high) =
            if controlling { (own_public, peer_public) } else { (peer_public, own_public) };
        let mut okm = [0; 2 * (TAG_LEN + KEY_LEN)];
        Hkdf::<Sha256>::new(Some(SALT), shared.as_bytes())
            .expand(&[low.as_slice(), high].concat(), &mut okm)
            .expect("88 bytes are fewer than 255 blocks of 32 (RFC 5869 §2.3)");
        let (from_low, from_high) = okm.split_at(TAG_LEN + KEY_LEN);
        let (from_low, from_high) = (Direction::new(from_low), Direction::new(from_high));
        let (outbound, inbound) =
            if controlling { (from_low, from_high) } else { (from_high, from_low) };
        Ok(Self { outbound, inbound, controlling })
    }

    /// The user name of what the peer sends to this node: requests and answers alike.
    pub fn inbound_username(&self) -> Username {
        self.inbound.username
    }

    /// Whether this node nominates (RFC 8445 §6.1.1): the one with the lower key does.
    pub fn controlling(&self) -> bool {
        self.controlling
    }

    /// Makes the datagram of a check.
    pub fn seal(&self, check: &Check) -> Vec<u8> {
        self.seal_padded(check, 0)
    }

    /// Makes the datagram of a check, and a request one of `length` bytes: a multiple of
    /// 4 of at most 1500. Where that is too short for what it says, it is as long as that.
    pub fn seal_padded(&self, check: &Check, length: usize) -> Vec<u8> {
        let padding = match check {
            Check::Request(request) => {
                let bare = request_len(request) - PADDING_LEN;
                length.min(MAX_LEN).saturating_sub(bare).max(PADDING_LEN) / 4 * 4
            }
            Check::Answer(_) => 0,
        };
        let Direction { username, key } = &self.outbound;
        let class = match check {
            Check::Request(_) => MessageClass::Request,
            Check::Answer(_) => MessageClass::SuccessResponse,
        };
        let mut message = StunMessageBuilder::new(BINDING, class)
            .with_transaction_id(TransactionId::from(check.id()))
            .with_attribute(UserName::new(username.as_str()).expect("Base64url is plain ASCII"));
        message = if self.controlling {
            message.with_attribute(IceControlling::new(check.clock_ms()))
        } else {
            message.with_attribute(IceControlled::new(check.clock_ms()))
        };
        match check {
            Check::Request(request) => {
                message = message.with_attribute(Priority::new(request.priority));
                if request.nominate {
                    message = message.with_attribute(UseCandidate::default());
                }
                let padding = Padding::new("0".repeat(padding)).expect("digits are plain ASCII");
                message = message.with_attribute(padding);
            }
            Check::Answer(answer) => {
                let mapped = XorMappedAddress::from(answer.mapped);
                message = message.with_attribute(mapped);
            }
        }
        let mut datagram = vec![0; MAX_LEN];
        let len = MessageEncoder::default()
            .encode(&mut datagram, &message.build())
            .expect("the attributes fit the buffer");
        datagram.truncate(len);
        check.receipt().append_to(&mut datagram);
        if let Some(plan) = check.plan() {
            plan.append_to(&mut datagram);
        }
        close(&mut datagram, key);
        datagram
    }

    /// Verifies a datagram and reads what it says.
    ///
    /// # Errors
    /// [`OpenError`] says why it is none of the peer's.
    pub fn open(&self, datagram: &[u8]) -> Result<Check, OpenError> {
        let username = Username::peek(datagram).ok_or(OpenError::Malformed)?;
        if username != self.inbound.username {
            return Err(OpenError::Foreign);
        }
        self.inbound.verify(datagram, MAX_LEN)?;
        let (message, _) =
            MessageDecoder::default().decode(datagram).map_err(|_| OpenError::Malformed)?;
        check_fingerprint(&message, datagram)?;
        // The peer's role is the other one.
        let clock_ms = if self.controlling {
            message.get::<IceControlled>().map(|clock| *clock.expect_ice_controlled().as_ref())
        } else {
            message.get::<IceControlling>().map(|clock| *clock.expect_ice_controlling().as_ref())
        };
        let clock_ms = clock_ms.ok_or(OpenError::Malformed)?;
        let id = *message.transaction_id().as_bytes();
        let (receipt, plan) = (Receipt::read(datagram), Plan::read(datagram));
        match message.class() {
            MessageClass::Request => {
                let priority = message.get::<Priority>().ok_or(OpenError::Malformed)?;
                Ok(Check::Request(Request {
                    id,
                    clock_ms,
                    priority: *priority.expect_priority().as_ref(),
                    nominate: message.get::<UseCandidate>().is_some(),
                    receipt,
                    plan,
                }))
            }
            MessageClass::SuccessResponse => {
                let mapped = message.get::<XorMappedAddress>().ok_or(OpenError::Malformed)?;
                let mapped = *mapped.expect_xor_mapped_address().socket_address();
                Ok(Check::Answer(Answer { id, clock_ms, mapped: canonical(mapped), receipt, plan }))
            }
            MessageClass::Indication | MessageClass::ErrorResponse => Err(OpenError::Malformed),
        }
    }
}

impl CheckKeys {
    /// Makes the datagram of a note.
    pub(crate) fn seal_note(&self, note: &Note) -> Vec<u8> {
        let Direction { username, key } = &self.outbound;
        let mut message = StunMessageBuilder::new(BINDING, MessageClass::Indication)
            .with_transaction_id(TransactionId::from(&note.id))
            .with_attribute(UserName::new(username.as_str()).expect("Base64url is plain ASCII"));
        if let Some(content) = &note.content {
            message = message.with_attribute(Data::new(content.as_slice()));
        }
        let mut datagram = vec![0; MAX_NOTE];
        let len = MessageEncoder::default()
            .encode(&mut datagram, &message.build())
            .expect("the content is bounded");
        datagram.truncate(len);
        close(&mut datagram, key);
        datagram
    }

    /// Verifies a note and reads it.
    ///
    /// # Errors
    /// [`OpenError`] says why it is none of the peer's.
    pub(crate) fn open_note(&self, datagram: &[u8]) -> Result<Note, OpenError> {
        let username = Username::peek(datagram).ok_or(OpenError::Malformed)?;
        if username != self.inbound.username {
            return Err(OpenError::Foreign);
        }
        self.inbound.verify(datagram, MAX_NOTE)?;
        let (message, _) =
            MessageDecoder::default().decode(datagram).map_err(|_| OpenError::Malformed)?;
        check_fingerprint(&message, datagram)?;
        if message.class() != MessageClass::Indication {
            return Err(OpenError::Malformed);
        }
        let content = message.get::<Data>().map(|data| data.expect_data().as_bytes().to_vec());
        Ok(Note { id: *message.transaction_id().as_bytes(), content })
    }
}

#[cfg(fuzzing)]
impl CheckKeys {
    /// Ends a message of whatever content as this node ends its own, so that a fuzz target
    /// gets past the integrity that no fuzzer guesses.
    pub fn close(&self, message: &mut Vec<u8>) {
        close(message, &self.outbound.key);
    }
}

impl fmt::Debug for CheckKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckKeys")
            .field("inbound", &self.inbound.username)
            .field("controlling", &self.controlling)
            .finish_non_exhaustive()
    }
}

impl Direction {
    fn new(okm: &[u8]) -> Self {
        let (tag, key) = okm.split_at(TAG_LEN);
        let mut username = [0; Username::LEN];
        BASE64URL_NOPAD.encode_mut(tag, &mut username);
        let key =
            HMACKey::new_short_term(BASE64URL_NOPAD.encode(key)).expect("Base64url is plain ASCII");
        Self { username: Username(username), key }
    }

    /// Verifies length, form of the tail and MESSAGE-INTEGRITY-SHA256 (RFC 8489
    /// §14.6). By hand, because stun-rs neither requires the attribute nor compares
    /// it in constant time.
    fn verify(&self, datagram: &[u8], max_len: usize) -> Result<(), OpenError> {
        let least = HEADER_LEN + USERNAME_LEN + INTEGRITY_LEN + FINGERPRINT_LEN;
        if !(least..=max_len).contains(&datagram.len()) || !datagram.len().is_multiple_of(4) {
            return Err(OpenError::Malformed);
        }
        let length = usize::from(u16::from_be_bytes([datagram[2], datagram[3]]));
        let (body, fingerprint) = datagram.split_at(datagram.len() - FINGERPRINT_LEN);
        let (text, integrity) = body.split_at(body.len() - INTEGRITY_LEN);
        let (Some(integrity), true) = (
            integrity.strip_prefix(&[0x00, 0x1c, 0x00, 0x20]),
            length == datagram.len() - HEADER_LEN
                && fingerprint.starts_with(&[0x80, 0x28, 0x00, 0x04]),
        ) else {
            return Err(OpenError::Malformed);
        };
        // The length that the integrity is over ends with the attribute itself.
        let length = u16::try_from(length - FINGERPRINT_LEN).map_err(|_| OpenError::Malformed)?;
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.as_bytes())
            .expect("HMAC takes a key of any length");
        mac.update(&text[..2]);
        mac.update(&length.to_be_bytes());
        mac.update(&text[4..]);
        mac.verify_slice(integrity).map_err(|_| OpenError::Forged)
    }
}

/// The value of the attribute that begins so, of a message that has verified.
fn attribute(message: &[u8], head: [u8; 4]) -> Option<&[u8]> {
    let end = message.len().checked_sub(INTEGRITY_LEN + FINGERPRINT_LEN)?;
    let mut rest = message.get(HEADER_LEN..end)?;
    while let Some((found, body)) = rest.split_at_checked(4) {
        let length = usize::from(u16::from_be_bytes([found[2], found[3]]));
        let value = body.get(..length)?;
        if found == head {
            return Some(value);
        }
        rest = body.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// How long a request is that is not padded further.
fn request_len(request: &Request) -> usize {
    let nomination = if request.nominate { 4 } else { 0 };
    let plan = if request.plan.is_some() { Plan::LEN } else { 0 };
    let known = USERNAME_LEN + (4 + 8) + (4 + 4) + nomination + (4 + PADDING_LEN);
    let attributes = known + Receipt::LEN + plan;
    HEADER_LEN + attributes + INTEGRITY_LEN + FINGERPRINT_LEN
}

/// Ends a message with MESSAGE-INTEGRITY-SHA256 and FINGERPRINT (RFC 8489 §14.6, §14.7).
/// By hand, because stun-rs takes no attribute that it does not know.
fn close(message: &mut Vec<u8>, key: &HMACKey) {
    set_length(message, INTEGRITY_LEN);
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(message);
    message.extend([0x00, 0x1c, 0x00, 0x20]);
    message.extend(mac.finalize().into_bytes());
    set_length(message, FINGERPRINT_LEN);
    let sum = Crc::<u32>::new(&CRC_32_ISO_HDLC).checksum(message) ^ FINGERPRINT_XOR;
    message.extend([0x80, 0x28, 0x00, 0x04]);
    message.extend(sum.to_be_bytes());
}

/// Writes the length of a message that gets so many bytes more.
fn set_length(message: &mut [u8], more: usize) {
    let length = u16::try_from(message.len() - HEADER_LEN + more).expect("messages are short");
    message[2..4].copy_from_slice(&length.to_be_bytes());
}

fn check_fingerprint(message: &StunMessage, datagram: &[u8]) -> Result<(), OpenError> {
    let fingerprint = message.get::<Fingerprint>().ok_or(OpenError::Malformed)?;
    let text = stun_rs::get_input_text::<Fingerprint>(datagram).ok_or(OpenError::Malformed)?;
    if !fingerprint.expect_fingerprint().validate(&text) {
        return Err(OpenError::Malformed);
    }
    Ok(())
}

/// What a verified datagram says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// A check: is this pair a path?
    Request(Request),
    /// The answer to one: it is.
    Answer(Answer),
}

impl Check {
    fn id(&self) -> [u8; 12] {
        match self {
            Self::Request(request) => request.id,
            Self::Answer(answer) => answer.id,
        }
    }

    fn clock_ms(&self) -> u64 {
        match self {
            Self::Request(request) => request.clock_ms,
            Self::Answer(answer) => answer.clock_ms,
        }
    }

    fn receipt(&self) -> Receipt {
        match self {
            Self::Request(request) => request.receipt,
            Self::Answer(answer) => answer.receipt,
        }
    }

    fn plan(&self) -> Option<Plan> {
        match self {
            Self::Request(request) => request.plan,
            Self::Answer(answer) => answer.plan,
        }
    }
}

/// A Binding request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The transaction, random.
    pub id: [u8; 12],
    /// The sender's clock.
    pub clock_ms: u64,
    /// The priority of a peer-reflexive candidate that is learned from the request
    /// (RFC 8445 §7.1.1).
    pub priority: u32,
    /// The sender controls and wants this pair used.
    pub nominate: bool,
    /// What its sender tells of the way.
    pub receipt: Receipt,
    /// What its sender plans, to pass hard NATs.
    pub plan: Option<Plan>,
}

impl Request {
    /// What kind of candidate its sender has there, where nobody has named the address:
    /// the priority's first byte tells the address of a relay from any other.
    pub(crate) fn learned_kind(&self) -> CandidateKind {
        if self.priority >> 24 == 0 { CandidateKind::Relayed } else { CandidateKind::PeerReflexive }
    }
}

/// A Binding success response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The transaction of the request.
    pub id: [u8; 12],
    /// The sender's clock.
    pub clock_ms: u64,
    /// Where the request came from, as its receiver saw it.
    pub mapped: SocketAddr,
    /// What its sender tells of the way.
    pub receipt: Receipt,
    /// What its sender plans, to pass hard NATs.
    pub plan: Option<Plan>,
}

/// Why a datagram is no check of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum OpenError {
    /// Not of the form.
    #[error("not a check's form")]
    Malformed,
    /// Its user name is somebody else's.
    #[error("another peer's user name")]
    Foreign,
    /// The integrity does not verify.
    #[error("the integrity does not verify")]
    Forged,
}

#[cfg(test)]
mod tests;
