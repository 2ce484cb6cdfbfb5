//! The peers that channels are wanted to, and the numbers of the channels.
//!
//! A number belongs to its peer until the server has forgotten the binding for sure:
//! the server may drop or misdirect what a client sends on a number that changed hands
//! (RFC 8656 §12). So a peer that is not wanted any more keeps its entry for a while,
//! and gets the same number if it is wanted again.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use crate::turn::channel::NUMBERS;

/// How long a permission lasts, and with it what a ChannelBind has opened
/// (RFC 8656 §9).
const PERMISSION: Duration = Duration::from_secs(300);

/// How long before its permission ends a channel is bound again.
const AHEAD: Duration = Duration::from_secs(60);

/// How long a number is its peer's after it was bound last: ten minutes until the
/// binding ends, and five that RFC 8656 §12 asks to wait then.
const NUMBER_LIFE: Duration = Duration::from_secs(900);

/// How long a peer that the server refuses is left alone.
const REFUSED_PAUSE: Duration = Duration::from_secs(300);

/// How much waits for a channel that is being bound, and how long.
const MAX_WAITING: usize = 4;
const MAX_WAIT: Duration = Duration::from_secs(2);

/// What is known of the peers.
#[derive(Debug)]
pub(super) struct Channels {
    peers: BTreeMap<SocketAddr, Peer>,
    /// Peers by the time at which something is to be done for them.
    schedule: BTreeSet<(Instant, SocketAddr)>,
    numbers: BTreeSet<u16>,
    next_number: u16,
}

#[derive(Debug)]
struct Peer {
    number: u16,
    wanted: bool,
    state: State,
    due: Option<Instant>,
    waiting: VecDeque<(Instant, Vec<u8>)>,
    /// When the server was last asked to bind the number.
    asked: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// To be bound for the first time, or that is under way.
    Unbound,
    Bound {
        until: Instant,
    },
    Refused {
        until: Instant,
    },
}

/// What [`Channels::want`] came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// It is or will be asked for.
    Scheduled,
    /// The peer's former channel is still good.
    Bound(u16),
    /// No number is free.
    Full,
    /// It was wanted already.
    Known,
}

impl Channels {
    /// No peers; numbers are given from `first` on.
    pub(super) fn new(first: u16) -> Self {
        let span = NUMBERS.end() - NUMBERS.start() + 1;
        Self {
            peers: BTreeMap::new(),
            schedule: BTreeSet::new(),
            numbers: BTreeSet::new(),
            next_number: NUMBERS.start() + first % span,
        }
    }

    /// A channel to this peer is wanted.
    pub(super) fn want(&mut self, addr: SocketAddr, now: Instant) -> Wanted {
        if let Some(peer) = self.peers.get_mut(&addr) {
            if std::mem::replace(&mut peer.wanted, true) {
                return Wanted::Known;
            }
            return match peer.state {
                State::Bound { until } if now < until => {
                    let (number, due) = (peer.number, until.checked_sub(AHEAD).unwrap_or(now));
                    self.reschedule(addr, Some(due));
                    Wanted::Bound(number)
                }
                State::Refused { until } => {
                    self.reschedule(addr, Some(until));
                    Wanted::Scheduled
                }
                State::Bound { .. } | State::Unbound => {
                    peer.state = State::Unbound;
                    self.reschedule(addr, Some(now));
                    Wanted::Scheduled
                }
            };
        }
        let Some(number) = self.free_number() else { return Wanted::Full };
        let peer = Peer {
            number,
            wanted: true,
            state: State::Unbound,
            due: None,
            waiting: VecDeque::new(),
            asked: None,
        };
        self.peers.insert(addr, peer);
        self.reschedule(addr, Some(now));
        Wanted::Scheduled
    }

    /// No channel to this peer is wanted any more.
    pub(super) fn unwant(&mut self, addr: &SocketAddr, now: Instant) {
        let Some(peer) = self.peers.get_mut(addr) else { return };
        peer.wanted = false;
        peer.waiting.clear();
        let forget = peer.asked.map_or(now, |asked| asked + NUMBER_LIFE);
        self.reschedule(*addr, Some(forget));
    }

    /// The peers that are wanted.
    pub(super) fn wanted(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.peers.iter().filter(|(_, peer)| peer.wanted).map(|(addr, _)| *addr)
    }

