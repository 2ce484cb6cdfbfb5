//! Reads the zone: the others' adverts.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, mpsc, watch},
    time::{sleep, sleep_until},
};
use zonemesh_discovery::{
    advert::SignedAdvert,
    identity::PublicKey,
    zone::{Browser, View, ZoneClient, ZoneError, find_server, poll_interval},
};

use super::{
    Servers, Settings, ZoneEvent,
    pace::{Backoff, Health, jittered},
};
use crate::node::Event;

/// Between two looks at the zone there is at least this, however much knocks.
const MIN_POLL_GAP: Duration = Duration::from_millis(300);

/// How many looks out of turn may follow each other; one more is allowed with every
/// look in turn. So whoever knocks without end doubles the questions and no more.
pub(super) const MAX_HURRIES: u32 = 3;

/// After so many failures in a row (some minutes) the zone's server is looked for anew.
const FIND_AGAIN: u32 = 10;

/// A record of ours that the zone lost is put back no more often than this.
const MEND_GAP: Duration = Duration::from_secs(15);

/// After so long with another server the first one is tried again: it is the primary, which
/// has the news first and takes updates.
const RETURN_AFTER: Duration = Duration::from_secs(60);

/// Reads the zone.
pub(super) struct Reader {
    pub(super) settings: Settings,
    pub(super) asked: mpsc::Receiver<Option<PublicKey>>,
    pub(super) mend: Arc<Notify>,
    pub(super) advert: watch::Receiver<Option<Arc<SignedAdvert>>>,
    pub(super) events: mpsc::Sender<Event>,
}

impl Reader {
    pub(super) async fn run(mut self, found: watch::Sender<Servers>) {
        let mut backoff = Backoff::default();
        let mut health = Health::new("cannot read the zone", "the zone answers again");
        let Some(servers) = self.servers().await else { return };
        let mut followed = Followed::new(self.clients(servers));
        let mut failures = 0;
        let mut last_mend: Option<Instant> = None;
        let mut lost = false;
        let mut members = 0;
        let mut hurries = MAX_HURRIES;
        loop {
            found.send_if_modified(|known| followed.tell(known));
            let (server, polled) = followed.look().await;
            let outcome = ZoneEvent::Browse(server, health.note(&polled));
            if self.events.send(Event::Zone(outcome)).await.is_err() {
                return;
            }
            let Ok(polled) = polled else {
                followed.turn();
                failures += 1;
                if failures == FIND_AGAIN {
                    failures = 0;
                    self.find_again(&mut followed).await;
                }
                self.pause(sleep(backoff.next()), &mut hurries).await;
                continue;
            };
            backoff = Backoff::default();
            failures = 0;
            if let Some(view) = polled {
                members = view.instances.len();
                lost = self.is_lost(&view);
                if self.events.send(Event::Zone(ZoneEvent::View(view))).await.is_err() {
                    return;
                }
            }
            // Also where the zone has not changed since: it will not by itself.
            if lost && last_mend.is_none_or(|last| last.elapsed() > MEND_GAP) {
                lost = false;
                last_mend = Some(Instant::now());
                self.mend.notify_one();
            }
            let rest = followed.browser().rest(jittered(poll_interval(members)));
            let knocker = self.pause(rest, &mut hurries).await;
            // Where it fails, the look at the whole zone that follows says why.
            if let Some(node) = knocker
                && let Ok(Some(records)) = followed.browser().find(&node).await
                && self.events.send(Event::Zone(ZoneEvent::Found(records))).await.is_err()
            {
                return;
            }
        }
    }

