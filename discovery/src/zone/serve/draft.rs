//! What an update would make of the zone, beside the zone itself: nothing has happened
//! until it is applied.

use std::collections::{BTreeMap, HashSet};

use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::records::{self, Records, RrSet, Sets, find, records_of};

/// The names that an update touches, as it leaves them.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    base: &'a Records,
    touched: BTreeMap<Name, Sets>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(base: &'a Records) -> Self {
        Self { base, touched: BTreeMap::new() }
    }

    /// What a name would have.
    pub(super) fn at(&self, name: &Name) -> &[RrSet] {
        self.touched.get(name).map_or_else(|| self.base.at(name), Vec::as_slice)
    }

    pub(super) fn set(&self, name: &Name, kind: RecordType) -> Option<&RrSet> {
        find(self.at(name), kind)
    }

    /// The names that were touched, also those that were left as they are.
    pub(super) fn touched(&self) -> impl Iterator<Item = &Name> {
        self.touched.keys()
    }

    /// Adds a record (RFC 2136 §3.4.2.2): the same once more only sets the TTL.
    pub(super) fn add(&mut self, record: &Record) {
        records::add(self.edit(&record.name), record);
    }

    /// Deletes one record (RFC 2136 §3.4.2.4).
    pub(super) fn remove(&mut self, name: &Name, data: &RData) {
        records::remove(self.edit(name), data);
    }

    /// Deletes the records of one type (RFC 2136 §3.4.2.3).
    pub(super) fn remove_set(&mut self, name: &Name, kind: RecordType) {
        self.edit(name).retain(|set| set.kind != kind);
    }

    /// Deletes everything that a name has (RFC 2136 §3.4.2.3).
    pub(super) fn remove_all(&mut self, name: &Name) {
        self.edit(name).clear();
    }

    /// Gives everything at a name the same TTL.
    pub(super) fn set_ttl(&mut self, name: &Name, ttl: u32) {
        self.edit(name).iter_mut().for_each(|set| set.ttl = ttl);
    }

    /// Leaves a name as it is in the zone.
    pub(super) fn forget(&mut self, name: &Name) {
        self.touched.remove(name);
    }

    /// Whether the name would have other records than it has.
    pub(super) fn differs(&self, name: &Name) -> bool {
        let (removed, added) = self.difference_at(name);
        !removed.is_empty() || !added.is_empty()
    }

    /// The records that go and those that come: only what really differs.
    pub(super) fn difference(&self) -> (Vec<Record>, Vec<Record>) {
        let (mut removed, mut added) = (Vec::new(), Vec::new());
        for name in self.touched.keys() {
            let (less, more) = self.difference_at(name);
            removed.extend(less);
            added.extend(more);
        }
        (removed, added)
    }

    fn difference_at(&self, name: &Name) -> (Vec<Record>, Vec<Record>) {
        let (mut removed, mut added) = (Vec::new(), Vec::new());
        let (old, new) = (self.base.at(name), self.at(name));
        let kinds: Vec<RecordType> = old.iter().chain(new).map(|set| set.kind).collect();
        for (at, kind) in kinds.iter().enumerate() {
            if kinds[..at].contains(kind) {
                continue;
            }
            let (old, new) = (find(old, *kind), find(new, *kind));
            // Another TTL makes other records of all of a set.
            let same_ttl = matches!((old, new), (Some(old), Some(new)) if old.ttl == new.ttl);
            removed.extend(only_in(name, old, new.filter(|_| same_ttl)));
            added.extend(only_in(name, new, old.filter(|_| same_ttl)));
        }
        (removed, added)
    }

    fn edit(&mut self, name: &Name) -> &mut Sets {
        self.touched.entry(name.clone()).or_insert_with(|| self.base.at(name).to_vec())
    }
}

/// The records of `one` that `other` lacks.
fn only_in(name: &Name, one: Option<&RrSet>, other: Option<&RrSet>) -> Vec<Record> {
    let Some(one) = one else { return Vec::new() };
    let known: HashSet<&RData> = other.iter().flat_map(|set| &set.data).collect();
    records_of(name, std::slice::from_ref(one))
        .filter(|record| !known.contains(&record.data))
        .collect()
}
