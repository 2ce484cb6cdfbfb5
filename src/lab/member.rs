//! A node of the lab: the real executable, run as its users run it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{namespace::run, net::Host, process::Daemon, rendezvous::Rendezvous};

/// How long a node may take to withdraw its advert and end when it is asked to.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How often something that is waited for is looked at.
const POLL: Duration = Duration::from_millis(20);

/// How long one look for a first reply waits, as `ping -W` reads it: longer than any
/// round trip of the lab.
const FIRST_REPLY_WAIT: &str = "0.2";

/// What a lab's nodes have in common.
#[derive(Debug, Clone)]
pub struct Services {
    /// The `zonemesh` executable.
    pub executable: PathBuf,
    /// Holds a folder for each node. A world's own `/run` goes with the world.
    pub folder: PathBuf,
    /// The zone's name.
    pub zone: String,
    /// The zone's server.
    pub zone_server: SocketAddr,
    /// The TSIG key's name.
    pub tsig_name: String,
    /// The TSIG key's algorithm.
    pub tsig_algorithm: String,
    /// The TSIG key, in Base64.
    pub tsig_secret: String,
    /// The STUN servers; where empty, nodes ask the zone for them.
    pub stun_servers: Vec<SocketAddr>,
    /// The relays, if there are any.
    pub relay: Option<RelayAccess>,
}

/// What nodes must know of the relays.
#[derive(Debug, Clone)]
pub struct RelayAccess {
    /// Their URIs.
    pub servers: Vec<String>,
    /// The secret that time-limited credentials are made from.
    pub secret: String,
    /// The certificates of the authorities to trust, in PEM.
    pub ca_file: PathBuf,
}

/// Who a node is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Makes its overlay network 10.42.`number`.0/24 and its port 51820 + `number`.
    pub number: u8,
    /// Its routes, if not just its overlay network.
    pub routes: Option<Vec<String>>,
    /// Further sections of its configuration.
    pub more: String,
}

impl Identity {
    /// A node of this name and number, otherwise by default.
    pub fn new(name: &str, number: u8) -> Self {
        Self { name: name.to_owned(), number, routes: None, more: String::new() }
    }

    /// Its address in the overlay.
    pub fn overlay(&self) -> IpAddr {
        Ipv4Addr::new(10, 42, self.number, 1).into()
    }

    /// Its UDP port.
    pub fn port(&self) -> u16 {
        51_820 + u16::from(self.number)
    }

    /// Its configuration.
    fn configuration(&self, services: &Services, folder: &Path) -> String {
        let Self { name, number, .. } = self;
        let own = vec![format!("10.42.{number}.0/24")];
        let routes = self.routes.as_ref().unwrap_or(&own);
        let folder = folder.display();
        let mut text = format!(
            "[node]\n\
             name = \"{name}\"\n\
             state_dir = \"{folder}/state\"\n\
             [interface]\n\
             name = \"{INTERFACE}\"\n\
             listen_port = {port}\n\
             addresses = [\"10.42.{number}.1/24\"]\n\
             routes = {routes:?}\n\
             [zone]\n\
             name = \"{zone}\"\n\
             server = \"{server}\"\n\
             tsig = {{ name = \"{key}\", algorithm = \"{algorithm}\", secret_file = \"tsig.key\" }}\n\
             [control]\n\
             socket = \"{folder}/control.sock\"\n",
            port = self.port(),
            zone = services.zone,
            server = services.zone_server,
            key = services.tsig_name,
            algorithm = services.tsig_algorithm,
        );
        if !services.stun_servers.is_empty() {
            let servers: Vec<String> =
                services.stun_servers.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "[stun]\nservers = {servers:?}");
        }
        if let Some(RelayAccess { servers, ca_file, .. }) = &services.relay {
            let _ = writeln!(
                text,
                "[relay]\nservers = {servers:?}\nusername_secret_file = \"relay.secret\"\n\
                 ca_file = {ca_file:?}"
            );
        }
        text.push_str(&self.more);
        text
    }
}

/// The TUN device of every node: each has a namespace to itself.
pub const INTERFACE: &str = "zm0";

