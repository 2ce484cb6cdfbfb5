//! The lab's network: the core, public hosts, and sites behind their routers.

use std::{
    collections::HashMap,
    fmt::Write as _,
    iter::Sum,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Add,
};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde_json::Value;

use super::{
    namespace::Namespace,
    nat::{Kind, LAN, WAN},
};

/// A host's only link.
const ETH: &str = "eth0";

/// The first host of a LAN gets this number; below are the router and, in a carrier's
/// network, the customers' routers.
const FIRST_HOST: u8 = 10;

/// Counts the UDP packets that a router forwards, pair by pair of addresses.
const COUNTERS: &str = "
    table inet count {
      set ipv4 { typeof ip saddr . ip daddr; size 65535; flags dynamic; counter; }
      set ipv6 { typeof ip6 saddr . ip6 daddr; size 65535; flags dynamic; counter; }
      chain forward {
        type filter hook forward priority filter;
        meta l4proto udp update @ipv4 { ip saddr . ip daddr }
        meta l4proto udp update @ipv6 { ip6 saddr . ip6 daddr }
      }
    }";

/// The core of a lab and what is attached to it.
///
/// Its `n`th attachment has 198.18.`n`.0/24 and 2001:2:0:`n`::/64, of the ranges that
/// are kept for tests of network equipment (RFC 2544, RFC 5180): programs take them
/// for public addresses, which they do not with those kept for documentation.
#[derive(Debug)]
pub struct Lab {
    core: Namespace,
    attached: u8,
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

/// UDP packets that a router forwarded, by source and destination.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic(HashMap<(IpAddr, IpAddr), Count>);

/// Some UDP packets. A train of packets that a sender hands to the kernel at once counts
/// as one, so only the bytes tell what has passed for sure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets, or trains of them.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
}

impl Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

impl Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Self::add)
    }
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
        Ok(Self { core, attached: 0 })
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
    /// of its hosts: an IPv4 one, or an IPv6 one for [`Kind::Ipv6Firewall`].
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
            IpNet::V6(_) => {
                let public = core_v6(number, 2).into();
                self.core.ip(&format!("route add {lan} via {public}"))?;
                Uplink { gateway: net(core_v6(number, 1).into(), 64)?, public }
            }
        };
        let site = Site::furnish(router, kind, lan, uplink)?;
        self.core.wait_for_links(&[&core_link(number)])?;
        Ok(site)
    }

    /// The packets that the core has forwarded so far.
    ///
    /// # Errors
    /// When nft cannot be asked.
    pub fn traffic(&self) -> Result<Traffic> {
        Traffic::read(&self.core)
    }

    /// Links `device` of `namespace` to the core, and gives the link its number.
    fn attach(&mut self, namespace: &Namespace, device: &str) -> Result<u8> {
        self.attached = self.attached.checked_add(1).context("the core is full")?;
        let number = self.attached;
        let (v4, v6) = (core_v4(number, 1), core_v6(number, 1));
        self.core.ip(&format!(
            "link add {link} type veth peer name {device} netns {name}
             link set {link} up
             addr add {v4}/24 dev {link}
             addr add {v6}/64 dev {link} nodad",
            link = core_link(number),
            name = namespace.name(),
        ))?;
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
        let ip = nth(self.lan, u16::from(FIRST_HOST + port));
        namespace.ip(&format!(
            "link set {ETH} up
             addr add {ip}/{length} dev {ETH} {no_dad}
             route add default via {router}",
            length = self.lan.prefix_len(),
            no_dad = no_dad(ip),
            router = nth(self.lan, 1),
        ))?;
        self.router.wait_for_links(&[LAN, &lan_port(port)])?;
        Ok(Host { namespace, addresses: vec![ip] })
    }

    /// A site whose router is a customer of this one: its outer address is one of this
    /// site's LAN, as behind a carrier-grade NAT.
    ///
    /// # Errors
    /// When the name is taken, this or the new site is an IPv6 one, or the kernel
    /// refuses.
    pub fn customer(&mut self, name: &str, kind: Kind, lan: &str) -> Result<Site> {
        let lan = parse_lan(kind, lan)?;
        if self.lan.addr().is_ipv6() || lan.addr().is_ipv6() {
            bail!("only IPv4 sites are nested");
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
        let (IpAddr::V4(old), 24) = (self.uplink.public, self.uplink.gateway.prefix_len()) else {
            bail!("{} is not a NAT at the core", self.router.name());
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
            IpAddr::V4(public) => Some(public),
            IpAddr::V6(_) => None,
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
        router.nft(COUNTERS)?;
        Ok(Site { router, kind, lan, uplink, hosts: 0, customers: 0 })
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

impl Traffic {
    /// What `router` has counted.
    fn read(router: &Namespace) -> Result<Self> {
        let mut traffic = Traffic::default();
        for set in ["ipv4", "ipv6"] {
            let json = router.run("nft", &["-j", "list", "set", "inet", "count", set])?;
            let json: Value = serde_json::from_str(&json).context("nft prints JSON")?;
            let sets = json["nftables"].as_array().into_iter().flatten();
            for entry in sets.flat_map(|item| item["set"]["elem"].as_array()).flatten() {
                let entry = &entry["elem"];
                let ip = |index: usize| -> Result<IpAddr> {
                    let text = entry["val"]["concat"][index].as_str().unwrap_or_default();
                    text.parse().with_context(|| format!("not a pair of addresses: {entry}"))
                };
                let counted = |what: &str| entry["counter"][what].as_u64().unwrap_or_default();
                let count = Count { packets: counted("packets"), bytes: counted("bytes") };
                traffic.0.insert((ip(0)?, ip(1)?), count);
            }
        }
        Ok(traffic)
    }

    /// What passed between two addresses, both ways.
    pub fn between(&self, a: IpAddr, b: IpAddr) -> Count {
        self.sent(a, b) + self.sent(b, a)
    }

    /// What passed from one address to another.
    pub fn sent(&self, from: IpAddr, to: IpAddr) -> Count {
        self.0.get(&(from, to)).copied().unwrap_or_default()
    }

    /// All that passed.
    pub fn total(&self) -> Count {
        self.0.values().copied().sum()
    }

    /// All but what came from or went to these addresses.
    pub fn without(&self, services: &[IpAddr]) -> Count {
        let others = self
            .0
            .iter()
            .filter(|((from, to), _)| !services.contains(from) && !services.contains(to));
        others.map(|(_, count)| *count).sum()
    }

    /// What came on top of `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Traffic) -> Traffic {
        let added = |(&pair, count): (&(IpAddr, IpAddr), &Count)| {
            let before = earlier.0.get(&pair).copied().unwrap_or_default();
            let (packets, bytes) = (count.packets - before.packets, count.bytes - before.bytes);
            (pair, Count { packets, bytes })
        };
        let added = self.0.iter().map(added);
        Traffic(added.filter(|(_, count)| count.packets > 0).collect())
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
