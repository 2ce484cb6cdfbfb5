//! DNS messages by hand (RFC 1035 §4.1), for seeds.

use zonemesh_discovery::advert::SignedAdvert;

use crate::{advert, identity, key, network, with_lengths, zone};

/// A response with these records as its answer, each one whole and uncompressed.
pub fn message(answers: &[u8]) -> Vec<u8> {
    let mut wire = vec![0, 0, 0x84, 0, 0, 0];
    wire.extend(count(answers).to_be_bytes());
    wire.extend([0; 4]);
    wire.extend(answers);
    wire
}

/// The zone's SOA with this serial.
pub fn soa(serial: u32) -> Vec<u8> {
    let mut data = vec![0, 0];
    data.extend(serial.to_be_bytes());
    data.extend([0; 16]);
    record(&name(zone().name()), 6, &data)
}

/// A whole transfer in three parts: the head, the records of these nodes, the end.
pub fn transfer_parts(nodes: &[u8]) -> [Vec<u8>; 3] {
    let records = nodes.iter().flat_map(|n| instance(*n)).collect();
    [soa(1), records, soa(1)]
}

/// SRV, TXT and A of a node.
fn instance(n: u8) -> Vec<u8> {
    instance_of(n, &advert(n))
}

fn instance_of(n: u8, signed: &SignedAdvert) -> Vec<u8> {
    let zone = zone();
    let (owner, host) = (name(&zone.instance(&key(n))), name(&zone.host(&key(n))));
    let endpoint = signed.advert().endpoint().expect("it has candidates");
    let mut srv = vec![0; 4];
    srv.extend(endpoint.port().to_be_bytes());
    srv.extend(&host);
    let mut records = record(&owner, 33, &srv);
    records.extend(record(&owner, 16, &with_lengths(signed.txt())));
    for addr in endpoint.addresses() {
        match addr {
            std::net::IpAddr::V4(v4) => records.extend(record(&host, 1, &v4.octets())),
            std::net::IpAddr::V6(v6) => records.extend(record(&host, 28, &v6.octets())),
        }
    }
    records
}

fn record(owner: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let mut record = owner.to_vec();
    record.extend(kind.to_be_bytes());
    record.extend([0, 1, 0, 0, 0, 30]);
    record.extend((data.len() as u16).to_be_bytes());
    record.extend(data);
    record
}

fn name(name: &hickory_proto::rr::Name) -> Vec<u8> {
    let labels: Vec<Vec<u8>> = name.iter().map(<[u8]>::to_vec).collect();
    let mut wire = with_lengths(&labels);
    wire.push(0);
    wire
}

/// How many records these bytes hold.
fn count(mut records: &[u8]) -> u16 {
    let mut count = 0;
    while !records.is_empty() {
        let mut at = 0;
        while records[at] != 0 {
            at += 1 + usize::from(records[at]);
        }
        let length = usize::from(u16::from_be_bytes([records[at + 9], records[at + 10]]));
        records = &records[at + 11 + length..];
        count += 1;
    }
    count
}

/// The update by which a node publishes itself: the zone, deletions of its sets, its
/// records (RFC 2136 §2.5).
pub fn update_of(n: u8) -> Vec<u8> {
    update(n, &instance(n))
}

/// The same by a member, which needs no key.
pub fn member_update_of(n: u8) -> Vec<u8> {
    let mut advert = advert(n).advert().clone();
    advert.certificate = Some(network::chain(&key(n)));
    let signed = advert.sign(&identity(n), &zone()).expect("a good advert");
    update(n, &instance_of(n, &signed))
}

fn update(n: u8, records: &[u8]) -> Vec<u8> {
    let (owner, host) = (name(&zone().instance(&key(n))), name(&zone().host(&key(n))));
    let mut updates = Vec::new();
    for (name, kind) in [(&owner, 33u16), (&owner, 16), (&host, 1), (&host, 28)] {
        updates.extend(name);
        updates.extend(kind.to_be_bytes());
        updates.extend([0, 255, 0, 0, 0, 0, 0, 0]);
    }
    updates.extend(records);
    let mut wire = vec![0, 7, 0x28, 0, 0, 1, 0, 0];
    wire.extend(count(&updates).to_be_bytes());
    wire.extend([0, 0]);
    wire.extend(name(zone().name()));
    wire.extend([0, 6, 0, 1]);
    wire.extend(updates);
    wire
}

/// A query for the list of instances.
pub fn query() -> Vec<u8> {
    let mut wire = vec![0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    wire.extend(name(&zone().service()));
    wire.extend([0, 12, 0, 1]);
    wire
}

/// The journal of a zone with two nodes, of which one has changed.
pub fn journal() -> Vec<u8> {
    use zonemesh_discovery::zone::serve::{Writer, ZoneConfig, ZoneStore};
    let (mut store, _) =
        ZoneStore::open(ZoneConfig::new(zone()), &[], crate::wall()).expect("an empty zone");
    let mut journal = Vec::new();
    for n in [1, 2] {
        let update = hickory_proto::op::Message::from_vec(&update_of(n)).expect("an update");
        let reply = store.handle_update(&update, &Writer::Administrator, crate::wall());
        assert_eq!(reply.error, None);
        journal.extend(store.poll_journal().expect("a change"));
        store.commit();
    }
    journal
}

/// A query for the zone's own name, with these EDNS options.
pub fn query_with(kind: u16, options: &[u8]) -> Vec<u8> {
    let mut wire = vec![0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    wire.extend(name(zone().name()));
    wire.extend(kind.to_be_bytes());
    wire.extend([0, 1]);
    wire.extend([0, 0, 41, 4, 208, 0, 0, 0, 0]);
    wire.extend((options.len() as u16).to_be_bytes());
    wire.extend(options);
    wire
}
