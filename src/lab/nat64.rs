//! An IPv6 site's way to IPv4: tayga as the translator on its router, masqueraded as the
//! router's own IPv4 address, and BIND as a resolver that makes IPv6 addresses (DNS64).

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use zonemesh_discovery::nat64::Prefix64;

use super::{
    namespace::run,
    nat::{LAN, WAN},
    net::Site,
    process::{Daemon, Protocol},
};

/// The programs beside those of every lab.
pub const PROGRAMS: [&str; 2] = ["tayga", "named"];

const START_LIMIT: Duration = Duration::from_secs(20);

/// A prefix of the network's own: with the well-known one tayga refuses the lab's
/// addresses (RFC 6052 §3.1).
const PREFIX: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2001, 2, 0x64, 0, 0, 0, 0, 0), 96);

/// What tayga makes IPv4 addresses of the hosts of, seen by the router alone.
const POOL: &str = "192.168.255.0/24";
const POOL_ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 255, 1);

const LINK: &str = "nat64";

/// A running translator and its resolver, killed when they are dropped.
#[derive(Debug)]
pub struct Nat64 {
    _tayga: Daemon,
    _named: Daemon,
    prefix: Prefix64,
    public: Ipv4Addr,
}

impl Nat64 {
    /// Starts them on the router of an IPv6 site at the core; `folder` takes their files.
    /// From then on the resolver is that of all programs of this world.
    ///
    /// # Errors
    /// When something cannot be started.
    pub fn start(site: &Site, folder: &Path) -> Result<Self> {
        let router = site.router();
        let IpAddr::V6(outer) = site.public() else {
            bail!("{} is no IPv6 site", router.name());
        };
        let folder = folder.join(format!("nat64-{}", router.name()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let (addr, length) = PREFIX;
        let prefix = Prefix64::new(addr, length).context("a length that is allowed")?;

        // The core gives each attachment the same number in both families.
        let number = u8::try_from(outer.segments()[3]).context("an attachment of the core")?;
        let public = Ipv4Addr::new(198, 18, number, 2);
        let core = Ipv4Addr::new(198, 18, number, 1);
        let config = folder.join("tayga.conf");
        let text = format!(
            "tun-device {LINK}\nipv4-addr {POOL_ROUTER}\nprefix {prefix}\n\
             dynamic-pool {POOL}\ndata-dir {}\n",
            folder.display()
        );
        fs::write(&config, text)?;
        let config = config.to_string_lossy();
        router.run("tayga", &["--mktun", "-c", &config])?;
        router.ip(&format!(
            "link set {LINK} up
             addr add {public}/24 dev {WAN}
             route add default via {core}
             route add {POOL} dev {LINK}
             route add {prefix} dev {LINK}"
        ))?;
        router.nft(&format!(
            "table inet filter {{
               chain forward {{
                 iifname {LAN} oifname {LINK} accept
                 iifname {LINK} oifname {WAN} accept
               }}
             }}
             table ip nat64 {{
               chain after {{
                 type nat hook postrouting priority srcnat;
                 oifname {WAN} ip saddr {POOL} masquerade
               }}
             }}"
        ))?;
        let mut tayga = router.command("tayga");
        tayga.args(["-d", "-c", &config]);
        let mut tayga = Daemon::spawn("tayga", &mut tayga, &folder.join("tayga.log"))?;
        // It answers at the address that its own IPv4 one makes.
        let own = prefix.synthesise(POOL_ROUTER).to_string();
        tayga.wait_ready(START_LIMIT, || {
            router.run("ping", &["-n", "-q", "-c", "1", "-W", "1", &own]).is_ok()
        })?;
        let named = start_resolver(site, &folder, prefix)?;
        Ok(Self { _tayga: tayga, _named: named, prefix, public })
    }

    /// The prefix that leads to IPv4.
    pub fn prefix(&self) -> Prefix64 {
        self.prefix
    }

    /// The IPv4 address as which the site's hosts appear to the outside.
    pub fn public(&self) -> IpAddr {
        self.public.into()
    }
}

/// A resolver that knows the one name by which the prefix shows (RFC 7050).
fn start_resolver(site: &Site, folder: &Path, prefix: Prefix64) -> Result<Daemon> {
    let router = site.router();
    let zone = folder.join("ipv4only.zone");
    fs::write(
        &zone,
        "$TTL 30\n@ SOA ns hostmaster 1 3600 900 604800 30\n@ NS ns\nns A 192.0.0.170\n\
         @ A 192.0.0.170\n@ A 192.0.0.171\n",
    )?;
    let config = folder.join("named.conf");
    fs::write(
        &config,
        format!(
            "options {{\n  directory \"{folder}\";\n  pid-file \"{folder}/named.pid\";\n  \
             session-keyfile none;\n  listen-on {{ none; }};\n  listen-on-v6 {{ any; }};\n  \
             recursion no;\n  dnssec-validation no;\n  \
             dns64 {prefix} {{ clients {{ any; }}; }};\n}};\ncontrols {{ }};\n\
             zone \"ipv4only.arpa\" {{ type primary; file \"{zone}\"; }};\n",
            folder = folder.display(),
            zone = zone.display(),
        ),
    )?;
    let mut command = router.command("named");
    command.arg("-g").arg("-c").arg(&config);
    let mut named = Daemon::spawn("the resolver", &mut command, &folder.join("named.log"))?;
    let process = named.process();
    named.wait_ready(START_LIMIT, || process.bound(Protocol::Tcp, 53) > 0)?;
    let resolv = folder.join("resolv.conf");
    fs::write(&resolv, format!("nameserver {}\n", site.inner()))?;
    let mut mount = Command::new("mount");
    mount.arg("--bind").arg(&resolv).arg("/etc/resolv.conf");
    run(&mut mount, "")?;
    Ok(named)
}
