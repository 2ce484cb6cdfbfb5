//! What all tasks of the zone share: the zone itself, its journal, who is connected.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::IpAddr,
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    sync::{Notify, Semaphore, oneshot, watch},
    task::yield_now,
    time::{Instant as TokioInstant, sleep, sleep_until},
};
use tracing::{debug, error, info};
use zonemesh_discovery::zone::{
    ZoneClient,
    serve::{
        News, ZoneStore,
        wire::{Answer, Counters, Forward, Now, Poll, Responder, Source, Update},
    },
};

use super::journal::Journal;
use crate::{config::ServeZoneConfig, serve::streams::source};

/// How many updates may wait to be written down: some seconds' worth on a slow disk.
const MOST_WAITING: usize = 1024;

/// How many are written down together.
const BATCH: usize = 256;

/// How often it is looked whether something has lapsed, at least.
const SWEEP: Duration = Duration::from_secs(10);

/// How many transfers one source may have at a time; the others of it wait.
const TRANSFERS_PER_SOURCE: usize = 16;

/// What telling one waiting client of a change takes, with all that it asks for then. Where
/// changes come one after the other, so many are told together that this stays within half
/// of what there is.
const TELL_ONE: Duration = Duration::from_micros(50);

/// The zone and who is there.
pub(super) struct State {
    responder: RefCell<Responder>,
    journal: RefCell<Journal>,
    /// Whether the disk failed last time, so that it is told once.
    failing: Cell<bool>,
    waiting: RefCell<Vec<Waiting>>,
    work: Notify,
    /// The serial has moved.
    moved: Notify,
    primary: Option<ZoneClient>,
    news: Notify,
    /// What those who wait are told.
    serial: watch::Sender<u32>,
    sources: RefCell<HashMap<IpAddr, Connected>>,
    connections: Cell<usize>,
    most_connections: usize,
    most_per_source: usize,
}

struct Waiting {
    update: Update,
    answer: oneshot::Sender<Vec<u8>>,
}

struct Connected {
    count: usize,
    transfers: Rc<Semaphore>,
}

impl State {
    pub(super) fn new(responder: Responder, journal: Journal, config: &ServeZoneConfig) -> Self {
        let (serial, _) = watch::channel(responder.store().serial());
        Self {
            responder: RefCell::new(responder),
            journal: RefCell::new(journal),
            failing: Cell::new(false),
            waiting: RefCell::default(),
            work: Notify::new(),
            moved: Notify::new(),
            primary: config.client(),
            news: Notify::new(),
            serial,
            sources: RefCell::default(),
            connections: Cell::new(0),
            most_connections: config.connections,
            most_per_source: config.connections_per_source,
        }
    }

    /// Takes a request.
    pub(super) fn handle(&self, wire: &[u8], source: Source) -> Answer {
        let now = Now { instant: Instant::now(), system: SystemTime::now() };
        self.responder.borrow_mut().handle(wire, source, now)
    }

    /// Answers a poll.
    pub(super) fn finish(&self, poll: Poll) -> Vec<u8> {
        self.responder.borrow_mut().finish(poll, SystemTime::now())
    }

    /// The serial, as it is told to those who wait.
    pub(super) fn serial(&self) -> watch::Receiver<u32> {
        self.serial.subscribe()
    }

    /// Whether the zone has another serial than this one.
    pub(super) fn is_newer_than(&self, known: u32) -> bool {
        self.responder.borrow().store().serial() != known
    }

    /// Looks at the zone.
    pub(super) fn with_store<T>(&self, look: impl FnOnce(&ZoneStore) -> T) -> T {
        look(self.responder.borrow().store())
    }

    /// What was done, the serial, how many nodes there are, and how large their records are.
    pub(super) fn figures(&self) -> (Counters, u32, usize, usize) {
        let responder = self.responder.borrow();
        let store = responder.store();
        (responder.counters(), store.serial(), store.nodes(), store.size())
    }

    /// How many clients are connected.
    pub(super) fn connections(&self) -> usize {
        self.connections.get()
    }

