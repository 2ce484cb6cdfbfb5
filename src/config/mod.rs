//! The configuration file, parsed into a type that cannot be wrong.
//!
//! [`Config::load`] reads the TOML file once, at start. Every value is checked
//! there, secrets and certificates are read from their files, defaults filled in; an error names
//! the file, the line, the key and what was expected, and the daemon does not
//! start. What is legitimate but probably not meant becomes a warning, which is
//! logged at start and shown in `zonemesh status`.
//!
//! `docs/zonemesh.example.toml` has every key with its default.

mod authorities;
pub(crate) mod document;
mod read;
mod relay_uri;
mod secret;
mod serve;
mod serve_zone;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::from_utf8,
    sync::Arc,
};

use ipnet::IpNet;
use zonemesh_discovery::{advert::Zone, identity::PublicKey, sealed::Seal};

pub use self::{
    authorities::authorities,
    document::ConfigError,
    relay_uri::{RelayHost, RelayTransport, RelayUri, RelayUriError},
    secret::Secret,
    serve::{ServeConfig, TlsConfig},
    serve_zone::{Primary, ServeZoneConfig},
};

pub(crate) use self::secret::SecretFile;

/// The configuration that is read where none is named.
pub const DEFAULT_FILE: &str = "/etc/zonemesh/zonemesh.toml";

/// Where the control sockets stand unless the configuration says otherwise.
pub const SOCKET_DIR: &str = "/run/zonemesh";

/// Everything that the operator has decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file that it was read from.
    pub file: PathBuf,
    /// `[node]`
    pub node: NodeConfig,
    /// `[interface]`
    pub interface: InterfaceConfig,
    /// `[zone]`; a node that has only static peers needs none.
    pub zone: Option<ZoneConfig>,
    /// `[mdns]`
    pub mdns: MdnsConfig,
    /// `[portmap]`: whether to ask the router for a port mapping.
    pub portmap: bool,
    /// `[punch]`: whether to try NATs that ordinary checks do not pass, by predicting
    /// ports and with many sockets.
    pub hard_nats: bool,
    /// `[stun]`: the servers; where empty, the zone's SRV records name them.
    pub stun_servers: Vec<SocketAddr>,
    /// `[relay]`
    pub relay: RelayConfig,
    /// `[serve]`: a rendezvous for others; `None` where the section is missing.
    pub serve: Option<ServeConfig>,
    /// `[control]`: the control socket.
    pub control_socket: PathBuf,
    /// `[network]`: whose adverts count. `None` is [`Trust::Members`] for a member of a
    /// network, and else [`Trust::Zone`].
    pub trust: Option<Trust>,
    /// `[network]`: the file that holds a token, for as long as the node is no member.
    pub token_file: Option<PathBuf>,
    /// `[[peer]]`: plain WireGuard peers, outside the mesh's discovery.
    pub peers: Vec<PeerConfig>,
    /// What is legitimate but probably not meant.
    pub warnings: Vec<String>,
}

/// `[node]`: who this node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// For people; 1 to 63 bytes without control characters.
    pub name: String,
    /// Whether it was configured, and is not just the host's name.
    pub has_name: bool,
    /// Keeps the key, the membership, the sequence number and the last-known peers.
    pub state_dir: PathBuf,
}

/// `[interface]`: the TUN device and what it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// The device's name.
    pub name: String,
    /// The UDP port, for IPv4 and IPv6; 0 picks one and keeps it.
    pub listen_port: u16,
    /// The device's MTU; `None` follows the paths.
    pub mtu: Option<u16>,
    /// What the device carries.
    pub addresses: Vec<IpNet>,
    /// The prefixes that this node advertises; no host bits, no duplicates.
    pub routes: Vec<IpNet>,
    /// Whether it takes a slice of its network's range instead (`routes = "auto"`); `None`
    /// where nothing is said of routes.
    pub auto_routes: Option<bool>,
}

impl InterfaceConfig {
    /// Whether a member of a network takes a slice of its range: it is told to, or it has
    /// neither routes nor addresses.
    pub fn wants_slice(&self) -> bool {
        self.auto_routes.unwrap_or(self.addresses.is_empty())
    }
}

/// `[zone]`: the rendezvous.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneConfig {
    /// The zone's name.
    pub name: Zone,
    /// Its servers, the primary first; where empty, the zone's SOA MNAME.
    pub servers: Vec<SocketAddr>,
    /// The key that signs updates and transfers; `None` sends them unsigned.
    pub tsig: Option<TsigConfig>,
    /// The seal of a sealed zone: the network's, never a file's.
    pub seal: Option<Arc<Seal>>,
}

/// `zone.tsig`: a TSIG key (RFC 8945).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TsigConfig {
    /// The key's name, as the server knows it.
    pub name: String,
    /// Its algorithm.
    pub algorithm: TsigAlgorithm,
    /// The secret in Base64, checked to be that.
    pub secret: Secret<String>,
}

/// The algorithms of RFC 8945 §6 that are not deprecated and that both BIND and
/// Knot know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TsigAlgorithm {
    /// `hmac-sha256`
    HmacSha256,
    /// `hmac-sha384`
    HmacSha384,
    /// `hmac-sha512`
    HmacSha512,
}

