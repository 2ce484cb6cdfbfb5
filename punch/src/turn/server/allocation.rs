//! One allocation: whose it is, which peers may send to it, and on which channels.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{ClientAddr, Limits, PeerAddr, limits::Bucket};
use crate::turn::{
    channel::OLD_NUMBERS,
    message::{Family, TransactionId},
};

/// RFC 8656 §9: a permission holds for five minutes.
const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);

/// RFC 8656 §12: a channel holds for ten minutes.
const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);

/// Which relayed addresses an allocation has: one of each family at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ByFamily<T> {
    pub(super) v4: T,
    pub(super) v6: T,
}

impl<T> ByFamily<T> {
    pub(super) fn of(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    pub(super) fn of_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// A relayed address of an allocation, on its way or there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relayed {
    /// A socket was asked for.
    Opening {
        /// Where, as the peers will see it.
        external: SocketAddr,
        /// How many more ports may be tried.
        tries: u8,
    },
    /// Peers reach it here.
    Open(SocketAddr),
    /// There was none to be had.
    Failed,
}

/// Why a permission or channel is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// 400: the number is none, or bound to another peer, or the peer has another one.
    Conflict,
    /// 508: as many as there may be are there.
    Full,
}

/// Where data for a peer goes, or data from a peer comes out, as it was last time.
#[derive(Debug, Clone, Copy)]
struct Last {
    channel: Option<u16>,
    peer: PeerAddr,
    until: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Channel {
    peer: PeerAddr,
    until: Instant,
}

/// The state that the server keeps for a client.
#[derive(Debug)]
pub(super) struct Allocation {
    pub(super) client: ClientAddr,
    /// The user name that it was made with, which alone may change it.
    pub(super) username: Arc<str>,
    /// The request that made it, which may come again (RFC 8656 §7.2).
    pub(super) made_by: TransactionId,
    pub(super) lifetime: Duration,
    pub(super) until: Instant,
    pub(super) relayed: ByFamily<Option<Relayed>>,
    pub(super) bandwidth: Bucket,
    permissions: HashMap<IpAddr, Instant>,
    channels: HashMap<u16, Channel>,
    numbers: HashMap<PeerAddr, u16>,
    /// Traffic mostly is with the same peer as before: then one comparison does.
    last_out: Option<Last>,
    last_in: Option<Last>,
}

impl Allocation {
    pub(super) fn new(
        client: ClientAddr,
        username: Arc<str>,
        made_by: TransactionId,
        lifetime: Duration,
        bandwidth: Option<u64>,
        now: Instant,
    ) -> Self {
        Self {
            client,
            username,
            made_by,
            lifetime,
            until: now + lifetime,
            relayed: ByFamily::default(),
            bandwidth: Bucket::new(bandwidth, now),
            permissions: HashMap::new(),
            channels: HashMap::new(),
            numbers: HashMap::new(),
            last_out: None,
            last_in: None,
        }
    }

    /// Its relayed address of this family, once it is open.
    pub(super) fn relayed(&self, family: Family) -> Option<SocketAddr> {
        match self.relayed.of(family) {
            Some(Relayed::Open(addr)) => Some(*addr),
            _ => None,
        }
    }

    /// Whether a socket is still to come.
    pub(super) fn is_opening(&self) -> bool {
        [Family::V4, Family::V6]
            .into_iter()
            .any(|family| matches!(self.relayed.of(family), Some(Relayed::Opening { .. })))
    }

    /// Lets these addresses send for five minutes: all of them or none (RFC 8656 §10.2).
    pub(super) fn permit(
        &mut self,
        ips: &[IpAddr],
        limits: &Limits,
        now: Instant,
    ) -> Result<(), Refusal> {
        let fresh = |permissions: &HashMap<IpAddr, Instant>| {
            ips.iter().filter(|ip| !permissions.contains_key(ip)).count()
        };
        if self.permissions.len() + fresh(&self.permissions) > limits.permissions {
            self.permissions.retain(|_, until| *until > now);
            if self.permissions.len() + fresh(&self.permissions) > limits.permissions {
                return Err(Refusal::Full);
            }
        }
        for ip in ips {
            self.permissions.insert(*ip, now + PERMISSION_LIFETIME);
        }
        self.last_in = None;
        Ok(())
    }

