//! The lab's network: the core, public hosts, and sites behind their routers.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context, Result, bail};
use ipnet::{IpNet, Ipv4Net};

use super::{
    namespace::Namespace,
    nat::{Kind, LAN, WAN},
    traffic::{COUNTERS, Traffic},
    weather::Fault,
};

/// The addresses of the core and of what is attached to it.
const CORE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 16);

/// A host's first link.
const ETH: &str = "eth0";

/// The first host of a LAN gets this number; below are the router and, in a carrier's
/// network, the customers' routers.
const FIRST_HOST: u8 = 10;

/// The core of a lab and what is attached to it.
///
/// Its `n`th attachment has 198.18.`n`.0/24 and 2001:2:0:`n`::/64, of the ranges that
/// are kept for tests of network equipment (RFC 2544, RFC 5180): programs take them
/// for public addresses, which they do not with those kept for documentation.
#[derive(Debug)]
pub struct Lab {
    pub(super) core: Namespace,
    /// The far ends of its links, in the order of their numbers.
    pub(super) attached: Vec<(Namespace, &'static str)>,
    /// What goes wrong at the core, in the order in which it began.
    pub(super) faults: Vec<Fault>,
    /// How many faults there have been.
    pub(super) fault_count: u32,
}

/// A machine of the lab with its addresses, the first one first to be used.
#[derive(Debug, Clone)]
pub struct Host {
    /// Where it lives.
    pub namespace: Namespace,
    /// Its addresses, IPv4 before IPv6.
    pub addresses: Vec<IpAddr>,
}

impl Host {
    /// Its first IPv4 address.
    ///
    /// # Panics
    /// When it stands at an IPv6 site.
    pub fn ipv4(&self) -> IpAddr {
        *self.addresses.iter().find(|ip| ip.is_ipv4()).expect("only IPv6 sites lack IPv4")
    }

    /// Its first IPv6 address.
    ///
    /// # Panics
    /// When it stands at an IPv4 site.
    pub fn ipv6(&self) -> IpAddr {
        *self.addresses.iter().find(|ip| ip.is_ipv6()).expect("only IPv4 sites lack IPv6")
    }
}

/// A router with its NAT or firewall, and the LAN behind it.
#[derive(Debug)]
pub struct Site {
    router: Namespace,
    kind: Kind,
    lan: IpNet,
    uplink: Uplink,
    hosts: u8,
    customers: u8,
}

/// How a router is attached to the outside.
#[derive(Debug)]
struct Uplink {
    /// The next router, with the length of the prefix that both share.
    gateway: IpNet,
    /// The router's own outer address.
    public: IpAddr,
}

impl Lab {
    /// Makes a lab with nothing but its core.
    ///
    /// # Errors
    /// When the kernel refuses, or this world has a lab already.
    pub fn new() -> Result<Self> {
        let core = Namespace::add("core")?;
        core.forward()?;
        core.nft(COUNTERS)?;
        Ok(Self { core, attached: Vec::new(), faults: Vec::new(), fault_count: 0 })
    }

    /// A host with `addresses` public addresses of each family, open to all.
    ///
    /// # Errors
    /// When the name is taken or the kernel refuses.
    pub fn public_host(&mut self, name: &str, addresses: u8) -> Result<Host> {
        let namespace = Namespace::add(name)?;
        let number = self.attach(&namespace, ETH)?;
        let own = 2..2 + u16::from(addresses);
        let mut ips: Vec<IpAddr> = own.clone().map(|host| core_v4(number, host).into()).collect();
        ips.extend(own.map(|host| IpAddr::from(core_v6(number, host))));
        let mut batch = format!("link set {ETH} up\n");
        for ip in &ips {
            let length = if ip.is_ipv4() { 24 } else { 64 };
            let _ = writeln!(batch, "addr add {ip}/{length} dev {ETH} {}", no_dad(*ip));
        }
        let _ = writeln!(batch, "route add default via {}", core_v4(number, 1));
        let _ = writeln!(batch, "route add default via {}", core_v6(number, 1));
        namespace.ip(&batch)?;
        self.core.wait_for_links(&[&core_link(number)])?;
        Ok(Host { namespace, addresses: ips })
    }

