//! What a client is told, and what it tells.

use std::net::SocketAddr;

use crate::turn::Credentials;

/// How the server is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// By datagrams, which get lost: requests are repeated.
    Datagram,
    /// By a TCP or TLS connection, which loses nothing but may hang.
    Stream,
}

/// What a client needs to know.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Who this node is to the relay.
    pub credentials: Credentials,
    /// Where the relay is, as far as this node can tell.
    pub server: SocketAddr,
    /// How the relay is reached.
    pub transport: Transport,
    /// Makes the transaction numbers, which nobody may guess.
    pub seed: [u8; 32],
}

/// What the client has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// There is an allocation.
    Allocated {
        /// Where peers reach this node through the relay.
        relayed: SocketAddr,
        /// Where the relay sees this node, if it says so.
        mapped: Option<SocketAddr>,
    },
    /// Data for this peer may go as ChannelData.
    Bound {
        /// The peer.
        peer: SocketAddr,
        /// Its channel.
        channel: u16,
    },
    /// The relay does not want to reach this peer; it is asked again after five minutes
    /// while the channel is wanted.
    Refused {
        /// The peer.
        peer: SocketAddr,
        /// Why.
        reason: RefuseReason,
    },
    /// Something from a peer without a channel: from another port of an address that
    /// has one, say. The relay claims where it is from.
    Data {
        /// From whom, as the relay says.
        peer: SocketAddr,
        /// What.
        payload: Vec<u8>,
    },
    /// There is no allocation, or no more; the client is of no more use.
    Ended(EndReason),
}

/// Why there is no channel to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RefuseReason {
    /// 403
    #[error("the relay does not relay to this address")]
    Forbidden,
    /// 443, or seen without asking.
    #[error("the peer's address is of another family than the relayed one")]
    Family,
    /// 486, 508
    #[error("the relay has no channel to spare")]
    NoCapacity,
    /// All channel numbers are in use.
    #[error("no channel number is free")]
    NoNumber,
    /// Any other error.
    #[error("the relay answers with error {0}")]
    Failed(u16),
}

/// Why there is no allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum EndReason {
    /// Nothing came back.
    #[error("the relay does not answer")]
    NoAnswer,
    /// 401 to our credential.
    #[error("the relay does not accept this node's credential (401)")]
    Unauthorized,
    /// 403
    #[error("the relay refuses this node (403)")]
    Forbidden,
    /// 486
    #[error("the relay's quota for this credential is used up (486)")]
    Quota,
    /// 508
    #[error("the relay has no address to spare (508)")]
    NoCapacity,
    /// 300
    #[error("the relay sends us to another one: {0} (300)")]
    AlternateServer(SocketAddr),
    /// 437 or 441 where there should be no allocation.
    #[error("the relay holds another allocation for this node's address and port (437)")]
    Mismatch,
    /// 437 where there should be one: the relay was restarted, or our address is
    /// another one than before.
    #[error("the relay has lost this node's allocation (437)")]
    Lost,
    /// Any other error.
    #[error("the relay answers with error {0}")]
    Failed(u16),
    /// What comes back are no answers: garbled, unsigned, or asking for ever newer
    /// nonces.
    #[error("what the relay answers is of no use")]
    Unusable,
    /// A relay in the Internet gives addresses of the Internet: what else it names would have
    /// all peers look around in their own networks.
    #[error("the relay names {0}, which is no address of the Internet, as the relayed one")]
    PrivateRelayed(SocketAddr),
    /// By [`Client::close`](super::Client::close).
    #[error("closed")]
    Closed,
}
