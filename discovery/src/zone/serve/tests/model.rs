//! Anything in any order: what always holds.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{
    members::{certificate, invite, last_word, list, list_records, member_advert, network},
    *,
};
use crate::membership::Revoked;

#[derive(Debug, Clone)]
enum Step {
    /// A member says where it is, with this number.
    Publish(u8, u64, u16),
    /// A member's last word.
    Leave(u8, u64),
    /// Somebody with a key adds an address to a node's host.
    Add(u8, u8),
    /// Somebody with a key deletes a set of a node, or everything.
    Delete(u8, RecordType),
    /// An update with something that is not allowed behind something that is.
    Spoilt(u8, u64),
    /// The administrator puts out a node.
    Revoke(u8),
    /// Time passes, and what has lapsed goes.
    Sweep(u64),
    /// What has changed is on disk.
    Commit,
    /// The disk does not take it.
    Rollback,
}

fn step() -> impl Strategy<Value = Step> {
    let kinds = [RecordType::A, RecordType::SRV, RecordType::TXT, RecordType::ANY];
    prop_oneof![
        6 => (0u8..5, 0u64..20, 4000u16..4003).prop_map(|(node, seq, port)| {
            Step::Publish(node, seq, port)
        }),
        2 => (0u8..5, 0u64..25).prop_map(|(node, seq)| Step::Leave(node, seq)),
        1 => (0u8..5, 0u8..4).prop_map(|(node, last)| Step::Add(node, last)),
        1 => (0u8..5, 0..kinds.len()).prop_map(move |(node, kind)| {
            Step::Delete(node, kinds[kind])
        }),
        1 => (0u8..5, 0u64..30).prop_map(|(node, seq)| Step::Spoilt(node, seq)),
        1 => (0u8..5).prop_map(Step::Revoke),
        1 => (0u64..4000).prop_map(Step::Sweep),
        4 => Just(Step::Commit),
        1 => Just(Step::Rollback),
    ]
}

struct World {
    store: ZoneStore,
    journal: Vec<u8>,
    /// Another server that follows by what has changed.
    replica: BTreeSet<String>,
    replica_serial: u32,
    /// The serial that the zone began with.
    start: u32,
    now: u64,
    lists: u64,
}

impl World {
    fn new() -> Self {
        let config = ZoneConfig { network: Some(network().id()), ..config() };
        let (mut store, _) = ZoneStore::open(config, &[], now()).expect("an empty journal");
        let journal = store.poll_journal().expect("the zone as it begins");
        store.commit();
        let replica = text(&store).into_iter().collect();
        let replica_serial = store.serial();
        let start = replica_serial;
        Self { store, journal, replica, replica_serial, start, now: 0, lists: 0 }
    }

    /// Whether it was done.
    fn write(&mut self, writer: Writer, updates: Vec<Record>) -> bool {
        let message = update_message(vec![], updates);
        self.store.handle_update(&message, &writer, after(self.now)).error.is_none()
    }

    fn advert(&self, node: &Identity, sequence: u64, port: u16) -> Advert {
        let certificate = certificate(&invite(), &node.public_key());
        Advert { certificate, ..advert_of(node, sequence, self.now + 3600, port) }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Publish(seed, sequence, port) => {
                let advert = self.advert(&node(seed), sequence, port);
                self.write(Writer::Anyone, publish(&node(seed), &advert));
            }
            Step::Leave(seed, sequence) => {
                let word = last_word(&node(seed), sequence);
                let word = Advert { expires: after(self.now), ..word };
                self.write(Writer::Anyone, publish(&node(seed), &word));
            }
            Step::Add(seed, last) => {
                let host = zone().host(&node(seed).public_key());
                let record = Record::from_rdata(host, 60, address([192, 0, 2, last]));
                self.write(Writer::Administrator, vec![record]);
            }
            Step::Delete(seed, kind) => {
                let key = node(seed).public_key();
                let names = [zone().instance(&key), zone().host(&key)];
                let deleted = names.map(|name| delete_set(&name, kind)).to_vec();
                self.write(Writer::Node(key), deleted);
            }
            Step::Spoilt(seed, sequence) => {
                let before = (self.store.serial(), text(&self.store));
                let mut records = publish(&node(seed), &member_advert(&node(seed), sequence));
                records.push(Record::from_rdata(name("rendezvous"), 30, address([192, 0, 2, 1])));
                assert!(!self.write(Writer::Anyone, records));
                assert_eq!((self.store.serial(), text(&self.store)), before);
            }
            Step::Revoke(seed) => {
                self.lists += 1;
                let revoked = vec![Revoked::from(&node(seed).public_key())];
                self.write(Writer::Anyone, list_records(&list(self.lists, revoked)));
            }
            Step::Sweep(seconds) => {
                self.now += seconds;
                self.store.handle_timeout(after(self.now));
            }
            Step::Commit => self.commit(),
            Step::Rollback => {
                self.store.poll_journal();
                self.store.rollback(after(self.now));
                assert_eq!(self.store.serial(), self.replica_serial);
                assert_eq!(text(&self.store), Vec::from_iter(self.replica.iter().cloned()));
                self.now += 10;
            }
        }
        self.check();
    }

    fn commit(&mut self) {
        self.journal.extend(self.store.poll_journal().unwrap_or_default());
        self.store.commit();
        for diff in self.store.changes_since(self.replica_serial).expect("few changes") {
            assert_eq!(diff.from, self.replica_serial);
            for record in &diff.removed {
                assert!(self.replica.remove(&record.to_string()), "{record} was not there");
            }
            for record in &diff.added {
                assert!(self.replica.insert(record.to_string()), "{record} was there");
            }
            self.replica_serial = diff.to;
        }
        assert_eq!(text(&self.store), Vec::from_iter(self.replica.iter().cloned()));
    }

    /// The list of instances tells who is there, and who is revoked is not.
    fn check(&self) {
        let listed: BTreeSet<Name> = self
            .store
            .records()
            .filter_map(|record| match record.data {
                RData::PTR(PTR(target)) => Some(target),
                _ => None,
            })
            .collect();
        let there: BTreeSet<Name> = self
            .store
            .records()
            .map(|record| record.name)
            .filter(|name| zone().instance_key(name).is_some())
            .collect();
        assert_eq!(listed, there);
        let Some(list) = self.store.revocations() else { return };
        for name in there {
            let key = zone().instance_key(&name).expect("just looked at");
            assert!(!list.contains(&key), "{name} is revoked");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn followers_journals_and_snapshots_have_what_the_zone_has(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.run(step);
        }
        world.commit();
        let config = world.store.config.clone();
        let snapshot = world.store.snapshot();
        for journal in [&world.journal, &snapshot] {
            let (again, replayed) =
                ZoneStore::open(config.clone(), journal, now()).expect("its journal");
            prop_assert_eq!(replayed.cut, 0);
            prop_assert_eq!(again.serial(), world.store.serial());
            prop_assert_eq!(text(&again), text(&world.store));
            prop_assert_eq!(again.facts.all(), world.store.facts.all());
            prop_assert_eq!(again.revocations(), world.store.revocations());
            let start = world.start;
            prop_assert_eq!(again.changes_since(start), world.store.changes_since(start));
        }
    }
}
