//! The zone without sockets: what is asked, and what comes back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{PTR, SRV, TXT},
    },
};

use super::{Service, ServiceKind, Writer, ZoneConfig, ZoneStore};
use crate::{
    advert::{Advert, Candidate, CandidateKind, Zone},
    identity::Identity,
};

mod journal;
mod members;
mod model;
mod query;
mod sealed;
mod slices;
mod update;

fn zone() -> Zone {
    "mesh.example".parse().expect("a zone")
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn after(seconds: u64) -> SystemTime {
    now() + Duration::from_secs(seconds)
}

fn config() -> ZoneConfig {
    ZoneConfig {
        addresses: vec![[198, 51, 100, 1].into()],
        secondaries: vec![[198, 51, 100, 2].into()],
        services: vec![
            Service { kind: ServiceKind::Stun, port: 3478 },
            Service { kind: ServiceKind::TurnTls, port: 443 },
        ],
        ..ZoneConfig::new(zone())
    }
}

fn store() -> ZoneStore {
    let (mut store, replayed) = ZoneStore::open(config(), &[], now()).expect("an empty journal");
    assert_eq!(replayed.entries, 0);
    assert!(store.poll_journal().is_some());
    store.commit();
    store
}

fn name(text: &str) -> Name {
    let absolute =
        if text.is_empty() { "mesh.example.".to_owned() } else { format!("{text}.mesh.example.") };
    Name::from_ascii(absolute).expect("a name")
}

fn node(seed: u8) -> Identity {
    Identity::from_seed(&[seed; 32])
}

/// The records of a node as it publishes them itself.
fn records_of(identity: &Identity, sequence: u64, lease: u64, port: u16) -> Vec<Record> {
    publish(identity, &advert_of(identity, sequence, lease, port))
}

fn advert_of(identity: &Identity, sequence: u64, lease: u64, port: u16) -> Advert {
    let addr = ([203, 0, 113, 7], port).into();
    Advert {
        node: identity.public_key(),
        name: "a node".to_owned(),
        addresses: vec![[10, 42, 1, 1].into()],
        routes: vec!["10.42.1.0/24".parse().expect("a prefix")],
        candidates: vec![Candidate { kind: CandidateKind::ServerReflexive, addr }],
        sequence,
        expires: after(lease),
        certificate: None,
    }
}

fn publish(identity: &Identity, advert: &Advert) -> Vec<Record> {
    let signed = advert.sign(identity, &zone()).expect("within bounds");
    let (instance, host) = (zone().instance(&advert.node), zone().host(&advert.node));
    let txt = TXT::from_bytes(signed.txt().iter().map(Vec::as_slice).collect());
    let mut records = vec![
        delete_set(&instance, RecordType::SRV),
        delete_set(&instance, RecordType::TXT),
        delete_set(&host, RecordType::A),
        delete_set(&host, RecordType::AAAA),
        Record::from_rdata(instance.clone(), 30, RData::TXT(txt)),
    ];
    if let Some(endpoint) = advert.endpoint() {
        let srv = SRV::new(0, 0, endpoint.port(), host.clone());
        records.push(Record::from_rdata(instance, 30, RData::SRV(srv)));
        for address in endpoint.addresses() {
            records.push(Record::from_rdata(host.clone(), 30, RData::from(*address)));
        }
    }
    records
}

fn pointer(identity: &Identity) -> Record {
    let instance = zone().instance(&identity.public_key());
    Record::from_rdata(zone().service(), 30, RData::PTR(PTR(instance)))
}

fn delete_set(name: &Name, kind: RecordType) -> Record {
    let mut record = Record::update0(name.clone(), 0, kind);
    record.dns_class = DNSClass::ANY;
    record
}

fn delete(record: &Record) -> Record {
    let mut record = record.clone();
    record.dns_class = DNSClass::NONE;
    record.ttl = 0;
    record
}

fn update_message(prerequisites: Vec<Record>, updates: Vec<Record>) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Update);
    message.add_query(Query::query(zone().name().clone(), RecordType::SOA));
    message.add_answers(prerequisites);
    message.add_authorities(updates);
    // As it comes from the wire.
    Message::from_vec(&message.to_vec().expect("a message")).expect("a message")
}

/// Updates and commits; the response's code.
fn update(store: &mut ZoneStore, writer: Writer, updates: Vec<Record>) -> ResponseCode {
    conditional(store, writer, Vec::new(), updates)
}

fn conditional(
    store: &mut ZoneStore,
    writer: Writer,
    prerequisites: Vec<Record>,
    updates: Vec<Record>,
) -> ResponseCode {
    let reply = store.handle_update(&update_message(prerequisites, updates), &writer, now());
    store.poll_journal();
    store.commit();
    let code = reply.message.metadata.response_code;
    assert_eq!(reply.error.map_or(ResponseCode::NoError, |error| error.code()), code);
    code
}

fn ask(store: &ZoneStore, name: &Name, kind: RecordType) -> Message {
    let mut message = Message::new(9, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name.clone(), kind));
    let response = store.handle_query(&message);
    Message::from_vec(&response.to_vec().expect("a message")).expect("a message")
}

/// The zone's records as text, sorted: what two zones are compared by.
fn text(store: &ZoneStore) -> Vec<String> {
    let mut lines: Vec<String> = store.records().map(|record| record.to_string()).collect();
    lines.sort();
    lines
}

fn address(octets: [u8; 4]) -> RData {
    RData::from(std::net::Ipv4Addr::from(octets))
}
