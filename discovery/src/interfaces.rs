//! The addresses of this machine's own interfaces, and their changes, by rtnetlink.
//!
//! The [`InterfaceMonitor`] subscribes to the kernel's messages about links,
//! addresses and routes. A message is only a hint: a burst of them is waited out,
//! then everything is read again, and what is the same as before is no change. A
//! lost message or a lost subscription is therefore no harm: the monitor subscribes
//! again and reads again. A new default route is a change even where no address is:
//! the packets may take another way now, through another NAT.
//!
//! Which of the addresses are of use is said by two pure functions:
//! [`host_candidates`] for packets of peers, [`mdns_interfaces`] for the LAN's
//! multicast. Both leave out what belongs to containers and virtual machines: nobody
//! outside this machine reaches us there.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use ipnet::IpNet;
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder,
    packet_core::NetlinkPayload,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
        link::{LinkAttribute, LinkFlags},
        route::{RouteAttribute, RouteMessage, RouteType},
    },
};
use tokio::{task::JoinSet, time};

/// How long the kernel must be quiet before a change is looked at: an interface that
/// comes up sends a handful of messages within some milliseconds.
const QUIET: Duration = Duration::from_millis(100);

/// How long a burst may last before it is looked at all the same.
const LONGEST_BURST: Duration = Duration::from_secs(1);

/// The wait before a lost subscription is taken up again.
const RETRY: Duration = Duration::from_secs(1);

/// The most host addresses of one family that are of use. An advert holds eight
/// candidates, reflexive and mapped ones among them.
pub const MAX_HOST_ADDRESSES: usize = 4;

/// The most interfaces on which mDNS is spoken: the kernel lets one socket join 20
/// groups (`igmp_max_memberships`), and each group is joined per interface.
pub const MAX_MDNS_INTERFACES: usize = 8;

/// How the names of interfaces begin that lead to containers and virtual machines.
const INSIDE: [&str; 9] =
    ["cali", "cilium", "cni", "docker", "flannel", "kube-", "lxc", "veth", "virbr"];

/// An address of an interface, with what is to be known of the interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceAddress {
    /// The interface's number.
    pub index: u32,
    /// The interface's name.
    pub name: String,
    /// The address.
    pub addr: IpAddr,
    /// The length of the network's prefix.
    pub prefix_len: u8,
    /// Whether the interface is up and has a carrier.
    pub up: bool,
    /// Whether it leads back to this machine.
    pub loopback: bool,
    /// Whether there is just one other end, as with a tunnel.
    pub point_to_point: bool,
    /// Whether multicast can be sent.
    pub multicast: bool,
    /// Whether the address is not known yet to be ours alone (RFC 4862 §5.4), or known
    /// not to be.
    pub tentative: bool,
    /// Whether no new connection should use it (RFC 4862 §5.5.4).
    pub deprecated: bool,
    /// Whether it is one of those that change every day (RFC 8981).
    pub temporary: bool,
    /// Whether a default route of its family leads out of the interface.
    pub default_route: bool,
}

impl InterfaceAddress {
    /// Whether others reach us at this address.
    fn is_usable(&self) -> bool {
        let unicast = !self.addr.is_loopback()
            && !self.addr.is_multicast()
            && !self.addr.is_unspecified()
            && !is_link_local(self.addr);
        self.up && !self.loopback && !self.tentative && unicast
    }

    fn network(&self) -> Option<IpNet> {
        IpNet::new(self.addr, self.prefix_len).ok().map(|net| net.trunc())
    }
}

