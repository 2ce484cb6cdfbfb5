//! Routes: by which end of this node a datagram leaves, and to which address.

use std::{fmt, net::SocketAddr};

/// One of this node's own ends: where datagrams leave from and come in at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// The socket that WireGuard listens on (one of each family; the kernel picks the
    /// source address).
    Socket,
    /// A further UDP socket of this node, opened to get more mappings of its NAT.
    Extra(u32),
    /// A socket that leaves this node by the interface of this number, whatever the routes say:
    /// another way to the Internet than that of WireGuard's own socket.
    Uplink(u32),
    /// An allocation of this node on a relay: the peer sees its relayed address.
    Relay(u32),
}

/// A way to the peer: an end of this node, and an address of the peer as seen from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// This node's end.
    pub via: Via,
    /// The peer's address.
    pub remote: SocketAddr,
}

impl Via {
    /// Whether it is a socket that is there for all peers, and not for one attempt.
    pub(crate) fn is_lasting_socket(self) -> bool {
        matches!(self, Self::Socket | Self::Uplink(_))
    }
}

impl Route {
    /// The way from WireGuard's own socket to this address.
    pub const fn direct(remote: SocketAddr) -> Self {
        Self { via: Via::Socket, remote }
    }

    /// The way through this node's allocation number `relay` to this address.
    pub const fn relayed(relay: u32, remote: SocketAddr) -> Self {
        Self { via: Via::Relay(relay), remote }
    }
}

/// An allocation of this node on a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LocalRelay {
    /// Its number, as in [`Via::Relay`].
    pub id: u32,
    /// The address at which the relay takes datagrams for this node.
    pub relayed: SocketAddr,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.via {
            Via::Socket => write!(f, "{}", self.remote),
            Via::Extra(socket) => write!(f, "{} from socket {socket}", self.remote),
            Via::Uplink(uplink) => write!(f, "{} by interface {uplink}", self.remote),
            Via::Relay(relay) => write!(f, "{} by relay {relay}", self.remote),
        }
    }
}
