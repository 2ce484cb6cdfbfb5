//! A rendezvous for a lab: a network's administrator and `zonemesh serve`, on one public host.
//!
//! Zone, STUN server and relay in one process, and a token that admits nodes: a mesh of
//! zonemesh alone, as its first users start it.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    namespace::run,
    net::Host,
    process::{Daemon, Protocol},
};

/// How long `zonemesh serve` may take to open its sockets.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The prefixes of the network.
const ROUTES: &str = "10.42.0.0/16";

const DNS_PORT: u16 = 53;
const STUN_PORT: u16 = 3478;

/// A rendezvous that runs, or has run; killed when it is dropped.
#[derive(Debug)]
pub struct Rendezvous {
    host: Host,
    zone: String,
    ip: IpAddr,
    executable: PathBuf,
    folder: PathBuf,
    token: String,
    daemon: Option<Daemon>,
    starts: usize,
}

impl Rendezvous {
    /// Makes a network, with `options` as `zonemesh network init` takes them, and serves it
    /// at the host's addresses of IPv4. `folder` holds what this and the nodes write.
    ///
    /// # Errors
    /// When the network cannot be made, or the server does not start.
    pub fn start(
        host: &Host,
        zone: &str,
        options: &[&str],
        executable: &Path,
        folder: &Path,
    ) -> Result<Self> {
        let ip = host.ipv4();
        let dir = folder.join("rendezvous");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let mut rendezvous = Self {
            host: host.clone(),
            zone: zone.to_owned(),
            ip,
            executable: executable.to_owned(),
            folder: folder.to_owned(),
            token: String::new(),
            daemon: None,
            starts: 0,
        };
        let server = SocketAddr::new(ip, DNS_PORT).to_string();
        let init = ["init", zone, "--routes", ROUTES, "--server", &server];
        let made = rendezvous.network(&[&init, options].concat())?;
        // What was made, and in the last line the first token.
        let token = made.lines().last().filter(|line| line.starts_with("zm1"));
        rendezvous.token = token.context("`network init` shows a token")?.to_owned();
        let listen = host.addresses.iter().filter(|address| address.is_ipv4());
        let listen: Vec<String> =
            listen.map(|address| SocketAddr::new(*address, STUN_PORT).to_string()).collect();
        let configuration = format!(
            "[serve]\nlisten = {listen:?}\n[serve.zone]\nnetwork = \"network.toml\"\n\
             data_dir = \"zone\"\n",
        );
        fs::write(dir.join("zonemesh.toml"), configuration)?;
        rendezvous.restart()?;
        Ok(rendezvous)
    }

    /// Runs a command of the network's administrator, such as `invite`, and hands back what
    /// it says.
    ///
    /// # Errors
    /// When it fails.
    pub fn network(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.host.namespace.command(&self.executable.to_string_lossy());
        command.arg("network").args(arguments).arg("--dir").arg(self.dir());
        run(&mut command, "")
    }

    /// The token that came with the network.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The zone's name.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// Where nodes find it.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The host that it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The `zonemesh` that it runs, and that nodes will run.
    pub fn executable(&self) -> &Path {
        &self.executable
    }

    /// The folder that holds a folder for each node.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its own folder: the network's files, its configuration and its zone.
    pub fn dir(&self) -> PathBuf {
        self.folder.join("rendezvous")
    }

    /// What it has logged since it was started last.
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// The number of its process while it runs.
    pub fn process(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::id)
    }

    /// Kills it (SIGKILL): it cannot take leave of anybody.
    pub fn stop(&mut self) {
        // Its drop kills it.
        self.daemon = None;
    }

    /// Starts it again, with the zone as its journal has it; kills it first if it runs.
    ///
    /// # Errors
    /// When it cannot be started or does not open its sockets in time.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        let dir = self.dir();
        let mut command = self.host.namespace.command(&self.executable.to_string_lossy());
        command.arg("serve").arg("-c").arg(dir.join("zonemesh.toml"));
        self.starts += 1;
        let log = dir.join(format!("{}.log", self.starts));
        let mut daemon = Daemon::spawn("zonemesh serve", &mut command, &log)?;
        let process = daemon.process();
        let sockets = [DNS_PORT, STUN_PORT]
            .into_iter()
            .flat_map(|port| [(Protocol::Udp, port), (Protocol::Tcp, port)]);
        daemon.wait_ready(START_LIMIT, || {
            sockets.clone().all(|(protocol, port)| process.bound(protocol, port) > 0)
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }
}
