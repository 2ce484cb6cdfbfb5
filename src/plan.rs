//! What the machine's addresses and routes should be, computed purely.
//!
//! [`Claims::resolve`] decides which node's prefixes count; [`Plan`] is what the
//! overlay interface should carry; [`Plan::changes_from`] is the difference to what
//! it carries now. Nothing here touches the machine: [`crate::apply`] does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use zonemesh_discovery::identity::PublicKey;

/// The shortest prefix that a peer may carry: whoever claims a 128th part of the
/// Internet or more is an exit node, which is not this overlay's job.
pub const MIN_PREFIX_LEN: u8 = 8;

/// Who claims which prefixes, as one node sees it.
#[derive(Debug, Default)]
pub struct Claims {
    /// Prefixes behind this very node: never another's.
    pub own: Vec<IpNet>,
    /// This node's key, which takes part when a route is contested.
    pub own_key: Option<PublicKey>,
    /// The prefixes that this node's invite allows.
    pub own_invite: Vec<IpNet>,
    /// What the administrator gave to the static peers: it wins over adverts.
    pub fixed: Vec<(PublicKey, IpNet)>,
    /// What nodes advertise.
    pub advertised: Vec<Advertised>,
    /// What nodes advertise beyond their certificates.
    pub uncertified: Vec<(PublicKey, IpNet)>,
    /// The networks of the overlay interface's own addresses: what the administrator
    /// says the overlay is.
    pub overlay: Vec<IpNet>,
    /// The prefixes of this machine's other interfaces.
    pub connected: Vec<IpNet>,
    /// Public addresses that must stay outside the tunnel: the zone's server, the
    /// STUN servers, the peers' own public candidates.
    pub underlay: Vec<IpAddr>,
}

/// A prefix that a node advertises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Advertised {
    /// The prefix.
    pub route: IpNet,
    /// Who.
    pub claimant: PublicKey,
    /// How closely the claimant was invited for it: the length of the narrowest prefix of its
    /// invite that holds it; 0 where nobody invited it.
    pub invited: u8,
}

impl Advertised {
    /// What `claimant`, whose invite allows these prefixes, advertises.
    pub fn new(claimant: PublicKey, route: IpNet, invite: &[IpNet]) -> Self {
        Self { route, claimant, invited: closeness(&route, invite) }
    }

    /// Whether of two that claim the same this one has it.
    fn beats(&self, other: &Self) -> bool {
        (other.invited, self.claimant) < (self.invited, other.claimant)
    }
}

/// The length of the narrowest of these prefixes that holds the route.
fn closeness(route: &IpNet, invite: &[IpNet]) -> u8 {
    invite.iter().filter(|prefix| prefix.contains(route)).map(IpNet::prefix_len).max().unwrap_or(0)
}

/// Whose prefixes count, and which claims do not.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The prefixes of each peer that has any.
    pub routes: BTreeMap<PublicKey, BTreeSet<IpNet>>,
    /// The claims that are not followed, with the reason.
    pub refused: BTreeSet<Refusal>,
}

/// A claim that is not followed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// The prefix.
    pub route: IpNet,
    /// Who claims it.
    pub claimant: PublicKey,
    /// Why it is not theirs.
    pub reason: RefusalReason,
}

/// Why a claim is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalReason {
    /// Another node claims the very same prefix and has the lower public key.
    LostTo(PublicKey),
    /// Another node, which was invited for fewer prefixes than the claimant, has it or a wider
    /// one.
    Invited(PublicKey),
    /// The configuration gives it to this static peer.
    Static(PublicKey),
    /// It is this node's own prefix, or lies inside one.
    Own,
    /// It lies inside a prefix of one of this machine's other interfaces.
    Connected(IpNet),
    /// It would lead an address that the tunnel itself needs into the tunnel.
    Underlay(IpAddr),
    /// It is shorter than [`MIN_PREFIX_LEN`].
    TooWide,
    /// The claimant's certificate does not allow it.
    Uncertified,
}

