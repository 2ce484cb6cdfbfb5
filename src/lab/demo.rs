//! `zonemesh lab`: a mesh on this machine, to watch it work.
//!
//! Two sites behind port-restricted NATs and a public host, a zone and a STUN server;
//! a node at each of the three. What happens is told as it happens, then each path is
//! shown with the packets that the core counted on it, then how fast it is. All of it
//! is in a [`world`] of its own, which this process ends when it is interrupted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use zonemesh_discovery::identity::PublicKey;

use super::{
    member::{Identity, Member},
    nat::Kind,
    programs,
    setup::{Family, Setup, programs_for},
    world,
    zone_server::ZoneServerKind,
};

/// How long the three nodes may take to have their sessions.
const LIMIT: Duration = Duration::from_secs(30);

/// How long it is waited for what NATs do, which takes a few unanswered requests.
const LEARNING: Duration = Duration::from_secs(5);

/// How often the nodes are asked how far they are.
const POLL: Duration = Duration::from_millis(50);

/// How many pings show a path.
const PINGS: u32 = 20;

/// The bytes of an echo as `ping` sends it, before it is sealed.
const ECHO: u64 = 84;

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
const LEARNT: &str = "learnt its NAT's behaviour";

const SECONDS_PER_DAY: f64 = 24.0 * 3600.0;

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
    let (zone, _) = zone_server();
    let mut command = world::command(&programs_for(zone))?;
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

