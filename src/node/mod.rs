//! The control loop of one node.
//!
//! [`run`] brings the parts up in the order in which they need each other, then loops:
//! one event in, the pure machines change, their output goes out. Everything that
//! happens outside (the zone, mDNS, netlink, the control socket) becomes one
//! [`Event`], by one bounded queue but for mDNS, whose library has its own; what the
//! packet threads hand up has a bounded queue too, so that a flood of datagrams cannot
//! crowd out the rest. The loop
//! alone owns the control state; no lock guards it. It ends at SIGINT or SIGTERM:
//! adverts are withdrawn, threads joined, and the device goes with the process.

mod gather;
mod hard;
mod membership;
mod mtu;
mod relays;
mod report;
mod slice;
mod sockets;
mod start;
mod uplinks;
mod zone;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::sleep_until,
};
use tracing::{debug, info, warn};
use zonemesh_discovery::{
    identity::PublicKey,
    interfaces::{Change, InterfaceAddress, mdns_interfaces},
    mdns::{Mdns, MdnsEvent},
    stun::{ReflexiveClient, StunEvent},
};
use zonemesh_punch::{Route, Via};

use crate::{
    apply::Applier,
    config::Config,
    control::ControlRequest,
    dataplane::{DataPlane, EndpointMode, PeerConfig, Upcall},
    join::Given,
    mesh::{
        CheckOutcome, KEEPALIVE_S, Mesh, MeshEvent,
        own::{self, Own},
    },
    plan::Plan,
    rendezvous::{Rendezvous, ZoneEvent},
    serve::Beside,
    state::State,
    tunnel::PresharedKey,
};

use self::{
    gather::Gather, hard::Hard, membership::Joined, mtu::Mtu, relays::RelayKeeper, slice::Slice,
    uplinks::Uplinks, zone::ZoneState,
};
pub use self::{gather::GatherEvent, hard::HardEvent, relays::RelayEvent, report::Echoed};

/// Events that wait for the loop. A source that finds the queue full waits, and with
/// it only itself.
const QUEUE: usize = 256;

/// Datagrams that are handled before the loop looks at its timers again.
const UPCALL_BATCH: usize = 64;

/// How long the first advert waits for a STUN server's answer: longer than most round
/// trips, short beside the time a peer takes to look at the zone.
const GATHER_LIMIT: Duration = Duration::from_millis(700);

/// How often the loop asks the data plane what it has heard: the agents judge a path by
/// what arrives on it, and have seconds for it.
const HEARD_INTERVAL: Duration = Duration::from_millis(250);

/// However many paths are lost, the STUN servers are asked out of turn no more often.
const STUN_SPACING: Duration = Duration::from_secs(2);

/// How often in a row the machines are asked for what their own output gave rise to.
const SETTLE_ROUNDS: usize = 8;

/// How long changes of the peers are collected before they go to disk.
const SAVE_DELAY: Duration = Duration::from_secs(2);

/// How long to wait before the machine's network is set again where it failed.
const APPLY_RETRY: Duration = Duration::from_secs(10);

/// Everything that happens outside of the loop.
#[derive(Debug)]
pub enum Event {
    /// From the tasks that talk to the zone.
    Zone(ZoneEvent),
    /// From the LAN.
    Lan(MdnsEvent),
    /// This machine's addresses, after a change.
    Interfaces(Vec<InterfaceAddress>, Change),
    /// Somebody at the control socket.
    Control(ControlRequest),
    /// An echo that somebody asked for came back, or did not.
    Echoed(Echoed),
    /// What was found out of this node's own addresses.
    Gathered(GatherEvent),
    /// From the tasks around the relays.
    Relay(RelayEvent),
    /// From what was opened against hard NATs.
    Hard(HardEvent),
}

