//! Finding a peer by what a person calls it.

use std::net::IpAddr;

use ipnet::IpNet;
use zonemesh_discovery::identity::PublicKey;

use super::{Mesh, roster};

impl Mesh {
    /// The member or static peer that this text names: by its name, its key, or an
    /// address that is its own or lies behind it.
    pub fn find(&self, text: &str) -> Option<PublicKey> {
        let known = |key: &PublicKey| {
            let fixed = self.settings.fixed.iter().any(|(fixed, _)| fixed == key);
            fixed || self.advert(key).is_some() || self.peers.contains_key(key)
        };
        if let Ok(key) = text.parse::<PublicKey>() {
            return Some(key).filter(known);
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return self.route_of(ip);
        }
        let mut members = self.roster.iter().flat_map(|roster| roster.members());
        let named =
            |member: &roster::Member| member.advert().is_some_and(|advert| advert.name == text);
        members.find(|(_, member)| named(member)).map(|(key, _)| *key)
    }

    /// An overlay address at which this peer answers a ping, if one is known: one that
    /// it advertises, else that of a host route behind it.
    pub fn overlay_address(&self, node: &PublicKey) -> Option<IpAddr> {
        let routes = self.resolved.routes.get(node)?;
        let advertised = self.advert(node).into_iter().flat_map(|advert| &advert.addresses);
        let mut inside = advertised.filter(|ip| routes.iter().any(|route| route.contains(*ip)));
        let host = |route: &&IpNet| route.prefix_len() == route.max_prefix_len();
        inside.next().copied().or_else(|| routes.iter().find(host).map(IpNet::addr))
    }

    fn route_of(&self, ip: IpAddr) -> Option<PublicKey> {
        let all = self.resolved.routes.iter();
        let routes = all.flat_map(|(node, routes)| routes.iter().map(move |route| (route, node)));
        let holding = routes.filter(|(route, _)| route.contains(&ip));
        holding.max_by_key(|(route, _)| route.prefix_len()).map(|(_, node)| *node)
    }
}
