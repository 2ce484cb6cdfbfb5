//! miniupnpd on a site's router: a home router that maps ports for whoever asks from
//! its LAN, by PCP and NAT-PMP, by UPnP, or by all of them.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    nat::{LAN, WAN},
    net::{Lab, Site},
    process::{Daemon, Protocol},
};

/// How long it may take to open its sockets.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Where PCP and NAT-PMP are spoken (RFC 6887 §19), and UPnP's HTTP in a lab.
const PCP_PORT: u16 = 5351;
const HTTP_PORT: u16 = 5000;

/// The chains that miniupnpd writes its rules to.
const CHAINS: &str = "
    table inet upnp {
      chain forward { type filter hook forward priority filter; policy accept; jump mapped; }
      chain before { type nat hook prerouting priority dstnat; policy accept; jump in; }
      chain after { type nat hook postrouting priority srcnat; policy accept; jump out; }
      chain mapped { }
      chain in { }
      chain out { }
    }";

/// What a router speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// PCP and NAT-PMP.
    Pcp,
    /// UPnP.
    Upnp,
    /// All of them.
    All,
}

/// A running miniupnpd, killed when it is dropped.
#[derive(Debug)]
pub struct PortMapper {
    daemon: Daemon,
    public: IpAddr,
}

impl PortMapper {
    /// Starts it on a site's router; `folder` takes its files. It maps ports of an address
    /// of its own, since it takes those of a lab's core for private ones and refuses.
    /// A NAT that is restarted loses it.
    ///
    /// # Errors
    /// When it cannot be started or does not open its sockets in time.
    pub fn start(lab: &Lab, site: &Site, speaks: Speaks, folder: &Path) -> Result<Self> {
        let router = site.router();
        let IpAddr::V4(outer) = site.public() else {
            bail!("{} is no IPv4 site", router.name());
        };
        // Of a range that is in use somewhere: not in a lab, which has no way out.
        let [.., site_number, number] = outer.octets();
        let public = Ipv4Addr::new(198, 20, site_number, number);
        lab.add_public(site, public)?;
        router.nft(CHAINS)?;
        let folder = folder.join(format!("miniupnpd-{}", router.name()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let yes = |wanted: bool| if wanted { "yes" } else { "no" };
        let mut text = String::new();
        let _ = write!(
            text,
            "ext_ifname={WAN}\n\
             ext_ip={public}\n\
             listening_ip={LAN}\n\
             http_port={HTTP_PORT}\n\
             enable_natpmp={pcp}\n\
             enable_upnp={upnp}\n\
             upnp_table_name=upnp\n\
             upnp_nat_table_name=upnp\n\
             upnp_forward_chain=mapped\n\
             upnp_nat_chain=in\n\
             upnp_nat_postrouting_chain=out\n\
             ipv6_disable=yes\n\
             secure_mode=yes\n\
             system_uptime=yes\n\
             uuid=7e87cbea-191c-4e4d-b58c-ae05e2674f61\n\
             allow 1024-65535 0.0.0.0/0 1024-65535\n\
             deny 0-65535 0.0.0.0/0 0-65535\n",
            pcp = yes(speaks != Speaks::Upnp),
            upnp = yes(speaks != Speaks::Pcp),
        );
        let config = folder.join("miniupnpd.conf");
        fs::write(&config, text)?;
        let mut command = router.command("miniupnpd");
        // In the foreground, with its log on standard error.
        command.arg("-d").arg("-f").arg(config).arg("-P").arg(folder.join("pid"));
        let mut daemon = Daemon::spawn("miniupnpd", &mut command, &folder.join("log"))?;
        let process = daemon.process();
        daemon.wait_ready(START_LIMIT, || {
            (speaks == Speaks::Upnp || process.bound(Protocol::Udp, PCP_PORT) > 0)
                && (speaks == Speaks::Pcp || process.bound(Protocol::Tcp, HTTP_PORT) > 0)
        })?;
        Ok(Self { daemon, public: public.into() })
    }

    /// The address whose ports it maps.
    pub fn public(&self) -> IpAddr {
        self.public
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.daemon.log()
    }
}
