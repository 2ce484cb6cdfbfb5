//! A sealed zone in the words of an open one.
//!
//! What is read of a sealed zone becomes, record by record, what an open zone would have:
//! an advert its TXT, SRV and addresses, a claim and the list of revocations their TXT at
//! their names. Everything behind this knows open zones alone. What the seal does not open
//! is nobody's, and left out.

use std::sync::Arc;

use hickory_proto::rr::{DNSClass, Name, RData, Record as WireRecord, RecordType, rdata::TXT};
use ipnet::IpNet;

use super::{
    ZoneClient,
    message::{Data, Record},
    publish::TTL,
};
use crate::{
    advert::{Candidate, Zone, endpoint_of, txt::Fields},
    identity::PublicKey,
    sealed::Seal,
};

impl ZoneClient {
    /// The same client for a sealed zone.
    #[must_use]
    pub fn sealed(self, seal: Option<Arc<Seal>>) -> Self {
        Self { seal, ..self }
    }

    /// What a record that was read stands for.
    pub(super) fn plain(&self, record: Record) -> Vec<Record> {
        match &self.seal {
            None => vec![record],
            Some(seal) => unseal(seal, &self.zone, &record).unwrap_or_default(),
        }
    }

    /// The owner of the list of revocations.
    pub(super) fn revocations_name(&self) -> Name {
        match &self.seal {
            None => self.zone.revocations(),
            Some(seal) => seal.revocations(&self.zone),
        }
    }

    /// The owner of a slice's claim.
    pub(super) fn slice_name(&self, slice: &IpNet) -> Name {
        match &self.seal {
            None => self.zone.slice(slice),
            Some(seal) => seal.slice(&self.zone, slice),
        }
    }

    /// The strings of a TXT record as they stand in this zone.
    pub(super) fn txt_data(&self, owner: &Name, txt: &[Vec<u8>]) -> TXT {
        match &self.seal {
            None => TXT::from_bytes(txt.iter().map(Vec::as_slice).collect()),
            Some(seal) => {
                let sealed = seal.seal(owner, txt);
                TXT::from_bytes(sealed.iter().map(Vec::as_slice).collect())
            }
        }
    }

    /// The strings of a TXT record as they were written; as they stand, where the seal does
    /// not open them.
    pub(super) fn open_txt(&self, owner: &Name, txt: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        match self.seal.as_ref().and_then(|seal| seal.open(owner, &txt)) {
            Some(opened) => opened,
            None => txt,
        }
    }

    /// The update that puts `txt` alone at a name (RFC 2136 §2.5.2, §2.5.1).
    pub(super) fn replace_txt(&self, owner: &Name, txt: &[Vec<u8>]) -> Vec<WireRecord> {
        let txt = RData::TXT(self.txt_data(owner, txt));
        vec![delete_txt(owner), WireRecord::from_rdata(owner.clone(), TTL, txt)]
    }
}

/// Deletes the TXT records of a name.
pub(super) fn delete_txt(owner: &Name) -> WireRecord {
    let mut record = WireRecord::update0(owner.clone(), 0, RecordType::TXT);
    record.dns_class = DNSClass::ANY;
    record
}

fn unseal(seal: &Seal, zone: &Zone, record: &Record) -> Option<Vec<Record>> {
    let Data::Txt(sealed) = &record.data else { return None };
    // Before anything is deciphered: all names of ours stand directly below the zone.
    if record.owner.num_labels() != zone.name().num_labels() + 1 {
        return None;
    }
    let txt = seal.open(&record.owner, sealed)?;
    if record.owner == seal.revocations(zone) {
        return Some(vec![Record { owner: zone.revocations(), data: Data::Txt(txt) }]);
    }
    let fields = Fields::read(&txt).ok()?;
    if let Ok(slice) = fields.one::<IpNet>("slice")
        && record.owner == seal.slice(zone, &slice)
    {
        return Some(vec![Record { owner: zone.slice(&slice), data: Data::Txt(txt) }]);
    }
    let node: PublicKey = fields.one("pub").ok()?;
    // Under another's name nobody speaks.
    if record.owner != seal.node(zone, &node) {
        return None;
    }
    let candidates: Vec<Candidate> = fields.list("cand").ok()?;
    let (instance, host) = (zone.instance(&node), zone.host(&node));
    let mut records = Vec::new();
    if let Some(endpoint) = endpoint_of(&candidates) {
        let (port, target) = (endpoint.port(), host.clone());
        let data = Data::Srv { priority: 0, weight: 0, port, target };
        records.push(Record { owner: instance.clone(), data });
        records.extend(endpoint.addresses().iter().map(|address| {
            let data = Data::Address(*address);
            Record { owner: host.clone(), data }
        }));
    }
    records.push(Record { owner: instance, data: Data::Txt(txt) });
    Some(records)
}
