//! Asks the zone for its STUN servers and relays.

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tracing::debug;
use zonemesh_discovery::zone::ZoneClient;

use super::{
    STUN_SERVICE, Servers, ZoneEvent,
    pace::{BACKOFF, Backoff},
};
use crate::{node::Event, relays::resolve};

/// How often the zone is asked for its STUN servers and relays: services move rarely.
const SERVICES_INTERVAL: Duration = Duration::from_secs(600);

/// How often a zone without relays is asked for some: longer than for STUN servers, which
/// every zone should have.
const NO_RELAYS_INTERVAL: Duration = Duration::from_secs(120);

/// Asks for the zone's STUN servers and relays. By themselves, because it is the system's
/// resolver that finds those outside of the zone, and that may take its time.
#[derive(Clone)]
pub(super) struct Services {
    pub(super) servers: watch::Receiver<Servers>,
    pub(super) events: mpsc::Sender<Event>,
}

impl Services {
    /// The server that answers, once there is one; `None` when the node stops.
    async fn client(&mut self) -> Option<ZoneClient> {
        loop {
            if let Some(client) = self.servers.borrow_and_update().current() {
                return Some(client.clone());
            }
            self.servers.changed().await.ok()?;
        }
    }

    pub(super) async fn ask_relays(mut self) {
        let mut backoff = Backoff::default();
        while let Some(client) = self.client().await {
            let mut servers = Vec::new();
            let mut failed = false;
            for (service, transport) in resolve::SERVICES {
                match client.named_services(service).await {
                    Ok(named) => servers.extend(resolve::of_service(transport, &named)),
                    Err(error) => {
                        debug!("cannot ask the zone for relays: {error}");
                        failed = true;
                    }
                }
            }
            let pause = match (servers.is_empty(), failed) {
                (_, true) => backoff.next(),
                (true, false) => NO_RELAYS_INTERVAL,
                (false, false) => SERVICES_INTERVAL,
            };
            // What was not told this time is not gone for that.
            if !failed {
                backoff = Backoff::default();
                let told = Event::Zone(ZoneEvent::Relays(servers));
                if self.events.send(told).await.is_err() {
                    return;
                }
            }
            sleep(pause).await;
        }
    }

    pub(super) async fn ask_stun(mut self) {
        let mut backoff = Backoff::default();
        while let Some(client) = self.client().await {
            let pause = match client.services(STUN_SERVICE).await {
                Ok(servers) if servers.is_empty() => BACKOFF.1,
                Ok(servers) => {
                    backoff = Backoff::default();
                    let told = Event::Zone(ZoneEvent::StunServers(servers));
                    if self.events.send(told).await.is_err() {
                        return;
                    }
                    SERVICES_INTERVAL
                }
                Err(error) => {
                    debug!("cannot ask the zone for STUN servers: {error}");
                    backoff.next()
                }
            };
            sleep(pause).await;
        }
    }
}
