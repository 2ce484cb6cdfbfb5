//! TSIG (RFC 8945) over whole messages as they travel.
//!
//! A request is signed as bytes; a [`Chain`] then verifies what comes back, from
//! one answer to the many messages of a transfer, each bound to the one before
//! (RFC 8945 §5.3). Of hickory's TSIG this uses nothing: it cannot skip the
//! unsigned messages between two signed ones, and overflows on a hostile time.

use std::fmt;

use data_encoding::BASE64;
use hickory_proto::rr::Name;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha224, Sha256, Sha384, Sha512};

use super::{error::TsigFault, message::TsigRecord};

/// How far two clocks may stand apart (RFC 8945 §10 recommends 300 s).
const FUDGE: u16 = 300;

/// How many messages in a row may be unsigned (RFC 8945 §5.3.1).
const MAX_UNSIGNED: u32 = 99;

const TYPE_TSIG: u16 = 250;
const CLASS_ANY: u16 = 255;

const BADSIG: u16 = 16;
const BADKEY: u16 = 17;
const BADTIME: u16 = 18;

/// A secret that this node shares with the zone server.
#[derive(Clone)]
pub struct TsigKey {
    name: Name,
    algorithm: Algorithm,
    secret: Vec<u8>,
}

impl TsigKey {
    /// A key by its name, its algorithm (`hmac-sha224`, `-sha256`, `-sha384` or
    /// `-sha512`) and its secret in Base64.
    ///
    /// # Errors
    /// [`TsigKeyError`] says which of the three is wrong.
    pub fn new(name: &str, algorithm: &str, secret: &str) -> Result<Self, TsigKeyError> {
        let mut name = Name::from_ascii(name).map_err(|_| TsigKeyError::Name)?.to_lowercase();
        name.set_fqdn(true);
        if name.is_root() {
            return Err(TsigKeyError::Name);
        }
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|known| known.name().eq_ignore_ascii_case(algorithm.trim_end_matches('.')))
            .ok_or(TsigKeyError::Algorithm)?;
        let secret = BASE64.decode(secret.trim().as_bytes()).map_err(|_| TsigKeyError::Secret)?;
        if secret.is_empty() {
            return Err(TsigKeyError::Secret);
        }
        Ok(Self { name, algorithm, secret })
    }

    /// The key's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Appends the signature to a request without one, and gives the chain that
    /// verifies the answers. `now` is seconds since 1970.
    pub(super) fn sign(&self, request: &mut Vec<u8>, now: u64) -> Chain {
        let mut record = TsigRecord {
            start: request.len(),
            name: self.name.clone(),
            algorithm: self.algorithm.to_name(),
            time: now,
            fudge: FUDGE,
            mac: Vec::new(),
            original_id: u16::from_be_bytes([request[0], request[1]]),
            // Neither an error nor other data in a request (RFC 8945 §4.2).
            error: 0,
            other: Vec::new(),
        };
        let mut hmac = self.hmac();
        hmac.update(request);
        hmac.update(&variables(&record));
        record.mac = hmac.finish();
        append(request, &record);
        Chain { hmac: self.after(&record.mac), key: self.clone(), first: true, unsigned: 0 }
    }

    fn hmac(&self) -> Hasher {
        self.algorithm.hasher(&self.secret)
    }

    /// A fresh hash that has taken in the MAC before it (RFC 8945 §5.3).
    fn after(&self, mac: &[u8]) -> Hasher {
        let mut hmac = self.hmac();
        hmac.update(&(mac.len() as u16).to_be_bytes());
        hmac.update(mac);
        hmac
    }
}

impl fmt::Debug for TsigKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TsigKey")
            .field("name", &self.name.to_ascii())
            .field("algorithm", &self.algorithm.name())
            .finish_non_exhaustive()
    }
}

