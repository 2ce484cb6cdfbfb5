//! What the relays say of themselves.

use std::{fmt, net::SocketAddr, time::Duration};

use super::Transport;

/// What a server does for this node; the order is that of reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RelayState {
    /// Its allocation is the first choice.
    Primary,
    /// Its allocation is kept for when the primary dies.
    Spare,
    /// Its allocation is about to end, since another one has taken its place.
    Leaving,
    /// It is being asked for an allocation.
    Trying,
    /// It is not needed.
    Resting,
    /// It gave no allocation when it was asked last.
    Failed,
}

impl fmt::Display for RelayState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Spare => "spare",
            Self::Leaving => "leaving",
            Self::Trying => "trying",
            Self::Resting => "resting",
            Self::Failed => "failed",
        })
    }
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayReport {
    /// The number of its relay, while it has one.
    pub id: Option<u32>,
    /// Its URI.
    pub label: String,
    /// Its host.
    pub host: String,
    /// How it is reached.
    pub transport: Transport,
    /// Where it is.
    pub addr: SocketAddr,
    /// What it does.
    pub state: RelayState,
    /// Where peers reach this node through it.
    pub relayed: Option<SocketAddr>,
    /// Where it sees this node.
    pub mapped: Option<SocketAddr>,
    /// The round trip to it, now or as it was measured last.
    pub rtt: Option<Duration>,
    /// Why it gave no allocation when it was asked last.
    pub error: Option<String>,
}
