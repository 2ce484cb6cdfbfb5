//! Telling the secondary servers that the zone has changed (RFC 1996).

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Record, RecordType},
};

use crate::zone::serve::ZoneStore;

/// The wait for an answer, doubled with each try; after the last the secondary has its own
/// timer (the SOA's refresh).
const FIRST_WAIT: Duration = Duration::from_secs(1);
const TRIES: u32 = 5;

/// At most one in this time to each: a secondary that hears of many changes does one transfer
/// for all of them.
const GAP: Duration = Duration::from_secs(1);

/// A datagram to send.
#[derive(Debug, PartialEq, Eq)]
pub struct Notify {
    /// Whom to.
    pub to: SocketAddr,
    /// The message.
    pub payload: Vec<u8>,
}

/// What a secondary did not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotifyError {
    /// It does not answer.
    #[error(
        "secondary server {0} does not answer NOTIFY: check that it runs, and that UDP reaches it"
    )]
    Silent(SocketAddr),
    /// It does not want to know.
    #[error("secondary server {0} answers {1} to NOTIFY: let it take the zone from this host")]
    Refused(SocketAddr, ResponseCode),
}

/// Tells each secondary until it has answered, and what comes meanwhile in one.
#[derive(Debug)]
pub struct Notifier {
    soa: Record,
    secondaries: Vec<Secondary>,
    errors: Vec<NotifyError>,
}

#[derive(Debug)]
struct Secondary {
    addr: SocketAddr,
    /// It has not answered for the current serial.
    due: bool,
    next: Instant,
    tries: u32,
    /// The number of the last message; `None` when nothing waits for an answer.
    id: Option<u16>,
    last: Option<Instant>,
    error: Option<NotifyError>,
}

impl Notifier {
    /// All of them are told at the start (RFC 1996 §4.1).
    pub fn new(secondaries: &[SocketAddr], store: &ZoneStore, now: Instant) -> Self {
        Self::of(secondaries, store.soa(), now)
    }

    fn of(secondaries: &[SocketAddr], soa: Record, now: Instant) -> Self {
        let secondaries = secondaries.iter().map(|addr| Secondary {
            addr: *addr,
            due: true,
            next: now,
            tries: 0,
            id: None,
            last: None,
            error: None,
        });
        Self { soa, secondaries: secondaries.collect(), errors: Vec::new() }
    }

    /// The zone has changed.
    pub fn handle_change(&mut self, store: &ZoneStore, now: Instant) {
        self.handle_soa(store.soa(), now);
    }

    fn handle_soa(&mut self, soa: Record, now: Instant) {
        self.soa = soa;
        for secondary in &mut self.secondaries {
            secondary.due = true;
            secondary.tries = 0;
            secondary.id = None;
            let earliest = secondary.last.map_or(now, |last| last + GAP);
            secondary.next = earliest.max(now);
        }
    }

    /// Takes a datagram that came back.
    pub fn handle_response(&mut self, from: SocketAddr, wire: &[u8]) {
        let Ok(response) = Message::from_vec(wire) else { return };
        let metadata = &response.metadata;
        if metadata.message_type != MessageType::Response || metadata.op_code != OpCode::Notify {
            return;
        }
        let waiting = |secondary: &&mut Secondary| {
            secondary.addr == from && secondary.due && secondary.id == Some(metadata.id)
        };
        let Some(secondary) = self.secondaries.iter_mut().find(waiting) else { return };
        secondary.due = false;
        secondary.id = None;
        let error = match metadata.response_code {
            ResponseCode::NoError => None,
            code => Some(NotifyError::Refused(from, code)),
        };
        self.errors.extend(secondary.note(error));
    }

    /// The next datagram to send, with this number.
    pub fn poll_transmit(&mut self, id: u16, now: Instant) -> Option<Notify> {
        loop {
            let due = |secondary: &&mut Secondary| secondary.due && secondary.next <= now;
            let secondary = self.secondaries.iter_mut().find(due)?;
            if secondary.tries == TRIES {
                secondary.due = false;
                secondary.id = None;
                let error = secondary.note(Some(NotifyError::Silent(secondary.addr)));
                self.errors.extend(error);
                continue;
            }
            secondary.next = now + FIRST_WAIT * 2u32.pow(secondary.tries);
            secondary.tries += 1;
            secondary.last = Some(now);
            secondary.id = Some(id);
            let to = secondary.addr;
            return Some(Notify { to, payload: notify(id, &self.soa) });
        }
    }

