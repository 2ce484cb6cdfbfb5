//! What this node knows of the zone's records, and the view that they make.

use std::{collections::BTreeMap, net::SocketAddr};

use hickory_proto::rr::Name;
use ipnet::IpNet;

use super::{
    ZoneError,
    message::{Data, Record},
    slice::TxtSet,
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

/// The most records that one name may have. A node has one SRV, one TXT, and an
/// address per candidate.
const MAX_RECORDS_PER_NAME: usize = 64;

/// SRV, TXT and addresses of the zone by their owner's name.
#[derive(Debug, Default, Clone)]
pub(super) struct Contents {
    names: BTreeMap<Name, Vec<Data>>,
    bytes: usize,
}

/// What a zone says. Nothing of it has been verified.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct View {
    /// The instances, by the key that each one's name spells.
    pub instances: BTreeMap<PublicKey, InstanceRecords>,
    /// The strings of each TXT record that may be the network's list of revocations; one
    /// where nobody meddles.
    pub revocations: TxtSet,
    /// What stands at the names of slices; `None` where the zone cannot be listed, for there
    /// may be far more of them than anybody could ask for.
    pub claims: Option<BTreeMap<IpNet, TxtSet>>,
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
        if known.len() < MAX_RECORDS_PER_NAME && !known.contains(&record.data) {
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

    /// All of it that a node has a use for, if this is all of the zone.
    pub(super) fn view(&self, zone: &Zone) -> View {
        let revocations = self.names.get(&zone.revocations()).map(|known| txt_set(known));
        View {
            instances: self.instances(zone),
            revocations: revocations.unwrap_or_default(),
            claims: Some(self.claims(zone)),
        }
    }

    fn claims(&self, zone: &Zone) -> BTreeMap<IpNet, TxtSet> {
        let claims = self.names.iter().filter_map(|(owner, known)| {
            let slice = zone.slice_of(owner)?;
            let claims = txt_set(known);
            (!claims.is_empty()).then_some((slice, claims))
        });
        claims.take(MAX_INSTANCES).collect()
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

/// The strings of each TXT record of a name.
fn txt_set(known: &[Data]) -> TxtSet {
    let txt = |data: &Data| if let Data::Txt(txt) = data { Some(txt.clone()) } else { None };
    known.iter().filter_map(txt).collect()
}

/// Whether a record can be part of a view.
fn matters(zone: &Zone, record: &Record) -> bool {
    match record.data {
        Data::Srv { .. } => zone.instance_key(&record.owner).is_some(),
        Data::Txt(_) => {
            zone.instance_key(&record.owner).is_some()
                || zone.slice_of(&record.owner).is_some()
                || record.owner == zone.revocations()
        }
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

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::identity::Identity;

    #[test]
    fn an_instance_takes_its_addresses_from_wherever_its_srv_points() {
        let node = Identity::from_seed(&[1; 32]).public_key();
        let instance = zone().instance(&node);
        // Our own form, wgsd's, and one written by hand.
        let by_hand = Name::from_ascii("gateway.mesh.example.").expect("a name");
        for target in [zone().host(&node), instance.clone(), by_hand] {
            let mut contents = Contents::default();
            contents.add(&zone(), srv(&instance, &target));
            assert_eq!(contents.targets_without_address(&zone()), std::slice::from_ref(&target));
            assert!(contents.instances(&zone()).is_empty());
            contents.add(&zone(), address(&target, 7));
            assert_eq!(contents.targets_without_address(&zone()), [] as [Name; 0]);
            let records = contents.instances(&zone()).remove(&node).expect("an instance");
            let endpoint = records.endpoint.expect("an endpoint");
            assert_eq!(endpoint, Endpoint::new(51820, vec![IpAddr::from([192, 0, 2, 7])]));
        }
    }

    #[test]
    fn a_change_that_does_not_fit_is_told() {
        let node = Identity::from_seed(&[1; 32]).public_key();
        let host = zone().host(&node);
        let mut contents = Contents::default();
        contents.add(&zone(), address(&host, 1));
        assert_eq!(contents.remove(&zone(), &address(&host, 2)), Err(OutOfStep));
        assert_eq!(contents.remove(&zone(), &address(&host, 1)), Ok(()));
        assert_eq!(contents.remove(&zone(), &address(&host, 1)), Err(OutOfStep));
        assert_eq!(contents.bytes, 0);
        // What lies outside the zone is neither taken in nor missed.
        let outside = Name::from_ascii("gateway.other.example.").expect("a name");
        contents.add(&zone(), address(&outside, 1));
        assert_eq!(contents.remove(&zone(), &address(&outside, 1)), Ok(()));
    }

    #[test]
    fn the_list_of_revocations_is_told_record_by_record() {
        let owner = zone().revocations();
        let txt =
            |byte: u8| Record { owner: owner.clone(), data: Data::Txt(vec![vec![byte; 255]]) };
        let mut contents = Contents::default();
        contents.add(&zone(), txt(1));
        contents.add(&zone(), txt(2));
        assert_eq!(contents.view(&zone()).revocations, [[[1; 255]], [[2; 255]]]);
        contents.remove(&zone(), &txt(1)).expect("it was there");
        let view = contents.view(&zone());
        assert_eq!(view.revocations, [[[2; 255]]]);
        assert!(view.instances.is_empty());
    }

    #[test]
    fn more_than_a_zone_may_hold_is_refused() {
        let server = SocketAddr::from(([192, 0, 2, 53], 53));
        let mut contents = Contents::default();
        for seed in 0..=255 {
            let node = Identity::from_seed(&[seed; 32]).public_key();
            for part in 0..4u8 {
                let txt = vec![vec![part; 255]; 80];
                let owner = zone().instance(&node);
                contents.add(&zone(), Record { owner, data: Data::Txt(txt) });
            }
        }
        let error = contents.check_size(server).expect_err("20 MB");
        assert!(error.to_string().contains("192.0.2.53:53"), "{error}");
    }

    fn zone() -> Zone {
        "mesh.example".parse().expect("a zone")
    }

    fn srv(owner: &Name, target: &Name) -> Record {
        let (owner, target) = (owner.clone(), target.clone());
        Record { owner, data: Data::Srv { priority: 0, weight: 0, port: 51820, target } }
    }

    fn address(owner: &Name, last: u8) -> Record {
        Record { owner: owner.clone(), data: Data::Address(IpAddr::from([192, 0, 2, last])) }
    }
}
