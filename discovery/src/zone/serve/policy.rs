//! Who may write what. It is judged by what an update would leave behind, not by its
//! steps: deletions and additions in whatever order are fine where the outcome is.

use std::{collections::BTreeSet, time::SystemTime};

use hickory_proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{PTR, TXT},
};

use super::{
    config::TTL,
    draft::Draft,
    lease::{Fact, Lease, Node, seconds},
    names::Owner,
    records::{RrSet, encode},
    store::ZoneStore,
    update::UpdateError,
};
use crate::{
    advert::{CLOCK_SKEW, MAX_LEASE, SignedAdvert},
    identity::PublicKey,
};

/// The most bytes of records of one node: SRV, TXT and addresses of an advert are some
/// 1,400 with their names uncompressed.
const MAX_NODE_BYTES: usize = 4096;

/// Who sent an update, as its TSIG tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// Nobody in particular: what is written has to prove itself.
    Anyone,
    /// The holder of the key of one node, which may write that node's names.
    Node(PublicKey),
    /// The holder of a key that may write the names of all nodes.
    Administrator,
}

/// Why a writer may not do what it asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A name that no update touches.
    #[error("the name is none that a node writes")]
    Name,
    /// A type that has no place at that name.
    #[error("a node has no record of type {0} at that name")]
    Type(RecordType),
    /// Another node's names.
    #[error("the key belongs to another node")]
    NotOwn,
    /// Nothing shows that the writer may write there.
    #[error("nothing proves that this is the node's own doing")]
    Unproven,
    /// The list of instances would not be what it is.
    #[error("the list of instances names those that are in the zone, and no others")]
    Pointer,
    /// The records have a signature that does not hold.
    #[error("the advert does not count: {0}")]
    Advert(#[from] crate::advert::AdvertError),
    /// More records, or larger ones, than anybody has a use for.
    #[error("too many records, or too large ones")]
    TooMany,
    /// The zone is full.
    #[error("the zone is full: it may hold {limit} {what}")]
    Full {
        /// The bound.
        limit: usize,
        /// What it bounds.
        what: &'static str,
    },
}

impl ZoneStore {
    /// Whether there may be such a record, whoever writes it.
    pub(super) fn check_name(&self, record: &Record) -> Result<(), UpdateError> {
        let kind = record.record_type();
        let fits = match Owner::of(&self.config.zone, &record.name) {
            Owner::Fixed => return Err(Refusal::Name.into()),
            Owner::Service => kind == RecordType::PTR,
            Owner::Instance(_) => matches!(kind, RecordType::SRV | RecordType::TXT),
            Owner::Host(_) => matches!(kind, RecordType::A | RecordType::AAAA),
        };
        // What is not there may be deleted as often as one likes.
        if fits || record.dns_class != hickory_proto::rr::DNSClass::IN {
            Ok(())
        } else {
            Err(Refusal::Type(kind).into())
        }
    }

    /// Judges what an update leaves behind, and completes it: the list of instances
    /// follows. Gives what is to be remembered.
    pub(super) fn judge(
        &self,
        draft: &mut Draft<'_>,
        writer: &Writer,
        now: SystemTime,
    ) -> Result<Vec<Fact>, Refusal> {
        let touched: BTreeSet<PublicKey> = draft
            .touched()
            .filter_map(|name| match Owner::of(&self.config.zone, name) {
                Owner::Instance(node) | Owner::Host(node) => Some(node),
                _ => None,
            })
            .collect();
        let mut facts = Vec::new();
        for key in &touched {
            if self.is_changed(draft, key) {
                facts.push(self.judge_node(draft, key, writer, now)?);
            }
        }
        self.check_pointers(draft)?;
        // It says nothing new; a list that is full must not grow by it either.
        draft.forget(&self.config.zone.service());
        for key in touched {
            self.set_pointer(draft, &key);
        }
        Ok(facts)
    }

    fn is_changed(&self, draft: &Draft<'_>, key: &PublicKey) -> bool {
        let zone = &self.config.zone;
        [zone.instance(key), zone.host(key)].iter().any(|name| draft.differs(name))
    }

