//! What a certificate allows: a name, routes, groups.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{
    bytes::{Bytes, push_short},
    chain::Limit,
};
use crate::advert::MAX_ROUTES;

/// The longest name of a node, in bytes.
pub const MAX_NAME_LEN: usize = 63;

/// The most groups of one certificate.
pub const MAX_GROUPS: usize = 16;

/// The longest name of a group, in bytes.
pub const MAX_GROUP_LEN: usize = 32;

/// Added to the prefix length of an IPv6 route, to tell it from an IPv4 one.
const IPV6: u8 = 64;

/// The name, routes and groups that a certificate allows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    name: String,
    routes: Vec<IpNet>,
    groups: Vec<String>,
}

/// Why there can be no such limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// The name.
    #[error("a name has 1 to {MAX_NAME_LEN} bytes and no control characters")]
    Name,
    /// The routes.
    #[error("there are at most {MAX_ROUTES} routes, each without host bits")]
    Routes,
    /// The groups.
    #[error(
        "there are at most {MAX_GROUPS} groups, each of 1 to {MAX_GROUP_LEN} of the characters a-z, 0-9 and -"
    )]
    Groups,
}

impl Limits {
    /// Limits; an empty name stands for any in an invite. Routes and groups are put in
    /// order and freed of duplicates.
    ///
    /// # Errors
    /// [`LimitsError`] says what is out of its bounds.
    pub fn new(
        name: &str,
        routes: &[IpNet],
        groups: &[impl AsRef<str>],
    ) -> Result<Self, LimitsError> {
        let mut routes = routes.to_vec();
        routes.sort_unstable();
        routes.dedup();
        let mut groups: Vec<String> = groups.iter().map(|group| group.as_ref().into()).collect();
        groups.sort_unstable();
        groups.dedup();
        let limits = Self { name: name.to_owned(), routes, groups };
        limits.check()?;
        Ok(limits)
    }

    /// The node's name; empty in an invite that allows any.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The prefixes that a node may advertise, whole or parts of them, and in which its
    /// overlay addresses lie.
    pub fn routes(&self) -> &[IpNet] {
        &self.routes
    }

    /// The groups.
    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// The limit of `parent` that this one does not keep to.
    pub(super) fn widens(&self, parent: &Self) -> Option<Limit> {
        if !parent.name.is_empty() && self.name != parent.name {
            return Some(Limit::Name);
        }
        if !self.routes.iter().all(|route| parent.allows(route)) {
            return Some(Limit::Routes);
        }
        let has = |group| parent.groups.contains(group);
        (!self.groups.iter().all(has)).then_some(Limit::Groups)
    }

    /// Whether a route lies in one of these.
    pub fn allows(&self, route: &IpNet) -> bool {
        self.routes.iter().any(|own| own.contains(route))
    }

    fn check(&self) -> Result<(), LimitsError> {
        if self.name.len() > MAX_NAME_LEN || self.name.chars().any(char::is_control) {
            return Err(LimitsError::Name);
        }
        if self.routes.len() > MAX_ROUTES || self.routes.iter().any(|route| route.trunc() != *route)
        {
            return Err(LimitsError::Routes);
        }
        if self.groups.len() > MAX_GROUPS || !self.groups.iter().all(|group| is_group(group)) {
            return Err(LimitsError::Groups);
        }
        Ok(())
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        push_short(out, self.name.as_bytes());
        // `check` has bounded both counts.
        out.push(self.routes.len() as u8);
        for route in &self.routes {
            let significant = usize::from(route.prefix_len().div_ceil(8));
            match route {
                IpNet::V4(net) => {
                    out.push(net.prefix_len());
                    out.extend_from_slice(&net.network().octets()[..significant]);
                }
                IpNet::V6(net) => {
                    out.push(IPV6 + net.prefix_len());
                    out.extend_from_slice(&net.network().octets()[..significant]);
                }
            }
        }
        out.push(self.groups.len() as u8);
        for group in &self.groups {
            push_short(out, group.as_bytes());
        }
    }

    /// Reads limits; `None` where they are cut short, out of bounds, or not spelled as
    /// [`Self::write`] spells them.
    pub(super) fn read(bytes: &mut Bytes<'_>) -> Option<Self> {
        let name = std::str::from_utf8(bytes.short()?).ok()?.to_owned();
        let count = bytes.u8()?;
        let routes = (0..count).map(|_| read_route(bytes)).collect::<Option<Vec<IpNet>>>()?;
        let count = bytes.u8()?;
        let group = |bytes: &mut Bytes<'_>| Some(str::from_utf8(bytes.short()?).ok()?.to_owned());
        let groups = (0..count).map(|_| group(bytes)).collect::<Option<Vec<String>>>()?;
        let limits = Self { name, routes, groups };
        limits.check().ok()?;
        Some(limits)
    }
}

fn is_group(group: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_GROUP_LEN).contains(&group.len()) && group.bytes().all(is_allowed)
}

fn read_route(bytes: &mut Bytes<'_>) -> Option<IpNet> {
    let byte = bytes.u8()?;
    let len = byte.checked_sub(IPV6).unwrap_or(byte);
    let significant = bytes.take(usize::from(len.div_ceil(8)))?;
    let address = if byte < IPV6 {
        let mut octets = [0; 4];
        octets.get_mut(..significant.len())?.copy_from_slice(significant);
        IpAddr::V4(Ipv4Addr::from(octets))
    } else {
        let mut octets = [0; 16];
        octets.get_mut(..significant.len())?.copy_from_slice(significant);
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    // Too long a prefix is an error here; host bits are for `check` to refuse.
    IpNet::new(address, len).ok()
}
