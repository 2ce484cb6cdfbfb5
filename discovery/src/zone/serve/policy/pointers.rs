//! The list of instances: the PTR records. It is the zone's own and follows what is in
//! the zone; what updates say of it must be so, or be made so by them.

use std::collections::BTreeSet;

use hickory_proto::rr::{Name, RData, Record, RecordType, rdata::PTR};

use super::{
    super::{config::TTL, draft::Draft, records::RrSet, store::ZoneStore},
    Refusal,
};
use crate::identity::PublicKey;

impl ZoneStore {
    /// What an update adds to the list must be in the zone, and what it removes must not.
    pub(super) fn check_pointers(&self, draft: &Draft<'_>) -> Result<(), Refusal> {
        let service = self.config.zone.service();
        if !draft.differs(&service) {
            return Ok(());
        }
        let old = targets(self.records.set(&service, RecordType::PTR));
        let new = targets(draft.set(&service, RecordType::PTR));
        let is_live = |target: &Name| {
            self.config.zone.instance_key(target).is_some() && !draft.at(target).is_empty()
        };
        let added = new.difference(&old).all(is_live);
        let removed = !old.difference(&new).any(is_live);
        if added && removed { Ok(()) } else { Err(Refusal::Pointer) }
    }

    /// Has the list name a node that is in the zone, and no other. A list that is full
    /// lacks who comes last: it is a hint, and a transfer tells all. A sealed zone has none.
    pub(super) fn set_pointer(&self, draft: &mut Draft<'_>, key: &PublicKey) {
        if self.config.seal.is_some() {
            return;
        }
        let (service, instance) = (self.config.zone.service(), self.config.zone.instance(key));
        let list = draft.set(&service, RecordType::PTR);
        let pointer = RData::PTR(PTR(instance.clone()));
        let len = list.map_or(0, |set| set.data.len());
        let listed = list.is_some_and(|set| set.data.contains(&pointer));
        match (!draft.at(&instance).is_empty(), listed) {
            (true, false) if len < self.config.limits.pointers => {
                draft.add(&Record::from_rdata(service, TTL, pointer));
            }
            (false, true) => draft.remove(&service, &pointer),
            _ => {}
        }
    }
}

fn targets(set: Option<&RrSet>) -> BTreeSet<Name> {
    let data = set.into_iter().flat_map(|set| &set.data);
    data.filter_map(|data| match data {
        RData::PTR(PTR(target)) => Some(target.clone()),
        _ => None,
    })
    .collect()
}
