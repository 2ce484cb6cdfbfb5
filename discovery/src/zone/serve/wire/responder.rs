//! From a request's bytes to what is to be done about it.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{DNSClass, Name, RecordType},
};

use super::{
    encode::{STREAM_LIMIT, bare, cut, edns_reply, encode, udp_limit, with_edns},
    limit::{Meter, Rates, Verdict},
    poll::Poll,
    request::{Asked, Unread},
    transfer::{Transfer, Transfers, ixfr_serial},
};
use crate::{
    advert::Zone,
    identity::PublicKey,
    zone::{
        TsigKey,
        poll::{known_serial, set_known_serial},
        reason::set_reason,
        serve::{News, Writer, ZoneStore, names::Owner, query::reply},
    },
};

/// The longest that somebody who asks too much is made to wait, before being refused.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the operator decides of who may what.
#[derive(Debug, Clone, Default)]
pub struct ResponderConfig {
    /// The TSIG keys that are known.
    pub keys: Vec<(TsigKey, KeyRights)>,
    /// Whether only keys with that right may have the zone transferred.
    pub closed: bool,
    /// How much one network may have.
    pub rates: Rates,
    /// Whether the zone is another server's: updates are for that one.
    pub follows: bool,
}

/// What the holder of a key may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRights {
    /// Have the zone transferred, where not everybody may.
    pub transfer: bool,
    /// Write.
    pub update: UpdateRight,
}

/// What the holder of a key may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateRight {
    /// What anybody may: what proves itself.
    Proven,
    /// The names of the node that the key is named after.
    Own,
    /// The names of all nodes.
    All,
}

/// Who asks, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The address; by UDP anybody may have made it up.
    pub ip: IpAddr,
    /// Whether it came over a stream.
    pub stream: bool,
}

/// The time, by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The one that never goes back.
    pub instant: Instant,
    /// The one that adverts and signatures go by.
    pub system: SystemTime,
}

/// What is to be done about a request.
pub enum Answer {
    /// Nothing.
    Silence,
    /// Send this.
    Message(Vec<u8>),
    /// Send the messages of a transfer; over streams only.
    Transfer(Box<Transfer>),
    /// Have [`Responder::finish`] answer it once the serial is another one, or
    /// [`Poll::LIMIT`] has passed; over streams only.
    Poll(Box<Poll>),
    /// Have [`Responder::apply`] apply it, together with others.
    Update(Box<Update>),
    /// Hand it on to the primary server (RFC 2136 §6).
    Forward(Box<Forward>),
    /// Send this; and the primary server has news (RFC 1996).
    Notified(Vec<u8>),
}

/// An update for the primary server.
pub struct Forward {
    /// The update as it came, for its signature is for that server.
    pub request: Vec<u8>,
    /// The answer where that one does not answer.
    pub failed: Vec<u8>,
    /// How long it is to be held back.
    pub wait: Duration,
}

/// An update that waits to be applied.
pub struct Update {
    asked: Asked,
    writer: Writer,
    wait: Duration,
}

impl Update {
    /// How long it is to be held back: who has sent many already waits.
    pub fn wait(&self) -> Duration {
        self.wait
    }
}

/// What was done, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Queries that were answered.
    pub queries: u64,
    /// Updates that were done.
    pub updates: u64,
    /// Updates that were not: refused, or a prerequisite did not hold.
    pub refused: u64,
    /// Whole transfers.
    pub whole: u64,
    /// Transfers of what has changed.
    pub changes: u64,
    /// Signatures that did not count.
    pub bad_signatures: u64,
    /// What could not be read.
    pub malformed: u64,
    /// What was not answered, or cut, because its source has had too much.
    pub limited: u64,
}

/// The zone, from outside: see the [module](super).
pub struct Responder {
    store: ZoneStore,
    keys: BTreeMap<Name, (TsigKey, KeyRights)>,
    closed: bool,
    follows: bool,
    answers: Meter,
    updates: Meter,
    whole: Meter,
    transfers: Transfers,
    counters: Counters,
}

