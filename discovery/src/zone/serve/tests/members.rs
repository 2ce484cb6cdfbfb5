//! Who has no key but the network's certificate.

use super::*;
use crate::{
    identity::PublicKey,
    membership::{Access, InviteId, Limits, NetworkKey, RevocationList, Revoked, Token, Validity},
    zone::serve::{Refusal, UpdateError},
};

pub(super) fn network() -> NetworkKey {
    NetworkKey::from_seed(&[101; 32])
}

pub(super) fn members() -> ZoneStore {
    let config = ZoneConfig { network: Some(network().id()), ..config() };
    let (mut store, _) = ZoneStore::open(config, &[], now()).expect("an empty journal");
    store.poll_journal();
    store.commit();
    store
}

pub(super) fn token(network: &NetworkKey, seed: u8, days: u64) -> Token {
    let validity = Validity::new(now() - Duration::from_secs(3600), Some(after(days * 86_400)));
    let limits = Limits::new("", &["10.42.0.0/16".parse().expect("a prefix")], &[] as &[&str]);
    let limits = limits.expect("within bounds");
    let access = Access {
        servers: Vec::new(),
        tsig: None,
        relay_secret: None,
        seal_secret: None,
        slice: 24,
    };
    Token::issue(network, &[seed; 32], zone(), validity, limits, access).expect("it fits")
}

pub(super) fn invite() -> Token {
    token(&network(), 102, 30)
}

pub(super) fn certificate(token: &Token, node: &PublicKey) -> Option<Vec<u8>> {
    let member = token.admit(node, "a node", &[], &[] as &[&str], now());
    Some(member.expect("within the limits").chain().as_bytes().to_vec())
}

/// An advert with this certificate.
pub(super) fn advert(identity: &Identity, certificate: Option<Vec<u8>>) -> Advert {
    Advert { certificate, ..advert_of(identity, 5, 3600, 4000) }
}

pub(super) fn member_advert(identity: &Identity, sequence: u64) -> Advert {
    let certificate = certificate(&invite(), &identity.public_key());
    Advert { certificate, ..advert_of(identity, sequence, 3600, 4000) }
}

pub(super) fn last_word(identity: &Identity, sequence: u64) -> Advert {
    Advert { candidates: Vec::new(), expires: now(), ..member_advert(identity, sequence) }
}

pub(super) fn write(store: &mut ZoneStore, updates: Vec<Record>) -> Result<(), UpdateError> {
    write_at(store, updates, now())
}

pub(super) fn write_at(
    store: &mut ZoneStore,
    updates: Vec<Record>,
    now: SystemTime,
) -> Result<(), UpdateError> {
    let before = (store.serial(), text(store));
    let reply = store.handle_update(&update_message(vec![], updates), &Writer::Anyone, now);
    store.poll_journal();
    store.commit();
    match reply.error {
        None => Ok(()),
        Some(error) => {
            assert_eq!((store.serial(), text(store)), before, "{error}");
            Err(error)
        }
    }
}

