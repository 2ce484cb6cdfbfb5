//! How long the NAT keeps a mapping that nothing passes (RFC 5780 §4.6).
//!
//! Two sockets of their own ask one server. The mapping of the *tested* socket is made
//! by two exchanges with the server, more than two seconds apart, since NATs keep what
//! looks like a conversation longer than what looks like one question (Linux does so
//! after two seconds). Then it is left alone for a time, and the *other* socket asks the
//! server to send its answer to the tested one's outer port (RESPONSE-PORT): it comes
//! through only where the mapping still stands. So each time is tried once, and the
//! longest that a mapping survived is looked for by growing and halving.
//!
//! A server that does not know RESPONSE-PORT, or an answer to another port that is not
//! let in, is noticed at once, while the mapping is fresh. Then the tested socket itself
//! asks again after the time: another outer port says that the mapping was lost. Behind
//! a NAT that keeps the inner port that would say nothing, and nothing is told.
//!
//! Answers get lost, servers go away: a mapping counts as lost only when three questions
//! went unanswered and the server then answers the tested socket itself.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    Transmit, canonical,
    message::{self, Answer},
    request::{Outcome, Request},
};

/// The times that are tried, in seconds. Below the first, a mapping is not worth
/// keeping; past the last, RFC 4787's two minutes (§4.3), nothing is gained by knowing.
const TIMES: [u64; 9] = [10, 15, 20, 30, 45, 60, 90, 120, 150];

/// Where the search starts: the shortest timeout that is common.
const FIRST: usize = 3;

/// How far it grows while nothing was lost.
const GROWTH: usize = 3;

/// Between the two exchanges that make a mapping.
const BETWEEN: Duration = Duration::from_millis(2500);

/// Tries of a question that the server answers if it is there at all.
const TRIES: u32 = 5;

/// Tries of one whose answer may not get in.
const PROBES: u32 = 3;

/// One of the two sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Socket {
    /// The one whose mapping is tested.
    Tested,
    /// The one that asks for an answer to the tested one.
    Other,
}

/// How long a mapping lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappingLifetime {
    /// The longest time that was survived; `None` where not even the shortest was.
    pub survived: Option<Duration>,
    /// The shortest time that was not; `None` where all were.
    pub lost: Option<Duration>,
}

impl MappingLifetime {
    /// The longest silence after which a mapping still stands for sure.
    pub fn safe(&self) -> Duration {
        self.survived.unwrap_or(Duration::from_secs(TIMES[0] / 2))
    }
}

/// A measurement that is under way.
#[derive(Debug)]
pub struct LifetimeTest {
    server: SocketAddr,
    inner: u16,
    rng: StdRng,
    step: Step,
    method: Option<Method>,
    /// The tested socket's address as it was seen last.
    mapped: Option<SocketAddr>,
    /// The index of the longest time that was survived.
    alive: Option<usize>,
    /// The index of the shortest time that was not.
    dead: Option<usize>,
    /// The index of the time that is tried.
    tried: usize,
    /// Whether the probe went unanswered, which counts once the server is seen to live.
    suspect: bool,
    transmits: VecDeque<(Socket, Transmit)>,
    outcome: Option<Option<MappingLifetime>>,
}

/// How a mapping is seen to stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// An answer to the other socket's question comes in.
    FromOutside,
    /// The tested socket has the same outer port as before.
    SameAgain,
}

#[derive(Debug)]
enum Step {
    /// The first of two exchanges.
    Making(Request),
    /// Between them.
    Resting(Instant),
    /// The second one.
    Confirming(Request),
    /// Whether an answer to the other socket's question comes in at all.
    Proving(Request),
    /// Nothing is sent until then.
    Silent(Instant),
    /// Whether the mapping still stands.
    Probing(Request),
    Over,
}

impl LifetimeTest {
    /// Begins with the first question to the server. `inner` is the tested socket's
    /// port; the seed makes the questions' numbers, which nobody may guess.
    pub fn new(server: SocketAddr, inner: u16, seed: [u8; 32], now: Instant) -> Self {
        let mut test = Self {
            server: canonical(server),
            inner,
            rng: StdRng::from_seed(seed),
            step: Step::Over,
            method: None,
            mapped: None,
            alive: None,
            dead: None,
            tried: FIRST,
            suspect: false,
            transmits: VecDeque::new(),
            outcome: None,
        };
        test.make(now);
        test
    }

