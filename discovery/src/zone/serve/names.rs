//! Whose a name of the zone is.

use hickory_proto::rr::Name;
use ipnet::IpNet;

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
    /// Fixed by the configuration, or nobody's.
    Fixed,
}

impl Owner {
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
}

/// Names are compared, ordered and kept in lower case (RFC 4343).
pub(super) fn canonical(name: &Name) -> Name {
    let mut name = name.to_lowercase();
    name.set_fqdn(true);
    name
}
