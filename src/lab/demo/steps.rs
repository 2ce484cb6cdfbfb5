//! What nodes reach, step by step, as their logs tell it and when it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail};

use super::{tail, tell};
use crate::lab::member::Member;

/// How long the three nodes may take to have their sessions.
const LIMIT: Duration = Duration::from_secs(30);

/// How long it is waited for what NATs do, which takes a few unanswered requests.
const LEARNING: Duration = Duration::from_secs(5);

/// How often the nodes are asked how far they are.
const POLL: Duration = Duration::from_millis(50);

/// The steps of a node alone, which come before those with its peers.
const GATHERED: &str = "gathered its addresses";
const ADDRESSED: &str = "took its part of the network";
const ADVERTISED: &str = "advertised itself in the zone";
const LEARNT: &str = "learnt its NAT's behaviour";

const SECONDS_PER_DAY: f64 = 24.0 * 3600.0;

/// A node, where the core sees it, and how far it is known to be.
pub(super) struct Actor {
    pub(super) member: Member,
    pub(super) public: IpAddr,
    reached: BTreeSet<String>,
}

impl Actor {
    /// A node that was started just now.
    pub(super) fn new(member: Member, public: IpAddr) -> Self {
        Self { member, public, reached: BTreeSet::new() }
    }
}

/// Tells what the nodes reach until each has a session with each, and a direct path. Their
/// logs say it, and when it was. `relay` is the relay's address.
pub(super) fn follow(start: Start, actors: &mut [Actor], relay: IpAddr) -> Result<()> {
    let begun = Instant::now();
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    loop {
        for actor in &*actors {
            let name = actor.member.name();
            if names.values().any(|known| known == name) {
                continue;
            }
            let Ok(status) = actor.member.status() else { continue };
            let key = status["node"]["public_key"].as_str().unwrap_or_default();
            names.insert(key.to_owned(), name.to_owned());
        }
        let mut news: Vec<(f64, String, Step)> = Vec::new();
        for actor in &*actors {
            let name = actor.member.name().to_owned();
            let log = actor.member.log();
            let steps =
                log.lines().filter_map(|line| Some((start.of(line)?, step(line, &names, relay)?)));
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

/// The steps that every node must reach, in the order of their dependence.
fn goals(peers: &[&str]) -> Vec<String> {
    let mut goals = vec![GATHERED.to_owned(), ADDRESSED.to_owned(), ADVERTISED.to_owned()];
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

fn relayed(peer: &str) -> String {
    format!("reached {peer} by the relay")
}

fn session(peer: &str) -> String {
    format!("made a WireGuard session with {peer}")
}

/// What a line of a node's log says to have been reached. `names` has the nodes' names
/// by their keys.
fn step(line: &str, names: &BTreeMap<String, String>, relay: IpAddr) -> Option<Step> {
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
    } else if says("this node's slice") {
        (ADDRESSED.to_owned(), format!(": {}", field("slice")?))
    } else if says("advert published") {
        (ADVERTISED.to_owned(), String::new())
    } else if says("found") {
        (found(peer()?), String::new())
    } else if says("path") {
        // By this node's relay, or at the address that the peer has on one.
        let remote: SocketAddr = field("route")?.parse().ok()?;
        if line.contains(" by relay ") || remote.ip() == relay {
            (relayed(peer()?), String::new())
        } else {
            (punched(peer()?), format!(": {remote}"))
        }
    } else if says("session") {
        (session(peer()?), String::new())
    } else {
        return None;
    };
    Some(Step { what, more })
}

/// When the lab was started, by both clocks: nodes write wall-clock time in their logs.
#[derive(Clone, Copy)]
pub(super) struct Start {
    instant: Instant,
    /// Seconds since midnight, UTC.
    of_day: f64,
}

impl Start {
    pub(super) fn now() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { instant: Instant::now(), of_day: since_1970.as_secs_f64() % SECONDS_PER_DAY }
    }

    pub(super) fn elapsed(self) -> f64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_from_a_log() {
        let names = BTreeMap::from([("HC4e+A=".to_owned(), "b".to_owned())]);
        let relay = "198.18.1.2".parse().expect("an address");
        let told = |line: &str| step(line, &names, relay).map(|step| step.what + &step.more);
        let time = "2026-11-23T03:06:51.162510Z  INFO zonemesh";
        for (line, expected) in [
            ("::mesh: found peer=HC4e+A= name=\"b\"", "found the advert of b"),
            (
                "::node: session peer=HC4e+A= from=198.18.4.2:51822",
                "made a WireGuard session with b",
            ),
            (
                "::node::slice: this node's slice slice=10.42.7.0/24",
                "took its part of the network: 10.42.7.0/24",
            ),
            (
                "::mesh: path peer=HC4e+A= route=[2001:2::2]:51822",
                "opened a direct path to b: [2001:2::2]:51822",
            ),
            (
                "::mesh: path peer=HC4e+A= route=198.18.4.2:51820 by relay 0",
                "reached b by the relay",
            ),
            ("::mesh: path peer=HC4e+A= route=198.18.1.2:60000", "reached b by the relay"),
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
