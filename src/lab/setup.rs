//! A lab with the services that a mesh stands on: a zone and STUN servers.

use std::{
    fmt, fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::{
    member::Services,
    namespace::run,
    net::{Host, Lab},
    process::Daemon,
    programs,
    stun_server::StunServer,
};

/// Holds everything that a lab writes. A world's `/run` goes with the world.
const FOLDER: &str = "/run/lab";

/// The zone that the members share.
const ZONE: &str = "mesh.example";

/// The program that serves the zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneProgram {
    /// BIND's `named`.
    Bind,
    /// Knot DNS's `knotd`.
    Knot,
}

impl fmt::Display for ZoneProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bind => "BIND",
            Self::Knot => "Knot",
        })
    }
}

/// The addresses by which nodes know the services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    Ipv4,
    /// IPv6
    Ipv6,
}

/// A lab, its services, and what nodes must know of them.
#[derive(Debug)]
pub struct Setup {
    /// The network.
    pub lab: Lab,
    /// What nodes must know.
    pub services: Services,
    program: ZoneProgram,
    zone_host: Host,
    zone_server: Daemon,
    stun_host: Host,
    /// Ends with the lab.
    _stun_server: StunServer,
}

impl Setup {
    /// Builds a network with a zone and a STUN server, and nothing else yet.
    /// `executable` is the `zonemesh` that nodes will run.
    ///
    /// # Errors
    /// When a program is missing, or something does not start.
    pub fn new(program: ZoneProgram, family: Family, executable: &Path) -> Result<Self> {
        let server = match program {
            ZoneProgram::Bind => "named",
            ZoneProgram::Knot => "knotd",
        };
        programs::require(&[server, "turnserver", "dig", "nsupdate"])?;
        let folder = PathBuf::from(FOLDER);
        fs::create_dir_all(&folder)?;
        let mut lab = Lab::new()?;
        let zone_host = lab.public_host("zone", 1)?;
        // RFC 5780 wants two addresses, and so do the nodes.
        let stun_host = lab.public_host("stun", 2)?;
        let of_family = |ip: &&IpAddr| ip.is_ipv4() == (family == Family::Ipv4);
        let stun_ips: Vec<IpAddr> = stun_host.addresses.iter().filter(of_family).copied().collect();
        let secret = run(Command::new("wg").arg("genkey"), "")?.trim().to_owned();
        let zone_ip = *zone_host.addresses.iter().find(of_family).expect("public hosts have both");
        let zone_server = start_zone(program, &zone_host, zone_ip, &secret)?;
        let stun_server =
            StunServer::start(|name| stun_host.namespace.command(name), &folder, &stun_ips, 3478)?;
        let services = Services {
            executable: executable.to_owned(),
            folder,
            zone: ZONE.to_owned(),
            zone_server: SocketAddr::new(zone_ip, 53),
            tsig_name: "mesh-key".to_owned(),
            tsig_algorithm: "hmac-sha256".to_owned(),
            tsig_secret: secret,
            stun_servers: stun_server.addresses().to_owned(),
        };
        Ok(Self {
            lab,
            services,
            program,
            zone_host,
            zone_server,
            stun_host,
            _stun_server: stun_server,
        })
    }

    /// Every address of the services' hosts.
    pub fn service_ips(&self) -> Vec<IpAddr> {
        [&self.zone_host, &self.stun_host].iter().flat_map(|host| host.addresses.clone()).collect()
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

    /// Starts the zone's server again, with the zone as it was.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_zone_server(&mut self) -> Result<()> {
        let ip = self.services.zone_server.ip();
        self.zone_server =
            start_zone(self.program, &self.zone_host, ip, &self.services.tsig_secret)?;
        Ok(())
    }
}

fn start_zone(program: ZoneProgram, host: &Host, listen: IpAddr, secret: &str) -> Result<Daemon> {
    let dir = Path::new(FOLDER).join("zone");
    fs::create_dir_all(&dir)?;
    let zone_file = dir.join("zone.db");
    let d = dir.display();
    if !zone_file.exists() {
        fs::write(
            &zone_file,
            format!(
                "$ORIGIN {ZONE}.\n$TTL 60\n@ SOA ns hostmaster 1 60 60 3600 5\n@ NS ns\nns A 198.18.1.2\n"
            ),
        )?;
    }
    let (program, args, config) = match program {
        ZoneProgram::Bind => (
            "named",
            vec!["-g", "-c"],
            format!(
                "options {{ directory \"{d}\"; pid-file \"{d}/named.pid\"; session-keyfile \"{d}/session.key\"; listen-on {{ any; }}; listen-on-v6 {{ any; }}; recursion no; notify no; dnssec-validation no; }};\ncontrols {{}};\nkey mesh-key {{ algorithm hmac-sha256; secret \"{secret}\"; }};\nzone \"{ZONE}\" {{ type primary; file \"zone.db\"; allow-update {{ key mesh-key; }}; allow-transfer {{ key mesh-key; }}; }};\n"
            ),
        ),
        ZoneProgram::Knot => (
            "knotd",
            vec!["-c"],
            format!(
                "server:\n  listen: {listen}@53\n  rundir: \"{d}\"\nkey:\n  - id: mesh-key\n    algorithm: hmac-sha256\n    secret: {secret}\nacl:\n  - id: mesh\n    key: mesh-key\n    action: [update, transfer]\ndatabase:\n  storage: \"{d}\"\nzone:\n  - domain: {ZONE}\n    file: \"{d}/zone.db\"\n    acl: mesh\n"
            ),
        ),
    };
    let file = dir.join("server.conf");
    fs::write(&file, config)?;
    let mut command = host.namespace.command(program);
    command.args(args).arg(&file);
    let mut daemon = Daemon::spawn(program, &mut command, &dir.join("log"))?;
    daemon.wait_ready(std::time::Duration::from_secs(10), || {
        host.namespace
            .run("dig", &[&format!("@{listen}"), "+short", "+tries=1", "+time=1", ZONE, "SOA"])
            .is_ok_and(|soa| !soa.is_empty())
    })?;
    Ok(daemon)
}
