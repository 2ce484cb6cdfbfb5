//! A membership, as the node keeps it.

use std::time::SystemTime;

use super::{
    bytes::Bytes,
    chain::{CertificateError, Certified, Chain},
    keys::NetworkId,
    limits::LimitsError,
    token::{Access, TokenTimeError, read_zone, write_zone},
};
use crate::{advert::Zone, identity::PublicKey};

/// The form's version, its first byte.
const VERSION: u8 = 1;

/// What a token has become: the node's own certificate chain, and the way to the zone.
/// The invite's secret is not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    zone: Zone,
    network: NetworkId,
    chain: Chain,
    access: Access,
}

/// Why a token makes a node no member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The token is good at another time.
    #[error(transparent)]
    Time(#[from] TokenTimeError),
    /// What the node asks for is out of its bounds.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// The invite does not allow it.
    #[error("this token does not allow that name")]
    Name,
    /// The invite does not allow it.
    #[error("this token does not allow all of the routes")]
    Routes,
    /// The invite does not allow it.
    #[error("this token does not allow all of the groups")]
    Groups,
    /// The chain would be too long for an advert.
    #[error("name, routes and groups are too long for a certificate: ask for fewer of them")]
    TooLong,
}

impl From<CertificateError> for MembershipError {
    /// Of the errors of a chain that is signed and not read, the rest cannot occur.
    fn from(error: CertificateError) -> Self {
        use super::chain::Limit;
        match error {
            CertificateError::Widens(Limit::Name) => Self::Name,
            CertificateError::Widens(Limit::Routes | Limit::Validity) => Self::Routes,
            CertificateError::Widens(Limit::Groups) => Self::Groups,
            _ => Self::TooLong,
        }
    }
}

impl Membership {
    pub(super) fn new(zone: Zone, network: NetworkId, chain: Chain, access: Access) -> Self {
        Self { zone, network, chain, access }
    }

    /// The zone.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// The network.
    pub fn network(&self) -> NetworkId {
        self.network
    }

    /// The node's chain, for its advert.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The way to the zone.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// What is certified of this node; to be asked again from time to time, since a
    /// membership ends.
    ///
    /// # Errors
    /// [`CertificateError`] when it is another node's, or not good now.
    pub fn certified(
        &self,
        node: &PublicKey,
        now: SystemTime,
    ) -> Result<Certified, CertificateError> {
        self.chain.verify(&self.network, node, now)
    }

    /// For the file that keeps it; it holds the secrets of the zone's access.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        write_zone(&self.zone, &mut out);
        out.extend_from_slice(self.network.as_bytes());
        out.extend_from_slice(&(self.chain.as_bytes().len() as u16).to_be_bytes());
        out.extend_from_slice(self.chain.as_bytes());
        self.access.write(&mut out);
        out
    }

    /// Reads what [`Self::to_bytes`] wrote; `None` where it is anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut bytes = Bytes(bytes);
        if bytes.u8()? != VERSION {
            return None;
        }
        let zone = read_zone(&mut bytes)?;
        let network = NetworkId::from_bytes(bytes.array()?);
        let len = bytes.u16()?;
        let chain = Chain::read(bytes.take(usize::from(len))?).ok()?;
        let access = Access::read(&mut bytes)?;
        bytes.0.is_empty().then_some(Self { zone, network, chain, access })
    }
}
