//! The mesh, pure: peers, prefixes, paths; joins discovery and punch.
//!
//! [`roster`] keeps who is a member, [`gathered`] this node's own addresses, [`own`] what
//! it says of itself. Here each member gets an agent that looks for a path to it, and the
//! routes that members claim are resolved into whose they are. Adverts, addresses, checks
//! and what the data plane heard come in; datagrams to send, paths to install and a note
//! that peers or routes changed go out. Time is handed in, and nothing here touches a
//! socket, a clock or the machine.

mod event;
pub mod gathered;
mod lookup;
mod news;
mod note;
pub mod own;
mod paths;
mod peer;
pub mod roster;
mod routes;
mod translator;
mod turns;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;
use tracing::{info, warn};
use zonemesh_discovery::{
    advert::{Advert, CandidateKind as Advertised, InstanceRecords},
    identity::PublicKey,
    sealed::Seal,
};
use zonemesh_punch::{
    Agent, Candidate, CandidateKind, CheckKeys, Courier, Event as AgentEvent, LocalRelay,
    MAX_REMOTE, Route, Transmit, Username,
};

pub use self::event::{CheckOutcome, MeshEvent, WirePeer};
use self::{
    news::News,
    peer::Peer,
    roster::{Roster, Said},
    translator::Translator,
    turns::Turns,
};
use crate::plan::{Claims, Resolved};

/// After how long a session in use is renewed: after two minutes (REKEY_AFTER_TIME) by
/// who started it, and where idle, with the keepalive after three (REJECT_AFTER_TIME).
const RENEWAL: std::ops::Range<Duration> = Duration::from_secs(110)..Duration::from_secs(220);

/// For how long a member that is advertised no more is kept since it was last heard:
/// WireGuard's REJECT_AFTER_TIME (its paper, §6.1), when its session is over too.
const SILENCE_LIMIT: Duration = Duration::from_secs(180);

/// Persistent keepalive between members, in seconds: well below the shortest UDP
/// mapping timeout that is common among NATs (30 s), though RFC 4787 REQ-5 asks
/// them for 2 minutes.
pub const KEEPALIVE_S: u16 = 25;

/// How often lapsed members and dead paths are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// A node that looks so late at what is due was asleep, or its machine was.
const STOOD_STILL: Duration = Duration::from_secs(5);

/// What the mesh has to know of this node.
pub struct Settings {
    /// This node's key.
    pub own: PublicKey,
    /// Its WireGuard private key, from which the checks' keys come.
    pub private_key: [u8; 32],
    /// The prefixes behind it.
    pub routes: Vec<IpNet>,
    /// The prefixes that its invite allows.
    pub invite: Vec<IpNet>,
    /// The networks of its overlay addresses.
    pub overlay: Vec<IpNet>,
    /// The static peers and their prefixes.
    pub fixed: Vec<(PublicKey, Vec<IpNet>)>,
    /// Whether NATs are tried that ordinary checks do not pass.
    pub hard: bool,
    /// Where each agent's randomness starts.
    pub seed: [u8; 32],
}

/// The mesh as one node knows it.
pub struct Mesh {
    settings: Settings,
    roster: Option<Roster>,
    peers: BTreeMap<PublicKey, Peer>,
    usernames: HashMap<Username, PublicKey>,
    /// When each agent wants to be called, soonest first.
    deadlines: BTreeSet<(Instant, PublicKey)>,
    next_sweep: Instant,
    local: Vec<Candidate>,
    relays: Vec<LocalRelay>,
    uplinks: Vec<u32>,
    turns: Turns,
    /// This node's advert, as it is handed to members.
    note: Option<Vec<u8>>,
    /// Where the network is sealed.
    seal: Option<Arc<Seal>>,
    news: News,
    connected: BTreeSet<IpNet>,
    services: Vec<IpAddr>,
    translator: Translator,
    resolved: Resolved,
    /// Every prefix that is routed to a peer.
    routed: BTreeSet<IpNet>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<MeshEvent>,
    seeds_made: u64,
    checks_dropped: u64,
    /// The two clocks, as they were last handed in.
    clock: (Instant, SystemTime),
}

