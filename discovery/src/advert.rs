//! The advert: what a node says of itself in the zone and on the LAN, as DNS-SD
//! records (RFC 6763) and back. The only place that knows names and TXT keys.
//!
//! The records are a superset of those that the CoreDNS plugin wgsd serves. The
//! TXT strings of a node end with its signature over the zone's name and every
//! other TXT string *as it stands*, so that nothing has to be encoded again to be
//! verified, and keys that a later version adds are covered unseen. SRV, A and
//! AAAA are a pure function of the signed candidates ([`Advert::endpoint`]): a
//! record set whose SRV or addresses differ from what its TXT derives is refused
//! as a whole. On the LAN, SRV and addresses belong to the mDNS host and are not
//! looked at; the TXT strings are the same.
//!
//! `docs/protocol.md` tells the form byte for byte.

mod candidate;
pub(crate) mod txt;
mod zone;

use std::{
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use data_encoding::BASE64;
use ipnet::IpNet;

pub(crate) use self::candidate::endpoint_of;
use self::{
    candidate::is_reachable,
    txt::{Fields, push_bytes, push_list, text},
};
pub use self::{
    candidate::{Candidate, CandidateKind, Endpoint, is_public},
    zone::{Zone, ZoneError},
};
use crate::{
    identity::{Identity, PublicKey},
    membership::{CertificateError, Certified, Chain, MAX_CHAIN_LEN, NetworkId},
};

/// The service type's labels (RFC 6763 §7): wgsd's.
pub const SERVICE_LABELS: [&str; 2] = ["_wireguard", "_udp"];

/// What a signature is over begins with this, so that no other use of the key
/// can ever make one that counts as an advert's.
const SIGNATURE_CONTEXT: &[u8] = b"zonemesh advert v1\0";

/// The most bytes that the TXT strings may take together, so that SRV, TXT and
/// addresses of one node fit 1,232 bytes (DNS Flag Day 2020) with the question
/// and a TSIG beside them.
pub const MAX_TXT_LEN: usize = 800;

/// The most candidates that an advert carries; more are neither sent nor used.
pub const MAX_CANDIDATES: usize = 8;

/// The most routes that one node may advertise.
pub const MAX_ROUTES: usize = 16;

/// The most overlay addresses that one node may advertise.
pub const MAX_ADDRESSES: usize = 4;

/// How far two nodes' clocks may stand apart before an advert is refused.
pub const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// The longest lease that is believed: beyond it a clock is wrong, or somebody
/// means to haunt the zone.
pub const MAX_LEASE: Duration = Duration::from_secs(24 * 3600);

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advert {
    /// The node's WireGuard public key.
    pub node: PublicKey,
    /// The node's name, for people: 1 to 63 bytes without control characters.
    pub name: String,
    /// The overlay addresses of its interface, at most [`MAX_ADDRESSES`].
    pub addresses: Vec<IpAddr>,
    /// The prefixes behind it, at most [`MAX_ROUTES`].
    pub routes: Vec<IpNet>,
    /// Where it may be reached, best first, at most [`MAX_CANDIDATES`].
    pub candidates: Vec<Candidate>,
    /// The node's certificate chain as it travels, at most [`MAX_CHAIN_LEN`] bytes;
    /// none where the node is a member of no network. What is in it is for
    /// [`SignedAdvert::certified`] to say.
    pub certificate: Option<Vec<u8>>,
    /// Rises with every change: of two adverts of a node the higher one counts.
    pub sequence: u64,
    /// When the advert lapses unless it is renewed.
    pub expires: SystemTime,
}

impl Advert {
    /// The SRV port and the A and AAAA addresses that these candidates make: the
    /// public candidates' first port and every public address with that port; the
    /// same over all candidates where none is public; nothing where there are none
    /// (an SRV is never published without an address).
    pub fn endpoint(&self) -> Option<Endpoint> {
        endpoint_of(&self.candidates)
    }

    /// Signs the advert for a zone.
    ///
    /// # Errors
    /// [`AdvertError`] when a field is out of its bounds, all of it is too large, or
    /// the identity is another node's: what others would refuse is not published in
    /// the first place.
    pub fn sign(&self, identity: &Identity, zone: &Zone) -> Result<SignedAdvert, AdvertError> {
        if identity.public_key() != self.node {
            return Err(AdvertError::OtherNode);
        }
        self.check_bounds()?;
        let since = self.expires.duration_since(UNIX_EPOCH).map_err(|_| AdvertError::Expired)?;
        // As others will read it: in whole seconds.
        let expires = UNIX_EPOCH + Duration::from_secs(since.as_secs());
        let mut txt = self.to_txt(since);
        let signature = identity.sign(&signed_bytes(SIGNATURE_CONTEXT, zone, &txt));
        txt.push(format!("sig={}", BASE64.encode(&signature)).into_bytes());
        check_size(&txt)?;
        Ok(SignedAdvert { advert: Self { expires, ..self.clone() }, txt })
    }

    fn to_txt(&self, expires: Duration) -> Vec<Vec<u8>> {
        let mut txt = vec![text("txtvers", "1"), text("pub", self.node), text("name", &self.name)];
        push_list(&mut txt, "allowed", &self.routes);
        push_list(&mut txt, "ip", &self.addresses);
        push_list(&mut txt, "cand", &self.candidates);
        if let Some(certificate) = &self.certificate {
            push_bytes(&mut txt, "cert", certificate);
        }
        txt.push(text("seq", self.sequence));
        txt.push(text("exp", expires.as_secs()));
        txt
    }

    fn check_bounds(&self) -> Result<(), AdvertError> {
        let name = &self.name;
        if name.is_empty() || name.len() > 63 || name.chars().any(char::is_control) {
            return Err(AdvertError::Value("name"));
        }
        if self.routes.len() > MAX_ROUTES || self.routes.iter().any(|route| route.trunc() != *route)
        {
            return Err(AdvertError::Value("allowed"));
        }
        if self.addresses.len() > MAX_ADDRESSES {
            return Err(AdvertError::Value("ip"));
        }
        if self.candidates.len() > MAX_CANDIDATES
            || !self.candidates.iter().all(Candidate::is_usable)
        {
            return Err(AdvertError::Value("cand"));
        }
        let certificate = self.certificate.as_ref().map_or(1, Vec::len);
        if certificate == 0 || certificate > MAX_CHAIN_LEN {
            return Err(AdvertError::Value("cert"));
        }
        Ok(())
    }

    /// Whether this is a node's last word: an advert without candidates whose lease is
    /// over. It says that everything that is published of the node may go, and a
    /// reader has [`CLOCK_SKEW`] to take it.
    pub fn is_withdrawal(&self, now: SystemTime) -> bool {
        self.candidates.is_empty() && self.expires <= now
    }
}

/// An advert whose signature holds, with the TXT strings that carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedAdvert {
    advert: Advert,
    txt: Vec<Vec<u8>>,
}