impl Responder {
    /// A zone that answers.
    pub fn new(store: ZoneStore, config: ResponderConfig, now: Instant) -> Self {
        let keys = config.keys.into_iter().map(|(key, rights)| (key.name().clone(), (key, rights)));
        Self {
            store,
            keys: keys.collect(),
            closed: config.closed,
            follows: config.follows,
            answers: Meter::new(config.rates.answers, now),
            updates: Meter::new(config.rates.updates, now),
            whole: Meter::new(config.rates.transfers, now),
            transfers: Transfers::default(),
            counters: Counters::default(),
        }
    }

    /// The zone.
    pub fn store(&self) -> &ZoneStore {
        &self.store
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes a request. Everything that was handed to [`apply`](Self::apply) is on disk.
    pub fn handle(&mut self, wire: &[u8], source: Source, now: Now) -> Answer {
        if self.follows
            && is_update(wire)
            && let Some(failed) = bare(wire, ResponseCode::ServFail)
        {
            return match self.reserve_update(source, now) {
                Some(wait) => {
                    Answer::Forward(Box::new(Forward { request: wire.to_vec(), failed, wait }))
                }
                None => Answer::Silence,
            };
        }
        let key = |name: &Name| self.keys.get(name).map(|(key, _)| key.clone());
        match Asked::read(wire, key, unix_time(now.system)) {
            Ok(asked) => self.handle_asked(asked, source, now),
            Err(Unread::Silence) => Answer::Silence,
            Err(Unread::Malformed(answer)) => {
                self.counters.malformed += 1;
                match self.judge(answer.len(), source, now.instant) {
                    Verdict::Whole => Answer::Message(answer),
                    Verdict::Cut | Verdict::Nothing => Answer::Silence,
                }
            }
            Err(Unread::Refused(asked, code)) => {
                self.counters.bad_signatures += 1;
                self.refuse(*asked, code, source, now)
            }
        }
    }

    fn handle_asked(&mut self, asked: Asked, source: Source, now: Now) -> Answer {
        if asked.edns().is_some_and(|edns| edns.version() > 0) {
            return self.refuse(asked, ResponseCode::BADVERS, source, now);
        }
        match asked.message.metadata.op_code {
            OpCode::Update => self.handle_update(asked, source, now),
            OpCode::Query => self.handle_query(asked, source, now),
            OpCode::Notify if self.follows => self.handle_notify(asked, now),
            _ => self.refuse(asked, ResponseCode::NotImp, source, now),
        }
    }

    fn handle_query(&mut self, asked: Asked, source: Source, now: Now) -> Answer {
        let apex = self.store.zone().name();
        let about = match asked.message.queries.as_slice() {
            [question]
                if question.query_class() == DNSClass::IN
                    && question.name().to_lowercase() == *apex =>
            {
                Some(question.query_type())
            }
            _ => None,
        };
        if source.stream {
            match about {
                Some(kind @ (RecordType::AXFR | RecordType::IXFR)) => {
                    return self.handle_transfer(kind, asked, source, now);
                }
                Some(RecordType::SOA) => {
                    let known = asked.edns().and_then(known_serial);
                    if let Some(known) = known {
                        let poll = Poll { asked, known };
                        return if known == self.store.serial() {
                            Answer::Poll(Box::new(poll))
                        } else {
                            Answer::Message(self.finish(poll, now.system))
                        };
                    }
                }
                _ => {}
            }
        }
        self.counters.queries += 1;
        let response = self.store.handle_query(&asked.message);
        self.respond(asked, response, source, now)
    }

    fn handle_transfer(
        &mut self,
        kind: RecordType,
        asked: Asked,
        source: Source,
        now: Now,
    ) -> Answer {
        let rights = asked.key_name().and_then(|name| self.keys.get(name));
        if self.closed && rights.is_none_or(|(_, rights)| !rights.transfer) {
            return self.refuse(asked, ResponseCode::Refused, source, now);
        }
        let since = match kind {
            RecordType::IXFR => match ixfr_serial(self.store.zone().name(), &asked) {
                Some(serial) => Some(serial),
                None => return self.refuse(asked, ResponseCode::FormErr, source, now),
            },
            _ => None,
        };
        let mut transfer = self.transfers.answer(&self.store, asked, since);
        if transfer.is_whole() {
            self.counters.whole += 1;
            // Nobody is turned away: where many come for all, they come one after the other.
            let wait = self.whole.reserve(source.ip, Duration::MAX, now.instant);
            transfer.set_wait(wait.unwrap_or(PATIENCE).min(PATIENCE));
        } else {
            self.counters.changes += 1;
        }
        Answer::Transfer(Box::new(transfer))
    }

    fn handle_update(&mut self, asked: Asked, source: Source, now: Now) -> Answer {
        let Some(wait) = self.reserve_update(source, now) else {
            return if source.stream {
                self.refuse(asked, ResponseCode::Refused, source, now)
            } else {
                Answer::Silence
            };
        };
        let writer = self.writer(&asked);
        Answer::Update(Box::new(Update { asked, writer, wait }))
    }

    /// How long an update is to wait; `None` where its source has sent too many.
    fn reserve_update(&mut self, source: Source, now: Now) -> Option<Duration> {
        let patience = if source.stream { PATIENCE } else { Duration::ZERO };
        let wait = self.updates.reserve(source.ip, patience, now.instant);
        self.counters.limited += u64::from(wait.is_none());
        wait
    }

    /// RFC 1996 §4.7: the answer is its question. Whoever has sent it, it is only a reason to
    /// look.
    fn handle_notify(&mut self, asked: Asked, now: Now) -> Answer {
        let about = asked.message.queries.first();
        let known = about.is_some_and(|about| about.name().to_lowercase() == *self.store.apex());
        let code = if known { ResponseCode::NoError } else { ResponseCode::NotAuth };
        let response = reply(&asked.message, code);
        let wire = answer(asked, response, now.system);
        if known { Answer::Notified(wire) } else { Answer::Message(wire) }
    }

    fn writer(&self, asked: &Asked) -> Writer {
        let rights = asked.key_name().and_then(|name| self.keys.get(name));
        match rights {
            Some((key, KeyRights { update: UpdateRight::Own, .. })) => {
                node_of_key(self.store.zone(), key).map_or(Writer::Anyone, Writer::Node)
            }
            Some((_, KeyRights { update: UpdateRight::All, .. })) => Writer::Administrator,
            _ => Writer::Anyone,
        }
    }

    /// Applies updates in their order, writes all of them down at once by `write`, and gives
    /// the answers. Where they cannot be written down, none of them has happened.
    pub fn apply(
        &mut self,
        updates: Vec<Update>,
        write: impl FnOnce(&[u8]) -> io::Result<()>,
        now: SystemTime,
    ) -> Vec<Vec<u8>> {
        let mut answers = Vec::with_capacity(updates.len());
        for Update { asked, writer, .. } in updates {
            let reply = self.store.handle_update(&asked.message, &writer, now);
            match &reply.error {
                None => self.counters.updates += 1,
                Some(error) => {
                    self.counters.refused += 1;
                    tracing::debug!(?writer, "an update is not done: {error}");
                }
            }
            let mut response = reply.message;
            if let (Some(error), Some(_)) = (&reply.error, asked.edns()) {
                let mut edns = edns_reply();
                set_reason(&mut edns, &error.to_string());
                response.set_edns(edns);
            }
            answers.push((asked, response));
        }
        let written = self.write_down(write, now);
        let done = |(asked, response): (Asked, Message)| {
            let response = match written {
                Ok(()) => response,
                Err(_) => ZoneStore::failed(&asked.message),
            };
            answer(asked, response, now)
        };
        answers.into_iter().map(done).collect()
    }

    /// Removes what has lapsed, where something has.
    pub fn sweep(&mut self, write: impl FnOnce(&[u8]) -> io::Result<()>, now: SystemTime) {
        if self.store.poll_timeout().is_some_and(|due| due <= now) {
            self.store.handle_timeout(now);
            // What could not be written down is swept later.
            let _ = self.write_down(write, now);
        }
    }

    /// Takes over what the primary server has told, and writes it down.
    ///
    /// # Errors
    /// Where it makes no sense, or cannot be written down: nothing has changed then.
    pub fn follow(
        &mut self,
        news: News,
        write: impl FnOnce(&[u8]) -> io::Result<()>,
        now: SystemTime,
    ) -> io::Result<()> {
        self.store.follow(news).map_err(io::Error::other)?;
        self.write_down(write, now)
    }

    /// Writes down what has changed, or takes it back.
    fn write_down(
        &mut self,
        write: impl FnOnce(&[u8]) -> io::Result<()>,
        now: SystemTime,
    ) -> io::Result<()> {
        let Some(bytes) = self.store.poll_journal() else { return Ok(()) };
        match write(&bytes) {
            Ok(()) => self.store.commit(),
            Err(error) => {
                self.store.rollback(now);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Answers a poll: the SOA, with the serial in the option.
    pub fn finish(&mut self, poll: Poll, now: SystemTime) -> Vec<u8> {
        self.counters.queries += 1;
        let mut response = self.store.handle_query(&poll.asked.message);
        let mut edns = edns_reply();
        set_known_serial(&mut edns, self.store.serial());
        response.set_edns(edns);
        answer(poll.asked, response, now)
    }

    fn refuse(&mut self, asked: Asked, code: ResponseCode, source: Source, now: Now) -> Answer {
        let response = reply(&asked.message, code);
        self.respond(asked, response, source, now)
    }

    /// Sends a response, as far as it fits and its source may have it.
    fn respond(&mut self, asked: Asked, response: Message, source: Source, now: Now) -> Answer {
        if source.stream {
            return Answer::Message(answer(asked, response, now.system));
        }
        let room = udp_limit(asked.edns()).saturating_sub(asked.signature_len());
        let response = with_edns(&asked, response);
        let short = cut(response.clone());
        let mut wire = encode(response, room);
        match self.judge(wire.len() + asked.signature_len(), source, now.instant) {
            Verdict::Whole => {}
            Verdict::Cut => wire = encode(short, room),
            Verdict::Nothing => return Answer::Silence,
        }
        Answer::Message(asked.sign(wire, now.system))
    }

    fn judge(&mut self, bytes: usize, source: Source, now: Instant) -> Verdict {
        if source.stream {
            return Verdict::Whole;
        }
        let verdict = self.answers.judge(source.ip, bytes, now);
        self.counters.limited += u64::from(verdict != Verdict::Whole);
        verdict
    }
}

/// An answer over a stream, or one that is no longer than its request.
fn answer(asked: Asked, response: Message, now: SystemTime) -> Vec<u8> {
    let room = STREAM_LIMIT - asked.signature_len();
    let wire = encode(with_edns(&asked, response), room);
    asked.sign(wire, now)
}

/// Whether it is an update, before it is read (RFC 2136 §2.2).
fn is_update(wire: &[u8]) -> bool {
    const OPCODE: u8 = 5;
    wire.get(2).is_some_and(|flags| flags >> 3 == OPCODE)
}

/// The node that a key is named after: `<52 characters>.<zone>`.
pub fn node_of_key(zone: &Zone, key: &TsigKey) -> Option<PublicKey> {
    match Owner::of(zone, key.name()) {
        Owner::Host(node) => Some(node),
        _ => None,
    }
}

/// Seconds since 1970, the time of TSIG.
pub(super) fn unix_time(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
