//! The zone of a large mesh: `zonemesh serve` beside BIND, in the same run.
//!
//! A thousand nodes are simulated by this one process, each server has a zone of its own on
//! a loopback address, and both take turns. Measured are
//!
//! * updates per second, each an advert of another node over a connection of its own, and on
//!   disk when it is acknowledged: ours checks the certificate that the advert bears, BIND
//!   the TSIG of the zone's key;
//! * how long it takes from the moment that a node begins to publish a change until every
//!   subscriber has been told of it, and has read it by IXFR;
//! * the memory of the server after all that.
//!
//! `NODES` sets another number of nodes. Needs BIND; `make bench-zone` sees to that.

mod members;
mod servers;
mod subscribers;
mod wire;

use std::{
    env,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::task::JoinSet;
use zonemesh::lab::programs;
use zonemesh_discovery::{advert::SignedAdvert, zone::ZoneClient};

use self::{
    members::Members,
    servers::{Kind, Server},
    subscribers::{Crowd, Heard, Way},
    wire::ZoneName,
};

/// The zone's name.
const ZONE: &str = "mesh.example";

/// How many updates are on their way at a time.
const LANES: usize = 64;

/// Changes that are watched on their way to all: told ones, and looked-for ones, each of which
/// takes as long as the slowest look.
const TOLD_CHANGES: usize = 100;
const LOOKED_CHANGES: usize = 3;

/// How long a change may take to reach all.
const REACH: Duration = Duration::from_secs(60);

/// What is promised at a thousand nodes.
const MEDIAN_MS: f64 = 100.0;
const UPDATES_PER_S: f64 = 500.0;
const MEMORY_MB: f64 = 100.0;

fn main() -> Result<ExitCode> {
    programs::require(&["named"])?;
    let nodes = match env::var("NODES") {
        Ok(text) => text.parse().context("NODES is a number")?,
        Err(_) => 1000,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut rows = Vec::new();
        for kind in [Kind::Zonemesh, Kind::Bind] {
            println!("{kind}, {nodes} nodes");
            rows.push(measure(kind, nodes).await.with_context(|| kind.to_string())?);
        }
        print(&rows);
        Ok(judge(&rows[0]))
    })
}

/// What one server has shown.
struct Row {
    kind: Kind,
    joins_per_s: f64,
    updates_per_s: f64,
    told: Spread,
    read: Spread,
    memory_mb: f64,
    most_memory_mb: f64,
}

/// Of milliseconds.
#[derive(Debug, Clone, Copy)]
struct Spread {
    median: f64,
    p99: f64,
    last: f64,
}

async fn measure(kind: Kind, nodes: usize) -> Result<Row> {
    let server = Server::start(kind)?;
    let members = Members::new(nodes, &server.network)?;
    let joins_per_s = publish(&server, members.adverts(1)?).await?;
    println!("  {joins_per_s:.0} joins per second");
    let updates_per_s = publish(&server, members.adverts(2)?).await?;
    println!("  {updates_per_s:.0} updates per second");
    let (way, changes) = match kind {
        Kind::Zonemesh => (Way::Told, TOLD_CHANGES),
        Kind::Bind => (Way::Looking, LOOKED_CHANGES),
    };
    let (told, read) = follow(&server, &members, way, changes).await?;
    println!("  told: {told:?}, read: {read:?}");
    let (memory_mb, most_memory_mb) = server.memory_mb()?;
    Ok(Row { kind, joins_per_s, updates_per_s, told, read, memory_mb, most_memory_mb })
}

/// Publishes adverts as nodes do, many at a time: how many a second.
async fn publish(server: &Server, adverts: Vec<SignedAdvert>) -> Result<f64> {
    let count = adverts.len();
    let start = Instant::now();
    let mut lanes = JoinSet::new();
    let mut waiting = adverts.into_iter();
    loop {
        while lanes.len() < LANES
            && let Some(advert) = waiting.next()
        {
            let client: ZoneClient = server.client();
            lanes.spawn(async move { client.publish(&advert).await });
        }
        match lanes.join_next().await {
            Some(done) => done??,
            None => break,
        }
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// Follows changes on their way to all: when they were told, and when they had read them.
async fn follow(
    server: &Server,
    members: &Members,
    way: Way,
    changes: usize,
) -> Result<(Spread, Spread)> {
    let zone = ZoneName::new(ZONE);
    let mut crowd = Crowd::start(server.address(), &zone, way, members.len()).await?;
    let (mut told, mut read) = (Vec::new(), Vec::new());
    let client = server.client();
    for change in 0..changes {
        let advert = members.advert(change % members.len(), 3 + change as u64)?;
        let start = Instant::now();
        client.publish(&advert).await?;
        for Heard { told: at, read: done } in crowd.all(REACH).await? {
            let ms = |at: Instant| at.duration_since(start).as_secs_f64() * 1e3;
            told.push(ms(at));
            read.push(ms(done));
        }
    }
    Ok((Spread::of(told), Spread::of(read)))
}

impl Spread {
    fn of(mut all: Vec<f64>) -> Self {
        all.sort_by(f64::total_cmp);
        let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize];
        Self { median: at(0.5), p99: at(0.99), last: at(1.0) }
    }
}

fn print(rows: &[Row]) {
    println!(
        "\n{:<16}{:>9}{:>11}{:>27}{:>27}{:>16}",
        "", "joins/s", "updates/s", "told of a change (ms)", "read it (ms)", "memory (MB)"
    );
    println!(
        "{:<16}{:>20}{:>27}{:>27}{:>16}",
        "", "", "median / p99 / last", "median / p99 / last", "now / most"
    );
    for row in rows {
        let spread =
            |Spread { median, p99, last }: Spread| format!("{median:.0} / {p99:.0} / {last:.0}");
        println!(
            "{:<16}{:>9.0}{:>11.0}{:>27}{:>27}{:>16}",
            row.kind.to_string(),
            row.joins_per_s,
            row.updates_per_s,
            spread(row.told),
            spread(row.read),
            format!("{:.0} / {:.0}", row.memory_mb, row.most_memory_mb),
        );
    }
}

/// Whether ours does what is promised.
fn judge(row: &Row) -> ExitCode {
    let kept = row.told.median < MEDIAN_MS
        && row.updates_per_s >= UPDATES_PER_S
        && row.most_memory_mb < MEMORY_MB;
    if kept {
        return ExitCode::SUCCESS;
    }
    eprintln!(
        "promised are less than {MEDIAN_MS} ms, {UPDATES_PER_S} updates a second, less than \
         {MEMORY_MB} MB"
    );
    ExitCode::FAILURE
}
