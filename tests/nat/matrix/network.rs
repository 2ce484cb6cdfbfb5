//! The networks that a node of the matrix may stand in.

use zonemesh::lab::{
    member::{Identity, Member},
    nat::Kind,
    setup::HTTPS_PORT,
};
use zonemesh_punch::{
    PortPattern,
    oracle::{Depends, Nat},
};

use crate::stage::{Place, Stage};

/// What stands between a node and the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Network {
    /// Nothing.
    Public,
    /// A stateful firewall in front of public addresses.
    FirewalledPublic,
    FullCone,
    AddressRestricted,
    /// Linux masquerading, with closed input.
    PortRestricted,
    /// Linux masquerading, with open input.
    OpenInput,
    SymmetricRandom,
    SymmetricSequential,
    /// A home's NAT behind a carrier's.
    DoubleNat,
    /// No UDP but DNS.
    UdpBlocked,
    /// Nothing but TCP to port 443.
    Tcp443Only,
    /// A NAT that forgets a mapping after 15 seconds.
    ShortLived,
}

impl Network {
    /// All of them.
    pub(super) const ALL: [Network; 12] = [
        Network::Public,
        Network::FirewalledPublic,
        Network::FullCone,
        Network::AddressRestricted,
        Network::PortRestricted,
        Network::OpenInput,
        Network::SymmetricRandom,
        Network::SymmetricSequential,
        Network::DoubleNat,
        Network::UdpBlocked,
        Network::Tcp443Only,
        Network::ShortLived,
    ];

    /// A host in such a network. Its number keeps it apart from others of its kind.
    pub(super) fn place(self, stage: &mut Stage, name: &str, number: u8) -> Place {
        let private = format!("192.168.{number}.0/24");
        let kind = match self {
            Network::Public => return stage.public(name),
            Network::DoubleNat => {
                return stage.behind_carrier(name, Kind::PortRestricted, Kind::PortRestricted);
            }
            Network::FirewalledPublic => {
                let public = format!("198.19.{number}.0/24");
                return stage.behind(name, Kind::Ipv4Firewall, &public);
            }
            Network::FullCone => Kind::FullCone,
            Network::AddressRestricted => Kind::AddressRestricted,
            Network::PortRestricted => Kind::PortRestricted,
            Network::OpenInput => Kind::OpenInput,
            Network::SymmetricRandom => Kind::SymmetricRandom,
            Network::SymmetricSequential => Kind::SymmetricSequential,
            Network::UdpBlocked => Kind::UdpBlocked,
            Network::Tcp443Only => Kind::Tcp443Only,
            Network::ShortLived => Kind::ShortLived,
        };
        stage.behind(name, kind, &private)
    }

    /// Starts a node there that is told how to get out.
    pub(super) fn start(self, stage: &Stage, name: &str, number: u8, place: &Place) -> Member {
        let mut services = stage.setup.services.clone();
        if self == Network::Tcp443Only {
            services.zone_server.set_port(HTTPS_PORT);
        }
        let identity = Identity::new(name, number);
        Member::start(identity, &place.host, &services).expect("a node can be started")
    }

    /// What the oracle must know of it.
    pub(super) fn nat(self) -> Nat {
        let symmetric = Nat { mapping: Depends::AddressAndPort, ..Nat::PORT_RESTRICTED };
        match self {
            // A full cone lets everybody in, as nothing at all does.
            Network::Public | Network::FullCone => Nat::PUBLIC,
            Network::AddressRestricted => Nat { filtering: Depends::Address, ..Nat::PUBLIC },
            Network::FirewalledPublic
            | Network::PortRestricted
            | Network::OpenInput
            | Network::DoubleNat
            | Network::ShortLived => Nat::PORT_RESTRICTED,
            Network::SymmetricRandom => Nat { ports: PortPattern::Random, ..symmetric },
            Network::SymmetricSequential => {
                Nat { ports: PortPattern::Sequential { step: 1 }, ..symmetric }
            }
            Network::UdpBlocked | Network::Tcp443Only => Nat::BLOCKED,
        }
    }
}