impl Claims {
    /// Decides whose prefixes count.
    ///
    /// Of two nodes that claim the same prefix the one that was invited for fewer has it,
    /// and of two that were invited alike the one with the lower public key; on every node
    /// alike, for the order of arrival cannot matter. Nor does a part of a prefix go to
    /// somebody who was invited for more than the prefix's owner was. A node's own prefixes
    /// stay its own even where it lost them in the eyes of the others, so that no advert takes
    /// a machine's containers away from it.
    pub fn resolve(&self) -> Resolved {
        let mut resolved = Resolved::default();
        let mut owners: BTreeMap<IpNet, PublicKey> = BTreeMap::new();
        for (key, route) in &self.fixed {
            owners.entry(*route).or_insert(*key);
        }
        let best = self.best();
        // In order, because there may be many times many: every member brings both.
        let underlay: BTreeSet<IpAddr> = self.underlay.iter().copied().collect();
        for advertised in &self.advertised {
            let Advertised { route, claimant, .. } = *advertised;
            let fixed = self.fixed.iter().find(|(_, fixed)| *fixed == route);
            let reason = self
                .refuse(route, &underlay)
                .or_else(|| fixed.map(|(owner, _)| RefusalReason::Static(*owner)))
                .or_else(|| lost(advertised, &best));
            match reason {
                Some(reason) => {
                    resolved.refused.insert(Refusal { route, claimant, reason });
                }
                None => {
                    owners.insert(route, claimant);
                }
            }
        }
        for (claimant, route) in &self.uncertified {
            let reason = RefusalReason::Uncertified;
            resolved.refused.insert(Refusal { route: *route, claimant: *claimant, reason });
        }
        // To be told: a route of our own that the others give to somebody else.
        let own = self.own_key.into_iter().flat_map(|key| {
            self.own.iter().map(move |route| Advertised::new(key, *route, &self.own_invite))
        });
        for own in own {
            if let Some(reason) = lost(&own, &best) {
                let Advertised { route, claimant, .. } = own;
                resolved.refused.insert(Refusal { route, claimant, reason });
            }
        }
        for (route, key) in owners {
            resolved.routes.entry(key).or_default().insert(route);
        }
        resolved
    }

    /// Of each prefix the claim that beats all others.
    fn best(&self) -> BTreeMap<IpNet, Advertised> {
        let mut best: BTreeMap<IpNet, Advertised> = BTreeMap::new();
        for advertised in &self.advertised {
            let known = best.entry(advertised.route).or_insert(*advertised);
            if advertised.beats(known) {
                *known = *advertised;
            }
        }
        best
    }

    fn refuse(&self, route: IpNet, underlay: &BTreeSet<IpAddr>) -> Option<RefusalReason> {
        if route.prefix_len() < MIN_PREFIX_LEN {
            return Some(RefusalReason::TooWide);
        }
        if self.own.iter().any(|own| own.contains(&route)) {
            return Some(RefusalReason::Own);
        }
        // A LAN may be as wide as 10.0.0.0/8 and the overlay a part of it all the same.
        let is_overlay = self.overlay.iter().any(|overlay| overlay.contains(&route));
        let connected = self.connected.iter().find(|prefix| prefix.contains(&route));
        if let Some(connected) = connected.filter(|_| !is_overlay) {
            return Some(RefusalReason::Connected(*connected));
        }
        let inside = underlay.range(route.network()..=route.broadcast()).next();
        inside.map(|addr| RefusalReason::Underlay(*addr))
    }
}

/// Why somebody else has what is claimed here, where that is so.
fn lost(claim: &Advertised, best: &BTreeMap<IpNet, Advertised>) -> Option<RefusalReason> {
    let same = best.get(&claim.route).filter(|best| best.claimant != claim.claimant);
    if let Some(winner) = same.filter(|best| best.beats(claim)) {
        let by_key = winner.invited == claim.invited;
        let reason = if by_key { RefusalReason::LostTo } else { RefusalReason::Invited };
        return Some(reason(winner.claimant));
    }
    let wider = std::iter::successors(claim.route.supernet(), IpNet::supernet);
    let mut wider = wider.filter_map(|prefix| best.get(&prefix));
    let owner =
        wider.find(|other| other.claimant != claim.claimant && other.invited > claim.invited);
    owner.map(|owner| RefusalReason::Invited(owner.claimant))
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { route, claimant, reason } = self;
        write!(f, "route {route} of {claimant} is not used: ")?;
        match reason {
            RefusalReason::LostTo(winner) => {
                write!(f, "{winner} claims it too and has the lower key")
            }
            RefusalReason::Invited(winner) => {
                write!(f, "{winner}, whose invite is for fewer prefixes, has it")
            }
            RefusalReason::Static(peer) => write!(f, "the configuration gives it to {peer}"),
            RefusalReason::Own => write!(f, "it is this node's own"),
            RefusalReason::Connected(prefix) => {
                write!(
                    f,
                    "it lies inside {prefix}, which one of this machine's interfaces has \
                     (an interface.addresses entry wide enough to hold it would allow it)"
                )
            }
            RefusalReason::Underlay(addr) => {
                write!(f, "it holds {addr}, which the tunnel itself has to reach")
            }
            RefusalReason::TooWide => write!(f, "shorter prefixes than /{MIN_PREFIX_LEN} are not"),
            RefusalReason::Uncertified => write!(f, "its certificate does not allow it"),
        }
    }
}