    /// A site whose router, of this kind, is attached to the core. `lan` is the prefix
    /// of its hosts: an IPv4 one, or an IPv6 one for [`Kind::Ipv6Firewall`]. That of a
    /// firewall is public, so no other site may have it.
    ///
    /// # Errors
    /// When the name is taken, `lan` does not fit the kind, or the kernel refuses.
    pub fn site(&mut self, name: &str, kind: Kind, lan: &str) -> Result<Site> {
        let lan = parse_lan(kind, lan)?;
        let router = Namespace::add(name)?;
        router.forward()?;
        let number = self.attach(&router, WAN)?;
        let uplink = match lan {
            IpNet::V4(_) => Uplink {
                gateway: net(core_v4(number, 1).into(), 24)?,
                public: core_v4(number, 2).into(),
            },
            IpNet::V6(_) => Uplink {
                gateway: net(core_v6(number, 1).into(), 64)?,
                public: core_v6(number, 2).into(),
            },
        };
        if !kind.translates() {
            self.core.ip(&format!("route add {lan} via {}", uplink.public))?;
        }
        let site = Site::furnish(router, kind, lan, uplink)?;
        self.core.wait_for_links(&[&core_link(number)])?;
        Ok(site)
    }

    /// Gives a site's router one more outer address, which need not be of the lab's range.
    ///
    /// # Errors
    /// When the site is not at the core, or the kernel refuses.
    pub fn add_public(&self, site: &Site, public: Ipv4Addr) -> Result<()> {
        site.router.ip(&format!("addr add {public}/32 dev {WAN}"))?;
        self.core.ip(&format!("route add {public}/32 via {}", site.public()))
    }

    /// The packets that the core has forwarded so far.
    ///
    /// # Errors
    /// When nft cannot be asked.
    pub fn traffic(&self) -> Result<Traffic> {
        Traffic::read(&self.core)
    }

    /// The packets among them that are WireGuard's data as such: between a relay and its
    /// client it is wrapped up.
    ///
    /// # Errors
    /// When nft cannot be asked.
    pub fn wireguard_data(&self) -> Result<Traffic> {
        Traffic::read_data(&self.core)
    }

    /// Links `device` of `namespace` to the core, and gives the link its number.
    fn attach(&mut self, namespace: &Namespace, device: &'static str) -> Result<u8> {
        let number = u8::try_from(self.attached.len() + 1).context("the core is full")?;
        let (v4, v6) = (core_v4(number, 1), core_v6(number, 1));
        self.core.ip(&format!(
            "link add {link} type veth peer name {device} netns {name}
             link set {link} up
             addr add {v4}/24 dev {link}
             addr add {v6}/64 dev {link} nodad",
            link = core_link(number),
            name = namespace.name(),
        ))?;
        self.attached.push((namespace.clone(), device));
        Ok(number)
    }
}

impl Site {
    /// One more host on the site's LAN.
    ///
    /// # Errors
    /// When the name is taken or the kernel refuses.
    pub fn host(&mut self, name: &str) -> Result<Host> {
        let namespace = Namespace::add(name)?;
        let port = self.plug(&namespace, ETH)?;
        let ip = self.host_address(port);
        self.configure(&namespace, ip)?;
        self.router.wait_for_links(&[LAN, &lan_port(port)])?;
        Ok(Host { namespace, addresses: vec![ip] })
    }

    /// Links a host of another site to this LAN as well: a second uplink, which its routes choose
    /// only where the first one is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join(&mut self, host: &mut Host) -> Result<()> {
        let device = format!("eth{}", host.addresses.len());
        let port = self.plug(&host.namespace, &device)?;
        let ip = self.host_address(port);
        host.namespace.ip(&format!(
            "link set {device} up
             addr add {ip}/{length} dev {device} {no_dad}
             route add default via {router} dev {device} metric 100",
            length = self.lan.prefix_len(),
            no_dad = no_dad(ip),
            router = nth(self.lan, 1),
        ))?;
        self.router.wait_for_links(&[LAN, &lan_port(port)])?;
        host.addresses.push(ip);
        Ok(())
    }

