//! A real zone server for a lab: BIND's `named` or Knot's `knotd`, as Debian ships
//! them, with one zone and one TSIG key that may update it.

use std::{
    fmt::Write as _,
    fs, iter,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::process::Daemon;

/// How long a server may take to load its zone; both take well under a second.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How long a server may take to write its zone and end.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The algorithm of the zone's TSIG key.
pub const KEY_ALGORITHM: &str = "hmac-sha256";

/// Which program serves the zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneServerKind {
    /// BIND 9: `named`.
    Bind,
    /// Knot DNS: `knotd`.
    Knot,
}

/// A key that may write what one node says of itself, and nothing else.
#[derive(Debug, Clone)]
pub struct NodeKey {
    /// The label of the node's host name: its public key in Base32, unpadded. With the
    /// zone behind it, the key's name.
    pub host: String,
    /// The key's secret, in Base64.
    pub secret: String,
}

/// What the server serves, and where.
#[derive(Debug, Clone)]
pub struct ZoneServerConfig {
    /// The zone's name.
    pub zone: String,
    /// The addresses to listen on; the first is also the name server's in the zone.
    pub listen: Vec<IpAddr>,
    /// The port, for UDP and TCP.
    pub port: u16,
    /// Further ports, for those whose firewall lets nothing out to that one.
    pub more_ports: Vec<u16>,
    /// The name of the key that may update the zone.
    pub key_name: String,
    /// The key's secret, in Base64.
    pub key_secret: String,
    /// Keys of one node each.
    pub node_keys: Vec<NodeKey>,
    /// Whether the zone may be transferred; `None` leaves it to the program, of
    /// which BIND allows it to all and Knot to nobody.
    pub transfers: Option<bool>,
    /// Further lines of the zone's file.
    pub extra_records: Vec<String>,
}

/// A running zone server, killed when it is dropped. Its zone and journal stay in
/// its folder, for the next start.
pub struct ZoneServer {
    kind: ZoneServerKind,
    command: Box<dyn Fn(&str) -> Command + Send + Sync>,
    dir: PathBuf,
    config: ZoneServerConfig,
    daemon: Option<Daemon>,
}

impl ZoneServer {
    /// Starts a server with its files in `dir`, and waits until it answers.
    /// `command` makes the command that runs a program where the server shall stand.
    ///
    /// # Errors
    /// When it cannot be started or does not answer in time.
    pub fn start(
        kind: ZoneServerKind,
        command: impl Fn(&str) -> Command + Send + Sync + 'static,
        dir: &Path,
        config: ZoneServerConfig,
    ) -> Result<Self> {
        let dir = dir.to_owned();
        let mut server = Self { kind, command: Box::new(command), dir, config, daemon: None };
        server.write_files()?;
        server.restart()?;
        Ok(server)
    }

