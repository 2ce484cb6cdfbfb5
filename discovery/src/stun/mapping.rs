//! Which mappings the NAT gives (RFC 5780 §4.3), through a socket of its own.
//!
//! The socket of [`super::ReflexiveClient`] is known to peers. What comes there before it
//! has sent to where that is from, some NATs remember, and make an exception of what goes
//! back: Linux does so where its own input is open, and gives all that is new after that the
//! port of the exception. Such a NAT looks like one that maps by destination, and is none.
//! A fresh socket is known to nobody.

use std::{net::SocketAddr, time::Instant};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    Behaviour, PortPattern, Transmit,
    behaviour::{Progress, Test},
    canonical, message,
    request::{Outcome, Request},
};

/// Tries of the first question: 1.75 s with the waits.
const TRIES: u32 = 3;

/// What was found of the NAT's mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappingFound {
    /// The first one.
    pub mapped: SocketAddr,
    /// What the others are like.
    pub mapping: Behaviour,
    /// How their ports are chosen.
    pub ports: PortPattern,
}

/// A test that is under way.
#[derive(Debug)]
pub struct MappingTest {
    rng: StdRng,
    server: SocketAddr,
    other: SocketAddr,
    /// The socket's own port.
    inner: u16,
    step: Step,
    transmit: Option<Transmit>,
    outcome: Option<Option<MappingFound>>,
}

#[derive(Debug)]
enum Step {
    /// As what does the server see us?
    Asking(Request),
    /// And its other address?
    Testing(Test),
    Over,
}

impl MappingTest {
    /// Asks this server, which has another address, at once. `inner` is the socket's own
    /// port; the seed makes the transaction numbers, which nobody may guess.
    pub fn new(
        server: SocketAddr,
        other: SocketAddr,
        inner: u16,
        seed: [u8; 32],
        now: Instant,
    ) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let (server, other) = (canonical(server), canonical(other));
        let step = Step::Asking(Request::new(rng.random(), server, TRIES, now));
        let mut test = Self { rng, server, other, inner, step, transmit: None, outcome: None };
        test.handle_timeout(now);
        test
    }

    /// Takes a datagram from the socket. True if it was an answer that was waited for.
    pub fn handle_datagram(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> bool {
        let from = canonical(from);
        let Some(id) = message::response_id(datagram) else { return false };
        let next_id = self.rng.random();
        let progress = match &mut self.step {
            Step::Asking(request) if request.is(&id) && from == request.answered_by() => {
                let Some(answer) = message::answer(from, datagram) else {
                    self.end(None);
                    return true;
                };
                let (server, other, mapped) = (self.server, self.other, answer.mapped);
                let mut test = Test::of_mapping(server, other, mapped, next_id, now);
                let progress = test.handle_timeout(next_id, now);
                self.step = Step::Testing(test);
                progress
            }
            Step::Testing(test) if test.expects(from, &id) => {
                test.handle_answer(from, message::answer(from, datagram), next_id, now)
            }
            _ => return false,
        };
        self.take_progress(progress);
        true
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let next_id = self.rng.random();
        match &mut self.step {
            Step::Asking(request) => match request.poll(now) {
                Outcome::Waiting => {}
                Outcome::Send(transmit) => self.transmit = Some(transmit),
                Outcome::Lost => self.end(None),
            },
            Step::Testing(test) => {
                let progress = test.handle_timeout(next_id, now);
                self.take_progress(progress);
            }
            Step::Over => {}
        }
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmit.take()
    }

    /// What came of it, once: `None` inside where one of the two does not answer.
    pub fn poll_event(&mut self) -> Option<Option<MappingFound>> {
        self.outcome.take()
    }

    /// When [`Self::handle_timeout`] is due; `None` when it is over.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.step {
            Step::Asking(request) => Some(request.due()),
            Step::Testing(test) => Some(test.poll_timeout()),
            Step::Over => None,
        }
    }

    fn take_progress(&mut self, progress: Progress) {
        match progress {
            Progress::Running => {}
            Progress::Send(transmit) => self.transmit = Some(transmit),
            Progress::Done(found, ports) => {
                let Step::Testing(test) = &self.step else { return };
                let mapped = test.mapped();
                let first = [mapped.port()];
                let seen = if ports.is_empty() { &first[..] } else { &ports };
                let ports = PortPattern::told_by(Some(self.inner), [seen]);
                let found = MappingFound { mapped, mapping: found.mapping, ports };
                self.end((found.mapping != Behaviour::Unknown).then_some(found));
            }
        }
    }

    fn end(&mut self, found: Option<MappingFound>) {
        self.step = Step::Over;
        self.transmit = None;
        self.outcome = Some(found);
    }
}
