//! What agents want against hard NATs: fresh sockets, and samples of what the NAT does with
//! one.
//!
//! Fresh sockets are read here while an attempt goes on. One by which the peer was met is
//! handed over to the data plane at once; all but that of the path go when the agent
//! releases them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    time::Instant,
};

use tokio::{net::UdpSocket, sync::mpsc, time::sleep_until};
use tracing::{debug, warn};
use zonemesh_discovery::{
    identity::PublicKey,
    stun::{self, Behaviour, Sample, SampleEvent},
};
use zonemesh_punch::{Mapping, NatProfile, PortPattern, Route, Transmit, Via};

use super::{Event, Node, sockets::Sockets};
use crate::mesh::CheckOutcome;

/// News of the sockets that were opened against hard NATs.
#[derive(Debug)]
pub enum HardEvent {
    /// A datagram came in at one of them.
    Datagram {
        /// By which one, and from whom.
        route: Route,
        /// What.
        bytes: Vec<u8>,
    },
    /// A fresh socket, and at which address it was seen; `None` where nobody answered.
    Opened {
        /// The peer that it is for.
        node: PublicKey,
        /// The socket.
        socket: UdpSocket,
        /// The address.
        external: Option<SocketAddr>,
    },
    /// A fresh socket was seen at this address; `None` where nobody answered.
    Sampled {
        /// The peer against whose NAT it was taken.
        node: PublicKey,
        /// The address.
        external: Option<SocketAddr>,
    },
}

/// The sockets, and whose they are.
pub(super) struct Hard {
    fresh: Sockets,
    /// For each peer, those that its agent knows.
    owned: BTreeMap<PublicKey, Vec<u32>>,
    /// Those that the data plane has, each of a peer whose path it is.
    handed: BTreeMap<u32, PublicKey>,
    events: mpsc::Sender<Event>,
}

impl Hard {
    pub(super) fn new(events: mpsc::Sender<Event>) -> Self {
        Self {
            fresh: Sockets::new(events.clone()),
            owned: BTreeMap::new(),
            handed: BTreeMap::new(),
            events,
        }
    }

    fn owner(&self, id: u32) -> Option<PublicKey> {
        self.owned.iter().find(|(_, owned)| owned.contains(&id)).map(|(node, _)| *node)
    }
}

impl Node {
    pub(super) fn handle_hard(&mut self, event: HardEvent, now: Instant) {
        match event {
            HardEvent::Datagram { route, bytes } => {
                let taken = self.mesh.handle_check(route, &bytes, now) == CheckOutcome::Taken;
                // The peer was met. Its data may come before this side has chosen the path.
                if let Via::Extra(id) = route.via
                    && taken
                    && let Some(node) = self.hard.owner(id)
                {
                    self.hand_over(node, id);
                }
            }
            HardEvent::Opened { node, socket, external } => {
                debug!(peer = %node, ?external, "opened a socket");
                self.release_sockets(&node, None, now);
                let opened = vec![self.hard.fresh.adopt(socket)];
                self.mesh.set_extra(&node, &opened, now);
                self.hard.owned.insert(node, opened);
                self.mesh.handle_sample(&node, external, now);
            }
            HardEvent::Sampled { node, external } => {
                debug!(peer = %node, ?external, "sampled the NAT");
                self.mesh.handle_sample(&node, external, now);
            }
        }
    }

    /// Opens fresh sockets for a peer, in place of those that it had.
    pub(super) fn open_sockets(&mut self, node: PublicKey, count: u16, now: Instant) {
        self.release_sockets(&node, None, now);
        let opened = self.hard.fresh.open(usize::from(count));
        debug!(peer = %node, count = opened.len(), "opened sockets");
        self.mesh.set_extra(&node, &opened, now);
        self.hard.owned.insert(node, opened);
    }

    /// Closes the sockets of a peer but the one that its path uses.
    pub(super) fn release_sockets(&mut self, node: &PublicKey, keep: Option<u32>, now: Instant) {
        let owned = self.hard.owned.remove(node).unwrap_or_default();
        let gone: Vec<u32> = owned.into_iter().filter(|id| Some(*id) != keep).collect();
        self.hard.fresh.close(&gone);
        let kept: Vec<u32> = keep.into_iter().collect();
        self.mesh.set_extra(node, &kept, now);
        if let Some(keep) = keep {
            self.hand_over(*node, keep);
        }
        self.hard.handed.retain(|id, owner| owner != node || Some(*id) == keep);
        self.keep_handed(Vec::new());
    }