    /// Takes over a host from another site, as when a machine roams: its link is unplugged
    /// there and plugged in here, and it gets an address and a router of this LAN.
    ///
    /// # Errors
    /// When `from` has no such host, the sites are not of one family, or the kernel
    /// refuses.
    pub fn take_host(&mut self, from: &Site, host: &mut Host) -> Result<()> {
        let old = host.addresses.first().context("a host has an address")?;
        let number = (0..from.hosts).find(|port| from.host_address(*port) == *old);
        let number = number.with_context(|| format!("{} has no {old}", from.router.name()))?;
        let port = self.hosts;
        let ip = self.host_address(port);
        if ip.is_ipv4() != old.is_ipv4() {
            bail!("{ip} is of another family than {old}");
        }
        self.hosts += 1;
        from.router.ip(&format!(
            "link set {link} nomaster down
             link set {link} netns {router} name {new}",
            link = lan_port(number),
            router = self.router.name(),
            new = lan_port(port),
        ))?;
        // The old address first: a machine knows that it has moved before it has a new one.
        host.namespace.ip(&format!("addr flush dev {ETH} scope global"))?;
        self.router.ip(&format!("link set {} master {LAN} up", lan_port(port)))?;
        self.router.wait_for_links(&[LAN, &lan_port(port)])?;
        self.configure(&host.namespace, ip)?;
        host.addresses = vec![ip];
        Ok(())
    }

    /// A site whose router is a customer of this one: its outer address is one of this
    /// site's LAN, as behind a carrier-grade NAT.
    ///
    /// # Errors
    /// When the name is taken, this or the new site is no NAT, or the kernel
    /// refuses.
    pub fn customer(&mut self, name: &str, kind: Kind, lan: &str) -> Result<Site> {
        let lan = parse_lan(kind, lan)?;
        if !self.kind.translates() || !kind.translates() {
            bail!("only NATs are nested");
        }
        let router = Namespace::add(name)?;
        router.forward()?;
        self.customers += 1;
        let gateway = net(nth(self.lan, 1), self.lan.prefix_len())?;
        let public = nth(self.lan, 1 + u16::from(self.customers));
        let port = lan_port(self.plug(&router, WAN)?);
        let site = Site::furnish(router, kind, lan, Uplink { gateway, public })?;
        self.router.wait_for_links(&[LAN, &port])?;
        Ok(site)
    }

    /// The router's namespace.
    pub fn router(&self) -> &Namespace {
        &self.router
    }

    /// The packets that the router has forwarded since its NAT was started, hairpins
    /// included. What its LAN's hosts send each other directly is not among them.
    ///
    /// # Errors
    /// When nft cannot be asked.
    pub fn traffic(&self) -> Result<Traffic> {
        Traffic::read(&self.router)
    }

    /// The router's address on the LAN.
    pub fn inner(&self) -> IpAddr {
        nth(self.lan, 1)
    }

    /// The address as which its hosts appear to the outside.
    pub fn public(&self) -> IpAddr {
        self.uplink.public
    }

    /// Restarts the router's NAT with another public address: every mapping is lost.
    /// Hands back the new address.
    ///
    /// # Errors
    /// When the router is not a NAT at the core, or the kernel refuses.
    pub fn restart_nat(&mut self) -> Result<Ipv4Addr> {
        let old = match self.uplink.public {
            IpAddr::V4(public) if self.kind.translates() && CORE.contains(&public) => public,
            _ => bail!("{} is not a NAT at the core", self.router.name()),
        };
        let new = Ipv4Addr::from(u32::from(old) + 1);
        let length = self.uplink.gateway.prefix_len();
        // Without an address there is no way out in between.
        self.router.ip(&format!("addr del {old}/{length} dev {WAN}"))?;
        self.uplink.public = new.into();
        self.router.nft(&self.kind.ruleset(self.lan, Some(new)))?;
        self.router.nft(COUNTERS)?;
        self.router.run("conntrack", &["-F"])?;
        self.router.ip(&format!(
            "addr add {new}/{length} dev {WAN}
             route add default via {}",
            self.uplink.gateway.addr()
        ))?;
        Ok(new)
    }

