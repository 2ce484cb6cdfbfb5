//! The network's list of revocations, which anybody may bring: it is signed by the
//! network's key, and numbered. Those whom it names leave the zone with it.

use super::{
    super::{config::TTL, draft::Draft, lease::Fact, store::ZoneStore},
    Refusal,
};
use crate::membership::RevocationList;

impl ZoneStore {
    /// The list of revocations that the zone has.
    pub fn revocations(&self) -> Option<&RevocationList> {
        self.revocations.as_ref()
    }

    /// The list that the records make; one that does not verify is none.
    pub(in super::super) fn read_revocations(&self) -> Option<RevocationList> {
        let name = self.config.revocations_name();
        let txt = self.config.strings(&name, self.records.at(&name))?;
        RevocationList::from_txt(&txt, self.config.network.as_ref()?).ok()
    }

    /// The list that an update brings.
    pub(super) fn judge_revocations(
        &self,
        draft: &mut Draft<'_>,
    ) -> Result<RevocationList, Refusal> {
        let name = self.config.revocations_name();
        let network = self.config.network.as_ref().ok_or(Refusal::Unproven)?;
        let txt = self.config.strings(&name, draft.at(&name)).ok_or(Refusal::Unproven)?;
        let list = RevocationList::from_txt(&txt, network)?;
        match &self.revocations {
            Some(known) if known.number() >= list.number() => {
                Err(Refusal::OldRevocations { known: known.number() })
            }
            _ => {
                draft.set_ttl(&name, TTL);
                Ok(list)
            }
        }
    }

    /// Removes all whom a list names. What is remembered of them goes, too: they cannot
    /// come back.
    pub(super) fn remove_revoked(&self, draft: &mut Draft<'_>, list: &RevocationList) -> Vec<Fact> {
        let revoked = self.facts.iter().filter(|(key, node)| {
            list.contains(key)
                || node.invite.as_ref().is_some_and(|invite| list.contains_invite(invite))
        });
        let revoked: Vec<_> = revoked.map(|(key, _)| *key).collect();
        for key in &revoked {
            self.remove_node(draft, key);
        }
        let claims = self.facts.claims().filter(|(_, claim)| {
            list.contains(&claim.node)
                || claim.invite.as_ref().is_some_and(|invite| list.contains_invite(invite))
        });
        let claims: Vec<_> = claims.map(|(slice, _)| *slice).collect();
        for slice in &claims {
            draft.remove_all(&self.config.slice_name(slice));
        }
        let nodes = revoked.into_iter().map(|key| Fact::Node(key, None));
        nodes.chain(claims.into_iter().map(|slice| Fact::Claim(slice, None))).collect()
    }
}
