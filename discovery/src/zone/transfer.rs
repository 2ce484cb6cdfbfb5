//! Zone transfers: AXFR (RFC 5936) and IXFR (RFC 1995) over TCP.
//!
//! A [`Stream`] takes the records of the answer one after the other and knows when
//! it is complete; what it gathered counts only after the last message's signature.

use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RData, Record as WireRecord, RecordType, rdata::SOA},
};
use tokio::time::{Duration, timeout};

use super::{
    Task, ZoneClient, ZoneError,
    contents::{MAX_RECORDS, MAX_ZONE_BYTES},
    message::{self, Data, Record, Reply},
    transport::{Connection, Request},
};

/// A whole transfer: 16 MiB at little more than 4 Mbit/s.
const TRANSFER_LIMIT: Duration = Duration::from_secs(30);

/// What a transfer brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Transfer<R = Record> {
    /// The server's serial and nothing else: it has no news.
    UpToDate { serial: u32 },
    /// The whole zone.
    Whole { serial: u32, records: Vec<R> },
    /// What has changed since `from`.
    Changes { from: u32, serial: u32, steps: Vec<Step<R>> },
}

/// One record's change.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<R = Record> {
    /// It is no more.
    Remove(R),
    /// It is new.
    Add(R),
}

/// A record as who transfers wants it: a node what can matter to it, a secondary server all.
pub(super) trait Part: Clone {
    /// The records of one message's answer.
    fn of(wire: &[u8], reply: Reply) -> Option<Vec<Self>>;
    /// The serial, where it is the zone's SOA.
    fn serial(&self, zone: &Name) -> Option<u32>;
    /// Whether it is kept.
    fn matters(&self) -> bool;
}

impl Part for Record {
    fn of(_: &[u8], reply: Reply) -> Option<Vec<Self>> {
        Some(reply.answers)
    }

    fn serial(&self, zone: &Name) -> Option<u32> {
        match self.data {
            Data::Soa { serial } if self.owner == *zone => Some(serial),
            _ => None,
        }
    }

    /// The rest of a zone is not ours.
    fn matters(&self) -> bool {
        matches!(self.data, Data::Srv { .. } | Data::Txt(_) | Data::Address(_))
    }
}

impl Part for WireRecord {
    fn of(wire: &[u8], reply: Reply) -> Option<Vec<Self>> {
        let plain = message::without_tsig(wire, reply.tsig.as_ref());
        Some(Message::from_vec(&plain).ok()?.answers)
    }

    fn serial(&self, zone: &Name) -> Option<u32> {
        match &self.data {
            RData::SOA(soa) if self.name == *zone => Some(soa.serial),
            _ => None,
        }
    }

    fn matters(&self) -> bool {
        true
    }
}

impl ZoneClient {
    /// Fetches what has changed since a serial, or the whole zone.
    pub(super) async fn transfer(&self, since: Option<u32>) -> Result<Transfer, ZoneError> {
        self.transfer_as(since).await.map(|(_, transfer)| transfer)
    }

    /// The same, and the SOA record that it begins with.
    pub(super) async fn transfer_as<R: Part>(
        &self,
        since: Option<u32>,
    ) -> Result<(Option<R>, Transfer<R>), ZoneError> {
        let message = match since {
            Some(serial) => ixfr(self.zone.name(), serial),
            None => message::query(self.zone.name(), RecordType::AXFR),
        };
        let work = async {
            let request = Request::new(self, Task::Transfer, &message);
            let mut connection = Connection::open(self.server).await?;
            connection.send(&request).await?;
            let mut incoming = Incoming::new(self, request, since);
            while !incoming.handle_message(&connection.receive().await?)? {}
            incoming.finish()
        };
        let Ok(transfer) = timeout(TRANSFER_LIMIT, work).await else {
            let why = format!("a transfer takes more than {} s", TRANSFER_LIMIT.as_secs());
            return Err(ZoneError::Away { server: self.server, why });
        };
        transfer
    }
}

/// Takes the messages of an answer, in order, and keeps them within bounds.
pub(super) struct Incoming<'a, R> {
    client: &'a ZoneClient,
    request: Request,
    stream: Stream<R>,
    /// The record that it began with.
    soa: Option<R>,
    bytes: usize,
}

impl<'a, R: Part> Incoming<'a, R> {
    pub(super) fn new(client: &'a ZoneClient, request: Request, since: Option<u32>) -> Self {
        let stream = Stream::new(client.zone.name(), since);
        Self { client, request, stream, soa: None, bytes: 0 }
    }

