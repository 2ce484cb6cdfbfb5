//! What a mesh costs while nobody uses it: packets and bytes per minute, counted at the
//! core of the lab.
//!
//! Three sites behind port-restricted NATs, with a zone, STUN servers and a relay; every
//! pair has a direct path, and the relay is kept warm. Nothing is sent over the overlay.
//! Printed is what each node sends to each peer, and to each of the services, which is
//! the same however many peers there are. Needs root; `make bench-idle`.

use std::{
    env,
    net::IpAddr,
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use zonemesh::lab::{
    member::{Identity, Member, find_peer},
    nat::Kind,
    relay_server::RelayKind,
    setup::{Family, Setup, programs_for},
    traffic::{Count, Traffic},
    world,
    zone_server::ZoneServerKind,
};

/// How long the nodes may take to have direct paths to each other.
const READY: Duration = Duration::from_secs(30);

/// How long it takes until all that follows a start is over: the measuring of the NATs
/// and of the paths, and the first rounds of probing.
const CALM: Duration = Duration::from_secs(120);

/// How long it is counted unless `IDLE_SECONDS` says otherwise: several keepalives of each
/// peer, and a renewal of keys.
const SECONDS: u64 = 300;

const NODES: [&str; 3] = ["a", "b", "c"];

fn main() -> ExitCode {
    world::in_own(&programs_for(ZoneServerKind::Bind), measure)
}

fn measure() -> Result<()> {
    let executable = Path::new(env!("CARGO_BIN_EXE_zonemesh"));
    let mut setup = Setup::new(ZoneServerKind::Bind, Family::Ipv4, executable)?;
    setup.add_relay(RelayKind::Coturn)?;
    let mut members = Vec::new();
    for (name, number) in NODES.into_iter().zip(1..) {
        let lan = format!("192.168.{number}.0/24");
        let mut site = setup.lab.site(&format!("nat-{name}"), Kind::PortRestricted, &lan)?;
        let host = site.host(name)?;
        let member = Member::start(Identity::new(name, number), &host, &setup.services)?;
        members.push((member, site.public()));
    }
    for (member, _) in &mut members {
        let from = member.name().to_owned();
        for other in NODES.into_iter().filter(|name| *name != from) {
            member.wait_for("a direct path", READY, |status| {
                (find_peer(status, other)?["path"]["kind"] == "direct").then_some(())
            })?;
        }
    }
    let seconds = match env::var("IDLE_SECONDS") {
        Ok(text) => text.parse().context("IDLE_SECONDS is a number")?,
        Err(_) => SECONDS,
    };
    println!("three nodes, all paths direct; waiting {} s until it is calm", CALM.as_secs());
    thread::sleep(CALM);
    let (before, start) = (setup.lab.traffic()?, Instant::now());
    thread::sleep(Duration::from_secs(seconds));
    let traffic = setup.lab.traffic()?.since(&before);
    let minutes = start.elapsed().as_secs_f64() / 60.0;
    report(&setup, &members, &traffic, minutes)
}

fn report(
    setup: &Setup,
    members: &[(Member, IpAddr)],
    traffic: &Traffic,
    minutes: f64,
) -> Result<()> {
    println!("\nper minute, over {minutes:.1} minutes            packets     bytes");
    let mut most = 0.0f64;
    for (from, public) in members {
        for (to, other) in members.iter().filter(|(_, other)| other != public) {
            let count = traffic.sent(*public, *other);
            most = most.max(count.packets as f64 / minutes);
            line(&format!("{} to its peer {}", from.name(), to.name()), count, minutes);
        }
    }
    for (from, public) in members {
        let services = setup.service_ips();
        let sent: Count = services.iter().map(|ip| traffic.sent(*public, *ip)).sum();
        line(&format!("{} to zone, STUN and relay", from.name()), sent, minutes);
    }
    // One packet in 25 seconds is 2.4 in a minute; a handshake every two minutes and what
    // it says at once are one and a half more.
    println!("\nat most {most:.1} packets a minute from a node to an idle peer");
    if most > 4.0 {
        bail!("more than a keepalive each 25 s and a handshake each two minutes");
    }
    Ok(())
}

fn line(what: &str, count: Count, minutes: f64) {
    let (packets, bytes) = (count.packets as f64 / minutes, count.bytes as f64 / minutes);
    println!("  {what:<36}{packets:>10.1}{bytes:>10.0}");
}
