//! The certificate chain: network → invite → node.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;

use super::{
    bytes::Bytes,
    keys::{InviteId, InviteKey, NetworkId, NetworkKey, SIGNATURE_LEN},
    limits::Limits,
};
use crate::{advert::CLOCK_SKEW, identity::PublicKey};

/// The most bytes of a chain: what an advert has room for.
pub const MAX_CHAIN_LEN: usize = 320;

/// The form's version, its first byte.
const VERSION: u8 = 1;

const INVITE_CONTEXT: &[u8] = b"zonemesh invite v1\0";
const NODE_CONTEXT: &[u8] = b"zonemesh node v1\0";

/// When a certificate holds, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    not_before: u32,
    not_after: u32,
}

/// Stands for no end.
const NEVER: u32 = u32::MAX;

impl Validity {
    /// From `not_before` to `not_after`, or without an end. What lies before 1970 or
    /// past 2106, which is as far as the form reaches, becomes that.
    pub fn new(not_before: SystemTime, not_after: Option<SystemTime>) -> Self {
        let not_after = not_after.map_or(NEVER, |end| seconds(end).min(NEVER - 1));
        Self { not_before: seconds(not_before), not_after }
    }

    /// When it begins.
    pub fn not_before(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.not_before.into())
    }

    /// When it ends; `None`: never.
    pub fn not_after(&self) -> Option<SystemTime> {
        (self.not_after != NEVER).then(|| UNIX_EPOCH + Duration::from_secs(self.not_after.into()))
    }

    /// Whether it holds now, as far as clocks can be trusted ([`CLOCK_SKEW`]).
    pub(super) fn check(&self, now: SystemTime) -> Result<(), Period> {
        if now + CLOCK_SKEW < self.not_before() {
            return Err(Period::NotYet);
        }
        match self.not_after() {
            Some(end) if end + CLOCK_SKEW < now => Err(Period::Over),
            _ => Ok(()),
        }
    }

    fn is_within(&self, parent: &Self) -> bool {
        parent.not_before <= self.not_before && self.not_after <= parent.not_after
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.not_before.to_be_bytes());
        out.extend_from_slice(&self.not_after.to_be_bytes());
    }

    fn read(bytes: &mut Bytes<'_>) -> Option<Self> {
        Some(Self { not_before: bytes.u32()?, not_after: bytes.u32()? })
    }
}

/// Since 1970, within what 32 bits hold.
fn seconds(time: SystemTime) -> u32 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    u32::try_from(since).unwrap_or(u32::MAX)
}

/// On which side of its time a certificate is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// Before it begins.
    NotYet,
    /// After it has ended.
    Over,
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotYet => "does not hold yet",
            Self::Over => "has expired",
        })
    }
}

/// What a certificate may not widen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The name.
    Name,
    /// The routes.
    Routes,
    /// The groups.
    Groups,
    /// When it holds.
    Validity,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "name",
            Self::Routes => "routes",
            Self::Groups => "groups",
            Self::Validity => "time",
        })
    }
}

/// Why a chain makes nobody a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// There is none.
    #[error("it has no certificate")]
    Missing,
    /// Longer than [`MAX_CHAIN_LEN`].
    #[error("its certificate is longer than {MAX_CHAIN_LEN} bytes")]
    TooLong,
    /// Of a version that this program does not know.
    #[error("its certificate is of another version")]
    Version,
    /// Cut short, with bytes behind its end, or with a value out of bounds.
    #[error("its certificate cannot be read")]
    Malformed,
    /// The network's key has not signed the invite.
    #[error("its certificate is of another network, or forged")]
    Network,
    /// The invite's key has not signed for this node.
    #[error("its certificate is another node's, or forged")]
    Node,
    /// The node part passes a limit of the invite.
    #[error("its certificate widens the {0} that its invite allows")]
    Widens(Limit),
    /// The invite does not hold now.
    #[error("its invite {0} (or a clock is wrong)")]
    Invite(Period),
    /// The node's own part does not hold now.
    #[error("its certificate {0} (or a clock is wrong)")]
    Time(Period),
}

/// The first part: the network's word for an invite's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InvitePart {
    pub(super) invite: InviteId,
    pub(super) validity: Validity,
    pub(super) limits: Limits,
    /// As it travels, version and signature included.
    pub(super) bytes: Vec<u8>,
}

impl InvitePart {
    pub(super) fn sign(
        network: &NetworkKey,
        invite: InviteId,
        validity: Validity,
        limits: Limits,
    ) -> Self {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(invite.as_bytes());
        validity.write(&mut bytes);
        limits.write(&mut bytes);
        let signature = network.sign(&invite_message(&network.id(), &bytes));
        bytes.extend_from_slice(&signature);
        Self { invite, validity, limits, bytes }
    }

    pub(super) fn read(bytes: &mut Bytes<'_>) -> Result<Self, CertificateError> {
        let whole = bytes.0;
        if bytes.u8().ok_or(CertificateError::Malformed)? != VERSION {
            return Err(CertificateError::Version);
        }
        let rest = (|| {
            let invite = InviteId::from_bytes(bytes.array()?);
            let (validity, limits) = (Validity::read(bytes)?, Limits::read(bytes)?);
            bytes.take(SIGNATURE_LEN)?;
            Some((invite, validity, limits))
        })();
        let (invite, validity, limits) = rest.ok_or(CertificateError::Malformed)?;
        let bytes = whole[..whole.len() - bytes.0.len()].to_vec();
        Ok(Self { invite, validity, limits, bytes })
    }