    /// A path goes by this socket: the data plane reads it from now on.
    pub(super) fn hand_over(&mut self, node: PublicKey, id: u32) {
        if let Some(socket) = self.hard.fresh.hand_over(id) {
            self.hard.handed.insert(id, node);
            self.keep_handed(vec![(Via::Extra(id), socket)]);
        }
    }

    /// Closes the sockets of peers that are gone.
    pub(super) fn forget_sockets(&mut self, now: Instant) {
        let owners: BTreeSet<PublicKey> =
            self.hard.owned.keys().chain(self.hard.handed.values()).copied().collect();
        for node in owners {
            if self.mesh.advert(&node).is_none() {
                self.release_sockets(&node, None, now);
            }
        }
    }

    /// Hands these to the data plane, beside those that it is to keep.
    pub(super) fn keep_handed(&mut self, new: Vec<(Via, std::net::UdpSocket)>) {
        let handed = self.hard.handed.keys().map(|id| Via::Extra(*id));
        let keep: Vec<Via> =
            handed.chain(self.uplinks.ids().into_iter().map(Via::Uplink)).collect();
        if let Err(error) = self.data.set_sockets(new, &keep) {
            warn!("a socket cannot be used: {error}");
        }
    }

    /// Sends from a fresh socket, if it is one.
    pub(super) fn send_fresh(&self, transmit: &Transmit) -> bool {
        let Via::Extra(id) = transmit.route.via else { return false };
        let Transmit { route, payload, hops, .. } = transmit;
        self.hard.fresh.send(id, route.remote, payload, *hops)
    }

    /// Asks a STUN server as what it sees a fresh socket.
    pub(super) fn take_sample(&self, node: PublicKey) {
        self.ask_from_fresh(move |_, external| HardEvent::Sampled { node, external });
    }

    /// Opens a fresh socket for a peer, and asks a STUN server as what it sees that.
    pub(super) fn open_known_socket(&self, node: PublicKey) {
        self.ask_from_fresh(move |socket, external| HardEvent::Opened { node, socket, external });
    }

    fn ask_from_fresh(
        &self,
        told: impl FnOnce(UdpSocket, Option<SocketAddr>) -> HardEvent + Send + 'static,
    ) {
        let server = self.stun.named().map(|(_, server, _)| server).find(SocketAddr::is_ipv4);
        let events = self.hard.events.clone();
        tokio::spawn(async move {
            // Without a socket the agent's own limit ends the try.
            let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await else { return };
            let external = match server {
                Some(server) => sample(&socket, server).await.unwrap_or(None),
                None => None,
            };
            // The loop is gone only when the node stops.
            let _ = events.send(Event::Hard(told(socket, external))).await;
        });
    }

    /// Tells the agents what is known of this node's NAT.
    pub(super) fn tell_nat(&mut self, now: Instant) {
        let mapping = match self.stun.behaviour().mapping {
            Behaviour::EndpointIndependent | Behaviour::None => Mapping::Independent,
            Behaviour::AddressDependent | Behaviour::AddressAndPortDependent => Mapping::Dependent,
            Behaviour::Unknown => Mapping::Unknown,
        };
        let ports = match self.stun.ports() {
            stun::PortPattern::Preserving => PortPattern::Preserving,
            stun::PortPattern::Sequential { step } => PortPattern::Sequential { step },
            stun::PortPattern::Random => PortPattern::Random,
            stun::PortPattern::Unknown => PortPattern::Unknown,
        };
        self.mesh.set_nat(NatProfile { mapping, ports }, now);
    }
}

/// The outer address of a fresh socket.
async fn sample(socket: &UdpSocket, server: SocketAddr) -> std::io::Result<Option<SocketAddr>> {
    let mut sample = Sample::new(server, rand::random(), Instant::now());
    let mut buffer = [0; 1500];
    loop {
        while let Some(transmit) = sample.poll_transmit() {
            socket.send_to(&transmit.payload, transmit.to).await?;
        }
        match sample.poll_event() {
            Some(SampleEvent::Seen { external, .. }) => return Ok(Some(external)),
            Some(SampleEvent::Failed) => return Ok(None),
            None => {}
        }
        let Some(due) = sample.poll_timeout() else { return Ok(None) };
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                // An error is an ICMP one about an earlier question; it is asked again.
                if let Ok((length, from)) = received {
                    sample.handle_datagram(from, &buffer[..length], Instant::now());
                }
            }
            () = sleep_until(due.into()) => {}
        }
        sample.handle_timeout(Instant::now());
    }
}
