//! How fast the data plane is, beside boringtun's own `boringtun-cli`, in the same run.
//!
//! Two namespaces joined by a veth pair, no NAT, one tunnel with an MTU of 1420, one TCP
//! stream of iperf3 over it. The implementations take turns, so that what else the machine
//! does hits both. Needs root, iperf3, wireguard-tools and
//! `cargo install boringtun-cli --version 0.7.1`; `make bench` sees to that.

use std::{
    env, fs,
    path::Path,
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use data_encoding::BASE64;
use zonemesh::{
    lab::{
        namespace::{Namespace, run},
        process::Daemon,
        programs, world,
    },
    state::State,
};
use zonemesh_discovery::identity::Identity;

/// Turns of each implementation.
const ROUNDS: usize = 5;

/// Seconds of one turn: long enough for TCP to have found its speed.
const SECONDS: &str = "5";

/// How long a tunnel may take to come up.
const READY: Duration = Duration::from_secs(10);

/// WireGuard's usual MTU, which `boringtun-cli` has to be told.
const MTU: u16 = 1420;

const PORT: u16 = 51820;

fn main() -> ExitCode {
    if !world::is_inside() && !programs::present("boringtun-cli") {
        eprintln!("missing: boringtun-cli; cargo install boringtun-cli --version 0.7.1");
        return ExitCode::FAILURE;
    }
    world::in_own(&["iperf3", "ss", "wg"], compare)
}

/// One end of the tunnel.
struct End {
    namespace: Namespace,
    interface: String,
    folder: String,
    identity: Identity,
    underlay: String,
    overlay: String,
}

impl End {
    fn new(name: &str, number: u8) -> Result<Self> {
        let folder = format!("/run/{name}");
        Ok(Self {
            namespace: Namespace::add(name)?,
            interface: format!("tun-{name}"),
            identity: State::open(Path::new(&folder))?.identity()?,
            folder,
            underlay: format!("10.99.0.{number}"),
            overlay: format!("10.42.0.{number}"),
        })
    }

    fn log(&self) -> String {
        format!("{}/log", self.folder)
    }
}

fn compare() -> Result<()> {
    let ends = [End::new("a", 1)?, End::new("b", 2)?];
    ends[0].namespace.ip("link add eth0 type veth peer name eth0 netns b")?;
    for end in &ends {
        end.namespace.ip(&format!("addr add {}/24 dev eth0\nlink set eth0 up", end.underlay))?;
    }
    for end in &ends {
        end.namespace.wait_for_links(&["eth0"])?;
    }
    let turns = [Implementation::Zonemesh, Implementation::Boringtun];
    let mut speeds = [Vec::new(), Vec::new()];
    for round in 1..=ROUNDS {
        for (speeds, turn) in speeds.iter_mut().zip(turns) {
            let speed = measure(&ends, turn).with_context(|| format!("{turn:?}"))?;
            println!("round {round}: {speed:5.2} Gbit/s  {turn:?}");
            speeds.push(speed);
        }
    }
    let [ours, theirs] = speeds.map(median);
    println!(
        "median:  {ours:5.2} Gbit/s  zonemesh\n         {theirs:5.2} Gbit/s  boringtun-cli\n\
         ratio:   {:5.2}",
        ours / theirs
    );
    if ours <= theirs {
        bail!("slower than boringtun-cli");
    }
    Ok(())
}

fn median(mut speeds: Vec<f64>) -> f64 {
    speeds.sort_by(f64::total_cmp);
    speeds[speeds.len() / 2]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Implementation {
    Zonemesh,
    Boringtun,
}

fn measure(ends: &[End; 2], implementation: Implementation) -> Result<f64> {
    let mut daemons = Vec::new();
    for (end, other) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
        daemons.push(match implementation {
            Implementation::Zonemesh => zonemesh(end, other)?,
            Implementation::Boringtun => boringtun(end, other)?,
        });
    }
    wait("the tunnel carries packets", || {
        ends[0].namespace.run("ping", &["-c", "1", "-W", "1", &ends[1].overlay]).is_ok()
    })
    .with_context(|| daemons.iter().map(Daemon::log).collect::<String>())?;
    let mut server = ends[1].namespace.command("iperf3");
    server.args(["-s", "-1"]);
    let mut server = Daemon::spawn("iperf3", &mut server, "/run/iperf3.log".as_ref())?;
    wait("iperf3 listens", || {
        ends[1].namespace.run("ss", &["-Hltn", "sport = :5201"]).is_ok_and(|out| !out.is_empty())
    })?;
    let report = ends[0].namespace.run("iperf3", &["-J", "-t", SECONDS, "-c", &ends[1].overlay])?;
    server.kill();
    // One after the other, so that none is left when the next turn begins.
    daemons.iter_mut().for_each(Daemon::kill);
    let report: serde_json::Value = serde_json::from_str(&report)?;
    let speed = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(speed.context("iperf3 reports a speed")? / 1e9)
}

fn zonemesh(end: &End, other: &End) -> Result<Daemon> {
    let End { folder, interface, overlay, .. } = end;
    let config = format!("{folder}/zonemesh.toml");
    fs::write(
        &config,
        format!(
            "[node]\nstate_dir = \"{folder}\"\n\
             [interface]\nname = \"{interface}\"\nlisten_port = {PORT}\nmtu = {MTU}\n\
             addresses = [\"{overlay}/24\"]\n\
             [control]\nsocket = \"{folder}/control.sock\"\n\
             [[peer]]\npublic_key = \"{}\"\nendpoint = \"{}:{PORT}\"\nroutes = [\"{}/32\"]\n",
            other.identity.public_key(),
            other.underlay,
            other.overlay,
        ),
    )?;
    let mut command = end.namespace.command(env!("CARGO_BIN_EXE_zonemesh"));
    command.args(["up", "-c", &config]);
    Ok(Daemon::spawn("zonemesh", &mut command, end.log().as_ref())?)
}

fn boringtun(end: &End, other: &End) -> Result<Daemon> {
    let mut command = end.namespace.command("boringtun-cli");
    command.args(["--foreground", "--disable-drop-privileges", &end.interface]);
    let socket = format!("/run/wireguard/{}.sock", end.interface);
    // Left by the turn before, which was killed; the first one has none.
    let _ = fs::remove_file(&socket);
    let mut daemon = Daemon::spawn("boringtun-cli", &mut command, end.log().as_ref())?;
    daemon.wait_ready(READY, || fs::exists(&socket).unwrap_or(false))?;
    let config = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n\
         [Peer]\nPublicKey = {}\nEndpoint = {}:{PORT}\nAllowedIPs = {}/32\n",
        BASE64.encode(&end.identity.wireguard_private_key()),
        other.identity.public_key(),
        other.underlay,
        other.overlay,
    );
    let mut wg = Command::new("wg");
    run(wg.args(["setconf", &end.interface, "/dev/stdin"]), &config)?;
    end.namespace.ip(&format!(
        "addr add {}/24 dev {name}\nlink set {name} mtu {MTU} up",
        end.overlay,
        name = end.interface
    ))?;
    Ok(daemon)
}

fn wait(what: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !ready() {
        if start.elapsed() > READY {
            bail!("gave up waiting until {what}");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