/// The addresses at which peers may reach this machine: IPv4 first, IPv6 with global
/// addresses first, at most [`MAX_HOST_ADDRESSES`] of each, none twice. `overlay` is
/// the mesh's own interface.
pub fn host_candidates(addresses: &[InterfaceAddress], overlay: &str) -> Vec<IpAddr> {
    let outside = || {
        addresses.iter().filter(|a| a.name != overlay && !leads_inside(&a.name) && a.is_usable())
    };
    // A temporary address is only for those who have no lasting one: the one that
    // outgoing packets carry is found out by STUN anyhow.
    let lasts = |one: &InterfaceAddress| {
        let twin = |two: &InterfaceAddress| {
            !two.temporary && two.index == one.index && two.network() == one.network()
        };
        !one.temporary || !outside().any(twin)
    };
    let rank = |addr: &IpAddr| match addr {
        IpAddr::V4(_) => 0,
        IpAddr::V6(v6) if !v6.is_unique_local() => 1,
        IpAddr::V6(_) => 2,
    };
    let mut found: Vec<IpAddr> = Vec::new();
    for address in outside().filter(|a| !a.deprecated && lasts(a)) {
        if !found.contains(&address.addr) {
            found.push(address.addr);
        }
    }
    found.sort_by_key(rank);
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = found.into_iter().partition(IpAddr::is_ipv4);
    let bounded = |family: Vec<IpAddr>| family.into_iter().take(MAX_HOST_ADDRESSES);
    bounded(v4).chain(bounded(v6)).collect()
}

/// The interfaces that lead to the Internet by IPv4 beside `main`, whose address packets carry
/// as a rule: each with its number and the first of its addresses that peers may use. `overlay`
/// is the mesh's own interface. Fewer than two ways out are no choice.
pub fn further_uplinks(
    addresses: &[InterfaceAddress],
    overlay: &str,
    main: IpAddr,
) -> Vec<(u32, String, IpAddr)> {
    let leads_out = |a: &&InterfaceAddress| {
        let is_outside = a.name != overlay && !leads_inside(&a.name) && a.is_usable();
        is_outside && a.default_route && a.addr.is_ipv4()
    };
    let main = addresses.iter().find(|a| a.addr == main).map(|a| a.index);
    let mut found: Vec<(u32, String, IpAddr)> = Vec::new();
    for address in addresses.iter().filter(leads_out).filter(|a| Some(a.index) != main) {
        if !found.iter().any(|(index, ..)| *index == address.index) {
            found.push((address.index, address.name.clone(), address.addr));
        }
    }
    found
}

/// The names of the interfaces on which mDNS is to be spoken, at most
/// [`MAX_MDNS_INTERFACES`]: those of `configured` that are there, or where none are
/// configured, those that lead to a LAN.
pub fn mdns_interfaces(
    addresses: &[InterfaceAddress],
    configured: &[String],
    overlay: &str,
) -> Vec<String> {
    let leads_to_lan = |a: &&InterfaceAddress| {
        a.multicast && !a.point_to_point && !leads_inside(&a.name) && a.is_usable()
    };
    let chosen = |a: &&InterfaceAddress| match configured {
        [] => a.name != overlay && leads_to_lan(a),
        _ => a.up && configured.contains(&a.name),
    };
    let mut names: Vec<String> = Vec::new();
    for address in addresses.iter().filter(chosen) {
        if names.len() < MAX_MDNS_INTERFACES && !names.contains(&address.name) {
            names.push(address.name.clone());
        }
    }
    names
}

/// What is another than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// An interface or an address.
    Addresses,
    /// A default route, and perhaps addresses too: the same addresses may lead through
    /// another NAT now.
    DefaultRoute,
}

/// Watches the machine's interfaces.
pub struct InterfaceMonitor {
    kernel: Option<Kernel>,
    known: Vec<InterfaceAddress>,
    /// What was heard and is not looked at yet. Here and not in a future, so that one
    /// that is dropped loses nothing.
    heard: Option<Hint>,
}

