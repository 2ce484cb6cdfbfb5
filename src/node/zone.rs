//! The node and its zone: what is read there, and what is said of this node.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tracing::{error, warn};
use zonemesh_discovery::{advert::SignedAdvert, identity::PublicKey, zone::View};

use super::{Node, start};
use crate::{
    mesh::own::Own,
    rendezvous::{Rendezvous, ZoneEvent},
};

/// How long two machines with one key wait before each outbids the other's advert again:
/// neither can win, and the zone and all its members must not pay for it.
const OUTBID_PAUSE: Duration = Duration::from_secs(60);

/// What it means to be outbid again and again.
pub(super) const TWIN: &str = "another machine runs with this node's key: give it one of its own";

/// What is known of the zone's server.
#[derive(Debug, Default)]
pub(super) struct ZoneState {
    pub(super) server: Option<SocketAddr>,
    pub(super) stun_servers: Vec<SocketAddr>,
    pub(super) browse_error: Option<String>,
    pub(super) publish_error: Option<String>,
    /// What it showed last, if it was read.
    pub(super) view: Option<View>,
    /// Whether it has shown a newer advert of this very node.
    pub(super) outbid: bool,
    /// Whether it has done so again: somebody else has the key, too.
    pub(super) has_twin: bool,
    /// Whether the newest advert is in it.
    pub(super) published: bool,
}

impl Node {
    pub(super) fn handle_zone(&mut self, event: ZoneEvent, now: Instant, wall: SystemTime) {
        match event {
            ZoneEvent::View(view) => {
                // First, so that nobody is taken in who is thrown out at once.
                self.handle_lists(&view.revocations, now);
                self.mesh.handle_zone(&view.instances, now, wall);
                self.handle_claims(view.claims.as_ref(), now, wall);
                self.zone.view = Some(view);
                let seen = self.mesh.roster().map_or(0, |roster| roster.own_sequence());
                if let Some(own) = &mut self.own
                    && own.outbid(seen)
                {
                    self.handle_outbid(now);
                }
            }
            ZoneEvent::Found(records) => self.mesh.handle_records(&records, now, wall),
            ZoneEvent::StunServers(servers) => {
                self.zone.stun_servers.clone_from(&servers);
                self.set_stun_servers(now);
                if let Err(error) = self.state.save_stun_servers(&servers) {
                    warn!("cannot keep the STUN servers: {error}");
                }
                self.tell_services(now);
            }
            ZoneEvent::Relays(servers) => {
                self.set_relay_servers(&servers, now);
                if let Err(error) = self.state.save_relays(&servers) {
                    warn!("cannot keep the relays: {error}");
                }
            }
            ZoneEvent::Browse(server, outcome) => {
                self.zone.server = Some(server);
                self.zone.browse_error = outcome.err();
                self.tell_services(now);
            }
            ZoneEvent::Publish(server, outcome) => {
                self.zone.server = Some(server);
                self.zone.published = outcome.is_ok();
                self.zone.publish_error = outcome.err();
            }
            ZoneEvent::Slice(answer) => self.handle_slice_answer(answer, now, wall),
            ZoneEvent::NoServer(error) => self.zone.browse_error = Some(error),
        }
    }

    /// An advert of our own key is newer than ours. Once, that is our own of a former
    /// life; whoever outbids us again is alive.
    fn handle_outbid(&mut self, now: Instant) {
        let mut due = now;
        if std::mem::replace(&mut self.zone.outbid, true) {
            warn!("{TWIN}");
            self.zone.has_twin = true;
            due += OUTBID_PAUSE;
        }
        self.due.advert = Some(self.due.advert.map_or(due, |known| known.min(due)));
    }

    /// Starts the tasks that talk to the zone again where one has panicked: that is a
    /// fault of ours, and must not be the end of all news.
    pub(super) fn revive_rendezvous(&mut self) {
        let failed = self.rendezvous.as_ref().is_some_and(Rendezvous::has_failed);
        let Some(zone) = self.config.zone.as_ref().filter(|_| failed) else { return };
        error!("a task that talks to the zone has ended: starting again");
        match start::start_rendezvous(&self.config, zone, self.public_key, &self.events) {
            Ok(rendezvous) => {
                if let Some(advert) = self.own.as_ref().and_then(Own::advert) {
                    rendezvous.publish(Arc::clone(advert));
                }
                self.rendezvous = Some(rendezvous);
                self.forget_slice_question(Instant::now());
            }
            Err(error) => warn!("{error:#}"),
        }
    }

    /// Has the advert looked at soon: at once where it is the first that knows a
    /// reflexive address.
    pub(super) fn hurry_advert(&mut self, now: Instant) {
        let has_reflexive = self.stun.reflexive().next().is_some();
        let said_before = self.own.as_ref().filter(|own| own.advert().is_some());
        let due = match (said_before, has_reflexive) {
            (Some(own), _) => now + own.delay(),
            (None, true) => now,
            // The wait for the first answer goes on.
            (None, false) => return,
        };
        self.due.advert = Some(self.due.advert.map_or(due, |known| known.min(due)));
    }

    pub(super) fn advertise(&mut self, now: Instant, wall: SystemTime) {
        let candidates = self.gather.known.candidates();
        let Some(own) = &mut self.own else { return };
        match own.refresh(&candidates, now, wall) {
            Ok(None) => {}
            Ok(Some(advert)) => {
                self.keep_sequence(advert.advert().sequence);
                self.mesh.set_own_advert(&advert, now);
                self.send_advert(&advert);
            }
            Err(error) => warn!("no advert can be made: {error}"),
        }
    }

    pub(super) fn keep_sequence(&mut self, sequence: u64) {
        if let Err(error) = self.state.save_sequence(sequence) {
            warn!("cannot keep the advert's number: {error}");
        }
    }

    fn send_advert(&mut self, advert: &Arc<SignedAdvert>) {
        self.zone.published = false;
        if let Some(rendezvous) = &self.rendezvous {
            rendezvous.publish(Arc::clone(advert));
        }
        if let Some(mdns) = &mut self.mdns
            && let Err(error) = mdns.publish(advert, self.port)
        {
            warn!("cannot advertise on the LAN: {error}");
        }
    }

    pub(super) fn ask_zone(&self, node: Option<PublicKey>) {
        if let Some(rendezvous) = &self.rendezvous {
            rendezvous.ask(node);
        }
    }

    pub(super) fn tell_services(&mut self, now: Instant) {
        let stun = self.config.stun_servers.iter().chain(&self.zone.stun_servers);
        let services = stun.chain(&self.zone.server).map(SocketAddr::ip);
        let fixed = self.config.peers.iter().filter_map(|peer| peer.endpoint).map(|at| at.ip());
        let relays = self.relays.servers().into_iter().map(|server| server.ip());
        self.mesh.set_services(services.chain(fixed).chain(relays).collect(), now);
    }
}