/// Why a TSIG key cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TsigKeyError {
    /// The name is no domain name.
    #[error("the key's name is not a domain name")]
    Name,
    /// The algorithm is not one of those that are known.
    #[error("the algorithm is not hmac-sha224, hmac-sha256, hmac-sha384 or hmac-sha512")]
    Algorithm,
    /// The secret is not Base64, or empty.
    #[error("the secret is not Base64 of at least one byte")]
    Secret,
}

/// Verifies the answers to one signed request, in their order.
pub(super) struct Chain {
    key: TsigKey,
    hmac: Hasher,
    first: bool,
    unsigned: u32,
}

impl Chain {
    /// Takes in the next message as it arrived, with its TSIG record if it has one.
    pub(super) fn verify(
        &mut self,
        wire: &[u8],
        tsig: Option<&TsigRecord>,
        now: u64,
    ) -> Result<(), TsigFault> {
        let Some(tsig) = tsig else {
            // Only the messages between the first and the last may be unsigned.
            self.unsigned += 1;
            if self.first || self.unsigned > MAX_UNSIGNED {
                return Err(TsigFault::Unsigned);
            }
            self.hmac.update(wire);
            return Ok(());
        };
        match tsig.error {
            // These two come without a signature (RFC 8945 §5.3.2).
            BADKEY => return Err(TsigFault::BadKey),
            BADSIG => return Err(TsigFault::BadSig),
            _ => {}
        }
        if tsig.name != self.key.name || tsig.algorithm != self.key.algorithm.to_name() {
            return Err(TsigFault::OtherKey);
        }
        // The message as it was before the TSIG record was put behind it.
        let additionals = u16::from_be_bytes([wire[10], wire[11]]).saturating_sub(1);
        self.hmac.update(&tsig.original_id.to_be_bytes());
        self.hmac.update(&wire[2..10]);
        self.hmac.update(&additionals.to_be_bytes());
        self.hmac.update(&wire[12..tsig.start]);
        self.hmac.update(&if self.first { variables(tsig) } else { timers(tsig) });
        let hmac = std::mem::replace(&mut self.hmac, self.key.after(&tsig.mac));
        if !hmac.matches(&tsig.mac) {
            return Err(TsigFault::Forged);
        }
        self.first = false;
        self.unsigned = 0;
        match tsig.error {
            0 => {}
            BADTIME => return Err(TsigFault::BadTime(signed_gap(tsig.time, server_time(tsig)))),
            other => return Err(TsigFault::Other(other)),
        }
        let gap = signed_gap(tsig.time, now);
        if gap.unsigned_abs() > u64::from(FUDGE) {
            return Err(TsigFault::Stale(gap));
        }
        Ok(())
    }

    pub(super) fn key_name(&self) -> &Name {
        &self.key.name
    }

    /// Whether the last message that was taken in carried a signature, as the last
    /// of all must (RFC 8945 §5.3.1).
    pub(super) fn ends_signed(&self) -> bool {
        !self.first && self.unsigned == 0
    }
}

/// Puts the record behind a message (RFC 8945 §4.2).
fn append(wire: &mut Vec<u8>, record: &TsigRecord) {
    wire.extend(wire_name(&record.name));
    wire.extend(TYPE_TSIG.to_be_bytes());
    wire.extend(CLASS_ANY.to_be_bytes());
    wire.extend(0u32.to_be_bytes());
    let mut rdata = wire_name(&record.algorithm);
    rdata.extend(timers(record));
    rdata.extend((record.mac.len() as u16).to_be_bytes());
    rdata.extend(&record.mac);
    rdata.extend(record.original_id.to_be_bytes());
    rdata.extend(record.error.to_be_bytes());
    rdata.extend((record.other.len() as u16).to_be_bytes());
    rdata.extend(&record.other);
    wire.extend((rdata.len() as u16).to_be_bytes());
    wire.extend(rdata);
    let additionals = u16::from_be_bytes([wire[10], wire[11]]) + 1;
    wire[10..12].copy_from_slice(&additionals.to_be_bytes());
}