/// Why the interfaces cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// The kernel does not let us subscribe.
    #[error("cannot watch the interfaces by netlink: {0}")]
    Subscribe(#[from] io::Error),
    /// The kernel does not answer a question.
    #[error("cannot read the interfaces by netlink: {0}")]
    Read(#[from] rtnetlink::Error),
}

impl InterfaceMonitor {
    /// Subscribes, and reads all addresses for the first time.
    ///
    /// # Errors
    /// [`InterfaceError`] where the kernel refuses.
    pub async fn start() -> Result<Self, InterfaceError> {
        let kernel = Kernel::subscribe()?;
        let known = read(&kernel.handle).await?;
        Ok(Self { kernel: Some(kernel), known, heard: None })
    }

    /// All addresses as they were last read.
    pub fn addresses(&self) -> &[InterfaceAddress] {
        &self.known
    }

    /// Waits until the addresses or a default route have changed, and says which.
    /// Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// [`InterfaceError`] where the kernel refuses; a later call tries again, not
    /// before a second has passed.
    pub async fn changed(&mut self) -> Result<Change, InterfaceError> {
        loop {
            let kernel = match &mut self.kernel {
                Some(kernel) => kernel,
                None => {
                    time::sleep(RETRY).await;
                    self.heard = Some(Hint::Interfaces).max(self.heard);
                    self.kernel.insert(Kernel::subscribe()?)
                }
            };
            if self.heard.is_none() {
                self.heard = kernel.hints.next().await;
            }
            // Ended: the socket has overrun or broken.
            if self.heard.is_none() {
                self.kernel = None;
                continue;
            }
            let burst = async {
                while let Ok(Some(hint)) = time::timeout(QUIET, kernel.hints.next()).await {
                    self.heard = self.heard.max(Some(hint));
                }
            };
            // Where it goes on and on, what has come so far is enough.
            let _ = time::timeout(LONGEST_BURST, burst).await;
            let now = match read(&kernel.handle).await {
                Ok(now) => now,
                Err(error) => {
                    self.kernel = None;
                    return Err(error);
                }
            };
            let rerouted = self.heard.take() == Some(Hint::DefaultRoute);
            if rerouted || now != self.known {
                self.known = now;
                return Ok(if rerouted { Change::DefaultRoute } else { Change::Addresses });
            }
        }
    }
}

/// A subscription. The task that serves it ends with it.
struct Kernel {
    handle: Handle,
    hints: BoxStream<'static, Hint>,
    _task: JoinSet<()>,
}

/// What a message of the kernel is about, the one that tells more last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hint {
    /// A link or an address.
    Interfaces,
    /// A default route has come or gone.
    DefaultRoute,
}

impl Kernel {
    fn subscribe() -> Result<Self, InterfaceError> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])?;
        let mut task = JoinSet::new();
        task.spawn(connection);
        let hints = messages
            .filter_map(async |(message, _)| match message.payload {
                NetlinkPayload::InnerMessage(message) => Hint::read(&message),
                // An error nobody asked for, or an overrun: look again.
                _ => Some(Hint::Interfaces),
            })
            .boxed();
        Ok(Self { handle, hints, _task: task })
    }
}

impl Hint {
    fn read(message: &RouteNetlinkMessage) -> Option<Self> {
        use RouteNetlinkMessage::{DelAddress, DelLink, DelRoute, NewAddress, NewLink, NewRoute};
        match message {
            NewLink(_) | DelLink(_) | NewAddress(_) | DelAddress(_) => Some(Self::Interfaces),
            // All other routes are ours and the containers', and come by the hundred.
            NewRoute(route) | DelRoute(route) => {
                (route.header.destination_prefix_length == 0).then_some(Self::DefaultRoute)
            }
            _ => None,
        }
    }
}

/// Reads all addresses, in order of their interfaces.
async fn read(handle: &Handle) -> Result<Vec<InterfaceAddress>, InterfaceError> {
    let mut links = HashMap::new();
    let mut answers = handle.link().get().execute();
    while let Some(link) = answers.try_next().await? {
        let name = link.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        });
        if let Some(name) = name {
            links.insert(link.header.index, (name, link.header.flags));
        }
    }
    let mut ways_out = HashSet::new();
    let families = [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ];
    for family in families {
        let mut answers = handle.route().get(family).execute();
        while let Some(route) = answers.try_next().await? {
            ways_out.extend(ways_out_of(&route));
        }
    }
    let mut found = Vec::new();
    let mut answers = handle.address().get().execute();
    while let Some(address) = answers.try_next().await? {
        // A link that came between the two questions will be told of by a message.
        if let Some((name, flags)) = links.get(&address.header.index) {
            let found_here = interface_address(name, *flags, &address);
            found.extend(found_here.map(|address| {
                let default_route = ways_out.contains(&(address.index, address.addr.is_ipv4()));
                InterfaceAddress { default_route, ..address }
            }));
        }
    }
    found.sort();
    Ok(found)
}

