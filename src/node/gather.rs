//! What this node finds out of its own addresses, beside what STUN through WireGuard's
//! socket tells: the tasks that ask, and what the loop does with the answers.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    time::Instant,
};

use tokio::{sync::mpsc, task::JoinSet};
use tracing::{info, warn};
use zonemesh_discovery::{
    advert::CandidateKind,
    interfaces::{InterfaceAddress, host_candidates},
    portmap::{self, PortMap},
};

use super::{Event, Node, report::tell};
use crate::{
    mesh::{
        gathered::{Gathered, Known},
        to_punch,
    },
    status::{CandidateStatus, PortMappingStatus},
};

/// News of the tasks that ask around this node.
#[derive(Debug)]
pub enum GatherEvent {
    /// What the router says of port mappings.
    Router(portmap::Found),
}

/// The keeper of this node's addresses, and the tasks that ask for them.
pub(super) struct Gather {
    pub(super) known: Gathered,
    portmap: Option<PortMap>,
    /// What the router said last; `None` until it was asked.
    router: Option<portmap::Found>,
    /// The public addresses of the NAT, without ports, as they were last seen.
    outside: Vec<IpAddr>,
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
    pub(super) fn refresh(&self) {
        if let Some(portmap) = &self.portmap {
            portmap.refresh();
        }
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
        let status = |known: &Known| CandidateStatus {
            kind: name_of(known.candidate.kind).to_owned(),
            address: known.candidate.addr,
            source: known.source.to_string(),
            age_s: seconds(known.since),
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
        self.gather.known.set_reflexive(self.stun.named(), now);
        let mut outside: Vec<IpAddr> = reflexive.iter().map(SocketAddr::ip).collect();
        outside.sort_unstable();
        outside.dedup();
        let before = std::mem::replace(&mut self.gather.outside, outside);
        // A NAT that has restarted has forgotten its mappings too.
        if !before.is_empty() && before != self.gather.outside {
            self.gather.refresh();
        }
        self.handle_candidates(now);
        self.mesh.handle_moved(now);
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

/// What status calls a kind.
fn name_of(kind: CandidateKind) -> &'static str {
    match kind {
        CandidateKind::Host => "host",
        CandidateKind::ServerReflexive => "reflexive",
        CandidateKind::Mapped => "mapped",
        CandidateKind::Relayed => "relayed",
    }
}