/// The configuration of a node that a token tells everything else: what must differ between
/// several nodes of one machine's files.
fn joining(name: &str, folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "[node]\nname = \"{name}\"\nstate_dir = \"{folder}/state\"\n\
         [control]\nsocket = \"{folder}/control.sock\"\n\
         [network]\ntoken_file = \"token\"\n"
    )
}

/// A node that runs, or has run.
#[derive(Debug)]
pub struct Member {
    name: String,
    overlay: IpAddr,
    host: Host,
    executable: PathBuf,
    folder: PathBuf,
    daemon: Daemon,
    started: Instant,
}

/// What `ping` counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pings {
    /// Echo requests sent.
    pub sent: u64,
    /// Echo replies received.
    pub received: u64,
    /// The mean round trip in milliseconds; not a number where nothing came back.
    pub rtt_ms: f64,
}

impl Member {
    /// Starts `zonemesh up` on a host. The key is made at the first start.
    ///
    /// # Errors
    /// When a file cannot be written or the program cannot be started.
    pub fn start(identity: Identity, host: &Host, services: &Services) -> Result<Self> {
        let folder = services.folder.join(&identity.name);
        let mut secrets = vec![("tsig.key", services.tsig_secret.as_str())];
        secrets.extend(services.relay.iter().map(|relay| ("relay.secret", relay.secret.as_str())));
        let configuration = identity.configuration(services, &folder);
        let overlay = identity.overlay();
        let Identity { name, .. } = identity;
        Self::launch((name, overlay), host, &services.executable, folder, &configuration, &secrets)
    }

    /// Starts `zonemesh up` on a host with a token of the rendezvous' network and nothing else.
    /// What the node's overlay address is shows when it has one:
    /// [`wait_for_overlay`](Self::wait_for_overlay).
    ///
    /// # Errors
    /// When a file cannot be written or the program cannot be started.
    pub fn join(name: &str, host: &Host, rendezvous: &Rendezvous) -> Result<Self> {
        let folder = rendezvous.folder().join(name);
        let configuration = joining(name, &folder);
        let secrets = [("token", rendezvous.token())];
        let who = (name.to_owned(), Ipv4Addr::UNSPECIFIED.into());
        Self::launch(who, host, rendezvous.executable(), folder, &configuration, &secrets)
    }

    /// The same with any token, and prefixes of its own instead of what the network gives.
    ///
    /// # Errors
    /// When a file cannot be written or the program cannot be started.
    pub fn join_as(
        identity: Identity,
        host: &Host,
        token: &str,
        executable: &Path,
        folder: &Path,
    ) -> Result<Self> {
        let folder = folder.join(&identity.name);
        let number = identity.number;
        let routes = identity.routes.unwrap_or_else(|| vec![format!("10.42.{number}.0/24")]);
        let configuration = format!(
            "{}[interface]\nlisten_port = {}\naddresses = [\"10.42.{number}.1/24\"]\n\
             routes = {routes:?}\n{}",
            joining(&identity.name, &folder),
            51_820 + u16::from(number),
            identity.more
        );
        let who = (identity.name, Ipv4Addr::new(10, 42, number, 1).into());
        Self::launch(who, host, executable, folder, &configuration, &[("token", token)])
    }

    fn launch(
        (name, overlay): (String, IpAddr),
        host: &Host,
        executable: &Path,
        folder: PathBuf,
        configuration: &str,
        secrets: &[(&str, &str)],
    ) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for (file, secret) in secrets {
            let mut options = OpenOptions::new();
            let options = options.mode(0o600).write(true).create(true).truncate(true);
            options.open(folder.join(file))?.write_all(secret.as_bytes())?;
        }
        fs::write(folder.join("zonemesh.toml"), configuration)?;
        let (daemon, started) = spawn(&name, host, executable, &folder, 0)?;
        let (host, executable) = (host.clone(), executable.to_owned());
        Ok(Self { name, overlay, host, executable, folder, daemon, started })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address in the overlay; unspecified where it chose one and was not yet asked.
    pub fn overlay(&self) -> IpAddr {
        self.overlay
    }

