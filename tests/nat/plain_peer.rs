//! A peer that knows nothing of zonemesh: `wireguard-go` and `wg`, as Debian has them.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use zonemesh::lab::{member::Member, namespace::run, net::Host, process::Daemon, programs};

/// How long `wireguard-go` may take to make its device.
const START_LIMIT: Duration = Duration::from_secs(10);

/// The peer's device.
const DEVICE: &str = "wg0";

/// A host with a plain WireGuard device.
pub(crate) struct PlainPeer {
    host: Host,
    /// Ends with the peer.
    _daemon: Daemon,
    /// Its public key, in Base64.
    pub(crate) public_key: String,
}

impl PlainPeer {
    /// The UDP port that it listens on.
    pub(crate) const PORT: u16 = 51_820;

    /// Starts `wireguard-go` with a new key and no peers.
    pub(crate) fn start(host: &Host) -> Self {
        programs::require(&["wireguard-go", "wg"]).expect("WireGuard's own tools");
        let folder = PathBuf::from("/run/plain-peer");
        fs::create_dir_all(&folder).expect("the world's /run is empty");
        let private = run(Command::new("wg").arg("genkey"), "").expect("wg makes a key");
        let key_file = folder.join("private.key");
        fs::write(&key_file, &private).expect("the folder is ours");
        let mut command = host.namespace.command("wireguard-go");
        command.args(["-f", DEVICE]);
        let log = folder.join("log");
        let mut daemon = Daemon::spawn("wireguard-go", &mut command, &log).expect("it starts");
        let shows = || host.namespace.run("wg", &["show", DEVICE]).is_ok();
        daemon.wait_ready(START_LIMIT, shows).expect("it makes its device");
        let peer = Self { host: host.clone(), _daemon: daemon, public_key: public(&private) };
        let port = Self::PORT.to_string();
        peer.wg(&["listen-port", &port, "private-key", &key_file.to_string_lossy()]);
        let address = format!("{}/24", peer.overlay());
        let batch = format!("addr add {address} dev {DEVICE}\nlink set {DEVICE} mtu 1420 up");
        host.namespace.ip(&batch).expect("the device is there");
        peer
    }

    /// A public key that nobody has the private part of.
    pub(crate) fn make_key() -> String {
        public(&run(Command::new("wg").arg("genkey"), "").expect("wg makes a key"))
    }

    /// Its address in the overlay.
    pub(crate) fn overlay(&self) -> IpAddr {
        Ipv4Addr::new(10, 99, 0, 7).into()
    }

    /// What is routed to it.
    pub(crate) fn routes(&self) -> String {
        "10.99.0.0/24".to_owned()
    }

    /// Lets a node in: it will come by itself.
    pub(crate) fn expect(&self, public_key: &str, member: &Member, preshared: Option<&str>) {
        let network = format!("{}/32", member.overlay());
        let mut args = vec!["peer", public_key, "allowed-ips", &network];
        args.extend(preshared.iter().flat_map(|file| ["preshared-key", file]));
        self.wg(&args);
        let batch = format!("route add {network} dev {DEVICE}");
        self.host.namespace.ip(&batch).expect("the device is up");
    }

    /// When the last handshake was, in seconds since 1970; 0 before the first.
    pub(crate) fn last_handshake(&self) -> u64 {
        let args = ["show", DEVICE, "latest-handshakes"];
        let shown = self.host.namespace.run("wg", &args).expect("wg shows");
        let time = shown.split_whitespace().nth(1).unwrap_or_default();
        time.parse().expect("a key and a time")
    }

    fn wg(&self, args: &[&str]) {
        let mut command = self.host.namespace.command("wg");
        command.args(["set", DEVICE]).args(args);
        run(&mut command, "").expect("wg sets");
    }
}

fn public(private: &str) -> String {
    let public = run(Command::new("wg").arg("pubkey"), private).expect("wg computes a key");
    public.trim().to_owned()
}