    /// Takes the next message. Whether it was the last one.
    pub(super) fn handle_message(&mut self, wire: &[u8]) -> Result<bool, ZoneError> {
        let server = self.client.server;
        let too_large = |limit, what| ZoneError::TooLarge { server, limit, what };
        self.bytes += wire.len();
        if self.bytes > MAX_ZONE_BYTES {
            return Err(too_large(MAX_ZONE_BYTES, "bytes of records"));
        }
        if self.stream.kept() > MAX_RECORDS {
            return Err(too_large(MAX_RECORDS, "records"));
        }
        let rubbish = |what| self.client.rubbish(Task::Transfer, what);
        let reply = self.request.accept(server, wire)?;
        if reply.answers.is_empty() {
            return Err(rubbish("a message without records"));
        }
        let records = R::of(wire, reply);
        for record in records.ok_or_else(|| rubbish("a record that cannot be read"))? {
            self.soa.get_or_insert_with(|| record.clone());
            self.stream.handle_record(record).map_err(rubbish)?;
        }
        Ok(self.stream.is_complete())
    }

    /// What it began with, and what it all came to, if the last message was signed.
    pub(super) fn finish(self) -> Result<(Option<R>, Transfer<R>), ZoneError> {
        if !self.request.is_authentic() {
            return Err(self.client.rubbish(Task::Transfer, "the last message is not signed"));
        }
        let ends_too_soon = || self.client.rubbish(Task::Transfer, "it ends too soon");
        let transfer = self.stream.finish().ok_or_else(ends_too_soon)?;
        Ok((self.soa, transfer))
    }
}

/// The client's serial travels in an SOA record (RFC 1995 §3).
fn ixfr(zone: &Name, serial: u32) -> Message {
    let mut message = message::query(zone, RecordType::SOA);
    message.queries = vec![Query::query(zone.clone(), RecordType::IXFR)];
    let soa = SOA::new(Name::root(), Name::root(), serial, 0, 0, 0, 0);
    message.add_authority(WireRecord::from_rdata(zone.clone(), 0, RData::SOA(soa)));
    message
}

/// Takes the records of an answer, in order.
#[derive(Debug)]
struct Stream<R> {
    zone: Name,
    since: Option<u32>,
    stage: Stage<R>,
}

#[derive(Debug)]
enum Stage<R> {
    Start,
    /// One SOA: all there is, or the head of what follows.
    Head {
        serial: u32,
    },
    Whole {
        serial: u32,
        records: Vec<R>,
        complete: bool,
    },
    Changes {
        from: u32,
        serial: u32,
        steps: Vec<Step<R>>,
        section: Section,
    },
}

/// Where in a list of changes (RFC 1995 §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    Removing,
    Adding { until: u32 },
    Complete,
}

impl<R: Part> Stream<R> {
    fn new(zone: &Name, since: Option<u32>) -> Self {
        Self { zone: zone.clone(), since, stage: Stage::Start }
    }

    fn handle_record(&mut self, record: R) -> Result<(), &'static str> {
        let soa = record.serial(&self.zone);
        let next = match (&mut self.stage, soa) {
            (Stage::Start, Some(serial)) => Stage::Head { serial },
            (Stage::Start, None) => return Err("it does not begin with the zone's SOA"),
            (Stage::Head { serial }, Some(from)) if self.since.is_some() && from != *serial => {
                let (serial, steps) = (*serial, Vec::new());
                Stage::Changes { from, serial, steps, section: Section::Removing }
            }
            (Stage::Head { serial }, soa) => {
                let complete = soa == Some(*serial);
                let mut records = Vec::new();
                keep(&mut records, record, |record| record);
                Stage::Whole { serial: *serial, records, complete }
            }
            (Stage::Whole { complete: true, .. }, _) => return Err("records behind its end"),
            (Stage::Whole { serial, complete, .. }, Some(closing)) => {
                if closing != *serial {
                    return Err("it ends with another serial than it began with");
                }
                *complete = true;
                return Ok(());
            }
            (Stage::Whole { records, .. }, None) => {
                keep(records, record, |record| record);
                return Ok(());
            }
            (Stage::Changes { serial, steps, section, .. }, soa) => {
                *section = match (*section, soa) {
                    (Section::Removing, None) => {
                        keep(steps, record, Step::Remove);
                        Section::Removing
                    }
                    (Section::Removing, Some(until)) => Section::Adding { until },
                    (section @ Section::Adding { .. }, None) => {
                        keep(steps, record, Step::Add);
                        section
                    }
                    // The end: the head's SOA once more, behind the last additions.
                    (Section::Adding { until }, Some(closing)) if until == *serial => {
                        if closing != until {
                            return Err("it ends with another serial than it began with");
                        }
                        Section::Complete
                    }
                    (Section::Adding { until }, Some(from)) => {
                        if from != until {
                            return Err("a gap between two changes");
                        }
                        Section::Removing
                    }
                    (Section::Complete, _) => return Err("records behind its end"),
                };
                return Ok(());
            }
        };
        self.stage = next;
        Ok(())
    }

    /// How many records it holds.
    fn kept(&self) -> usize {
        match &self.stage {
            Stage::Start | Stage::Head { .. } => 0,
            Stage::Whole { records, .. } => records.len(),
            Stage::Changes { steps, .. } => steps.len(),
        }
    }

    /// Whether nothing more is to come. The lone SOA of a serial that is not newer
    /// than ours is the whole answer to an IXFR (RFC 1995 §2).
    fn is_complete(&self) -> bool {
        match &self.stage {
            Stage::Start => false,
            Stage::Head { serial } => self.since.is_some_and(|since| !is_newer(*serial, since)),
            Stage::Whole { complete, .. } => *complete,
            Stage::Changes { section, .. } => *section == Section::Complete,
        }
    }

    fn finish(self) -> Option<Transfer<R>> {
        match self.stage {
            Stage::Head { serial } if self.since.is_some() => Some(Transfer::UpToDate { serial }),
            Stage::Whole { serial, records, complete: true } => {
                Some(Transfer::Whole { serial, records })
            }
            Stage::Changes { from, serial, steps, section: Section::Complete } => {
                Some(Transfer::Changes { from, serial, steps })
            }
            _ => None,
        }
    }
}

