//! A TURN server for a lab, on a public host: over UDP, TCP and TLS, with time-limited
//! credentials and a certificate by an authority of its own.

use std::{
    fmt::{self, Write as _},
    fs::{self, OpenOptions},
    io::Write as _,
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    namespace::run,
    net::Host,
    process::{Daemon, Protocol},
};

/// How long a server may take to open its sockets; coturn takes about a second.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The realm of every relay of a lab.
const REALM: &str = "lab.example";

/// Which program relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayKind {
    /// coturn's `turnserver`.
    Coturn,
    /// `zonemesh serve`.
    Zonemesh,
}

/// How a client reaches a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Plain datagrams.
    Udp,
    /// A stream in clear.
    Tcp,
    /// A stream under TLS.
    Tls,
}

/// What a relay serves, and where.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// The port for UDP and TCP.
    pub port: u16,
    /// The port for TLS, such as 443; `None` serves no TLS.
    pub tls_port: Option<u16>,
    /// The secret that time-limited credentials are made from.
    pub secret: String,
    /// The host's addresses to serve on, and to relay from; where empty, all of them.
    pub listen: Vec<IpAddr>,
    /// Names for the certificate, beside the addresses.
    pub names: Vec<String>,
    /// The `zonemesh` executable, for [`RelayKind::Zonemesh`].
    pub executable: PathBuf,
    /// Further lines of its `[serve]` section.
    pub more: String,
}

impl Default for RelaySettings {
    /// The usual ports, on all addresses of the host.
    fn default() -> Self {
        Self {
            port: 3478,
            tls_port: Some(5349),
            secret: "the relay's secret in the lab".to_owned(),
            listen: vec![],
            names: vec![],
            executable: PathBuf::from("zonemesh"),
            more: String::new(),
        }
    }
}

/// A TURN server that runs, or has run; killed when it is dropped.
#[derive(Debug)]
pub struct RelayServer {
    kind: RelayKind,
    host: Host,
    dir: PathBuf,
    settings: RelaySettings,
    daemon: Option<Daemon>,
    starts: usize,
}

impl RelayServer {
    /// Starts a relay on a host with its files in a folder of its own below `dir`, and
    /// waits until it has opened its sockets.
    ///
    /// # Errors
    /// When it cannot be started or does not open them in time.
    pub fn start(
        kind: RelayKind,
        host: &Host,
        dir: &Path,
        mut settings: RelaySettings,
    ) -> Result<Self> {
        if settings.listen.is_empty() {
            settings.listen.clone_from(&host.addresses);
        }
        let dir = dir.join(format!("relay-{}-{}", host.namespace.name(), settings.port));
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        make_certificate(&dir, &settings)?;
        let mut secret = OpenOptions::new();
        secret.mode(0o600).write(true).create(true).truncate(true);
        secret.open(dir.join("turn.secret"))?.write_all(settings.secret.as_bytes())?;
        let mut relay = Self { kind, host: host.clone(), dir, settings, daemon: None, starts: 0 };
        relay.restart()?;
        Ok(relay)
    }

    /// All ways to it as RFC 7065 URIs: for each address UDP, TCP, and TLS if it is
    /// served.
    pub fn uris(&self) -> Vec<String> {
        let ways = [Over::Udp, Over::Tcp, Over::Tls];
        let ways = ways.into_iter().filter(|over| self.port(*over).is_some());
        ways.flat_map(|over| self.uris_over(over)).collect()
    }

    /// The URIs of one way, one for each address.
    pub fn uris_over(&self, over: Over) -> Vec<String> {
        let Some(port) = self.port(over) else { return vec![] };
        let (scheme, transport) = match over {
            Over::Udp => ("turn", "udp"),
            Over::Tcp => ("turn", "tcp"),
            Over::Tls => ("turns", "tcp"),
        };
        let uri =
            |ip: &IpAddr| format!("{scheme}:{}?transport={transport}", SocketAddr::new(*ip, port));
        self.settings.listen.iter().map(uri).collect()
    }

