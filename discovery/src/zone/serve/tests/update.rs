use super::*;

const NO_ERROR: ResponseCode = ResponseCode::NoError;

fn in_use(name: &Name, kind: RecordType) -> Record {
    delete_set(name, kind)
}

fn not_in_use(name: &Name, kind: RecordType) -> Record {
    let mut record = delete_set(name, kind);
    record.dns_class = DNSClass::NONE;
    record
}

#[test]
fn all_five_prerequisites_hold_or_nothing_happens() {
    let (one, two) = (node(1), node(2));
    let host = zone().host(&one.public_key());
    let unknown = zone().host(&two.public_key());
    let mut store = store();
    assert_eq!(
        update(&mut store, Writer::Administrator, records_of(&one, 1, 3600, 4000)),
        NO_ERROR
    );
    let there = Record::from_rdata(host.clone(), 0, address([203, 0, 113, 7]));
    let other = Record::from_rdata(host.clone(), 0, address([203, 0, 113, 8]));
    let add = Record::from_rdata(unknown.clone(), 30, address([203, 0, 113, 9]));
    let before = (store.serial(), text(&store));
    let any = RecordType::ANY;
    for (prerequisites, expected) in [
        (vec![in_use(&unknown, any)], ResponseCode::NXDomain),
        (vec![not_in_use(&host, any)], ResponseCode::YXDomain),
        (vec![in_use(&host, RecordType::AAAA)], ResponseCode::NXRRSet),
        (vec![not_in_use(&host, RecordType::A)], ResponseCode::YXRRSet),
        (vec![other.clone()], ResponseCode::NXRRSet),
        // All of the set, and nothing besides.
        (vec![there.clone(), other], ResponseCode::NXRRSet),
        (vec![there.clone(), in_use(&unknown, any)], ResponseCode::NXDomain),
        (vec![not_in_use(&name(""), RecordType::SOA)], ResponseCode::YXRRSet),
    ] {
        let code = conditional(&mut store, Writer::Administrator, prerequisites, vec![add.clone()]);
        assert_eq!(code, expected);
        assert_eq!((store.serial(), text(&store)), before);
    }
    let all = vec![
        in_use(&host, any),
        not_in_use(&unknown, any),
        in_use(&host, RecordType::A),
        not_in_use(&host, RecordType::AAAA),
        there,
        in_use(&name(""), RecordType::SOA),
    ];
    assert_eq!(conditional(&mut store, Writer::Administrator, all, vec![add]), NO_ERROR);
    assert_ne!(store.serial(), before.0);
}

#[test]
fn what_is_not_in_the_form_is_told_before_anything_happens() {
    let mut store = store();
    let host = zone().host(&node(1).public_key());
    let outside = Name::from_ascii("host.other.example.").expect("a name");
    let good = Record::from_rdata(host.clone(), 30, address([203, 0, 113, 7]));
    let before = text(&store);
    let with = |change: fn(&mut Record), record: &Record| {
        let mut record = record.clone();
        change(&mut record);
        record
    };
    let set = delete_set(&host, RecordType::A);
    for (bad, expected) in [
        (with(|r| r.ttl = 1, &set), ResponseCode::FormErr),
        (with(|r| r.dns_class = DNSClass::IN, &set), ResponseCode::FormErr),
        (with(|r| r.dns_class = DNSClass::CH, &good), ResponseCode::FormErr),
        (with(|r| r.dns_class = DNSClass::ANY, &delete(&good)), ResponseCode::FormErr),
        (with(|r| r.ttl = 1, &delete(&good)), ResponseCode::FormErr),
        (delete_set(&host, RecordType::AXFR), ResponseCode::FormErr),
        (Record::from_rdata(outside, 30, address([203, 0, 113, 7])), ResponseCode::NotZone),
    ] {
        let code = update(&mut store, Writer::Administrator, vec![good.clone(), bad.clone()]);
        assert_eq!(code, expected, "{bad}");
        assert_eq!(text(&store), before);
    }
    for (bad, expected) in [
        (with(|r| r.ttl = 1, &set), ResponseCode::FormErr),
        (with(|r| r.dns_class = DNSClass::ANY, &delete(&good)), ResponseCode::FormErr),
        (delete_set(&host, RecordType::AXFR), ResponseCode::FormErr),
    ] {
        let code =
            conditional(&mut store, Writer::Administrator, vec![bad.clone()], vec![good.clone()]);
        assert_eq!(code, expected, "{bad}");
    }
    let mut message = update_message(vec![], vec![good]);
    message.queries = vec![Query::query(name("sub"), RecordType::SOA)];
    let code = |store: &mut ZoneStore, message: &Message| {
        let reply = store.handle_update(message, &Writer::Administrator, now());
        reply.message.metadata.response_code
    };
    assert_eq!(code(&mut store, &message), ResponseCode::NotAuth);
    message.queries = vec![Query::query(name(""), RecordType::A)];
    assert_eq!(code(&mut store, &message), ResponseCode::FormErr);
    message.queries.clear();
    assert_eq!(code(&mut store, &message), ResponseCode::FormErr);
    assert_eq!(text(&store), before);
}

