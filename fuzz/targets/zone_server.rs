//! The embedded zone: queries and updates of anybody, and of keys that may write, with disks
//! that fail and time that passes.

#![no_main]

use std::time::SystemTime;

use hickory_proto::op::{Message, OpCode};
use libfuzzer_sys::fuzz_target;
use zonemesh_discovery::zone::serve::{
    Limits, Service, ServiceKind, Writer, ZoneConfig, ZoneStore,
};
use zonemesh_fuzz::{Bytes, dns, key, network::network, sow, wall, zone};

fuzz_target!(
    init: {
        let framed = |what: u8, message: &[u8]| {
            [&[what][..], &(message.len() as u16).to_be_bytes(), message].concat()
        };
        let publish = dns::update_of(1);
        let other = dns::update_of(2);
        let query = dns::query();
        sow("zone_server", &[
            [framed(2, &publish), framed(0, &query), vec![4], framed(2, &other), vec![5, 0xff, 4]].concat(),
            [framed(0, &dns::member_update_of(1)), framed(0, &query), vec![4, 5, 0xff]].concat(),
            [framed(1, &publish), framed(3, &publish), framed(0, &publish), vec![6]].concat(),
        ]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        let mut world = World::new();
        for _ in 0..32 {
            if bytes.is_empty() {
                break;
            }
            world.step(&mut bytes);
        }
        world.commit();
        world.check_journal();
    }
);

struct World {
    store: ZoneStore,
    now: SystemTime,
    journal: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let (mut store, _) = ZoneStore::open(config(), &[], wall()).expect("an empty zone");
        let journal = store.poll_journal().expect("its beginning");
        store.commit();
        Self { store, now: wall(), journal }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.byte() {
            what @ 0..=3 => {
                let Ok(request) = Message::from_vec(bytes.string()) else { return };
                let reply = if request.metadata.op_code == OpCode::Update {
                    let writer = match what {
                        0 => Writer::Anyone,
                        1 => Writer::Node(key(1)),
                        _ => Writer::Administrator,
                    };
                    let before = self.store.serial();
                    let reply = self.store.handle_update(&request, &writer, self.now);
                    assert!(
                        reply.error.is_none() || self.store.serial() == before,
                        "all or nothing"
                    );
                    reply.message
                } else {
                    self.store.handle_query(&request)
                };
                assert_eq!(reply.metadata.id, request.metadata.id);
                reply.to_vec().expect("every answer can be sent");
            }
            4 => self.commit(),
            5 => {
                self.now += bytes.span() * 60;
                self.store.handle_timeout(self.now);
            }
            _ => {
                let _ = self.store.poll_journal();
                self.store.rollback(self.now);
                self.check_journal();
            }
        }
        let limits = config().limits;
        assert!(self.store.size() <= limits.bytes);
        assert!(self.store.nodes() <= limits.nodes);
        // The top of the zone is out of reach.
        let apex = zone().name().clone();
        assert_eq!(self.store.records().filter(|record| record.name == apex).count(), 2);
    }

    fn commit(&mut self) {
        self.journal.extend(self.store.poll_journal().unwrap_or_default());
        self.store.commit();
    }

    /// What is on disk is what there is.
    fn check_journal(&self) {
        let (again, replayed) =
            ZoneStore::open(config(), &self.journal, self.now).expect("its own journal");
        assert_eq!(replayed.cut, 0);
        assert_eq!(again.serial(), self.store.serial());
        assert!(again.records().eq(self.store.records()));
        assert_eq!(again.poll_timeout().is_some(), self.store.poll_timeout().is_some());
    }
}

fn config() -> ZoneConfig {
    ZoneConfig {
        network: Some(network()),
        addresses: vec![[198, 51, 100, 1].into()],
        secondaries: vec![[198, 51, 100, 2].into()],
        services: vec![Service { kind: ServiceKind::Stun, port: 3478 }],
        limits: Limits { nodes: 3, bytes: 8192, pointers: 2, ..Limits::default() },
        ..ZoneConfig::new(zone())
    }
}