impl Mesh {
    /// A mesh without members; without a roster it has static peers only.
    pub fn new(settings: Settings, roster: Option<Roster>, now: Instant, wall: SystemTime) -> Self {
        let mut mesh = Self {
            settings,
            roster,
            peers: BTreeMap::new(),
            usernames: HashMap::new(),
            deadlines: BTreeSet::new(),
            next_sweep: now + SWEEP,
            local: Vec::new(),
            relays: Vec::new(),
            uplinks: Vec::new(),
            turns: Turns::default(),
            note: None,
            seal: None,
            news: News::default(),
            connected: BTreeSet::new(),
            services: Vec::new(),
            translator: Translator::default(),
            resolved: Resolved::default(),
            routed: BTreeSet::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            seeds_made: 0,
            checks_dropped: 0,
            clock: (now, wall),
        };
        mesh.rearrange(now);
        mesh.events.push_back(MeshEvent::Peers);
        mesh
    }

    /// Takes a whole view of the zone.
    pub fn handle_zone(
        &mut self,
        view: &BTreeMap<PublicKey, InstanceRecords>,
        now: Instant,
        wall: SystemTime,
    ) {
        self.clock = (now, wall);
        if self.roster.as_mut().is_some_and(|roster| roster.handle_zone(view, wall)) {
            self.rearrange(now);
        }
    }

    /// Takes one node's records out of the zone.
    pub fn handle_records(&mut self, records: &InstanceRecords, now: Instant, wall: SystemTime) {
        self.clock = (now, wall);
        if self.roster.as_mut().is_some_and(|roster| roster.handle_records(records, wall)) {
            self.rearrange(now);
        }
    }

    /// Takes the TXT strings of one node, kept from the last run.
    pub fn handle_remembered(&mut self, txt: &[Vec<u8>], now: Instant, wall: SystemTime) {
        self.clock = (now, wall);
        if self.roster.as_mut().is_some_and(|roster| roster.handle_remembered(txt, wall)) {
            self.rearrange(now);
        }
    }

    /// Takes the TXT strings of one node, seen on the LAN.
    pub fn handle_lan(&mut self, txt: &[Vec<u8>], now: Instant, wall: SystemTime) {
        self.clock = (now, wall);
        if self.roster.as_mut().is_some_and(|roster| roster.handle_lan(txt, wall)) {
            self.rearrange(now);
        }
    }

    /// Takes other prefixes behind this node, and other networks of its overlay addresses.
    pub fn set_place(&mut self, routes: Vec<IpNet>, overlay: Vec<IpNet>, now: Instant) {
        if self.settings.routes != routes || self.settings.overlay != overlay {
            self.settings.routes = routes;
            self.settings.overlay = overlay;
            self.rearrange(now);
        }
    }

    /// The prefixes that others claim, and those of this machine's other interfaces.
    pub fn foreign_prefixes(&self) -> impl Iterator<Item = IpNet> {
        let Claims { fixed, advertised, connected, .. } = self.claims();
        let advertised = advertised.into_iter().map(|claim| claim.route);
        let of_peers = fixed.into_iter().map(|(_, route)| route).chain(advertised);
        of_peers.chain(connected)
    }

    /// Takes this node's own candidates.
    pub fn set_candidates(&mut self, candidates: &[Candidate], now: Instant) {
        if self.local != candidates {
            self.local = candidates.to_vec();
            let local = self.local.clone();
            self.each_agent(now, |agent| agent.set_local_candidates(&local, now));
        }
    }

    /// Takes this node's own allocations on relays, best first.
    pub fn set_relays(&mut self, relays: &[LocalRelay], now: Instant) {
        if self.relays != relays {
            self.relays = relays.to_vec();
            let relays = self.relays.clone();
            self.each_agent(now, |agent| agent.set_relays(&relays, now));
        }
    }

    /// Takes the interfaces that are other ways to the Internet, and have a socket each.
    pub fn set_uplinks(&mut self, uplinks: &[u32], now: Instant) {
        if self.uplinks != uplinks {
            self.uplinks = uplinks.to_vec();
            self.each_agent(now, |agent| agent.set_uplinks(uplinks, now));
        }
    }

