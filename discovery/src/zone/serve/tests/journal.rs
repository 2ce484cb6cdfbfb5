use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::zone::serve::JournalError;

/// A zone with its journal on a disk that holds everything.
struct Disk {
    store: ZoneStore,
    journal: Vec<u8>,
    /// How long the journal was, and what the zone was, after each commit.
    commits: Vec<(usize, u32, Vec<String>)>,
}

impl Disk {
    fn new() -> Self {
        let (store, _) = ZoneStore::open(config(), &[], now()).expect("an empty journal");
        let mut disk = Self { store, journal: Vec::new(), commits: Vec::new() };
        disk.commit();
        disk
    }

    fn commit(&mut self) {
        if let Some(bytes) = self.store.poll_journal() {
            self.journal.extend(bytes);
        }
        self.store.commit();
        self.commits.push((self.journal.len(), self.store.serial(), text(&self.store)));
    }

    fn update(&mut self, updates: Vec<Record>) {
        let message = update_message(vec![], updates);
        let reply = self.store.handle_update(&message, &Writer::Administrator, now());
        assert_eq!(reply.error, None);
    }
}

/// A zone in which much has happened.
fn busy() -> &'static Disk {
    static BUSY: LazyLock<Disk> = LazyLock::new(make);
    &BUSY
}

fn make() -> Disk {
    let mut disk = Disk::new();
    for sequence in 1..=3 {
        for seed in 1..=3 {
            disk.update(records_of(&node(seed), sequence, 3600, 4000));
            disk.commit();
        }
    }
    // A batch of two, one that leaves, one that lapses.
    disk.update(records_of(&node(4), 1, 60, 4000));
    disk.update(records_of(&node(1), 9, 3600, 4000)[..4].to_vec());
    disk.commit();
    disk.store.handle_timeout(after(60 + 300));
    disk.commit();
    disk
}

#[test]
fn a_journal_makes_the_zone_again() {
    let disk = busy();
    let (mut again, replayed) =
        ZoneStore::open(config(), &disk.journal, now()).expect("its journal");
    assert_eq!((replayed.used, replayed.cut), (disk.journal.len(), 0));
    assert_eq!(again.serial(), disk.store.serial());
    assert_eq!(text(&again), text(&disk.store));
    assert_eq!(again.poll_timeout(), disk.store.poll_timeout());
    assert_eq!(again.snapshot(), disk.store.snapshot());
    assert_eq!(again.poll_journal(), None);
    // And so does a snapshot, with the changes for those who follow.
    let (short, _) = ZoneStore::open(config(), &disk.store.snapshot(), now()).expect("a snapshot");
    assert_eq!(text(&short), text(&disk.store));
    assert_eq!(short.snapshot(), disk.store.snapshot());
    let serial = disk.commits[0].1;
    assert_eq!(short.changes_since(serial), disk.store.changes_since(serial));
    assert!(short.changes_since(serial).is_some_and(|changes| changes.len() > 9));
}

#[test]
fn a_journal_cut_at_any_byte_is_what_was_committed_before() {
    let disk = busy();
    for len in 0..disk.journal.len() {
        let (store, replayed) =
            ZoneStore::open(config(), &disk.journal[..len], now()).expect("a journal");
        assert_eq!(replayed.used + replayed.cut, len);
        let Some((end, serial, lines)) = disk.commits.iter().rev().find(|(end, ..)| *end <= len)
        else {
            assert_eq!((replayed.entries, replayed.used), (0, 0), "{len}");
            continue;
        };
        // A batch is several entries: an update of one that was not acknowledged may count.
        assert!(replayed.used >= *end);
        if replayed.used > *end {
            continue;
        }
        assert_eq!(&text(&store), lines, "{len}");
        // Where something was cut, somebody may have seen a higher serial.
        assert_eq!(store.serial() == *serial, replayed.cut == 0, "{len}");
        assert!(store.serial().wrapping_sub(*serial) < 1 << 31);
    }
}

#[test]
fn the_serial_that_was_leapt_to_is_kept() {
    let disk = busy();
    let cut = &disk.journal[..disk.journal.len() - 1];
    let (mut store, replayed) = ZoneStore::open(config(), cut, now()).expect("a journal");
    let mut journal = cut[..replayed.used].to_vec();
    journal.extend(store.poll_journal().expect("the leap"));
    store.commit();
    let (again, replayed) = ZoneStore::open(config(), &journal, now()).expect("a journal");
    assert_eq!((again.serial(), replayed.cut), (store.serial(), 0));
    assert_eq!(text(&again), text(&store));
}

#[test]
fn a_changed_configuration_is_a_change_like_any_other() {
    let disk = busy();
    let changed = ZoneConfig { addresses: vec![[192, 0, 2, 77].into()], ..config() };
    let (mut store, _) = ZoneStore::open(changed, &disk.journal, now()).expect("its journal");
    assert_ne!(store.serial(), disk.store.serial());
    assert!(store.poll_journal().is_some());
    store.commit();
    let changes = store.changes_since(disk.store.serial()).expect("known");
    assert_eq!((changes[0].removed.len(), changes[0].added.len()), (1, 1));
    let answer = ask(&store, &name("rendezvous"), RecordType::A);
    assert_eq!(answer.answers[0].data, address([192, 0, 2, 77]));
}

#[test]
fn another_zones_journal_is_not_touched() {
    let disk = busy();
    let other: Zone = "other.example".parse().expect("a zone");
    let opened = ZoneStore::open(ZoneConfig::new(other), &disk.journal, now()).map(drop);
    assert_eq!(opened, Err(JournalError::OtherZone("mesh.example.".to_owned())));
    let opened = ZoneStore::open(config(), b"; a zone file\n", now()).map(drop);
    assert_eq!(opened, Err(JournalError::Foreign));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_damaged_journal_is_a_beginning_of_what_was(at in 0usize..20_000, bit in 0u8..8) {
        let disk = busy();
        let mut journal = disk.journal.clone();
        let at = at % journal.len();
        journal[at] ^= 1 << bit;
        if let Ok((store, replayed)) = ZoneStore::open(config(), &journal, now()) {
            prop_assert!(replayed.used <= at);
            let known = disk.commits.iter().any(|(end, _, lines)| {
                *end == replayed.used && *lines == text(&store)
            });
            // Or the first of the batch of two.
            prop_assert!(known || replayed.entries <= 1 || disk.commits[9].0 < replayed.used);
        }
    }

    #[test]
    fn bytes_that_are_no_journal_harm_nobody(tail in prop::collection::vec(any::<u8>(), 0..300)) {
        let disk = Disk::new();
        let mut journal = disk.journal.clone();
        journal.extend(&tail);
        let (store, replayed) = ZoneStore::open(config(), &journal, now()).expect("its head");
        prop_assert_eq!(replayed.used, disk.journal.len());
        prop_assert_eq!(text(&store), text(&disk.store));
    }
}
