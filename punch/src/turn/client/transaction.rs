//! One request until it is answered or given up.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::Transport;
use crate::turn::message::{Method, TransactionId};

/// The wait before a datagram is sent a second time. RFC 8489 §6.2.1 asks for 500 ms;
/// but the first answer stands between a node and its first packets.
const FIRST_WAIT: Duration = Duration::from_millis(300);

/// The wait before each further try. Not doubled, as RFC 8489 §6.2.1 would have it: in
/// the few seconds there are, a relay that is gone has to be told from one behind a
/// link that loses every fifth packet each way. Nine tries of which each has a chance
/// of 64 % all fail once in 10,000 times.
const WAIT: Duration = Duration::from_millis(500);
const TRIES: u32 = 9;

/// How long an answer may take on a stream, which sends again by itself
/// (RFC 8489 §6.2.2 gives it 39.5 s; then nobody would wait for the relay any more).
const STREAM_WAIT: Duration = Duration::from_secs(5);

/// How often one request may be asked back for a credential or a newer nonce: first
/// without one, then with a nonce that has just gone stale.
const MAX_CHALLENGES: u8 = 3;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To get the allocation.
    Allocate,
    /// To end one that an earlier run has left on our address and port.
    Clear,
    /// To keep the allocation, and to see that the relay is there.
    Refresh,
    /// To bind a channel to this peer, or to keep it, by this number.
    Bind(SocketAddr, u16),
}

impl Purpose {
    /// The method that serves it.
    pub(super) fn method(self) -> Method {
        match self {
            Self::Allocate => Method::Allocate,
            Self::Clear | Self::Refresh => Method::Refresh,
            Self::Bind(..) => Method::ChannelBind,
        }
    }
}

/// A request that is on its way.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) id: TransactionId,
    pub(super) purpose: Purpose,
    /// Whether it carried our credential.
    pub(super) signed: bool,
    /// When its first try went out.
    pub(super) started: Instant,
    /// Something came back that is no answer.
    pub(super) rubbish: bool,
    /// Answers that asked for a credential or a nonce, in the requests that this one
    /// is the last of.
    challenges: u8,
    bytes: Vec<u8>,
    tries_left: u32,
    tried: u32,
    wait: Duration,
    due: Instant,
}

/// What comes of a look at a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Nothing to do yet.
    Waiting,
    /// To be sent, once more or for the first time.
    Send(Vec<u8>),
    /// The last try has gone unanswered.
    Lost,
}

impl Transaction {
    /// A request that is due at once.
    pub(super) fn new(
        id: TransactionId,
        purpose: Purpose,
        bytes: Vec<u8>,
        signed: bool,
        transport: Transport,
        now: Instant,
    ) -> Self {
        let (tries_left, wait) = match transport {
            Transport::Datagram => (TRIES, FIRST_WAIT),
            Transport::Stream => (1, STREAM_WAIT),
        };
        Self {
            id,
            purpose,
            signed,
            started: now,
            rubbish: false,
            challenges: 0,
            bytes,
            tries_left,
            tried: 0,
            wait,
            due: now,
        }
    }

    /// Counts as one more answer to `former`'s challenge.
    pub(super) fn after_challenge(mut self, former: &Self) -> Self {
        self.challenges = former.challenges + 1;
        self
    }

    /// Whether it may be asked for a credential or a nonce once more.
    pub(super) fn may_be_challenged(&self) -> bool {
        self.challenges < MAX_CHALLENGES
    }

    /// When to look again.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// The round trip, if the answer can only be that to the one try there was.
    pub(super) fn round_trip(&self, now: Instant) -> Option<Duration> {
        (self.tried == 1).then(|| now.saturating_duration_since(self.started))
    }

    /// Sends, sends again or gives up, as the time says.
    pub(super) fn poll(&mut self, now: Instant) -> Outcome {
        if now < self.due {
            return Outcome::Waiting;
        }
        if self.tries_left == 0 {
            return Outcome::Lost;
        }
        self.tries_left -= 1;
        self.tried += 1;
        self.due = now + self.wait;
        self.wait = WAIT;
        Outcome::Send(self.bytes.clone())
    }
}
