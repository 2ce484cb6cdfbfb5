//! The NAT's mapping and filtering behaviour, as RFC 5780 §4.3 and §4.4 find it
//! out with one server that has a second address.
//!
//! Four or five questions, one after the other. First the filtering, because it can
//! only be seen while nothing has been sent to the second address yet: an answer from
//! there gets in, or one from the same address and the other port, or none of
//! them. Then the mapping: what the second address sees us as, at the first port
//! and, where that differs, at the second port. Where all of these are different, one
//! more shows how the ports follow each other: as what the first address, at the
//! second port, sees us.

use std::{fmt, net::SocketAddr, time::Instant};

use super::{
    Transmit,
    message::{Answer, Change, Id},
    request::{Outcome, Request},
};

/// Tries per question. No answer is a result here, and three losses in a row are
/// rare enough for a line in a status.
const TRIES: u32 = 3;

/// How a NAT maps or filters, in RFC 4787's words (§4.1, §5), the kindest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Behaviour {
    /// There is no NAT: the address seen from outside is our own.
    None,
    /// The same for every peer.
    EndpointIndependent,
    /// One per address of the peer.
    AddressDependent,
    /// One per address and port of the peer.
    AddressAndPortDependent,
    /// Not known.
    #[default]
    Unknown,
}

impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
            Self::Unknown => "unknown",
        })
    }
}

/// How the NAT (or the firewall) in front of us behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NatBehaviour {
    /// Which public address our packets get.
    pub mapping: Behaviour,
    /// Whose packets get in.
    pub filtering: Behaviour,
}

/// The question that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// Does an answer from the other address and port get in?
    FromOtherAddress,
    /// Does an answer from the same address and the other port get in?
    FromOtherPort,
    /// As what does the other address, at the first port, see us?
    SeenByOtherAddress,
    /// As what does the other address, at the other port, see us, where its first
    /// port saw us as this?
    SeenByOtherPort(SocketAddr),
    /// As what does the first address, at the other port, see us?
    SeenByFirstAddress,
}

/// A test that is under way.
#[derive(Debug)]
pub(super) struct Test {
    server: SocketAddr,
    other: SocketAddr,
    mapped: SocketAddr,
    clean: bool,
    question: Question,
    request: Request,
    found: NatBehaviour,
    /// The ports of the mappings that the questions made, one after the other.
    ports: Vec<u16>,
}

/// What comes of a step of the test.
#[derive(Debug)]
pub(super) enum Progress {
    /// It goes on.
    Running,
    /// It goes on with this.
    Send(Transmit),
    /// It is over, and these ports were seen, one after the other.
    Done(NatBehaviour, Vec<u16>),
}

impl Test {
    /// Begins the test of the NAT that makes us look like `mapped`. `clean` says
    /// that nothing has been sent to the other address through this mapping.
    pub(super) fn new(
        server: SocketAddr,
        other: SocketAddr,
        mapped: SocketAddr,
        clean: bool,
        id: Id,
        now: Instant,
    ) -> Self {
        let question = Question::FromOtherAddress;
        let request = question.request(server, other, id, now);
        let found = NatBehaviour::default();
        Self { server, other, mapped, clean, question, request, found, ports: vec![] }
    }

    /// Begins a test of the mapping alone, by a socket that looks like `mapped`.
    pub(super) fn of_mapping(
        server: SocketAddr,
        other: SocketAddr,
        mapped: SocketAddr,
        id: Id,
        now: Instant,
    ) -> Self {
        let question = Question::SeenByOtherAddress;
        let request = question.request(server, other, id, now);
        Self { question, request, ..Self::new(server, other, mapped, false, id, now) }
    }

    /// The address that was seen when the test began.
    pub(super) fn mapped(&self) -> SocketAddr {
        self.mapped
    }

    /// Whether nothing may be sent to this server yet, because an answer from it
    /// is what the filter is tested with.
    pub(super) fn holds(&self, server: SocketAddr) -> bool {
        self.question == Question::FromOtherAddress && server.ip() == self.other.ip()
    }

    /// Whether the transaction is this test's and the source a server of it.
    pub(super) fn expects(&self, from: SocketAddr, id: &Id) -> bool {
        // A server that does not know CHANGE-REQUEST answers from where it was asked.
        self.request.is(id) && (from == self.request.answered_by() || from == self.request.to())
    }

