//! What the mesh tells the control loop.

use std::{collections::BTreeSet, net::SocketAddr};

use ipnet::IpNet;
use zonemesh_discovery::identity::PublicKey;
use zonemesh_punch::Route;

/// What the control loop has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeshEvent {
    /// The set of peers or whose routes are whose changed.
    Peers,
    /// The path to a member changed; `None` when there is none.
    Path {
        /// The member.
        node: PublicKey,
        /// Which way to send.
        route: Option<Route>,
    },
    /// A newer list of revocations came over the mesh: [`super::Mesh::revocations`].
    Revocations,
    /// A handshake with this member is due.
    Handshake(PublicKey),
    /// A STUN server is to be asked from a fresh socket, after any that were asked for:
    /// [`super::Mesh::handle_sample`] takes what it saw.
    WantSample(PublicKey),
    /// A fresh socket is to be opened for this member in place of those that it has, and a
    /// STUN server asked from it: [`super::Mesh::set_extra`] takes its number, and
    /// [`super::Mesh::handle_sample`] what the server saw.
    WantKnownSocket(PublicKey),
    /// Fresh sockets are to be opened for this member in place of those that it has:
    /// [`super::Mesh::set_extra`] takes their numbers.
    WantSockets {
        /// The member.
        node: PublicKey,
        /// How many.
        count: u16,
    },
    /// The further sockets of this member are to be closed.
    ReleaseSockets {
        /// The member.
        node: PublicKey,
        /// But for this one, which its path uses.
        keep: Option<u32>,
    },
}

/// What became of a datagram that looked like a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckOutcome {
    /// A member's, and genuine.
    Taken,
    /// Nobody's that is known: the zone may know more.
    Stranger,
    /// Forged, replayed, or from inside the overlay.
    Dropped,
}

/// A peer as WireGuard is to have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WirePeer {
    /// Its key.
    pub node: PublicKey,
    /// Where it is, for a peer that is not a member: `None` for a member, whose path
    /// is told by [`MeshEvent::Path`].
    pub endpoint: Option<SocketAddr>,
    /// The prefixes behind it.
    pub routes: BTreeSet<IpNet>,
}
