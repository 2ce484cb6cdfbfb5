//! What every scenario plays on: a lab with a zone, two STUN addresses and nodes.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

pub(crate) use zonemesh::lab::zone_server::ZoneServerKind as Zone;
use zonemesh::lab::{
    member::{Identity, Member, find_peer},
    nat::Kind,
    net::{Host, Site},
    relay_server::RelayKind,
    setup::{Family, Setup},
    traffic::{Count, Traffic},
};

/// How long two nodes may take to reach each other where time is not what is tested:
/// long enough for a machine that runs several labs at once.
pub(crate) const JOIN_LIMIT: Duration = Duration::from_secs(20);

/// How many pings prove a path.
pub(crate) const PROOF: u32 = 20;

/// The bytes of an echo request or reply as `ping` sends it, with its IP header. In the
/// tunnel it only gets longer.
pub(crate) const ECHO: u64 = 84;

/// The prefixes of two sites, where nothing else matters.
pub(crate) const LAN_A: &str = "192.168.1.0/24";
pub(crate) const LAN_B: &str = "192.168.2.0/24";

/// A lab with its services.
pub(crate) struct Stage {
    pub(crate) setup: Setup,
}

/// A host and the addresses as which the core sees it.
pub(crate) struct Place {
    pub(crate) host: Host,
    pub(crate) public: Vec<IpAddr>,
    pub(crate) site: Option<Site>,
}

impl Stage {
    /// A lab whose services are known by their IPv4 addresses.
    pub(crate) fn new(zone: Zone) -> Self {
        Self::build(zone, Family::Ipv4)
    }

    /// A lab whose services are known by their IPv6 addresses.
    pub(crate) fn new_ipv6(zone: Zone) -> Self {
        Self::build(zone, Family::Ipv6)
    }

    /// A lab with coturn as its relay.
    pub(crate) fn with_relay() -> Self {
        Self::relayed_by(RelayKind::Coturn)
    }

    /// A lab with a relay of this kind.
    pub(crate) fn relayed_by(kind: RelayKind) -> Self {
        let mut stage = Self::new(Zone::Bind);
        stage.setup.add_relay(kind).expect("a relay can be started");
        stage
    }

    fn build(zone: Zone, family: Family) -> Self {
        let executable = Path::new(env!("CARGO_BIN_EXE_zonemesh"));
        Self { setup: Setup::new(zone, family, executable).expect("a lab can be set up") }
    }

    /// A host behind a router of its own.
    pub(crate) fn behind(&mut self, name: &str, kind: Kind, lan: &str) -> Place {
        let router = format!("{name}-router");
        let mut site = self.setup.lab.site(&router, kind, lan).expect("a site can be built");
        let host = site.host(&format!("{name}-host")).expect("a host can be built");
        // A firewall translates nothing: the core sees the host itself.
        let public = if kind.translates() { site.public() } else { host.addresses[0] };
        Place { host, public: vec![public], site: Some(site) }
    }

    /// A host behind its home's router, which is behind its carrier's.
    pub(crate) fn behind_carrier(&mut self, name: &str, carrier: Kind, home: Kind) -> Place {
        let router = format!("{name}-carrier");
        let mut carrier =
            self.setup.lab.site(&router, carrier, "100.64.0.0/24").expect("a site can be built");
        let home = carrier.customer(&format!("{name}-home"), home, LAN_A);
        let mut home = home.expect("a site can be built");
        let host = home.host(&format!("{name}-host")).expect("a host can be built");
        Place { host, public: vec![carrier.public()], site: Some(home) }
    }

    /// A host that everybody can reach.
    pub(crate) fn public(&mut self, name: &str) -> Place {
        let host = self.setup.lab.public_host(name, 1).expect("a host can be built");
        Place { public: host.addresses.clone(), host, site: None }
    }

    /// Starts a node.
    pub(crate) fn start(&self, name: &str, number: u8, host: &Host) -> Member {
        self.start_as(Identity::new(name, number), host)
    }

    /// Starts a node with something special.
    pub(crate) fn start_as(&self, identity: Identity, host: &Host) -> Member {
        Member::start(identity, host, &self.setup.services).expect("a node can be started")
    }

    /// Starts a node and waits until its advert is in the zone.
    pub(crate) fn start_advertised(&self, name: &str, number: u8, host: &Host) -> Member {
        let before = self.setup.adverts().len();
        let mut member = self.start(name, number, host);
        self.wait_for_adverts(&mut member, before + 1);
        member
    }

    /// Waits until the zone lists so many adverts, this node's among them.
    pub(crate) fn wait_for_adverts(&self, member: &mut Member, count: usize) {
        let listed = |_: &_| (self.setup.adverts().len() >= count).then_some(());
        member
            .wait_for("its advert in the zone", JOIN_LIMIT, listed)
            .expect("a node advertises itself");
    }

    /// A node at each of two places, which have reached each other.
    pub(crate) fn joined(&self, first: &Place, second: &Place) -> (Member, Member) {
        let mut a = self.start_advertised("a", 1, &first.host);
        let mut b = self.start("b", 2, &second.host);
        reach_each_other(&mut [&mut a, &mut b]);
        (a, b)
    }

    /// Pings, and hands back the packets that the core forwarded meanwhile.
    pub(crate) fn traffic_of_pings(&self, from: &Member, to: &Member) -> Traffic {
        let before = self.setup.lab.traffic().expect("the core counts");
        let pings = from.ping(to.overlay(), PROOF).expect("ping runs");
        assert!(
            pings.all_answered(),
            "{} to {}: {pings:?}\n{:?}\n{:?}",
            from.name(),
            to.name(),
            from.status(),
            to.status()
        );
        self.setup.lab.traffic().expect("the core counts").since(&before)
    }