    /// Takes the answer (`None`: one that says nothing of use) to its question.
    pub(super) fn handle_answer(
        &mut self,
        from: SocketAddr,
        answer: Option<Answer>,
        next_id: Id,
        now: Instant,
    ) -> Progress {
        let seen = answer.map(|answer| answer.mapped);
        let changed = seen.is_some() && from == self.request.answered_by();
        match self.question {
            Question::FromOtherAddress if changed => {
                // Past other packets to that address, it also gets in where the
                // filter looks at the address: nothing is known for sure.
                if self.clean {
                    self.found.filtering = Behaviour::EndpointIndependent;
                }
                self.ask(Question::SeenByOtherAddress, next_id, now)
            }
            Question::FromOtherPort if changed => {
                self.found.filtering = Behaviour::AddressDependent;
                self.ask(Question::SeenByOtherAddress, next_id, now)
            }
            Question::FromOtherAddress | Question::FromOtherPort => {
                self.ask(Question::SeenByOtherAddress, next_id, now)
            }
            Question::SeenByOtherAddress => match seen {
                Some(seen) if seen == self.mapped => {
                    self.found.mapping = Behaviour::EndpointIndependent;
                    self.done()
                }
                Some(seen) => {
                    // The first mapping and this one.
                    self.ports.extend([self.mapped.port(), seen.port()]);
                    self.ask(Question::SeenByOtherPort(seen), next_id, now)
                }
                None => self.done(),
            },
            Question::SeenByOtherPort(first) => match seen {
                Some(seen) if seen == first => {
                    self.found.mapping = Behaviour::AddressDependent;
                    self.done()
                }
                Some(seen) => {
                    self.found.mapping = Behaviour::AddressAndPortDependent;
                    // The first one may be old, and others were made since.
                    self.ports = vec![first.port(), seen.port()];
                    self.ask(Question::SeenByFirstAddress, next_id, now)
                }
                None => self.done(),
            },
            Question::SeenByFirstAddress => {
                self.ports.extend(seen.map(|seen| seen.port()));
                self.done()
            }
        }
    }

    /// Sends again, goes on to the next question, or ends.
    pub(super) fn handle_timeout(&mut self, next_id: Id, now: Instant) -> Progress {
        match self.request.poll(now) {
            Outcome::Waiting => Progress::Running,
            Outcome::Send(transmit) => Progress::Send(transmit),
            Outcome::Lost => match self.question {
                Question::FromOtherAddress => self.ask(Question::FromOtherPort, next_id, now),
                Question::FromOtherPort => {
                    self.found.filtering = Behaviour::AddressAndPortDependent;
                    self.ask(Question::SeenByOtherAddress, next_id, now)
                }
                Question::SeenByOtherAddress => {
                    // It is silent also where no filter is in the way: that nothing
                    // came from it before tells nothing.
                    if self.found.filtering != Behaviour::EndpointIndependent {
                        self.found.filtering = Behaviour::Unknown;
                    }
                    self.done()
                }
                Question::SeenByOtherPort(_) | Question::SeenByFirstAddress => self.done(),
            },
        }
    }

    /// When to look again.
    pub(super) fn poll_timeout(&self) -> Instant {
        self.request.due()
    }

    fn done(&mut self) -> Progress {
        Progress::Done(self.found, std::mem::take(&mut self.ports))
    }

    fn ask(&mut self, question: Question, id: Id, now: Instant) -> Progress {
        self.question = question;
        self.request = question.request(self.server, self.other, id, now);
        self.handle_timeout(id, now)
    }
}

impl Question {
    fn request(self, server: SocketAddr, other: SocketAddr, id: Id, now: Instant) -> Request {
        let to = |server| Request::new(id, server, TRIES, now);
        match self {
            Self::FromOtherAddress => to(server).with_change(Change::AddressAndPort, other),
            Self::FromOtherPort => {
                to(server).with_change(Change::Port, SocketAddr::new(server.ip(), other.port()))
            }
            Self::SeenByOtherAddress => to(SocketAddr::new(other.ip(), server.port())),
            Self::SeenByOtherPort(_) => to(other),
            Self::SeenByFirstAddress => to(SocketAddr::new(server.ip(), other.port())),
        }
    }
}