/// Runs a node until SIGINT or SIGTERM.
///
/// # Errors
/// When a part that the node cannot do without does not start; the message says
/// what to do.
pub fn run(config: Config, given: Option<Given>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut node, mut upcalls, mut events) = Node::start(config, given).await?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        info!(node = %node.public_key, name = node.config.node.name, port = node.port, "up");
        // For others, on threads of its own: it ends with this scope, whatever becomes of it.
        let _serving = Beside::if_enabled(&node.config, node.port);
        loop {
            node.settle().await;
            let due = node.poll_timeout();
            tokio::select! {
                Some(event) = events.recv() => node.handle(event),
                event = heard_on_lan(&mut node.mdns) => node.handle(Event::Lan(event)),
                Some(upcall) = upcalls.recv() => {
                    node.handle_upcall(upcall);
                    for _ in 1..UPCALL_BATCH {
                        let Ok(upcall) = upcalls.try_recv() else { break };
                        node.handle_upcall(upcall);
                    }
                }
                () = sleep_until(due.into()) => {}
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
            }
            node.handle_timeout();
            if node.failed.is_some() {
                break;
            }
        }
        info!("stopping");
        match node.stop().await {
            Some(reason) => anyhow::bail!("the data plane failed: {reason}"),
            None => Ok(()),
        }
    })
}

/// The next thing heard on the LAN; never, without mDNS.
async fn heard_on_lan(mdns: &mut Option<Mdns>) -> MdnsEvent {
    match mdns {
        Some(mdns) => mdns.next().await,
        None => std::future::pending().await,
    }
}

/// The control state of a node.
struct Node {
    config: Config,
    public_key: PublicKey,
    port: u16,
    state: State,
    data: DataPlane,
    applier: Applier,
    mtu: Mtu,
    mesh: Mesh,
    stun: ReflexiveClient,
    /// Without a zone there is nothing to advertise.
    own: Option<Own>,
    /// A node needs no network.
    joined: Option<Joined>,
    /// Where its routes are a slice of the network's range.
    slice: Option<Slice>,
    rendezvous: Option<Rendezvous>,
    mdns: Option<Mdns>,
    lan_interfaces: Vec<String>,
    /// The prefixes that it advertises.
    routes: Vec<IpNet>,
    events: mpsc::Sender<Event>,
    /// This node's own candidates.
    gather: Gather,
    relays: RelayKeeper,
    hard: Hard,
    uplinks: Uplinks,
    /// The clocks, as they were read last.
    clocks: (Instant, SystemTime),
    zone: ZoneState,
    due: Due,
    /// Why the data plane ended, if it did.
    failed: Option<String>,
}

/// When what is to be done.
#[derive(Debug)]
struct Due {
    advert: Option<Instant>,
    /// With the next advert, all paths are checked.
    recheck: bool,
    heard: Instant,
    save: Option<Instant>,
    apply: Option<Instant>,
    /// When the STUN servers may be asked out of turn again.
    stun_allowed: Instant,
}

impl Node {
    fn handle(&mut self, event: Event) {
        let (now, wall) = (Instant::now(), SystemTime::now());
        match event {
            Event::Zone(event) => self.handle_zone(event, now, wall),
            Event::Lan(MdnsEvent::Found { txt }) => self.mesh.handle_lan(&txt, now, wall),
            Event::Lan(MdnsEvent::Flooded) => warn!("mDNS rests: the LAN is flooded with records"),
            Event::Interfaces(addresses, change) => {
                self.handle_interfaces(&addresses, change, now);
            }
            Event::Control(control) => self.handle_control(control),
            Event::Echoed(echoed) => self.handle_echoed(echoed),
            Event::Gathered(event) => self.handle_gathered(event, now),
            Event::Hard(event) => self.handle_hard(event, now),
            Event::Relay(event) => self.handle_relay_event(event, now),
        }
    }