/// What the overlay interface should carry, or carries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Its addresses, with prefix length.
    pub addresses: BTreeSet<IpNet>,
    /// The prefixes that are routed into it.
    pub routes: BTreeSet<IpNet>,
}

/// The difference between two plans.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Addresses to remove, then those to add.
    pub addresses: Difference,
    /// Routes to remove, then those to add.
    pub routes: Difference,
}

/// What to remove and what to add.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// What is there and should not be.
    pub remove: Vec<IpNet>,
    /// What should be there and is not.
    pub add: Vec<IpNet>,
}

impl Plan {
    /// The plan for these interface addresses and the peers' routes. A route that
    /// the kernel makes by itself from an address of the interface is left out.
    pub fn new(addresses: &[IpNet], resolved: &Resolved) -> Self {
        let addresses: BTreeSet<IpNet> = addresses.iter().copied().collect();
        let connected: BTreeSet<IpNet> = addresses.iter().map(IpNet::trunc).collect();
        let routes = resolved.routes.values().flatten().copied();
        Self { routes: routes.filter(|route| !connected.contains(route)).collect(), addresses }
    }

    /// What has to change for `current` to become this plan.
    pub fn changes_from(&self, current: &Self) -> Changes {
        Changes {
            addresses: Difference::between(&current.addresses, &self.addresses),
            routes: Difference::between(&current.routes, &self.routes),
        }
    }
}

impl Difference {
    fn between(current: &BTreeSet<IpNet>, wanted: &BTreeSet<IpNet>) -> Self {
        Self {
            remove: current.difference(wanted).copied().collect(),
            add: wanted.difference(current).copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32])
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    #[test]
    fn the_lower_key_has_a_contested_route_in_whatever_order_it_came() {
        let route = net("10.42.9.0/24");
        let forth = Claims {
            advertised: vec![uninvited(2, route), uninvited(1, route)],
            ..Claims::default()
        };
        let back = Claims {
            advertised: vec![uninvited(1, route), uninvited(2, route)],
            ..Claims::default()
        };
        let resolved = forth.resolve();
        assert_eq!(resolved, back.resolve());
        assert_eq!(resolved.routes, BTreeMap::from([(key(1), BTreeSet::from([route]))]));
        let told = Refusal { route, claimant: key(2), reason: RefusalReason::LostTo(key(1)) };
        assert_eq!(resolved.refused, BTreeSet::from([told]));
    }

    fn uninvited(n: u8, route: IpNet) -> Advertised {
        Advertised::new(key(n), route, &[])
    }

    #[test]
    fn who_was_invited_for_less_keeps_it_from_who_was_invited_for_more() {
        let (network, slice) = (net("10.42.0.0/16"), net("10.42.7.0/24"));
        let part = net("10.42.7.128/25");
        let thief = |route| Advertised::new(key(1), route, &[network]);
        let owner = Advertised::new(key(9), slice, &[slice]);
        for stolen in [slice, part, net("10.42.7.9/32")] {
            let claims = Claims { advertised: vec![thief(stolen), owner], ..Claims::default() };
            let resolved = claims.resolve();
            assert_eq!(resolved.routes, BTreeMap::from([(key(9), BTreeSet::from([slice]))]));
            let reason = RefusalReason::Invited(key(9));
            let told = Refusal { route: stolen, claimant: key(1), reason };
            assert_eq!(resolved.refused, BTreeSet::from([told]));
        }
        // A gateway for all that nobody else has is no thief.
        let claims = Claims { advertised: vec![thief(network), owner], ..Claims::default() };
        assert!(claims.resolve().refused.is_empty());
        // Among those that were invited alike the narrower prefix counts, as in any routing.
        let other = Advertised::new(key(2), part, &[network]);
        let claims = Claims { advertised: vec![thief(slice), other], ..Claims::default() };
        assert!(claims.resolve().refused.is_empty());
    }

