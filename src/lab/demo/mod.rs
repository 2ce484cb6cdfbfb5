//! `zonemesh lab`: a mesh on this machine, to watch it work.
//!
//! A rendezvous on a public host, two sites behind port-restricted NATs and a third, public
//! node, joined as their operators join them: by `zonemesh network init`, `zonemesh serve`
//! and `zonemesh up --join`. What happens is told as it happens, then each path is shown
//! with the packets that the core counted on it, then how fast it is. All of it is in a
//! [`world`] of its own, which this process ends when it is interrupted, and of zonemesh
//! alone.

mod steps;

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use self::steps::{Actor, Start, follow};
use super::{member::Member, nat::Kind, net::Lab, rendezvous::Rendezvous, world};
use crate::control::{Client, Reply, Request};

/// The zone, and what holds all files. A world's `/run` goes with the world.
const ZONE: &str = "mesh.example";
const FOLDER: &str = "/run/lab";

/// How long a node may take to choose its overlay address.
const ADDRESS_LIMIT: Duration = Duration::from_secs(20);

/// How many pings show a path.
const PINGS: u16 = 20;

/// The bytes of an echo of ours as an IPv4 packet, before it is sealed.
const ECHO: u64 = 60;

/// How long data is sent to show how fast a path is.
const TRANSFER: Duration = Duration::from_secs(3);

/// Where the receiver of that data listens, and how much is handed over at once.
const TRANSFER_PORT: u16 = 9000;
const BLOCK: usize = 128 * 1024;

/// How long the world may take to end once its lifeline is cut.
const END_LIMIT: Duration = Duration::from_secs(10);

/// How many lines of a log a failed step shows.
const TAIL: usize = 20;

/// How much of a token is shown: enough to know it by.
const TOKEN_SHOWN: usize = 24;

