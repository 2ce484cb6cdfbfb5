//! The tasks that talk to the zone: one publishes this node's advert (`publisher`), one
//! browses the others' (`reader`), one asks for STUN servers and one for relays
//! (`services`).
//!
//! They stand outside the control loop because a server may take seconds to answer
//! or not answer at all, and none owns any state that the loop needs: the advert
//! to publish comes in by a watch, what was read goes out as events. A zone that is
//! away, refuses or answers rubbish is told once per kind of failure, shows in
//! `status`, and is asked again with growing pauses; nothing else depends on it.
//!
//! A zone may have several servers (`servers`): the reader goes on to the next where one
//! fails, and the others follow it.

mod pace;
mod publisher;
mod reader;
mod servers;
mod services;
mod slices;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tracing::{info, warn};
use zonemesh_discovery::{
    advert::{InstanceRecords, SignedAdvert, Zone},
    identity::PublicKey,
    sealed::Seal,
    zone::{TsigKey, View, slice::Ask},
};

pub use self::slices::SliceAnswer;
use self::{
    publisher::Publisher,
    reader::Reader,
    servers::{Change, Servers},
    services::Services,
    slices::Slices,
};
use crate::{node::Event, relays::RelayServer};

/// The DNS-SD service under which a zone names its STUN servers (RFC 8489 §8).
pub(crate) const STUN_SERVICE: &str = "_stun._udp";

/// How long the withdrawal at stop may take: a zone that is away must not hold up
/// a shutdown.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(2);

/// What the tasks tell the control loop.
#[derive(Debug)]
pub enum ZoneEvent {
    /// The whole view of the zone, after a change.
    View(View),
    /// The records of one node that knocked.
    Found(InstanceRecords),
    /// The zone's STUN servers.
    StunServers(Vec<SocketAddr>),
    /// The zone's relays.
    Relays(Vec<RelayServer>),
    /// Reading: with whom, and how it went last.
    Browse(SocketAddr, Result<(), String>),
    /// Publishing: with whom, and how it went last.
    Publish(SocketAddr, Result<(), String>),
    /// What became of a question about slices.
    Slice(SliceAnswer),
    /// The zone's server could not be found.
    NoServer(String),
}

/// What the tasks need to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The zone.
    pub zone: Zone,
    /// Its servers, the primary first; where empty, the SOA's MNAME is asked for.
    pub servers: Vec<SocketAddr>,
    /// The key that signs updates and transfers.
    pub tsig: Option<TsigKey>,
    /// The seal of a sealed zone.
    pub seal: Option<Arc<Seal>>,
    /// This node.
    pub node: PublicKey,
    /// Whether to ask the zone for STUN servers.
    pub ask_stun: bool,
    /// Whether to ask the zone for relays.
    pub ask_relays: bool,
}

/// The tasks.
pub struct Rendezvous {
    advert: watch::Sender<Option<Arc<SignedAdvert>>>,
    asks: mpsc::Sender<Option<PublicKey>>,
    slices: mpsc::Sender<Ask>,
    servers: watch::Receiver<Servers>,
    node: PublicKey,
    tasks: Vec<JoinHandle<()>>,
}

impl Rendezvous {
    /// Starts them.
    pub fn start(settings: Settings, events: mpsc::Sender<Event>) -> Self {
        let (advert, advert_seen) = watch::channel(None);
        let (servers_found, servers) = watch::channel(Servers::default());
        let (asks, asked) = mpsc::channel(reader::MAX_HURRIES as usize);
        let mend = Arc::new(Notify::new());
        let node = settings.node;
        let publisher = Publisher {
            advert: advert_seen.clone(),
            servers: servers.clone(),
            mend: Arc::clone(&mend),
            node,
            events: events.clone(),
        };
        let services = Services { servers: servers.clone(), events: events.clone() };
        let stun = settings.ask_stun.then(|| tokio::spawn(services.clone().ask_stun()));
        let relays = settings.ask_relays.then(|| tokio::spawn(services.ask_relays()));
        let (slices, slices_asked) = mpsc::channel(1);
        let asker =
            Slices { servers: servers.clone(), asked: slices_asked, events: events.clone() };
        let reader = Reader { settings, asked, mend, advert: advert_seen, events };
        let reading = tokio::spawn(reader.run(servers_found));
        let mut tasks = vec![tokio::spawn(publisher.run()), reading, tokio::spawn(asker.run())];
        tasks.extend(stun.into_iter().chain(relays));
        Self { advert, asks, slices, servers, node, tasks }
    }

    /// Has the zone carry this advert from now on.
    pub fn publish(&self, advert: Arc<SignedAdvert>) {
        self.advert.send_replace(Some(advert));
    }

    /// Has the zone asked at once, and where a node is named, for that one by itself:
    /// somebody unknown knocked, or a path was lost.
    pub fn ask(&self, node: Option<PublicKey>) {
        // Where it is full the zone is about to be asked anyway.
        let _ = self.asks.try_send(node);
    }

    /// Asks what is to be known of slices. `false` where another question is on its way.
    pub fn ask_for_slice(&self, ask: Ask) -> bool {
        self.slices.try_send(ask).is_ok()
    }

    /// Whether a task has ended by itself: none does, but for a panic.
    pub fn has_failed(&self) -> bool {
        self.tasks.iter().any(JoinHandle::is_finished)
    }

    /// Ends the tasks and takes this node's records out of the zone, with its last word where
    /// it is a member.
    pub async fn stop(self, last: Option<SignedAdvert>) {
        self.abort();
        let servers = self.servers.borrow().clone();
        if self.advert.borrow().is_none() || servers.current().is_none() {
            return;
        }
        let withdrawal = servers.update(Change::Withdraw(&self.node, last.as_ref()));
        let done = timeout(WITHDRAW_LIMIT, withdrawal).await;
        match done.map(|done| done.map_or(Ok(()), |(_, done)| done)) {
            Ok(Ok(())) => info!("withdrawn from the zone"),
            Ok(Err(error)) => warn!("cannot withdraw from the zone: {error}"),
            Err(_) => warn!("cannot withdraw from the zone: no answer within {WITHDRAW_LIMIT:?}"),
        }
    }

    fn abort(&self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Drop for Rendezvous {
    fn drop(&mut self) {
        self.abort();
    }
}

#[cfg(test)]
mod tests {
    use zonemesh_discovery::identity::Identity;

    use super::*;

    #[tokio::test]
    async fn a_task_that_ended_is_noticed_and_one_that_waits_is_none() {
        let settings = Settings {
            zone: "mesh.example".parse().expect("a zone"),
            // Nobody answers there.
            servers: vec![SocketAddr::from(([127, 0, 0, 1], 9))],
            tsig: None,
            seal: None,
            node: Identity::from_seed(&[1; 32]).public_key(),
            ask_stun: true,
            ask_relays: true,
        };
        let (events, mut told) = mpsc::channel(4);
        let rendezvous = Rendezvous::start(settings, events);
        told.recv().await.expect("the reader tells how it went");
        assert!(!rendezvous.has_failed());
        rendezvous.tasks[0].abort();
        while !rendezvous.has_failed() {
            tokio::task::yield_now().await;
        }
    }
}
