//! The relays in the loop: what they want is opened, what they tell goes to the data
//! plane, the agents and the advert.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use tokio::{sync::mpsc, task::JoinSet};
use tracing::{info, warn};
use zonemesh_discovery::identity::PublicKey;
use zonemesh_punch::{Route, Transmit, Via};

use super::{Event, Node};
use crate::{
    config::Config,
    dataplane::RelayLink,
    relays::{
        self, Link, RelayServer, Relays, resolve,
        stream::{StreamEvent, Streams},
    },
    status::RelayStatus,
};

/// How often it is looked at which peers are reached by which relay: their channels are
/// kept, the others' end.
const PEERS_INTERVAL: Duration = Duration::from_secs(10);

/// News of the tasks around the relays.
#[derive(Debug)]
pub enum RelayEvent {
    /// Where the configured relays are.
    Servers(Vec<RelayServer>),
    /// A stream to a relay was opened, or has ended.
    Stream(StreamEvent),
}

/// The relays and what belongs to them outside. Without a secret for credentials there
/// are none.
pub(super) struct RelayKeeper(Option<Kept>);

struct Kept {
    relays: Relays,
    streams: Streams,
    /// The streams that the data plane has an end of.
    open: BTreeSet<u32>,
    peers_due: Instant,
    /// They end with the keeper.
    _tasks: JoinSet<()>,
}

impl RelayKeeper {
    /// The relays of the configuration, or of the zone, once they are found.
    ///
    /// # Errors
    /// When the certificate authorities of `relay.ca_file` cannot be read.
    pub(super) fn start(
        config: &Config,
        own: &PublicKey,
        events: &mpsc::Sender<Event>,
        (now, wall): (Instant, SystemTime),
    ) -> anyhow::Result<Self> {
        let Some(secret) = config.relay.username_secret.clone().filter(|_| config.relay.is_used())
        else {
            return Ok(Self(None));
        };
        let name = resolve::credential_name(&config.node.name, own);
        let relays =
            Relays::new(relays::Settings { secret, name, seed: rand::random() }, now, wall);
        let (streams, told) = Streams::new(config.relay.ca_file.as_deref())?;
        let mut tasks = JoinSet::new();
        tasks.spawn(forward(told, events.clone(), RelayEvent::Stream));
        if !config.relay.servers.is_empty() {
            let (found, told) = mpsc::channel(1);
            tasks.spawn(resolve::watch(config.relay.servers.clone(), found));
            tasks.spawn(forward(told, events.clone(), RelayEvent::Servers));
        }
        let peers_due = now + PEERS_INTERVAL;
        Ok(Self(Some(Kept { relays, streams, open: BTreeSet::new(), peers_due, _tasks: tasks })))
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let kept = self.0.as_ref()?;
        Some(kept.relays.poll_timeout().map_or(kept.peers_due, |due| due.min(kept.peers_due)))
    }

    /// What people know a relay by.
    pub(super) fn label(&self, id: u32) -> Option<String> {
        self.0.as_ref()?.relays.label(id).map(str::to_owned)
    }

    /// The addresses of the relays' servers.
    pub(super) fn servers(&self) -> Vec<SocketAddr> {
        let reports = self.0.iter().flat_map(|kept| kept.relays.report());
        reports.map(|report| report.addr).collect()
    }

    /// The relays, for status.
    pub(super) fn status(&self) -> Vec<RelayStatus> {
        let reports = self.0.iter().flat_map(|kept| kept.relays.report());
        reports
            .map(|report| RelayStatus {
                uri: report.label,
                server: report.addr,
                state: report.state.to_string(),
                relayed: report.relayed,
                rtt_ms: report.rtt.map(|rtt| (rtt.as_secs_f64() * 1e6).round() / 1e3),
                error: report.error,
            })
            .collect()
    }

    fn relays(&mut self) -> Option<&mut Relays> {
        self.0.as_mut().map(|kept| &mut kept.relays)
    }
}

/// Makes events of the loop of what a task tells, until one of them ends.
async fn forward<T>(
    mut told: mpsc::Receiver<T>,
    events: mpsc::Sender<Event>,
    event: impl Fn(T) -> RelayEvent,
) {
    while let Some(one) = told.recv().await {
        if events.send(Event::Relay(event(one))).await.is_err() {
            return;
        }
    }
}

impl Node {
    /// Takes a STUN message that came from the server of a relay by UDP, if it did.
    pub(super) fn handle_relay_datagram(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
    ) -> bool {
        let relays = self.relays.relays();
        relays.is_some_and(|relays| relays.handle_datagram(from, bytes, now, SystemTime::now()))
    }

    /// Takes a STUN message that came by the stream of a relay.
    pub(super) fn handle_relay_message(&mut self, id: u32, bytes: &[u8], now: Instant) {
        if let Some(relays) = self.relays.relays() {
            relays.handle_message(id, bytes, now, SystemTime::now());
        }
    }

    /// This node's network has changed.
    pub(super) fn relays_moved(&mut self, now: Instant) {
        if let Some(relays) = self.relays.relays() {
            relays.handle_moved(now, SystemTime::now());
        }
    }