/// Runs the lab; hands back what the process is to exit with.
///
/// # Errors
/// When it cannot be started, or a step fails: the error says what to look at.
pub fn run() -> Result<ExitCode> {
    if world::is_inside() {
        world::furnish()?;
        show()?;
        return Ok(ExitCode::SUCCESS);
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(watch_world())
}

/// Starts the world and waits for its end, or ends it when this process is to end.
async fn watch_world() -> Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut command = world::command(&[])?;
    command.arg("lab");
    let mut child = tokio::process::Command::from(command).spawn().context("cannot start it")?;
    let lifeline = child.stdin.take();
    let ended = tokio::select! {
        ended = child.wait() => Some(ended?),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    drop(lifeline);
    match ended {
        Some(status) => {
            // The world has said itself what was wrong.
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            Ok(ExitCode::from(code))
        }
        None => {
            if tokio::time::timeout(END_LIMIT, child.wait()).await.is_err() {
                child.kill().await.context("cannot end the lab")?;
            }
            println!("\nInterrupted. The lab is gone, with all that was in it.");
            Ok(ExitCode::from(world::INTERRUPTED))
        }
    }
}

/// Builds the lab and shows it.
fn show() -> Result<()> {
    let start = Start::now();
    let folder = Path::new(FOLDER);
    fs::create_dir_all(folder)?;
    let mut lab = Lab::new()?;
    // RFC 5780 wants a second address to tell a NAT's filtering.
    let hub = lab.public_host("hub", 2)?;
    let mut site_a = lab.site("nat-a", Kind::PortRestricted, "192.168.1.0/24")?;
    let mut site_b = lab.site("nat-b", Kind::PortRestricted, "192.168.2.0/24")?;
    let hosts = [(site_a.host("a")?, site_a.public()), (site_b.host("b")?, site_b.public()), {
        let host = lab.public_host("c", 1)?;
        let public = host.ipv4();
        (host, public)
    }];
    println!("A rendezvous, two sites behind port-restricted NATs, and a public node:\n");
    println!("  hub  {:<14} zone, STUN server and relay in one process", hub.ipv4());
    println!("  a    {:<14} behind {}", hosts[0].0.ipv4(), hosts[0].1);
    println!("  b    {:<14} behind {}", hosts[1].0.ipv4(), hosts[1].1);
    println!("  c    {:<14} public\n", hosts[2].1);
    tell(start.elapsed(), "lab", "built: no packet leaves this machine");

    let rendezvous = Rendezvous::start(&hub, ZONE, &[], &std::env::current_exe()?, folder)?;
    tell(start.elapsed(), "hub", &format!("zonemesh network init {ZONE} --routes 10.42.0.0/16"));
    tell(start.elapsed(), "hub", "zonemesh serve");
    let token = rendezvous.token().get(..TOKEN_SHOWN).unwrap_or_default();
    let mut actors = Vec::new();
    for (name, (host, public)) in ["a", "b", "c"].into_iter().zip(hosts) {
        let member = Member::join(name, &host, &rendezvous)?;
        tell(start.elapsed(), name, &format!("started: zonemesh up --join {token}…"));
        actors.push(Actor::new(member, public));
    }
    follow(start, &mut actors, rendezvous.ip())?;

    println!("\nPaths, with {PINGS} pings each:\n");
    println!(
        "  {:<10}{:<10}{:<30}{:>11}   {:<16}seen by the core",
        "", "path", "between", "round trip", "pings"
    );
    for actor in &mut actors {
        actor.member.wait_for_overlay(ADDRESS_LIMIT)?;
    }
    for (from, to) in [(0, 1), (0, 2), (1, 2)] {
        show_path(&lab, &actors[from], &actors[to])?;
    }

    println!("\nOne TCP connection for {} s:\n", TRANSFER.as_secs());
    for (from, to) in [(0, 1), (0, 2)] {
        let (from, to) = (&actors[from].member, &actors[to].member);
        let speed = transfer(from, to)?;
        println!("  {} to {}   {:.0} Mbit/s", from.name(), to.name(), speed / 1e6);
    }

    println!();
    for actor in &mut actors {
        actor.member.stop().context("a node did not end as it should")?;
        tell(start.elapsed(), actor.member.name(), "stopped, its advert withdrawn");
    }
    println!("\nDone. The lab is gone, with all that was in it.");
    Ok(())
}

/// Prints a line of the table of paths.
fn show_path(lab: &Lab, from: &Actor, to: &Actor) -> Result<()> {
    let (a, b) = (from.member.name(), to.member.name());
    let before = lab.traffic()?;
    let (kind, round_trips) = ping(&from.member, b)?;
    let seen = lab.traffic()?.since(&before).between(from.public, to.public);
    let answered = round_trips.len();
    println!(
        "  {:<10}{kind:<10}{:<30}{:>8.2} ms   {}/{} answered   {} packets, {} bytes",
        format!("{a} - {b}"),
        format!("{} - {}", from.public, to.public),
        round_trips.iter().sum::<f64>() / answered as f64,
        answered,
        PINGS,
        seen.packets,
        seen.bytes,
    );
    // Every echo and every reply must have come by.
    if answered != usize::from(PINGS) || seen.bytes < 2 * u64::from(PINGS) * ECHO {
        bail!(
            "{a} and {b} have no direct path that works: look at their logs\n{}\n{}",
            tail(&from.member.log()),
            tail(&to.member.log())
        );
    }
    Ok(())
}

/// Has a node ping a peer over the mesh; hands back the last answer's kind of path, and
/// the round trips in milliseconds.
fn ping(from: &Member, peer: &str) -> Result<(String, Vec<f64>)> {
    let mut client = Client::connect(&from.socket())?;
    let mut kind = "none".to_owned();
    let mut round_trips = Vec::new();
    for sequence in 1..=PINGS {
        match client.ask(&Request::Ping { peer: peer.to_owned(), sequence })? {
            Reply::Echo { rtt_ms, path, .. } => {
                round_trips.extend(rtt_ms);
                kind = path.kind.to_string();
            }
            Reply::Error { message } => bail!("{} cannot ping {peer}: {message}", from.name()),
            _ => bail!("{} answers another question", from.name()),
        }
    }
    Ok((kind, round_trips))
}

/// Sends data through the overlay for a while; hands back bits per second, as they
/// arrive.
fn transfer(from: &Member, to: &Member) -> Result<f64> {
    let address = SocketAddr::new(to.overlay(), TRANSFER_PORT);
    let listener = to.host().namespace.enter(|| TcpListener::bind(address))??;
    let mut sender = from.host().namespace.enter(|| TcpStream::connect(address))??;
    let (mut receiver, _) = listener.accept()?;
    let sending = thread::spawn(move || -> io::Result<()> {
        let start = Instant::now();
        let block = vec![0; BLOCK];
        while start.elapsed() < TRANSFER {
            sender.write_all(&block)?;
        }
        Ok(())
    });
    let start = Instant::now();
    let mut block = vec![0; BLOCK];
    let mut received = 0u64;
    loop {
        match receiver.read(&mut block)? {
            0 => break,
            count => received += count as u64,
        }
    }
    let elapsed = start.elapsed();
    match sending.join() {
        Ok(sent) => sent.context("the connection broke")?,
        Err(panic) => std::panic::resume_unwind(panic),
    }
    Ok(received as f64 * 8.0 / elapsed.as_secs_f64())
}

fn tell(time: f64, who: &str, what: &str) {
    println!("{time:>8.3} s  {who:<5}{what}");
}

/// The end of a log.
fn tail(log: &str) -> String {
    let skipped = log.lines().count().saturating_sub(TAIL);
    log.lines().skip(skipped).collect::<Vec<_>>().join("\n")
}
