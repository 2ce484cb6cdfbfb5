//! Keeps this node's records in the zone.

use std::sync::Arc;

use tokio::{
    sync::{Notify, mpsc, watch},
    time::sleep,
};
use tracing::{debug, info};
use zonemesh_discovery::{advert::SignedAdvert, identity::PublicKey};

use super::{
    Servers, ZoneEvent,
    pace::{Backoff, Health},
    servers::Change,
};
use crate::node::Event;

/// Keeps the zone's records of this node those of the newest advert.
pub(super) struct Publisher {
    pub(super) advert: watch::Receiver<Option<Arc<SignedAdvert>>>,
    pub(super) servers: watch::Receiver<Servers>,
    pub(super) mend: Arc<Notify>,
    pub(super) node: PublicKey,
    pub(super) events: mpsc::Sender<Event>,
}

impl Publisher {
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut first = true;
        let mut health = Health::new("cannot publish", "published again");
        loop {
            let servers = self.servers.borrow_and_update().clone();
            let advert = self.advert.borrow_and_update().clone();
            let done = match &advert {
                Some(advert) => servers.update(Change::Publish(advert)).await,
                None => None,
            };
            let (Some(advert), Some((server, done))) = (advert, done) else {
                let alive = tokio::select! {
                    changed = self.advert.changed() => changed.is_ok(),
                    changed = self.servers.changed() => changed.is_ok(),
                };
                if !alive {
                    return;
                }
                continue;
            };
            let told = health.note(&done);
            let outcome = ZoneEvent::Publish(server, told);
            if self.events.send(Event::Zone(outcome)).await.is_err() {
                return;
            }
            if done.is_err() {
                // A newer advert does not hurry a server that is away.
                sleep(backoff.next()).await;
                continue;
            }
            backoff = Backoff::default();
            let sequence = advert.advert().sequence;
            if std::mem::replace(&mut first, false) {
                info!(sequence, "advert published");
            } else {
                debug!(sequence, "advert published");
            }
            // The PTR is a hint: large zones refuse it, and members that list the
            // zone by transfer do without.
            for client in servers.all().iter().filter(|client| client.server() == server) {
                if let Err(error) = client.announce(&self.node).await {
                    debug!("no PTR in the zone: {error}");
                }
            }
            let alive = tokio::select! {
                changed = self.advert.changed() => changed.is_ok(),
                () = self.mend.notified() => true,
            };
            if !alive {
                return;
            }
        }
    }
}