/// What will serve the zone: BIND, unless only Knot is there.
fn zone_server() -> (ZoneServerKind, &'static str) {
    if programs::present("knotd") && !programs::present("named") {
        (ZoneServerKind::Knot, "Knot")
    } else {
        (ZoneServerKind::Bind, "BIND")
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
    let start = Start::now();
    let (zone, program) = zone_server();
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
    println!("  the zone {} at {} ({program})", setup.services.zone, setup.services.zone_server);
    println!("  STUN at {} (coturn)\n", list(&setup.services.stun_servers));
    tell(start.elapsed(), "lab", "built: no packet leaves this machine");

    let mut actors = Vec::new();
    for ((name, number), (host, public)) in ["a", "b", "c"].into_iter().zip(1..).zip(hosts) {
        let member = Member::start(Identity::new(name, number), &host, &setup.services)?;
        tell(start.elapsed(), name, &format!("started, overlay address {}", member.overlay()));
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
        tell(start.elapsed(), actor.member.name(), "stopped, its advert withdrawn");
    }
    println!("\nDone. The lab is gone, with all that was in it.");
    Ok(())
}

/// Tells what the nodes reach until each has a session with each. Their logs say it,
/// and when it was; whether an advert has arrived in the zone, the zone says.
fn follow(start: Start, setup: &Setup, actors: &mut [Actor]) -> Result<()> {
    let begun = Instant::now();
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut instances: BTreeMap<String, String> = BTreeMap::new();
    loop {
        for actor in &*actors {
            let name = actor.member.name();
            if names.values().any(|known| known == name) {
                continue;
            }
            let Ok(status) = actor.member.status() else { continue };
            let key = status["node"]["public_key"].as_str().unwrap_or_default();
            let parsed: PublicKey = key.parse().context("status shows the node's key")?;
            names.insert(key.to_owned(), name.to_owned());
            instances.insert(parsed.to_base32(), name.to_owned());
        }
        let mut news: Vec<(f64, String, Step)> = Vec::new();
        for advert in setup.adverts() {
            let name = advert.split('=').next().and_then(|label| instances.get(label));
            news.extend(name.map(|name| (start.elapsed(), name.clone(), Step::advertised())));
        }
        for actor in &*actors {
            let name = actor.member.name().to_owned();
            let log = actor.member.log();
            let steps = log.lines().filter_map(|line| Some((start.of(line)?, step(line, &names)?)));
            news.extend(steps.map(|(time, step)| (time, name.clone(), step)));
        }
        news.sort_by(|(a, ..), (b, ..)| a.total_cmp(b));
        for (time, name, step) in news {
            let actor = actors.iter_mut().find(|actor| actor.member.name() == name);
            if actor.is_some_and(|actor| actor.reached.insert(step.what.clone())) {
                tell(time, &name, &format!("{}{}", step.what, step.more));
            }
        }
        let missing = actors.iter().find_map(|actor| {
            let name = actor.member.name();
            let peers = actors.iter().map(|other| other.member.name()).filter(|peer| *peer != name);
            let goals = goals(&peers.collect::<Vec<_>>());
            goals.into_iter().find(|goal| !actor.reached.contains(goal)).map(|goal| (actor, goal))
        });
        let Some((actor, goal)) = missing else {
            // Worth a moment, but no path depends on it.
            let all_learnt = actors.iter().all(|actor| actor.reached.contains(LEARNT));
            if all_learnt || begun.elapsed() > LEARNING {
                return Ok(());
            }
            thread::sleep(POLL);
            continue;
        };
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

/// Something that a node has reached.
struct Step {
    what: String,
    /// What more there is to say of it.
    more: String,
}

impl Step {
    fn advertised() -> Self {
        Self { what: ADVERTISED.to_owned(), more: String::new() }
    }
}

/// The steps that every node must reach, in the order of their dependence.
fn goals(peers: &[&str]) -> Vec<String> {
    let mut goals = vec![GATHERED.to_owned(), ADVERTISED.to_owned()];
    for step in [found, punched, session] {
        goals.extend(peers.iter().map(|peer| step(peer)));
    }
    goals
}

fn found(peer: &str) -> String {
    format!("found the advert of {peer}")
}

fn punched(peer: &str) -> String {
    format!("opened a direct path to {peer}")
}

fn session(peer: &str) -> String {
    format!("made a WireGuard session with {peer}")
}

/// What a line of a node's log says to have been reached. `names` has the nodes' names
/// by their keys.
fn step(line: &str, names: &BTreeMap<String, String>) -> Option<Step> {
    // The last value of a line has no space behind it.
    let line = format!("{line} ");
    let field = |name: &str| {
        let (_, value) = line.split_once(&format!(" {name}="))?;
        value.split(' ').next()
    };
    let says = |message: &str| line.contains(&format!(": {message} "));
    let peer = || names.get(field("peer")?);
    let (what, more) = if says("reflexive addresses") {
        let (_, list) = line.split_once("reflexive=[")?;
        let addresses = list.trim_end().strip_suffix(']').filter(|list| !list.is_empty())?;
        (GATHERED.to_owned(), format!(": {addresses} from outside"))
    } else if says("NAT behaviour") && field("filtering")? != "unknown" {
        let told = format!(": mapping {}, filtering {}", field("mapping")?, field("filtering")?);
        (LEARNT.to_owned(), told)
    } else if says("found") {
        (found(peer()?), String::new())
    } else if says("path") {
        (punched(peer()?), format!(": {}", field("route")?))
    } else if says("session") {
        (session(peer()?), String::new())
    } else {
        return None;
    };
    Some(Step { what, more })
}

/// When the lab was started, by both clocks: nodes write wall-clock time in their logs.
#[derive(Clone, Copy)]
struct Start {
    instant: Instant,
    /// Seconds since midnight, UTC.
    of_day: f64,
}

impl Start {
    fn now() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { instant: Instant::now(), of_day: since_1970.as_secs_f64() % SECONDS_PER_DAY }
    }

    fn elapsed(self) -> f64 {
        self.instant.elapsed().as_secs_f64()
    }

    /// How long after the start a line of a log was written. It begins with a time as
    /// 2026-01-31T12:34:56.789012Z.
    fn of(self, line: &str) -> Option<f64> {
        let (_, time) = line.split_whitespace().next()?.strip_suffix('Z')?.split_once('T')?;
        let mut parts = time.splitn(3, ':');
        let mut part = || parts.next()?.parse::<f64>().ok();
        let of_day = part()? * 3600.0 + part()? * 60.0 + part()?;
        Some((of_day - self.of_day).rem_euclid(SECONDS_PER_DAY))
    }
}

/// Prints a line of the table of paths.
fn show_path(setup: &Setup, from: &Actor, to: &Actor) -> Result<()> {
    let (a, b) = (from.member.name(), to.member.name());
    let before = setup.lab.traffic()?;
    let pings = from.member.ping(to.member.overlay(), PINGS)?;
    let seen = setup.lab.traffic()?.since(&before).between(from.public, to.public);
    let peer = from.member.peer(b)?;
    let kind = peer["path"]["kind"].as_str().unwrap_or("none").to_owned();
    println!(
        "  {:<10}{kind:<10}{:<30}{:>8.2} ms   {}/{} answered   {} packets, {} bytes",
        format!("{a} - {b}"),
        format!("{} - {}", from.public, to.public),
        pings.rtt_ms,
        pings.received,
        pings.sent,
        seen.packets,
        seen.bytes,
    );
    // Every echo and every reply must have come by.
    if !pings.all_answered() || seen.bytes < 2 * u64::from(PINGS) * ECHO {
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

fn tell(time: f64, who: &str, what: &str) {
    println!("{time:>8.3} s  {who:<5}{what}");
}

fn list(items: &[impl Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The end of a log.
fn tail(log: &str) -> String {
    let skipped = log.lines().count().saturating_sub(TAIL);
    log.lines().skip(skipped).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_from_a_log() {
        let names = BTreeMap::from([("HC4e+A=".to_owned(), "b".to_owned())]);
        let told = |line: &str| step(line, &names).map(|step| step.what + &step.more);
        let time = "2026-11-23T03:06:51.162510Z  INFO zonemesh";
        for (line, expected) in [
            ("::mesh: found peer=HC4e+A= name=\"b\"", "found the advert of b"),
            (
                "::node: session peer=HC4e+A= from=198.18.4.2:51822",
                "made a WireGuard session with b",
            ),
            (
                "::mesh: path peer=HC4e+A= route=[2001:2::2]:51822",
                "opened a direct path to b: [2001:2::2]:51822",
            ),
            (
                "::node: reflexive addresses reflexive=[198.18.3.2:1, [2001:2::2]:1]",
                "gathered its addresses: 198.18.3.2:1, [2001:2::2]:1 from outside",
            ),
        ] {
            assert_eq!(told(&format!("{time}{line}")).as_deref(), Some(expected));
        }
        assert_eq!(told(&format!("{time}::node: session peer=unknown from=1")), None);
        assert_eq!(told("no log at all"), None);
    }

    #[test]
    fn times_of_a_log_count_from_the_start_also_over_midnight() {
        let start = Start { instant: Instant::now(), of_day: SECONDS_PER_DAY - 1.0 };
        let after = start.of("2026-11-23T00:00:00.500000Z  INFO zonemesh: up").expect("a time");
        assert!((after - 1.5).abs() < 1e-6, "{after}");
        assert_eq!(start.of("stack backtrace:"), None);
    }
}
