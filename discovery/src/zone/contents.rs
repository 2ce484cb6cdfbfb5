//! What this node knows of the zone's records, and the instances that they make.

use std::{collections::BTreeMap, net::SocketAddr};

use hickory_proto::rr::Name;

use super::{
    ZoneError,
    message::{Data, Record},
};
use crate::{
    advert::{Endpoint, InstanceRecords, Zone},
    identity::PublicKey,
};

/// The most bytes of records that are kept, and the most that a transfer may bring:
/// four times what the largest mesh comes to ([`MAX_INSTANCES`] of a kilobyte each).
pub(super) const MAX_ZONE_BYTES: usize = 16 << 20;

/// The most records that one transfer may bring: 16 for each instance.
pub(super) const MAX_RECORDS: usize = 16 * MAX_INSTANCES;

/// The most instances that are read from a zone: four times the largest mesh.
pub(super) const MAX_INSTANCES: usize = 4096;

/// The most records of one type that one name may have. A node has one SRV, one
/// TXT, and an address per candidate.
const MAX_RECORDS_PER_SET: usize = 64;

/// SRV, TXT and addresses of the zone by their owner's name.
#[derive(Debug, Default, Clone)]
pub(super) struct Contents {
    names: BTreeMap<Name, Vec<Data>>,
    bytes: usize,
}

/// A change that does not fit what is known: the whole zone has to be read anew.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutOfStep;

impl Contents {
    /// Adds a record, if it is of a kind that matters.
    pub(super) fn add(&mut self, zone: &Zone, record: Record) {
        if !matters(zone, &record) {
            return;
        }
        let cost = cost(&record);
        let known = self.names.entry(record.owner).or_default();
        if known.len() < 3 * MAX_RECORDS_PER_SET && !known.contains(&record.data) {
            known.push(record.data);
            self.bytes += cost;
        }
    }

    /// Removes a record that has been added before.
    pub(super) fn remove(&mut self, zone: &Zone, record: &Record) -> Result<(), OutOfStep> {
        if !matters(zone, record) {
            return Ok(());
        }
        let known = self.names.get_mut(&record.owner).ok_or(OutOfStep)?;
        let at = known.iter().position(|data| *data == record.data).ok_or(OutOfStep)?;
        known.remove(at);
        if known.is_empty() {
            self.names.remove(&record.owner);
        }
        self.bytes -= cost(record);
        Ok(())
    }

    /// Whether it has grown beyond what is kept.
    pub(super) fn check_size(&self, server: SocketAddr) -> Result<(), ZoneError> {
        let what = "bytes of records";
        let error = ZoneError::TooLarge { server, limit: MAX_ZONE_BYTES, what };
        if self.bytes > MAX_ZONE_BYTES { Err(error) } else { Ok(()) }
    }

    /// The SRV targets inside the zone for which no address is known.
    pub(super) fn targets_without_address(&self, zone: &Zone) -> Vec<Name> {
        let mut targets: Vec<Name> = self
            .names
            .values()
            .flatten()
            .filter_map(|data| match data {
                Data::Srv { target, .. } if zone.name().zone_of(target) => Some(target.clone()),
                _ => None,
            })
            .filter(|target| self.addresses(target).next().is_none())
            .collect();
        targets.sort_unstable();
        targets.dedup();
        targets
    }

    /// The instances of the zone, with all that belongs to each. Nothing of it has
    /// been verified.
    pub(super) fn instances(&self, zone: &Zone) -> BTreeMap<PublicKey, InstanceRecords> {
        let mut instances = BTreeMap::new();
        for (owner, known) in &self.names {
            let Some(node) = zone.instance_key(owner) else { continue };
            if instances.len() == MAX_INSTANCES {
                tracing::warn!(%zone, "more than {MAX_INSTANCES} instances; the rest is ignored");
                break;
            }
            let txt: Vec<Vec<u8>> = known
                .iter()
                .filter_map(|data| if let Data::Txt(txt) = data { Some(txt) } else { None })
                .flatten()
                .cloned()
                .collect();
            // More than one SRV is nobody's form: take the one that comes first.
            let service = known.iter().filter_map(|data| match data {
                Data::Srv { priority, port, target, .. } => Some((priority, port, target)),
                _ => None,
            });
            let endpoint = service.min().and_then(|(_, port, target)| {
                let addresses: Vec<_> = self.addresses(target).collect();
                (!addresses.is_empty()).then(|| Endpoint::new(*port, addresses))
            });
            if !txt.is_empty() || endpoint.is_some() {
                instances.insert(node, InstanceRecords { node, txt, endpoint });
            }
        }
        instances
    }

    fn addresses(&self, name: &Name) -> impl Iterator<Item = std::net::IpAddr> + '_ {
        self.names.get(name).into_iter().flatten().filter_map(|data| match data {
            Data::Address(address) => Some(*address),
            _ => None,
        })
    }
}

/// Whether a record can be part of an instance.
fn matters(zone: &Zone, record: &Record) -> bool {
    match record.data {
        Data::Srv { .. } | Data::Txt(_) => zone.instance_key(&record.owner).is_some(),
        Data::Address(_) => zone.name().zone_of(&record.owner),
        Data::Soa { .. } | Data::Ptr(_) | Data::Other => false,
    }
}

/// The memory that a record takes, about.
fn cost(record: &Record) -> usize {
    /// The tree's node, the vector's slot and the allocations around them.
    const FIXED: usize = 200;
    let data = match &record.data {
        Data::Txt(strings) => strings.iter().map(|string| string.len() + 32).sum(),
        Data::Srv { target, .. } => target.len(),
        _ => 0,
    };
    FIXED + record.owner.len() + data
}
