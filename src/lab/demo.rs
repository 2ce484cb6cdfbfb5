//! `zonemesh lab`: a mesh on this machine, to watch it work.
//!
//! Two sites behind port-restricted NATs and a public host, a zone and a STUN server;
//! a node at each of the three. What happens is told as it happens, then each path is
//! shown with the packets that the core counted on it, then how fast it is. All of it
//! is in a [`world`] of its own, which this process ends when it is interrupted.

use std::{
    collections::BTreeSet,
    fmt::Display,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use zonemesh_discovery::identity::PublicKey;

use super::{
    member::{Identity, Member, find_peer},
    nat::Kind,
    programs,
    setup::{Family, Setup, ZoneProgram},
    world,
};

/// How long the three nodes may take to have their sessions.
const LIMIT: Duration = Duration::from_secs(30);

/// How often the nodes are asked how far they are.
const POLL: Duration = Duration::from_millis(50);

/// How many pings show a path.
const PINGS: u32 = 20;

/// How long data is sent to show how fast a path is.
const TRANSFER: Duration = Duration::from_secs(3);

/// Where the receiver of that data listens, and how much is handed over at once.
const TRANSFER_PORT: u16 = 9000;
const BLOCK: usize = 128 * 1024;

/// How long the world may take to end once its lifeline is cut.
const END_LIMIT: Duration = Duration::from_secs(10);

/// The steps of a node alone, which come before those with its peers.
const GATHERED: &str = "gathered its addresses";
const ADVERTISED: &str = "advertised itself in the zone";

/// How many lines of a log a failed step shows.
const TAIL: usize = 20;

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
    let mut command = world::command()?;
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

/// A node, where the core sees it, and how far it is known to be.
struct Actor {
    member: Member,
    public: IpAddr,
    reached: BTreeSet<String>,
}

/// Builds the lab and shows it.
fn show() -> Result<()> {
    let start = Instant::now();
    let zone = if programs::present("named") { ZoneProgram::Bind } else { ZoneProgram::Knot };
    let mut setup = Setup::new(zone, Family::Ipv4, &std::env::current_exe()?)?;
    let mut site_a = setup.lab.site("nat-a", Kind::PortRestricted, "192.168.1.0/24")?;
    let mut site_b = setup.lab.site("nat-b", Kind::PortRestricted, "192.168.2.0/24")?;
    let hosts = [(site_a.host("a")?, site_a.public()), (site_b.host("b")?, site_b.public()), {
        let host = setup.lab.public_host("c", 1)?;
        let public = host.ipv4();
        (host, public)
    }];
    println!("Two sites behind port-restricted NATs, and a public host:\n");
    println!("  a  {:<14} behind {}", hosts[0].0.ipv4(), hosts[0].1);
    println!("  b  {:<14} behind {}", hosts[1].0.ipv4(), hosts[1].1);
    println!("  c  {:<14} public", hosts[2].1);
    println!("  the zone {} at {} ({zone})", setup.services.zone, setup.services.zone_server);
    println!("  STUN at {} (coturn)\n", list(&setup.services.stun_servers));
    tell(start, "lab", "built: no packet leaves this machine");

    let mut actors = Vec::new();
    for ((name, number), (host, public)) in ["a", "b", "c"].into_iter().zip(1..).zip(hosts) {
        let member = Member::start(Identity::new(name, number), &host, &setup.services)?;
        tell(start, name, &format!("started, overlay address {}", member.overlay()));
        actors.push(Actor { member, public, reached: BTreeSet::new() });
    }
    follow(start, &setup, &mut actors)?;

    println!("\nPaths, with {PINGS} pings each:\n");
    println!(
        "  {:<10}{:<10}{:<30}{:>11}   {:<16}seen by the core",
        "", "path", "between", "round trip", "pings"
    );
    for (from, to) in [(0, 1), (0, 2), (1, 2)] {
        show_path(&setup, &actors[from], &actors[to])?;
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
        tell(start, actor.member.name(), "stopped, its advert withdrawn");
    }
    println!("\nDone. The lab is gone, with all that was in it.");
    Ok(())
}

/// Tells what the nodes reach until each has a session with each.
fn follow(start: Instant, setup: &Setup, actors: &mut [Actor]) -> Result<()> {
    let names: Vec<String> = actors.iter().map(|actor| actor.member.name().to_owned()).collect();
    let begun = Instant::now();
    loop {
        let adverts = setup.adverts();
        for actor in &mut *actors {
            let Ok(status) = actor.member.status() else { continue };
            for (step, more) in steps(&status, &adverts, &names) {
                if !actor.reached.contains(&step) {
                    tell(start, actor.member.name(), &format!("{step}{more}"));
                    actor.reached.insert(step);
                }
            }
        }
        let missing = actors.iter().find_map(|actor| {
            let goals = goals(actor.member.name(), &names);
            goals.into_iter().find(|goal| !actor.reached.contains(goal)).map(|goal| (actor, goal))
        });
        let Some((actor, goal)) = missing else { return Ok(()) };
        if begun.elapsed() > LIMIT {
            bail!(
                "after {} s, {} has not {goal}; the end of its log:\n{}",
                LIMIT.as_secs(),
                actor.member.name(),
                tail(&actor.member.log())
            );
        }
        thread::sleep(POLL);
    }
}

/// The steps that every node must reach, in the order of their dependence.
fn goals(name: &str, names: &[String]) -> Vec<String> {
    let mut goals = vec![GATHERED.to_owned(), ADVERTISED.to_owned()];
    for step in [found, punched, session] {
        goals.extend(names.iter().filter(|peer| *peer != name).map(|peer| step(peer)));
    }
    goals
}

fn found(peer: &str) -> String {
    format!("found {peer} in the zone")
}

fn punched(peer: &str) -> String {
    format!("opened a direct path to {peer}")
}

fn session(peer: &str) -> String {
    format!("made a WireGuard session with {peer}")
}

/// What a status shows to have been reached: each step, and what more there is to say.
fn steps(status: &Value, adverts: &[String], names: &[String]) -> Vec<(String, String)> {
    let node = &status["node"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut steps = Vec::new();
    let reflexive: Vec<String> =
        node["reflexive"].as_array().into_iter().flatten().map(text).collect();
    if !reflexive.is_empty() {
        steps.push((GATHERED.to_owned(), format!(": {} from outside", list(&reflexive))));
    }
    let (mapping, filtering) = (text(&node["nat"]["mapping"]), text(&node["nat"]["filtering"]));
    if !mapping.is_empty() && mapping != "unknown" {
        let told = format!(": mapping {mapping}, filtering {filtering}");
        steps.push(("learnt its NAT's behaviour".to_owned(), told));
    }
    let key: Option<PublicKey> = text(&node["public_key"]).parse().ok();
    if key.is_some_and(|key| adverts.iter().any(|name| name.starts_with(&key.to_base32()))) {
        steps.push((ADVERTISED.to_owned(), String::new()));
    }
    for name in names {
        let Some(peer) = find_peer(status, name) else { continue };
        steps.push((found(name), String::new()));
        if peer["path"]["kind"] == "direct" {
            steps.push((punched(name), format!(": {}", text(&peer["path"]["remote"]))));
        }
        if peer["last_handshake_s"].is_number() {
            steps.push((session(name), String::new()));
        }
    }
    steps
}

/// Prints a line of the table of paths.
fn show_path(setup: &Setup, from: &Actor, to: &Actor) -> Result<()> {
    let (a, b) = (from.member.name(), to.member.name());
    let before = setup.lab.traffic()?;
    let pings = from.member.ping(to.member.overlay(), PINGS)?;
    let packets = setup.lab.traffic()?.since(&before).between(from.public, to.public);
    let peer = from.member.peer(b)?;
    let kind = peer["path"]["kind"].as_str().unwrap_or("none").to_owned();
    println!(
        "  {:<10}{kind:<10}{:<30}{:>8.2} ms   {}/{} answered   {packets} packets",
        format!("{a} - {b}"),
        format!("{} - {}", from.public, to.public),
        pings.rtt_ms,
        pings.received,
        pings.sent,
    );
    // An echo and its reply are a packet each.
    if !pings.all_answered() || packets < 2 * u64::from(PINGS) {
        bail!(
            "{a} and {b} have no direct path that works: look at their logs\n{}\n{}",
            tail(&from.member.log()),
            tail(&to.member.log())
        );
    }
    Ok(())
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

fn tell(start: Instant, who: &str, what: &str) {
    println!("{:>7.2} s  {who:<5}{what}", start.elapsed().as_secs_f64());
}

fn list(items: &[impl Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The end of a log.
fn tail(log: &str) -> String {
    let skipped = log.lines().count().saturating_sub(TAIL);
    log.lines().skip(skipped).collect::<Vec<_>>().join("\n")
}
