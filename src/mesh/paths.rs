//! What there is to say of the paths to members.

use std::{collections::BTreeSet, net::SocketAddr};

use zonemesh_discovery::identity::PublicKey;
use zonemesh_punch::{Agent, PairStatus, SelectedPath, Tier, Verdict, Via};

use super::Mesh;

/// Bytes in front of what is sealed, and with WireGuard behind it, too.
const IPV4_HEADER: u16 = 20;
const IPV6_HEADER: u16 = 40;
const UDP_HEADER: u16 = 8;
const WIREGUARD_OVERHEAD: u16 = 32;

impl Mesh {
    /// The path to a member.
    pub fn path(&self, node: &PublicKey) -> Option<SelectedPath> {
        self.peers.get(node)?.agent.as_ref()?.selected()
    }

    /// This node's address on its relay `id`.
    pub fn relayed(&self, id: u32) -> Option<SocketAddr> {
        self.relays.iter().find(|relay| relay.id == id).map(|relay| relay.relayed)
    }

    /// The peers' addresses that are to have a channel on this node's relay `id`: all that
    /// are tried by it, but of a peer that is reached otherwise only those that work.
    pub fn peers_by_relay(&self, id: u32) -> BTreeSet<SocketAddr> {
        let mut wanted = BTreeSet::new();
        for agent in self.peers.values().filter_map(|peer| peer.agent.as_ref()) {
            let has_direct = agent.selected().is_some_and(|path| path.tier != Tier::Relayed);
            let by_relay = agent.pairs().filter(|pair| pair.route.via == Via::Relay(id));
            let kept = by_relay.filter(|pair| pair.rtt.is_some() || !has_direct);
            wanted.extend(kept.map(|pair| pair.route.remote));
        }
        wanted
    }

    /// The most that a packet in the tunnel may have to pass whole on the narrowest of the
    /// paths in use, if any of them was measured.
    pub fn narrowest(&self) -> Option<u16> {
        let agents = self.peers.values().filter_map(|peer| peer.agent.as_ref());
        let widths = agents.filter_map(Agent::selected).filter_map(|path| {
            let ip = if path.route.remote.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
            Some(path.mtu?.saturating_sub(ip + UDP_HEADER + WIREGUARD_OVERHEAD))
        });
        widths.min()
    }

    /// Every pair to a member, for status.
    pub fn pairs(&self, node: &PublicKey) -> Vec<PairStatus> {
        let agent = self.peers.get(node).and_then(|peer| peer.agent.as_ref());
        agent.map(|agent| agent.pairs().collect()).unwrap_or_default()
    }

    /// Why a member is reached as it is.
    pub fn verdict(&self, node: &PublicKey) -> Option<Verdict> {
        Some(self.peers.get(node)?.agent.as_ref()?.verdict())
    }
}