    /// The configured servers, or those that the zone's SOA names.
    async fn servers(&self) -> Option<Vec<SocketAddr>> {
        if !self.settings.servers.is_empty() {
            return Some(self.settings.servers.clone());
        }
        let mut backoff = Backoff::default();
        let mut health = Health::new("cannot find the zone's server", "found the zone's server");
        loop {
            let found = find_server(&self.settings.zone).await;
            match (health.note(&found), found) {
                (_, Ok(servers)) if !servers.is_empty() => return Some(servers),
                (Err(error), _) => {
                    let told = Event::Zone(ZoneEvent::NoServer(error));
                    if self.events.send(told).await.is_err() {
                        return None;
                    }
                }
                _ => {}
            }
            sleep(backoff.next()).await;
        }
    }

    fn clients(&self, servers: Vec<SocketAddr>) -> Vec<ZoneClient> {
        let Settings { zone, tsig, seal, .. } = &self.settings;
        let client =
            |server| ZoneClient::new(zone.clone(), server, tsig.clone()).sealed(seal.clone());
        servers.into_iter().map(client).collect()
    }

    /// The zone's server may have moved, where the configuration does not name it.
    async fn find_again(&self, followed: &mut Followed) {
        if !self.settings.servers.is_empty() {
            return;
        }
        let Ok(found) = find_server(&self.settings.zone).await else { return };
        let known = followed.servers.all();
        let is_known = |at: &SocketAddr| known.iter().any(|client| client.server() == *at);
        if !found.iter().all(is_known) {
            *followed = Followed::new(self.clients(found));
        }
    }

    /// Whether the zone shows something else of this node than was published last.
    fn is_lost(&self, view: &View) -> bool {
        let Some(advert) = self.advert.borrow().clone() else { return false };
        view.instances.get(&self.settings.node).is_none_or(|records| records.txt != advert.txt())
    }

    /// Waits, or until somebody asks who still may; gives the node that is asked for.
    async fn pause(
        &mut self,
        pause: impl Future<Output = ()>,
        hurries: &mut u32,
    ) -> Option<PublicKey> {
        let start = tokio::time::Instant::now();
        tokio::select! {
            () = pause => {
                *hurries = (*hurries + 1).min(MAX_HURRIES);
                None
            }
            Some(node) = self.asked.recv(), if *hurries > 0 => {
                *hurries -= 1;
                sleep_until(start + MIN_POLL_GAP).await;
                node
            }
        }
    }
}

/// The servers, each with its browser, so that one that comes back is asked for what
/// changed since and not for everything.
struct Followed {
    servers: Servers,
    browsers: Vec<Browser>,
    /// When the first one was tried last.
    tried: Instant,
    /// Whether there is something about the servers to tell.
    changed: bool,
}

impl Followed {
    /// `clients` are one at least.
    fn new(clients: Vec<ZoneClient>) -> Self {
        let browsers = clients.iter().map(|client| Browser::new(client.clone())).collect();
        let servers = Servers::new(clients);
        Self { servers, browsers, tried: Instant::now(), changed: true }
    }

    /// Looks at the zone. Another server is looked at only where one fails, and the first
    /// again before long.
    async fn look(&mut self) -> (SocketAddr, Result<Option<View>, ZoneError>) {
        let at = self.servers.at();
        if at != 0 && self.tried.elapsed() >= RETURN_AFTER {
            self.tried = Instant::now();
            if let Ok(polled) = self.browsers[0].poll().await {
                self.turn_to(0);
                return (self.servers.all()[0].server(), Ok(polled));
            }
        }
        (self.servers.all()[at].server(), self.browsers[at].poll().await)
    }

    fn browser(&mut self) -> &mut Browser {
        &mut self.browsers[self.servers.at()]
    }

    /// Goes on to the next server.
    fn turn(&mut self) {
        let at = self.servers.at();
        if at == 0 {
            self.tried = Instant::now();
        }
        self.turn_to((at + 1) % self.browsers.len());
    }

    fn turn_to(&mut self, at: usize) {
        self.changed |= self.servers.turn_to(at);
    }

    /// Tells of the servers, where there is something to tell.
    fn tell(&mut self, known: &mut Servers) -> bool {
        if self.changed {
            known.clone_from(&self.servers);
        }
        std::mem::take(&mut self.changed)
    }
}