    /// Binds a channel to a peer, or keeps it bound, with the peer's permission
    /// (RFC 8656 §12.2).
    pub(super) fn bind(
        &mut self,
        number: u16,
        peer: PeerAddr,
        limits: &Limits,
        now: Instant,
    ) -> Result<(), Refusal> {
        let other_peer = self
            .channels
            .get(&number)
            .is_some_and(|channel| channel.peer != peer && channel.until > now);
        let bound =
            |number: &u16| self.channels.get(number).is_some_and(|channel| channel.until > now);
        let other_number =
            self.numbers.get(&peer).is_some_and(|bound_to| *bound_to != number && bound(bound_to));
        if !OLD_NUMBERS.contains(&number) || other_peer || other_number {
            return Err(Refusal::Conflict);
        }
        if !self.channels.contains_key(&number) && self.channels.len() >= limits.channels {
            self.forget_channels(now);
            if self.channels.len() >= limits.channels {
                return Err(Refusal::Full);
            }
        }
        self.permit(&[peer.0.ip()], limits, now)?;
        // What was bound before and has run out goes.
        if let Some(old) = self.numbers.insert(peer, number)
            && old != number
        {
            self.channels.remove(&old);
        }
        let channel = Channel { peer, until: now + CHANNEL_LIFETIME };
        if let Some(old) = self.channels.insert(number, channel)
            && old.peer != peer
        {
            self.numbers.remove(&old.peer);
        }
        self.last_out = None;
        Ok(())
    }

    fn forget_channels(&mut self, now: Instant) {
        self.channels.retain(|_, channel| channel.until > now);
        self.numbers.retain(|_, number| self.channels.contains_key(number));
    }

    /// The peer that a channel is bound to.
    pub(super) fn channel(&mut self, number: u16, now: Instant) -> Option<PeerAddr> {
        if let Some(last) = self.last_out
            && last.channel == Some(number)
            && last.until > now
        {
            return Some(last.peer);
        }
        let channel = self.channels.get(&number).filter(|channel| channel.until > now)?;
        let (peer, until) = (channel.peer, channel.until);
        self.last_out = Some(Last { channel: Some(number), peer, until });
        Some(peer)
    }

    /// Whether a peer may send, and on which channel its data goes on.
    pub(super) fn admits(&mut self, peer: PeerAddr, now: Instant) -> Option<Option<u16>> {
        if let Some(last) = self.last_in
            && last.peer == peer
            && last.until > now
        {
            return Some(last.channel);
        }
        let permitted = *self.permissions.get(&peer.0.ip()).filter(|until| **until > now)?;
        let number = self.numbers.get(&peer).copied();
        let channel = number.and_then(|number| {
            let until = self.channels.get(&number)?.until;
            (until > now).then_some((number, until))
        });
        // Without a channel: only until the next look, for one may be bound at any time.
        if let Some((number, until)) = channel {
            let until = until.min(permitted);
            self.last_in = Some(Last { channel: Some(number), peer, until });
        }
        Some(channel.map(|(number, _)| number))
    }

