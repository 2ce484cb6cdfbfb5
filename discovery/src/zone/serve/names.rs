//! Whose a name of the zone is.

use hickory_proto::rr::{Name, RData, RecordType, rdata::TXT};
use ipnet::IpNet;

use super::{config::ZoneConfig, records::RrSet};
use crate::{advert::Zone, identity::PublicKey};

/// What a name of the zone is for. One that has no such use belongs to the
/// configuration: no update touches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    /// `_wireguard._udp.<zone>`: the list of instances.
    Service,
    /// A node's instance: SRV and TXT.
    Instance(PublicKey),
    /// A node's host name: A and AAAA.
    Host(PublicKey),
    /// `_revoked.<zone>`: the network's list of revocations.
    Revocations,
    /// `<slice>._slice.<zone>`: the claim of a slice.
    Slice(IpNet),
    /// Under seal, whatever it is: one TXT.
    Sealed,
    /// Fixed by the configuration, or nobody's.
    Fixed,
}

impl Owner {
    /// In an open zone.
    pub(super) fn of(zone: &Zone, name: &Name) -> Self {
        if *name == zone.service() {
            return Self::Service;
        }
        if *name == zone.revocations() {
            return Self::Revocations;
        }
        if let Some(node) = zone.instance_key(name) {
            return Self::Instance(node);
        }
        if let Some(slice) = zone.slice_of(name) {
            return Self::Slice(slice);
        }
        let first = name.iter().next().unwrap_or_default();
        if name.num_labels() == zone.name().num_labels() + 1
            && let Ok(node) = PublicKey::from_base32(first)
            && zone.host(&node) == *name
        {
            return Self::Host(node);
        }
        Self::Fixed
    }

    /// In a sealed zone.
    fn of_sealed(zone: &Zone, name: &Name) -> Self {
        let first = name.iter().next().unwrap_or_default();
        let is_ours = name.num_labels() == zone.name().num_labels() + 1
            && first.len() == SEALED_LABEL
            && first.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'));
        if is_ours { Self::Sealed } else { Self::Fixed }
    }
}

/// The characters of a name under seal.
const SEALED_LABEL: usize = 32;

/// The names of the zone, open or sealed.
impl ZoneConfig {
    pub(super) fn owner(&self, name: &Name) -> Owner {
        match &self.seal {
            None => Owner::of(&self.zone, name),
            Some(_) => Owner::of_sealed(&self.zone, name),
        }
    }

    /// Everything of a node; its advert stands at the first.
    pub(super) fn node_names(&self, node: &PublicKey) -> Vec<Name> {
        match &self.seal {
            None => vec![self.zone.instance(node), self.zone.host(node)],
            Some(seal) => vec![seal.node(&self.zone, node)],
        }
    }

    pub(super) fn slice_name(&self, slice: &IpNet) -> Name {
        match &self.seal {
            None => self.zone.slice(slice),
            Some(seal) => seal.slice(&self.zone, slice),
        }
    }

    pub(super) fn revocations_name(&self) -> Name {
        match &self.seal {
            None => self.zone.revocations(),
            Some(seal) => seal.revocations(&self.zone),
        }
    }

    /// The strings of the one TXT record of a name, opened where the zone is sealed.
    pub(super) fn strings(&self, name: &Name, sets: &[RrSet]) -> Option<Vec<Vec<u8>>> {
        let set = sets.iter().find(|set| set.kind == RecordType::TXT)?;
        let [RData::TXT(TXT { txt_data, .. })] = set.data.as_slice() else { return None };
        let strings: Vec<Vec<u8>> = txt_data.iter().map(|string| string.to_vec()).collect();
        match &self.seal {
            None => Some(strings),
            Some(seal) => seal.open(name, &strings),
        }
    }
}

/// Names are compared, ordered and kept in lower case (RFC 4343).
pub(super) fn canonical(name: &Name) -> Name {
    let mut name = name.to_lowercase();
    name.set_fqdn(true);
    name
}