    /// Waits until it has an overlay address, and hands it back.
    ///
    /// # Errors
    /// When it has none within `limit`.
    pub fn wait_for_overlay(&mut self, limit: Duration) -> Result<IpAddr> {
        let address = |status: &Value| {
            let (address, _) = status["node"]["addresses"][0].as_str()?.split_once('/')?;
            address.parse().ok()
        };
        self.overlay = self.wait_for("an overlay address", limit, address)?;
        Ok(self.overlay)
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// Where it runs.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// What it has logged since it was started.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// The lines of its log that no healthy node writes.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.log();
        let bad = |line: &&str| line.contains("ERROR") || line.contains("panicked");
        log.lines().filter(bad).map(str::to_owned).collect()
    }

    /// A command of the executable that talks to this node, such as `status`.
    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = self.host.namespace.command(&self.executable.to_string_lossy());
        command.arg(subcommand).arg("--socket").arg(self.socket());
        command
    }

    /// What `zonemesh status --json` says.
    ///
    /// # Errors
    /// When the node does not answer, or not with JSON.
    pub fn status(&self) -> Result<Value> {
        let json = run(self.command("status").arg("--json"), "")?;
        serde_json::from_str(&json).context("status prints JSON")
    }

    /// Waits until `status` shows what is looked for, and hands it back.
    ///
    /// # Errors
    /// When that does not happen within `limit`; the error carries the last status and
    /// the end of the log.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            let status = self.status();
            if let Some(found) = status.as_ref().ok().and_then(&mut look) {
                return Ok(found);
            }
            if let Some(end) = self.daemon.ended()? {
                bail!("{} ended early ({end}):\n{}", self.name(), self.log());
            }
            if start.elapsed() > limit {
                let log = self.log();
                let name = self.name();
                bail!("{name}: {what} not within {limit:?}; status: {status:?}; log:\n{log}");
            }
            thread::sleep(POLL);
        }
    }

    /// How `status` shows a peer.
    ///
    /// # Errors
    /// When the node does not answer or knows no such peer.
    pub fn peer(&self, name: &str) -> Result<Value> {
        let status = self.status()?;
        find_peer(&status, name)
            .with_context(|| format!("{} knows no peer {name}: {status}", self.name()))
    }

    /// Pings an address from this node's host, 20 times a second.
    ///
    /// # Errors
    /// When `ping` cannot be run.
    pub fn ping(&self, to: IpAddr, count: u32) -> Result<Pings> {
        self.ping_with(&[], to, count)
    }

    /// The same with further options of `ping`.
    ///
    /// # Errors
    /// When `ping` cannot be run.
    pub fn ping_with(&self, options: &[&str], to: IpAddr, count: u32) -> Result<Pings> {
        // For the answer to its last request `ping` waits no longer than one interval,
        // which a busy machine may need. So there is one more, which does not count.
        let requests = (count + 1).to_string();
        let mut command = self.host.namespace.command("ping");
        command.args(["-n", "-i", "0.05", "-W", "1", "-c", &requests]);
        command.args(options).arg(to.to_string());
        Pings::parse(&String::from_utf8_lossy(&command.output()?.stdout), count)
    }

    /// Pings an address until it answers.
    ///
    /// # Errors
    /// When it does not within `limit`; the error carries the end of the log.
    pub fn wait_for_reply(&mut self, to: IpAddr, limit: Duration) -> Result<Instant> {
        let start = Instant::now();
        loop {
            let mut command = self.host.namespace.command("ping");
            command.args(["-n", "-q", "-c", "1", "-W", FIRST_REPLY_WAIT, &to.to_string()]);
            if command.output()?.status.success() {
                return Ok(Instant::now());
            }
            if let Some(end) = self.daemon.ended()? {
                bail!("{} ended early ({end}):\n{}", self.name(), self.log());
            }
            if start.elapsed() > limit {
                let log = self.log();
                bail!("{}: no reply from {to} within {limit:?}; log:\n{log}", self.name());
            }
        }
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// When it does not, or not with success.
    pub fn stop(&mut self) -> Result<()> {
        let pid = i32::try_from(self.daemon.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a child has a number")?, Signal::TERM)?;
        let status = self.wait_for_end(STOP_LIMIT)?;
        if !status.success() {
            bail!("{} ended with {status}:\n{}", self.name(), self.log());
        }
        Ok(())
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub fn wait_for_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.daemon.ended()? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                bail!("{} does not end:\n{}", self.name(), self.log());
            }
            thread::sleep(POLL);
        }
    }

    /// Kills it (SIGKILL): it cannot clean up.
    pub fn kill(&mut self) {
        self.daemon.kill();
    }

    /// Stands it still (SIGSTOP), as a machine that sleeps, or lets it go on. Its clocks go on
    /// meanwhile.
    ///
    /// # Errors
    /// When it does not run.
    pub fn set_asleep(&self, asleep: bool) -> Result<()> {
        let pid = i32::try_from(self.daemon.id()).ok().and_then(Pid::from_raw);
        let signal = if asleep { Signal::STOP } else { Signal::CONT };
        kill_process(pid.context("a child has a number")?, signal)?;
        Ok(())
    }

    /// Starts it again after an end of either sort, with a log of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        let count = fs::read_dir(&self.folder)?.count();
        (self.daemon, self.started) =
            spawn(&self.name, &self.host, &self.executable, &self.folder, count)?;
        Ok(())
    }
}