#[test]
fn what_the_configuration_has_is_out_of_reach() {
    let mut store = store();
    let before = text(&store);
    let serial = store.serial();
    let a = address([203, 0, 113, 7]);
    let soa = {
        let mut soa = store.soa();
        soa.dns_class = DNSClass::IN;
        soa
    };
    for record in [
        soa,
        delete_set(&name(""), RecordType::SOA),
        delete_set(&name(""), RecordType::NS),
        delete_set(&name(""), RecordType::ANY),
        delete_set(&name("rendezvous"), RecordType::A),
        delete_set(&name("_stun._udp"), RecordType::ANY),
        Record::from_rdata(name("www"), 30, a.clone()),
        Record::from_rdata(name("_other._udp"), 30, a.clone()),
        // Looks like a host's name, and is not one.
        Record::from_rdata(name(&"1".repeat(52)), 30, a),
        // The instance's name without its padding.
        Record::from_rdata(
            name(&format!("{}._wireguard._udp", node(1).public_key().to_base32())),
            30,
            RData::TXT(TXT::new(vec!["x".to_owned()])),
        ),
    ] {
        for writer in [Writer::Administrator, Writer::Anyone, Writer::Node(node(1).public_key())] {
            let code = update(&mut store, writer, vec![record.clone()]);
            assert_eq!(code, ResponseCode::Refused, "{record}");
        }
    }
    assert_eq!((text(&store), store.serial()), (before, serial));
}

#[test]
fn a_node_has_no_other_types_than_its_own() {
    let mut store = store();
    let identity = node(1);
    let (instance, host) =
        (zone().instance(&identity.public_key()), zone().host(&identity.public_key()));
    let txt = RData::TXT(TXT::new(vec!["x".to_owned()]));
    let alias = RData::CNAME(hickory_proto::rr::rdata::CNAME(name("rendezvous")));
    for record in [
        Record::from_rdata(host.clone(), 30, txt.clone()),
        Record::from_rdata(host, 30, alias.clone()),
        Record::from_rdata(instance.clone(), 30, alias),
        Record::from_rdata(instance, 30, address([203, 0, 113, 7])),
        Record::from_rdata(zone().service(), 30, txt),
    ] {
        let code = update(&mut store, Writer::Administrator, vec![record.clone()]);
        assert_eq!(code, ResponseCode::Refused, "{record}");
    }
}

