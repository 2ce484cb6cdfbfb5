//! The zone that `zonemesh serve` serves, as the tools and servers of others see it, on
//! loopback addresses.

mod dig;
mod hostile;
mod members;
mod nodes;
mod secondaries;

use std::{
    fs::{self, Permissions},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt,
    process::Command,
    time::{Duration, SystemTime},
};

use data_encoding::BASE64;
use ipnet::IpNet;
use tempfile::TempDir;
use zonemesh::lab::{
    namespace::run,
    process::{Daemon, Protocol},
    programs,
};
use zonemesh_discovery::{
    advert::{Advert, Candidate, CandidateKind, SignedAdvert, Zone},
    identity::Identity,
    zone::{TsigKey, ZoneClient},
};

const ZONE: &str = "mesh.example";
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LIMIT: Duration = Duration::from_secs(20);

/// The key that may write everything, and have the zone transferred.
const KEY: &str = "mesh-key";
const ALGORITHM: &str = "hmac-sha256";
const SECRET: &[u8] = b"a secret of the tests' own, only";

/// `zonemesh serve` with a zone alone.
struct Served {
    // First, so that it ends before its folder goes.
    daemon: Option<Daemon>,
    folder: TempDir,
    port: u16,
}

impl Served {
    fn start() -> Self {
        Self::start_with("", "")
    }

    /// With further lines of `[serve]` and of `[serve.zone]`.
    fn start_with(serve: &str, zone: &str) -> Self {
        programs::require(&["dig", "nsupdate"]).expect("programs");
        let folder = TempDir::new().expect("a folder");
        let port = free_port();
        let key = |name: &str, secret: &[u8]| {
            let file = folder.path().join(name);
            fs::write(&file, BASE64.encode(secret)).expect("written");
            fs::set_permissions(file, Permissions::from_mode(0o600)).expect("its owner's");
        };
        key("mesh.key", SECRET);
        let config = format!(
            r#"[serve]
stun = false
turn = false
listen = ["127.0.0.1"]
{serve}
[serve.zone]
name = "{ZONE}"
listen = ["127.0.0.1:{port}"]
data_dir = "zone"
keys = [{{ name = "{KEY}", secret_file = "mesh.key", transfer = true, update = "all" }}]
{zone}
"#
        );
        fs::write(folder.path().join("zonemesh.toml"), config).expect("written");
        let mut served = Self { daemon: None, folder, port };
        served.restart();
        served
    }

    /// Kills it, if it runs, and starts it on what it has left.
    fn restart(&mut self) {
        self.daemon = None;
        let mut command = Command::new(env!("CARGO_BIN_EXE_zonemesh"));
        command.arg("serve").arg("-c").arg(self.folder.path().join("zonemesh.toml"));
        let log = self.folder.path().join("serve.log");
        let mut daemon = Daemon::spawn("zonemesh serve", &mut command, &log).expect("it starts");
        daemon.wait_ready(LIMIT, || self.answers()).expect("it answers");
        assert!(daemon.process().bound(Protocol::Tcp, self.port) > 0);
        self.daemon = Some(daemon);
    }

    fn answers(&self) -> bool {
        let mut dig = Command::new("dig");
        dig.args(["@127.0.0.1", "-p", &self.port.to_string(), "+norecurse", "+time=1", "+tries=1"]);
        let output = dig.args(["+short", ZONE, "SOA"]).output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("hostmaster"))
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::new(LOOPBACK, self.port)
    }

    fn client(&self) -> ZoneClient {
        ZoneClient::new(zone(), self.address(), Some(key()))
    }

    /// What dig says.
    fn dig(&self, arguments: &[&str]) -> String {
        dig_at(self.port, arguments)
    }

    /// The serial that dig sees.
    fn serial(&self) -> u32 {
        serial_at(self.port)
    }

    /// Has nsupdate send an update, with a key where there is one; what it says where that
    /// fails.
    fn nsupdate(&self, key: Option<(&str, &[u8])>, lines: &[String]) -> Result<(), String> {
        let mut script = format!("server 127.0.0.1 {}\nzone {ZONE}\ncheck-names no\n", self.port);
        if let Some((name, secret)) = key {
            script.push_str(&format!("key {ALGORITHM}:{name} {}\n", BASE64.encode(secret)));
        }
        for line in lines {
            script.push_str(line);
            script.push('\n');
        }
        script.push_str("send\n");
        let done = run(&mut Command::new("nsupdate"), &script);
        done.map(drop).map_err(|error| error.to_string())
    }

    fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }
}

fn dig_at(port: u16, arguments: &[&str]) -> String {
    let mut dig = Command::new("dig");
    dig.args(["@127.0.0.1", "-p", &port.to_string(), "+norecurse", "+tries=1"]).args(arguments);
    let output = dig.output().expect("dig");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn serial_at(port: u16) -> u32 {
    let soa = dig_at(port, &["+short", ZONE, "SOA"]);
    soa.split_whitespace().nth(2).and_then(|serial| serial.parse().ok()).unwrap_or_default()
}

/// A port that is free for UDP and TCP.
fn free_port() -> u16 {
    loop {
        let tcp = TcpListener::bind((LOOPBACK, 0)).expect("a port");
        let port = tcp.local_addr().expect("bound").port();
        if UdpSocket::bind((LOOPBACK, port)).is_ok() {
            return port;
        }
    }
}

fn zone() -> Zone {
    ZONE.parse().expect("a zone")
}

fn key() -> TsigKey {
    TsigKey::new(KEY, ALGORITHM, &BASE64.encode(SECRET)).expect("a key")
}

fn node(number: u16) -> Identity {
    let mut seed = [7; 32];
    seed[..2].copy_from_slice(&number.to_be_bytes());
    Identity::from_seed(&seed)
}

fn advert(node: &Identity, sequence: u64) -> SignedAdvert {
    advert_with(node, sequence, vec!["10.42.1.0/24".parse().expect("a prefix")])
}

/// One whose TXT record does not fit 512 bytes.
fn long_advert(node: &Identity, sequence: u64) -> SignedAdvert {
    let route = |number| format!("10.42.{number}.0/24").parse().expect("a prefix");
    advert_with(node, sequence, (1..=16).map(route).collect())
}

fn advert_with(node: &Identity, sequence: u64, routes: Vec<IpNet>) -> SignedAdvert {
    let candidate = |addr: &str, kind| Candidate { kind, addr: addr.parse().expect("an address") };
    let advert = Advert {
        node: node.public_key(),
        name: format!("node-{sequence}"),
        addresses: vec!["10.42.1.1".parse().expect("an address")],
        routes,
        candidates: vec![
            candidate("198.51.100.7:51820", CandidateKind::ServerReflexive),
            candidate("192.168.1.7:51820", CandidateKind::Host),
        ],
        sequence,
        expires: SystemTime::now() + Duration::from_secs(3600),
        certificate: None,
    };
    advert.sign(node, &zone()).expect("it can be signed")
}

/// The label of a node's instance, and its host's name.
fn labels(node: &Identity) -> (String, String) {
    let host = node.public_key().to_base32();
    (format!("{host}===="), host)
}
