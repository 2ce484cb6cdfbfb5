use std::{
    io,
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, SOA, TXT},
    },
};
use proptest::prelude::*;

use super::*;
use crate::{
    identity::Identity,
    zone::{
        TsigFault, TsigKey,
        message::{Data, Reply},
        poll::{known_serial, set_known_serial},
        serve::{ZoneConfig, ZoneStore},
    },
};

const SECRET: &str = "c2VjcmV0IG9mIHRoZSB0ZXN0cw==";

/// A zone that answers, and a clock.
struct World {
    responder: Responder,
    now: Now,
}

impl World {
    fn new() -> Self {
        Self::with(ResponderConfig { keys: vec![(key(), ALL)], ..ResponderConfig::default() })
    }

    fn with(config: ResponderConfig) -> Self {
        let now = Now { instant: Instant::now(), system: SystemTime::now() };
        let zone = ZoneConfig::new("mesh.example".parse().expect("a zone"));
        let (mut store, _) = ZoneStore::open(zone, &[], now.system).expect("an empty zone");
        store.poll_journal();
        store.commit();
        Self { responder: Responder::new(store, config, now.instant), now }
    }

    fn serial(&self) -> u32 {
        self.responder.store().serial()
    }

    /// What comes of bytes; an update is applied at once.
    fn handle(&mut self, wire: &[u8], source: Source) -> Answer {
        match self.responder.handle(wire, source, self.now) {
            Answer::Update(update) => {
                let answers = self.responder.apply(vec![*update], |_| Ok(()), self.now.system);
                Answer::Message(answers.into_iter().next().expect("one answer"))
            }
            answer => answer,
        }
    }

    fn ask(&mut self, message: &Message, source: Source) -> Message {
        let wire = message.to_vec().expect("a request");
        match self.handle(&wire, source) {
            Answer::Message(wire) => Message::from_vec(&wire).expect("an answer"),
            _ => panic!("no single answer"),
        }
    }

    /// Has a node publish itself with the administrator's key.
    fn publish(&mut self, number: u16, text: &[u8]) {
        let mut wire = update(&node_records(number, text)).to_vec().expect("a request");
        let mut chain = key().sign(&mut wire, unix(self.now));
        let Answer::Message(answer) = self.handle(&wire, TCP) else { panic!("no answer") };
        let reply = Reply::read(&answer).expect("an answer");
        assert_eq!(reply.rcode, crate::zone::Rcode::NOERROR);
        assert_eq!(chain.verify(&answer, reply.tsig.as_ref(), unix(self.now)), Ok(()));
    }
}

const ALL: KeyRights = KeyRights { transfer: true, update: UpdateRight::All };
const TCP: Source = Source { ip: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), stream: true };
const UDP: Source = Source { stream: false, ..TCP };

#[test]
fn an_answer_by_udp_is_no_longer_than_the_client_can_take() {
    let mut world = World::new();
    world.publish(1, &[b'x'; 600]);
    let instance = instance(1);
    let mut question = query(&instance, RecordType::TXT);
    let answer = world.ask(&question, UDP);
    assert!(answer.metadata.truncation && answer.answers.is_empty());
    assert!(answer.edns.is_none(), "who did not ask with EDNS gets none");
    for (size, whole) in [(0, false), (600, false), (1232, true), (u16::MAX, true)] {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        question.set_edns(edns);
        let answer = world.ask(&question, UDP);
        assert_eq!(answer.metadata.truncation, !whole, "{size}");
        assert_eq!(answer.edns.as_ref().map(Edns::max_payload), Some(1232));
    }
    world.publish(2, &[b'x'; 1300]);
    let mut large = query(&self::instance(2), RecordType::TXT);
    large.edns.clone_from(&question.edns);
    assert!(world.ask(&large, UDP).metadata.truncation, "fragments are lost too often");
    assert_eq!(world.ask(&large, TCP).answers.len(), 1);
}

#[test]
fn additional_records_go_before_an_answer_does() {
    let mut world = World::new();
    world.publish(1, &[b'x'; 400]);
    let service = Name::from_ascii("_wireguard._udp.mesh.example.").expect("a name");
    let question = query(&service, RecordType::PTR);
    let answer = world.ask(&question, UDP);
    assert_eq!(answer.answers.len(), 1);
    assert!(!answer.metadata.truncation && answer.additionals.is_empty());
    assert!(!world.ask(&question, TCP).additionals.is_empty());
}

