//! A zone that another server has: what a secondary server takes over from its primary.

use std::collections::HashSet;

use hickory_proto::rr::{RData, Record};

use super::{
    records::{canonical_record, encode},
    store::ZoneStore,
};

/// What the primary server has told.
#[derive(Debug)]
pub struct News {
    /// The zone's SOA as it is now.
    pub soa: Record,
    /// What else.
    pub change: Change,
}

/// What is new.
#[derive(Debug)]
pub enum Change {
    /// All records but the SOA.
    All(Vec<Record>),
    /// What has come (`true`) and gone, in order.
    Steps {
        /// The serial before.
        from: u32,
        /// The records.
        steps: Vec<(Record, bool)>,
    },
}

/// Why news was not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// It does not follow on what is known: the whole zone is needed.
    #[error("the zone's changes do not follow on what is known of it")]
    OutOfStep,
    /// What came as the SOA is none.
    #[error("no SOA record")]
    NoSoa,
}

impl ZoneStore {
    /// Takes over what the primary server has told. The change has to be journalled and
    /// committed as an update's.
    ///
    /// # Errors
    /// [`FollowError`] where it makes no sense; nothing has changed then.
    pub fn follow(&mut self, news: News) -> Result<(), FollowError> {
        let RData::SOA(soa) = &news.soa.data else { return Err(FollowError::NoSoa) };
        let serial = soa.serial;
        let (removed, added) = match news.change {
            Change::All(records) => self.difference(&records),
            Change::Steps { from, .. } if from != self.serial() => {
                return Err(FollowError::OutOfStep);
            }
            Change::Steps { steps, .. } => self.sum(steps)?,
        };
        self.set_soa(news.soa);
        self.apply_at(serial, removed, added);
        Ok(())
    }

    /// What has to go and to come, that the zone has these records.
    fn difference(&self, records: &[Record]) -> (Vec<Record>, Vec<Record>) {
        let ours = |record: &Record| self.zone().name().zone_of(&record.name);
        let new: Vec<Record> = records.iter().filter(|r| ours(r)).map(canonical_record).collect();
        let old: Vec<Record> = self.records().collect();
        let bytes = |records: &[Record]| -> HashSet<Vec<u8>> {
            records.iter().filter_map(encode).collect()
        };
        let (old_bytes, mut new_bytes) = (bytes(&old), bytes(&new));
        let is_in = |known: &HashSet<Vec<u8>>, record: &Record| {
            encode(record).is_none_or(|bytes| known.contains(&bytes))
        };
        let removed = old.into_iter().filter(|record| !is_in(&new_bytes, record)).collect();
        let mut added = Vec::new();
        for record in new {
            // One that comes twice is one.
            let first = encode(&record).is_some_and(|bytes| new_bytes.remove(&bytes));
            if first && !is_in(&old_bytes, &record) {
                added.push(record);
            }
        }
        (removed, added)
    }

    /// What has to go and to come in all; what came and went again is neither.
    fn sum(&self, steps: Vec<(Record, bool)>) -> Result<(Vec<Record>, Vec<Record>), FollowError> {
        let (mut removed, mut added): (Vec<Record>, Vec<Record>) = (Vec::new(), Vec::new());
        let same = |a: &Record, b: &Record| a.name == b.name && a.data == b.data;
        for (record, comes) in steps {
            if !self.zone().name().zone_of(&record.name) {
                continue;
            }
            let record = canonical_record(&record);
            let (from, to) =
                if comes { (&mut removed, &mut added) } else { (&mut added, &mut removed) };
            let undone =
                from.iter().position(|other| same(other, &record) && other.ttl == record.ttl);
            match undone {
                Some(at) => {
                    from.remove(at);
                }
                None if comes || self.has(&record) => to.push(record),
                None => return Err(FollowError::OutOfStep),
            }
        }
        Ok((removed, added))
    }

    fn has(&self, record: &Record) -> bool {
        let sets = self.records.at(&record.name);
        sets.iter().any(|set| set.data.contains(&record.data))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use hickory_proto::rr::{
        Name,
        rdata::{A, SOA},
    };

    use super::*;
    use crate::zone::serve::ZoneConfig;

    fn name(text: &str) -> Name {
        Name::from_ascii(format!("{text}mesh.example.")).expect("a name")
    }

    fn soa(serial: u32) -> Record {
        let soa = SOA::new(name("ns."), name("admin."), serial, 60, 30, 3600, 10);
        Record::from_rdata(name(""), 30, RData::SOA(soa))
    }

    fn address(host: &str, last: u8) -> Record {
        Record::from_rdata(name(host), 30, RData::A(A::new(192, 0, 2, last)))
    }

    fn all(serial: u32, records: &[Record]) -> News {
        News { soa: soa(serial), change: Change::All(records.to_vec()) }
    }

    fn steps(from: u32, serial: u32, steps: &[(Record, bool)]) -> News {
        News { soa: soa(serial), change: Change::Steps { from, steps: steps.to_vec() } }
    }

    fn mirror(journal: &[u8]) -> ZoneStore {
        let mut config = ZoneConfig::new("mesh.example".parse().expect("a zone"));
        config.mirror = true;
        ZoneStore::open(config, journal, SystemTime::now()).expect("a zone").0
    }

    fn has(store: &ZoneStore) -> Vec<Record> {
        store.records().collect()
    }

    #[test]
    fn it_has_what_its_primary_has_and_tells_the_same_differences() {
        let mut store = mirror(&[]);
        let (a, b, c) = (address("a.", 1), address("b.", 2), address("c.", 3));
        let mut journal = Vec::new();
        let mut take = |store: &mut ZoneStore, news| {
            store.follow(news)?;
            journal.extend(store.poll_journal().unwrap_or_default());
            store.commit();
            Ok(())
        };
        // A record of another zone, and one that comes twice.
        let foreign = Record::from_rdata(Name::root(), 30, a.data.clone());
        let records = [a.clone(), b.clone(), b.clone(), foreign];
        assert_eq!(take(&mut store, all(7, &records)), Ok(()));
        assert_eq!((store.serial(), has(&store)), (7, vec![a.clone(), b.clone()]));
        assert_eq!(store.soa(), soa(7), "the primary's, not one of its own");
        // One goes, one comes, one comes and goes.
        let news = [(b.clone(), false), (c.clone(), true), (b.clone(), true), (b.clone(), false)];
        assert_eq!(take(&mut store, steps(7, 9, &news)), Ok(()));
        assert_eq!((store.serial(), has(&store)), (9, vec![a.clone(), c.clone()]));
        let changes = store.changes_since(7).expect("known");
        assert_eq!((changes[0].from, changes[0].to), (7, 9));
        assert_eq!((&changes[0].removed, &changes[0].added), (&vec![b.clone()], &vec![c.clone()]));
        // What does not follow is not taken.
        for news in [steps(7, 10, &[]), steps(9, 10, &[(b, false)])] {
            assert_eq!(take(&mut store, news), Err(FollowError::OutOfStep));
        }
        assert_eq!(store.serial(), 9);
        // After a restart it is as it was; a zone that was made anew is taken whole.
        let mut store = mirror(&journal);
        assert_eq!((store.serial(), has(&store)), (9, vec![a.clone(), c]));
        assert_eq!(store.poll_journal(), None);
        store.follow(all(2, std::slice::from_ref(&a))).expect("taken");
        assert_eq!((store.serial(), has(&store)), (2, vec![a]));
    }
}