/// The server's clock in a BADTIME answer (RFC 8945 §5.2.3).
fn server_time(tsig: &TsigRecord) -> u64 {
    match tsig.other[..] {
        [a, b, c, d, e, f] => u64::from_be_bytes([0, 0, a, b, c, d, e, f]),
        _ => tsig.time,
    }
}

/// `a - b` of two 48-bit times.
fn signed_gap(a: u64, b: u64) -> i64 {
    a.cast_signed().saturating_sub(b.cast_signed())
}

/// The TSIG variables (RFC 8945 §4.3.3).
fn variables(tsig: &TsigRecord) -> Vec<u8> {
    let mut bytes = wire_name(&tsig.name);
    bytes.extend(CLASS_ANY.to_be_bytes());
    bytes.extend(0u32.to_be_bytes());
    bytes.extend(wire_name(&tsig.algorithm));
    bytes.extend(timers(tsig));
    bytes.extend(tsig.error.to_be_bytes());
    bytes.extend((tsig.other.len() as u16).to_be_bytes());
    bytes.extend(&tsig.other);
    bytes
}

/// The TSIG timers (RFC 8945 §4.3.3.1): 48 bits of time, 16 of fudge.
fn timers(tsig: &TsigRecord) -> Vec<u8> {
    let mut bytes = tsig.time.to_be_bytes()[2..].to_vec();
    bytes.extend(tsig.fudge.to_be_bytes());
    bytes
}

/// A name in canonical wire form: lower case, not compressed.
fn wire_name(name: &Name) -> Vec<u8> {
    let labels = name.iter().chain([&[][..]]);
    let mut bytes = Vec::with_capacity(name.len() + 1);
    for label in labels {
        // A label has at most 63 bytes.
        bytes.push(label.len() as u8);
        bytes.extend(label.to_ascii_lowercase());
    }
    bytes
}

/// The hashes of RFC 8945 §6 that are neither broken nor cut short.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

impl Algorithm {
    const ALL: [Self; 4] = [Self::Sha224, Self::Sha256, Self::Sha384, Self::Sha512];

    fn name(self) -> &'static str {
        match self {
            Self::Sha224 => "hmac-sha224",
            Self::Sha256 => "hmac-sha256",
            Self::Sha384 => "hmac-sha384",
            Self::Sha512 => "hmac-sha512",
        }
    }

    fn to_name(self) -> Name {
        Name::from_labels([self.name().as_bytes()]).expect("one short label")
    }

    fn hasher(self, secret: &[u8]) -> Hasher {
        const ANY: &str = "HMAC takes a key of any length";
        match self {
            Self::Sha224 => Hasher::Sha224(Hmac::new_from_slice(secret).expect(ANY)),
            Self::Sha256 => Hasher::Sha256(Hmac::new_from_slice(secret).expect(ANY)),
            Self::Sha384 => Hasher::Sha384(Hmac::new_from_slice(secret).expect(ANY)),
            Self::Sha512 => Hasher::Sha512(Hmac::new_from_slice(secret).expect(ANY)),
        }
    }
}

enum Hasher {
    Sha224(Hmac<Sha224>),
    Sha256(Hmac<Sha256>),
    Sha384(Hmac<Sha384>),
    Sha512(Hmac<Sha512>),
}