    /// The next peer to ask the server for a channel to, and the channel's number.
    /// Forgets on the way what can be forgotten.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<(SocketAddr, u16)> {
        while let Some((due, addr)) = self.schedule.first().copied() {
            if now < due {
                return None;
            }
            self.reschedule(addr, None);
            let Some(peer) = self.peers.get_mut(&addr) else { continue };
            if !peer.wanted {
                let number = peer.number;
                self.numbers.remove(&number);
                self.peers.remove(&addr);
                continue;
            }
            if matches!(peer.state, State::Refused { .. }) {
                peer.state = State::Unbound;
            }
            peer.asked = Some(now);
            return Some((addr, peer.number));
        }
        None
    }

    /// The server has bound the channel. Its number, and what waited for it; the
    /// number is `None` where it was bound before.
    pub(super) fn bound(
        &mut self,
        addr: SocketAddr,
        started: Instant,
        now: Instant,
    ) -> Option<(Option<u16>, Vec<Vec<u8>>)> {
        let peer = self.peers.get_mut(&addr)?;
        let before = matches!(peer.state, State::Bound { .. });
        // Counted from the question: when the server began to count is not known.
        peer.state = State::Bound { until: started + PERMISSION };
        peer.asked = Some(now);
        let (number, wanted) = (peer.number, peer.wanted);
        let waiting = std::mem::take(&mut peer.waiting);
        if !wanted {
            self.reschedule(addr, Some(now + NUMBER_LIFE));
            return None;
        }
        self.reschedule(addr, Some(started + PERMISSION - AHEAD));
        let fresh = waiting.into_iter().filter(|(at, _)| now < *at + MAX_WAIT);
        Some(((!before).then_some(number), fresh.map(|(_, payload)| payload).collect()))
    }

    /// The server does not want to bind it. True if somebody wants to know.
    pub(super) fn refused(&mut self, addr: SocketAddr, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&addr) else { return false };
        let until = now + REFUSED_PAUSE;
        peer.state = State::Refused { until };
        peer.waiting.clear();
        let wanted = peer.wanted;
        self.reschedule(addr, Some(if wanted { until } else { now + NUMBER_LIFE }));
        wanted
    }

    /// The question got lost: it is due again.
    pub(super) fn ask_again(&mut self, addr: SocketAddr, now: Instant) {
        if self.peers.get(&addr).is_some_and(|peer| peer.wanted) {
            self.reschedule(addr, Some(now));
        }
    }

    /// The number of the channel to this peer, where it is bound and wanted.
    pub(super) fn number(&self, addr: &SocketAddr) -> Option<u16> {
        let peer = self.peers.get(addr)?;
        (peer.wanted && matches!(peer.state, State::Bound { .. })).then_some(peer.number)
    }

    /// Whether the server lets datagrams of this address through, whatever their port:
    /// permissions are by address alone (RFC 8656 §9).
    pub(super) fn is_permitted(&self, ip: IpAddr, now: Instant) -> bool {
        self.peers
            .range(SocketAddr::new(ip, 0)..=SocketAddr::new(ip, u16::MAX))
            .any(|(_, peer)| matches!(peer.state, State::Bound { until } if now < until))
    }

    /// Keeps a payload until the channel is bound, if one is being bound.
    pub(super) fn queue(&mut self, addr: &SocketAddr, payload: &[u8], now: Instant) {
        let Some(peer) = self.peers.get_mut(addr) else { return };
        if peer.wanted && peer.state == State::Unbound && peer.waiting.len() < MAX_WAITING {
            peer.waiting.push_back((now, payload.to_vec()));
        }
    }

    /// When [`Self::next_due`] has something.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.schedule.first().map(|(due, _)| *due)
    }

    fn reschedule(&mut self, addr: SocketAddr, due: Option<Instant>) {
        let Some(peer) = self.peers.get_mut(&addr) else { return };
        if let Some(former) = std::mem::replace(&mut peer.due, due) {
            self.schedule.remove(&(former, addr));
        }
        if let Some(due) = due {
            self.schedule.insert((due, addr));
        }
    }

    fn free_number(&mut self) -> Option<u16> {
        let span = usize::from(NUMBERS.end() - NUMBERS.start()) + 1;
        for _ in 0..span {
            let number = self.next_number;
            self.next_number = if number == *NUMBERS.end() { *NUMBERS.start() } else { number + 1 };
            if self.numbers.insert(number) {
                return Some(number);
            }
        }
        None
    }
}
