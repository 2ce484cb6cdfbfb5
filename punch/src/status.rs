//! What an agent tells: the datagrams to send, the path in use, the pairs.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{candidate::CandidateKind, pair::Tier, route::Route};

/// A datagram to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// From which end, and where to.
    pub route: Route,
    /// The UDP payload.
    pub payload: Vec<u8>,
    /// It is to be lost rather than fragmented: it measures what passes whole.
    pub dont_fragment: bool,
    /// It is to get at most so many routers far (the IPv4 time to live, or IPv6 hop
    /// limit): it opens this node's own NAT, and is not to reach the peer's. Where that
    /// cannot be done it must not be sent at all. By a relay nothing is sent either: the
    /// peer is let in there.
    pub hops: Option<u8>,
}

/// What changed, and what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Send WireGuard's packets there from now on.
    PathSelected(SelectedPath),
    /// The path is the same, but its MTU is known, or another one.
    PathMtu(SelectedPath),
    /// No pair works any more.
    PathLost,
    /// Hard NATs could be tried: call [`Agent::grant_turn`](crate::Agent::grant_turn) when
    /// no other peer has its turn.
    WantTurn,
    /// The turn is over.
    TurnOver,
    /// Ask a STUN server from a fresh socket, and hand what it saw to
    /// [`Agent::handle_sample`](crate::Agent::handle_sample). The sockets of a
    /// [`Event::WantSockets`] that came before are to be there first.
    WantSample,
    /// Open one fresh socket in place of those that there are and ask a STUN server from it,
    /// before anything else is sent there: tell its number to
    /// [`Agent::set_extra`](crate::Agent::set_extra), and then what the server saw to
    /// [`Agent::handle_sample`](crate::Agent::handle_sample).
    WantKnownSocket,
    /// Open so many fresh sockets in place of those that there are, and tell their numbers
    /// to [`Agent::set_extra`](crate::Agent::set_extra).
    WantSockets {
        /// How many, at most [`MAX_SOCKETS`](crate::MAX_SOCKETS).
        count: u16,
    },
    /// Close the further sockets but this one, and tell
    /// [`Agent::set_extra`](crate::Agent::set_extra).
    ReleaseSockets {
        /// The one that the path uses, if it does.
        keep: Option<u32>,
    },
}

/// The way to the peer that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelectedPath {
    /// This node's end, and the peer's address.
    pub route: Route,
    /// This node's own address as the peer sees it, once an answer has told it.
    pub own: Option<SocketAddr>,
    /// What kind of the peer's candidates the address is.
    pub kind: CandidateKind,
    /// How good a way it is.
    pub tier: Tier,
    /// The smoothed round trip of checks.
    pub rtt: Duration,
    /// The largest IP packet that passes whole, in bytes, once it is known.
    pub mtu: Option<u16>,
}

/// One pair as it stands, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct PairStatus {
    /// This node's end, and the peer's address.
    pub route: Route,
    /// What kind of candidate the address is.
    pub kind: CandidateKind,
    /// How good a way it is, or would be at best.
    pub tier: Tier,
    /// This node's own address as the peer saw it.
    pub own: Option<SocketAddr>,
    /// The peer's present candidates name it.
    pub listed: bool,
    /// It is in use.
    pub selected: bool,
    /// Checks passed, but WireGuard's packets died on it of late.
    pub suspect: bool,
    /// The round trip; `None` while it does not answer.
    pub rtt: Option<Duration>,
    /// Which part of the checks got no answer of late, from 0 to 1; `None` likewise.
    pub loss: Option<f64>,
    /// How many checks since the last answer, or since probing began anew.
    pub unanswered: u32,
    /// When the last check was sent.
    pub last_sent: Option<Instant>,
    /// When the last answer came.
    pub last_answer: Option<Instant>,
    /// When the last check of the peer came from there.
    pub last_heard: Option<Instant>,
}

impl PairStatus {
    /// In a few words, why the pair is, or is not, a path.
    pub fn reason(&self) -> &'static str {
        match self {
            Self { suspect: true, .. } => "checks are answered, but data died on it",
            Self { selected: true, .. } => "in use",
            Self { rtt: Some(_), unanswered: 0, .. } => "answers; kept to fall back on",
            Self { rtt: Some(_), .. } => "answered before; waiting for the answer to a check",
            Self { last_sent: None, .. } => "not yet checked",
            Self { last_heard: Some(_), .. } => "the peer's checks arrive, ours are not answered",
            Self { last_answer: Some(_), .. } => "answered before, no longer does",
            _ => "no answer, and no check of the peer's comes from there",
        }
    }
}
