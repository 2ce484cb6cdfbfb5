//! What the mesh keeps of one peer, and when its path counts as dead.

use std::time::{Duration, Instant};

use zonemesh_punch::{Agent, Courier, Route};

use super::SWEEP;

/// A path on which WireGuard's packets came and then come no more is dead after this:
/// a keepalive is due every [`super::KEEPALIVE_S`], and WireGuard itself calls for a new
/// handshake after 15 s (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT).
const DATA_LIMIT: Duration = Duration::from_secs(40);

/// A path on which no WireGuard packet ever came is dead after this: two handshake
/// attempts (REKEY_TIMEOUT is 5 s).
pub(super) const FIRST_DATA_LIMIT: Duration = Duration::from_secs(11);

/// One peer.
pub(super) struct Peer {
    pub(super) agent: Option<Agent>,
    pub(super) courier: Option<Courier>,
    pub(super) deadline: Option<Instant>,
    /// When WireGuard last accepted a packet of it.
    pub(super) heard: Option<Instant>,
    /// How much WireGuard had sent to it when last asked.
    pub(super) sent_bytes: u64,
    /// Since when the path is as it is, or when it was last found dead.
    pub(super) path_since: Instant,
    pub(super) has_path: bool,
    /// When and which way its last handshake came.
    pub(super) session: Option<(Instant, Route)>,
}

impl Peer {
    pub(super) fn new(agent: Option<Agent>, now: Instant) -> Self {
        Self {
            agent,
            courier: None,
            deadline: None,
            heard: None,
            sent_bytes: 0,
            path_since: now,
            has_path: false,
            session: None,
        }
    }

    /// Whether nothing came on its path since there is one. One side may have a session
    /// that the other lost with a restart: only the other knows.
    pub(super) fn is_unheard(&self, now: Instant) -> bool {
        let heard = self.heard.is_some_and(|heard| heard >= self.path_since);
        self.has_path && !heard && now.saturating_duration_since(self.path_since) >= SWEEP / 2
    }

    /// Whether it has a path on which WireGuard's packets ought to come and do not.
    pub(super) fn is_deaf(&self, now: Instant) -> bool {
        let limit = match self.heard {
            Some(heard) if heard >= self.path_since => DATA_LIMIT,
            _ => FIRST_DATA_LIMIT,
        };
        let since = self.heard.map_or(self.path_since, |heard| heard.max(self.path_since));
        self.has_path && now.saturating_duration_since(since) > limit
    }
}
