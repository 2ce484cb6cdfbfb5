//! The records of the zone by name, in canonical order (RFC 4034 §6.1), which puts a
//! name right before those below it.

use std::{collections::BTreeMap, ops::Bound};

use hickory_proto::{
    rr::{
        Name, RData, Record, RecordType,
        rdata::{NS, PTR, SRV},
    },
    serialize::binary::{BinEncodable, BinEncoder},
};

use super::names::canonical;

/// The records of one name and type: one TTL for all (RFC 2181 §5.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RrSet {
    pub(super) kind: RecordType,
    pub(super) ttl: u32,
    pub(super) data: Vec<RData>,
}

/// Everything that one name has.
pub(super) type Sets = Vec<RrSet>;

#[derive(Debug, Clone, Default)]
pub(super) struct Records {
    names: BTreeMap<Name, Sets>,
    bytes: usize,
}

impl Records {
    /// What a name has; nothing where it does not exist or only has names below it.
    pub(super) fn at(&self, name: &Name) -> &[RrSet] {
        self.names.get(name).map_or(&[], Vec::as_slice)
    }

    pub(super) fn set(&self, name: &Name, kind: RecordType) -> Option<&RrSet> {
        find(self.at(name), kind)
    }

    /// Whether there are names below this one, so that it exists though it may have no
    /// records of its own (RFC 8020 §2).
    pub(super) fn has_below(&self, name: &Name) -> bool {
        let after = (Bound::Excluded(name), Bound::Unbounded);
        self.names.range::<Name, _>(after).next().is_some_and(|(next, _)| name.zone_of(next))
    }

    /// All records, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Record> + '_ {
        self.names.iter().flat_map(|(name, sets)| records_of(name, sets))
    }

    /// The bytes of all records, as they would take uncompressed.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn add(&mut self, record: &Record) {
        let sets = self.names.entry(record.name.clone()).or_default();
        if add(sets, record) {
            self.bytes += size(record);
        }
    }

    pub(super) fn remove(&mut self, record: &Record) {
        let Some(sets) = self.names.get_mut(&record.name) else { return };
        if remove(sets, &record.data) {
            self.bytes = self.bytes.saturating_sub(size(record));
        }
        if sets.is_empty() {
            self.names.remove(&record.name);
        }
    }
}

pub(super) fn find(sets: &[RrSet], kind: RecordType) -> Option<&RrSet> {
    sets.iter().find(|set| set.kind == kind)
}

pub(super) fn records_of<'a>(
    name: &'a Name,
    sets: &'a [RrSet],
) -> impl Iterator<Item = Record> + 'a {
    sets.iter().flat_map(move |set| {
        set.data.iter().map(|data| Record::from_rdata(name.clone(), set.ttl, data.clone()))
    })
}

/// Adds a record; its TTL becomes that of the whole set. Says whether it is new.
pub(super) fn add(sets: &mut Sets, record: &Record) -> bool {
    let kind = record.record_type();
    let data = record.data.clone();
    let Some(set) = sets.iter_mut().find(|set| set.kind == kind) else {
        sets.push(RrSet { kind, ttl: record.ttl, data: vec![data] });
        return true;
    };
    set.ttl = record.ttl;
    let is_new = !set.data.contains(&data);
    if is_new {
        set.data.push(data);
    }
    is_new
}

/// Removes a record, by its data alone; says whether it was there.
pub(super) fn remove(sets: &mut Sets, data: &RData) -> bool {
    let kind = data.record_type();
    let Some(set) = sets.iter_mut().find(|set| set.kind == kind) else { return false };
    let before = set.data.len();
    set.data.retain(|known| known != data);
    let was_there = set.data.len() < before;
    sets.retain(|set| !set.data.is_empty());
    was_there
}

/// A record as the zone keeps it: all names in lower case.
pub(super) fn canonical_record(record: &Record) -> Record {
    let data = match &record.data {
        RData::PTR(PTR(target)) => RData::PTR(PTR(canonical(target))),
        RData::NS(NS(target)) => RData::NS(NS(canonical(target))),
        RData::SRV(srv) => {
            RData::SRV(SRV::new(srv.priority, srv.weight, srv.port, canonical(&srv.target)))
        }
        data => data.clone(),
    };
    Record::from_rdata(canonical(&record.name), record.ttl, data)
}

/// The most bytes that a record may have by itself: a list of revocations is the longest.
pub(super) const MAX_RECORD: usize = 50 << 10;

/// The bytes of a record by itself; `None` for what the zone does not keep.
pub(super) fn encode(record: &Record) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(128);
    record.emit(&mut BinEncoder::new(&mut bytes)).ok()?;
    (bytes.len() <= MAX_RECORD).then_some(bytes)
}

fn size(record: &Record) -> usize {
    encode(record).map_or(MAX_RECORD, |bytes| bytes.len())
}