impl Pings {
    /// Reads the output of `ping` as far as the first `count` requests are concerned.
    fn parse(output: &str, count: u32) -> Result<Self> {
        if !output.contains("packets transmitted") {
            bail!("not ping's output: {output:?}");
        }
        // An answer is "64 bytes from 10.42.1.1: icmp_seq=3 ttl=64 time=0.512 ms".
        let answer = |line: &str| {
            let field = |name: &str| line.split_once(name)?.1.split(' ').next();
            let sequence: u32 = field("icmp_seq=")?.parse().ok()?;
            Some((sequence, field("time=")?.parse::<f64>().ok()?))
        };
        let answers: BTreeMap<u32, f64> =
            output.lines().filter_map(answer).filter(|(sequence, _)| *sequence <= count).collect();
        let rtt_ms = answers.values().sum::<f64>() / answers.len() as f64;
        Ok(Self { sent: count.into(), received: answers.len() as u64, rtt_ms })
    }

    /// Whether every request was answered.
    pub fn all_answered(&self) -> bool {
        self.sent > 0 && self.received == self.sent
    }
}

/// The peer of this name in a status.
pub fn find_peer(status: &Value, name: &str) -> Option<Value> {
    let mut peers = status["peers"].as_array().into_iter().flatten();
    peers.find(|peer| peer["name"] == name).cloned()
}

fn spawn(
    name: &str,
    host: &Host,
    executable: &Path,
    folder: &Path,
    count: usize,
) -> Result<(Daemon, Instant)> {
    let mut command = host.namespace.command(&executable.to_string_lossy());
    command.arg("up").arg("-c").arg(folder.join("zonemesh.toml"));
    // What the log is read for must be in it, whatever the caller's own log shows.
    command.env_remove("RUST_LOG");
    let started = Instant::now();
    let log = folder.join(format!("{count}.log"));
    Ok((Daemon::spawn(name, &mut command, &log)?, started))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_ping_are_counted_but_for_the_last() {
        let answered = "PING 10.42.1.1 (10.42.1.1) 56(84) bytes of data.\n\
             64 bytes from 10.42.1.1: icmp_seq=1 ttl=64 time=0.100 ms\n\
             64 bytes from 10.42.1.1: icmp_seq=2 ttl=64 time=0.400 ms\n\
             64 bytes from 10.42.1.1: icmp_seq=2 ttl=64 time=0.900 ms (DUP!)\n\n\
             --- 10.42.1.1 ping statistics ---\n\
             3 packets transmitted, 2 received, 33% packet loss, time 2003ms\n";
        let pings = Pings::parse(answered, 2).expect("it is ping's output");
        assert_eq!((pings.sent, pings.received), (2, 2));
        assert!(pings.all_answered());
        assert!(!Pings::parse(answered, 3).expect("it is ping's output").all_answered());
        let silent = "2 packets transmitted, 0 received, +1 errors, 100% packet loss, time 1ms\n";
        let pings = Pings::parse(silent, 1).expect("it is ping's output");
        assert!(!pings.all_answered() && pings.rtt_ms.is_nan());
        assert!(Pings::parse("", 1).is_err());
    }
}
