//! What members claim, and which addresses lie inside the overlay.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use tracing::{info, warn};
use zonemesh_discovery::advert::is_public;

use super::{Mesh, roster::Said};
use crate::plan::{self, Claims, Refusal};

impl Mesh {
    /// Whether this address is one of the overlay's: to be reached through the tunnel, or
    /// behind this node. A LAN that a node offers to the others is still its LAN.
    pub(super) fn is_overlay(&self, ip: IpAddr) -> bool {
        let own = || self.settings.routes.iter().any(|route| route.contains(&ip));
        let connected = || self.connected.iter().any(|prefix| prefix.contains(&ip));
        self.is_routed(ip) || (own() && !connected())
    }

    /// Whether packets to this address go to a peer: the longest prefix says so, and that
    /// of another interface (the LAN's) may be longer than what a peer claims.
    fn is_routed(&self, ip: IpAddr) -> bool {
        let host = IpNet::from(ip);
        let lengths = (0..=host.max_prefix_len()).rev();
        let mut holding = lengths.filter_map(|length| IpNet::new(ip, length).ok());
        let longest = holding.find_map(|prefix| {
            let prefix = prefix.trunc();
            let is_routed = self.routed.contains(&prefix);
            (is_routed || self.connected.contains(&prefix)).then_some(is_routed)
        });
        longest.unwrap_or(false)
    }

    pub(super) fn claims(&self) -> Claims {
        let members = || self.roster.iter().flat_map(|roster| roster.members());
        let mut claims = Claims {
            own: self.settings.routes.clone(),
            own_key: Some(self.settings.own),
            own_invite: self.settings.invite.clone(),
            overlay: self.settings.overlay.clone(),
            connected: self.connected.iter().copied().collect(),
            underlay: self.services.clone(),
            ..Claims::default()
        };
        for (node, routes) in &self.settings.fixed {
            claims.fixed.extend(routes.iter().map(|route| (*node, *route)));
        }
        for (node, member) in members() {
            let bare = || if let Said::Bare(bare) = member.said() { &bare.routes[..] } else { &[] };
            let routes = member.advert().map_or_else(bare, |advert| &advert.routes);
            let invite = member.certified().map_or(&[][..], |certified| &certified.invited);
            let advertised =
                routes.iter().map(|route| plan::Advertised::new(*node, *route, invite));
            claims.advertised.extend(advertised);
            claims.uncertified.extend(member.outside().map(|route| (*node, route)));
            let advert = member.advert().into_iter().flat_map(|advert| &advert.candidates);
            claims.underlay.extend(advert.map(|c| c.addr.ip()).filter(|ip| is_public(*ip)));
            if let Said::Bare(bare) = member.said() {
                claims.underlay.extend(bare.endpoint.addresses());
            }
        }
        claims
    }

    /// Says once what is not followed, and once when that ends.
    pub(super) fn tell(&self, refused: &BTreeSet<Refusal>) {
        for refusal in refused.difference(&self.resolved.refused) {
            warn!("{refusal}");
        }
        for refusal in self.resolved.refused.difference(refused) {
            info!("no longer so: {refusal}");
        }
    }
}
