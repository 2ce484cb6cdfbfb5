//! A lab with the services that a mesh stands on: a zone, STUN servers, and relays.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::{
    member::{RelayAccess, Services},
    namespace::run,
    net::{Host, Lab},
    programs,
    relay_server::{RelayKind, RelayServer, RelaySettings},
    stun_server::StunServer,
    zone_server::{KEY_ALGORITHM, ZoneServer, ZoneServerConfig, ZoneServerKind},
};

/// Holds everything that a lab writes. A world's `/run` goes with the world.
const FOLDER: &str = "/run/lab";

/// The zone that the members share.
const ZONE: &str = "mesh.example";

/// The key of the lab's zones. It guards nothing: who reaches the server is in the lab.
const KEY_NAME: &str = "mesh-key";
const KEY_SECRET: &str = "em9uZW1lc2ggbGFiIGtleSwga25vd24gdG8gYWxsISE=";

/// Where the services are, as anywhere.
const DNS_PORT: u16 = 53;
const STUN_PORT: u16 = 3478;

/// Where the zone is served as well, and relays by TLS: the only port that some firewalls
/// let anything out to.
pub const HTTPS_PORT: u16 = 443;

/// The addresses by which nodes know the services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    Ipv4,
    /// IPv6
    Ipv6,
}

/// A lab, its services, and what nodes must know of them.
pub struct Setup {
    /// The network.
    pub lab: Lab,
    /// What nodes must know.
    pub services: Services,
    kind: ZoneServerKind,
    zone_host: Host,
    zone_server: ZoneServer,
    stun_host: Host,
    /// Ends with the lab.
    _stun_server: StunServer,
    /// The relays, in the order in which they were added, each with its host.
    pub relays: Vec<(Host, RelayServer)>,
    family: Family,
}

impl Setup {
    /// Builds a network with a zone and a STUN server, and nothing else yet.
    /// `executable` is the `zonemesh` that nodes will run.
    ///
    /// # Errors
    /// When a program is missing, or something does not start.
    pub fn new(kind: ZoneServerKind, family: Family, executable: &Path) -> Result<Self> {
        programs::require(&programs_for(kind))?;
        let folder = PathBuf::from(FOLDER);
        fs::create_dir_all(&folder)?;
        let mut lab = Lab::new()?;
        let zone_host = lab.public_host("zone", 1)?;
        // RFC 5780 wants two addresses, and so do the nodes.
        let stun_host = lab.public_host("stun", 2)?;
        let of_family = |ip: &&IpAddr| ip.is_ipv4() == (family == Family::Ipv4);
        let stun_ips: Vec<IpAddr> = stun_host.addresses.iter().filter(of_family).copied().collect();
        let zone_ip = *zone_host.addresses.iter().find(of_family).expect("public hosts have both");
        let zone_server = start_zone(kind, &zone_host, zone_ip, KEY_NAME, KEY_SECRET)?;
        let stun_server = StunServer::start(
            |name| stun_host.namespace.command(name),
            &folder,
            &stun_ips,
            STUN_PORT,
        )?;
        let services = Services {
            executable: executable.to_owned(),
            folder,
            zone: ZONE.to_owned(),
            zone_server: zone_server.address(),
            tsig_name: KEY_NAME.to_owned(),
            tsig_algorithm: KEY_ALGORITHM.to_owned(),
            tsig_secret: KEY_SECRET.to_owned(),
            stun_servers: stun_server.addresses().to_owned(),
            relay: None,
        };
        Ok(Self {
            lab,
            services,
            kind,
            zone_host,
            zone_server,
            stun_host,
            _stun_server: stun_server,
            relays: Vec::new(),
            family,
        })
    }

    /// Adds a public host with a relay over UDP, TCP, and TLS on port 443. Nodes that are
    /// started from now on know it, in all these ways.
    ///
    /// # Errors
    /// When it does not start.
    pub fn add_relay(&mut self, kind: RelayKind) -> Result<()> {
        let host = self.lab.public_host(&format!("relay{}", self.relays.len() + 1), 1)?;
        let of_family = |ip: &&IpAddr| ip.is_ipv4() == (self.family == Family::Ipv4);
        let settings = RelaySettings {
            executable: self.services.executable.clone(),
            tls_port: Some(HTTPS_PORT),
            listen: host.addresses.iter().filter(of_family).copied().collect(),
            ..RelaySettings::default()
        };
        let relay = RelayServer::start(kind, &host, &self.services.folder, settings)?;
        self.relays.push((host, relay));
        self.offer_relays(|relay| relay.uris())
    }

