//! The token: one line with all that a node needs to join.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::SystemTime,
};

use data_encoding::{BASE64, BASE64URL_NOPAD};
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use super::{
    bytes::{Bytes, push_short},
    chain::{Chain, InvitePart, Period, Validity},
    keys::{InviteId, InviteKey, NetworkId, NetworkKey},
    limits::{Limits, LimitsError},
    member::{Membership, MembershipError},
    utc,
};
use crate::{
    advert::Zone,
    identity::PublicKey,
    sealed::Seal,
    zone::{TsigKey, TsigKeyError},
};

/// What every token begins with, before the digit of its version.
const PREFIX: &str = "zm";
const VERSION: char = '1';

/// The most zone servers of a token.
pub const MAX_SERVERS: usize = 8;

/// The prefix length of the slices of `routes = "auto"` unless the network says otherwise.
pub const DEFAULT_SLICE: u8 = 24;

/// No token has more characters; what is longer is some other file.
const MAX_LEN: usize = 4096;

/// Bytes of SHA-256 that show that no character was altered.
const CHECK_LEN: usize = 4;

/// Bytes that no debug form shows, and that are overwritten when they are let go.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Wraps them.
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes, for the place that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, for the place that fills them in.
    pub fn expose_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// How a member reaches its zone and its relays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The zone's servers, at most [`MAX_SERVERS`]; where there are none, the zone's SOA
    /// names one.
    pub servers: Vec<SocketAddr>,
    /// The key that the zone's server asks for, where it asks for one.
    pub tsig: Option<AccessKey>,
    /// The secret that the network's relays share with its members (at most 255 bytes).
    pub relay_secret: Option<Secret>,
    /// The secret of a sealed zone, 32 bytes; `None` where the zone is open.
    pub seal_secret: Option<Secret>,
    /// The prefix length of the slices of `routes = "auto"`.
    pub slice: u8,
}

impl Access {
    /// The seal of a sealed zone.
    pub fn seal(&self) -> Option<Arc<Seal>> {
        self.seal_secret.as_ref().map(|secret| Arc::new(Seal::new(secret)))
    }
}

impl Default for Access {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            tsig: None,
            relay_secret: None,
            seal_secret: None,
            slice: DEFAULT_SLICE,
        }
    }
}

/// A TSIG key as it is handed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// Its name, at most 255 bytes.
    pub name: String,
    /// Its algorithm, as it is configured: `hmac-sha256` and so on.
    pub algorithm: String,
    /// Its secret, at most 255 bytes.
    pub secret: Secret,
}

impl AccessKey {
    /// The key for a zone client.
    ///
    /// # Errors
    /// [`TsigKeyError`] says which part of it is wrong.
    pub fn key(&self) -> Result<TsigKey, TsigKeyError> {
        TsigKey::new(&self.name, &self.algorithm, &BASE64.encode(self.secret.expose()))
    }
}

const SEALED: u8 = 0x01;
const HAS_KEY: u8 = 0x02;
const HAS_RELAY: u8 = 0x04;

const SEAL_LEN: usize = 32;

/// By their number in a token.
const ALGORITHMS: [&str; 4] = ["hmac-sha224", "hmac-sha256", "hmac-sha384", "hmac-sha512"];