    /// The NAT in front of this node may be another one, or have forgotten us.
    pub(super) fn check_relays(&mut self, now: Instant) {
        if let Some(relays) = self.relays.relays() {
            relays.check_now(now, SystemTime::now());
        }
    }

    /// Takes the servers of relays.
    pub(super) fn set_relay_servers(&mut self, servers: &[RelayServer], now: Instant) {
        if let Some(relays) = self.relays.relays() {
            let servers = self.gather.reach_relays(servers);
            relays.set_servers(&servers, now, SystemTime::now());
            self.tell_services(now);
        }
    }

    pub(super) fn handle_relay_event(&mut self, event: RelayEvent, now: Instant) {
        let wall = SystemTime::now();
        match event {
            RelayEvent::Servers(servers) => self.set_relay_servers(&servers, now),
            RelayEvent::Stream(StreamEvent::Opened { id, end }) => {
                let Some(kept) = &mut self.relays.0 else { return };
                // What is closed by now has no end here, and so ends.
                if kept.relays.label(id).is_some() {
                    kept.open.insert(id);
                    self.data.open_relay(id, RelayLink::Stream(end));
                    kept.relays.handle_opened(id, now, wall);
                }
            }
            RelayEvent::Stream(StreamEvent::Closed { id, reason }) => {
                if let Some(relays) = self.relays.relays() {
                    relays.handle_closed(id, &reason, now, wall);
                }
            }
        }
    }

    /// Gives the allocations back, as far as one message to each relay does.
    pub(super) fn close_relays(&mut self, now: Instant) {
        if let Some(relays) = self.relays.relays() {
            relays.close_all(now);
            self.settle_relays(now);
        }
    }

    /// Does what is due.
    pub(super) fn drive_relays(&mut self, now: Instant, wall: SystemTime) {
        let Some(kept) = &mut self.relays.0 else { return };
        if kept.relays.poll_timeout().is_some_and(|due| due <= now) {
            kept.relays.handle_timeout(now, wall);
        }
        if kept.peers_due <= now {
            kept.peers_due = now + PEERS_INTERVAL;
            let ids: Vec<u32> = kept.relays.listed().iter().map(|relay| relay.id).collect();
            for id in ids {
                kept.relays.set_peers(id, &self.mesh.peers_by_relay(id), now);
            }
        }
    }

    /// Sends a datagram of an agent's. Through a relay it may be the first one to its peer:
    /// then it asks for the channel.
    pub(super) fn send(&mut self, transmit: &Transmit, now: Instant) {
        let Transmit { route, payload, dont_fragment, hops } = transmit;
        if self.send_fresh(transmit) {
            return;
        }
        if let (Via::Relay(id), Some(_), Some(relays)) = (route.via, hops, self.relays.relays()) {
            return relays.admit(id, route.remote, now);
        }
        if let Some(hops) = hops {
            return self.data.send_near(*route, payload, *hops);
        }
        match (route.via, self.relays.relays()) {
            // What measures a path goes over one that is in use, with a channel.
            (Via::Relay(id), Some(relays)) if !dont_fragment => {
                relays.send(id, route.remote, payload, now);
            }
            _ => self.data.send(*route, payload, *dont_fragment),
        }
    }

    /// Lets out what the relays have to say.
    pub(super) fn settle_relays(&mut self, now: Instant) {
        while let Some(event) = self.relays.relays().and_then(Relays::poll_event) {
            self.handle_relay(event, now);
        }
    }

    fn handle_relay(&mut self, event: relays::Event, now: Instant) {
        match event {
            relays::Event::Open { id, link: Link::Udp(server) } => {
                self.data.open_relay(id, RelayLink::Udp(server));
            }
            relays::Event::Open { id, link } => {
                if let Some(kept) = &mut self.relays.0 {
                    kept.streams.open(id, &link);
                }
            }
            relays::Event::Transmit { id, bytes } => self.data.send_to_relay(id, &bytes),
            relays::Event::Close { id } => {
                self.data.close_relay(id);
                if let Some(kept) = &mut self.relays.0 {
                    kept.streams.close(id, kept.open.remove(&id));
                }
            }
            relays::Event::Changed(listed) => {
                self.mesh.set_relays(&listed, now);
                let label = |id| self.relays.label(id).unwrap_or_default();
                let relayed: Vec<(SocketAddr, String)> =
                    listed.iter().map(|relay| (relay.relayed, label(relay.id))).collect();
                if self.gather.known.set_relayed(&relayed, now) {
                    self.handle_candidates(now);
                }
            }
            relays::Event::Channel { id, peer, channel } => {
                self.data.bind_channel(id, peer, channel);
            }
            relays::Event::Unbound { id, peer } => self.data.unbind_channel(id, peer),
            // What is no check waits for its channel: WireGuard sends it again.
            relays::Event::Data { id, peer, payload } => {
                self.handle_stun(Route::relayed(id, peer), &payload, now);
            }
            relays::Event::Up { label, relayed } => info!(relay = label, %relayed, "relay"),
            relays::Event::Died { label, reason } => warn!(relay = label, "no relay: {reason}"),
        }
    }
}
