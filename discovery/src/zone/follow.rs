//! Following a zone as a secondary server does: all of its records, as they are.

use std::time::Duration;

use hickory_proto::rr::Record;
use tokio::time::{Instant, sleep_until};

use super::{
    Task, ZoneClient, ZoneError,
    poll::LongPoll,
    serve::{Change, News},
    transfer::{Step, Transfer},
    transport::Connection,
};

/// Between two looks there is at least this, so that changes come together.
const GAP: Duration = Duration::from_millis(50);

/// Follows a zone at its primary server.
#[derive(Debug)]
pub struct Follower {
    client: ZoneClient,
    poll: LongPoll,
}

impl Follower {
    /// One that has not asked yet.
    pub fn new(client: ZoneClient) -> Self {
        Self { client, poll: LongPoll::default() }
    }

    /// What is new since a serial, or the whole zone; `None` where nothing is.
    ///
    /// # Errors
    /// [`ZoneError`] when the server cannot be reached or its answer cannot be used.
    pub async fn news(&self, since: Option<u32>) -> Result<Option<News>, ZoneError> {
        let rubbish = |what| self.client.rubbish(Task::Transfer, what);
        let (mut soa, mut transfer) = self.client.transfer_as::<Record>(since).await?;
        if let (Some(since), Transfer::UpToDate { serial }) = (since, &transfer) {
            if *serial == since {
                return Ok(None);
            }
            // The zone has been made anew and counts from lower.
            (soa, transfer) = self.client.transfer_as::<Record>(None).await?;
        }
        let soa = soa.ok_or_else(|| rubbish("no SOA record of the zone"))?;
        match transfer {
            Transfer::UpToDate { .. } => Err(rubbish("nothing where the zone was asked for")),
            Transfer::Whole { records, .. } => Ok(Some(News { soa, change: Change::All(records) })),
            Transfer::Changes { from, steps, .. } => {
                let steps = steps.into_iter().map(|step| match step {
                    Step::Remove(record) => (record, false),
                    Step::Add(record) => (record, true),
                });
                let change = Change::Steps { from, steps: steps.collect() };
                Ok(Some(News { soa, change }))
            }
        }
    }

    /// Rests until the next look is due: until the server says that its serial is another one
    /// than this, or, where it does not do that, for `interval`.
    pub async fn rest(&mut self, serial: u32, interval: Duration) {
        let start = Instant::now();
        let told = self.poll.wait(&self.client, serial).await;
        sleep_until(start + if told.is_some() { GAP } else { interval }).await;
    }
}

impl ZoneClient {
    /// Hands on a request of somebody else's as it is, and gives the answer as it is.
    ///
    /// # Errors
    /// [`ZoneError`] when the server does not answer.
    pub async fn forward(&self, wire: &[u8]) -> Result<Vec<u8>, ZoneError> {
        Connection::open(self.server).await?.exchange(wire).await
    }
}
