//! One question through a socket of its own: which address does the NAT give to a new
//! mapping right now?
//!
//! Where a NAT counts its ports upwards, the answer tells where its counter stands, and
//! so which port the next mapping will get.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    Transmit, canonical,
    message::{self, Id},
    request::{Outcome, RTO, Request},
};

/// Tries before it is given up: 250 ms, 500 ms and 1 s are waited. An answer that takes
/// longer tells of a counter that has moved on.
const TRIES: u32 = 3;

/// What came of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleEvent {
    /// The new mapping has this address.
    Seen {
        /// As the server sees it.
        external: SocketAddr,
        /// From the last question to the answer: no longer than the round trip where
        /// nothing was asked twice.
        rtt: Duration,
    },
    /// Nobody answered, or nothing of use.
    Failed,
}

/// A sample that is being taken.
#[derive(Debug)]
pub struct Sample {
    request: Option<Request>,
    asked: Instant,
    transmit: Option<Transmit>,
    event: Option<SampleEvent>,
}

impl Sample {
    /// Asks this server at once. The number of the question must not be guessed.
    pub fn new(server: SocketAddr, number: [u8; 12], now: Instant) -> Self {
        let request = Request::new(number as Id, canonical(server), TRIES, now);
        let mut sample = Self { request: Some(request), asked: now, transmit: None, event: None };
        sample.handle_timeout(now);
        sample
    }

    /// Takes a datagram from the socket. True if it was the server's answer.
    pub fn handle_datagram(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> bool {
        let from = canonical(from);
        let Some(id) = message::response_id(datagram) else { return false };
        let is_answer = |request: &mut Request| request.is(&id) && from == request.answered_by();
        if self.request.take_if(is_answer).is_none() {
            return false;
        }
        self.transmit = None;
        let rtt = now.saturating_duration_since(self.asked);
        self.event = Some(match message::answer(from, datagram) {
            Some(answer) => SampleEvent::Seen { external: answer.mapped, rtt },
            None => SampleEvent::Failed,
        });
        true
    }

    /// Asks again when it is time, and gives up in the end.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some(request) = &mut self.request else { return };
        match request.poll(now) {
            Outcome::Waiting => {}
            Outcome::Send(transmit) => {
                self.asked = now;
                self.transmit = Some(transmit);
            }
            Outcome::Lost => {
                self.request = None;
                self.event = Some(SampleEvent::Failed);
            }
        }
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmit.take()
    }

    /// What came of it, once.
    pub fn poll_event(&mut self) -> Option<SampleEvent> {
        self.event.take()
    }

    /// When [`Self::handle_timeout`] is due; `None` when it is over.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.request.as_ref().map(Request::due)
    }

    /// The longest that a sample takes.
    pub const LIMIT: Duration = RTO.saturating_mul((1 << TRIES) - 1);
}
