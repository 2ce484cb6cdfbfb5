//! The zone's name, and the names of the records in it.

use std::{fmt, str::FromStr};

use hickory_proto::rr::Name;

use super::SERVICE_LABELS;
use crate::identity::PublicKey;

/// The DNS zone that the members share, and the names in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Zone(Name);

impl Zone {
    /// The zone's own name: absolute, in lower case.
    pub fn name(&self) -> &Name {
        &self.0
    }

    /// `_wireguard._udp.<zone>`: the owner of the PTR records.
    pub fn service(&self) -> Name {
        self.below(&SERVICE_LABELS.map(str::as_bytes))
    }

    /// `<56 characters, padded>._wireguard._udp.<zone>`: the owner of SRV and TXT.
    pub fn instance(&self, node: &PublicKey) -> Name {
        let label = format!("{}====", node.to_base32());
        self.below(&[label.as_bytes(), SERVICE_LABELS[0].as_bytes(), SERVICE_LABELS[1].as_bytes()])
    }

    /// `<52 characters>.<zone>`: the owner of A and AAAA. Without the padding, so
    /// that BIND's default `check-names` accepts it.
    pub fn host(&self, node: &PublicKey) -> Name {
        self.below(&[node.to_base32().as_bytes()])
    }

    /// `_revoked.<zone>`: the owner of the network's list of revocations.
    pub fn revocations(&self) -> Name {
        self.below(&[b"_revoked"])
    }

    /// The node that an instance name of this zone names, if it names one.
    pub fn instance_key(&self, owner: &Name) -> Option<PublicKey> {
        if owner.num_labels() != self.0.num_labels() + 3 || !self.service().zone_of(owner) {
            return None;
        }
        let node = PublicKey::from_base32(owner.iter().next()?).ok()?;
        // There is one name for a node: another spelling must not stand in its place.
        (self.instance(&node) == *owner).then_some(node)
    }

    pub(crate) fn below(&self, labels: &[&[u8]]) -> Name {
        let labels = labels.iter().copied().chain(self.0.iter());
        // `FromStr` made sure that the longest name fits.
        let mut name = Name::from_labels(labels).expect("a name below a checked zone");
        name.set_fqdn(true);
        name
    }
}

impl FromStr for Zone {
    type Err = ZoneError;

    fn from_str(text: &str) -> Result<Self, ZoneError> {
        Name::from_ascii(text).map_err(|_| ZoneError::Name)?.try_into()
    }
}

impl TryFrom<Name> for Zone {
    type Error = ZoneError;

    fn try_from(name: Name) -> Result<Self, ZoneError> {
        let mut name = name.to_lowercase();
        name.set_fqdn(true);
        if name.is_root() {
            return Err(ZoneError::Root);
        }
        // 255 bytes (RFC 1035 §3.1) less "<56>._wireguard._udp" with its length bytes.
        if name.len() > 255 - (57 + 11 + 5) {
            return Err(ZoneError::Long);
        }
        Ok(Self(name))
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Why a text is no zone's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// Not a domain name.
    #[error("not a domain name (RFC 1035 §2.3.1)")]
    Name,
    /// The root.
    #[error("the root is nobody's zone")]
    Root,
    /// No room for the records' names below it.
    #[error("too long: a record's name below it would pass 255 bytes")]
    Long,
}
