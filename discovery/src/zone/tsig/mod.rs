//! TSIG (RFC 8945) over whole messages as they travel.
//!
//! Both sides work on bytes: the `client` signs a request and verifies what comes back, the
//! `server` the other way round. Of hickory's TSIG this uses nothing: it cannot skip the
//! unsigned messages between two signed ones, and overflows on a hostile time.

mod client;
mod server;
#[cfg(test)]
mod tests;

use std::fmt;

use data_encoding::BASE64;
use hickory_proto::rr::Name;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha224, Sha256, Sha384, Sha512};

use super::message::TsigRecord;

pub(super) use client::Chain;
pub(super) use server::{Signature, Signer, check};

/// How far two clocks may stand apart (RFC 8945 §10 recommends 300 s).
const FUDGE: u16 = 300;

const TYPE_TSIG: u16 = 250;
const CLASS_ANY: u16 = 255;

const BADSIG: u16 = 16;
const BADKEY: u16 = 17;
const BADTIME: u16 = 18;
const BADTRUNC: u16 = 22;

/// A secret that a zone server shares with who asks it.
#[derive(Clone, PartialEq, Eq)]
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

/// Takes in a message as it was before the TSIG record was put behind it (RFC 8945 §5.3.2).
fn take_in(hmac: &mut Hasher, wire: &[u8], tsig: &TsigRecord) {
    let additionals = u16::from_be_bytes([wire[10], wire[11]]).saturating_sub(1);
    hmac.update(&tsig.original_id.to_be_bytes());
    hmac.update(&wire[2..10]);
    hmac.update(&additionals.to_be_bytes());
    hmac.update(&wire[12..tsig.start]);
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

    /// The length of the whole MAC.
    fn len(&self) -> usize {
        match self {
            Self::Sha224(_) => 28,
            Self::Sha256(_) => 32,
            Self::Sha384(_) => 48,
            Self::Sha512(_) => 64,
        }
    }

    /// Whether the MAC begins like this, in constant time.
    fn begins_with(self, mac: &[u8]) -> bool {
        match self {
            Self::Sha224(hmac) => hmac.verify_truncated_left(mac).is_ok(),
            Self::Sha256(hmac) => hmac.verify_truncated_left(mac).is_ok(),
            Self::Sha384(hmac) => hmac.verify_truncated_left(mac).is_ok(),
            Self::Sha512(hmac) => hmac.verify_truncated_left(mac).is_ok(),
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
