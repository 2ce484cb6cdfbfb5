//! What the node says of itself to `zonemesh status` and `zonemesh ping`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::{mpsc, oneshot};
use zonemesh_discovery::identity::PublicKey;
use zonemesh_punch::{Tier, Verdict, Via};

use super::{Event, Node, membership::Joined, slice::Slice, start::TRUST_WARNING, zone::TWIN};
use crate::{
    config::Trust,
    control::{ControlRequest, Reply, Request},
    dataplane::PeerReport,
    explain::{Explanation, PairExplanation},
    mesh::roster::{Member, Said},
    netcheck::source_address,
    ping,
    status::{NatStatus, NodeStatus, Origin, PathKind, PathStatus, PeerStatus, Status, ZoneStatus},
};

/// How long an echo may take.
const ECHO_LIMIT: Duration = Duration::from_secs(1);

/// A static peer has a path while its session lives: REJECT_AFTER_TIME (WireGuard's
/// paper, §6.1).
const SESSION_LIFE: Duration = Duration::from_secs(180);

/// Why a peer is reached as it is for which no path is sought.
const FIXED: &str = "it is where the configuration, or its last packet, says";

/// An echo, on its way back through the loop to whoever asked for it.
#[derive(Debug)]
pub struct Echoed {
    node: PublicKey,
    target: IpAddr,
    outcome: std::io::Result<Option<Duration>>,
    reply: oneshot::Sender<Reply>,
}

impl Node {
    pub(super) fn handle_control(&mut self, control: ControlRequest) {
        // When each server last named its address is looked at only here.
        self.gather.known.set_reflexive(self.named(), Instant::now());
        match control.request {
            Request::Status => answer(control.reply, Reply::Status(Box::new(self.status()))),
            Request::Explain { peer } => answer(control.reply, self.explain(&peer)),
            Request::Ping { peer, sequence } => self.ping(&peer, sequence, control.reply),
        }
    }

    /// Adds the path to an echo: the one that the answer came by.
    pub(super) fn handle_echoed(&self, echoed: Echoed) {
        let Echoed { node, target, outcome, reply } = echoed;
        let said = match outcome {
            Ok(rtt) => {
                let report = self.data.peers_report().into_iter().find(|r| r.public_key == node);
                let path = report.map_or(PathStatus::NONE, |report| self.path_status(&report));
                let name = self.mesh.advert(&node).map(|advert| advert.name.clone());
                let peer = name.unwrap_or_else(|| node.to_string());
                Reply::Echo { peer, target, rtt_ms: rtt.map(milliseconds), path }
            }
            Err(error) => {
                Reply::Error { message: format!("cannot send an echo to {target}: {error}") }
            }
        };
        answer(reply, said);
    }

    fn ping(&self, peer: &str, sequence: u16, reply: oneshot::Sender<Reply>) {
        let Some(node) = self.mesh.find(peer) else { return answer(reply, unknown(peer)) };
        let target = peer.parse().ok().or_else(|| self.mesh.overlay_address(&node));
        let Some(target) = target else {
            let message = format!("no overlay address of {peer} is known: name one instead");
            return answer(reply, Reply::Error { message });
        };
        let (interface, events) = (self.config.interface.name.clone(), self.events.clone());
        tokio::spawn(async move {
            let outcome = ping::echo(target, &interface, sequence, ECHO_LIMIT).await;
            tell(&events, Event::Echoed(Echoed { node, target, outcome, reply })).await;
        });
    }

    fn explain(&self, peer: &str) -> Reply {
        let Some(node) = self.mesh.find(peer) else { return unknown(peer) };
        let report = self.data.peers_report().into_iter().find(|r| r.public_key == node);
        let now = Instant::now();
        let verdict = self.mesh.verdict(&node);
        let mut pairs = self.mesh.pairs(&node);
        pairs.sort_by_key(|pair| (!pair.selected, pair.rtt.is_none(), pair.tier, pair.rtt));
        Reply::Explanation(Box::new(Explanation {
            name: self.mesh.advert(&node).map(|advert| advert.name.clone()).unwrap_or_default(),
            public_key: node.to_string(),
            path: report.map_or(PathStatus::NONE, |report| self.path_status(&report)),
            reason: verdict.map_or(FIXED.to_owned(), |verdict| verdict.to_string()),
            advice: verdict.and_then(Verdict::advice).map(str::to_owned),
            pairs: pairs
                .iter()
                .map(|pair| PairExplanation::new(pair, |id| self.relays.label(id), now))
                .collect(),
        }))
    }

    fn status(&self) -> Status {
        let node = NodeStatus {
            name: self.config.node.name.clone(),
            public_key: self.public_key.to_string(),
            interface: self.config.interface.name.clone(),
            addresses: self.config.interface.addresses.clone(),
            routes: self.routes.clone(),
            port: self.port,
            reflexive: self.stun.reflexive().collect(),
            nat: NatStatus {
                hairpin: self.gather.hairpin,
                mapping_lifetime_s: self.gather.lifetime.map(|found| found.safe().as_secs()),
                ..NatStatus::new(&self.stun)
            },
            candidates: self.gather.candidates_status(Instant::now()),
            port_mapping: self.gather.portmap_status(),
            membership: self.joined.as_ref().map(Joined::status),
            revocations: self.mesh.revocations().map(|list| list.number()),
        };
        let mut peers: Vec<PeerStatus> =
            self.data.peers_report().iter().map(|report| self.peer_status(report)).collect();
        peers.sort_by(|a, b| (&a.name, &a.public_key).cmp(&(&b.name, &b.public_key)));
        Status {
            node,
            peers,
            relays: self.relays.status(),
            zone: self.zone_status(),
            warnings: self.warnings(),
            counters: self.counters(),
        }
    }

