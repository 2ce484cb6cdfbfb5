//! Who may be a member, and what of a member's advert counts.

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
    sync::Arc,
    time::SystemTime,
};

use ipnet::IpNet;
use zonemesh_discovery::{
    advert::{Advert, AdvertError, CLOCK_SKEW},
    identity::PublicKey,
    membership::{CertificateError, Certified, Chain, NetworkId, RevocationList},
    zone::slice::SliceClaim,
};

use super::Said;

/// Whose adverts count.
#[derive(Debug, Clone)]
pub enum Admission {
    /// Those of these keys.
    Listed(BTreeSet<PublicKey>),
    /// Every one that is signed for the zone.
    Zone,
    /// Those that bear a certificate of this network, which has revoked neither node nor
    /// invite.
    Members(NetworkId, Option<Arc<RevocationList>>),
}

/// What counts of a member's advert.
#[derive(Debug, Clone)]
pub(super) struct Admitted {
    /// The advert with the name that is certified, and without what is outside of the
    /// certificate.
    pub(super) advert: Advert,
    pub(super) certified: Certified,
    /// The routes and addresses that the advert claims and the certificate does not allow.
    pub(super) outside: Vec<IpNet>,
}

/// Why a node's records are not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Complaint {
    Advert(AdvertError),
    Unsigned,
    Unlisted,
    Certificate(CertificateError),
    Revoked,
    InviteRevoked,
}

impl Admission {
    /// Whether this makes its node a member, and where a certificate is asked for, what of
    /// it counts.
    pub(super) fn admit(
        &self,
        said: &Said,
        wall: SystemTime,
    ) -> Result<Option<Admitted>, Complaint> {
        match (self, said) {
            (Self::Zone, Said::Bare(_)) => Err(Complaint::Unsigned),
            (Self::Zone, Said::Signed(_)) => Ok(None),
            (Self::Listed(keys), said) if keys.contains(&said.node()) => Ok(None),
            (Self::Listed(_), _) => Err(Complaint::Unlisted),
            (Self::Members(..), Said::Bare(_)) => {
                Err(Complaint::Certificate(CertificateError::Missing))
            }
            (Self::Members(network, _), Said::Signed(signed)) => {
                let certified = signed.certified(network, wall).map_err(Complaint::Certificate)?;
                match self.revocation(&said.node(), &certified) {
                    Some(complaint) => Err(complaint),
                    None => Ok(Some(Admitted::new(signed.advert(), certified))),
                }
            }
        }
    }

    /// Whether a member was revoked.
    pub(super) fn revocation(&self, node: &PublicKey, certified: &Certified) -> Option<Complaint> {
        let Self::Members(_, Some(list)) = self else { return None };
        if list.contains(node) {
            return Some(Complaint::Revoked);
        }
        list.contains_invite(&certified.invite).then_some(Complaint::InviteRevoked)
    }

    /// Whether the node of a claim may hold its slice.
    pub(super) fn allows_claim(&self, claim: &SliceClaim, wall: SystemTime) -> bool {
        match self {
            Self::Zone => true,
            Self::Listed(keys) => keys.contains(&claim.node),
            Self::Members(network, _) => {
                let chain = claim.certificate.as_deref().map(Chain::read);
                let Some(Ok(chain)) = chain else { return false };
                chain.verify(network, &claim.node, wall).is_ok_and(|certified| {
                    certified.allows(&claim.slice)
                        && self.revocation(&claim.node, &certified).is_none()
                })
            }
        }
    }

    pub(super) fn set_revocations(&mut self, list: &Arc<RevocationList>) {
        if let Self::Members(_, known) = self {
            *known = Some(Arc::clone(list));
        }
    }
}

impl Admitted {
    fn new(said: &Advert, certified: Certified) -> Self {
        let mut advert = Advert { name: certified.name.clone(), ..said.clone() };
        let mut outside = Vec::new();
        let mut told = HashSet::new();
        let mut is_inside = |route: IpNet| {
            let inside = certified.allows(&route);
            if !inside && told.insert(route) {
                outside.push(route);
            }
            inside
        };
        advert.routes.retain(|route| is_inside(*route));
        advert.addresses.retain(|address| is_inside(IpNet::from(*address)));
        Self { advert, certified, outside }
    }
}

/// Whether a membership has ended, as far as clocks can be trusted.
pub(super) fn is_over(certified: &Certified, wall: SystemTime) -> bool {
    certified.not_after.is_some_and(|end| end + CLOCK_SKEW < wall)
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Advert(error) => fmt::Display::fmt(error, f),
            Self::Unsigned => f.write_str(
                "they are not signed, and network.trust = \"zone\" takes none but signed ones \
                 (to accept this key, list it)",
            ),
            Self::Unlisted => f.write_str("its key is not in network.keys"),
            Self::Certificate(error) => fmt::Display::fmt(error, f),
            Self::Revoked => f.write_str("the network has revoked it"),
            Self::InviteRevoked => f.write_str("the network has revoked its invite"),
        }
    }
}