impl SignedAdvert {
    /// What the node says.
    pub fn advert(&self) -> &Advert {
        &self.advert
    }

    /// The TXT strings to publish, each at most 255 bytes.
    pub fn txt(&self) -> &[Vec<u8>] {
        &self.txt
    }

    /// Verifies the TXT strings of one node: form, bounds, signature, lease.
    ///
    /// # Errors
    /// [`AdvertError`] says what is wrong with the first thing that is.
    pub fn verify(zone: &Zone, txt: &[Vec<u8>], now: SystemTime) -> Result<Self, AdvertError> {
        let (last, body) = txt.split_last().ok_or(AdvertError::Missing("txtvers"))?;
        check_size(txt)?;
        let fields = Fields::read(txt)?;
        let node: PublicKey = fields.one("pub")?;
        let signature = last.strip_prefix(b"sig=").ok_or(AdvertError::Missing("sig"))?;
        let signature = BASE64.decode(signature).map_err(|_| AdvertError::Signature)?;
        node.verify(&signed_bytes(SIGNATURE_CONTEXT, zone, body), &signature)
            .map_err(|_| AdvertError::Signature)?;
        let expires = UNIX_EPOCH
            .checked_add(Duration::from_secs(fields.one("exp")?))
            .ok_or(AdvertError::Value("exp"))?;
        let advert = Advert {
            node,
            name: fields.one("name")?,
            addresses: fields.list("ip")?,
            routes: fields.list("allowed")?,
            candidates: fields.list("cand")?,
            certificate: fields.bytes("cert"),
            sequence: fields.one("seq")?,
            expires,
        };
        advert.check_bounds()?;
        match expires.duration_since(now) {
            Ok(ahead) if ahead > MAX_LEASE + CLOCK_SKEW => Err(AdvertError::Lease),
            Err(past) if past.duration() > CLOCK_SKEW => Err(AdvertError::Expired),
            _ => Ok(Self { advert, txt: txt.to_vec() }),
        }
    }

    /// What the network has certified of the node: to be asked before anything of the
    /// advert is used, where only members count.
    ///
    /// # Errors
    /// [`CertificateError`] when the advert bears no certificate, or one that does not
    /// hold for this node in this network now.
    pub fn certified(
        &self,
        network: &NetworkId,
        now: SystemTime,
    ) -> Result<Certified, CertificateError> {
        let bytes = self.advert.certificate.as_ref().ok_or(CertificateError::Missing)?;
        Chain::read(bytes)?.verify(network, &self.advert.node, now)
    }
}