    /// What went wrong, once for each change of it.
    pub fn poll_error(&mut self) -> Option<NotifyError> {
        self.errors.pop()
    }

    /// When [`poll_transmit`](Self::poll_transmit) has something again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.secondaries.iter().filter(|secondary| secondary.due).map(|one| one.next).min()
    }
}

impl Secondary {
    /// Remembers how it went, and tells it where that is news.
    fn note(&mut self, error: Option<NotifyError>) -> Option<NotifyError> {
        let news = error.filter(|error| self.error != Some(*error));
        self.error = error;
        news
    }
}

/// RFC 1996 §3.7: with the SOA, as a hint.
fn notify(id: u16, soa: &Record) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Notify);
    message.metadata.authoritative = true;
    message.add_query(Query::query(soa.name.clone(), RecordType::SOA));
    message.add_answer(soa.clone());
    message.to_vec().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{Name, RData, rdata::SOA};

    use super::*;

    fn soa(serial: u32) -> Record {
        let name = Name::from_ascii("mesh.example.").expect("a name");
        let soa = SOA::new(name.clone(), name.clone(), serial, 60, 30, 3600, 10);
        Record::from_rdata(name, 30, RData::SOA(soa))
    }

    fn addr(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 53))
    }

    fn answer(notify: &Notify, code: ResponseCode) -> Vec<u8> {
        let mut message = Message::from_vec(&notify.payload).expect("a message");
        message.metadata.message_type = MessageType::Response;
        message.metadata.response_code = code;
        message.to_vec().expect("a message")
    }

    /// The serial that a NOTIFY tells.
    fn read(wire: &[u8]) -> u32 {
        let message = Message::from_vec(wire).expect("a message");
        match &message.answers[0].data {
            RData::SOA(soa) => soa.serial,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_is_told_until_it_answers() {
        let start = Instant::now();
        let mut notifier = Notifier::of(&[addr(1), addr(2)], soa(7), start);
        let first = notifier.poll_transmit(1, start).expect("to the first");
        let second = notifier.poll_transmit(2, start).expect("to the second");
        assert_eq!((first.to, second.to), (addr(1), addr(2)));
        assert_eq!(read(&first.payload), 7);
        assert_eq!(notifier.poll_transmit(3, start), None);
        // Neither another's answer nor another number's counts.
        notifier.handle_response(addr(9), &answer(&first, ResponseCode::NoError));
        notifier.handle_response(addr(2), &answer(&first, ResponseCode::NoError));
        notifier.handle_response(addr(1), &answer(&first, ResponseCode::NoError));
        let mut now = start;
        let mut sent = 1;
        while let Some(next) = notifier.poll_timeout() {
            now = next;
            while let Some(notify) = notifier.poll_transmit(9, now) {
                assert_eq!(notify.to, addr(2));
                sent += 1;
            }
        }
        assert_eq!(sent, TRIES);
        assert_eq!(now - start, Duration::from_secs(31));
        assert_eq!(notifier.poll_error(), Some(NotifyError::Silent(addr(2))));
        assert_eq!(notifier.poll_error(), None);
    }

    #[test]
    fn many_changes_are_told_in_few_messages() {
        let start = Instant::now();
        let mut notifier = Notifier::of(&[addr(1)], soa(0), start);
        let mut sent = Vec::new();
        for number in 0..5000u32 {
            let now = start + Duration::from_millis(number.into());
            notifier.handle_soa(soa(number), now);
            if let Some(notify) = notifier.poll_transmit(number as u16, now) {
                sent.push(read(&notify.payload));
                notifier.handle_response(addr(1), &answer(&notify, ResponseCode::NoError));
            }
        }
        assert_eq!(sent, [0, 1000, 2000, 3000, 4000]);
        // The last change is told, too.
        let next = notifier.poll_timeout().expect("something is due");
        let notify = notifier.poll_transmit(1, next).expect("the last change");
        assert_eq!(read(&notify.payload), 4999);
        notifier.handle_response(addr(1), &answer(&notify, ResponseCode::Refused));
        let refused = NotifyError::Refused(addr(1), ResponseCode::Refused);
        assert_eq!(notifier.poll_error(), Some(refused));
        assert_eq!(notifier.poll_timeout(), None);
    }
}