impl TsigAlgorithm {
    const ALL: [Self; 3] = [Self::HmacSha256, Self::HmacSha384, Self::HmacSha512];

    /// The algorithm of this name, in whatever case.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(name))
    }

    /// The algorithm's name, as it is configured and as it travels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::HmacSha384 => "hmac-sha384",
            Self::HmacSha512 => "hmac-sha512",
        }
    }
}

/// `[mdns]`: the same adverts on the LAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MdnsConfig {
    /// Whether to advertise and browse there.
    pub enabled: bool,
    /// On which interfaces; where empty, on every one that is no tunnel, bridge port
    /// or container link.
    pub interfaces: Vec<String>,
}

/// `[relay]`: TURN servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayConfig {
    /// Whether to use relays.
    pub enabled: bool,
    /// The servers; where empty, the zone's SRV records name them.
    pub servers: Vec<RelayUri>,
    /// The secret from which time-limited credentials are made; without it there is no
    /// relay.
    pub username_secret: Option<Secret<String>>,
    /// Certificate authorities in PEM that are believed beside the system's.
    pub ca_file: Option<PathBuf>,
}

impl RelayConfig {
    /// Whether this node may use relays: it is told to, and has a secret for them.
    pub fn is_used(&self) -> bool {
        self.enabled && self.username_secret.is_some()
    }
}

/// `[network] trust`: whose adverts count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Only the adverts of these keys.
    Listed(BTreeSet<PublicKey>),
    /// Every properly signed advert of the zone.
    Zone,
    /// Those that the network's key has certified, by way of an invite.
    Members,
}

/// `[[peer]]`: a plain WireGuard peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its public key.
    pub public_key: PublicKey,
    /// Where it is; `None` waits until it comes to us.
    pub endpoint: Option<SocketAddr>,
    /// The prefixes behind it; no host bits, and no other peer has the same.
    pub routes: Vec<IpNet>,
    /// The symmetric key mixed into the handshake.
    pub preshared_key: Option<Secret<[u8; 32]>>,
    /// Seconds between keepalives; `None` sends none.
    pub keepalive: Option<u16>,
    /// Where its key stands in the file.
    position: Option<(usize, usize)>,
}

impl Config {
    /// Reads and checks a configuration file and the secrets that it names.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the line, the key and what was expected.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let whole = |message: String| ConfigError {
            file: file.to_owned(),
            position: None,
            key: String::new(),
            message,
        };
        let bytes = fs::read(file).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                whole("there is no such file; name the configuration with -c FILE".to_owned())
            }
            _ => whole(format!("cannot be read: {error}")),
        })?;
        let text = from_utf8(&bytes).map_err(|error| {
            let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            ConfigError {
                position: Some((line + 1, 1)),
                ..whole("the line is not UTF-8 text".to_owned())
            }
        })?;
        Self::parse(file, text)
    }

    /// The configuration of a rendezvous of which nothing is said but its network.
    ///
    /// # Errors
    /// [`ConfigError`] when the network's file cannot be read.
    pub fn of_network(file: &Path) -> Result<Self, ConfigError> {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        Self::parse(file, &format!("[serve.zone]\nnetwork = {}\n", toml::Value::from(&*name)))
    }

    /// The same, but where the file is missing: what holds then. A node that has a token, or
    /// has joined before, needs no file.
    ///
    /// # Errors
    /// [`ConfigError`] when there is one, and something is wrong with it.
    pub fn load_if_present(file: &Path) -> Result<Self, ConfigError> {
        if file.exists() { Self::load(file) } else { Self::parse(file, "") }
    }

    /// Checks a configuration's text; relative paths are relative to `file`.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the line, the key and what was expected.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        read::config(file, text)
    }

    /// Checks that this is the configuration of a node, and not of a rendezvous alone.
    ///
    /// # Errors
    /// [`ConfigError`] when there is nobody to meet.
    pub fn check_node(&self) -> Result<(), ConfigError> {
        if self.zone.is_some() || !self.peers.is_empty() {
            return Ok(());
        }
        Err(self.missing("zone", read::NEEDS_PEERS))
    }

    /// What is to be served.
    ///
    /// # Errors
    /// [`ConfigError`] when the section is missing.
    pub fn need_serve(&self) -> Result<&ServeConfig, ConfigError> {
        let expected = "a [serve] section with what is to be served";
        self.serve.as_ref().ok_or_else(|| self.missing("serve", expected))
    }

    fn missing(&self, key: &str, expected: &str) -> ConfigError {
        ConfigError {
            file: self.file.clone(),
            position: None,
            key: key.to_owned(),
            message: format!("is missing; expected {expected}"),
        }
    }

    /// Checks what only shows once the node's own key is known.
    ///
    /// # Errors
    /// [`ConfigError`] when the node is configured as its own peer.
    pub fn check_own_key(&self, own: &PublicKey) -> Result<(), ConfigError> {
        match self.peers.iter().enumerate().find(|(_, peer)| peer.public_key == *own) {
            None => Ok(()),
            Some((index, peer)) => Err(ConfigError {
                file: self.file.clone(),
                position: peer.position,
                key: format!("peer[{index}].public_key"),
                message: "is this node's own key; expected that of another node".to_owned(),
            }),
        }
    }
}
