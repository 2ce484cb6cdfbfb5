//! The zone room: a node's records go to the zone server, and the others' come back.
//!
//! A [`ZoneClient`] speaks to one server for one zone. At start the node asks it
//! for [services](ZoneClient::services), then [publishes](ZoneClient::publish) its
//! advert, again whenever it changes and in time before it lapses, and
//! [withdraws](ZoneClient::withdraw) it at stop. A [`Browser`] looks every
//! [`poll_interval`] whether the zone's serial has moved, over UDP, and only then
//! fetches what is new: by IXFR, by AXFR where the server's journal does not reach
//! back, by plain queries where it refuses transfers.
//!
//! Nothing that is read here is believed: a TSIG says that the server sent it, the
//! [advert](crate::advert)'s own signature says whose it is. Whatever a server
//! sends is bounded in size and in time, and every way in which it can fail is a
//! [`ZoneError`] with a line for the operator.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hickory_proto::{
    op::Message,
    rr::{Name, RecordType},
};

use crate::{advert::Zone, sealed::Seal};

mod browse;
mod contents;
mod error;
mod follow;
#[cfg(fuzzing)]
pub mod fuzzing;
mod message;
mod poll;
mod publish;
mod reason;
mod revocations;
pub mod serve;
mod services;
pub mod slice;
mod transfer;
mod transport;
mod tsig;
mod unseal;

pub use browse::Browser;
pub use contents::View;
pub use error::{Rcode, Task, TsigFault, ZoneError};
pub use follow::Follower;
pub(crate) use services::system_resolver;
pub use services::{NamedServer, find_server};
pub use tsig::{TsigKey, TsigKeyError};

use message::{Data, Reply, query};
use transport::{Connection, Request, ask_udp};

/// How many queries per second a zone may see from a whole mesh: what the smallest
/// server answers beside its other work.
const MESH_QUERIES_PER_SECOND: usize = 50;

/// How long to wait between two looks at the zone's serial in a mesh of that many
/// members: a second for a handful, and longer for more, so that the zone never
/// sees more than some 50 queries a second from the mesh.
pub fn poll_interval(members: usize) -> Duration {
    Duration::from_secs(1).max(query_budget(members, 1))
}

/// How long a node has to wait after so many queries, that all members may do the
/// same within the mesh's share.
fn query_budget(members: usize, queries: usize) -> Duration {
    // Past 2^32 the result is beyond every use, and only must not overflow.
    let share = members.saturating_mul(queries).min(u32::MAX as usize);
    Duration::from_secs(1).mul_f64(share as f64 / MESH_QUERIES_PER_SECOND as f64)
}

/// The way to one zone at one server; clones are cheap.
#[derive(Clone, Debug)]
pub struct ZoneClient {
    zone: Zone,
    server: SocketAddr,
    key: Option<TsigKey>,
    /// Where the zone is sealed.
    seal: Option<Arc<Seal>>,
}

impl ZoneClient {
    /// A client that signs with `key`, if there is one. Nothing is sent yet.
    pub fn new(zone: Zone, server: SocketAddr, key: Option<TsigKey>) -> Self {
        Self { zone, server, key, seal: None }
    }

    /// The zone.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// The server.
    pub fn server(&self) -> SocketAddr {
        self.server
    }

    /// The zone's serial: by UDP, and by TCP where that brings no good answer. A
    /// thousand nodes that kept TCP connections open for this would use up what a
    /// server allows (BIND: 150), and a forged serial costs no more than a transfer.
    async fn serial(&self) -> Result<u32, ZoneError> {
        let question = query(self.zone.name(), RecordType::SOA);
        let request = Request::new(self, Task::Query, &question);
        let mut serial = None;
        if let Some(reply) = ask_udp(self.server, request).await {
            serial = self.soa(&reply);
        }
        if serial.is_none() {
            serial = self.soa(&self.ask(Task::Query, &question).await?);
        }
        serial.ok_or_else(|| self.rubbish(Task::Query, "no SOA record of the zone"))
    }

    fn soa(&self, reply: &Reply) -> Option<u32> {
        reply.answers.iter().find_map(|record| match record.data {
            Data::Soa { serial } if record.owner == *self.zone.name() => Some(serial),
            _ => None,
        })
    }

    /// One request and its reply over a TCP connection of its own.
    async fn ask(&self, task: Task, message: &Message) -> Result<Reply, ZoneError> {
        Connection::open(self.server).await?.ask(Request::new(self, task, message)).await
    }

    /// Many queries over one TCP connection, a few at a time; `take` gets the replies
    /// in the order of the questions, as they come, so that never all of them are in
    /// memory. An answer that is not usable is that one question's matter.
    async fn ask_all(
        &self,
        questions: &[(Name, RecordType)],
        mut take: impl FnMut(usize, Result<Reply, ZoneError>) -> Result<(), ZoneError>,
    ) -> Result<(), ZoneError> {
        /// Some servers answer no more than about 33 queries at a time on one
        /// connection; half of that leaves room.
        const AT_ONCE: usize = 16;
        if questions.is_empty() {
            return Ok(());
        }
        let mut connection = Connection::open(self.server).await?;
        let mut answered = 0;
        for questions in questions.chunks(AT_ONCE) {
            let replies = match connection.ask_all(self.batch(questions)).await {
                // A server may end a connection whenever it likes (RFC 7766 §6.2.4).
                Err(ZoneError::Closed { .. }) if answered > 0 => {
                    connection = Connection::open(self.server).await?;
                    connection.ask_all(self.batch(questions)).await?
                }
                replies => replies?,
            };
            for reply in replies {
                take(answered, reply)?;
                answered += 1;
            }
        }
        Ok(())
    }

    fn batch(&self, questions: &[(Name, RecordType)]) -> Vec<Request> {
        let first: u16 = rand::random();
        let numbered = questions.iter().zip(0u16..);
        let requests = numbered.map(|((name, kind), number)| {
            let mut message = query(name, *kind);
            // Replies are told apart by their number: no two may be the same.
            message.metadata.id = first.wrapping_add(number);
            Request::new(self, Task::Query, &message)
        });
        requests.collect()
    }

    fn rubbish(&self, task: Task, what: &'static str) -> ZoneError {
        ZoneError::Rubbish { server: self.server, task, what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_of_any_size_keeps_to_its_share_of_queries() {
        assert_eq!(poll_interval(0), Duration::from_secs(1));
        assert_eq!(poll_interval(50), Duration::from_secs(1));
        assert_eq!(poll_interval(1000), Duration::from_secs(20));
        assert!(poll_interval(usize::MAX) > Duration::from_secs(1_000_000));
    }
}