fn interface_address(
    name: &str,
    link: LinkFlags,
    message: &AddressMessage,
) -> Option<InterfaceAddress> {
    let mut local = None;
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    // On a point-to-point link ADDRESS is the other end's.
    let addr = local.or(address)?;
    let is = |flag| message.header.flags.contains(flag);
    Some(InterfaceAddress {
        index: message.header.index,
        name: name.to_owned(),
        addr,
        prefix_len: message.header.prefix_len,
        up: link.contains(LinkFlags::Up | LinkFlags::Running),
        loopback: link.contains(LinkFlags::Loopback),
        point_to_point: link.contains(LinkFlags::Pointopoint),
        multicast: link.contains(LinkFlags::Multicast),
        tentative: is(AddressHeaderFlags::Dadfailed)
            || is(AddressHeaderFlags::Tentative) && !is(AddressHeaderFlags::Optimistic),
        deprecated: is(AddressHeaderFlags::Deprecated),
        // One bit with two meanings: a second address of its network with IPv4.
        temporary: is(AddressHeaderFlags::Secondary) && addr.is_ipv6(),
        default_route: false,
    })
}

/// The interfaces, each with whether by IPv4, out of which a default route leads; several where
/// it has more than one next hop.
fn ways_out_of(route: &RouteMessage) -> Vec<(u32, bool)> {
    let is_default =
        route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast;
    let is_ipv4 = route.header.address_family == AddressFamily::Inet;
    let mut out = Vec::new();
    for attribute in route.attributes.iter().filter(|_| is_default) {
        match attribute {
            RouteAttribute::Oif(index) => out.push((*index, is_ipv4)),
            RouteAttribute::MultiPath(hops) => {
                out.extend(hops.iter().map(|hop| (hop.interface_index, is_ipv4)));
            }
            _ => {}
        }
    }
    out
}