    fn handle_interfaces(&mut self, addresses: &[InterfaceAddress], change: Change, now: Instant) {
        let overlay = self.config.interface.name.clone();
        let connected = addresses.iter().filter(|address| address.name != overlay);
        let connected: BTreeSet<IpNet> = connected
            .filter_map(|address| IpNet::new(address.addr, address.prefix_len).ok())
            .map(|prefix| prefix.trunc())
            .collect();
        // Another default route may lead through another NAT, whatever the addresses are.
        let moved = self.set_hosts(addresses, now) || change == Change::DefaultRoute;
        if moved {
            let hosts = self.gather.known.hosts();
            let local: Vec<SocketAddr> = hosts.map(|ip| SocketAddr::new(ip, self.port)).collect();
            debug!(?local, "host addresses");
            self.stun.set_local_addresses(&local);
            self.stun.refresh(now);
            self.gather.refresh(&self.events);
        }
        self.mesh.set_connected(connected, now);
        self.follow_uplinks(addresses, moved, now);
        if moved {
            self.handle_candidates(now);
            self.relays_moved(now);
            self.mesh.handle_moved(now);
        }
        let wanted = mdns_interfaces(addresses, &self.config.mdns.interfaces, &overlay);
        if let Some(mdns) = &mut self.mdns
            && let Err(error) = mdns.set_interfaces(&wanted)
        {
            warn!("{error}");
        }
        self.lan_interfaces = wanted;
        // What somebody took from the overlay's own interface, or it lost by going down,
        // is put back.
        self.due.apply = Some(now);
    }

    /// Takes a STUN message: an answer of a STUN server, a relay's, or a check.
    fn handle_stun(&mut self, route: Route, bytes: &[u8], now: Instant) {
        let is_direct = route.via == Via::Socket;
        if is_direct
            && (self.stun.handle_datagram(route.remote, bytes, now)
                || self.handle_relay_datagram(route.remote, bytes, now))
        {
            return;
        }
        if let Via::Uplink(id) = route.via
            && self.uplinks.handle_datagram(id, route.remote, bytes, now)
        {
            return;
        }
        if self.mesh.handle_check(route, bytes, now) == CheckOutcome::Stranger {
            self.ask_zone(None);
        }
    }

    fn handle_upcall(&mut self, upcall: Upcall) {
        let now = Instant::now();
        match upcall {
            Upcall::Stun { route, bytes } => self.handle_stun(route, &bytes, now),
            Upcall::Knock { key, from } => {
                debug!(%key, %from, "a stranger knocks");
                self.ask_zone(Some(key));
            }
            Upcall::NoPath { peer } => self.mesh.handle_wanted(&peer, now),
            Upcall::Handshake { peer, from } => {
                if self.mesh.handle_session(&peer, from, now) {
                    info!(%peer, %from, "session");
                } else {
                    debug!(%peer, %from, "session renewed");
                }
            }
            Upcall::SourceChanged { peer, from } => self.mesh.handle_heard(&peer, from, now, now),
            Upcall::Relay { id, bytes } => self.handle_relay_message(id, &bytes, now),
            Upcall::Failed { reason } => self.failed = Some(reason),
        }
    }

