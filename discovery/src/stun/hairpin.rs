//! Whether the NAT turns round what is sent from inside to its own outer address
//! (hairpinning, RFC 4787 §6), through a socket of its own.
//!
//! The socket asks a server for its outer address, and then sends a question there. A
//! NAT that turns it round lets it in again at the very same socket: that one has
//! sent there, so no filter is in the way.

use std::{net::SocketAddr, time::Instant};

use super::{
    Transmit, canonical,
    message::{self, Id},
    request::{Outcome, Request},
};

/// Tries of each of the two questions: 1.75 s with the waits.
const TRIES: u32 = 3;

/// A test that is under way.
#[derive(Debug)]
pub struct HairpinTest {
    step: Step,
    /// The number of the question that is to come back.
    number: Id,
    transmit: Option<Transmit>,
    outcome: Option<Option<bool>>,
}

#[derive(Debug)]
enum Step {
    /// The server is asked.
    Asking(Request),
    /// The own outer address is.
    Waiting(Request),
    Over,
}

impl HairpinTest {
    /// Asks the server at once. The two questions' numbers must not be guessed.
    pub fn new(server: SocketAddr, numbers: [[u8; 12]; 2], now: Instant) -> Self {
        let [asked, number] = numbers;
        let step = Step::Asking(Request::new(asked, canonical(server), TRIES, now));
        let mut test = Self { step, number, transmit: None, outcome: None };
        test.handle_timeout(now);
        test
    }

    /// Takes a datagram from the socket. True if it was one of the test's.
    pub fn handle_datagram(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> bool {
        let from = canonical(from);
        match &self.step {
            Step::Asking(request) => {
                let is_answer = message::response_id(datagram).is_some_and(|id| request.is(&id));
                if !is_answer || from != request.answered_by() {
                    return false;
                }
                match message::answer(from, datagram) {
                    Some(answer) => {
                        let request = Request::new(self.number, answer.mapped, TRIES, now);
                        self.step = Step::Waiting(request);
                        self.handle_timeout(now);
                    }
                    None => self.end(None),
                }
                true
            }
            // It may come from any address: NATs differ in which one they show.
            Step::Waiting(request) => {
                let is_back = message::request_id(datagram).is_some_and(|id| request.is(&id));
                if is_back {
                    self.end(Some(true));
                }
                is_back
            }
            Step::Over => false,
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let (request, lost) = match &mut self.step {
            Step::Asking(request) => (request, None),
            Step::Waiting(request) => (request, Some(false)),
            Step::Over => return,
        };
        match request.poll(now) {
            Outcome::Waiting => {}
            Outcome::Send(transmit) => self.transmit = Some(transmit),
            Outcome::Lost => self.end(lost),
        }
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmit.take()
    }

    /// What came of it, once: `None` inside where the server does not answer.
    pub fn poll_event(&mut self) -> Option<Option<bool>> {
        self.outcome.take()
    }

    /// When [`Self::handle_timeout`] is due; `None` when it is over.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.step {
            Step::Asking(request) | Step::Waiting(request) => Some(request.due()),
            Step::Over => None,
        }
    }

    fn end(&mut self, outcome: Option<bool>) {
        self.step = Step::Over;
        self.transmit = None;
        self.outcome = Some(outcome);
    }
}
