//! What goes into the server and comes out of it.

use std::{
    net::{IpAddr, SocketAddr},
    ops::{AddAssign, RangeInclusive},
};

use super::{Alternates, PeerPolicy, Users};
use crate::turn::message::Family;

/// How a client is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientTransport {
    /// Datagrams.
    Udp,
    /// A stream in clear.
    Tcp,
    /// A stream under TLS.
    Tls,
}

/// The five-tuple by which a client is known (RFC 8656 §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientAddr {
    /// How it is connected.
    pub transport: ClientTransport,
    /// This server's address that it talks to.
    pub local: SocketAddr,
    /// Its own address, as seen from here.
    pub remote: SocketAddr,
}

/// The address of somebody whom a client exchanges data with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerAddr(pub SocketAddr);

/// A relayed socket: an allocation's place, and the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RelayId {
    /// Small, and used again when the allocation has gone.
    pub slot: u32,
    /// An allocation has at most one socket of each family.
    pub family: Family,
}

/// An address to relay from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayAddress {
    /// Where sockets are bound.
    pub bind: IpAddr,
    /// As which peers see it: another one behind a one-to-one NAT.
    pub external: IpAddr,
}

/// How much one may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Allocations in all.
    pub allocations: usize,
    /// Allocations of one account: a user name, without its end if it is time-limited.
    pub allocations_per_account: usize,
    /// Allocations of clients from one IPv4 address or IPv6 /64.
    pub allocations_per_source: usize,
    /// Addresses that an allocation permits at a time.
    pub permissions: usize,
    /// Channels of an allocation.
    pub channels: usize,
    /// Bytes per second that all allocations relay, both ways together, with the headers
    /// of IP and UDP.
    pub bandwidth: Option<u64>,
    /// Bytes per second that one allocation relays, counted the same way.
    pub bandwidth_per_allocation: Option<u64>,
    /// Answers per second to one IPv4 address or IPv6 /64 that has shown no credential.
    pub strangers: u32,
}

impl Default for Limits {
    /// For a mesh of 1,000 nodes on one relay: each has an allocation or two, with a
    /// permission and a channel for each address that another node may be found at, a few
    /// per node.
    fn default() -> Self {
        Self {
            allocations: 4096,
            allocations_per_account: 32,
            allocations_per_source: 256,
            permissions: 4096,
            channels: 4096,
            bandwidth: None,
            bandwidth_per_allocation: None,
            strangers: 50,
        }
    }
}

/// What a server serves, and to whom.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Whether Binding requests are answered.
    pub stun: bool,
    /// Whether allocations are given; without, all of TURN is left alone.
    pub turn: bool,
    /// The realm of the credentials.
    pub realm: String,
    /// Who may have an allocation.
    pub users: Users,
    /// From where is relayed; of each family the first is taken unless the client talks
    /// to another one.
    pub addresses: Vec<RelayAddress>,
    /// From which ports is relayed.
    pub ports: RangeInclusive<u16>,
    /// To whom is relayed.
    pub peers: PeerPolicy,
    /// Second addresses for RFC 5780, at most one pair of each family.
    pub alternates: Vec<Alternates>,
    /// How much one may have.
    pub limits: Limits,
}

/// A message to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// To whom, and from which of the server's addresses.
    pub client: ClientAddr,
    /// One STUN message.
    pub payload: Vec<u8>,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Bind a socket, and say whether it worked by [`super::Server::handle_opened`].
    Open {
        /// For which relayed address.
        relay: RelayId,
        /// Where.
        bind: SocketAddr,
    },
    /// Close the socket of this relayed address. There may be none.
    Close {
        /// Which one.
        relay: RelayId,
    },
}

/// Some datagrams of one sender.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// How many.
    pub packets: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
}

impl AddAssign for Load {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// Where data goes on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// Out of a relayed socket to a peer.
    Peer {
        /// Which socket.
        relay: RelayId,
        /// To whom.
        peer: PeerAddr,
    },
    /// To a client, as ChannelData.
    Channel {
        /// To whom.
        client: ClientAddr,
        /// On which channel.
        channel: u16,
    },
    /// To a client, in Data indications ([`super::Server::data_indication`]).
    Indication {
        /// To whom.
        client: ClientAddr,
        /// From whom it came.
        peer: PeerAddr,
    },
}

/// The data of a Send indication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// Where it goes on to.
    pub to: Forward,
    /// The data.
    pub payload: Vec<u8>,
    /// It must not be fragmented on its way.
    pub dont_fragment: bool,
}

/// What has happened since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Binding requests answered.
    pub bindings: u64,
    /// Allocations given.
    pub allocations: u64,
    /// Requests of authenticated clients that were refused.
    pub refused: u64,
    /// Requests without a valid credential.
    pub unauthorized: u64,
    /// Answers to strangers that were not sent, since there were too many.
    pub unanswered: u64,
    /// Messages that were none.
    pub junk: u64,
    /// Data passed on.
    pub relayed: Load,
    /// Datagrams not passed on, for want of an allocation, a permission or a channel, or
    /// because nobody may send there.
    pub unpermitted: u64,
    /// Datagrams not passed on, for there were too many.
    pub over_limit: u64,
}