    fn handle_timeout(&mut self) {
        let (now, wall) = (Instant::now(), SystemTime::now());
        self.stun.handle_timeout(now);
        self.uplinks.handle_timeout(now);
        self.drive_relays(now, wall);
        self.drive_slice(now);
        if self.gather.known.handle_timeout(now) {
            self.handle_candidates(now);
        }
        if self.due.heard <= now {
            self.due.heard = now + HEARD_INTERVAL;
            self.revive_rendezvous();
            self.watch_membership(wall);
            if self.config.interface.mtu.is_none() {
                self.mtu.follow(self.mesh.narrowest(), now);
            }
            for report in self.data.peers_report() {
                if let Some((at, from)) = report.last_received {
                    self.mesh.handle_heard(&report.public_key, from, at, now);
                }
                self.mesh.handle_sent(&report.public_key, report.tx_bytes, now);
            }
        }
        let step = own::clock_step(std::mem::replace(&mut self.clocks, (now, wall)), now, wall);
        if step >= own::CLOCK_STEP {
            info!("the clock was set, or stood still, by {} s", step.as_secs());
            // After an hour's sleep no relay knows this node any more.
            self.relays_moved(now);
            // What seemed to have lapsed may hold, and the zone does not tell it twice.
            if let Some(view) = &self.zone.view {
                self.mesh.handle_zone(&view.instances, now, wall);
            }
        }
        self.mesh.handle_timeout(now, wall);
        let outdated = self.own.as_ref().is_some_and(|own| own.is_outdated(now, wall));
        if outdated || self.due.advert.is_some_and(|due| due <= now) {
            self.due.advert = None;
            self.advertise(now, wall);
            if std::mem::take(&mut self.due.recheck) {
                self.mesh.handle_moved(now);
            }
        }
        if self.due.save.is_some_and(|due| due <= now) {
            self.due.save = None;
            self.save_peers();
        }
    }

    fn poll_timeout(&self) -> Instant {
        let fixed = [self.due.heard, self.mesh.poll_timeout()];
        let renew = self.own.as_ref().and_then(Own::renew_at);
        let Due { advert, save, apply, .. } = self.due;
        let (stun, stale) = (self.stun.poll_timeout(), self.gather.known.poll_timeout());
        let (relays, uplinks) = (self.relays.poll_timeout(), self.uplinks.poll_timeout());
        let slice = self.slice.as_ref().and_then(Slice::poll_timeout);
        let others = [stun, stale, relays, uplinks, slice, renew, advert, save, apply];
        let others = others.into_iter().flatten();
        fixed.into_iter().chain(others).min().expect("at least two")
    }

    /// Lets out what the machines have to say until they are silent.
    async fn settle(&mut self) {
        for _ in 0..SETTLE_ROUNDS {
            self.settle_once().await;
            if self.mesh.is_silent() {
                return;
            }
        }
    }

    /// The same once: what is done with one thing may give rise to the next.
    async fn settle_once(&mut self) {
        let now = Instant::now();
        while let Some(event) = self.stun.poll_event() {
            match event {
                StunEvent::Changed => {
                    self.handle_reflexive(now);
                    self.check_relays(now);
                }
                StunEvent::ServerAnswered { server } => info!(%server, "STUN server answers"),
                StunEvent::ServerSilent { server } => warn!(%server, "STUN server does not answer"),
                StunEvent::MappingWanted { server, other } => {
                    self.gather.test_mapping(server, other, &self.events);
                }
                StunEvent::Behaviour(behaviour) => {
                    let (mapping, filtering) = (behaviour.mapping, behaviour.filtering);
                    info!(%mapping, %filtering, "NAT behaviour");
                    self.tell_nat(now);
                }
                StunEvent::Ports(ports) => {
                    info!(%ports, "NAT port pattern");
                    self.tell_nat(now);
                }
            }
        }
        self.settle_relays(now);
        while let Some(transmit) = self.stun.poll_transmit() {
            self.data.send(Route::direct(transmit.to), &transmit.payload, false);
        }
        self.settle_uplinks(now);
        let mut peers_changed = false;
        let mut others = Vec::new();
        while let Some(event) = self.mesh.poll_event() {
            match event {
                MeshEvent::Peers => peers_changed = true,
                MeshEvent::Revocations => self.handle_revocations(),
                other => others.push(other),
            }
        }
        // A path needs its peer to be there first.
        if peers_changed {
            self.publish_peers();
            self.forget_sockets(now);
            self.due.save.get_or_insert(now + SAVE_DELAY);
        }
        for event in others {
            match event {
                MeshEvent::Path { node, route } => {
                    if let Some(Route { via: Via::Extra(id), .. }) = route {
                        self.hand_over(node, id);
                    }
                    self.data.set_path(&node, route);
                    if route.is_none() {
                        self.handle_path_lost(now);
                    }
                }
                MeshEvent::Handshake(node) => {
                    self.data.initiate(&node);
                }
                MeshEvent::WantSample(node) => self.take_sample(node),
                MeshEvent::WantKnownSocket(node) => self.open_known_socket(node),
                MeshEvent::WantSockets { node, count } => self.open_sockets(node, count, now),
                MeshEvent::ReleaseSockets { node, keep } => self.release_sockets(&node, keep, now),
                MeshEvent::Peers | MeshEvent::Revocations => {}
            }
        }
        while let Some(transmit) = self.mesh.poll_transmit() {
            self.send(&transmit, now);
        }
        self.settle_relays(now);
        self.apply_mtu().await;
        if peers_changed || self.due.apply.is_some_and(|due| due <= now) {
            self.apply(now).await;
        }
    }