    /// Takes the prefixes of this machine's other interfaces.
    pub fn set_connected(&mut self, connected: BTreeSet<IpNet>, now: Instant) {
        if self.connected != connected {
            self.connected = connected;
            self.rearrange(now);
        }
    }

    /// This node's own addresses, or its NAT's, are others now: no path is sure any
    /// more until it was checked.
    pub fn handle_moved(&mut self, now: Instant) {
        self.each_agent(now, |agent| agent.local_changed(now));
    }

    /// Takes the addresses of the zone's server, the STUN servers and the static peers,
    /// which no advertised route may cover.
    pub fn set_services(&mut self, services: Vec<IpAddr>, now: Instant) {
        if self.services != services {
            self.services = services;
            self.rearrange(now);
        }
    }

    /// Takes a datagram that looks like STUN and is no answer of a STUN server.
    pub fn handle_check(&mut self, route: Route, datagram: &[u8], now: Instant) -> CheckOutcome {
        let node = Username::peek(datagram).and_then(|name| self.usernames.get(&name).copied());
        let Some(node) = node else {
            // The late second answer of a STUN server is no stranger's knock.
            return match Username::peek_request(datagram) {
                Some(_) => CheckOutcome::Stranger,
                None => CheckOutcome::Dropped,
            };
        };
        // Through the tunnel itself every peer can be reached: no path to build it on.
        let through_tunnel = self.is_overlay(route.remote.ip());
        let peer = self.peers.get_mut(&node).filter(|_| !through_tunnel);
        let taken = match peer {
            Some(peer) if Username::is_of_note(datagram) => {
                let note = peer.courier.as_mut().map(|c| c.handle_datagram(route, datagram, now));
                if let Some(Ok(Some(content))) = &note {
                    self.handle_note(&node, content, now);
                }
                matches!(note, Some(Ok(_)))
            }
            Some(Peer { agent: Some(agent), .. }) => {
                agent.handle_datagram(route, datagram, now).is_ok()
            }
            _ => false,
        };
        self.drain(&node, now);
        if taken {
            CheckOutcome::Taken
        } else {
            self.checks_dropped += 1;
            CheckOutcome::Dropped
        }
    }

    /// WireGuard has agreed on keys with this peer. Whether that is news: the first
    /// session, one from elsewhere, or one before its time or after silence; and not a
    /// renewal, of which a mesh of a thousand has several each second.
    pub fn handle_session(&mut self, node: &PublicKey, from: Route, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(node) else { return true };
        let is_renewal = peer.session.replace((now, from)).is_some_and(|(before, known)| {
            known == from && RENEWAL.contains(&now.saturating_duration_since(before))
        });
        self.handle_heard(node, from, now, now);
        !is_renewal
    }

