//! Those who follow the zone: each is told of a change, and then reads it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rand::RngExt;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use zonemesh_discovery::zone::poll_interval;

use crate::wire::{Stream, ZoneName, ask_udp};

/// How they hear of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By a long poll.
    Told,
    /// By a look at the serial now and then, as often as so many nodes may.
    Looking,
}

/// One subscriber's share of one change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heard {
    pub(crate) told: Instant,
    pub(crate) read: Instant,
}

/// A crowd of subscribers.
pub(crate) struct Crowd {
    tasks: JoinSet<Result<()>>,
    heard: mpsc::UnboundedReceiver<Heard>,
    count: usize,
}

impl Crowd {
    /// Starts so many, and waits until each knows the zone's serial.
    pub(crate) async fn start(
        server: SocketAddr,
        zone: &ZoneName,
        way: Way,
        count: usize,
    ) -> Result<Self> {
        let (sender, heard) = mpsc::unbounded_channel();
        let (ready, mut are_ready) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let subscriber =
                Subscriber { server, zone: zone.clone(), heard: sender.clone(), count };
            let ready = ready.clone();
            tasks.spawn(async move {
                match way {
                    Way::Told => subscriber.be_told(ready).await,
                    Way::Looking => subscriber.look(ready).await,
                }
            });
            // Nodes do not all start at once either.
            if tasks.len().is_multiple_of(50) {
                sleep(Duration::from_millis(20)).await;
            }
        }
        let mut crowd = Self { tasks, heard, count };
        for _ in 0..count {
            let ready = timeout(Duration::from_secs(60), are_ready.recv()).await;
            if !matches!(ready, Ok(Some(()))) {
                bail!("a subscriber does not come up: {:?}", crowd.tasks.try_join_next());
            }
        }
        Ok(crowd)
    }

    /// Waits until all have read a change.
    pub(crate) async fn all(&mut self, limit: Duration) -> Result<Vec<Heard>> {
        let mut all = Vec::new();
        let waiting = async {
            while all.len() < self.count {
                all.push(self.heard.recv().await.context("the subscribers are gone")?);
            }
            Ok(())
        };
        match timeout(limit, waiting).await {
            Ok(done) => done.map(|()| all),
            Err(_) => bail!(
                "only {} of {} have heard of the change; {:?}",
                all.len(),
                self.count,
                self.tasks.try_join_next()
            ),
        }
    }
}

struct Subscriber {
    server: SocketAddr,
    zone: ZoneName,
    heard: mpsc::UnboundedSender<Heard>,
    count: usize,
}

impl Subscriber {
    async fn be_told(self, ready: mpsc::UnboundedSender<()>) -> Result<()> {
        let mut stream = Stream::open(self.server).await?;
        let mut known = self.zone.serial(&stream.ask(&self.zone.soa()).await?)?;
        ready.send(())?;
        loop {
            let serial = self.zone.serial(&stream.ask(&self.zone.poll(known)).await?)?;
            if serial != known {
                self.read(known).await?;
                known = serial;
            }
        }
    }

    async fn look(self, ready: mpsc::UnboundedSender<()>) -> Result<()> {
        let mut known = None;
        loop {
            // One that is lost is asked again the next time.
            if let Some(answer) = ask_udp(self.server, &self.zone.soa()).await {
                let serial = self.zone.serial(&answer)?;
                match known.replace(serial) {
                    None => ready.send(())?,
                    Some(before) if before != serial => self.read(before).await?,
                    Some(_) => {}
                }
            }
            let share: f64 = rand::rng().random_range(0.8..1.2);
            let pause = if known.is_some() { poll_interval(self.count) } else { Duration::ZERO };
            sleep(pause.mul_f64(share)).await;
        }
    }

    /// Reads what has changed, by a connection of its own, as nodes do.
    async fn read(&self, since: u32) -> Result<()> {
        let told = Instant::now();
        let changes = Stream::open(self.server).await?.ask(&self.zone.ixfr(since)).await?;
        self.zone.serial(&changes)?;
        self.heard.send(Heard { told, read: Instant::now() })?;
        Ok(())
    }
}
