//! The embedded zone from outside: any bytes, by UDP and over streams, signed by keys of each
//! kind and not at all.

#![no_main]

use std::time::{Duration, Instant, SystemTime};

use libfuzzer_sys::fuzz_target;
use zonemesh_discovery::zone::{
    TsigKey, fuzzing,
    serve::{
        Limits, ZoneConfig, ZoneStore,
        wire::{Answer, KeyRights, Now, Responder, ResponderConfig, Source, UpdateRight},
    },
};
use zonemesh_fuzz::{Bytes, dns, key, network::network, sow, wall, zone};

/// Over a stream; with a key; as it was before a byte of the signed request changed.
const STREAM: u8 = 1;
const SIGNED: u8 = 2;
const CHANGED: u8 = 4;

fuzz_target!(
    init: {
        let framed = |flags: u8, message: &[u8]| {
            [&[flags, 0][..], &(message.len() as u16).to_be_bytes(), message].concat()
        };
        let [update, query] = [dns::update_of(1), dns::query()];
        let poll = dns::query_with(6, &[0xff, 0x15, 0, 4, 0, 0, 0, 1]);
        let own = [&[SIGNED, 1][..], &(update.len() as u16).to_be_bytes(), &update].concat();
        sow("zone_wire", &[
            [framed(STREAM, &dns::member_update_of(1)), framed(0, &query)].concat(),
            [framed(STREAM | SIGNED, &update), framed(0, &query), framed(STREAM, &poll)].concat(),
            [own, framed(STREAM, &dns::query_with(252, &[]))].concat(),
            [framed(STREAM, &dns::query_with(251, &[])), vec![0x80, 0x88]].concat(),
            framed(SIGNED | CHANGED, &query),
        ]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        let mut world = World::new();
        for _ in 0..16 {
            if bytes.is_empty() {
                break;
            }
            world.step(&mut bytes);
        }
    }
);

struct World {
    responder: Responder,
    keys: [TsigKey; 3],
    instant: Instant,
    system: SystemTime,
}

impl World {
    fn new() -> Self {
        let config = ZoneConfig {
            network: Some(network()),
            addresses: vec![[198, 51, 100, 1].into()],
            limits: Limits { nodes: 3, bytes: 8192, ..Limits::default() },
            ..ZoneConfig::new(zone())
        };
        let (mut store, _) = ZoneStore::open(config, &[], wall()).expect("an empty zone");
        store.poll_journal();
        store.commit();
        let name = format!("{}.mesh.example", key(1).to_base32());
        let keys = ["all", &name, "none"]
            .map(|name| TsigKey::new(name, "hmac-sha256", "c2VjcmV0LXNlY3JldA==").expect("a key"));
        let rights = [UpdateRight::All, UpdateRight::Own, UpdateRight::Proven];
        let rights = rights.map(|update| KeyRights { transfer: true, update });
        let config = ResponderConfig {
            keys: keys.iter().cloned().zip(rights).collect(),
            ..ResponderConfig::default()
        };
        let instant = Instant::now();
        Self { responder: Responder::new(store, config, instant), keys, instant, system: wall() }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        let flags = bytes.byte();
        if flags & 0x80 != 0 {
            let span = bytes.span() * 60;
            (self.instant, self.system) = (self.instant + span, self.system + span);
            self.responder.sweep(|_| Ok(()), self.system);
            return;
        }
        let number = bytes.byte();
        let mut wire = bytes.string().to_vec();
        if flags & SIGNED != 0 {
            let now = self.system.duration_since(SystemTime::UNIX_EPOCH).expect("later");
            fuzzing::sign(&self.keys[usize::from(number % 3)], &mut wire, now.as_secs());
            if flags & CHANGED != 0
                && let Some(byte) = wire.get_mut(usize::from(number))
            {
                *byte ^= 1;
            }
        }
        let source = Source { ip: [192, 0, 2, number & 7].into(), stream: flags & STREAM != 0 };
        let now = Now { instant: self.instant, system: self.system };
        match self.responder.handle(&wire, source, now) {
            Answer::Silence => {}
            Answer::Message(answer) => self.check(&wire, &answer, source),
            // Only what has a primary server does these.
            Answer::Forward(_) | Answer::Notified(_) => panic!("nobody is primary to this"),
            Answer::Transfer(mut transfer) => {
                assert!(source.stream);
                let mut total = 0;
                while let Some(message) = transfer.next_message(self.system) {
                    total += message.len();
                    assert!(total < 1 << 20, "a zone of 8 KB");
                }
            }
            Answer::Poll(poll) => {
                assert!(source.stream);
                let answer = self.responder.finish(*poll, self.system);
                self.check(&wire, &answer, source);
            }
            Answer::Update(update) => {
                assert!(update.wait() <= Duration::from_secs(10));
                let before = self.responder.store().serial();
                let fails = number & 0x80 != 0;
                let write = |_: &[u8]| {
                    if fails { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
                };
                let answers = self.responder.apply(vec![*update], write, self.system);
                assert_eq!(answers.len(), 1);
                self.check(&wire, &answers[0], source);
                assert!(!fails || self.responder.store().serial() == before);
            }
        }
        let store = self.responder.store();
        assert!(store.size() <= 8192);
        let apex = zone().name().clone();
        assert_eq!(store.records().filter(|record| record.name == apex).count(), 1, "NS");
    }

    fn check(&self, asked: &[u8], answer: &[u8], source: Source) {
        assert_eq!(answer[..2], asked[..2], "its number");
        assert!(answer[2] & 0x80 != 0, "a response");
        assert!(fuzzing::is_message(answer));
        assert!(source.stream || answer.len() <= 4096, "what EDNS allows at most");
    }
}