    /// The addresses that it serves on and relays from.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.settings.listen
    }

    /// The secret that time-limited credentials are made from.
    pub fn secret(&self) -> &str {
        &self.settings.secret
    }

    /// The file that holds the secret.
    pub fn secret_file(&self) -> PathBuf {
        self.dir.join("turn.secret")
    }

    /// The certificate of the authority to trust, in PEM.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// The number of its process while it runs.
    pub fn process(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::id)
    }

    /// What it has logged since it was started last.
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// Kills it (SIGKILL): it cannot take leave of anybody.
    pub fn stop(&mut self) {
        // Its drop kills it.
        self.daemon = None;
    }

    /// Starts it again, with no memory of its allocations; kills it first if it runs.
    ///
    /// # Errors
    /// When it cannot be started or does not open its sockets in time.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        let mut command = match self.kind {
            RelayKind::Coturn => self.coturn(),
            RelayKind::Zonemesh => self.zonemesh()?,
        };
        self.starts += 1;
        let log = self.dir.join(format!("{}.log", self.starts));
        let mut daemon = Daemon::spawn(&self.kind.to_string(), &mut command, &log)?;
        let wanted = self.settings.listen.len();
        let RelaySettings { port, tls_port, .. } = self.settings;
        let process = daemon.process();
        daemon.wait_ready(START_LIMIT, || {
            process.bound(Protocol::Udp, port) >= wanted
                && process.bound(Protocol::Tcp, port) >= wanted
                && tls_port.is_none_or(|port| process.bound(Protocol::Tcp, port) >= wanted)
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }

    fn port(&self, over: Over) -> Option<u16> {
        match over {
            Over::Udp | Over::Tcp => Some(self.settings.port),
            Over::Tls => self.settings.tls_port,
        }
    }

    fn zonemesh(&self) -> Result<Command> {
        let RelaySettings { port, tls_port, listen, executable, more, .. } = &self.settings;
        let on = |port: u16| -> Vec<String> {
            listen.iter().map(|ip| SocketAddr::new(*ip, port).to_string()).collect()
        };
        let mut text =
            format!("[serve]\nlisten = {:?}\nsecret_file = \"turn.secret\"\n", on(*port));
        if let Some(port) = tls_port {
            let _ = writeln!(text, "tls_listen = {:?}", on(*port));
            text.push_str("tls_cert_file = \"cert.pem\"\ntls_key_file = \"key.pem\"\n");
        }
        text.push_str(more);
        let file = self.dir.join("zonemesh.toml");
        fs::write(&file, text)?;
        let mut command = self.host.namespace.command(&executable.to_string_lossy());
        command.arg("serve").arg("-c").arg(file);
        Ok(command)
    }

    fn coturn(&self) -> Command {
        let RelaySettings { port, tls_port, secret, listen, .. } = &self.settings;
        let mut command = self.host.namespace.command("turnserver");
        command.arg("-n").args(["--listening-port", &port.to_string()]);
        command.args(["--use-auth-secret", "--static-auth-secret", secret, "--realm", REALM]);
        // One address has no other to answer from, and a port beside 443 is not wanted.
        command.args(["--no-cli", "--no-rfc5780", "--no-dtls"]);
        command.args(["--log-file", "stdout", "--simple-log"]);
        command.arg("--pidfile").arg(self.dir.join("pid")).arg("--db").arg(self.dir.join("db"));
        match tls_port {
            Some(port) => {
                command.args(["--tls-listening-port", &port.to_string()]);
                command.arg("--cert").arg(self.dir.join("cert.pem"));
                command.arg("--pkey").arg(self.dir.join("key.pem"));
            }
            None => {
                command.arg("--no-tls");
            }
        }
        for ip in listen {
            command.args(["--listening-ip", &ip.to_string(), "--relay-ip", &ip.to_string()]);
        }
        command
    }
}

impl fmt::Display for RelayKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Coturn => "turnserver",
            Self::Zonemesh => "zonemesh serve",
        })
    }
}

/// Makes an authority, `ca.pem`, and by it a certificate `cert.pem` with its `key.pem`
/// for the addresses and names of a relay.
fn make_certificate(dir: &Path, settings: &RelaySettings) -> Result<()> {
    let request = |subject: &str, key: &str, out: &str| {
        let mut openssl = Command::new("openssl");
        openssl.current_dir(dir).args(["req", "-x509", "-days", "30", "-nodes"]);
        openssl.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
        openssl.args(["-subj", subject, "-keyout", key, "-out", out]);
        openssl
    };
    run(
        request("/CN=the authority of the lab", "ca.key", "ca.pem")
            .args(["-addext", "keyUsage=critical,keyCertSign"]),
        "",
    )?;
    let ips = settings.listen.iter().map(|ip| format!("IP:{ip}"));
    let names = settings.names.iter().map(|name| format!("DNS:{name}"));
    let subjects: Vec<String> = ips.chain(names).collect();
    run(
        request("/CN=a relay of the lab", "key.pem", "cert.pem")
            .args(["-CA", "ca.pem", "-CAkey", "ca.key"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-addext", &format!("subjectAltName={}", subjects.join(","))]),
        "",
    )?;
    Ok(())
}