    /// The address to ask.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.config.listen[0], self.config.port)
    }

    /// The server's process, if it runs.
    pub fn process(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::id)
    }

    /// What the server has logged since it was started last.
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// Asks the server to end, and waits until it has.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        let id = i32::try_from(daemon.id()).ok().and_then(Pid::from_raw);
        kill_process(id.context("no process number")?, Signal::TERM)?;
        let start = Instant::now();
        while daemon.ended()?.is_none() {
            if start.elapsed() > STOP_LIMIT {
                bail!("the zone server does not end within {STOP_LIMIT:?}");
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Kills the server: no time to write anything.
    pub fn kill(&mut self) {
        // Its drop kills it.
        self.daemon = None;
    }

    /// Starts the server again on what it left behind; kills it first if it runs.
    ///
    /// # Errors
    /// When it cannot be started or does not answer in time.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        let config = self.dir.join("server.conf");
        let mut command = match self.kind {
            ZoneServerKind::Bind => (self.command)("named"),
            ZoneServerKind::Knot => (self.command)("knotd"),
        };
        command.arg("-c").arg(config);
        if self.kind == ZoneServerKind::Bind {
            // In the foreground, with its log on standard error.
            command.arg("-g");
        }
        let mut daemon =
            Daemon::spawn("the zone server", &mut command, &self.dir.join("server.log"))?;
        daemon.wait_ready(START_LIMIT, || self.answers())?;
        self.daemon = Some(daemon);
        Ok(())
    }

    fn answers(&self) -> bool {
        let mut dig = (self.command)("dig");
        dig.arg(format!("@{}", self.config.listen[0])).args(["-p", &self.config.port.to_string()]);
        dig.args(["+norecurse", "+time=1", "+tries=1", "+short", &self.config.zone, "SOA"]);
        let output = dig.output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("hostmaster"))
    }

    /// All ports that it listens on.
    fn ports(&self) -> impl Iterator<Item = u16> {
        iter::once(self.config.port).chain(self.config.more_ports.iter().copied())
    }

    fn write_files(&self) -> Result<()> {
        fs::create_dir_all(&self.dir)?;
        let config = match self.kind {
            ZoneServerKind::Bind => self.bind_config(),
            ZoneServerKind::Knot => self.knot_config(),
        };
        fs::write(self.dir.join("server.conf"), config)?;
        let zone_file = self.dir.join("zone.db");
        // What an earlier server made of the zone stays.
        if !zone_file.exists() {
            fs::write(zone_file, self.zone_file())?;
        }
        Ok(())
    }

    fn zone_file(&self) -> String {
        let zone = self.config.zone.trim_end_matches('.');
        let address = self.config.listen[0];
        let kind = if address.is_ipv4() { "A" } else { "AAAA" };
        let mut text = format!(
            "$ORIGIN {zone}.\n$TTL 30\n\
             @ SOA ns hostmaster 1 3600 900 604800 30\n@ NS ns\nns {kind} {address}\n"
        );
        for line in &self.config.extra_records {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    fn bind_config(&self) -> String {
        let ZoneServerConfig { zone, key_name, key_secret, .. } = &self.config;
        let dir = self.dir.display();
        let mut addresses = [String::new(), String::new()];
        for address in &self.config.listen {
            let _ = write!(addresses[usize::from(address.is_ipv6())], "{address}; ");
        }
        let [v4, v6] =
            addresses.map(|list| if list.is_empty() { "none; ".to_owned() } else { list });
        let mut listen = String::new();
        for port in self.ports() {
            let _ = write!(
                listen,
                "listen-on port {port} {{ {v4}}};\n    listen-on-v6 port {port} {{ {v6}}};\n    "
            );
        }
        let transfers = match self.config.transfers {
            None => "",
            Some(true) => "allow-transfer { any; };",
            Some(false) => "allow-transfer { none; };",
        };
        // The recipe of docs/security.md, beside a key that may do everything.
        let (mut keys, mut grants) = (String::new(), String::new());
        for NodeKey { host, secret } in &self.config.node_keys {
            let _ = writeln!(
                keys,
                "key \"{host}.{zone}\" {{ algorithm {KEY_ALGORITHM}; secret \"{secret}\"; }};"
            );
            let _ = write!(
                grants,
                "grant {host}.{zone} name {host}====._wireguard._udp.{zone} SRV TXT;\n    "
            );
        }
        if !self.config.node_keys.is_empty() {
            let _ = write!(
                grants,
                "grant *.{zone} self . A AAAA;\n    \
                 grant *.{zone} name _wireguard._udp.{zone} PTR;\n    "
            );
        }
        // No recursion and no control channel: the lab has no Internet, and a machine
        // may run its own named beside it.
        format!(
            r#"options {{
    directory "{dir}";
    pid-file "{dir}/named.pid";
    session-keyfile "{dir}/session.key";
    lock-file "{dir}/named.lock";
    {listen}recursion no;
    dnssec-validation no;
}};
controls {{}};
key "{key_name}" {{
    algorithm {KEY_ALGORITHM};
    secret "{key_secret}";
}};
{keys}zone "{zone}" {{
    type primary;
    file "{dir}/zone.db";
    update-policy {{
    {grants}grant {key_name} zonesub ANY;
    }};
    {transfers}
}};
"#
        )
    }

    fn knot_config(&self) -> String {
        let ZoneServerConfig { zone, key_name, key_secret, listen, .. } = &self.config;
        let dir = self.dir.display();
        let listen = self
            .ports()
            .flat_map(|port| listen.iter().map(move |address| format!("{address}@{port}")))
            .collect::<Vec<String>>()
            .join(", ");
        let actions = match self.config.transfers {
            Some(true) => "[ update, transfer ]",
            None | Some(false) => "update",
        };
        // The recipe of docs/security.md, beside a key that may do everything.
        let (mut keys, mut rules, mut names) = (String::new(), String::new(), String::new());
        for NodeKey { host, secret } in &self.config.node_keys {
            let _ = write!(
                keys,
                "\n  - id: {host}.{zone}\n    algorithm: {KEY_ALGORITHM}\n    secret: {secret}"
            );
            let _ = write!(
                rules,
                "\n  - id: {host}\n    key: {host}.{zone}\n    action: update\
                 \n    update-type: [ SRV, TXT, A, AAAA ]\
                 \n    update-owner: name\n    update-owner-match: equal\
                 \n    update-owner-name: [ {host}, \"{host}\\061\\061\\061\\061._wireguard._udp\" ]\
                 \n  - id: {host}-list\n    key: {host}.{zone}\n    action: update\
                 \n    update-type: PTR\n    update-owner: name\n    update-owner-match: equal\
                 \n    update-owner-name: _wireguard._udp"
            );
            let _ = write!(names, ", {host}, {host}-list");
        }
        format!(
            r#"server:
    rundir: "{dir}"
    listen: [ {listen} ]
log:
  - target: stderr
    any: info
database:
    storage: "{dir}"
key:
  - id: {key_name}
    algorithm: {KEY_ALGORITHM}
    secret: {key_secret}{keys}
acl:
  - id: members
    key: {key_name}
    action: {actions}{rules}
zone:
  - domain: {zone}
    storage: "{dir}"
    file: zone.db
    acl: [ members{names} ]
"#
        )
    }
}
