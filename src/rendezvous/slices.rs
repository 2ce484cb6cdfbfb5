//! Asks the zone for slices: what stands at a slice's name, and whether a claim is taken.
//! What to ask is the control loop's to decide; one question at a time.

use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use zonemesh_discovery::zone::{
    ZoneClient, ZoneError,
    slice::{Ask, Claimed, TxtSet},
};

use super::{Servers, ZoneEvent, pace::Health};
use crate::node::Event;

/// What became of a question.
#[derive(Debug)]
pub enum SliceAnswer {
    /// This stands there.
    Seen(IpNet, TxtSet),
    /// How a claim went.
    Claimed(Claimed),
    /// Nobody answered, or not as can be used; whether it was a plain refusal.
    Failed {
        /// It was: nothing has happened.
        is_refused: bool,
        /// For people.
        error: String,
    },
}

/// The task that asks.
pub(super) struct Slices {
    pub(super) servers: watch::Receiver<Servers>,
    pub(super) asked: mpsc::Receiver<Ask>,
    pub(super) events: mpsc::Sender<Event>,
}

impl Slices {
    pub(super) async fn run(mut self) {
        let mut health = Health::new("cannot ask for a slice", "the zone answers for slices again");
        while let Some(ask) = self.asked.recv().await {
            let known = self.servers.wait_for(|servers| !servers.all().is_empty()).await;
            let Ok(servers) = known.map(|servers| servers.all().to_vec()) else { return };
            let answer = ask_all(&servers, &ask).await;
            let told = health.note(&answer);
            let answer = answer.unwrap_or_else(|failed| SliceAnswer::Failed {
                is_refused: matches!(failed, ZoneError::Refused { .. }),
                error: told.err().unwrap_or_default(),
            });
            if self.events.send(Event::Zone(ZoneEvent::Slice(answer))).await.is_err() {
                return;
            }
        }
    }
}

/// The primary first, whoever answers otherwise: it has the news, and takes updates. What it
/// did not answer it may have done all the same, which any other one's records will show.
async fn ask_all(servers: &[ZoneClient], ask: &Ask) -> Result<SliceAnswer, ZoneError> {
    let mut failed = None;
    for client in servers {
        let answer = match ask {
            Ask::Look(slice) => {
                client.look_at_slice(slice).await.map(|seen| SliceAnswer::Seen(*slice, seen))
            }
            Ask::Claim { claim, replaces } => {
                client.claim_slice(claim, replaces).await.map(SliceAnswer::Claimed)
            }
        };
        match answer {
            Ok(answer) => return Ok(answer),
            // A secondary's refusal says less than a primary that is away.
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    Err(failed.expect("there is a server at least"))
}
