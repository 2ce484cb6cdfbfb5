//! The long poll: a query for the SOA that is answered when the serial moves.
//!
//! A client that knows a serial asks for the zone's SOA over a stream, with that serial in a
//! private EDNS option. The answer comes when the zone's serial is another one, or after
//! [`LIMIT`], and carries the option, too: so the client knows that the server waited, and
//! did not merely pass over an option that it does not know.

use std::time::Duration;

use hickory_proto::{
    op::Edns,
    rr::{
        RecordType,
        rdata::opt::{EdnsCode, EdnsOption},
    },
};
use tokio::time::Instant;

use super::{
    Task, ZoneClient, ZoneError,
    message::{Reply, query},
    transport::{Connection, Request},
};

/// Of those for local use (RFC 6891 §9).
pub(super) const OPTION: u16 = 65_301;

/// How long an answer is held back. NATs and firewalls keep a TCP connection without packets
/// for minutes at least; this is well inside.
pub(super) const LIMIT: Duration = Duration::from_secs(55);

/// The serial that the option tells.
pub(super) fn known_serial(edns: &Edns) -> Option<u32> {
    match edns.option(EdnsCode::Unknown(OPTION))? {
        EdnsOption::Unknown(OPTION, data) => {
            Some(u32::from_be_bytes(data.as_slice().try_into().ok()?))
        }
        _ => None,
    }
}

/// Puts the option there.
pub(super) fn set_known_serial(edns: &mut Edns, serial: u32) {
    let option = EdnsOption::Unknown(OPTION, serial.to_be_bytes().to_vec());
    edns.options_mut().insert(option);
}

/// How much longer than the server holds an answer back it may take.
const GRACE: Duration = Duration::from_secs(10);

/// When a server that did not know the long poll is asked again: it may be another one by
/// then.
const RETRY: Duration = Duration::from_secs(600);

/// The client's side: whether its server tells of changes.
#[derive(Debug)]
pub(super) enum LongPoll {
    /// It does, or has not been asked yet; with the connection that it was asked by last.
    On(Option<Connection>),
    /// It does not; it is asked again then.
    Off(Instant),
}

impl Default for LongPoll {
    fn default() -> Self {
        Self::On(None)
    }
}

impl LongPoll {
    /// Asks to be told of a change since `seen`, and waits for the answer: the serial, or
    /// `None` where the server does not tell, be it that it is away.
    pub(super) async fn wait(&mut self, client: &ZoneClient, seen: u32) -> Option<u32> {
        let kept = match self {
            Self::Off(retry) if *retry > Instant::now() => return None,
            Self::Off(_) => None,
            Self::On(connection) => connection.take(),
        };
        // One that is given up half-way has an answer on it that nobody waits for.
        *self = Self::On(None);
        let had_one = kept.is_some();
        let asked = match ask(client, kept, seen).await {
            // A server may end a connection whenever it likes (RFC 7766 §6.2.4).
            Err(_) if had_one => ask(client, None, seen).await,
            asked => asked,
        };
        // What is wrong with the server the next look tells.
        let (connection, reply) = asked.ok()?;
        let serial = client.soa(&reply)?;
        if reply.polled.is_none() {
            *self = Self::Off(Instant::now() + RETRY);
            return None;
        }
        *self = Self::On(Some(connection));
        Some(serial)
    }
}

async fn ask(
    client: &ZoneClient,
    kept: Option<Connection>,
    seen: u32,
) -> Result<(Connection, Reply), ZoneError> {
    let mut connection = match kept {
        Some(connection) => connection,
        None => Connection::open(client.server).await?,
    };
    let mut question = query(client.zone.name(), RecordType::SOA);
    set_known_serial(question.edns.get_or_insert_default(), seen);
    let request = Request::new(client, Task::Query, &question);
    let reply = connection.ask_within(request, LIMIT + GRACE).await?;
    Ok((connection, reply))
}