    /// Hands over an update; its answer comes when it is on disk. `None` where too many wait.
    pub(super) fn submit(&self, update: Update) -> Option<oneshot::Receiver<Vec<u8>>> {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= MOST_WAITING {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        waiting.push(Waiting { update, answer });
        self.work.notify_one();
        Some(answered)
    }

    /// Hands an update on to the primary server, and gives the answer.
    pub(super) async fn forward(&self, update: Forward) -> Vec<u8> {
        let Some(primary) = &self.primary else { return update.failed };
        match primary.forward(&update.request).await {
            Ok(answer) => answer,
            Err(error) => {
                debug!("an update was not handed on: {error}");
                update.failed
            }
        }
    }

    /// Applies updates and writes them down, those that wait together.
    pub(super) async fn write_down(self: Rc<Self>) -> anyhow::Result<()> {
        loop {
            self.work.notified().await;
            // Those that have come meanwhile come along.
            yield_now().await;
            loop {
                let batch: Vec<Waiting> = {
                    let mut waiting = self.waiting.borrow_mut();
                    let count = waiting.len().min(BATCH);
                    waiting.drain(..count).collect()
                };
                if batch.is_empty() {
                    break;
                }
                let (updates, answers): (Vec<_>, Vec<_>) =
                    batch.into_iter().map(|one| (one.update, one.answer)).unzip();
                let written = self.responder.borrow_mut().apply(
                    updates,
                    |bytes| self.append(bytes),
                    SystemTime::now(),
                );
                for (answer, wire) in answers.into_iter().zip(written) {
                    // Who does not wait any more finds out by asking.
                    let _ = answer.send(wire);
                }
                self.settle();
                yield_now().await;
            }
        }
    }

    /// Takes over what the primary server has told. Where that does not follow on what is
    /// known, the whole zone is asked for next.
    pub(super) fn follow(&self, news: News) -> io::Result<()> {
        let followed =
            self.responder.borrow_mut().follow(news, |bytes| self.append(bytes), SystemTime::now());
        self.settle();
        followed
    }

    /// The primary server is said to have news.
    pub(super) fn notify(&self) {
        self.news.notify_one();
    }

    /// Waits until it is.
    pub(super) async fn notified(&self) {
        self.news.notified().await;
    }

    /// Removes what has lapsed, when it has.
    pub(super) async fn sweep(self: Rc<Self>) -> anyhow::Result<()> {
        loop {
            let due = self.responder.borrow().store().poll_timeout();
            let pause = due.map_or(SWEEP, |due| {
                due.duration_since(SystemTime::now()).unwrap_or_default().min(SWEEP)
            });
            // Not at once again, where the disk fails.
            sleep(pause.max(Duration::from_millis(100))).await;
            self.responder.borrow_mut().sweep(|bytes| self.append(bytes), SystemTime::now());
            self.settle();
        }
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let written = self.journal.borrow_mut().append(bytes);
        match &written {
            Ok(()) if self.failing.take() => info!("the zone's journal can be written again"),
            Ok(()) => {}
            Err(failure) => {
                if !self.failing.replace(true) {
                    error!("the zone's journal cannot be written, no update is done: {failure}");
                }
            }
        }
        written
    }

    /// Sees to what follows from a change.
    fn settle(&self) {
        let responder = self.responder.borrow();
        if *self.serial.borrow() != responder.store().serial() {
            self.moved.notify_one();
        }
        if let Err(failure) = self.journal.borrow_mut().renew_if_long(responder.store()) {
            error!("the zone's journal has grown long and cannot be replaced: {failure}");
        }
    }

    /// Tells those who wait of each change: of one at once, of many in rounds.
    pub(super) async fn announce(self: Rc<Self>) -> anyhow::Result<()> {
        loop {
            self.moved.notified().await;
            let serial = self.responder.borrow().store().serial();
            self.serial.send_replace(serial);
            let waiting = u32::try_from(self.serial.receiver_count()).unwrap_or(u32::MAX);
            sleep_until(TokioInstant::now() + TELL_ONE * waiting).await;
        }
    }

    /// Lets a client in; it is gone when what is given is dropped. `None` where there are too
    /// many.
    pub(super) fn admit(self: &Rc<Self>, remote: IpAddr) -> Option<Admitted> {
        let source = source(remote);
        let mut sources = self.sources.borrow_mut();
        let from_there = sources.get(&source).map_or(0, |connected| connected.count);
        if self.connections.get() >= self.most_connections || from_there >= self.most_per_source {
            return None;
        }
        let connected = sources.entry(source).or_insert_with(|| Connected {
            count: 0,
            transfers: Rc::new(Semaphore::new(TRANSFERS_PER_SOURCE)),
        });
        connected.count += 1;
        self.connections.set(self.connections.get() + 1);
        let transfers = Rc::clone(&connected.transfers);
        Some(Admitted { state: Rc::clone(self), source, transfers })
    }
}

/// A client that is connected.
pub(super) struct Admitted {
    state: Rc<State>,
    source: IpAddr,
    /// How many transfers its source may still have at a time.
    pub(super) transfers: Rc<Semaphore>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut sources = self.state.sources.borrow_mut();
        if let Some(connected) = sources.get_mut(&self.source) {
            connected.count -= 1;
            if connected.count == 0 {
                sources.remove(&self.source);
            }
        }
        self.state.connections.set(self.state.connections.get() - 1);
    }
}
