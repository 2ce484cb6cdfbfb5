//! What this node finds out of its own addresses, beside what STUN through WireGuard's
//! socket tells: the tasks that ask, and what the loop does with the answers.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::sleep,
};
use tracing::{debug, info, warn};
use zonemesh_discovery::{
    advert::CandidateKind,
    interfaces::{InterfaceAddress, host_candidates},
    nat64::Prefix64,
    portmap::{self, PortMap},
    stun::{MappingFound, MappingLifetime},
};

use super::{Event, Node, report::tell};
use crate::{
    measure,
    mesh::{
        gathered::{Gathered, Known, Source},
        to_punch,
    },
    relays::RelayServer,
    status::{CandidateStatus, PortMappingStatus},
};

/// How long the NAT behind a new outer address is left alone before it is measured: what
/// makes paths has precedence, and a node that has just moved may move on.
const MEASURE_DELAY: Duration = Duration::from_secs(10);

/// How many STUN servers are tried for a measurement that not every one can show.
const MEASURE_SERVERS: usize = 3;

/// The pauses where the resolver does not answer, the first and the longest.
const NAT64_PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// News of the tasks that ask around this node.
#[derive(Debug)]
pub enum GatherEvent {
    /// What the router says of port mappings.
    Router(portmap::Found),
    /// Whether the NAT turns packets round.
    Hairpin(bool),
    /// Which mappings the NAT gives to a fresh socket.
    Mapping(MappingFound),
    /// How long the NAT keeps a mapping.
    Lifetime(MappingLifetime),
    /// By which prefix IPv4 is reached, where only a NAT64 leads there.
    Nat64(Option<Prefix64>),
}

/// The keeper of this node's addresses, and the tasks that ask for them.
pub(super) struct Gather {
    pub(super) known: Gathered,
    portmap: Option<PortMap>,
    /// What the router said last; `None` until it was asked.
    router: Option<portmap::Found>,
    /// The public addresses of the NAT, without ports, as they were last seen.
    outside: Vec<IpAddr>,
    /// What was measured of the NAT behind these.
    pub(super) hairpin: Option<bool>,
    pub(super) lifetime: Option<MappingLifetime>,
    measuring: Option<AbortHandle>,
    /// The prefix by which IPv4 is reached, where only a NAT64 leads there.
    nat64: Option<Prefix64>,
    looking: Option<AbortHandle>,
    /// The servers of relays, as they were named.
    relays: Vec<RelayServer>,
    tasks: JoinSet<()>,
}