    /// Tells nodes that are started from now on of these ways to the relays.
    ///
    /// # Errors
    /// When the authorities' certificates cannot be put together.
    pub fn offer_relays(&mut self, ways: impl Fn(&RelayServer) -> Vec<String>) -> Result<()> {
        let mut authorities = String::new();
        let mut servers = Vec::new();
        for (_, relay) in &self.relays {
            authorities.push_str(&fs::read_to_string(relay.ca_file())?);
            servers.extend(ways(relay));
        }
        let ca_file = self.services.folder.join("relays-ca.pem");
        fs::write(&ca_file, authorities)?;
        let secret = RelaySettings::default().secret;
        self.services.relay = Some(RelayAccess { servers, secret, ca_file });
        Ok(())
    }

    /// Every address of the services' hosts.
    pub fn service_ips(&self) -> Vec<IpAddr> {
        let relays = self.relays.iter().map(|(host, _)| host);
        let hosts = [&self.zone_host, &self.stun_host].into_iter().chain(relays);
        hosts.flat_map(|host| host.addresses.clone()).collect()
    }

    /// The instances that the zone lists, as `dig` shows them.
    pub fn adverts(&self) -> Vec<String> {
        let name = format!("_wireguard._udp.{}", self.services.zone);
        self.dig(&name, "PTR").lines().map(str::to_owned).collect()
    }

    /// What `dig +short` says from the zone server's own host; nothing where the server
    /// is away.
    pub fn dig(&self, name: &str, kind: &str) -> String {
        let server = format!("@{}", self.services.zone_server.ip());
        let args = [server.as_str(), "+short", "+tries=1", "+time=2", name, kind];
        self.zone_host.namespace.run("dig", &args).unwrap_or_default()
    }

    /// Runs the lines of an `nsupdate` script against the zone, with its key.
    ///
    /// # Errors
    /// When the zone does not take the update.
    pub fn nsupdate(&self, script: &str) -> Result<()> {
        let Services { zone, zone_server, tsig_name, tsig_algorithm, tsig_secret, .. } =
            &self.services;
        let key = format!("{tsig_algorithm}:{tsig_name}:{tsig_secret}");
        let script = format!("server {}\nzone {zone}\n{script}\n", zone_server.ip());
        run(self.zone_host.namespace.command("nsupdate").args(["-y", &key]), &script).map(drop)
    }

    /// Kills the zone's server.
    pub fn stop_zone_server(&mut self) {
        self.zone_server.kill();
    }

    /// Starts the zone's server again, with the zone as it was and the key that the
    /// services name now.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_zone_server(&mut self) -> Result<()> {
        let ip = self.services.zone_server.ip();
        let Services { tsig_name, tsig_secret, .. } = &self.services;
        self.zone_server = start_zone(self.kind, &self.zone_host, ip, tsig_name, tsig_secret)?;
        Ok(())
    }
}

/// The programs that a lab with such a zone calls beside those of every lab.
pub fn programs_for(kind: ZoneServerKind) -> [&'static str; 6] {
    let server = match kind {
        ZoneServerKind::Bind => "named",
        ZoneServerKind::Knot => "knotd",
    };
    [server, "turnserver", "dig", "nsupdate", "conntrack", "ping"]
}

/// Starts the zone's server on its host, with whatever zone an earlier one left.
fn start_zone(
    kind: ZoneServerKind,
    host: &Host,
    ip: IpAddr,
    key_name: &str,
    key_secret: &str,
) -> Result<ZoneServer> {
    let namespace = host.namespace.clone();
    let config = ZoneServerConfig {
        zone: ZONE.to_owned(),
        listen: vec![ip],
        port: DNS_PORT,
        more_ports: vec![HTTPS_PORT],
        key_name: key_name.to_owned(),
        key_secret: key_secret.to_owned(),
        node_keys: vec![],
        // As Debian ships it: BIND hands the zone to all, Knot to nobody.
        transfers: None,
        extra_records: Vec::new(),
    };
    let folder = Path::new(FOLDER).join("zone");
    ZoneServer::start(kind, move |name| namespace.command(name), &folder, config)
}