#[test]
fn a_source_that_floods_gets_no_more_than_it_sends() {
    let mut world = World::new();
    world.publish(1, &[b'x'; 600]);
    let mut question = query(&instance(1), RecordType::TXT);
    question.set_edns({
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        edns
    });
    let wire = question.to_vec().expect("a request");
    let send = |world: &mut World, count| {
        let mut answered = 0;
        for _ in 0..count {
            if let Answer::Message(answer) = world.handle(&wire, UDP) {
                answered += answer.len();
            }
        }
        answered
    };
    let most = send(&mut world, 1000);
    assert!(most < 200_000, "{most} bytes at once, and no more");
    let more = send(&mut world, 1000);
    assert!(more < 1000 * wire.len(), "{more} bytes for {}", 1000 * wire.len());
    // Somebody real goes on by TCP, and others by UDP.
    assert_eq!(world.ask(&question, TCP).answers.len(), 1);
    let other = Source { ip: [198, 51, 100, 1].into(), ..UDP };
    assert_eq!(world.ask(&question, other).answers.len(), 1);
    world.now.instant += Duration::from_secs(3);
    assert_eq!(world.ask(&question, UDP).answers.len(), 1);
    assert!(world.responder.counters().limited > 1000);
}

#[test]
fn what_cannot_be_read_is_told_so_and_what_answers_is_not_answered() {
    let mut world = World::new();
    let question = query(&apex(), RecordType::SOA);
    let wire = question.to_vec().expect("a request");
    let Answer::Message(answer) = world.handle(&wire[..20], UDP) else { panic!("no answer") };
    let answer = Message::from_vec(&answer).expect("a header");
    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
    assert_eq!((answer.metadata.id, answer.queries.len()), (question.metadata.id, 0));
    assert!(matches!(world.handle(&wire[..11], UDP), Answer::Silence));
    let mut response = wire.clone();
    response[2] |= 0x80;
    assert!(matches!(world.handle(&response, UDP), Answer::Silence));

    let mut version = question.clone();
    version.set_edns({
        let mut edns = Edns::new();
        edns.set_version(1);
        edns
    });
    let answer = world.ask(&version, UDP);
    // The code of BADVERS has two names (RFC 6891 §9).
    assert_eq!(u16::from(answer.metadata.response_code), u16::from(ResponseCode::BADVERS));
    let mut status = question;
    status.metadata.op_code = OpCode::Status;
    assert_eq!(world.ask(&status, UDP).metadata.response_code, ResponseCode::NotImp);
}

#[test]
fn a_wrong_signature_is_told_and_does_nothing() {
    let mut world = World::new();
    let serial = world.serial();
    let message = update(&node_records(1, b"x"));
    let other = TsigKey::new("other", "hmac-sha256", SECRET).expect("a key");
    let forged = TsigKey::new("mesh-key", "hmac-sha256", "AAAA").expect("a key");
    let (administrator, late) = (key(), Duration::from_secs(3600));
    for (key, fault, clock) in [
        (other, TsigFault::BadKey, Duration::ZERO),
        (forged, TsigFault::BadSig, Duration::ZERO),
        (administrator, TsigFault::BadTime(-3600), late),
    ] {
        let mut wire = message.to_vec().expect("a request");
        let mut chain = key.sign(&mut wire, unix(world.now) - clock.as_secs());
        let Answer::Message(answer) = world.handle(&wire, TCP) else { panic!("no answer") };
        let reply = Reply::read(&answer).expect("an answer");
        assert_eq!(reply.rcode, crate::zone::Rcode::NOTAUTH);
        assert_eq!(chain.verify(&answer, reply.tsig.as_ref(), unix(world.now)), Err(fault));
    }
    assert_eq!(world.serial(), serial);
    assert_eq!(world.responder.counters().bad_signatures, 3);
}