impl Access {
    /// What is longer than its form holds, or wrong, if anything is.
    fn check(&self) -> Result<(), &'static str> {
        let fits = |secret: &Option<Secret>, len: std::ops::RangeInclusive<usize>| {
            secret.as_ref().is_none_or(|secret| len.contains(&secret.expose().len()))
        };
        if self.servers.len() > MAX_SERVERS {
            return Err("there are more than 8 zone servers");
        }
        if !fits(&self.relay_secret, 1..=255) {
            return Err("the relays' secret does not have 1 to 255 bytes");
        }
        if !fits(&self.seal_secret, SEAL_LEN..=SEAL_LEN) {
            return Err("the seal's secret does not have 32 bytes");
        }
        if !(1..=128).contains(&self.slice) {
            return Err("the slices' prefix length is not 1 to 128");
        }
        let Some(key) = &self.tsig else { return Ok(()) };
        if key.key().is_err() || key.name.len() > 255 || key.secret.expose().len() > 255 {
            return Err("the TSIG key is none, or longer than 255 bytes");
        }
        Ok(())
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        out.push(
            flag(self.seal_secret.is_some(), SEALED)
                | flag(self.tsig.is_some(), HAS_KEY)
                | flag(self.relay_secret.is_some(), HAS_RELAY),
        );
        out.push(self.slice);
        out.push(self.servers.len() as u8);
        for server in &self.servers {
            match server.ip() {
                IpAddr::V4(v4) => {
                    out.push(4);
                    out.extend_from_slice(&v4.octets());
                }
                IpAddr::V6(v6) => {
                    out.push(6);
                    out.extend_from_slice(&v6.octets());
                }
            }
            out.extend_from_slice(&server.port().to_be_bytes());
        }
        if let Some(key) = &self.tsig {
            push_short(out, key.name.as_bytes());
            let is_it = |known: &&str| known.eq_ignore_ascii_case(&key.algorithm);
            out.push(ALGORITHMS.iter().position(is_it).unwrap_or(1) as u8);
            push_short(out, key.secret.expose());
        }
        if let Some(secret) = &self.relay_secret {
            push_short(out, secret.expose());
        }
        if let Some(secret) = &self.seal_secret {
            out.extend_from_slice(secret.expose());
        }
    }

    pub(super) fn read(bytes: &mut Bytes<'_>) -> Option<Self> {
        let flags = bytes.u8()?;
        if flags & !(SEALED | HAS_KEY | HAS_RELAY) != 0 {
            return None;
        }
        let slice = bytes.u8()?;
        let count = bytes.u8()?;
        let servers = (0..count).map(|_| {
            let ip = match bytes.u8()? {
                4 => IpAddr::from(bytes.array::<4>()?),
                6 => IpAddr::from(bytes.array::<16>()?),
                _ => return None,
            };
            Some(SocketAddr::new(ip, bytes.u16()?))
        });
        let servers = servers.collect::<Option<Vec<SocketAddr>>>()?;
        let tsig = if flags & HAS_KEY == 0 {
            None
        } else {
            let name = str::from_utf8(bytes.short()?).ok()?.to_owned();
            let algorithm = (*ALGORITHMS.get(usize::from(bytes.u8()?))?).to_owned();
            Some(AccessKey { name, algorithm, secret: Secret::new(bytes.short()?.to_vec()) })
        };
        let relay_secret =
            if flags & HAS_RELAY == 0 { None } else { Some(Secret::new(bytes.short()?.to_vec())) };
        let seal_secret = if flags & SEALED == 0 {
            None
        } else {
            Some(Secret::new(bytes.take(SEAL_LEN)?.to_vec()))
        };
        let access = Self { servers, tsig, relay_secret, seal_secret, slice };
        access.check().ok()?;
        Some(access)
    }
}

/// All that a node needs to join: the network, an invite with its secret, the zone.
/// Whoever has it can let nodes in within the invite's limits.
#[derive(Clone)]
pub struct Token {
    zone: Zone,
    network: NetworkId,
    key: InviteKey,
    invite: InvitePart,
    access: Access,
}

/// Why a text is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else.
    #[error("this is no token: a token is one line that begins with zm1")]
    NotAToken,
    /// Of a version that this program does not know.
    #[error("this token is of a newer version: update zonemesh")]
    Newer,
    /// Its end is missing.
    #[error("this token is cut short: copy the whole line")]
    CutShort,
    /// Not as it was printed.
    #[error("this token was altered on its way: copy it again")]
    Altered,
    /// Whole, but with something in it that there cannot be.
    #[error("this token is whole but holds something that cannot be")]
    Malformed,
    /// Its invite is not signed by its network's key.
    #[error("this token's invite is not signed by its network's key")]
    Forged,
    /// There can be no such token.
    #[error("no token can be made: {0}")]
    Access(&'static str),
}

