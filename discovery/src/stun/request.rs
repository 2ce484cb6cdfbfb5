//! One request until it is answered or given up.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    Transmit,
    message::{self, Change, Id},
};

/// The first wait for an answer, doubled from try to try. RFC 8489 §6.2.1 asks
/// for 500 ms; but one lost datagram must not cost half a second while a path is
/// being opened, and round trips over 250 ms cost only a second request.
pub(super) const RTO: Duration = Duration::from_millis(250);

/// The longest wait between two tries, so that a network that comes back is
/// noticed soon: a NAT that restarts is away for seconds.
const MAX_RTO: Duration = Duration::from_secs(2);

/// A request that is on its way.
#[derive(Debug)]
pub(super) struct Request {
    id: Id,
    to: SocketAddr,
    answered_by: SocketAddr,
    change: Change,
    response_port: Option<u16>,
    tries_left: u32,
    wait: Duration,
    due: Instant,
}

/// What comes of a look at a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Nothing to do yet.
    Waiting,
    /// To be sent, once more or for the first time.
    Send(Transmit),
    /// The last try has gone unanswered.
    Lost,
}

impl Request {
    /// A request that is due at once.
    pub(super) fn new(id: Id, to: SocketAddr, tries: u32, now: Instant) -> Self {
        Self {
            id,
            to,
            answered_by: to,
            change: Change::Nothing,
            response_port: None,
            tries_left: tries,
            wait: RTO,
            due: now,
        }
    }

    /// Asks that the answer come from another address or port of the server.
    pub(super) fn with_change(mut self, change: Change, answered_by: SocketAddr) -> Self {
        self.change = change;
        self.answered_by = answered_by;
        self
    }

    /// Asks that the answer go to another port of ours.
    pub(super) fn with_response_port(mut self, port: u16) -> Self {
        self.response_port = Some(port);
        self
    }

    /// Whether the transaction is this one.
    pub(super) fn is(&self, id: &Id) -> bool {
        self.id == *id
    }

    /// The server that is asked.
    pub(super) fn to(&self) -> SocketAddr {
        self.to
    }

    /// From where the answer has to come.
    pub(super) fn answered_by(&self) -> SocketAddr {
        self.answered_by
    }

    /// When to look again.
    pub(super) fn due(&self) -> Instant {
        self.due
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
        self.due = now + self.wait;
        self.wait = (self.wait * 2).min(MAX_RTO);
        let payload = message::request(self.id, self.change, self.response_port);
        Outcome::Send(Transmit { to: self.to, payload })
    }
}
