//! The tasks that talk to the zone: one publishes this node's advert, one browses
//! the others', one asks for STUN servers and one for relays.
//!
//! They stand outside the control loop because a server may take seconds to answer
//! or not answer at all, and none owns any state that the loop needs: the advert
//! to publish comes in by a watch, what was read goes out as events. A zone that is
//! away, refuses or answers rubbish is told once per kind of failure, shows in
//! `status`, and is asked again with growing pauses; nothing else depends on it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::RngExt;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::{sleep, sleep_until, timeout},
};
use tracing::{debug, info, warn};
use zonemesh_discovery::{
    advert::{InstanceRecords, SignedAdvert, Zone},
    identity::PublicKey,
    zone::{Browser, TsigKey, ZoneClient, ZoneError, find_server, poll_interval},
};

use crate::{
    node::Event,
    relays::{RelayServer, resolve},
};

/// The DNS-SD service under which a zone names its STUN servers (RFC 8489 §8).
pub(crate) const STUN_SERVICE: &str = "_stun._udp";

/// The pauses after failures: doubled from the first to the last. A zone that comes
/// back is noticed within half a minute; one that is away is not stormed.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Between two looks at the zone there is at least this, however much knocks.
const MIN_POLL_GAP: Duration = Duration::from_millis(300);

/// How many looks out of turn may follow each other; one more is allowed with every
/// look in turn. So whoever knocks without end doubles the questions and no more.
const MAX_HURRIES: u32 = 3;

/// After so many failures in a row (some minutes) the zone's server is looked for anew.
const FIND_AGAIN: u32 = 10;

/// How often the zone is asked for its STUN servers and relays: services move rarely.
const SERVICES_INTERVAL: Duration = Duration::from_secs(600);

/// How often a zone without relays is asked for some: longer than for STUN servers, which
/// every zone should have.
const NO_RELAYS_INTERVAL: Duration = Duration::from_secs(120);

/// A record of ours that the zone lost is put back no more often than this.
const MEND_GAP: Duration = Duration::from_secs(15);

/// How long the withdrawal at stop may take: a zone that is away must not hold up
/// a shutdown.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(2);

/// What the tasks tell the control loop.
#[derive(Debug)]
pub enum ZoneEvent {
    /// The whole view of the zone, after a change.
    View(BTreeMap<PublicKey, InstanceRecords>),
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
    /// The zone's server could not be found.
    NoServer(String),
}

/// What the tasks need to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The zone.
    pub zone: Zone,
    /// Its server; `None` asks for the SOA's MNAME.
    pub server: Option<SocketAddr>,
    /// The key that signs updates and transfers.
    pub tsig: Option<TsigKey>,
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
    client: watch::Receiver<Option<ZoneClient>>,
    node: PublicKey,
    tasks: Vec<JoinHandle<()>>,
}