    fn furnish(router: Namespace, kind: Kind, lan: IpNet, uplink: Uplink) -> Result<Site> {
        let public = match uplink.public {
            IpAddr::V4(public) if kind.translates() => Some(public),
            _ => None,
        };
        // A bridge without a fixed address takes on that of its newest port, and hosts
        // lose their router for as long as they remember the old one.
        router.ip(&format!(
            "link add {LAN} address 02:00:00:00:00:01 type bridge mcast_snooping 0
             link set {LAN} up
             addr add {inner}/{inner_length} dev {LAN} {inner_dad}
             link set {WAN} up
             addr add {outer}/{outer_length} dev {WAN} {outer_dad}
             route add default via {gateway}",
            inner = nth(lan, 1),
            inner_length = lan.prefix_len(),
            inner_dad = no_dad(lan.addr()),
            outer = uplink.public,
            outer_length = uplink.gateway.prefix_len(),
            outer_dad = no_dad(uplink.public),
            gateway = uplink.gateway.addr(),
        ))?;
        router.nft(&kind.ruleset(lan, public))?;
        // The kernel has them once connections are tracked, which the ruleset sees to.
        let settings = kind.settings();
        router
            .set(&settings.iter().map(|(key, value)| (*key, value.as_str())).collect::<Vec<_>>())?;
        router.nft(COUNTERS)?;
        Ok(Site { router, kind, lan, uplink, hosts: 0, customers: 0 })
    }

    /// The address of the host at this port.
    fn host_address(&self, port: u8) -> IpAddr {
        nth(self.lan, u16::from(FIRST_HOST + port))
    }

    /// Gives a host that is plugged in an address and a way out.
    fn configure(&self, host: &Namespace, ip: IpAddr) -> Result<()> {
        host.ip(&format!(
            "link set {ETH} up
             addr add {ip}/{length} dev {ETH} {no_dad}
             route add default via {router}",
            length = self.lan.prefix_len(),
            no_dad = no_dad(ip),
            router = nth(self.lan, 1),
        ))
    }

    /// Links `device` of `namespace` to the LAN, and gives the port its number.
    fn plug(&mut self, namespace: &Namespace, device: &str) -> Result<u8> {
        let port = self.hosts;
        self.hosts += 1;
        self.router.ip(&format!(
            "link add {link} type veth peer name {device} netns {name}
             link set {link} master {LAN} up",
            link = lan_port(port),
            name = namespace.name(),
        ))?;
        Ok(port)
    }
}

/// The core's end of an attachment.
fn core_link(number: u8) -> String {
    format!("to{number}")
}

/// The router's end of a host's link.
fn lan_port(port: u8) -> String {
    format!("port{port}")
}

fn core_v4(number: u8, host: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, number, 0)) + u32::from(host))
}

fn core_v6(number: u8, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 2, 0, u16::from(number), 0, 0, 0, host)
}

fn parse_lan(kind: Kind, lan: &str) -> Result<IpNet> {
    let lan: IpNet = lan.parse().with_context(|| format!("not a prefix: {lan}"))?;
    if lan.addr().is_ipv6() != (kind == Kind::Ipv6Firewall) {
        bail!("{lan} does not fit a router of the kind {kind:?}");
    }
    Ok(lan.trunc())
}

fn net(ip: IpAddr, length: u8) -> Result<IpNet> {
    IpNet::new(ip, length).context("no prefix has this length")
}

/// The address of this number in a prefix.
fn nth(prefix: IpNet, number: u16) -> IpAddr {
    match prefix {
        IpNet::V4(v4) => Ipv4Addr::from(u32::from(v4.network()) + u32::from(number)).into(),
        IpNet::V6(v6) => Ipv6Addr::from(u128::from(v6.network()) + u128::from(number)).into(),
    }
}

/// The flag that makes an IPv6 address usable at once; IPv4 needs none.
fn no_dad(ip: IpAddr) -> &'static str {
    if ip.is_ipv6() { "nodad" } else { "" }
}
