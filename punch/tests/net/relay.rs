//! Relays: a host asks one for an address of its own, and permits who may send there.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rand::RngExt;
use zonemesh_punch::LocalRelay;

use super::{HostId, Packet, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RelayId(usize);

pub(super) struct Relay {
    pub(super) ip: IpAddr,
    pub(super) is_up: bool,
    allocations: Vec<Allocation>,
}

struct Allocation {
    host: HostId,
    id: u32,
    relayed: SocketAddr,
    /// Whom the host ever sent to: its client renews them.
    permissions: BTreeSet<IpAddr>,
}

impl World {
    pub(crate) fn relay(&mut self, ip: &str) -> RelayId {
        let ip = ip.parse().expect("a literal address");
        self.relays.push(Relay { ip, is_up: true, allocations: Vec::new() });
        RelayId(self.relays.len() - 1)
    }

    /// An allocation for `host`; over TCP, say, where its site lets no UDP out.
    pub(crate) fn allocate(&mut self, host: HostId, relay: RelayId) -> LocalRelay {
        let count = self.relays.iter().map(|relay| relay.allocations.len()).sum::<usize>();
        let id = u32::try_from(count).expect("few");
        let relay = &mut self.relays[relay.0];
        let port = 50_000 + u16::try_from(count).expect("few");
        let relayed = SocketAddr::new(relay.ip, port);
        let permissions = BTreeSet::new();
        relay.allocations.push(Allocation { host, id, relayed, permissions });
        self.tell_relays(host);
        LocalRelay { id, relayed }
    }

    /// A relay goes down, or comes up again; hosts are told when the test tells them.
    pub(crate) fn set_relay(&mut self, relay: RelayId, is_up: bool) {
        self.relays[relay.0].is_up = is_up;
    }

    /// The allocations of a host, as far as they live.
    pub(super) fn allocations(&self, host: HostId) -> Vec<LocalRelay> {
        let up = self.relays.iter().filter(|relay| relay.is_up);
        let own = up.flat_map(|relay| &relay.allocations).filter(|a| a.host == host);
        own.map(|a| LocalRelay { id: a.id, relayed: a.relayed }).collect()
    }

    /// Tells the agent of a host which allocations it has.
    pub(crate) fn tell_relays(&mut self, host: HostId) {
        let (relays, now) = (self.allocations(host), self.now);
        if let Some(agent) = &mut self.hosts[host.0].agent {
            agent.set_relays(&relays, now);
        }
    }

    /// The host sends to `peer` by its allocation, and so permits it to send back.
    pub(super) fn permit(&mut self, host: HostId, id: u32, peer: SocketAddr) -> Option<SocketAddr> {
        let own = |a: &&mut Allocation| a.host == host && a.id == id;
        let up = self.relays.iter_mut().filter(|relay| relay.is_up);
        let allocation = up.flat_map(|relay| &mut relay.allocations).find(own)?;
        allocation.permissions.insert(peer.ip());
        Some(allocation.relayed)
    }

    /// The allocation that a packet is for, if it may come in.
    pub(super) fn relayed_to(&self, packet: &Packet) -> Option<(HostId, u32)> {
        let up = self.relays.iter().filter(|relay| relay.is_up);
        let mut allocations = up.flat_map(|relay| &relay.allocations);
        let allocation = allocations.find(|allocation| allocation.relayed == packet.to)?;
        let permitted = allocation.permissions.contains(&packet.from.ip());
        permitted.then_some((allocation.host, allocation.id))
    }

    /// How long a packet is under way between a host and its relay, if there is one. The
    /// loss of the weather is that of a whole way, and comes upon it elsewhere.
    pub(super) fn link(&mut self, host: HostId, id: u32) -> Option<Duration> {
        let mut allocations = self.relays.iter().flat_map(|relay| &relay.allocations);
        allocations.find(|a| a.host == host && a.id == id)?;
        Some(self.weather.delay + self.weather.jitter.mul_f64(self.rng.random()))
    }
}
