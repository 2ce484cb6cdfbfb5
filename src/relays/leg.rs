//! One connection to a server, and the allocation that is asked for by it.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use zonemesh_punch::turn::{self, Client, ClientConfig, Credentials};

use super::{RelayServer, Transport};

/// A connection, and what it carries.
#[derive(Debug)]
pub(super) struct Leg {
    pub(super) server: RelayServer,
    /// None until the connection is open.
    pub(super) client: Option<Client>,
    /// The peers that channels are wanted to.
    pub(super) peers: BTreeSet<SocketAddr>,
    /// When it is to be closed, where another one has taken its place.
    pub(super) leaving: Option<Instant>,
    /// When its credential is so old that it has to be replaced.
    pub(super) renew: Option<Instant>,
}

impl Leg {
    pub(super) fn new(server: RelayServer) -> Self {
        Self { server, client: None, peers: BTreeSet::new(), leaving: None, renew: None }
    }

    /// The connection is open: asks for an allocation, until `renew`.
    pub(super) fn start(
        &mut self,
        credentials: Credentials,
        seed: [u8; 32],
        renew: Instant,
        now: Instant,
    ) {
        let transport = match self.server.transport {
            Transport::Udp => turn::Transport::Datagram,
            Transport::Tcp | Transport::Tls => turn::Transport::Stream,
        };
        let config = ClientConfig { credentials, server: self.server.addr, transport, seed };
        let mut client = Client::new(config, now);
        client.set_peers(&self.peers, now);
        self.client = Some(client);
        self.renew = Some(renew);
    }

    /// How good it is: less is better. Datagrams come first, whatever the round trip.
    pub(super) fn rank(&self) -> (bool, Duration) {
        let rtt = self.client.as_ref().and_then(Client::rtt);
        (self.server.transport != Transport::Udp, rtt.unwrap_or(Duration::MAX))
    }

    /// Whether the server answers, but has given no allocation yet.
    pub(super) fn is_answering(&self) -> bool {
        let client = self.client.as_ref();
        client.is_some_and(|client| client.rtt().is_some() && client.relayed().is_none())
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let client = self.client.as_ref().and_then(Client::poll_timeout);
        [client, self.leaving, self.renew].into_iter().flatten().min()
    }
}