impl Gather {
    /// Nothing is asked yet.
    pub(super) fn new(port: u16) -> Self {
        Self {
            known: Gathered::new(port),
            portmap: None,
            router: None,
            outside: Vec::new(),
            hairpin: None,
            lifetime: None,
            measuring: None,
            nat64: None,
            looking: None,
            relays: Vec::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Has the router asked for a mapping of WireGuard's port.
    pub(super) fn start_portmap(&mut self, port: u16, events: &mpsc::Sender<Event>) {
        let Some(port) = NonZeroU16::new(port) else { return };
        let portmap = match PortMap::start(port) {
            Ok(portmap) => portmap,
            Err(error) => return warn!("no port mapping is asked for: {error}"),
        };
        let (mut changes, events) = (portmap.changes(), events.clone());
        self.tasks.spawn(async move {
            while let Some(found) = changes.next().await {
                tell(&events, Event::Gathered(GatherEvent::Router(found))).await;
            }
            // Only a panic below it ends it before this task: what it held lapses.
            let nothing = GatherEvent::Router(portmap::Found::default());
            tell(&events, Event::Gathered(nothing)).await;
        });
        self.portmap = Some(portmap);
    }

    /// The network is another one, or may be.
    pub(super) fn refresh(&mut self, events: &mpsc::Sender<Event>) {
        if let Some(portmap) = &self.portmap {
            portmap.refresh();
        }
        if let Some(earlier) = self.looking.take() {
            earlier.abort();
        }
        let (events, known) = (events.clone(), self.nat64);
        self.looking = Some(self.tasks.spawn(async move {
            let found = find_nat64().await;
            if found != known {
                tell(&events, Event::Gathered(GatherEvent::Nat64(found))).await;
            }
        }));
    }

    /// Where to send what is for these addresses: IPv4 ones through the NAT64 where there
    /// is no other way.
    pub(super) fn reach(&self, addrs: &[SocketAddr]) -> Vec<SocketAddr> {
        let reach = |addr: &SocketAddr| self.nat64.map_or(*addr, |prefix| prefix.reach(*addr));
        addrs.iter().map(reach).collect()
    }

    /// The same for the servers of relays.
    pub(super) fn reach_relays(&mut self, servers: &[RelayServer]) -> Vec<RelayServer> {
        self.relays = servers.to_vec();
        let mut reached = self.relays.clone();
        for server in &mut reached {
            server.addr = self.nat64.map_or(server.addr, |prefix| prefix.reach(server.addr));
        }
        reached
    }

    /// Has the NAT's mappings tested by a fresh socket.
    pub(super) fn test_mapping(
        &mut self,
        server: SocketAddr,
        other: SocketAddr,
        events: &mpsc::Sender<Event>,
    ) {
        let events = events.clone();
        self.tasks.spawn(async move {
            match measure::mapping(server, other).await {
                Ok(Some(found)) => {
                    tell(&events, Event::Gathered(GatherEvent::Mapping(found))).await;
                }
                Ok(None) => debug!(%server, "does not tell what mappings the NAT gives"),
                Err(error) => debug!("cannot test the NAT's mappings: {error}"),
            }
        });
    }

    /// Has the NAT measured anew, in the background.
    fn measure(&mut self, servers: Vec<SocketAddr>, has_nat: bool, events: &mpsc::Sender<Event>) {
        if let Some(earlier) = self.measuring.take() {
            earlier.abort();
        }
        (self.hairpin, self.lifetime) = (None, None);
        let events = events.clone();
        let task = async move {
            sleep(MEASURE_DELAY).await;
            // A socket that cannot be had is no news of the NAT: the next one is tried.
            for server in servers.iter().filter(|_| has_nat) {
                if let Ok(Some(turns)) = measure::hairpin(*server).await {
                    tell(&events, Event::Gathered(GatherEvent::Hairpin(turns))).await;
                    break;
                }
            }
            for server in &servers {
                if let Ok(Some(found)) = measure::mapping_lifetime(*server).await {
                    tell(&events, Event::Gathered(GatherEvent::Lifetime(found))).await;
                    break;
                }
            }
        };
        self.measuring = Some(self.tasks.spawn(task));
    }

    /// Gives back what others hold for this node.
    pub(super) async fn stop(mut self) {
        self.tasks.abort_all();
        if let Some(portmap) = self.portmap.take() {
            portmap.stop().await;
        }
    }

    /// The candidates, for status.
    pub(super) fn candidates_status(&self, now: Instant) -> Vec<CandidateStatus> {
        let seconds = |at: Instant| now.saturating_duration_since(at).as_secs();
        // An interface has its address, and a router or a relay has given theirs, until
        // they say otherwise; a STUN server may have fallen silent.
        let confirmed = |known: &Known| match known.source {
            Source::Stun(_) => seconds(known.confirmed),
            _ => known.lost.map_or(0, seconds),
        };
        let status = |known: &Known| CandidateStatus {
            kind: name_of(known.candidate.kind).to_owned(),
            address: known.candidate.addr,
            source: known.source.to_string(),
            age_s: seconds(known.since),
            confirmed_s: confirmed(known),
            stale_s: known.lost.map(seconds),
        };
        self.known.known().iter().map(status).collect()
    }

    /// The router's port mappings, for status.
    pub(super) fn portmap_status(&self) -> Option<PortMappingStatus> {
        self.router.as_ref().map(PortMappingStatus::from)
    }
}

impl Node {
    pub(super) fn handle_gathered(&mut self, event: GatherEvent, now: Instant) {
        match event {
            GatherEvent::Router(found) => {
                if self.gather.known.set_mapped(found.mapped, now) {
                    match found.mapped {
                        Some(portmap::Mapped { addr, protocol }) => {
                            info!(%addr, %protocol, "port mapping");
                        }
                        None => info!("the port mapping is lost"),
                    }
                    self.handle_candidates(now);
                }
                self.gather.router = Some(found);
            }
            GatherEvent::Mapping(found) => self.stun.set_mapping(found),
            GatherEvent::Hairpin(turns) => self.gather.hairpin = Some(turns),
            GatherEvent::Lifetime(found) => {
                info!(survived = ?found.survived, lost = ?found.lost, "NAT mapping lifetime");
                self.gather.lifetime = Some(found);
                self.mesh.set_mapping_lifetime(Some(found.safe()), now);
            }
            GatherEvent::Nat64(prefix) => {
                match prefix {
                    Some(prefix) => info!(%prefix, "IPv4 is reached through a NAT64"),
                    None => info!("IPv4 is not reached through a NAT64 any more"),
                }
                self.gather.nat64 = prefix;
                self.mesh.set_nat64(prefix, now);
                self.set_stun_servers(now);
                let relays = std::mem::take(&mut self.gather.relays);
                if !relays.is_empty() {
                    self.set_relay_servers(&relays, now);
                }
            }
        }
    }

    /// Takes this machine's addresses. Whether those that peers may use are others.
    pub(super) fn set_hosts(&mut self, addresses: &[InterfaceAddress], now: Instant) -> bool {
        let hosts = host_candidates(addresses, &self.config.interface.name);
        let named = hosts.into_iter().filter_map(|ip| {
            let address = addresses.iter().find(|address| address.addr == ip)?;
            Some((ip, address.name.clone()))
        });
        self.gather.known.set_hosts(&named.collect::<Vec<_>>(), now)
    }

    /// Takes what the STUN servers say now.
    pub(super) fn handle_reflexive(&mut self, now: Instant) {
        let reflexive: Vec<SocketAddr> = self.stun.reflexive().collect();
        info!(?reflexive, "reflexive addresses");
        self.gather.known.set_reflexive(self.named(), now);
        let mut outside: Vec<IpAddr> = reflexive.iter().map(SocketAddr::ip).collect();
        outside.sort_unstable();
        outside.dedup();
        let before = std::mem::replace(&mut self.gather.outside, outside);
        if before != self.gather.outside {
            let primary = reflexive.first().is_some_and(SocketAddr::is_ipv4);
            let servers = self.stun.named().map(|(_, server, _)| server);
            let servers = servers.filter(|server| server.is_ipv4() == primary);
            let has_nat = !self.gather.known.hosts().any(|ip| self.gather.outside.contains(&ip));
            let servers = servers.take(MEASURE_SERVERS).collect();
            self.gather.measure(servers, has_nat, &self.events);
            self.mesh.set_mapping_lifetime(None, now);
            // A NAT that has restarted has forgotten its mappings too.
            if !before.is_empty() {
                self.gather.refresh(&self.events);
            }
        }
        self.handle_candidates(now);
        // Together with the advert, which waits ever longer where one change follows the
        // other: a server that makes up an address with every answer must not have all
        // members checked each time.
        self.due.recheck = true;
    }

    /// Has the STUN servers asked that are known.
    pub(super) fn set_stun_servers(&mut self, now: Instant) {
        let servers = self.gather.reach(&self.zone.stun_servers);
        self.stun.set_servers(&servers, now);
        self.uplinks.set_servers(&servers, now);
        self.open_uplinks(now);
    }

    /// Tells the agents and everybody else of changed candidates.
    pub(super) fn handle_candidates(&mut self, now: Instant) {
        self.mesh.set_candidates(&self.local_candidates(), now);
        self.hurry_advert(now);
    }

    pub(super) fn local_candidates(&self) -> Vec<zonemesh_punch::Candidate> {
        self.gather.known.candidates().into_iter().map(to_punch).collect()
    }
}

/// The prefix by which IPv4 is reached, on a host that has IPv6 only. Asks until the
/// resolver has answered.
async fn find_nat64() -> Option<Prefix64> {
    let mut pause = NAT64_PAUSE.0;
    loop {
        match measure::nat64_prefix().await {
            Ok(prefix) => return prefix,
            Err(error) => debug!("cannot ask for a NAT64: {error}"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(NAT64_PAUSE.1);
    }
}

/// What status calls a kind.
fn name_of(kind: CandidateKind) -> &'static str {
    match kind {
        CandidateKind::Host => "host",
        CandidateKind::ServerReflexive => "reflexive",
        CandidateKind::Mapped => "mapped",
        CandidateKind::Relayed => "relayed",
    }
}
