//! A node's records into the zone and out of it again, by RFC 2136 over TCP.
//!
//! SRV, TXT and addresses go in one update, which a server applies whole or not at
//! all. No update has a prerequisite: applied twice it changes nothing, so that one
//! whose answer got lost is just sent again.

use hickory_proto::rr::{
    DNSClass, Name, RData, Record, RecordType,
    rdata::{PTR, SRV, TXT},
};

use super::{Task, ZoneClient, ZoneError, message, unseal::delete_txt};
use crate::{
    advert::{SignedAdvert, Zone},
    identity::PublicKey,
};

/// How long resolvers may keep a record, in seconds. Nodes ask the zone's server
/// itself; others who look (wgsd's client, `dig`) should not see an address much
/// longer than a NAT takes to change it.
pub(super) const TTL: u32 = 30;

impl ZoneClient {
    /// Puts the advert in the place of what the zone says of the node: SRV and TXT
    /// at the instance, A and AAAA at the host. An advert without an address is
    /// published without SRV: wgsd's client does not survive an SRV without one.
    ///
    /// # Errors
    /// [`ZoneError`] when the server cannot be reached or does not take it.
    pub async fn publish(&self, advert: &SignedAdvert) -> Result<(), ZoneError> {
        let records = match &self.seal {
            None => advert_records(&self.zone, advert),
            Some(seal) => {
                let owner = seal.node(&self.zone, &advert.advert().node);
                self.replace_txt(&owner, advert.txt())
            }
        };
        self.update(records).await
    }

    /// Adds the node to the list of instances, the PTR records. Only a hint, and an
    /// update of its own: servers bound how many there may be.
    ///
    /// # Errors
    /// [`ZoneError`] when the server cannot be reached or does not take it.
    pub async fn announce(&self, node: &PublicKey) -> Result<(), ZoneError> {
        if self.seal.is_some() {
            // A list of the nodes is what a sealed zone must not have.
            return Ok(());
        }
        self.update(vec![pointer(&self.zone, node)]).await
    }

    /// As [`Self::withdraw`], with the node's last word: a server that lets each member write what it
    /// proves to be its own wants it for that. Others get it as well, and have it removed
    /// with the rest.
    ///
    /// # Errors
    /// [`ZoneError`] when the server cannot be reached or does not take it.
    pub async fn withdraw_by(&self, last: &SignedAdvert) -> Result<(), ZoneError> {
        self.publish(last).await?;
        self.withdraw(&last.advert().node).await
    }

    /// Removes everything that the zone says of the node.
    ///
    /// # Errors
    /// [`ZoneError`] when the server cannot be reached or does not take it.
    pub async fn withdraw(&self, node: &PublicKey) -> Result<(), ZoneError> {
        if let Some(seal) = &self.seal {
            return self.update(vec![delete_txt(&seal.node(&self.zone, node))]).await;
        }
        self.update(clear(&self.zone, node)).await?;
        let mut pointer = pointer(&self.zone, node);
        // Delete this one record of the set (RFC 2136 §2.5.4).
        pointer.dns_class = DNSClass::NONE;
        pointer.ttl = 0;
        self.update(vec![pointer]).await
    }

    pub(super) async fn update(&self, records: Vec<Record>) -> Result<(), ZoneError> {
        let mut message = message::update(&self.zone);
        message.add_authorities(records);
        self.ask(Task::Update, &message).await.map(drop)
    }
}

fn advert_records(zone: &Zone, advert: &SignedAdvert) -> Vec<Record> {
    let node = advert.advert().node;
    let (instance, host) = (zone.instance(&node), zone.host(&node));
    let mut records = clear(zone, &node);
    let txt = TXT::from_bytes(advert.txt().iter().map(Vec::as_slice).collect());
    records.push(Record::from_rdata(instance.clone(), TTL, RData::TXT(txt)));
    if let Some(endpoint) = advert.advert().endpoint() {
        let srv = SRV::new(0, 0, endpoint.port(), host.clone());
        records.push(Record::from_rdata(instance, TTL, RData::SRV(srv)));
        for address in endpoint.addresses() {
            records.push(Record::from_rdata(host.clone(), TTL, RData::from(*address)));
        }
    }
    records
}

/// Deletes the four RRsets of a node (RFC 2136 §2.5.2).
fn clear(zone: &Zone, node: &PublicKey) -> Vec<Record> {
    let delete = |name: &Name, kind| {
        let mut record = Record::update0(name.clone(), 0, kind);
        record.dns_class = DNSClass::ANY;
        record
    };
    let (instance, host) = (zone.instance(node), zone.host(node));
    vec![
        delete(&instance, RecordType::SRV),
        delete(&instance, RecordType::TXT),
        delete(&host, RecordType::A),
        delete(&host, RecordType::AAAA),
    ]
}

fn pointer(zone: &Zone, node: &PublicKey) -> Record {
    Record::from_rdata(zone.service(), TTL, RData::PTR(PTR(zone.instance(node))))
}
