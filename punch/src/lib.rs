//! From two sets of candidates to a working path.
//!
//! Two nodes that know each other's keys and addresses open a way through the NATs
//! and firewalls between them: each sends authenticated STUN requests
//! ([`check`]) to every address of the other ([`candidate`]) until some are answered,
//! and keeps to the best that is. One [`Agent`] per peer does so. It knows no names,
//! no DNS and no WireGuard; everything is pure, with time and randomness handed in.

mod agent;
mod budget;
pub mod candidate;
pub mod check;
mod courier;
mod nat;
pub mod oracle;
mod pair;
mod quality;
mod replay;
mod route;
mod status;
pub mod turn;
mod verdict;

pub use agent::{
    Agent, CheckError, MAX_LEARNED, MAX_LISTED, MAX_RELAYS, MAX_REMOTE, MAX_SOCKETS, MAX_UPLINKS,
};
pub use candidate::{Candidate, CandidateKind};
pub use check::{CheckKeys, OpenError, Username, WeakKey};
pub use courier::{Courier, MAX_CONTENT, MAX_NEWS, NEWS};
pub use nat::{Mapping, NatProfile, PortPattern};
pub use pair::Tier;
pub use route::{LocalRelay, Route, Via};
pub use status::{Event, PairStatus, SelectedPath, Transmit};
pub use verdict::{Obstacle, Verdict};