    /// Whether the network's key has signed this.
    pub(super) fn is_of(&self, network: &NetworkId) -> bool {
        let (body, signature) = self.bytes.split_at(self.bytes.len() - SIGNATURE_LEN);
        network.verifies(&invite_message(network, body), signature)
    }
}

fn invite_message(network: &NetworkId, body: &[u8]) -> Vec<u8> {
    [INVITE_CONTEXT, network.as_bytes(), body].concat()
}

/// A node's certificate chain as it travels in its advert. Only its form is known to be
/// right; [`Chain::verify`] says whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    invite: InvitePart,
    validity: Validity,
    limits: Limits,
    bytes: Vec<u8>,
}

/// What a network has certified of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// The node's name.
    pub name: String,
    /// The prefixes in which its routes and overlay addresses must lie.
    pub routes: Vec<IpNet>,
    /// Its groups.
    pub groups: Vec<String>,
    /// The invite that let it in.
    pub invite: InviteId,
    /// The prefixes that the invite allows: the network's word, where `routes` is the node's.
    pub invited: Vec<IpNet>,
    /// When its membership ends; `None`: never.
    pub not_after: Option<SystemTime>,
}

impl Certified {
    /// Whether the node may advertise this prefix.
    pub fn allows(&self, route: &IpNet) -> bool {
        self.routes.iter().any(|own| own.contains(route))
    }
}

impl Chain {
    /// Signs a node's part under an invite.
    pub(super) fn sign(
        key: &InviteKey,
        invite: &InvitePart,
        network: &NetworkId,
        node: &PublicKey,
        validity: Validity,
        limits: Limits,
    ) -> Result<Self, CertificateError> {
        let mut part = Vec::new();
        validity.write(&mut part);
        limits.write(&mut part);
        let signature = key.sign(&node_message(network, &invite.bytes, node, &part));
        let bytes = [&invite.bytes[..], &part, &signature].concat();
        if bytes.len() > MAX_CHAIN_LEN {
            return Err(CertificateError::TooLong);
        }
        let chain = Self { invite: invite.clone(), validity, limits, bytes };
        // What others would refuse is not made in the first place.
        chain.check_limits()?;
        Ok(chain)
    }

    /// Reads a chain's form.
    ///
    /// # Errors
    /// [`CertificateError`] when it is none.
    pub fn read(bytes: &[u8]) -> Result<Self, CertificateError> {
        if bytes.len() > MAX_CHAIN_LEN {
            return Err(CertificateError::TooLong);
        }
        let mut rest = Bytes(bytes);
        let invite = InvitePart::read(&mut rest)?;
        let part = (|| {
            let (validity, limits) = (Validity::read(&mut rest)?, Limits::read(&mut rest)?);
            rest.take(SIGNATURE_LEN)?;
            (rest.0.is_empty() && !limits.name().is_empty()).then_some((validity, limits))
        })();
        let (validity, limits) = part.ok_or(CertificateError::Malformed)?;
        Ok(Self { invite, validity, limits, bytes: bytes.to_vec() })
    }

    /// The bytes as they travel, at most [`MAX_CHAIN_LEN`].
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The invite under which it was signed.
    pub fn invite(&self) -> InviteId {
        self.invite.invite
    }

    /// When the node's own part was signed. Unverified, as everything here.
    pub fn not_before(&self) -> SystemTime {
        self.validity.not_before()
    }

    /// When the membership ends; `None`: never. Unverified, as everything here.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.validity.not_after()
    }

    /// Verifies that it makes `node` a member of `network` now.
    ///
    /// # Errors
    /// [`CertificateError`] says what is wrong with the first thing that is. Both
    /// signatures are looked at before any date: a chain that is only out of its time
    /// is known to be the node's.
    pub fn verify(
        &self,
        network: &NetworkId,
        node: &PublicKey,
        now: SystemTime,
    ) -> Result<Certified, CertificateError> {
        if !self.invite.is_of(network) {
            return Err(CertificateError::Network);
        }
        let part = &self.bytes[self.invite.bytes.len()..];
        let (part, signature) = part.split_at(part.len() - SIGNATURE_LEN);
        let message = node_message(network, &self.invite.bytes, node, part);
        if !self.invite.invite.verifies(&message, signature) {
            return Err(CertificateError::Node);
        }
        self.check_limits()?;
        self.invite.validity.check(now).map_err(CertificateError::Invite)?;
        self.validity.check(now).map_err(CertificateError::Time)?;
        Ok(Certified {
            name: self.limits.name().to_owned(),
            routes: self.limits.routes().to_vec(),
            groups: self.limits.groups().to_vec(),
            invite: self.invite.invite,
            invited: self.invite.limits.routes().to_vec(),
            not_after: self.validity.not_after(),
        })
    }

    /// Every limit of the invite binds the node.
    fn check_limits(&self) -> Result<(), CertificateError> {
        if let Some(limit) = self.limits.widens(&self.invite.limits) {
            return Err(CertificateError::Widens(limit));
        }
        if !self.validity.is_within(&self.invite.validity) {
            return Err(CertificateError::Widens(Limit::Validity));
        }
        Ok(())
    }
}

fn node_message(network: &NetworkId, invite: &[u8], node: &PublicKey, part: &[u8]) -> Vec<u8> {
    [NODE_CONTEXT, network.as_bytes(), invite, node.as_bytes(), part].concat()
}