impl Rendezvous {
    /// Starts them.
    pub fn start(settings: Settings, events: mpsc::Sender<Event>) -> Self {
        let (advert, advert_seen) = watch::channel(None);
        let (client_found, client) = watch::channel(None);
        let (asks, asked) = mpsc::channel(MAX_HURRIES as usize);
        let mend = Arc::new(Notify::new());
        let node = settings.node;
        let publisher = Publisher {
            advert: advert_seen.clone(),
            client: client.clone(),
            mend: Arc::clone(&mend),
            node,
            events: events.clone(),
        };
        let services = Services { client: client.clone(), events: events.clone() };
        let stun = settings.ask_stun.then(|| tokio::spawn(services.clone().ask_stun()));
        let relays = settings.ask_relays.then(|| tokio::spawn(services.ask_relays()));
        let reader = Reader { settings, asked, mend, advert: advert_seen, events };
        let mut tasks = vec![tokio::spawn(publisher.run()), tokio::spawn(reader.run(client_found))];
        tasks.extend(stun.into_iter().chain(relays));
        Self { advert, asks, client, node, tasks }
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

    /// Whether a task has ended by itself: none does, but for a panic.
    pub fn has_failed(&self) -> bool {
        self.tasks.iter().any(JoinHandle::is_finished)
    }

    /// Ends the tasks and takes this node's records out of the zone.
    pub async fn stop(self) {
        self.abort();
        let client = self.client.borrow().clone();
        let published = self.advert.borrow().is_some();
        let Some(client) = client.filter(|_| published) else { return };
        match timeout(WITHDRAW_LIMIT, client.withdraw(&self.node)).await {
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

/// Keeps the zone's records of this node those of the newest advert.
struct Publisher {
    advert: watch::Receiver<Option<Arc<SignedAdvert>>>,
    client: watch::Receiver<Option<ZoneClient>>,
    mend: Arc<Notify>,
    node: PublicKey,
    events: mpsc::Sender<Event>,
}

impl Publisher {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut health = Health::new("cannot publish", "published again");
        loop {
            let client = self.client.borrow_and_update().clone();
            let advert = self.advert.borrow_and_update().clone();
            let (Some(client), Some(advert)) = (client, advert) else {
                let alive = tokio::select! {
                    changed = self.advert.changed() => changed.is_ok(),
                    changed = self.client.changed() => changed.is_ok(),
                };
                if !alive {
                    return;
                }
                continue;
            };
            let done = client.publish(&advert).await;
            let told = health.note(&done);
            let outcome = ZoneEvent::Publish(client.server(), told);
            if self.events.send(Event::Zone(outcome)).await.is_err() {
                return;
            }
            if done.is_err() {
                // A newer advert does not hurry a server that is away.
                sleep(backoff.next()).await;
                continue;
            }
            backoff = Backoff::default();
            debug!(sequence = advert.advert().sequence, "advert published");
            // The PTR is a hint: large zones refuse it, and members that list the
            // zone by transfer do without.
            if let Err(error) = client.announce(&self.node).await {
                debug!("no PTR in the zone: {error}");
            }
            let alive = tokio::select! {
                changed = self.advert.changed() => changed.is_ok(),
                () = self.mend.notified() => true,
            };
            if !alive {
                return;
            }
        }
    }
}

/// Reads the zone.
struct Reader {
    settings: Settings,
    asked: mpsc::Receiver<Option<PublicKey>>,
    mend: Arc<Notify>,
    advert: watch::Receiver<Option<Arc<SignedAdvert>>>,
    events: mpsc::Sender<Event>,
}

impl Reader {
    async fn run(mut self, client_found: watch::Sender<Option<ZoneClient>>) {
        let mut backoff = Backoff::default();
        let mut health = Health::new("cannot read the zone", "the zone answers again");
        let Some(servers) = self.servers().await else { return };
        // Each server keeps its browser, so that one that comes back is asked for what
        // changed since and not for everything.
        let mut servers = self.browsers(servers);
        let mut failures = 0;
        let mut last_mend: Option<Instant> = None;
        let mut lost = false;
        let mut members = 0;
        let mut hurries = MAX_HURRIES;
        loop {
            let Some((client, browser)) = servers.first_mut() else { return };
            client_found.send_if_modified(|known| {
                let moved = known.as_ref().map(ZoneClient::server) != Some(client.server());
                if moved {
                    *known = Some(client.clone());
                }
                moved
            });
            let polled = browser.poll().await;
            let outcome = ZoneEvent::Browse(client.server(), health.note(&polled));
            if self.events.send(Event::Zone(outcome)).await.is_err() {
                return;
            }
            let Ok(polled) = polled else {
                // Another server is tried only where one fails.
                servers.rotate_left(1);
                failures += 1;
                if failures == FIND_AGAIN {
                    failures = 0;
                    self.find_again(&mut servers).await;
                }
                self.pause(backoff.next(), &mut hurries).await;
                continue;
            };
            backoff = Backoff::default();
            failures = 0;
            if let Some(view) = polled {
                members = view.len();
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
            let knocker = self.pause(jittered(poll_interval(members)), &mut hurries).await;
            if let Some(node) = knocker
                && let Some((_, browser)) = servers.first_mut()
            {
                // Where it fails, the look at the whole zone that follows says why.
                if let Ok(Some(records)) = browser.find(&node).await
                    && self.events.send(Event::Zone(ZoneEvent::Found(records))).await.is_err()
                {
                    return;
                }
            }
        }
    }

    /// The configured server, or those that the zone's SOA names.
    async fn servers(&self) -> Option<Vec<SocketAddr>> {
        if let Some(server) = self.settings.server {
            return Some(vec![server]);
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

    fn browsers(&self, servers: Vec<SocketAddr>) -> Vec<(ZoneClient, Browser)> {
        let Settings { zone, tsig, .. } = &self.settings;
        let clients =
            servers.into_iter().map(|server| ZoneClient::new(zone.clone(), server, tsig.clone()));
        clients.map(|client| (client.clone(), Browser::new(client))).collect()
    }

    /// The zone's server may have moved, where the configuration does not name it.
    async fn find_again(&self, servers: &mut Vec<(ZoneClient, Browser)>) {
        if self.settings.server.is_some() {
            return;
        }
        let Ok(found) = find_server(&self.settings.zone).await else { return };
        let is_known = |at: &SocketAddr| servers.iter().any(|(client, _)| client.server() == *at);
        if !found.iter().all(is_known) {
            *servers = self.browsers(found);
        }
    }

    /// Whether the zone shows something else of this node than was published last.
    fn is_lost(&self, view: &BTreeMap<PublicKey, InstanceRecords>) -> bool {
        let Some(advert) = self.advert.borrow().clone() else { return false };
        view.get(&self.settings.node).is_none_or(|records| records.txt != advert.txt())
    }

    /// Waits, or until somebody asks who still may; gives the node that is asked for.
    async fn pause(&mut self, pause: Duration, hurries: &mut u32) -> Option<PublicKey> {
        let start = tokio::time::Instant::now();
        tokio::select! {
            () = sleep_until(start + pause) => {
                *hurries = (*hurries + 1).min(MAX_HURRIES);
                None
            }
            Some(node) = self.asked.recv(), if *hurries > 0 => {
                *hurries -= 1;
                sleep_until(start + MIN_POLL_GAP.min(pause)).await;
                node
            }
        }
    }
}

/// Asks for the zone's STUN servers and relays. By themselves, because it is the system's
/// resolver that finds those outside of the zone, and that may take its time.
#[derive(Clone)]
struct Services {
    client: watch::Receiver<Option<ZoneClient>>,
    events: mpsc::Sender<Event>,
}

impl Services {
    /// The zone's client, once there is one; `None` when the node stops.
    async fn client(&mut self) -> Option<ZoneClient> {
        loop {
            if let Some(client) = self.client.borrow_and_update().clone() {
                return Some(client);
            }
            self.client.changed().await.ok()?;
        }
    }

    async fn ask_relays(mut self) {
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

    async fn ask_stun(mut self) {
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

/// Pauses that double.
#[derive(Debug, Default)]
struct Backoff(Option<Duration>);

impl Backoff {
    fn next(&mut self) -> Duration {
        let pause = self.0.map_or(BACKOFF.0, |last| (last * 2).min(BACKOFF.1));
        self.0 = Some(pause);
        jittered(pause)
    }
}

/// Within a fifth of `pause`, so that a thousand nodes do not ask in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.8..1.2))
}

/// Tells a failure once, and its end.
struct Health {
    failed: &'static str,
    mended: &'static str,
    last: Option<String>,
}

impl Health {
    fn new(failed: &'static str, mended: &'static str) -> Self {
        Self { failed, mended, last: None }
    }

    fn note<T>(&mut self, outcome: &Result<T, ZoneError>) -> Result<(), String> {
        let error = outcome.as_ref().err().map(ToString::to_string);
        match (&error, &self.last) {
            (Some(error), last) if last.as_ref() != Some(error) => {
                warn!("{}: {error}", self.failed);
            }
            (None, Some(_)) => info!("{}", self.mended),
            _ => {}
        }
        self.last.clone_from(&error);
        error.map_or(Ok(()), Err)
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
            server: Some(SocketAddr::from(([127, 0, 0, 1], 9))),
            tsig: None,
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