/// Whether an interface of this name leads to containers or virtual machines.
fn leads_inside(name: &str) -> bool {
    // Docker's own networks are `br-` with twelve hexadecimal digits; others call
    // the bridge to their LAN `br-lan`.
    let docker_network = name
        .strip_prefix("br-")
        .is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    docker_network || INSIDE.iter().any(|prefix| name.starts_with(prefix))
}

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => Ipv6Addr::is_unicast_link_local(&v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_to_the_outside_is_a_candidate() {
        let addresses = [
            InterfaceAddress { loopback: true, ..at("lo", "127.0.0.1/8") },
            at("eth0", "192.168.1.5/24"),
            at("eth0", "2001:db8:1::5/64"),
            at("eth0", "fe80::5/64"),
            at("wlan0", "192.168.2.5/24"),
            at("wlan0", "169.254.7.7/16"),
            InterfaceAddress { point_to_point: true, ..at("ppp0", "198.51.100.7/32") },
            at("br-lan", "192.168.3.1/24"),
            at("eth1", "fd00::5/64"),
        ];
        let expected = [
            "192.168.1.5",
            "192.168.2.5",
            "198.51.100.7",
            "192.168.3.1",
            "2001:db8:1::5",
            "fd00::5",
        ];
        assert_eq!(texts(&host_candidates(&addresses, "zm0")), expected);
        assert_eq!(mdns_interfaces(&addresses, &[], "zm0"), ["eth0", "wlan0", "br-lan", "eth1"]);
    }

    #[test]
    fn what_leads_inside_or_nowhere_is_none() {
        let addresses = [
            at("zm0", "10.42.1.1/24"),
            at("cni0", "10.42.1.2/24"),
            at("flannel.1", "10.42.0.0/32"),
            at("veth12ab", "10.1.0.1/24"),
            at("docker0", "172.17.0.1/16"),
            at("br-0123456789ab", "172.18.0.1/16"),
            at("virbr0", "192.168.122.1/24"),
            at("cali1234", "10.2.0.1/32"),
            InterfaceAddress { up: false, ..at("eth0", "192.168.1.5/24") },
            InterfaceAddress { tentative: true, ..at("eth1", "2001:db8::1/64") },
            InterfaceAddress { deprecated: true, multicast: false, ..at("eth1", "2001:db8::2/64") },
        ];
        assert!(host_candidates(&addresses, "zm0").is_empty());
        assert!(mdns_interfaces(&addresses, &[], "zm0").is_empty());
    }

    #[test]
    fn a_temporary_address_is_for_those_without_a_lasting_one() {
        let lasting = at("eth0", "2001:db8::1/64");
        let temporary = InterfaceAddress { temporary: true, ..at("eth0", "2001:db8::abcd/64") };
        let elsewhere = InterfaceAddress { temporary: true, ..at("eth0", "2001:db8:2::1/64") };
        let both = host_candidates(&[temporary.clone(), lasting, elsewhere], "zm0");
        assert_eq!(texts(&both), ["2001:db8::1", "2001:db8:2::1"]);
        assert_eq!(texts(&host_candidates(&[temporary], "zm0")), ["2001:db8::abcd"]);
    }

    #[test]
    fn there_are_bounds_and_no_doubles() {
        let mut addresses: Vec<InterfaceAddress> = Vec::new();
        for n in 0..20 {
            addresses.push(at(&format!("eth{n}"), &format!("192.168.{n}.1/24")));
            addresses.push(at(&format!("eth{n}"), &format!("2001:db8:{n}::1/64")));
            addresses.push(at(&format!("eth{n}"), "198.51.100.1/32"));
        }
        let found = host_candidates(&addresses, "zm0");
        let expected = ["192.168.0.1", "198.51.100.1", "192.168.1.1", "192.168.2.1"];
        assert_eq!(texts(&found)[..4], expected);
        assert_eq!(found.len(), 2 * MAX_HOST_ADDRESSES);
        assert_eq!(mdns_interfaces(&addresses, &[], "zm0").len(), MAX_MDNS_INTERFACES);
    }

    #[test]
    fn further_uplinks_lead_out_and_are_not_the_first() {
        let out = |address| InterfaceAddress { default_route: true, ..address };
        let addresses = [
            out(at("eth0", "192.168.1.5/24")),
            out(at("eth0", "2001:db8:1::5/64")),
            out(at("wwan0", "10.7.0.5/30")),
            out(at("wwan0", "10.7.0.6/30")),
            at("eth1", "192.168.3.5/24"),
            out(at("zm0", "10.42.1.1/24")),
            out(at("docker0", "172.17.0.1/16")),
            InterfaceAddress { up: false, ..out(at("eth2", "192.168.4.5/24")) },
        ];
        let found = |main: &str| {
            let found = further_uplinks(&addresses, "zm0", main.parse().expect("an address"));
            found.into_iter().map(|(_, name, ip)| format!("{name} {ip}")).collect::<Vec<_>>()
        };
        assert_eq!(found("192.168.1.5"), ["wwan0 10.7.0.5"]);
        assert_eq!(found("10.7.0.6"), ["eth0 192.168.1.5"]);
        assert_eq!(found("0.0.0.0"), ["eth0 192.168.1.5", "wwan0 10.7.0.5"]);
    }

    #[test]
    fn configured_interfaces_are_taken_at_their_word() {
        let addresses = [at("eth0", "192.168.1.5/24"), at("veth1", "10.0.0.1/24")];
        let configured = ["veth1".to_owned(), "gone".to_owned()];
        assert_eq!(mdns_interfaces(&addresses, &configured, "zm0"), ["veth1"]);
    }

    fn at(name: &str, net: &str) -> InterfaceAddress {
        let net: IpNet = net.parse().expect("an address with its prefix");
        InterfaceAddress {
            index: name.bytes().map(u32::from).sum(),
            name: name.to_owned(),
            addr: net.addr(),
            prefix_len: net.prefix_len(),
            up: true,
            loopback: false,
            point_to_point: false,
            multicast: true,
            tentative: false,
            deprecated: false,
            temporary: false,
            default_route: false,
        }
    }

    fn texts(addresses: &[IpAddr]) -> Vec<String> {
        addresses.iter().map(IpAddr::to_string).collect()
    }
}