/// The records of one instance, as they were read and before anything of them is
/// believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRecords {
    /// The key that the instance label spells.
    pub node: PublicKey,
    /// The TXT strings, in order; none where there is no TXT record.
    pub txt: Vec<Vec<u8>>,
    /// The SRV port with the addresses of its target; `None` where either lacks.
    pub endpoint: Option<Endpoint>,
}

/// What an instance of the zone turns out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A node's own signed advert, verified.
    Signed(SignedAdvert),
    /// A record in wgsd's own form, unsigned: it counts only for a key that the
    /// configuration lists.
    Bare(BareEntry),
}

impl Entry {
    /// The node that it speaks of.
    pub fn node(&self) -> PublicKey {
        match self {
            Self::Signed(signed) => signed.advert.node,
            Self::Bare(bare) => bare.node,
        }
    }
}

/// A record set as wgsd serves it: a key, an endpoint, the allowed addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BareEntry {
    /// The WireGuard public key.
    pub node: PublicKey,
    /// Where it may be reached.
    pub endpoint: Endpoint,
    /// The prefixes behind it.
    pub routes: Vec<IpNet>,
}

impl InstanceRecords {
    /// Verifies the records of one instance of the zone.
    ///
    /// # Errors
    /// [`AdvertError`] says what is wrong with the first thing that is.
    pub fn verify(&self, zone: &Zone, now: SystemTime) -> Result<Entry, AdvertError> {
        // Before anything reads them: a zone may hold any number of strings.
        check_size(&self.txt)?;
        if self.txt.iter().any(|string| string.starts_with(b"sig=")) {
            let signed = SignedAdvert::verify(zone, &self.txt, now)?;
            if signed.advert.node != self.node {
                return Err(AdvertError::OtherNode);
            }
            if signed.advert.endpoint() != self.endpoint {
                return Err(AdvertError::Endpoint);
            }
            return Ok(Entry::Signed(signed));
        }
        let mut endpoint = self.endpoint.clone().ok_or(AdvertError::Missing("SRV with address"))?;
        // Nobody signed these: none of them may lead back to this machine.
        endpoint.addresses.retain(|addr| is_reachable(*addr));
        if endpoint.port == 0 || endpoint.addresses.is_empty() {
            return Err(AdvertError::Missing("SRV with address"));
        }
        let mut routes: Vec<IpNet> = Vec::new();
        // wgsd serves SRV before it serves TXT: a bare SRV names at least the endpoint.
        if !self.txt.is_empty() {
            let fields = Fields::read(&self.txt)?;
            if fields.one::<PublicKey>("pub")? != self.node {
                return Err(AdvertError::OtherNode);
            }
            routes = fields.list("allowed")?;
            routes.truncate(MAX_ROUTES);
            // Written by hand, it may have host bits; the prefix is what counts.
            routes.iter_mut().for_each(|route| *route = route.trunc());
        }
        Ok(Entry::Bare(BareEntry { node: self.node, endpoint, routes }))
    }
}

/// Why an advert is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdvertError {
    /// A TXT key that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A value that cannot be read, or is out of its bounds.
    #[error("the value of {0} is not valid")]
    Value(&'static str),
    /// A version of the form that this program does not know.
    #[error("txtvers is not 1")]
    Version,
    /// A key appears twice.
    #[error("a key appears twice")]
    Twice,
    /// More than [`MAX_TXT_LEN`] bytes.
    #[error("larger than {MAX_TXT_LEN} bytes")]
    TooLarge,
    /// The signature does not verify, or is not the last string.
    #[error("the signature does not verify")]
    Signature,
    /// The records name another node than their owner's label.
    #[error("it speaks for another node than its name does")]
    OtherNode,
    /// SRV, A or AAAA say something else than what was signed.
    #[error("its SRV, A or AAAA records are not those that were signed")]
    Endpoint,
    /// The lease has run out.
    #[error("it has expired (or a clock is wrong)")]
    Expired,
    /// The lease ends further ahead than any may.
    #[error("its lease ends too far ahead (or a clock is wrong)")]
    Lease,
}

pub(crate) fn check_size(txt: &[Vec<u8>]) -> Result<(), AdvertError> {
    let size: usize = txt.iter().map(|string| string.len() + 1).sum();
    if size > MAX_TXT_LEN { Err(AdvertError::TooLarge) } else { Ok(()) }
}

/// The signature's message: context, zone, and each string with its length.
pub(crate) fn signed_bytes(context: &[u8], zone: &Zone, txt: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = context.to_vec();
    let zone = zone.name().iter().chain([&[][..]]);
    for part in zone.chain(txt.iter().map(Vec::as_slice)) {
        // Labels and TXT strings are at most 255 bytes by their wire form; a longer
        // one, which no DNS message can carry, must still not collide.
        bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}
