//! The state: records, serial, and what is known of who wrote them; and how a change is
//! applied, written down, committed or taken back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hickory_proto::rr::{Name, RData, Record, rdata::SOA};

use super::{
    config::{TTL, ZoneConfig},
    journal::{self, JournalError, Kind, Replayed},
    lease::{Fact, Facts},
    names::Owner,
    records::Records,
    ring::{Diff, Ring},
};
use crate::{advert::Zone, membership::RevocationList};

/// How secondary servers follow: NOTIFY tells them at once, a minute is for a lost one;
/// and how long they go on without us: two weeks (RFC 1912 §2.2).
const REFRESH: i32 = 60;
const RETRY: i32 = 30;
const EXPIRE: i32 = 14 * 24 * 3600;

/// How long it may be believed that there is no such record (RFC 2308 §5).
pub(super) const NEGATIVE_TTL: u32 = 10;

/// How far the serial goes ahead where the journal's end was cut: past every serial that
/// anybody may have heard of.
const SERIAL_LEAP: u32 = 1 << 16;

/// How long after a disk that failed nothing is swept.
const RETRY_SWEEP: Duration = Duration::from_secs(10);

/// The zone: see the [module](super) for its verbs.
#[derive(Debug)]
pub struct ZoneStore {
    pub(super) config: ZoneConfig,
    pub(super) records: Records,
    pub(super) facts: Facts,
    pub(super) revocations: Option<RevocationList>,
    pub(super) sweep_not_before: SystemTime,
    serial: u32,
    /// That of the server that is followed, where one is and has told.
    soa: Option<Record>,
    ring: Ring,
    /// What is applied and not yet committed: the change, and the facts before it.
    uncommitted: Vec<(Diff, Vec<Fact>)>,
    journal: Vec<u8>,
}

impl ZoneStore {
    /// The zone as its journal tells it; an empty journal makes an empty zone. What the
    /// configuration has changed since is an uncommitted change: take the
    /// [journal](Self::poll_journal) before anything else. Of the journal that was handed
    /// in only [`Replayed::used`] bytes count: cut the file there first.
    ///
    /// # Errors
    /// [`JournalError`] when the bytes are another zone's journal, or none at all. An end
    /// that was not written whole is no error.
    pub fn open(
        config: ZoneConfig,
        journal: &[u8],
        now: SystemTime,
    ) -> Result<(Self, Replayed), JournalError> {
        let mut store = Self {
            config,
            records: Records::default(),
            facts: Facts::default(),
            revocations: None,
            sweep_not_before: UNIX_EPOCH,
            serial: clock_serial(now),
            soa: None,
            ring: Ring::default(),
            uncommitted: Vec::new(),
            journal: Vec::new(),
        };
        let replayed = store.replay(journal)?;
        if replayed.entries == 0 {
            store.journal = journal::head(&store.config.zone);
            for record in store.config.fixed_records() {
                store.records.add(&record);
            }
            let everything = store.everything();
            journal::push(&mut store.journal, Kind::Snapshot, &everything, &[]);
            return Ok((store, replayed));
        }
        if replayed.cut > 0 {
            let from = store.serial;
            store.serial = from.wrapping_add(SERIAL_LEAP);
            store.ring.clear();
            let leap = Diff { from, to: store.serial, removed: Vec::new(), added: Vec::new() };
            journal::push(&mut store.journal, Kind::Change, &leap, &[]);
        }
        if store.config.mirror {
            return Ok((store, replayed));
        }
        let is_fixed = |record: &Record| match store.config.owner(&record.name) {
            Owner::Fixed => true,
            // Of another secret: nobody can say what it is, or whose.
            Owner::Sealed => {
                let sets = store.records.at(&record.name);
                store.config.strings(&record.name, sets).is_none()
            }
            _ => false,
        };
        let before: Vec<Record> = store.records.iter().filter(is_fixed).collect();
        let after = store.config.fixed_records();
        let only = |these: &[Record], those: &[Record]| -> Vec<Record> {
            these.iter().filter(|record| !those.contains(record)).cloned().collect()
        };
        let (removed, added) = (only(&before, &after), only(&after, &before));
        store.apply(removed, added, &[], now);
        Ok((store, replayed))
    }

    fn replay(&mut self, journal: &[u8]) -> Result<Replayed, JournalError> {
        let mut reader = journal::Reader::new(&self.config.zone, journal)?;
        while let Some(entry) = reader.next() {
            match entry.kind {
                Kind::Snapshot => {
                    self.records = Records::default();
                    self.facts = Facts::default();
                    self.revocations = None;
                    self.ring.clear();
                    self.take(&entry.diff);
                    self.serial = entry.diff.to;
                }
                Kind::History => self.ring.push(entry.diff, &self.config.limits),
                Kind::Change => {
                    self.take(&entry.diff);
                    self.serial = entry.diff.to;
                    if !entry.diff.is_empty() {
                        self.ring.push(entry.diff, &self.config.limits);
                    }
                }
            }
            for fact in &entry.facts {
                self.facts.set(fact);
            }
        }
        Ok(reader.finish())
    }

    /// The zone that is served.
    pub fn zone(&self) -> &Zone {
        &self.config.zone
    }

    /// The zone's serial; it rises with every change (RFC 1982).
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// The zone's SOA record.
    pub fn soa(&self) -> Record {
        self.soa_at(self.serial)
    }