    /// WireGuard accepted a packet of this peer, which came this way.
    pub fn handle_heard(&mut self, node: &PublicKey, from: Route, at: Instant, now: Instant) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        if peer.heard.is_some_and(|heard| heard >= at) {
            return;
        }
        peer.heard = Some(at);
        if let Some(agent) = &mut peer.agent {
            agent.note_data_received(from, at);
        }
        self.drain(node, now);
    }

    /// How many bytes WireGuard has sent to this peer so far.
    pub fn handle_sent(&mut self, node: &PublicKey, bytes: u64, now: Instant) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        if std::mem::replace(&mut peer.sent_bytes, bytes) == bytes {
            return;
        }
        Self::with_agent(&mut self.peers, node, |agent| agent.note_data_sent(now));
        self.drain(node, now);
    }

    /// There are packets for this peer, and no path.
    pub fn handle_wanted(&mut self, node: &PublicKey, now: Instant) {
        Self::with_agent(&mut self.peers, node, |agent| agent.wake(now));
        self.drain(node, now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, wall: SystemTime) {
        self.clock = (now, wall);
        while let Some((due, node)) = self.deadlines.first().copied() {
            if due > now {
                break;
            }
            Self::with_agent(&mut self.peers, &node, |agent| agent.handle_timeout(now));
            self.drain(&node, now);
            if self.deadlines.first() == Some(&(due, node)) {
                // An agent that is still due would keep the others waiting.
                self.set_deadline(&node, Some(now + Duration::from_millis(1)));
            }
        }
        if self.next_sweep <= now {
            if self.next_sweep + STOOD_STILL <= now {
                // What came meanwhile was not looked at: its absence tells nothing of a path.
                self.peers.values_mut().for_each(|peer| peer.path_since = now);
            }
            self.next_sweep = now + SWEEP;
            self.sweep(now, wall);
        }
    }

    /// The next datagram to send through WireGuard's socket.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<MeshEvent> {
        self.events.pop_front()
    }

    /// Whether there is nothing to send and nothing to do.
    pub fn is_silent(&self) -> bool {
        self.transmits.is_empty() && self.events.is_empty()
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Instant {
        let first = self.deadlines.first().map(|(due, _)| *due);
        first.map_or(self.next_sweep, |due| due.min(self.next_sweep))
    }

    /// The peers as WireGuard is to have them, the static ones too.
    pub fn wire_peers(&self) -> Vec<WirePeer> {
        let fixed = self.settings.fixed.iter().map(|(node, _)| (*node, None));
        let members =
            self.roster.iter().flat_map(|roster| roster.members()).map(|(node, member)| {
                let endpoint = match member.said() {
                    Said::Signed(_) => None,
                    Said::Bare(bare) => bare.endpoint.socket_addrs().next(),
                };
                (*node, endpoint)
            });
        let routes = |node: &PublicKey| self.resolved.routes.get(node).cloned().unwrap_or_default();
        let with_routes = |(node, endpoint)| WirePeer { node, endpoint, routes: routes(&node) };
        fixed.chain(members).map(with_routes).collect()
    }

    /// Whose routes are whose, and which claims are not followed.
    pub fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    /// Who is a member.
    pub fn roster(&self) -> Option<&Roster> {
        self.roster.as_ref()
    }

    /// How many checks were dropped: forged, replayed, or from inside the overlay.
    pub fn checks_dropped(&self) -> u64 {
        self.checks_dropped
    }

    /// A member's advert.
    pub fn advert(&self, node: &PublicKey) -> Option<&Advert> {
        self.roster.as_ref()?.get(node)?.advert()
    }

    /// Brings routes, agents and their candidates in line with the roster.
    fn rearrange(&mut self, now: Instant) {
        let resolved = self.claims().resolve();
        self.tell(&resolved.refused);
        self.routed = resolved.routes.values().flatten().copied().collect();
        self.resolved = resolved;
        let members: BTreeMap<PublicKey, bool> = self
            .roster
            .iter()
            .flat_map(|roster| roster.members())
            .map(|(node, member)| (*node, member.advert().is_some()))
            .collect();
        let gone = |node: &&PublicKey| !members.contains_key(node) && !self.is_fixed(node);
        let gone: Vec<PublicKey> = self.peers.keys().filter(gone).copied().collect();
        for node in gone {
            self.set_deadline(&node, None);
            self.peers.remove(&node);
            self.usernames.retain(|_, owner| *owner != node);
            self.turns.end(&node);
            self.news.forget(&node);
            info!(peer = %node, "forgotten");
        }
        let fixed: Vec<PublicKey> = self.settings.fixed.iter().map(|(node, _)| *node).collect();
        for node in fixed {
            self.peers.entry(node).or_insert_with(|| Peer::new(None, now));
        }
        for (node, has_advert) in members {
            let has_agent = self.peers.get(&node).is_some_and(|peer| peer.agent.is_some());
            if has_advert && !has_agent {
                let (agent, courier) = self.new_agent(&node, now).unzip();
                self.peers.insert(node, Peer { courier, ..Peer::new(agent, now) });
                self.offer_note(&node, now);
                self.announce_revocations(&node, now);
                let name = self.advert(&node).map_or("", |advert| &advert.name);
                info!(peer = %node, name, "found");
            } else if !has_advert {
                self.peers.entry(node).or_insert_with(|| Peer::new(None, now));
            }
            let remote = self.remote_candidates(&node);
            Self::with_agent(&mut self.peers, &node, |agent| {
                agent.set_remote_candidates(&remote, now);
            });
            self.drain(&node, now);
        }
        self.events.push_back(MeshEvent::Peers);
    }

    fn is_fixed(&self, node: &PublicKey) -> bool {
        self.settings.fixed.iter().any(|(fixed, _)| fixed == node)
    }

    fn new_agent(&mut self, node: &PublicKey, now: Instant) -> Option<(Agent, Courier)> {
        let Settings { own, private_key, .. } = &self.settings;
        let keys = || CheckKeys::new(private_key, own.as_bytes(), node.as_bytes());
        let (keys, courier_keys) = match keys().and_then(|one| Ok((one, keys()?))) {
            Ok(keys) => keys,
            Err(error) => {
                warn!(peer = %node, "no path can be sought: {error}");
                return None;
            }
        };
        self.usernames.insert(keys.inbound_username(), *node);
        let courier = Courier::new(courier_keys, self.next_seed(), now);
        let seed = self.next_seed();
        let mut agent = Agent::new(keys, seed, now, self.unix_ms(now));
        agent.set_local_candidates(&self.local, now);
        agent.set_relays(&self.relays, now);
        agent.set_uplinks(&self.uplinks, now);
        agent.set_hard(self.settings.hard, now);
        self.translator.tell(&mut agent, now);
        Some((agent, courier))
    }

    /// A seed of its own for each machine.
    fn next_seed(&mut self) -> [u8; 32] {
        let mut seed = self.settings.seed;
        for (byte, count) in seed.iter_mut().zip(self.seeds_made.to_le_bytes()) {
            *byte ^= count;
        }
        self.seeds_made += 1;
        seed
    }

    /// The wall clock, by the clocks as they were last handed in.
    fn wall(&self, now: Instant) -> SystemTime {
        let (then, wall) = self.clock;
        wall + now.saturating_duration_since(then)
    }

    /// Milliseconds since 1970, by the clocks as they were last handed in.
    fn unix_ms(&self, now: Instant) -> u64 {
        let since = self.wall(now).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// The candidates of a member, without those that lie inside the overlay. Where this
    /// host reaches IPv4 through a NAT64 only, each public IPv4 one also as it is reached
    /// there; as it stands, a relay may still reach it.
    fn remote_candidates(&self, node: &PublicKey) -> Vec<Candidate> {
        let advert = self.advert(node).into_iter().flat_map(|advert| &advert.candidates);
        let usable = advert
            .filter(|candidate| !self.is_overlay(candidate.addr.ip()))
            .map(|candidate| to_punch(*candidate));
        let both = |candidate: Candidate| {
            let addr = self.translator.nat64.map(|prefix| prefix.reach(candidate.addr));
            let translated = addr.filter(|addr| *addr != candidate.addr);
            translated.map(|addr| Candidate { addr, ..candidate }).into_iter().chain([candidate])
        };
        let mut candidates: Vec<Candidate> = usable.flat_map(both).collect();
        // An agent takes so many, and those that work where nothing else does stand last.
        if candidates.len() > MAX_REMOTE {
            candidates.sort_by_key(|candidate| candidate.kind != CandidateKind::Relayed);
        }
        candidates
    }

    fn sweep(&mut self, now: Instant, wall: SystemTime) {
        let peers = &self.peers;
        let heard = |node: &PublicKey| {
            let heard = peers.get(node).and_then(|peer| peer.heard);
            heard.is_some_and(|heard| now.saturating_duration_since(heard) < SILENCE_LIMIT)
        };
        if self.roster.as_mut().is_some_and(|roster| roster.forget_silent(wall, heard)) {
            self.rearrange(now);
        }
        self.ask_for_news(now);
        for (node, peer) in &self.peers {
            if peer.is_unheard(now) {
                self.events.push_back(MeshEvent::Handshake(*node));
            }
        }
        let dead: Vec<PublicKey> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.is_deaf(now))
            .map(|(node, _)| *node)
            .collect();
        for node in dead {
            info!(peer = %node, "checks pass but no WireGuard packet comes: looking for another path");
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.path_since = now;
            }
            Self::with_agent(&mut self.peers, &node, |agent| agent.note_data_dead(now));
            self.drain(&node, now);
        }
    }

    fn each_agent(&mut self, now: Instant, call: impl Fn(&mut Agent)) {
        let all: Vec<PublicKey> = self.peers.keys().copied().collect();
        for node in all {
            Self::with_agent(&mut self.peers, &node, &call);
            self.drain(&node, now);
        }
    }

    fn with_agent(
        peers: &mut BTreeMap<PublicKey, Peer>,
        node: &PublicKey,
        call: impl FnOnce(&mut Agent),
    ) {
        if let Some(agent) = peers.get_mut(node).and_then(|peer| peer.agent.as_mut()) {
            call(agent);
        }
    }

    /// Takes out of an agent all that it has to say.
    fn drain(&mut self, node: &PublicKey, now: Instant) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        let Some(agent) = &mut peer.agent else { return };
        while let Some(transmit) = agent.poll_transmit() {
            self.transmits.push_back(transmit);
        }
        let (mut path, mut released) = (None, None);
        while let Some(event) = agent.poll_event() {
            match event {
                AgentEvent::PathSelected(selected) => path = Some(Some(selected.route)),
                AgentEvent::PathLost => path = Some(None),
                // The node asks for the narrowest path when it looks.
                AgentEvent::PathMtu(_) => {}
                AgentEvent::WantTurn => self.turns.want(*node),
                AgentEvent::TurnOver => self.turns.end(node),
                AgentEvent::WantSample => self.events.push_back(MeshEvent::WantSample(*node)),
                AgentEvent::WantKnownSocket => {
                    self.events.push_back(MeshEvent::WantKnownSocket(*node));
                }
                AgentEvent::WantSockets { count } => {
                    self.events.push_back(MeshEvent::WantSockets { node: *node, count });
                }
                AgentEvent::ReleaseSockets { keep } => released = Some(keep),
            }
        }
        let is_first = !peer.has_path;
        if is_first && path.flatten().is_some() {
            // Either side may have missed what the others were told meanwhile.
            self.news.announce(peer.courier.as_mut(), now);
        }
        let mut deadline = agent.poll_timeout();
        if let Some(courier) = &mut peer.courier
            && courier.poll_timeout().is_some()
        {
            let mut routes: Vec<_> = agent.pairs().filter(|pair| pair.rtt.is_some()).collect();
            routes.sort_by_key(|pair| (!pair.selected, pair.suspect, pair.unanswered, pair.tier));
            let routes: Vec<Route> = routes.into_iter().map(|pair| pair.route).collect();
            courier.handle_timeout(&routes, now);
            // Without a route there is nothing to do until the agent has one.
            let due = courier.poll_timeout().filter(|_| !routes.is_empty());
            deadline = deadline.into_iter().chain(due).min();
        }
        while let Some(transmit) = peer.courier.as_mut().and_then(Courier::poll_transmit) {
            self.transmits.push_back(transmit);
        }
        if let Some(route) = path {
            match route {
                Some(route) => info!(peer = %node, %route, "path"),
                None => info!(peer = %node, "no path"),
            }
            peer.path_since = now;
            peer.has_path = route.is_some();
            self.events.push_back(MeshEvent::Path { node: *node, route });
            // One side is enough; the other one follows where nothing comes of it.
            if route.is_some() && is_first && self.settings.own < *node {
                self.events.push_back(MeshEvent::Handshake(*node));
            }
        }
        // After the path: what it uses is kept.
        if let Some(keep) = released {
            self.events.push_back(MeshEvent::ReleaseSockets { node: *node, keep });
        }
        self.set_deadline(node, deadline);
        self.grant_turn(now);
    }

    fn set_deadline(&mut self, node: &PublicKey, deadline: Option<Instant>) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        if peer.deadline == deadline {
            return;
        }
        if let Some(old) = peer.deadline {
            self.deadlines.remove(&(old, *node));
        }
        peer.deadline = deadline;
        if let Some(new) = deadline {
            self.deadlines.insert((new, *node));
        }
    }
}

/// A candidate of an advert in the agents' words.
pub fn to_punch(candidate: zonemesh_discovery::advert::Candidate) -> Candidate {
    let kind = match candidate.kind {
        Advertised::Host => CandidateKind::Host,
        Advertised::ServerReflexive => CandidateKind::ServerReflexive,
        Advertised::Mapped => CandidateKind::Mapped,
        Advertised::Relayed => CandidateKind::Relayed,
    };
    Candidate { kind, addr: candidate.addr }
}

#[cfg(test)]
mod tests;