    fn peer_status(&self, report: &PeerReport) -> PeerStatus {
        let key = &report.public_key;
        let member = self.mesh.roster().and_then(|roster| roster.get(key));
        PeerStatus {
            name: self.mesh.advert(key).map(|advert| advert.name.clone()).unwrap_or_default(),
            public_key: key.to_string(),
            origin: match member.map(|member| member.said()) {
                Some(Said::Signed(_)) => Origin::Advert,
                Some(Said::Bare(_)) => Origin::Record,
                None => Origin::Static,
            },
            routes: self.mesh.resolved().routes.get(key).into_iter().flatten().copied().collect(),
            groups: member
                .and_then(Member::certified)
                .map(|certified| certified.groups.clone())
                .unwrap_or_default(),
            path: self.path_status(report),
            last_handshake_s: report.last_handshake.map(|age| age.as_secs()),
            rx_bytes: report.rx_bytes,
            tx_bytes: report.tx_bytes,
        }
    }

    fn path_status(&self, report: &PeerReport) -> PathStatus {
        let is_member = self.mesh.advert(&report.public_key).is_some();
        let selected = self.mesh.path(&report.public_key);
        let lives = report.last_handshake.is_some_and(|age| age < SESSION_LIFE);
        let route = match selected {
            Some(path) => Some(path.route),
            None => report.path.filter(|_| !is_member && lives),
        };
        let Some(route) = route else { return PathStatus::NONE };
        let relayed = selected.is_some_and(|path| path.tier == Tier::Relayed);
        let own_relay = match route.via {
            Via::Relay(id) => self.relays.label(id),
            Via::Socket | Via::Extra(_) | Via::Uplink(_) => None,
        };
        let local = match route.via {
            Via::Relay(id) => self.mesh.relayed(id),
            Via::Socket => source_address(route.remote).map(|ip| SocketAddr::new(ip, self.port)),
            Via::Uplink(id) => self.uplinks.local(id),
            Via::Extra(_) => None,
        };
        PathStatus {
            kind: if relayed { PathKind::Relayed } else { PathKind::Direct },
            local,
            remote: Some(route.remote),
            // Without a relay of our own it is the peer's, which stands there.
            relay: own_relay.or_else(|| relayed.then(|| route.remote.ip().to_string())),
            rtt_ms: selected.map(|path| milliseconds(path.rtt)),
        }
    }

    fn zone_status(&self) -> Option<ZoneStatus> {
        let zone = self.config.zone.as_ref()?;
        let errors = [&self.zone.browse_error, &self.zone.publish_error];
        let mut errors: Vec<String> = errors.into_iter().flatten().cloned().collect();
        errors.dedup();
        Some(ZoneStatus {
            name: zone.name.to_string(),
            server: self.zone.server.or(zone.servers.first().copied()),
            read: self.zone.view.is_some(),
            published: self.zone.published,
            errors,
        })
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.config.warnings.clone();
        if self.config.trust == Some(Trust::Zone) && self.config.zone.is_some() {
            warnings.push(TRUST_WARNING.to_owned());
        }
        warnings.extend(self.joined.as_ref().and_then(Joined::fault));
        warnings.extend(self.slice.as_ref().and_then(Slice::warning));
        let clock = self.mesh.roster().and_then(|roster| roster.clock_fault());
        warnings.extend(clock.map(|fault| fault.told(SystemTime::now())));
        if self.zone.has_twin {
            warnings.push(TWIN.to_owned());
        }
        warnings.extend(self.mesh.resolved().refused.iter().map(ToString::to_string));
        if self.due.apply.is_some() {
            warnings.push("an address or a route could not be set; the log says which".to_owned());
        }
        warnings
    }

    fn counters(&self) -> BTreeMap<String, u64> {
        let dropped = self.mesh.roster().map(|roster| roster.dropped()).unwrap_or_default();
        let control = [
            ("check", self.mesh.checks_dropped()),
            ("advert_invalid", dropped.invalid),
            ("advert_expired", dropped.expired),
            ("advert_replayed", dropped.replayed),
            ("advert_foreign", dropped.foreign),
            ("advert_uncertified", dropped.uncertified),
            ("advert_revoked", dropped.revoked),
            ("advert_surplus", dropped.surplus),
        ];
        let data = self.data.counters().into_iter().map(|(reason, count)| (reason.name(), count));
        let all = control.into_iter().chain(data).filter(|(_, count)| *count > 0);
        all.map(|(reason, count)| (reason.to_owned(), count)).collect()
    }
}

fn unknown(peer: &str) -> Reply {
    let message = format!("no peer is named {peer}, has that key, or that address behind it");
    Reply::Error { message }
}

pub(super) async fn tell(events: &mpsc::Sender<Event>, event: Event) {
    // The loop is gone only when the node stops, and then nobody waits any more.
    let _ = events.send(event).await;
}

fn answer(reply: oneshot::Sender<Reply>, said: Reply) {
    // Whoever asked may have gone away.
    let _ = reply.send(said);
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