    /// The peer may have moved, and said so in the zone; or it was our own NAT.
    fn handle_path_lost(&mut self, now: Instant) {
        self.ask_zone(None);
        if self.due.stun_allowed <= now {
            self.due.stun_allowed = now + STUN_SPACING;
            self.stun.refresh(now);
            self.check_relays(now);
        }
    }

    /// Hands the data plane the peers; it keeps the sessions of those that stay.
    fn publish_peers(&mut self) {
        let peers = self.mesh.wire_peers().into_iter().map(|peer| {
            let fixed = self.config.peers.iter().find(|fixed| fixed.public_key == peer.node);
            let is_member = self.mesh.advert(&peer.node).is_some();
            let mode = match fixed {
                Some(fixed) => EndpointMode::Roaming(fixed.endpoint),
                None if is_member => EndpointMode::Managed,
                None => EndpointMode::Roaming(peer.endpoint),
            };
            let keepalive = fixed.map_or(Some(KEEPALIVE_S), |fixed| fixed.keepalive);
            let preshared_key = fixed.and_then(|fixed| fixed.preshared_key.as_ref());
            PeerConfig {
                public_key: peer.node,
                preshared_key: preshared_key.map(|key| PresharedKey::from_bytes(*key.expose())),
                keepalive,
                allowed: peer.routes.into_iter().collect(),
                mode,
            }
        });
        let peers: Vec<PeerConfig> = peers.collect();
        self.data.set_peers(&peers);
        for peer in &peers {
            if peer.mode == EndpointMode::Managed {
                self.data.set_path(
                    &peer.public_key,
                    self.mesh.path(&peer.public_key).map(|path| path.route),
                );
            }
        }
    }

    async fn apply(&mut self, now: Instant) {
        let plan = Plan::new(&self.config.interface.addresses, self.mesh.resolved());
        self.due.apply = match self.applier.apply(&plan).await {
            Ok(0) => None,
            Ok(_) => Some(now + APPLY_RETRY),
            Err(error) => {
                warn!("{error}");
                Some(now + APPLY_RETRY)
            }
        };
    }

    fn save_peers(&self) {
        let members = self.mesh.roster().into_iter().flat_map(|roster| roster.members());
        let adverts = members.filter_map(|(_, member)| member.signed());
        if let Err(error) = self.state.save_peers(adverts) {
            warn!("cannot keep the peers: {error}");
        }
    }

    /// Leaves the zone and the LAN; the data plane ends when it is dropped. Gives the
    /// reason where the node did not stop by itself.
    async fn stop(mut self) -> Option<String> {
        self.close_relays(Instant::now());
        let last = self.own.as_mut().and_then(|own| own.last_word(SystemTime::now()));
        if let Some(last) = &last {
            self.keep_sequence(last.advert().sequence);
        }
        let lan = async {
            if let Some(mdns) = self.mdns {
                mdns.stop().await;
            }
        };
        let zone = async {
            if let Some(rendezvous) = self.rendezvous {
                rendezvous.stop(last).await;
            }
        };
        tokio::join!(lan, zone, self.gather.stop());
        self.failed
    }
}
