//! coturn as the STUN server of a lab: Binding, and with two addresses of one
//! family RFC 5780 as well.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use super::process::{Daemon, Protocol};

/// How long coturn may take to open its sockets; it takes about a second.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running `turnserver`, killed when it is dropped.
#[derive(Debug)]
pub struct StunServer {
    daemon: Daemon,
    addresses: Vec<SocketAddr>,
}

impl StunServer {
    /// Starts a server on these addresses and this port, and on the port above it
    /// for RFC 5780. `command` makes the command that runs a program where the
    /// server shall stand; `dir` takes its files.
    ///
    /// # Errors
    /// When it cannot be started or does not open its sockets in time.
    pub fn start(
        command: impl Fn(&str) -> Command,
        dir: &Path,
        listen: &[IpAddr],
        port: u16,
    ) -> Result<Self> {
        let dir = dir.join(format!("turnserver-{port}"));
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let mut turnserver = command("turnserver");
        turnserver.arg("-n").args(["--listening-port", &port.to_string()]);
        turnserver.args(["--stun-only", "--no-tcp", "--no-tls", "--no-dtls", "--no-cli"]);
        turnserver.args(["--log-file", "stdout", "--simple-log"]);
        turnserver.arg("--pidfile").arg(dir.join("pid")).arg("--db").arg(dir.join("db"));
        for ip in listen {
            turnserver.args(["--listening-ip", &ip.to_string()]);
        }
        let mut daemon = Daemon::spawn("turnserver", &mut turnserver, &dir.join("log"))?;
        let process = daemon.process();
        daemon.wait_ready(START_LIMIT, || process.bound(Protocol::Udp, port) >= listen.len())?;
        let addresses = listen.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        Ok(Self { daemon, addresses })
    }

    /// The addresses to ask, in the order given.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// Kills it.
    pub fn stop(&mut self) {
        self.daemon.kill();
    }
}