pub(super) fn refused(result: Result<(), UpdateError>) -> Refusal {
    match result {
        Err(UpdateError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

pub(super) fn list(number: u64, entries: Vec<Revoked>) -> RevocationList {
    RevocationList::sign(&network(), number, entries).expect("few")
}

pub(super) fn list_records(list: &RevocationList) -> Vec<Record> {
    let name = zone().revocations();
    let txt = TXT::from_bytes(list.txt().iter().map(Vec::as_slice).collect());
    vec![delete_set(&name, RecordType::TXT), Record::from_rdata(name, 30, RData::TXT(txt))]
}

#[test]
fn a_member_writes_its_own_names_with_nothing_but_its_certificate() {
    let mut store = members();
    let identity = node(1);
    let records = publish(&identity, &member_advert(&identity, 5));
    assert_eq!(write(&mut store, records.clone()), Ok(()));
    let answer = ask(&store, &zone().service(), RecordType::PTR);
    assert_eq!(answer.answers[0].data, pointer(&identity).data);
    let serial = store.serial();
    // Its answer was lost: it is sent again, and nothing happens.
    assert_eq!(write(&mut store, records), Ok(()));
    assert_eq!(write(&mut store, vec![pointer(&identity)]), Ok(()));
    assert_eq!(store.serial(), serial);
    assert_eq!(write(&mut store, publish(&identity, &member_advert(&identity, 6))), Ok(()));
    assert_ne!(store.serial(), serial);
}

#[test]
fn who_is_no_member_writes_nothing() {
    let mut store = members();
    let identity = node(1);
    let key = identity.public_key();
    let advert = member_advert(&identity, 5);
    let mut write_with = |certificate| {
        let advert = Advert { certificate, ..advert.clone() };
        refused(write(&mut store, publish(&identity, &advert)))
    };
    use crate::membership::CertificateError as Error;
    assert_eq!(write_with(None), Refusal::Certificate(Error::Missing));
    let foreign = token(&NetworkKey::from_seed(&[1; 32]), 102, 30);
    let foreign = write_with(certificate(&foreign, &key));
    assert_eq!(foreign, Refusal::Certificate(Error::Network));
    let stolen = write_with(certificate(&invite(), &node(2).public_key()));
    assert_eq!(stolen, Refusal::Certificate(Error::Node));
    // Nobody takes what has no signature, or is not signed by the node.
    let srv = RData::SRV(SRV::new(0, 0, 4000, zone().host(&key)));
    let bare = vec![
        Record::from_rdata(zone().instance(&key), 30, srv),
        Record::from_rdata(zone().host(&key), 30, address([203, 0, 113, 7])),
    ];
    assert_eq!(refused(write(&mut store, bare)), Refusal::Unproven);
    let mut records = publish(&identity, &advert);
    // The same, at another node's names.
    let other = node(2).public_key();
    for record in &mut records {
        let instance = record.name == zone().instance(&key);
        record.name = if instance { zone().instance(&other) } else { zone().host(&other) };
    }
    let error = refused(write(&mut store, records));
    assert_eq!(error, Refusal::Advert(crate::advert::AdvertError::OtherNode));
    // A zone without a network takes keys only.
    let mut keyed = super::store();
    let error = refused(write(&mut keyed, publish(&identity, &advert)));
    assert_eq!(error, Refusal::Unproven);
}

#[test]
fn what_stands_beside_the_advert_is_what_it_derives() {
    let mut store = members();
    let identity = node(1);
    let key = identity.public_key();
    let (instance, host) = (zone().instance(&key), zone().host(&key));
    let good = publish(&identity, &member_advert(&identity, 5));
    let more = |record: Record| {
        let mut records = good.clone();
        records.push(record);
        records
    };
    let without = |kind| {
        let mut records = good.clone();
        records.retain(|r| r.dns_class == DNSClass::ANY || r.record_type() != kind);
        records
    };
    let srv = |port, target| RData::SRV(SRV::new(0, 0, port, target));
    for records in [
        more(Record::from_rdata(host.clone(), 30, address([203, 0, 113, 8]))),
        more(Record::from_rdata(instance.clone(), 30, srv(4001, host.clone()))),
        more(Record::from_rdata(instance.clone(), 30, srv(4000, name("rendezvous")))),
        more(Record::from_rdata(instance.clone(), 30, RData::TXT(TXT::new(vec!["x".to_owned()])))),
        more(delete_set(&instance, RecordType::SRV)),
        more(delete_set(&host, RecordType::ANY)),
        without(RecordType::SRV),
        without(RecordType::A),
        without(RecordType::TXT),
    ] {
        let refusal = refused(write(&mut store, records));
        assert!(matches!(refusal, Refusal::Advert(_) | Refusal::Unproven), "{refusal}");
    }
    // How long it is kept is not the writer's to say.
    let mut long = good.clone();
    long.iter_mut().filter(|r| r.ttl != 0).for_each(|r| r.ttl = 100_000);
    assert_eq!(write(&mut store, long), Ok(()));
    assert!(store.records().all(|record| record.ttl == 30));
}

#[test]
fn nobody_touches_anothers_names_and_no_plain_deletion_counts() {
    let mut store = members();
    let (one, two) = (node(1), node(2));
    for identity in [&one, &two] {
        assert_eq!(write(&mut store, publish(identity, &member_advert(identity, 5))), Ok(()));
    }
    let instance = zone().instance(&two.public_key());
    let host = zone().host(&two.public_key());
    let srv = RData::SRV(SRV::new(0, 0, 4000, host.clone()));
    for change in [
        delete_set(&instance, RecordType::TXT),
        delete_set(&instance, RecordType::ANY),
        delete_set(&host, RecordType::A),
        delete(&Record::from_rdata(instance, 30, srv)),
        Record::from_rdata(host, 30, address([198, 51, 100, 66])),
        delete(&pointer(&two)),
    ] {
        refused(write(&mut store, vec![change.clone()]));
        let mut beside = publish(&one, &member_advert(&one, 6));
        beside.push(change);
        refused(write(&mut store, beside));
    }
}

#[test]
fn an_older_advert_never_comes_back() {
    let mut store = members();
    let identity = node(1);
    let old = publish(&identity, &member_advert(&identity, 5));
    assert_eq!(write(&mut store, publish(&identity, &member_advert(&identity, 6))), Ok(()));
    assert_eq!(refused(write(&mut store, old.clone())), Refusal::Old { known: 6 });
    assert_eq!(write(&mut store, publish(&identity, &last_word(&identity, 7))), Ok(()));
    assert_eq!(store.nodes(), 0);
    assert_eq!(refused(write(&mut store, old.clone())), Refusal::Old { known: 7 });
    // Neither after a restart, nor when the records have been swept.
    let (mut again, _) =
        ZoneStore::open(store.config.clone(), &store.snapshot(), now()).expect("a snapshot");
    assert_eq!(refused(write(&mut again, old)), Refusal::Old { known: 7 });
    let long = Advert { expires: after(86_400), ..member_advert(&identity, 8) };
    assert_eq!(write(&mut again, publish(&identity, &member_advert(&identity, 9))), Ok(()));
    again.handle_timeout(after(3900));
    again.poll_journal();
    again.commit();
    assert_eq!(again.nodes(), 0);
    let late = write_at(&mut again, publish(&identity, &long), after(4000));
    assert_eq!(refused(late), Refusal::Old { known: 9 });
    // What it signed next counts.
    assert_eq!(write(&mut again, publish(&identity, &member_advert(&identity, 10))), Ok(()));
}

#[test]
fn its_last_word_takes_a_node_out_and_its_deletions_are_done() {
    let mut store = members();
    let empty = text(&store);
    let identity = node(1);
    write(&mut store, publish(&identity, &member_advert(&identity, 5))).expect("a member");
    // Others cannot write one.
    let other = node(2);
    let forged = Advert { node: other.public_key(), ..last_word(&identity, 9) };
    let mut records = publish(&other, &forged);
    records.iter_mut().for_each(|record| {
        let instance = record.name == zone().instance(&other.public_key());
        let own = identity.public_key();
        record.name = if instance { zone().instance(&own) } else { zone().host(&own) };
    });
    refused(write(&mut store, records));
    assert_eq!(write(&mut store, publish(&identity, &last_word(&identity, 6))), Ok(()));
    assert_eq!(text(&store), empty);
    assert_eq!(write(&mut store, vec![delete(&pointer(&identity))]), Ok(()));
    // One that would end later is an advert like any other.
    let late = Advert { expires: after(3600), ..last_word(&identity, 7) };
    assert_eq!(write(&mut store, publish(&identity, &late)), Ok(()));
    assert_eq!(store.nodes(), 1);
}

#[test]
fn a_record_ends_with_the_membership() {
    let mut store = members();
    let identity = node(1);
    let mut advert = member_advert(&identity, 5);
    let short = {
        let validity = Validity::new(now() - Duration::from_secs(60), Some(after(600)));
        let limits = Limits::new("", &[], &[] as &[&str]).expect("within bounds");
        let access = invite().access().clone();
        Token::issue(&network(), &[103; 32], zone(), validity, limits, access).expect("it fits")
    };
    advert.certificate = certificate(&short, &identity.public_key());
    write(&mut store, publish(&identity, &advert)).expect("a member");
    assert_eq!(store.poll_timeout(), Some(after(600 + 300)));
}

#[test]
fn a_list_of_revocations_comes_from_anybody_and_takes_its_nodes_out() {
    let mut store = members();
    let (one, two, three) = (node(1), node(2), node(3));
    let other_invite = token(&network(), 104, 30);
    for identity in [&one, &two] {
        write(&mut store, publish(identity, &member_advert(identity, 5))).expect("a member");
    }
    let advert = |sequence| Advert {
        certificate: certificate(&other_invite, &three.public_key()),
        ..member_advert(&three, sequence)
    };
    write(&mut store, publish(&three, &advert(5))).expect("a member");
    let first = list(4, vec![Revoked::from(&one.public_key())]);
    assert_eq!(write(&mut store, list_records(&first)), Ok(()));
    assert_eq!(store.revocations(), Some(&first));
    assert_eq!(store.nodes(), 2);
    let left = ask(&store, &zone().instance(&one.public_key()), RecordType::TXT);
    assert_eq!(left.metadata.response_code, ResponseCode::NXDomain);
    let again = write(&mut store, publish(&one, &member_advert(&one, 6)));
    assert_eq!(refused(again), Refusal::Revoked);
    // An invite, and with it all whom it let in.
    let invite: InviteId = other_invite.invite();
    let second = list(5, vec![Revoked::from(&one.public_key()), Revoked::from(&invite)]);
    assert_eq!(write(&mut store, list_records(&second)), Ok(()));
    assert_eq!(store.nodes(), 1);
    assert_eq!(refused(write(&mut store, publish(&three, &advert(6)))), Refusal::Revoked);
    // Its key does not help either.
    for writer in [Writer::Node(three.public_key()), Writer::Administrator] {
        let code = update(&mut store, writer, publish(&three, &advert(6)));
        assert_eq!(code, ResponseCode::Refused);
    }
    let (again, _) =
        ZoneStore::open(store.config.clone(), &store.snapshot(), now()).expect("a snapshot");
    assert_eq!(again.revocations(), Some(&second));
}

#[test]
fn a_list_of_revocations_is_never_replaced_by_less() {
    let mut store = members();
    let known = list(5, vec![Revoked::from(&node(1).public_key())]);
    assert_eq!(write(&mut store, list_records(&known)), Ok(()));
    let old = refused(write(&mut store, list_records(&list(4, vec![]))));
    assert_eq!(old, Refusal::OldRevocations { known: 5 });
    let same = refused(write(&mut store, list_records(&list(5, vec![]))));
    assert_eq!(same, Refusal::OldRevocations { known: 5 });
    let foreign = RevocationList::sign(&NetworkKey::from_seed(&[1; 32]), 6, vec![]).expect("few");
    let foreign = refused(write(&mut store, list_records(&foreign)));
    assert!(matches!(foreign, Refusal::Revocations(_)));
    assert_eq!(refused(write(&mut store, list_records(&known)[..1].to_vec())), Refusal::Unproven);
    let code = update(&mut store, Writer::Administrator, list_records(&known)[..1].to_vec());
    assert_eq!(code, ResponseCode::Refused);
    // The longest there is.
    let entries = (0..3072u32).map(|number| {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        Revoked::from(&PublicKey::from_bytes(key))
    });
    let long = list(6, entries.collect());
    assert_eq!(write(&mut store, list_records(&long)), Ok(()));
    let answer = ask(&store, &zone().revocations(), RecordType::TXT);
    assert_eq!(answer.answers.len(), 1);
    store.handle_timeout(after(1_000_000));
    assert_eq!(store.revocations(), Some(&long));
}

#[test]
fn one_invite_has_half_of_the_zone_at_most() {
    let mut store = members();
    store.config.limits.nodes = 4;
    for seed in 1..=2 {
        let identity = node(seed);
        write(&mut store, publish(&identity, &member_advert(&identity, 5))).expect("a member");
    }
    let third = node(3);
    let full = write(&mut store, publish(&third, &member_advert(&third, 5)));
    assert_eq!(refused(full), Refusal::Full { limit: 2, what: "nodes of one invite" });
    let other = certificate(&token(&network(), 104, 30), &third.public_key());
    assert_eq!(write(&mut store, publish(&third, &advert(&third, other))), Ok(()));
    // Once it is revoked, there is room again.
    let list = list(1, vec![Revoked::from(&invite().invite())]);
    assert_eq!(write(&mut store, list_records(&list)), Ok(()));
    assert_eq!((store.nodes(), store.facts.nodes()), (1, 1));
}

#[test]
fn of_a_hundred_who_race_for_a_name_one_wins() {
    let mut store = members();
    for round in 1..=100u8 {
        // One node twice, as two machines with one key: the same number, other contents.
        let identity = node(round);
        let host = zone().host(&identity.public_key());
        let free = {
            let mut record = delete_set(&host, RecordType::ANY);
            record.dns_class = DNSClass::NONE;
            record
        };
        let mut winners = 0;
        for port in 4000..4008 {
            let addr = ([203, 0, 113, 7], port).into();
            let candidates = vec![Candidate { kind: CandidateKind::Mapped, addr }];
            let advert = Advert { candidates, ..member_advert(&identity, 5) };
            let message = update_message(vec![free.clone()], publish(&identity, &advert));
            let reply = store.handle_update(&message, &Writer::Anyone, now());
            winners += usize::from(reply.error.is_none());
        }
        assert_eq!(winners, 1);
    }
}