#[test]
fn what_cannot_be_written_down_has_not_happened() {
    let mut world = World::new();
    let serial = world.serial();
    let mut updates = Vec::new();
    for number in 0..3 {
        let mut wire = update(&node_records(number, b"x")).to_vec().expect("a request");
        key().sign(&mut wire, unix(world.now));
        match world.responder.handle(&wire, TCP, world.now) {
            Answer::Update(update) => updates.push(*update),
            _ => panic!("no update"),
        }
    }
    let full = |_: &[u8]| Err(io::Error::from(io::ErrorKind::StorageFull));
    let answers = world.responder.apply(updates, full, world.now.system);
    assert_eq!(answers.len(), 3);
    for answer in answers {
        let reply = Reply::read(&answer).expect("an answer");
        assert_eq!(reply.rcode, crate::zone::Rcode::SERVFAIL);
        assert!(reply.tsig.is_some());
    }
    assert_eq!(world.serial(), serial);
    assert!(world.ask(&query(&instance(1), RecordType::TXT), TCP).answers.is_empty());
    world.publish(1, b"x");
}

#[test]
fn a_whole_transfer_takes_many_messages_and_each_is_signed() {
    let mut world = World::new();
    for number in 0..150 {
        world.publish(number, &[b'x'; 700]);
    }
    let (transfer, records, sizes) = read_transfer(&mut world, &query(&apex(), RecordType::AXFR));
    assert!(transfer);
    assert!(sizes.len() > 6 && sizes.iter().all(|size| *size <= 16 << 10), "{sizes:?}");
    let soa = |record: &crate::zone::message::Record| matches!(record.data, Data::Soa { .. });
    assert!(records.first().is_some_and(soa) && records.last().is_some_and(soa));
    let text = records.iter().filter(|record| matches!(record.data, Data::Txt(_)));
    assert_eq!(text.count(), 150);
}