impl Hasher {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha224(hmac) => hmac.update(bytes),
            Self::Sha256(hmac) => hmac.update(bytes),
            Self::Sha384(hmac) => hmac.update(bytes),
            Self::Sha512(hmac) => hmac.update(bytes),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Self::Sha224(hmac) => hmac.finalize().into_bytes().to_vec(),
            Self::Sha256(hmac) => hmac.finalize().into_bytes().to_vec(),
            Self::Sha384(hmac) => hmac.finalize().into_bytes().to_vec(),
            Self::Sha512(hmac) => hmac.finalize().into_bytes().to_vec(),
        }
    }

    /// Whether this is the MAC, whole (no truncation) and in constant time.
    fn matches(self, mac: &[u8]) -> bool {
        match self {
            Self::Sha224(hmac) => hmac.verify_slice(mac).is_ok(),
            Self::Sha256(hmac) => hmac.verify_slice(mac).is_ok(),
            Self::Sha384(hmac) => hmac.verify_slice(mac).is_ok(),
            Self::Sha512(hmac) => hmac.verify_slice(mac).is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zone::message::Reply;

    const NOW: u64 = 1_800_000_000;
    const SECRET: &str = "c2VjcmV0IG9mIHRoZSB0ZXN0cw==";

    #[test]
    fn an_answer_verifies_with_every_algorithm_and_no_byte_of_it_can_be_changed() {
        for algorithm in ["hmac-sha224", "hmac-sha256", "HMAC-SHA384.", "hmac-sha512"] {
            let key = TsigKey::new("Mesh-Key", algorithm, SECRET).expect("a key");
            let (request_mac, mut chain) = request(&key);
            let (wire, _) = Signer::new(&key).sign(&request_mac, &[], &plain(1));
            assert_eq!(take(&mut chain, &wire), Ok(()));
            assert!(chain.ends_signed());
            let start = Reply::read(&wire).and_then(|reply| reply.tsig).expect("signed").start;
            // All but the number, which travels a second time in the record.
            for bit in 16..start * 8 {
                let mut changed = wire.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                let (_, mut chain) = request(&key);
                assert_ne!(take(&mut chain, &changed), Ok(()), "bit {bit}");
            }
        }
    }

    #[test]
    fn messages_between_two_signed_ones_may_be_unsigned() {
        let key = key();
        let (request_mac, mut chain) = request(&key);
        let (first, mac) = Signer::new(&key).sign(&request_mac, &[], &plain(1));
        let between = [plain(2), plain(3)];
        let mut last = Signer::new(&key);
        last.first = false;
        let (last, _) = last.sign(&mac, &between, &plain(4));
        assert_eq!(take(&mut chain, &first), Ok(()));
        for message in &between {
            assert_eq!(take(&mut chain, message), Ok(()));
            assert!(!chain.ends_signed());
        }
        assert_eq!(take(&mut chain, &last), Ok(()));
        assert!(chain.ends_signed());

        // One of them changed on its way, or left out.
        let (_, mut chain) = request(&key);
        for message in [&first, &between[0]] {
            assert_eq!(take(&mut chain, message), Ok(()));
        }
        assert_eq!(take(&mut chain, &last), Err(TsigFault::Forged));
    }

    #[test]
    fn a_hundred_unsigned_messages_are_too_many_and_the_first_is_signed() {
        let key = key();
        let (_, mut chain) = request(&key);
        assert_eq!(take(&mut chain, &plain(1)), Err(TsigFault::Unsigned));
        let (request_mac, mut chain) = request(&key);
        let (first, _) = Signer::new(&key).sign(&request_mac, &[], &plain(1));
        assert_eq!(take(&mut chain, &first), Ok(()));
        for _ in 0..99 {
            assert_eq!(take(&mut chain, &plain(2)), Ok(()));
        }
        assert_eq!(take(&mut chain, &plain(2)), Err(TsigFault::Unsigned));
    }

    #[test]
    fn what_the_server_says_of_our_signature_is_told() {
        let key = key();
        for (error, fault) in [(BADKEY, TsigFault::BadKey), (BADSIG, TsigFault::BadSig)] {
            let (_, mut chain) = request(&key);
            let mut signer = Signer::new(&key);
            signer.error = error;
            let (wire, _) = signer.sign(b"no MAC that counts", &[], &plain(1));
            assert_eq!(take(&mut chain, &wire), Err(fault));
        }
        let (request_mac, mut chain) = request(&key);
        let mut signer = Signer::new(&key);
        signer.error = BADTIME;
        signer.other = (NOW - 3600).to_be_bytes()[2..].to_vec();
        let (wire, _) = signer.sign(&request_mac, &[], &plain(1));
        assert_eq!(take(&mut chain, &wire), Err(TsigFault::BadTime(3600)));
    }

    #[test]
    fn an_answer_of_another_time_or_key_is_not_believed() {
        let key = key();
        for (time, gap) in [(NOW + 301, 301), (NOW - 301, -301), (0, -1_800_000_000)] {
            let (request_mac, mut chain) = request(&key);
            let mut signer = Signer::new(&key);
            signer.time = time;
            let (wire, _) = signer.sign(&request_mac, &[], &plain(1));
            assert_eq!(take(&mut chain, &wire), Err(TsigFault::Stale(gap)));
        }
        let (request_mac, mut chain) = request(&key);
        let other = TsigKey::new("other", "hmac-sha256", SECRET).expect("a key");
        let (wire, _) = Signer::new(&other).sign(&request_mac, &[], &plain(1));
        assert_eq!(take(&mut chain, &wire), Err(TsigFault::OtherKey));
        // A signature that was made for another request.
        let (_, mut chain) = request(&key);
        let (wire, _) = Signer::new(&key).sign(b"another MAC", &[], &plain(1));
        assert_eq!(take(&mut chain, &wire), Err(TsigFault::Forged));
    }

    #[test]
    fn a_key_is_checked_and_shows_no_secret() {
        let new = TsigKey::new;
        assert_eq!(new("", "hmac-sha256", SECRET).err(), Some(TsigKeyError::Name));
        assert_eq!(new("a..b", "hmac-sha256", SECRET).err(), Some(TsigKeyError::Name));
        assert_eq!(new("k", "hmac-md5", SECRET).err(), Some(TsigKeyError::Algorithm));
        assert_eq!(new("k", "hmac-sha256", "").err(), Some(TsigKeyError::Secret));
        assert_eq!(new("k", "hmac-sha256", "not base64").err(), Some(TsigKeyError::Secret));
        let shown = format!("{:?}", key());
        assert_eq!(shown, r#"TsigKey { name: "mesh-key.", algorithm: "hmac-sha256", .. }"#);
    }

    fn key() -> TsigKey {
        TsigKey::new("mesh-key", "hmac-sha256", SECRET).expect("a key")
    }

    /// A message without records: only a header.
    fn plain(number: u8) -> Vec<u8> {
        vec![0, number, 0x84, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    }

    fn request(key: &TsigKey) -> (Vec<u8>, Chain) {
        let mut wire = plain(1);
        let chain = key.sign(&mut wire, NOW);
        (Reply::read(&wire).and_then(|reply| reply.tsig).expect("signed").mac, chain)
    }

    fn take(chain: &mut Chain, wire: &[u8]) -> Result<(), TsigFault> {
        // What is not a message at all is refused before it gets here.
        let Some(reply) = Reply::read(wire) else { return Err(TsigFault::Forged) };
        chain.verify(wire, reply.tsig.as_ref(), NOW)
    }

    /// The server's side.
    struct Signer {
        key: TsigKey,
        time: u64,
        error: u16,
        other: Vec<u8>,
        first: bool,
    }

    impl Signer {
        fn new(key: &TsigKey) -> Self {
            Self { key: key.clone(), time: NOW, error: 0, other: Vec::new(), first: true }
        }

        fn sign(&self, prior: &[u8], unsigned: &[Vec<u8>], message: &[u8]) -> (Vec<u8>, Vec<u8>) {
            let mut record = TsigRecord {
                start: message.len(),
                name: self.key.name.clone(),
                algorithm: self.key.algorithm.to_name(),
                time: self.time,
                fudge: FUDGE,
                mac: Vec::new(),
                original_id: u16::from_be_bytes([message[0], message[1]]),
                error: self.error,
                other: self.other.clone(),
            };
            let mut hmac = self.key.after(prior);
            for message in unsigned {
                hmac.update(message);
            }
            hmac.update(message);
            hmac.update(&if self.first { variables(&record) } else { timers(&record) });
            record.mac = hmac.finish();
            let mut wire = message.to_vec();
            append(&mut wire, &record);
            (wire, record.mac)
        }
    }
}