    #[test]
    fn a_thief_of_our_own_route_is_refused_and_an_owner_of_it_is_told() {
        let (network, slice) = (net("10.42.0.0/16"), net("10.42.7.0/24"));
        let seen_by = |own: u8, own_invite, advertised| Claims {
            own: vec![slice],
            own_key: Some(key(own)),
            own_invite: vec![own_invite],
            advertised: vec![advertised],
            ..Claims::default()
        };
        let owner = seen_by(9, slice, Advertised::new(key(1), slice, &[network])).resolve();
        let refused = |n, reason| Refusal { route: slice, claimant: key(n), reason };
        assert_eq!(owner.refused, BTreeSet::from([refused(1, RefusalReason::Own)]));
        let thief = seen_by(1, network, Advertised::new(key(9), slice, &[slice])).resolve();
        let told = refused(1, RefusalReason::Invited(key(9)));
        assert!(thief.refused.contains(&told));
    }

    #[test]
    fn the_contestants_agree_with_everybody_else_and_are_told() {
        let route = net("10.42.9.0/24");
        let seen_by = |own: u8, other: u8| Claims {
            own: vec![route],
            own_key: Some(key(own)),
            advertised: vec![uninvited(other, route)],
            ..Claims::default()
        };
        let winner = seen_by(1, 2).resolve();
        assert!(winner.routes.is_empty());
        assert_eq!(
            winner.refused,
            BTreeSet::from([Refusal { route, claimant: key(2), reason: RefusalReason::Own }])
        );
        let loser = seen_by(2, 1).resolve();
        assert!(loser.routes.is_empty(), "its own containers are not taken away");
        let lost = Refusal { route, claimant: key(2), reason: RefusalReason::LostTo(key(1)) };
        assert!(loser.refused.contains(&lost));
    }

    #[test]
    fn an_advert_takes_nothing_from_this_machine() {
        let claims = Claims {
            own: vec![net("10.42.1.0/24")],
            own_key: Some(key(9)),
            connected: vec![net("192.168.1.0/24")],
            underlay: vec!["198.51.100.53".parse().expect("an address")],
            overlay: vec![net("10.42.1.0/24")],
            fixed: vec![(key(8), net("10.99.0.7/32"))],
            advertised: [
                "10.42.1.128/25",
                "192.168.1.0/24",
                "192.168.1.64/26",
                "198.51.100.0/24",
                "198.51.100.53/32",
                "0.0.0.0/0",
                "::/0",
                "10.99.0.7/32",
            ]
            .map(|route| uninvited(1, net(route)))
            .to_vec(),
            ..Claims::default()
        };
        let resolved = claims.resolve();
        let fixed = BTreeMap::from([(key(8), BTreeSet::from([net("10.99.0.7/32")]))]);
        assert_eq!(resolved.routes, fixed);
        assert_eq!(resolved.refused.len(), claims.advertised.len());
        let route = net("10.99.0.7/32");
        let told = Refusal { route, claimant: key(1), reason: RefusalReason::Static(key(8)) };
        assert!(resolved.refused.contains(&told));
    }

    #[test]
    fn an_overlay_inside_a_wide_lan_is_what_the_administrator_says_it_is() {
        let route = net("10.42.2.0/24");
        let mut claims = Claims {
            connected: vec![net("10.0.0.0/8")],
            advertised: vec![uninvited(1, route)],
            ..Claims::default()
        };
        assert!(claims.resolve().routes.is_empty());
        claims.overlay = vec![net("10.42.0.0/16")];
        assert_eq!(claims.resolve().routes[&key(1)], BTreeSet::from([route]));
    }

    #[test]
    fn a_wider_route_than_our_own_is_followed() {
        let claims = Claims {
            own: vec![net("10.42.1.0/24")],
            advertised: vec![uninvited(1, net("10.42.0.0/16"))],
            ..Claims::default()
        };
        assert_eq!(claims.resolve().routes[&key(1)], BTreeSet::from([net("10.42.0.0/16")]));
    }

    #[test]
    fn a_plan_applied_twice_changes_nothing() {
        let mut resolved = Resolved::default();
        let routes = ["10.42.2.0/24", "10.42.1.0/24"].map(net);
        resolved.routes.insert(key(1), routes.into_iter().collect());
        let plan = Plan::new(&[net("10.42.1.1/24")], &resolved);
        assert_eq!(
            plan.routes,
            BTreeSet::from([net("10.42.2.0/24")]),
            "the kernel makes the other"
        );
        assert_eq!(plan.changes_from(&plan), Changes::default());
        let changes = plan.changes_from(&Plan::default());
        assert_eq!(changes.addresses.add, [net("10.42.1.1/24")]);
        assert_eq!(changes.routes.add, [net("10.42.2.0/24")]);
        let back = Plan::default().changes_from(&plan);
        assert_eq!(back.routes.remove, [net("10.42.2.0/24")]);
    }
}