#[test]
fn an_incremental_transfer_tells_what_has_changed_where_that_is_less() {
    let mut world = World::new();
    for number in 0..20 {
        world.publish(number, &[b'x'; 200]);
    }
    let since = world.serial();
    world.publish(3, b"new");
    world.publish(90, b"new");
    let (whole, records, _) = read_transfer(&mut world, &ixfr(since));
    assert!(!whole);
    let serials: Vec<u32> = records
        .iter()
        .filter_map(|record| match record.data {
            Data::Soa { serial } => Some(serial),
            _ => None,
        })
        .collect();
    let last = world.serial();
    assert_eq!(serials, [last, since, since + 1, since + 1, last, last]);
    // Nothing new, and a serial that is ahead: the SOA alone.
    for serial in [last, last + 5] {
        let (whole, records, _) = read_transfer(&mut world, &ixfr(serial));
        assert_eq!((whole, records.len()), (false, 1));
    }
    // Before all that is known.
    let (whole, records, _) = read_transfer(&mut world, &ixfr(since - 1_000_000));
    assert!(whole && records.len() > 60);
    // By UDP the SOA says that TCP is the way (RFC 1995 §2).
    let answer = world.ask(&ixfr(since), UDP);
    assert_eq!(answer.answers.len(), 1);
    let mut bare = ixfr(since);
    bare.authorities.clear();
    assert_eq!(world.ask(&bare, TCP).metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn where_transfers_are_for_keys_others_get_none() {
    let may_not = KeyRights { transfer: false, update: UpdateRight::Proven };
    let other = TsigKey::new("other", "hmac-sha256", SECRET).expect("a key");
    let keys = vec![(key(), ALL), (other.clone(), may_not)];
    let mut world =
        World::with(ResponderConfig { keys, closed: true, ..ResponderConfig::default() });
    let question = query(&apex(), RecordType::AXFR);
    assert_eq!(world.ask(&question, TCP).metadata.response_code, ResponseCode::Refused);
    let mut wire = question.to_vec().expect("a request");
    other.sign(&mut wire, unix(world.now));
    let Answer::Message(answer) = world.handle(&wire, TCP) else { panic!("no answer") };
    let reply = Reply::read(&answer).expect("an answer");
    assert_eq!(reply.rcode, crate::zone::Rcode::REFUSED);
    assert!(read_transfer(&mut world, &question).0);
    let by_udp = world.ask(&question, UDP);
    assert_eq!(by_udp.metadata.response_code, ResponseCode::Refused);
}

#[test]
fn a_long_poll_waits_for_a_change_over_a_stream_alone() {
    let mut world = World::new();
    let serial = world.serial();
    let poll = |serial| {
        let mut message = query(&apex(), RecordType::SOA);
        set_known_serial(message.edns.get_or_insert_default(), serial);
        message
    };
    // Another serial is news already.
    let answer = world.ask(&poll(serial - 1), TCP);
    assert_eq!(answer.edns.as_ref().and_then(known_serial), Some(serial));
    let answer = world.ask(&poll(serial), UDP);
    assert_eq!(answer.edns.as_ref().and_then(known_serial), None, "nobody waits by UDP");
    let wire = poll(serial).to_vec().expect("a request");
    let Answer::Poll(waiting) = world.handle(&wire, TCP) else { panic!("it does not wait") };
    assert_eq!(waiting.known(), serial);
    world.publish(1, b"x");
    let answer = world.responder.finish(*waiting, world.now.system);
    let reply = Reply::read(&answer).expect("an answer");
    assert_eq!(reply.polled, Some(serial + 1));
    assert!(matches!(reply.answers[0].data, Data::Soa { serial: told } if told == serial + 1));
}

#[test]
fn many_updates_of_one_source_wait_or_are_dropped() {
    let mut world = World::new();
    let wire = update(&node_records(1, b"x")).to_vec().expect("a request");
    let mut waits = Vec::new();
    for _ in 0..700 {
        match world.responder.handle(&wire, TCP, world.now) {
            Answer::Update(update) => waits.push(update.wait()),
            _ => panic!("no update"),
        }
    }
    assert_eq!(waits[499], Duration::ZERO);
    assert_eq!(waits[699], Duration::from_secs(4));
    assert!(matches!(world.responder.handle(&wire, UDP, world.now), Answer::Silence));
}

#[test]
fn a_secondary_hands_updates_on_and_hears_of_news() {
    let notify = |name: Name| {
        let mut message = Message::new(7, MessageType::Query, OpCode::Notify);
        message.add_query(Query::query(name, RecordType::SOA));
        message
    };
    // Nobody tells a primary.
    let mut world = World::new();
    let refused = world.ask(&notify(apex()), UDP).metadata.response_code;
    assert_eq!(refused, ResponseCode::NotImp);

    let mut world = World::with(ResponderConfig { follows: true, ..ResponderConfig::default() });
    let handle = |world: &mut World, wire: &[u8]| world.responder.handle(wire, UDP, world.now);
    let wire = notify(apex()).to_vec().expect("a request");
    let Answer::Notified(answer) = handle(&mut world, &wire) else { panic!("it is news") };
    let answer = Message::from_vec(&answer).expect("an answer");
    assert_eq!(answer.metadata.op_code, OpCode::Notify);
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    let other = notify(Name::root()).to_vec().expect("a request");
    let Answer::Message(answer) = handle(&mut world, &other) else { panic!("not our zone") };
    let answer = Message::from_vec(&answer).expect("an answer");
    assert_eq!(answer.metadata.response_code, ResponseCode::NotAuth);

    // As it came, with a signature that only the primary knows.
    let mut wire = update(&node_records(1, b"x")).to_vec().expect("a request");
    key().sign(&mut wire, unix(world.now));
    let Answer::Forward(forward) = handle(&mut world, &wire) else { panic!("it is handed on") };
    assert_eq!(forward.request, wire);
    let failed = Message::from_vec(&forward.failed).expect("an answer");
    assert_eq!(failed.metadata.op_code, OpCode::Update);
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    // A response to an update is none.
    wire[2] |= 0x80;
    assert!(matches!(handle(&mut world, &wire), Answer::Silence));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        header in prop::collection::vec(any::<u8>(), 2),
        flags in prop_oneof![Just([0, 0]), Just([0x28, 0]), any::<[u8; 2]>()],
        counts in prop::collection::vec(0u8..4, 4),
        body in prop::collection::vec(prop_oneof![any::<u8>(), 0u8..4, Just(0xc0)], 0..300),
        stream in any::<bool>(),
    ) {
        let mut world = World::new();
        let mut wire = header;
        wire.extend(flags);
        wire.extend(counts.into_iter().flat_map(|count| [0, count]));
        wire.extend(body);
        world.handle(&wire, Source { stream, ..UDP });
    }

    #[test]
    fn no_change_of_a_request_makes_it_panic(
        kind in 0usize..5,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        stream in any::<bool>(),
    ) {
        let mut world = World::new();
        let message = match kind {
            0 => update(&node_records(1, b"x")),
            1 => query(&instance(1), RecordType::SRV),
            2 => ixfr(7),
            3 => query(&apex(), RecordType::AXFR),
            _ => query(&apex(), RecordType::SOA),
        };
        let mut wire = message.to_vec().expect("a request");
        if kind != 1 {
            key().sign(&mut wire, unix(world.now));
        }
        for (at, byte) in changes {
            let at = at.index(wire.len());
            wire[at] = byte;
        }
        if let Answer::Transfer(mut transfer) = world.handle(&wire, Source { stream, ..UDP }) {
            while transfer.next_message(world.now.system).is_some() {}
        }
    }
}

/// Asks for a transfer, signed: whether it is the whole zone, its records and the sizes of
/// its messages.
fn read_transfer(
    world: &mut World,
    question: &Message,
) -> (bool, Vec<crate::zone::message::Record>, Vec<usize>) {
    let mut wire = question.to_vec().expect("a request");
    let mut chain = key().sign(&mut wire, unix(world.now));
    let Answer::Transfer(mut transfer) = world.handle(&wire, TCP) else { panic!("refused") };
    let (mut records, mut sizes) = (Vec::new(), Vec::new());
    while let Some(wire) = transfer.next_message(world.now.system) {
        let reply = Reply::read(&wire).expect("a message");
        assert_eq!(chain.verify(&wire, reply.tsig.as_ref(), unix(world.now)), Ok(()));
        assert_eq!(reply.id, question.metadata.id);
        // Its own question, whatever the answer is.
        let asked = &question.queries[0];
        let asked = (asked.name().clone(), asked.query_type());
        assert_eq!(reply.question, sizes.is_empty().then_some(asked));
        sizes.push(wire.len());
        records.extend(reply.answers);
    }
    assert!(chain.ends_signed());
    (transfer.is_whole(), records, sizes)
}

fn apex() -> Name {
    Name::from_ascii("mesh.example.").expect("a name")
}

fn zone() -> crate::advert::Zone {
    "mesh.example".parse().expect("a zone")
}

fn instance(number: u16) -> Name {
    zone().instance(&node(number).public_key())
}

fn node(number: u16) -> Identity {
    let mut seed = [7; 32];
    seed[..2].copy_from_slice(&number.to_be_bytes());
    Identity::from_seed(&seed)
}

fn key() -> TsigKey {
    TsigKey::new("mesh-key", "hmac-sha256", SECRET).expect("a key")
}

fn unix(now: Now) -> u64 {
    now.system.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

fn query(name: &Name, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name.clone(), kind));
    message
}

fn ixfr(serial: u32) -> Message {
    let mut message = query(&apex(), RecordType::IXFR);
    let soa = SOA::new(Name::root(), Name::root(), serial, 0, 0, 0, 0);
    message.add_authority(Record::from_rdata(apex(), 0, RData::SOA(soa)));
    message
}

/// Replaces a node's text and address.
fn node_records(number: u16, text: &[u8]) -> Vec<Record> {
    let node = node(number).public_key();
    let (instance, host) = (zone().instance(&node), zone().host(&node));
    let mut delete = Record::update0(instance.clone(), 0, RecordType::TXT);
    delete.dns_class = hickory_proto::rr::DNSClass::ANY;
    let txt = TXT::from_bytes(text.chunks(255).collect());
    let [high, low] = number.to_be_bytes();
    vec![
        delete,
        Record::from_rdata(instance, 30, RData::TXT(txt)),
        Record::from_rdata(host, 30, RData::A(A::new(198, 51, high, low))),
    ]
}

fn update(records: &[Record]) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Update);
    message.add_query(Query::query(apex(), RecordType::SOA));
    message.add_authorities(records.iter().cloned());
    message
}