/// A token that is good at another time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenTimeError {
    /// It begins later.
    #[error(
        "this token is good from {}, and this machine's clock shows {}: is the clock right?",
        utc(*.from), utc(*.now)
    )]
    NotYet {
        /// When it begins.
        from: SystemTime,
        /// What the clock shows.
        now: SystemTime,
    },
    /// It has ended.
    #[error(
        "this token has expired: it was good until {}, and this machine's clock shows {}; ask for a new one",
        utc(*.until), utc(*.now)
    )]
    Expired {
        /// When it ended.
        until: SystemTime,
        /// What the clock shows.
        now: SystemTime,
    },
}

impl Token {
    /// Makes an invite of the key that `seed` makes, and the token that holds it.
    ///
    /// # Errors
    /// [`TokenError::Access`] when `access` is longer than its form holds.
    pub fn issue(
        network: &NetworkKey,
        seed: &[u8; 32],
        zone: Zone,
        validity: Validity,
        limits: Limits,
        access: Access,
    ) -> Result<Self, TokenError> {
        access.check().map_err(TokenError::Access)?;
        let key = InviteKey::from_seed(seed);
        let invite = InvitePart::sign(network, key.id(), validity, limits);
        Ok(Self { zone, network: network.id(), key, invite, access })
    }

    /// The zone.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// The network.
    pub fn network(&self) -> NetworkId {
        self.network
    }

    /// The invite.
    pub fn invite(&self) -> InviteId {
        self.key.id()
    }

    /// What a node may be let in with.
    pub fn limits(&self) -> &Limits {
        &self.invite.limits
    }

    /// When it is good.
    pub fn validity(&self) -> Validity {
        self.invite.validity
    }

    /// How a member reaches the zone.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Whether it is good now.
    ///
    /// # Errors
    /// [`TokenTimeError`] when it begins later or has ended.
    pub fn check(&self, now: SystemTime) -> Result<(), TokenTimeError> {
        let validity = self.invite.validity;
        validity.check(now).map_err(|period| match (period, validity.not_after()) {
            (Period::Over, Some(until)) => TokenTimeError::Expired { until, now },
            _ => TokenTimeError::NotYet { from: validity.not_before(), now },
        })
    }

    /// Signs a membership for a node: its name, and the routes and groups that it asks
    /// for, which must lie within the invite's ([`Self::limits`]). It ends with the invite.
    ///
    /// # Errors
    /// [`MembershipError`] when the token is not good now, or does not allow that.
    pub fn admit(
        &self,
        node: &PublicKey,
        name: &str,
        routes: &[IpNet],
        groups: &[impl AsRef<str>],
        now: SystemTime,
    ) -> Result<Membership, MembershipError> {
        self.check(now)?;
        if name.is_empty() {
            return Err(LimitsError::Name.into());
        }
        let limits = Limits::new(name, routes, groups)?;
        let begin = now.max(self.invite.validity.not_before());
        let validity = Validity::new(begin, self.invite.validity.not_after());
        let (network, invite) = (&self.network, &self.invite);
        let chain = Chain::sign(&self.key, invite, network, node, validity, limits)?;
        Ok(Membership::new(self.zone.clone(), self.network, chain, self.access.clone()))
    }

    fn payload(&self) -> Vec<u8> {
        let mut out = Vec::new();
        write_zone(&self.zone, &mut out);
        out.extend_from_slice(self.network.as_bytes());
        out.extend_from_slice(self.key.seed());
        out.extend_from_slice(&self.invite.bytes);
        self.access.write(&mut out);
        out
    }

