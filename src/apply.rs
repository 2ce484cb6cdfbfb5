//! Makes a plan so, by netlink: the only place that changes the machine's network.
//!
//! What the interface carries is read from the kernel each time, so a difference is
//! always to what is there, whoever changed it. Routes bear a protocol number of
//! their own; those that bear another were made by somebody else and stay. The
//! device ends with the process, and its addresses and routes with the device: a
//! crash leaves nothing behind.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder, new_connection,
    packet_route::{
        address::{AddressAttribute, AddressMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope},
    },
};
use tracing::{debug, warn};

use crate::plan::Plan;

/// The protocol number of our routes (`ip route show proto 90`): free in iproute2's
/// `rt_protos`, above the 17 that the kernel and iproute2 have words for and outside
/// the routing daemons' range from 186.
pub const ROUTE_PROTOCOL: u8 = 90;

/// One interface of this machine, to be made as a plan says.
pub struct Applier {
    handle: Handle,
    index: u32,
}

/// Why the machine's network could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The kernel said no.
    #[error("cannot {what}: {source}")]
    Netlink {
        /// What was to be done.
        what: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
}

impl Applier {
    /// Takes charge of the interface with this index. To be called inside a tokio
    /// runtime, which then carries the netlink connection.
    ///
    /// # Errors
    /// When no netlink socket can be had.
    pub fn new(index: u32) -> Result<Self, ApplyError> {
        let (connection, handle, _) = new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle, index })
    }

    /// Sets the interface's MTU and brings it up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn bring_up(&self, mtu: u16) -> Result<(), ApplyError> {
        let link = LinkUnspec::new_with_index(self.index).mtu(u32::from(mtu)).up().build();
        let set = self.handle.link().set(link).execute().await;
        set.map_err(|source| ApplyError::Netlink { what: "bring the interface up".into(), source })
    }

    /// Sets the interface's MTU.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_mtu(&self, mtu: u16) -> Result<(), ApplyError> {
        let link = LinkUnspec::new_with_index(self.index).mtu(u32::from(mtu)).build();
        let set = self.handle.link().set(link).execute().await;
        set.map_err(|source| ApplyError::Netlink { what: "set the MTU".into(), source })
    }

    /// Makes the interface's addresses and our routes those of `plan`. One that
    /// cannot be set is told and left out, the others are set all the same; the
    /// number of those left out is returned.
    ///
    /// # Errors
    /// When what is there cannot be read.
    pub async fn apply(&self, plan: &Plan) -> Result<usize, ApplyError> {
        let changes = plan.changes_from(&self.current().await?);
        let mut failed = 0;
        let mut note = |what: String, result: Result<(), rtnetlink::Error>| match result {
            Ok(()) => debug!("{what}"),
            Err(error) => {
                failed += 1;
                warn!("cannot {what}: {error}");
            }
        };
        for route in changes.routes.remove {
            let done = self.handle.route().del(self.route(route)).execute().await;
            note(format!("remove the route {route}"), done);
        }
        for address in changes.addresses.remove {
            let done = self.remove_address(address).await;
            note(format!("remove the address {address}"), done);
        }
        for address in changes.addresses.add {
            let add = self.handle.address().add(self.index, address.addr(), address.prefix_len());
            note(format!("add the address {address}"), add.execute().await);
        }
        for route in changes.routes.add {
            let done = self.handle.route().add(self.route(route)).execute().await;
            note(format!("add the route {route}"), done);
        }
        Ok(failed)
    }

    /// What the interface carries now.
    async fn current(&self) -> Result<Plan, ApplyError> {
        let read = |what: &str| {
            let what = format!("read the {what}");
            move |source| ApplyError::Netlink { what, source }
        };
        let addresses: Vec<AddressMessage> = self.addresses().await.map_err(read("addresses"))?;
        let mut routes = BTreeSet::new();
        let families = [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ];
        for family in families {
            let found: Vec<RouteMessage> =
                match self.handle.route().get(family).execute().try_collect().await {
                    Ok(found) => found,
                    Err(source) => return Err(read("routes")(source)),
                };
            routes.extend(found.iter().filter_map(|route| self.own_route(route)));
        }
        let addresses = addresses.iter().filter_map(address_of).filter(is_managed).collect();
        Ok(Plan { addresses, routes })
    }

    async fn addresses(&self) -> Result<Vec<AddressMessage>, rtnetlink::Error> {
        let all = self.handle.address().get().set_link_index_filter(self.index).execute();
        all.try_collect().await
    }

    async fn remove_address(&self, address: IpNet) -> Result<(), rtnetlink::Error> {
        for message in self.addresses().await? {
            if address_of(&message) == Some(address) {
                self.handle.address().del(message).execute().await?;
            }
        }
        Ok(())
    }

    fn route(&self, route: IpNet) -> RouteMessage {
        let protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
        match route {
            IpNet::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(v4.addr(), v4.prefix_len())
                .output_interface(self.index)
                .protocol(protocol)
                .scope(RouteScope::Link)
                .build(),
            IpNet::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(v6.addr(), v6.prefix_len())
                .output_interface(self.index)
                .protocol(protocol)
                .build(),
        }
    }

    /// The prefix of a route that this program made on this interface.
    fn own_route(&self, route: &RouteMessage) -> Option<IpNet> {
        if route.header.protocol != RouteProtocol::Other(ROUTE_PROTOCOL) {
            return None;
        }
        let mut on_interface = false;
        let mut destination = None;
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => on_interface = *index == self.index,
                RouteAttribute::Destination(RouteAddress::Inet(v4)) => {
                    destination = Some(IpAddr::V4(*v4));
                }
                RouteAttribute::Destination(RouteAddress::Inet6(v6)) => {
                    destination = Some(IpAddr::V6(*v6));
                }
                _ => {}
            }
        }
        let destination = destination.filter(|_| on_interface)?;
        IpNet::new(destination, route.header.destination_prefix_length).ok()
    }
}

/// The address of a message: on a device without a peer, `Address` and `Local` are
/// the same for IPv4, and IPv6 has `Address` alone.
fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(addr) => found = Some(*addr),
            AddressAttribute::Address(addr) => found = found.or(Some(*addr)),
            _ => {}
        }
    }
    IpNet::new(found?, message.header.prefix_len).ok()
}

/// The kernel gives every device a link-local address of its own: not ours.
fn is_managed(address: &IpNet) -> bool {
    !matches!(address.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local())
}