/// Keeps a record that matters.
fn keep<R: Part, T>(kept: &mut Vec<T>, record: R, wrap: impl Fn(R) -> T) {
    if record.matters() {
        kept.push(wrap(record));
    }
}

/// Serial number arithmetic (RFC 1982 §3.2).
fn is_newer(serial: u32, than: u32) -> bool {
    serial != than && serial.wrapping_sub(than) < 1 << 31
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_whole_zone_ends_with_the_soa_that_it_began_with() {
        for since in [None, Some(3)] {
            let records = [soa(9), other(), address(1), address(2), soa(9)];
            let expected = Transfer::Whole { serial: 9, records: vec![address(1), address(2)] };
            assert_eq!(read(since, records), Ok(Some(expected)));
            assert_eq!(read(since, [soa(9), address(1)]), Ok(None));
        }
        assert_eq!(
            read(None, [soa(9), soa(9)]),
            Ok(Some(Transfer::Whole { serial: 9, records: vec![] }))
        );
        assert!(read(None, [soa(9), address(1), soa(8)]).is_err());
        assert!(read(None, [address(1), soa(9)]).is_err());
        assert!(read(None, [soa(9), address(1), soa(9), address(2)]).is_err());
    }

    #[test]
    fn changes_come_step_by_step() {
        let records = [
            soa(9),
            // From 7 to 8: one goes, one comes.
            soa(7),
            address(1),
            soa(8),
            address(2),
            other(),
            // From 8 to 9: one comes.
            soa(8),
            soa(9),
            address(3),
            soa(9),
        ];
        let steps = vec![Step::Remove(address(1)), Step::Add(address(2)), Step::Add(address(3))];
        let expected = Transfer::Changes { from: 7, serial: 9, steps };
        assert_eq!(read(Some(7), records.clone()), Ok(Some(expected)));
        // Cut short anywhere, it is not complete.
        for len in 1..records.len() {
            assert_eq!(read(Some(7), records[..len].to_vec()), Ok(None), "{len} records");
        }
        assert!(read(Some(7), [soa(9), soa(7), soa(8), soa(7)]).is_err());
        assert!(read(Some(7), [soa(9), soa(7), soa(9), soa(8)]).is_err());
    }

    #[test]
    fn a_lone_soa_that_is_not_newer_says_that_nothing_is_new() {
        let up_to_date = |serial| Ok(Some(Transfer::UpToDate { serial }));
        assert_eq!(read(Some(9), [soa(9)]), up_to_date(9));
        assert_eq!(read(Some(9), [soa(3)]), up_to_date(3));
        assert_eq!(read(Some(u32::MAX), [soa(u32::MAX)]), up_to_date(u32::MAX));
        // Newer, also around the end of the numbers: more is to come.
        for (since, serial) in [(9, 10), (u32::MAX, 0)] {
            let mut stream = Stream::new(&zone(), Some(since));
            assert_eq!(stream.handle_record(soa(serial)), Ok(()));
            assert!(!stream.is_complete());
        }
    }

    /// What the records make; `None` where more have to come.
    fn read(
        since: Option<u32>,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<Option<Transfer>, &'static str> {
        let mut stream = Stream::new(&zone(), since);
        for record in records {
            stream.handle_record(record)?;
        }
        Ok(if stream.is_complete() { stream.finish() } else { None })
    }

    fn zone() -> Name {
        Name::from_ascii("mesh.example.").expect("a name")
    }

    fn soa(serial: u32) -> Record {
        Record { owner: zone(), data: Data::Soa { serial } }
    }

    fn address(last: u8) -> Record {
        Record { owner: zone(), data: Data::Address(IpAddr::from([192, 0, 2, last])) }
    }

    fn other() -> Record {
        Record { owner: zone(), data: Data::Other }
    }
}