    fn read(payload: &[u8]) -> Result<Self, TokenError> {
        let mut bytes = Bytes(payload);
        let head = (|| {
            let zone = read_zone(&mut bytes)?;
            let network = NetworkId::from_bytes(bytes.array()?);
            Some((zone, network, InviteKey::from_seed(&bytes.array()?)))
        })();
        let (zone, network, key) = head.ok_or(TokenError::Malformed)?;
        let invite = InvitePart::read(&mut bytes).map_err(|_| TokenError::Malformed)?;
        let access = Access::read(&mut bytes).ok_or(TokenError::Malformed)?;
        if !bytes.0.is_empty() {
            return Err(TokenError::Malformed);
        }
        if invite.invite != key.id() || !invite.is_of(&network) {
            return Err(TokenError::Forged);
        }
        Ok(Self { zone, network, key, invite, access })
    }
}

/// The labels of a zone's name as in a DNS message (RFC 1035 §3.1).
pub(super) fn write_zone(zone: &Zone, out: &mut Vec<u8>) {
    for label in zone.name().iter() {
        push_short(out, label);
    }
    out.push(0);
}

pub(super) fn read_zone(bytes: &mut Bytes<'_>) -> Option<Zone> {
    let mut labels = Vec::new();
    loop {
        match bytes.short()? {
            [] => break,
            label => labels.push(label),
        }
    }
    let name = hickory_proto::rr::Name::from_labels(labels).ok()?;
    name.try_into().ok()
}

fn check_of(covered: &[u8]) -> [u8; CHECK_LEN] {
    let digest = Sha256::digest(covered);
    let mut check = [0; CHECK_LEN];
    check.copy_from_slice(&digest[..CHECK_LEN]);
    check
}

impl fmt::Display for Token {
    /// The one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let payload = self.payload();
        // Some 900 bytes at the most.
        let mut bytes = (payload.len() as u16).to_be_bytes().to_vec();
        bytes.extend_from_slice(&payload);
        let check = check_of(&bytes);
        bytes.extend_from_slice(&check);
        write!(f, "{PREFIX}{VERSION}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("zone", &self.zone.to_string())
            .field("network", &self.network)
            .field("invite", &self.invite())
            .field("limits", &self.invite.limits)
            .finish_non_exhaustive()
    }
}

impl FromStr for Token {
    type Err = TokenError;

    /// Reads a token; white space around it and line breaks in it do not matter.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        if text.len() > MAX_LEN {
            return Err(TokenError::NotAToken);
        }
        let text: String = text.split_ascii_whitespace().collect();
        let rest = text.strip_prefix(PREFIX).ok_or(TokenError::NotAToken)?;
        let mut rest = rest.chars();
        match rest.next() {
            Some(VERSION) => {}
            Some('2'..='9') => return Err(TokenError::Newer),
            None => return Err(TokenError::CutShort),
            _ => return Err(TokenError::NotAToken),
        }
        let text = rest.as_str().as_bytes();
        if !text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte)) {
            return Err(TokenError::Altered);
        }
        // The length stands in the first characters, so that a missing end is known for one.
        let head = text.get(..4).ok_or(TokenError::CutShort)?;
        let head = BASE64URL_NOPAD.decode(head).map_err(|_| TokenError::Altered)?;
        let len = usize::from(u16::from_be_bytes([head[0], head[1]]));
        let whole = (2 + len + CHECK_LEN) * 8;
        if text.len() < whole.div_ceil(6) {
            return Err(TokenError::CutShort);
        }
        let bytes = BASE64URL_NOPAD.decode(text).map_err(|_| TokenError::Altered)?;
        let (covered, check) = bytes.split_last_chunk::<CHECK_LEN>().ok_or(TokenError::CutShort)?;
        if covered.len() != 2 + len || check_of(covered) != *check {
            return Err(TokenError::Altered);
        }
        Self::read(&covered[2..])
    }
}
