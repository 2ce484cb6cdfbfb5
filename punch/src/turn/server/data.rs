//! Data on its way: who may send what to whom.

use std::time::Instant;

use rand::RngExt;

use super::{ClientAddr, Forward, Forwarded, Load, PeerAddr, RelayId, Server};
use crate::turn::message::{Class, Family, Message, Method};

/// Bytes of the headers of IP (RFC 791 §3.1, RFC 8200 §3) and UDP: a datagram without
/// any data is a load on the network, too.
const fn headers_len(family: Family) -> u64 {
    match family {
        Family::V4 => 20 + 8,
        Family::V6 => 40 + 8,
    }
}

impl Server {
    /// Says where data that a client sent on a channel goes on to, if anywhere.
    pub fn channel_data(
        &mut self,
        client: &ClientAddr,
        channel: u16,
        load: Load,
        now: Instant,
    ) -> Option<Forward> {
        let peer = self.slot(client).and_then(|slot| {
            let peer = self.slots[slot as usize].as_mut()?.channel(channel, now)?;
            Some((slot, peer))
        });
        let Some((slot, peer)) = peer else {
            self.counters.unpermitted += load.packets;
            return None;
        };
        self.outward(slot, peer, load, now)
    }

    /// Says where data that came in at a relayed socket goes on to, if anywhere.
    pub fn peer_data(
        &mut self,
        relay: RelayId,
        peer: PeerAddr,
        load: Load,
        now: Instant,
    ) -> Option<Forward> {
        self.inward(relay, peer, load, now).inspect(|_| self.counters.relayed += load)
    }

    /// A Data indication that carries what came from a peer (RFC 8656 §11.3). `None`
    /// where it is longer than a message can be.
    pub fn data_indication(&mut self, peer: PeerAddr, payload: &[u8]) -> Option<Vec<u8>> {
        let indication = Message {
            peers: vec![peer.0],
            data: Some(payload.to_vec()),
            ..Message::new(Method::Data, Class::Indication, self.rng.random())
        };
        indication.encode(None).ok()
    }

    pub(super) fn handle_send(
        &mut self,
        client: ClientAddr,
        bytes: &[u8],
        now: Instant,
    ) -> Option<Forwarded> {
        // A stranger's is not even read.
        let Some(slot) = self.slot(&client) else {
            self.counters.unpermitted += 1;
            return None;
        };
        // RFC 8656 §11.2: what is not exactly right is dropped.
        let Ok(Message { peers, data: Some(payload), not_understood, dont_fragment, .. }) =
            Message::parse(bytes)
        else {
            self.counters.junk += 1;
            return None;
        };
        let ([peer], []) = (&peers[..], &not_understood[..]) else {
            self.counters.junk += 1;
            return None;
        };
        let permitted = self.slots[slot as usize]
            .as_ref()
            .is_some_and(|allocation| allocation.permits(peer.ip(), now));
        if !permitted {
            self.counters.unpermitted += 1;
            return None;
        }
        let load = Load { packets: 1, bytes: payload.len() as u64 };
        let to = self.outward(slot, PeerAddr(*peer), load, now)?;
        Some(Forwarded { to, payload, dont_fragment })
    }

    /// Where data from a client for a peer goes on to.
    fn outward(&mut self, slot: u32, peer: PeerAddr, load: Load, now: Instant) -> Option<Forward> {
        let family = Family::of(&peer.0);
        let Some(own) = self.slots[slot as usize].as_ref().and_then(|a| a.relayed(family)) else {
            self.counters.unpermitted += load.packets;
            return None;
        };
        let relay = RelayId { slot, family };
        let mut to = Forward::Peer { relay, peer };
        if self.is_relay(peer.0.ip()) {
            if let Some(inside) = self.relayed.get(&peer.0).copied() {
                to = self.inward(inside, PeerAddr(own), load, now)?;
            } else if !self.config.peers.permits(peer.0, |ip| self.is_relay(ip)) {
                self.counters.unpermitted += load.packets;
                return None;
            }
        }
        let charged = self.charge(relay, load, now);
        charged.then_some(to).inspect(|_| self.counters.relayed += load)
    }

    /// Where data that has come to a relayed address goes on to.
    fn inward(
        &mut self,
        relay: RelayId,
        peer: PeerAddr,
        load: Load,
        now: Instant,
    ) -> Option<Forward> {
        let admitted = self.slots.get_mut(relay.slot as usize).and_then(|allocation| {
            let allocation = allocation.as_mut()?;
            Some((allocation.client, allocation.admits(peer, now)?))
        });
        let Some((client, channel)) = admitted else {
            self.counters.unpermitted += load.packets;
            return None;
        };
        let to = match channel {
            Some(channel) => Forward::Channel { client, channel },
            None => Forward::Indication { client, peer },
        };
        self.charge(relay, load, now).then_some(to)
    }

    /// Takes a load, with the headers of its datagrams, off the bandwidth of an
    /// allocation and of the whole, if there is room for it.
    fn charge(&mut self, relay: RelayId, load: Load, now: Instant) -> bool {
        let Some(allocation) = self.slots[relay.slot as usize].as_mut() else { return false };
        let bytes = load.bytes + load.packets * headers_len(relay.family);
        let room = self.bandwidth.has(bytes, now) && allocation.bandwidth.has(bytes, now);
        if room {
            self.bandwidth.spend(bytes, now);
            allocation.bandwidth.spend(bytes, now);
        } else {
            self.counters.over_limit += load.packets;
        }
        room
    }
}
