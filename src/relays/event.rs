//! What relays are made from, what they want and what they tell.

use std::{fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};
use zonemesh_punch::LocalRelay;

use crate::config::Secret;

/// How a server is reached; best first: datagrams do not wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Datagrams from WireGuard's own socket.
    Udp,
    /// A stream in clear.
    Tcp,
    /// A stream under TLS.
    Tls,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        })
    }
}

/// One way to a TURN server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelayServer {
    /// What people know it by: its URI.
    pub label: String,
    /// The host that it belongs to, by name or address: servers of one host are ways to
    /// the same relay.
    pub host: String,
    /// How it is reached.
    pub transport: Transport,
    /// Where it is.
    pub addr: SocketAddr,
    /// The name that its certificate has to have, with [`Transport::Tls`].
    pub tls_name: Option<String>,
}

/// What the relays are made from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The secret that makes time-limited credentials (coturn's use-auth-secret).
    pub secret: Secret<String>,
    /// This node's name in them; for the relay's log and quotas.
    pub name: String,
    /// Makes transaction numbers and pauses.
    pub seed: [u8; 32],
}

/// A connection that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// By UDP from WireGuard's own socket. It counts as open at once.
    Udp(SocketAddr),
    /// A TCP connection; [`super::Relays::handle_opened`] or
    /// [`super::Relays::handle_closed`] follows.
    Tcp(SocketAddr),
    /// The same under TLS, with a certificate for this name.
    Tls(SocketAddr, String),
}

/// What the relays have to tell, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Relay number `id` wants this connection.
    Open {
        /// The number; none is ever used again.
        id: u32,
        /// What to open.
        link: Link,
    },
    /// A STUN message or ChannelData frame for the server of this relay.
    Transmit {
        /// The relay.
        id: u32,
        /// The bytes, without padding.
        bytes: Vec<u8>,
    },
    /// Its connection is of no more use, nor are its channels.
    Close {
        /// The relay.
        id: u32,
    },
    /// These are this node's allocations now, best first, at most [`KEPT`](super::KEPT).
    Changed(Vec<LocalRelay>),
    /// A channel is bound.
    Channel {
        /// The relay.
        id: u32,
        /// The peer, by the address that the relay sees.
        peer: SocketAddr,
        /// The channel's number.
        channel: u16,
    },
    /// A channel is not to be used any more.
    Unbound {
        /// The relay.
        id: u32,
        /// The peer.
        peer: SocketAddr,
    },
    /// Something came from a peer without a channel.
    Data {
        /// The relay.
        id: u32,
        /// From whom, as the relay says.
        peer: SocketAddr,
        /// What.
        payload: Vec<u8>,
    },
    /// There is an allocation: for the log.
    Up {
        /// The server's label.
        label: String,
        /// The relayed address.
        relayed: SocketAddr,
    },
    /// An allocation has ended by itself, or a host does not give one: for the log.
    Died {
        /// The server's label.
        label: String,
        /// Why.
        reason: String,
    },
}