    /// Whether the client may send to this address without a channel.
    pub(super) fn permits(&self, ip: IpAddr, now: Instant) -> bool {
        self.permissions.get(&ip).is_some_and(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::server::ClientTransport;

    fn allocation(now: Instant) -> Allocation {
        let client = ClientAddr {
            transport: ClientTransport::Udp,
            local: "198.18.1.2:3478".parse().expect("an address"),
            remote: "192.0.2.1:1".parse().expect("an address"),
        };
        Allocation::new(client, "user".into(), [0; 12], Duration::from_secs(600), None, now)
    }

    fn peer(text: &str) -> PeerAddr {
        PeerAddr(text.parse().expect("an address"))
    }

    #[test]
    fn a_channel_and_its_permission_run_out_on_their_own() {
        let now = Instant::now();
        let (mut allocation, limits) = (allocation(now), Limits::default());
        let a = peer("192.0.2.9:5");
        assert_eq!(allocation.admits(a, now), None);
        allocation.bind(0x4000, a, &limits, now).expect("free");
        assert_eq!(allocation.channel(0x4000, now), Some(a));
        assert_eq!(allocation.admits(a, now), Some(Some(0x4000)));
        assert_eq!(allocation.admits(peer("192.0.2.9:6"), now), Some(None), "another port");
        let later = now + PERMISSION_LIFETIME;
        assert_eq!(allocation.admits(a, later), None, "the permission has run out");
        assert_eq!(allocation.channel(0x4000, later), Some(a), "the channel has not");
        allocation.permit(&[a.0.ip()], &limits, later).expect("room");
        assert_eq!(allocation.admits(a, later), Some(Some(0x4000)));
        let later = now + CHANNEL_LIFETIME;
        assert_eq!(allocation.channel(0x4000, later), None);
        assert_eq!(allocation.admits(a, later - Duration::from_secs(1)), Some(Some(0x4000)));
    }

    #[test]
    fn a_number_and_a_peer_belong_together_while_the_channel_holds() {
        let now = Instant::now();
        let (mut allocation, limits) = (allocation(now), Limits::default());
        let (a, b) = (peer("192.0.2.9:5"), peer("192.0.2.9:6"));
        allocation.bind(0x4000, a, &limits, now).expect("free");
        allocation.bind(0x4000, a, &limits, now).expect("the same again");
        assert_eq!(allocation.bind(0x4000, b, &limits, now), Err(Refusal::Conflict));
        assert_eq!(allocation.bind(0x4001, a, &limits, now), Err(Refusal::Conflict));
        for number in [0, 0x3fff, 0x8000, 0xffff] {
            assert_eq!(allocation.bind(number, b, &limits, now), Err(Refusal::Conflict));
        }
        let later = now + CHANNEL_LIFETIME;
        allocation.bind(0x4000, b, &limits, later).expect("it has run out");
        assert_eq!(allocation.channel(0x4000, later), Some(b));
        assert_eq!(allocation.admits(a, later), Some(None), "its address is permitted still");
        allocation.bind(0x4001, a, &limits, later).expect("it has none any more");
        assert_eq!(allocation.admits(a, later), Some(Some(0x4001)));
    }

    #[test]
    fn there_are_no_more_than_the_limits_say_but_what_has_run_out_makes_room() {
        let now = Instant::now();
        let limits = Limits { permissions: 4, channels: 2, ..Limits::default() };
        let mut allocation = allocation(now);
        allocation.bind(0x4000, peer("192.0.2.1:1"), &limits, now).expect("room");
        allocation.bind(0x4001, peer("192.0.2.2:1"), &limits, now).expect("room");
        let third = peer("192.0.2.9:1");
        assert_eq!(allocation.bind(0x4002, third, &limits, now), Err(Refusal::Full));
        let ips: Vec<IpAddr> = (3..6).map(|n| IpAddr::from([192, 0, 2, n])).collect();
        assert_eq!(allocation.permit(&ips, &limits, now), Err(Refusal::Full));
        assert!(!allocation.permits(ips[0], now), "all or none");
        allocation.permit(&ips[..2], &limits, now).expect("room");
        let later = now + CHANNEL_LIFETIME;
        allocation.bind(0x4002, third, &limits, later).expect("all have run out");
        assert_eq!((allocation.channels.len(), allocation.numbers.len()), (1, 1));
        assert_eq!(allocation.permissions.len(), 1);
    }
}