    /// Two nodes have a direct path through the core: every ping and every answer passes
    /// between their places' public addresses.
    pub(crate) fn assert_direct(&self, a: (&Member, &Place), b: (&Member, &Place)) {
        let traffic = self.traffic_of_pings(a.0, b.0);
        let pairs = a.1.public.iter().flat_map(|one| b.1.public.iter().map(move |two| (one, two)));
        let seen: Count = pairs.map(|(one, two)| traffic.between(*one, *two)).sum();
        let (one, two) = (&a.1.public, &b.1.public);
        assert!(
            seen.bytes >= 2 * u64::from(PROOF) * ECHO,
            "only {seen:?} between {one:?} and {two:?}: {traffic:?}"
        );
        for (from, to) in [(a, b), (b, a)] {
            let path = from.0.peer(to.0.name()).expect("it knows its peer")["path"].clone();
            assert_eq!(path["kind"], "direct", "{path}");
            let remote = path["remote"].as_str().unwrap_or_default();
            let remote: SocketAddr = remote.parse().expect("an address and a port");
            assert!(to.1.public.contains(&remote.ip()), "{path}");
        }
    }

    /// Two nodes reach each other by way of the relay: every ping and every answer passes
    /// between the relay and each of them. Between their places' public addresses pass at
    /// most checks that try whether there is a direct path by now, but no data.
    pub(crate) fn assert_relayed(&self, a: (&Member, &Place), b: (&Member, &Place)) {
        let data = || self.setup.lab.wireguard_data().expect("the core counts");
        let before = data();
        let traffic = self.traffic_of_pings(a.0, b.0);
        let pings = 2 * u64::from(PROOF) * ECHO;
        for (member, place) in [a, b] {
            let relays = self.setup.relays.iter().flat_map(|(host, _)| &host.addresses);
            let pairs = relays.flat_map(|relay| place.public.iter().map(move |ip| (*ip, *relay)));
            let seen: Count = pairs.map(|(ip, relay)| traffic.between(ip, relay)).sum();
            assert!(seen.bytes >= pings, "{} by relays: {seen:?}: {traffic:?}", member.name());
        }
        let pairs = a.1.public.iter().flat_map(|one| b.1.public.iter().map(move |two| (one, two)));
        let data = data().since(&before);
        let direct: Count = pairs.map(|(one, two)| data.between(*one, *two)).sum();
        assert_eq!(direct.packets, 0, "past the relays: {data:?}");
        for (from, to) in [(a, b), (b, a)] {
            let path = from.0.peer(to.0.name()).expect("it knows its peer")["path"].clone();
            assert_eq!(path["kind"], "relayed", "{path}");
        }
    }

    /// Two nodes at one place come to reach each other on its LAN: past the core, and
    /// past the router too, which might turn their packets round.
    pub(crate) fn assert_settles_on_lan(&self, place: &Place, a: &mut Member, b: &Member) {
        let lan = b.host().ipv4();
        let peer = b.name();
        a.wait_for("a path on the LAN", JOIN_LIMIT, |status| {
            let path = find_peer(status, peer)?["path"].clone();
            let remote: SocketAddr = path["remote"].as_str()?.parse().ok()?;
            (remote.ip() == lan).then_some(())
        })
        .expect("the LAN is the better path");
        let site = place.site.as_ref().expect("it is a site");
        let before = site.traffic().expect("the router counts");
        let core = self.traffic_of_pings(a, b);
        let router = site.traffic().expect("the router counts").since(&before);
        // Others may be written to meanwhile, and a way round by the router may be looked at
        // as a spare one; but the pings have nothing to do out there, under whichever of
        // the two's addresses.
        let own = [a.host().ipv4(), lan].into_iter().chain(place.public.iter().copied());
        let own: Vec<IpAddr> = own.collect();
        let pairs = || own.iter().flat_map(|one| own.iter().map(move |two| (*one, *two)));
        for traffic in [&core, &router] {
            let between: Count = pairs().map(|(one, two)| traffic.sent(one, two)).sum();
            let pings = u64::from(PROOF) * ECHO;
            assert!(between.bytes < pings, "not on the LAN: {between:?} of {traffic:?}");
        }
    }
}

/// Waits until each of the nodes reaches each other one.
pub(crate) fn reach_each_other(members: &mut [&mut Member]) {
    let overlays: Vec<IpAddr> = members.iter().map(|member| member.overlay()).collect();
    for (index, member) in members.iter_mut().enumerate() {
        let others = overlays.iter().enumerate().filter(|(other, _)| *other != index);
        for (_, overlay) in others {
            member.wait_for_reply(*overlay, JOIN_LIMIT).expect("they reach each other");
        }
    }
}

/// Ends nodes as a scenario should: on request, in peace, and with nothing to complain
/// of.
pub(crate) fn finish(members: impl IntoIterator<Item = Member>) {
    for mut member in members {
        member.stop().expect("a node ends when it is asked to");
        let complaints = member.complaints();
        assert!(complaints.is_empty(), "{}: {complaints:#?}", member.name());
        let links = member.host().namespace.run("ip", &["-o", "link"]).expect("ip runs");
        assert!(!links.contains("zm0"), "{} left its device: {links}", member.name());
    }
}