    /// The zone's SOA record with a serial of its past, for IXFR.
    pub fn soa_at(&self, serial: u32) -> Record {
        if let Some(mut record) = self.soa.clone()
            && let RData::SOA(soa) = &mut record.data
        {
            soa.serial = serial;
            return record;
        }
        let contact = self.config.zone.below(&[b"hostmaster"]);
        let soa =
            SOA::new(self.config.primary(), contact, serial, REFRESH, RETRY, EXPIRE, NEGATIVE_TTL);
        Record::from_rdata(self.apex().clone(), TTL, RData::SOA(soa))
    }

    /// All records but the SOA, in canonical order: what goes between the two SOAs of an
    /// AXFR (RFC 5936 §2.2).
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.records.iter()
    }

    /// The bytes of all records, uncompressed.
    pub fn size(&self) -> usize {
        self.records.bytes()
    }

    /// How many nodes are in the zone.
    pub fn nodes(&self) -> usize {
        self.facts.live_nodes()
    }

    /// The changes since a serial, oldest first and each following on the one before;
    /// empty where it is the current one, `None` where what is known does not reach back
    /// to it, and only a whole transfer helps (RFC 1995 §4).
    pub fn changes_since(&self, serial: u32) -> Option<Vec<&Diff>> {
        if serial == self.serial {
            return Some(Vec::new());
        }
        self.ring.since(serial).map(Iterator::collect)
    }

    /// The bytes to append to the journal for all that has changed since the last
    /// [`commit`](Self::commit), once; `None` where nothing has.
    pub fn poll_journal(&mut self) -> Option<Vec<u8>> {
        (!self.journal.is_empty()).then(|| std::mem::take(&mut self.journal))
    }

    /// What has changed is on disk: it counts from now on.
    pub fn commit(&mut self) {
        for (diff, _) in self.uncommitted.drain(..) {
            if !diff.is_empty() {
                self.ring.push(diff, &self.config.limits);
            }
        }
        self.journal.clear();
    }

    /// What has changed is not on disk: it has never been. Nothing is swept for a while.
    pub fn rollback(&mut self, now: SystemTime) {
        for (diff, facts) in std::mem::take(&mut self.uncommitted).into_iter().rev() {
            self.take(&Diff {
                from: diff.to,
                to: diff.from,
                removed: diff.added,
                added: diff.removed,
            });
            self.serial = diff.from;
            for fact in facts.iter().rev() {
                self.facts.set(fact);
            }
        }
        self.journal.clear();
        self.sweep_not_before = now + RETRY_SWEEP;
    }

    /// A whole new journal for the zone as it is, with the changes that are kept for
    /// IXFR: what may stand in the place of the old one. To be asked for when everything
    /// is committed.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut bytes = journal::head(&self.config.zone);
        journal::push(&mut bytes, Kind::Snapshot, &self.everything(), &self.facts.all());
        for diff in self.ring.iter() {
            journal::push(&mut bytes, Kind::History, diff, &[]);
        }
        bytes
    }

    fn everything(&self) -> Diff {
        Diff {
            from: self.serial,
            to: self.serial,
            removed: Vec::new(),
            added: self.records.iter().collect(),
        }
    }

    pub(super) fn apex(&self) -> &Name {
        self.config.zone.name()
    }

    /// Applies a change and writes it into the journal. One that changes no record
    /// leaves the serial as it is (RFC 2136 §3.7).
    pub(super) fn apply(
        &mut self,
        removed: Vec<Record>,
        added: Vec<Record>,
        facts: &[Fact],
        now: SystemTime,
    ) {
        let mut diff = Diff { from: self.serial, to: self.serial, removed, added };
        if diff.is_empty() && facts.is_empty() {
            return;
        }
        if !diff.is_empty() {
            diff.to = next_serial(self.serial, now);
        }
        self.apply_diff(diff, facts);
    }

    /// Applies a change after which the serial is this one.
    pub(super) fn apply_at(&mut self, serial: u32, removed: Vec<Record>, added: Vec<Record>) {
        let diff = Diff { from: self.serial, to: serial, removed, added };
        self.apply_diff(diff, &[]);
    }

    /// Remembers the SOA of the server that is followed.
    pub(super) fn set_soa(&mut self, soa: Record) {
        self.soa = Some(soa);
    }

    fn apply_diff(&mut self, diff: Diff, facts: &[Fact]) {
        journal::push(&mut self.journal, Kind::Change, &diff, facts);
        self.take(&diff);
        self.serial = diff.to;
        let before = facts.iter().map(|fact| self.facts.set(fact)).collect();
        self.uncommitted.push((diff, before));
    }

    fn take(&mut self, diff: &Diff) {
        for record in &diff.removed {
            self.records.remove(record);
        }
        for record in &diff.added {
            self.records.add(record);
        }
        let list = self.config.revocations_name();
        if diff.removed.iter().chain(&diff.added).any(|record| record.name == list) {
            self.revocations = self.read_revocations();
        }
    }
}

/// The serial of a zone that begins now: a zone that has lost its past is then, as a
/// rule, newer than that was.
fn clock_serial(now: SystemTime) -> u32 {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Serials go round, and so may this (RFC 1982).
    seconds as u32
}

/// One higher, or the clock's where that is higher still.
fn next_serial(serial: u32, now: SystemTime) -> u32 {
    let (next, clock) = (serial.wrapping_add(1), clock_serial(now));
    if is_newer(clock, next) { clock } else { next }
}

/// Serial number arithmetic (RFC 1982 §3.2).
fn is_newer(serial: u32, than: u32) -> bool {
    serial != than && serial.wrapping_sub(than) < 1 << 31
}
