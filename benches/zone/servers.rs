//! The servers.

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use data_encoding::BASE64;
use tempfile::TempDir;
use zonemesh::lab::{
    process::Daemon,
    zone_server::{KEY_ALGORITHM, ZoneServer, ZoneServerConfig, ZoneServerKind},
};
use zonemesh_discovery::{
    identity::Identity,
    membership::Token,
    zone::{TsigKey, ZoneClient},
};

use crate::ZONE;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const RANGE: &str = "10.0.0.0/8";
const KEY_NAME: &str = "mesh-key";
const SECRET: &[u8] = b"a secret of the benchmark's own.";

/// How long a server may take to come up.
const READY: Duration = Duration::from_secs(20);

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Zonemesh,
    Bind,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Zonemesh => "zonemesh serve",
            Self::Bind => "BIND",
        })
    }
}

/// The network that the server knows of; BIND knows none.
pub(crate) struct Network(Option<Token>);

impl Network {
    /// What makes a node a member.
    pub(crate) fn admit(&self, node: &Identity, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(token) = &self.0 else { return Ok(None) };
        let routes = [RANGE.parse()?];
        let no_groups: [&str; 0] = [];
        let membership =
            token.admit(&node.public_key(), name, &routes, &no_groups, SystemTime::now())?;
        Ok(Some(membership.chain().as_bytes().to_vec()))
    }
}

/// A running server with an empty zone.
pub(crate) struct Server {
    pub(crate) network: Network,
    address: SocketAddr,
    process: u32,
    key: Option<TsigKey>,
    // In this order, so that they end before their folder goes.
    _daemon: Option<Daemon>,
    _bind: Option<ZoneServer>,
    _folder: TempDir,
}

impl Server {
    pub(crate) fn start(kind: Kind) -> Result<Self> {
        let folder = TempDir::new()?;
        let address = SocketAddr::new(LOOPBACK, free_port()?);
        let (mut daemon, mut bind, mut token, mut key) = (None, None, None, None);
        match kind {
            Kind::Zonemesh => {
                token = Some(found(folder.path(), address)?);
                daemon = Some(zonemesh(folder.path(), address)?);
            }
            Kind::Bind => {
                key = Some(TsigKey::new(KEY_NAME, KEY_ALGORITHM, &BASE64.encode(SECRET))?);
                bind = Some(start_bind(folder.path(), address)?);
            }
        }
        let process = daemon.as_ref().map(Daemon::id);
        let process = process.or_else(|| bind.as_ref().and_then(ZoneServer::process));
        let process = process.context("the server runs")?;
        let network = Network(token);
        let (_daemon, _bind, _folder) = (daemon, bind, folder);
        Ok(Self { network, address, process, key, _daemon, _bind, _folder })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn client(&self) -> ZoneClient {
        let zone = ZONE.parse().expect("a zone");
        ZoneClient::new(zone, self.address, self.key.clone())
    }

    /// What it takes now, and took at most.
    pub(crate) fn memory_mb(&self) -> Result<(f64, f64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kb = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
            kb.map(|kb| kb * 1024.0 / 1e6).with_context(|| format!("no {name} in its status"))
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }
}

/// Makes a network; gives its first token.
fn found(folder: &Path, address: SocketAddr) -> Result<Token> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zonemesh"));
    command.args(["network", "init", ZONE, "--routes", RANGE, "--server", &address.to_string()]);
    let made = command.arg("--dir").arg(folder).output()?;
    if !made.status.success() {
        bail!("no network: {}", String::from_utf8_lossy(&made.stderr));
    }
    let text = String::from_utf8(made.stdout)?;
    Ok(text.lines().last().context("`network init` shows a token")?.parse()?)
}

/// Ours, whose limits on what one source may have are lifted: here all nodes are one.
fn zonemesh(folder: &Path, address: SocketAddr) -> Result<Daemon> {
    let folder_name = folder.display();
    let other = free_port()?;
    fs::write(
        folder.join("zonemesh.toml"),
        format!(
            "[node]\nstate_dir = \"{folder_name}/state\"\n\
             [serve]\nlisten = [\"127.0.0.1:{other}\"]\nturn = false\nstun = false\n\
             [serve.zone]\nnetwork = \"network.toml\"\nlisten = [\"{address}\"]\n\
             data_dir = \"{folder_name}/zone\"\n\
             [serve.zone.limits]\nanswers_per_network = 1000000\nupdates_per_network = 1000000\n\
             transfers_per_network = 1000000\nconnections_per_source = 4096\n\
             [control]\nsocket = \"{folder_name}/control.sock\"\n"
        ),
    )?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_zonemesh"));
    command.arg("serve").arg("-c").arg(folder.join("zonemesh.toml"));
    let mut daemon = Daemon::spawn("zonemesh serve", &mut command, &folder.join("serve.log"))?;
    daemon.wait_ready(READY, || std::net::TcpStream::connect(address).is_ok())?;
    Ok(daemon)
}

fn start_bind(folder: &Path, address: SocketAddr) -> Result<ZoneServer> {
    let config = ZoneServerConfig {
        zone: ZONE.to_owned(),
        listen: vec![address.ip()],
        port: address.port(),
        more_ports: vec![],
        key_name: KEY_NAME.to_owned(),
        key_secret: BASE64.encode(SECRET),
        transfers: Some(true),
        node_keys: Vec::new(),
        extra_records: Vec::new(),
    };
    ZoneServer::start(ZoneServerKind::Bind, |program| Command::new(program), folder, config)
}

/// A port that is free for UDP and TCP.
fn free_port() -> Result<u16> {
    loop {
        let port = TcpListener::bind((LOOPBACK, 0))?.local_addr()?.port();
        if UdpSocket::bind((LOOPBACK, port)).is_ok() {
            return Ok(port);
        }
    }
}