#[test]
fn the_serial_rises_once_for_a_change_and_not_for_none() {
    let mut store = store();
    let serial = store.serial();
    let records = records_of(&node(1), 1, 3600, 4000);
    assert_eq!(update(&mut store, Writer::Administrator, records.clone()), NO_ERROR);
    let first = store.serial();
    assert_eq!(first, serial + 1);
    // Deleted and added again: nothing has changed.
    assert_eq!(update(&mut store, Writer::Administrator, records), NO_ERROR);
    assert_eq!(store.serial(), first);
    // Another time for the same data is another record.
    let host = zone().host(&node(1).public_key());
    let again = Record::from_rdata(host, 60, address([203, 0, 113, 7]));
    assert_eq!(update(&mut store, Writer::Administrator, vec![again]), NO_ERROR);
    let changes = store.changes_since(first).expect("known");
    assert_eq!((changes.len(), changes[0].removed.len(), changes[0].added.len()), (1, 1, 1));
    assert_eq!((changes[0].removed[0].ttl, changes[0].added[0].ttl), (30, 60));
}

#[test]
fn a_writer_with_a_nodes_key_writes_its_names_alone() {
    let mut store = store();
    let (own, other) = (node(1), node(2));
    let writer = Writer::Node(own.public_key());
    assert_eq!(update(&mut store, writer, records_of(&own, 1, 3600, 4000)), NO_ERROR);
    let code = update(&mut store, writer, records_of(&other, 1, 3600, 4000));
    assert_eq!(code, ResponseCode::Refused);
    // Also not beside its own.
    let mut both = records_of(&own, 2, 3600, 4001);
    both.extend(records_of(&other, 1, 3600, 4000));
    let before = text(&store);
    assert_eq!(update(&mut store, writer, both), ResponseCode::Refused);
    assert_eq!(text(&store), before);
    let clear = records_of(&own, 2, 3600, 4001)[..4].to_vec();
    let code = update(&mut store, Writer::Node(other.public_key()), clear.clone());
    assert_eq!(code, ResponseCode::Refused);
    assert_eq!(update(&mut store, writer, clear), NO_ERROR);
    assert!(ask(&store, &zone().service(), RecordType::PTR).answers.is_empty());
}

#[test]
fn the_list_of_instances_is_the_zones_own() {
    let mut store = store();
    let (one, two) = (node(1), node(2));
    let anyone = Writer::Anyone;
    assert_eq!(update(&mut store, anyone, vec![pointer(&one)]), ResponseCode::Refused);
    update(&mut store, Writer::Administrator, records_of(&one, 1, 3600, 4000));
    let answer = ask(&store, &zone().service(), RecordType::PTR);
    assert_eq!(answer.answers[0].data, pointer(&one).data);
    let serial = store.serial();
    // What is so already may be said, and a node that is not there be taken out.
    assert_eq!(update(&mut store, anyone, vec![pointer(&one)]), NO_ERROR);
    assert_eq!(update(&mut store, anyone, vec![delete(&pointer(&two))]), NO_ERROR);
    assert_eq!(store.serial(), serial);
    for updates in [
        vec![delete(&pointer(&one))],
        vec![delete_set(&zone().service(), RecordType::PTR)],
        vec![pointer(&two)],
        vec![Record::from_rdata(zone().service(), 30, RData::PTR(PTR(name("rendezvous"))))],
    ] {
        for writer in [anyone, Writer::Administrator, Writer::Node(two.public_key())] {
            assert_eq!(update(&mut store, writer, updates.clone()), ResponseCode::Refused);
        }
    }
    // A list that is full lacks those that came last, and they are in the zone.
    store.config.limits.pointers = 1;
    assert_eq!(
        update(&mut store, Writer::Administrator, records_of(&two, 1, 3600, 4000)),
        NO_ERROR
    );
    assert_eq!(update(&mut store, anyone, vec![pointer(&two)]), NO_ERROR);
    assert_eq!(ask(&store, &zone().service(), RecordType::PTR).answers.len(), 1);
}