    /// Takes a datagram that came to one of the sockets. True if it was an answer to a
    /// question of ours.
    pub fn handle_datagram(
        &mut self,
        at: Socket,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
    ) -> bool {
        let Some(id) = message::response_id(datagram) else { return false };
        let from = canonical(from);
        let (Step::Making(request)
        | Step::Confirming(request)
        | Step::Proving(request)
        | Step::Probing(request)) = &self.step
        else {
            return false;
        };
        if !request.is(&id) || from != self.server {
            return false;
        }
        let answer = message::answer(from, datagram);
        match (std::mem::replace(&mut self.step, Step::Over), answer) {
            (Step::Making(_), Some(answer)) => {
                self.note_seen(answer);
                if self.outcome.is_none() {
                    self.step = Step::Resting(now + BETWEEN);
                }
            }
            (Step::Confirming(_), Some(answer)) => {
                self.mapped = Some(answer.mapped);
                self.confirmed(now);
            }
            (Step::Making(_) | Step::Confirming(_), None) => self.end(None),
            // The server does not know what it is asked for, or did not do it.
            (Step::Proving(_), _) if at == Socket::Other => self.fall_back(now),
            (Step::Proving(_), _) => {
                self.method = Some(Method::FromOutside);
                self.be_silent(now);
            }
            (Step::Probing(_), answer) => match (self.method, answer) {
                (Some(Method::SameAgain), Some(answer)) => {
                    let stands = self.mapped == Some(answer.mapped);
                    self.mapped = Some(answer.mapped);
                    self.judge(stands, now);
                }
                // It lives, for whatever the answer says.
                (Some(Method::FromOutside), _) if at == Socket::Tested => self.judge(true, now),
                _ => self.end(None),
            },
            (step, _) => self.step = step,
        }
        true
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &mut self.step {
            Step::Resting(until) if *until <= now => {
                let request = self.question(TRIES, now);
                self.step = Step::Confirming(request);
            }
            Step::Silent(until) if *until <= now => {
                let request = match self.method {
                    Some(Method::FromOutside) => self.question_for_tested(now),
                    _ => self.question(TRIES, now),
                };
                self.step = Step::Probing(request);
            }
            _ => {}
        }
        let (request, socket) = match &mut self.step {
            Step::Making(request) | Step::Confirming(request) => (request, Socket::Tested),
            Step::Proving(request) => (request, Socket::Other),
            Step::Probing(request) => match self.method {
                Some(Method::FromOutside) => (request, Socket::Other),
                _ => (request, Socket::Tested),
            },
            Step::Resting(_) | Step::Silent(_) | Step::Over => return,
        };
        match request.poll(now) {
            Outcome::Waiting => {}
            Outcome::Send(transmit) => self.transmits.push_back((socket, transmit)),
            Outcome::Lost => match self.step {
                Step::Proving(_) => self.fall_back(now),
                Step::Probing(_) if self.method == Some(Method::FromOutside) => {
                    self.suspect = true;
                    self.make(now);
                }
                _ => self.end(None),
            },
        }
    }

    /// The next datagram to send, and by which socket.
    pub fn poll_transmit(&mut self) -> Option<(Socket, Transmit)> {
        self.transmits.pop_front()
    }

    /// What came of it, once: `None` inside where it cannot be told here.
    pub fn poll_event(&mut self) -> Option<Option<MappingLifetime>> {
        self.outcome.take()
    }

    /// When [`Self::handle_timeout`] is due; `None` when it is over.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.step {
            Step::Making(request)
            | Step::Confirming(request)
            | Step::Proving(request)
            | Step::Probing(request) => Some(request.due()),
            Step::Resting(until) | Step::Silent(until) => Some(*until),
            Step::Over => None,
        }
    }

    /// Has the mapping made, or made sure of.
    fn make(&mut self, now: Instant) {
        self.step = Step::Making(self.question(TRIES, now));
        self.handle_timeout(now);
    }

    /// The server answers the tested socket, so what the probe found counts.
    fn note_seen(&mut self, answer: Answer) {
        self.mapped = Some(answer.mapped);
        if std::mem::take(&mut self.suspect) {
            self.dead = Some(self.tried);
            self.advance();
        }
    }

    /// The mapping stands and looks like a conversation.
    fn confirmed(&mut self, now: Instant) {
        match self.method {
            Some(_) => self.be_silent(now),
            None => {
                self.step = Step::Proving(self.question_for_tested(now));
                self.handle_timeout(now);
            }
        }
    }

    fn fall_back(&mut self, now: Instant) {
        if self.mapped.is_some_and(|mapped| mapped.port() != self.inner) {
            self.method = Some(Method::SameAgain);
            self.make(now);
        } else {
            self.end(None);
        }
    }

    fn be_silent(&mut self, now: Instant) {
        self.step = Step::Silent(now + Duration::from_secs(TIMES[self.tried]));
    }

    /// Takes what the probe found, and goes on.
    fn judge(&mut self, stands: bool, now: Instant) {
        if stands {
            self.alive = Some(self.tried);
        } else {
            self.dead = Some(self.tried);
        }
        self.advance();
        if self.outcome.is_none() {
            self.make(now);
        }
    }

    /// Chooses the next time to try, or ends.
    fn advance(&mut self) {
        let last = TIMES.len() - 1;
        let next = match (self.alive, self.dead) {
            (Some(alive), None) => (alive < last).then(|| (alive + GROWTH).min(last)),
            (alive, dead) => {
                // Counted from one, so that nothing survived is zero.
                let (alive, dead) = (alive.map_or(0, |at| at + 1), dead.map_or(0, |at| at + 1));
                (alive + 1 < dead).then(|| (alive + dead) / 2 - 1)
            }
        };
        match next {
            Some(next) => self.tried = next,
            None => {
                let time = |index: usize| Duration::from_secs(TIMES[index]);
                let (survived, lost) = (self.alive.map(time), self.dead.map(time));
                self.end(Some(MappingLifetime { survived, lost }));
            }
        }
    }

    fn end(&mut self, outcome: Option<MappingLifetime>) {
        self.step = Step::Over;
        self.outcome = Some(outcome);
    }

    fn question(&mut self, tries: u32, now: Instant) -> Request {
        Request::new(self.rng.random(), self.server, tries, now)
    }

    /// A question of the other socket whose answer is to go to the tested one.
    fn question_for_tested(&mut self, now: Instant) -> Request {
        let port = self.mapped.map_or(self.inner, |mapped| mapped.port());
        self.question(PROBES, now).with_response_port(port)
    }
}
