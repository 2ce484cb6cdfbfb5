//! Claims of slices: each proves itself, lies within its certificate, and gives way to
//! nobody while its lease lasts. A claim is not deleted: it ends.

use std::time::SystemTime;

use ipnet::IpNet;

use super::{
    super::{
        config::TTL,
        draft::Draft,
        lease::{Claim, Fact, seconds},
        store::ZoneStore,
    },
    Refusal, Writer,
};
use crate::{
    advert::CLOCK_SKEW,
    identity::PublicKey,
    membership::{CertificateError, Certified, Chain, RevocationList},
    zone::slice::SignedClaim,
};

/// The most slices that one node may hold: one, and another while it moves.
const MAX_CLAIMS: usize = 4;

impl ZoneStore {
    /// Whether a claim may be as the draft has it.
    pub(super) fn judge_slice(
        &self,
        draft: &mut Draft<'_>,
        slice: IpNet,
        writer: &Writer,
        revoked: Option<&RevocationList>,
        now: SystemTime,
    ) -> Result<Fact, Refusal> {
        let zone = &self.config.zone;
        let name = self.config.slice_name(&slice);
        if draft.at(&name).is_empty() && *writer == Writer::Administrator {
            return Ok(Fact::Claim(slice, None));
        }
        let txt = self.config.strings(&name, draft.at(&name)).ok_or(Refusal::Unproven)?;
        let signed = SignedClaim::verify(zone, &slice, &txt, now)?;
        let claim = signed.claim();
        let node = claim.node;
        let certified = match self.certified_for(&node, claim.certificate.as_deref(), now) {
            Ok(certified) if !certified.allows(&slice) => return Err(Refusal::NotCertified),
            Ok(certified) => Some(certified),
            Err(_) if writer.may_write(&node) => None,
            Err(refusal) => return Err(refusal),
        };
        let invite = certified.as_ref().map(|certified| certified.invite);
        if let Some(list) = revoked
            && (list.contains(&node) || invite.is_some_and(|invite| list.contains_invite(&invite)))
        {
            return Err(Refusal::Revoked);
        }
        self.check_free(&slice, &node, claim.sequence, now)?;
        draft.set_ttl(&name, TTL);
        let membership = certified.and_then(|certified| certified.not_after);
        let end = membership.map_or(claim.expires, |end| end.min(claim.expires));
        let sequence = claim.sequence;
        let end = seconds(end + CLOCK_SKEW);
        Ok(Fact::Claim(slice, Some(Claim { node, invite, sequence, end })))
    }

    /// No slice is held twice, and none lies in another one.
    fn check_free(
        &self,
        slice: &IpNet,
        node: &PublicKey,
        sequence: u64,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        let live = self.facts.claims().filter(|(_, claim)| claim.end > seconds(now));
        let mut own = 0;
        for (held, claim) in live {
            if claim.node != *node {
                if held.contains(slice) || slice.contains(held) {
                    return Err(Refusal::Taken { slice: *held });
                }
            } else if held != slice {
                own += 1;
            } else if sequence <= claim.sequence {
                return Err(Refusal::Old { known: claim.sequence });
            }
        }
        if own < MAX_CLAIMS { Ok(()) } else { Err(Refusal::TooMany) }
    }

    fn certified_for(
        &self,
        node: &PublicKey,
        chain: Option<&[u8]>,
        now: SystemTime,
    ) -> Result<Certified, Refusal> {
        let network = self.config.network.as_ref().ok_or(Refusal::Unproven)?;
        let chain = Chain::read(chain.ok_or(CertificateError::Missing)?)?;
        Ok(chain.verify(network, node, now)?)
    }
}