#[test]
fn what_has_lapsed_is_swept() {
    let mut store = store();
    let identity = node(1);
    assert_eq!(store.poll_timeout(), None);
    let empty = text(&store);
    update(&mut store, Writer::Administrator, records_of(&identity, 5, 3600, 4000));
    // Readers bear clocks that differ by five minutes.
    let end = after(3600 + 300);
    assert_eq!(store.poll_timeout(), Some(end));
    store.handle_timeout(end - Duration::from_secs(1));
    assert_eq!(store.poll_journal(), None);
    assert_eq!(store.nodes(), 1);
    store.handle_timeout(end);
    assert!(store.poll_journal().is_some());
    store.commit();
    assert_eq!((store.nodes(), text(&store)), (0, empty));
    // Its number outlives it, until nothing that it has signed can count any more.
    let forget = store.poll_timeout().expect("its number");
    assert!(forget > end + Duration::from_secs(24 * 3600));
    store.handle_timeout(forget);
    store.poll_journal();
    store.commit();
    assert_eq!(store.poll_timeout(), None);
}

#[test]
fn what_could_not_be_written_down_has_never_been() {
    let mut store = store();
    update(&mut store, Writer::Administrator, records_of(&node(1), 5, 3600, 4000));
    let before = (store.serial(), text(&store), store.poll_timeout(), store.size());
    let snapshot = store.snapshot();
    for seed in 1..=3 {
        let message = update_message(vec![], records_of(&node(seed), 6, 7200, 4001));
        let reply = store.handle_update(&message, &Writer::Administrator, now());
        assert_eq!(reply.error, None);
    }
    assert!(store.poll_journal().is_some());
    store.rollback(now());
    let again = (store.serial(), text(&store), store.poll_timeout(), store.size());
    assert_eq!(again, before);
    assert_eq!(store.snapshot(), snapshot);
    assert_eq!(store.changes_since(before.0), Some(vec![]));
    // A disk that does not take what was swept is not asked again at once.
    store.handle_timeout(after(3900));
    assert!(store.poll_journal().is_some());
    store.rollback(after(3900));
    assert_eq!(store.poll_timeout(), Some(after(3910)));
}

#[test]
fn the_zone_holds_no_more_than_it_may() {
    let mut store = store();
    store.config.limits.nodes = 2;
    for (seed, expected) in [(1, NO_ERROR), (2, NO_ERROR), (3, ResponseCode::Refused)] {
        let records = records_of(&node(seed), 1, 3600, 4000);
        assert_eq!(update(&mut store, Writer::Administrator, records), expected);
    }
    store.config.limits.bytes = store.size();
    // One that shrinks or stays is fine where one that grows is not.
    assert_eq!(
        update(&mut store, Writer::Administrator, records_of(&node(1), 2, 3600, 4001)),
        NO_ERROR
    );
    let host = zone().host(&node(1).public_key());
    let more = Record::from_rdata(host.clone(), 30, address([203, 0, 113, 8]));
    assert_eq!(update(&mut store, Writer::Administrator, vec![more]), ResponseCode::Refused);
    store.config.limits.bytes = usize::MAX;
    let many =
        (0..=64).map(|last| Record::from_rdata(host.clone(), 30, address([203, 0, 113, last])));
    let code = update(&mut store, Writer::Administrator, many.collect());
    assert_eq!(code, ResponseCode::Refused);
    let long = TXT::from_bytes(vec![&[b'x'; 255][..]; 250]);
    let instance = zone().instance(&node(1).public_key());
    let long = Record::from_rdata(instance, 30, RData::TXT(long));
    assert_eq!(update(&mut store, Writer::Administrator, vec![long]), ResponseCode::Refused);
}

#[test]
fn the_changes_kept_for_transfers_are_bounded_and_follow_on_each_other() {
    let mut store = store();
    store.config.limits.diffs = 3;
    let start = store.serial();
    for sequence in 1..=5 {
        let records = records_of(&node(1), sequence, 3600, 4000);
        update(&mut store, Writer::Administrator, records);
    }
    assert_eq!(store.changes_since(start), None);
    assert_eq!(store.changes_since(store.serial()), Some(vec![]));
    let changes = store.changes_since(start + 2).expect("the last three");
    let steps: Vec<(u32, u32)> = changes.iter().map(|diff| (diff.from, diff.to)).collect();
    assert_eq!(steps, [2, 3, 4].map(|step| (start + step, start + step + 1)));
}