    fn judge_node(
        &self,
        draft: &Draft<'_>,
        key: &PublicKey,
        writer: &Writer,
        now: SystemTime,
    ) -> Result<Fact, Refusal> {
        match writer {
            Writer::Anyone => return Err(Refusal::Unproven),
            Writer::Node(own) if own != key => return Err(Refusal::NotOwn),
            Writer::Node(_) | Writer::Administrator => {}
        }
        let zone = &self.config.zone;
        let (instance, host) = (zone.instance(key), zone.host(key));
        let size: usize = [&instance, &host]
            .into_iter()
            .flat_map(|name| super::records::records_of(name, draft.at(name)))
            .filter_map(|record| encode(&record))
            .map(|bytes| bytes.len())
            .sum();
        if size > MAX_NODE_BYTES {
            return Err(Refusal::TooMany);
        }
        let known = self.facts.node(key).copied();
        let sequence = known.map_or(0, |node| node.sequence);
        if size == 0 {
            return Ok(Fact::Node(*key, Some(Node { sequence, lease: gone(now) })));
        }
        let node = match advert_strings(draft.set(&instance, RecordType::TXT)) {
            Some(txt) => {
                let signed = SignedAdvert::verify(zone, &txt, now)?;
                let advert = signed.advert();
                let lease = Lease::Until(seconds(advert.expires + CLOCK_SKEW));
                Node { sequence: sequence.max(advert.sequence), lease }
            }
            None => Node { sequence, lease: Lease::Open },
        };
        Ok(Fact::Node(*key, Some(node)))
    }

    /// The list of instances is the zone's own: what an update says of it must be so
    /// already, or be made so by the update.
    fn check_pointers(&self, draft: &Draft<'_>) -> Result<(), Refusal> {
        let service = self.config.zone.service();
        let old = targets(self.records.set(&service, RecordType::PTR));
        let new = targets(draft.set(&service, RecordType::PTR));
        let is_live = |target: &Name| {
            self.config.zone.instance_key(target).is_some() && !draft.at(target).is_empty()
        };
        let added = new.difference(&old).all(is_live);
        let removed = !old.difference(&new).any(is_live);
        if added && removed { Ok(()) } else { Err(Refusal::Pointer) }
    }

    /// Has the list of instances name a node that is in the zone, and no other.
    pub(super) fn set_pointer(&self, draft: &mut Draft<'_>, key: &PublicKey) {
        let (service, instance) = (self.config.zone.service(), self.config.zone.instance(key));
        let list = draft.set(&service, RecordType::PTR);
        let (len, pointer) =
            (list.map_or(0, |set| set.data.len()), RData::PTR(PTR(instance.clone())));
        let listed = list.is_some_and(|set| set.data.contains(&pointer));
        match (!draft.at(&instance).is_empty(), listed) {
            (true, false) if len < self.config.limits.pointers => {
                draft.add(&Record::from_rdata(service, TTL, pointer));
            }
            (false, true) => draft.remove(&service, &pointer),
            _ => {}
        }
    }

    /// The bounds of the whole zone.
    pub(super) fn check_room(
        &self,
        removed: &[Record],
        added: &[Record],
        facts: &[Fact],
    ) -> Result<(), Refusal> {
        let limits = &self.config.limits;
        let size = |records: &[Record]| -> usize {
            records.iter().filter_map(encode).map(|bytes| bytes.len()).sum()
        };
        let (less, more) = (size(removed), size(added));
        if more > less && self.records.bytes() + more - less > limits.bytes {
            return Err(Refusal::Full { limit: limits.bytes, what: "bytes of records" });
        }
        let new = facts.iter().filter(|fact| match fact {
            Fact::Node(key, node) => node.is_some() && self.facts.node(key).is_none(),
        });
        if new.count() + self.facts.nodes() > limits.nodes {
            return Err(Refusal::Full { limit: limits.nodes, what: "nodes" });
        }
        Ok(())
    }

    /// Removes a node's records, or what is remembered of it.
    pub(super) fn lapse(&self, draft: &mut Draft<'_>, key: &PublicKey, now: SystemTime) -> Fact {
        let zone = &self.config.zone;
        let node = self.facts.node(key).copied();
        match node {
            Some(Node { sequence, lease: Lease::Until(_) | Lease::Open }) => {
                draft.remove_all(&zone.instance(key));
                draft.remove_all(&zone.host(key));
                self.set_pointer(draft, key);
                Fact::Node(*key, Some(Node { sequence, lease: gone(now) }))
            }
            Some(Node { lease: Lease::Gone(_), .. }) | None => Fact::Node(*key, None),
        }
    }
}

/// Its number is remembered until every advert that it has signed has lapsed for all.
fn gone(now: SystemTime) -> Lease {
    Lease::Gone(seconds(now + MAX_LEASE + 2 * CLOCK_SKEW))
}

/// The strings of the one TXT record, where they are signed.
fn advert_strings(set: Option<&RrSet>) -> Option<Vec<Vec<u8>>> {
    let [RData::TXT(TXT { txt_data, .. })] = set?.data.as_slice() else { return None };
    let signed = txt_data.iter().any(|string| string.starts_with(b"sig="));
    signed.then(|| txt_data.iter().map(|string| string.to_vec()).collect())
}

fn targets(set: Option<&RrSet>) -> BTreeSet<Name> {
    let data = set.into_iter().flat_map(|set| &set.data);
    data.filter_map(|data| match data {
        RData::PTR(PTR(target)) => Some(target.clone()),
        _ => None,
    })
    .collect()
}
