//! Two and three nodes' meshes, joined by a wire without NAT, in virtual time.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use zonemesh_discovery::{
    advert::{SignedAdvert, Zone},
    identity::Identity,
    nat64::Prefix64,
};

use super::{
    own::{Own, Template},
    peer::FIRST_DATA_LIMIT,
    roster::Admission,
    *,
};

mod members;
mod sealed;

/// How long a datagram is under way.
const DELAY: Duration = Duration::from_millis(10);

struct World {
    now: Instant,
    wall: SystemTime,
    nodes: Vec<Node>,
    wire: Vec<(Instant, SocketAddr, SocketAddr, Vec<u8>)>,
}

struct Node {
    key: PublicKey,
    addr: SocketAddr,
    mesh: Mesh,
    own: Own,
    paths: BTreeMap<PublicKey, Option<Route>>,
    initiates: Vec<PublicKey>,
}

fn zone() -> Zone {
    "mesh.example".parse().expect("a zone")
}

fn host(addr: SocketAddr) -> zonemesh_discovery::advert::Candidate {
    zonemesh_discovery::advert::Candidate { kind: Advertised::Host, addr }
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

impl World {
    /// One node for each set of routes.
    fn new(routes: &[&[&str]]) -> Self {
        Self::of(routes, &Admission::Zone, |_, _, _| None)
    }

    /// The same, each with the certificate that `certify` gives to a number and a key, and all
    /// with the same idea of who may be a member.
    fn of(
        routes: &[&[&str]],
        admission: &Admission,
        certify: impl Fn(u8, &PublicKey, SystemTime) -> Option<Vec<u8>>,
    ) -> Self {
        let now = Instant::now();
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let nodes = routes.iter().enumerate().map(|(n, routes)| {
            let n = u8::try_from(n).expect("few nodes");
            let identity = Identity::from_seed(&[n; 32]);
            let key = identity.public_key();
            let addr = SocketAddr::from(([192, 168, 7, n + 1], 51820));
            let routes: Vec<IpNet> = routes.iter().map(|route| net(route)).collect();
            let template = Template {
                name: format!("node-{n}"),
                addresses: routes.iter().filter_map(|route| route.hosts().next()).collect(),
                routes: routes.clone(),
                certificate: certify(n, &key, wall),
            };
            let settings = Settings {
                own: key,
                private_key: identity.wireguard_private_key(),
                routes,
                invite: vec![],
                overlay: vec![],
                fixed: vec![],
                hard: true,
                seed: [n; 32],
            };
            let roster = Roster::new(zone(), key, admission.clone(), vec![]);
            let mut mesh = Mesh::new(settings, Some(roster), now, wall);
            mesh.set_candidates(&[to_punch(host(addr))], now);
            let own = Own::new(Arc::new(identity), zone(), template, 0);
            Node { key, addr, mesh, own, paths: BTreeMap::new(), initiates: vec![] }
        });
        Self { now, wall, nodes: nodes.collect(), wire: vec![] }
    }

    fn advert(&mut self, n: usize) -> Arc<SignedAdvert> {
        let node = &mut self.nodes[n];
        let made = node.own.refresh(&[host(node.addr)], self.now, self.wall).expect("fits");
        made.unwrap_or_else(|| Arc::clone(node.own.advert().expect("made before")))
    }

    /// Everybody reads a zone that holds the adverts of `published`.
    fn publish(&mut self, published: &[usize]) {
        let adverts: Vec<_> = published.iter().map(|n| self.advert(*n)).collect();
        let records = |signed: &Arc<SignedAdvert>| InstanceRecords {
            node: signed.advert().node,
            txt: signed.txt().to_vec(),
            endpoint: signed.advert().endpoint(),
        };
        let view = adverts.iter().map(|signed| (signed.advert().node, records(signed))).collect();
        for node in &mut self.nodes {
            node.mesh.handle_zone(&view, self.now, self.wall);
        }
    }

    /// Lets `time` pass; `cut` says which datagrams are lost.
    fn run(&mut self, time: Duration, cut: impl Fn(SocketAddr, SocketAddr) -> bool) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(5);
            self.wall += Duration::from_millis(5);
            let now = self.now;
            let (due, later) =
                std::mem::take(&mut self.wire).into_iter().partition(|sent| sent.0 <= now);
            self.wire = later;
            for (_, from, to, payload) in due {
                if let Some(node) = self.nodes.iter_mut().find(|node| node.addr == to) {
                    node.mesh.handle_check(Route::direct(from), &payload, now);
                }
            }
            for node in &mut self.nodes {
                node.mesh.handle_timeout(now, self.wall);
                while let Some(transmit) = node.mesh.poll_transmit() {
                    if !cut(node.addr, transmit.route.remote) {
                        self.wire.push((
                            now + DELAY,
                            node.addr,
                            transmit.route.remote,
                            transmit.payload,
                        ));
                    }
                }
                while let Some(event) = node.mesh.poll_event() {
                    match event {
                        MeshEvent::Path { node: peer, route } => {
                            node.paths.insert(peer, route);
                        }
                        MeshEvent::Handshake(peer) => node.initiates.push(peer),
                        _ => {}
                    }
                }
            }
        }
    }

    /// WireGuard hears everybody whom it has a path to.
    fn hear(&mut self) {
        let now = self.now;
        for node in &mut self.nodes {
            for (peer, path) in node.paths.clone() {
                if let Some(path) = path {
                    node.mesh.handle_heard(&peer, path, now, now);
                }
            }
        }
    }

    fn path(&self, from: usize, to: usize) -> Option<SocketAddr> {
        let route = self.nodes[from].paths.get(&self.nodes[to].key).copied().flatten();
        route.map(|route| route.remote)
    }
}

#[test]
fn members_find_paths_to_each_other_and_one_side_starts_the_handshake() {
    let mut world = World::new(&[&["10.42.0.0/24"], &["10.42.1.0/24"], &["10.42.2.0/24"]]);
    world.publish(&[0, 1, 2]);
    world.run(Duration::from_millis(400), |_, _| false);
    for a in 0..3 {
        for b in (0..3).filter(|b| *b != a) {
            assert_eq!(world.path(a, b), Some(world.nodes[b].addr), "{a} to {b}");
            let starts = world.nodes[a].initiates.contains(&world.nodes[b].key);
            assert_eq!(starts, world.nodes[a].key < world.nodes[b].key);
        }
    }
    let node = &world.nodes[0];
    let routes = node.mesh.wire_peers().into_iter().map(|peer| (peer.node, peer.routes));
    let routes: BTreeMap<_, _> = routes.collect();
    assert_eq!(routes[&world.nodes[1].key], BTreeSet::from([net("10.42.1.0/24")]));
    assert_eq!(routes[&world.nodes[2].key], BTreeSet::from([net("10.42.2.0/24")]));
}

#[test]
fn a_side_that_hears_nothing_starts_the_handshake_too() {
    let mut world = World::new(&[&[], &[]]);
    world.publish(&[0, 1]);
    world.run(Duration::from_millis(400), |_, _| false);
    world.hear();
    world.run(Duration::from_secs(3), |_, _| false);
    let all = |world: &World| world.nodes.iter().map(|node| node.initiates.len()).sum::<usize>();
    assert_eq!(all(&world), 1, "what is heard needs no other handshake");
    // One of them restarts: it has no session, and the other does not know.
    let mut world = World::new(&[&[], &[]]);
    world.publish(&[0, 1]);
    world.run(Duration::from_secs(3), |_, _| false);
    assert!(world.nodes.iter().all(|node| !node.initiates.is_empty()));
}

#[test]
fn the_renewal_of_a_session_is_no_news() {
    let mut world = World::new(&[&["10.42.0.0/24"], &["10.42.1.0/24"]]);
    world.publish(&[0, 1]);
    let (peer, from) = (world.nodes[1].key, world.nodes[1].addr);
    let mut now = world.now;
    let mesh = &mut world.nodes[0].mesh;
    let mut is_news = |from, later| {
        now += Duration::from_secs(later);
        mesh.handle_session(&peer, Route::direct(from), now)
    };
    assert!(is_news(from, 0), "the first");
    assert!(!is_news(from, 120) && !is_news(from, 205), "renewals");
    assert!(is_news(from, 20), "it has restarted");
    assert!(is_news(from, 600), "it was away");
    assert!(is_news("198.51.100.7:4".parse().expect("an address"), 120), "it has moved");
}

#[test]
fn peers_are_found_by_name_key_and_address() {
    let mut world = World::new(&[&["10.42.0.0/24"], &["10.42.1.0/24"]]);
    world.publish(&[0, 1]);
    let (mesh, other) = (&world.nodes[0].mesh, world.nodes[1].key);
    for text in ["node-1", &other.to_string(), "10.42.1.77"] {
        assert_eq!(mesh.find(text), Some(other), "{text}");
    }
    assert_eq!(mesh.find("10.42.9.1"), None);
    assert_eq!(mesh.find("nobody"), None);
    assert_eq!(mesh.overlay_address(&other), "10.42.1.1".parse().ok());
}

#[test]
fn a_member_that_leaves_the_zone_stays_until_it_falls_silent() {
    let mut world = World::new(&[&["10.42.0.0/24"], &["10.42.1.0/24"]]);
    world.publish(&[0, 1]);
    world.run(Duration::from_secs(1), |_, _| false);
    world.hear();
    world.publish(&[]);
    world.run(Duration::from_secs(100), |_, _| false);
    assert_eq!(world.nodes[0].mesh.wire_peers().len(), 1, "it was heard 100 s ago");
    world.run(Duration::from_secs(100), |_, _| true);
    assert!(world.nodes[0].mesh.wire_peers().is_empty());
}

#[test]
fn a_newer_advert_comes_over_the_mesh_and_nobody_speaks_for_another() {
    let mut world = World::new(&[&["10.42.0.0/24"], &["10.42.1.0/24"], &["10.42.2.0/24"]]);
    world.publish(&[0, 1, 2]);
    world.run(Duration::from_secs(1), |_, _| false);
    let keys: Vec<PublicKey> = world.nodes.iter().map(|node| node.key).collect();
    let elsewhere = "198.51.100.77:4".parse().expect("an address");
    let candidate = zonemesh_discovery::advert::Candidate {
        kind: Advertised::ServerReflexive,
        addr: elsewhere,
    };
    let (now, wall) = (world.now, world.wall);
    let newer = world.nodes[1].own.refresh(&[candidate], now, wall).expect("fits").expect("new");
    let knows = |world: &World, at: usize| {
        let advert = world.nodes[at].mesh.advert(&keys[1]).expect("a member");
        advert.candidates.iter().any(|candidate| candidate.addr == elsewhere)
    };
    // The first datagrams are lost; the zone says nothing.
    world.nodes[1].mesh.set_own_advert(&newer, now);
    world.run(Duration::from_millis(300), |_, _| true);
    assert!(!knows(&world, 0));
    world.run(Duration::from_secs(2), |_, _| false);
    assert!(knows(&world, 0) && knows(&world, 2));
    // What node 2 hands on of node 1 is not taken, however new.
    let (now, wall) = (world.now, world.wall);
    let latest = world.nodes[1].own.refresh(&[], now, wall).expect("fits").expect("new");
    world.nodes[2].mesh.set_own_advert(&latest, now);
    world.run(Duration::from_secs(2), |_, _| false);
    assert!(knows(&world, 0));
    let roster = world.nodes[0].mesh.roster().expect("a roster");
    assert_eq!(roster.dropped().foreign, 1);
}

#[test]
fn a_path_on_which_only_checks_pass_is_not_kept() {
    let mut world = World::new(&[&["10.42.0.0/24"], &["10.42.1.0/24"]]);
    world.publish(&[0, 1]);
    world.run(Duration::from_secs(1), |_, _| false);
    assert!(world.path(0, 1).is_some());
    // Nothing is ever heard: after some time the agent is told.
    world.run(FIRST_DATA_LIMIT + SWEEP, |_, _| false);
    let suspect = world.nodes[0].mesh.pairs(&world.nodes[1].key).iter().any(|pair| pair.suspect);
    assert!(suspect, "the pair is under suspicion");
}

#[test]
fn candidates_inside_the_overlay_are_not_used() {
    let mut world = World::new(&[&["10.42.0.0/24"], &["192.168.7.2/32"]]);
    world.publish(&[0, 1]);
    // Node 1 has its own LAN address behind it: it would be reached through itself.
    world.run(Duration::from_secs(2), |_, _| false);
    assert_eq!(world.path(0, 1), None);
}

#[test]
fn a_claim_wider_than_the_lan_takes_no_path_on_it_away() {
    let mut world =
        World::new(&[&["10.42.0.0/24"], &["10.42.1.0/24"], &["192.168.0.0/16", "10.42.2.0/24"]]);
    for node in &mut world.nodes {
        node.mesh.set_connected([net("192.168.7.0/24")].into(), world.now);
    }
    world.publish(&[0, 1, 2]);
    world.run(Duration::from_secs(1), |_, _| false);
    let third = world.nodes[2].key;
    let routes = &world.nodes[0].mesh.resolved().routes[&third];
    assert!(routes.contains(&net("192.168.0.0/16")), "it is followed");
    // The kernel sends to the LAN what is the LAN's.
    assert_eq!(world.path(0, 1), Some(world.nodes[1].addr));
    assert_eq!(world.path(1, 0), Some(world.nodes[0].addr));
}

#[test]
fn a_gateway_to_its_lan_still_meets_its_neighbours_there() {
    let mut world = World::new(&[&["192.168.7.0/24"], &["10.42.1.0/24"]]);
    let lan = net("192.168.7.0/24");
    for node in &mut world.nodes {
        node.mesh.set_connected([lan].into(), world.now);
    }
    world.publish(&[0, 1]);
    world.run(Duration::from_secs(1), |_, _| false);
    assert_eq!(world.path(0, 1), Some(world.nodes[1].addr));
    assert_eq!(world.path(1, 0), Some(world.nodes[0].addr));
    let refused = &world.nodes[1].mesh.resolved().refused;
    assert!(refused.iter().any(|refusal| refusal.route == lan), "its own LAN stays its own");
}

#[test]
fn a_stranger_s_check_is_told_apart_from_a_forged_one() {
    let mut world = World::new(&[&[], &[]]);
    world.publish(&[0, 1]);
    let now = world.now;
    let check = world.nodes[0].mesh.poll_transmit().expect("a check");
    let from = Route::direct(world.nodes[0].addr);
    let receiver = &mut world.nodes[1].mesh;
    let mut forged = check.payload.clone();
    forged[60] ^= 1;
    assert_eq!(receiver.handle_check(from, &forged, now), CheckOutcome::Dropped);
    let mut strange = check.payload.clone();
    strange[24] ^= 1;
    assert_eq!(receiver.handle_check(from, &strange, now), CheckOutcome::Stranger);
    strange[0] = 1;
    assert_eq!(receiver.handle_check(from, &strange, now), CheckOutcome::Dropped, "an answer");
    assert_eq!(receiver.handle_check(from, &strange[..20], now), CheckOutcome::Dropped);
    assert_eq!(receiver.handle_check(from, &check.payload, now), CheckOutcome::Taken);
    assert_eq!(receiver.checks_dropped(), 1);
}

#[test]
fn a_mesh_without_a_zone_has_its_static_peers() {
    let now = Instant::now();
    let peer = Identity::from_seed(&[9; 32]).public_key();
    let identity = Identity::from_seed(&[1; 32]);
    let settings = Settings {
        own: identity.public_key(),
        private_key: identity.wireguard_private_key(),
        routes: vec![],
        invite: vec![],
        overlay: vec![],
        fixed: vec![(peer, vec![net("10.99.0.7/32")])],
        hard: true,
        seed: [0; 32],
    };
    let mut mesh = Mesh::new(settings, None, now, SystemTime::now());
    assert_eq!(mesh.poll_event(), Some(MeshEvent::Peers));
    let routes = BTreeSet::from([net("10.99.0.7/32")]);
    assert_eq!(mesh.overlay_address(&peer), "10.99.0.7".parse().ok());
    assert_eq!(mesh.find(&peer.to_string()), Some(peer));
    assert_eq!(mesh.wire_peers(), [WirePeer { node: peer, endpoint: None, routes }]);
}

#[test]
fn through_a_nat64_public_ipv4_candidates_are_reached_by_ipv6_too() {
    let mut world = World::new(&[&["10.1.0.0/16"], &["10.2.0.0/16"]]);
    let prefix = Prefix64::new("64:ff9b::".parse().expect("an address"), 96);
    world.nodes[0].mesh.set_nat64(prefix, world.now);
    let public: SocketAddr = "198.51.100.7:40000".parse().expect("an address");
    world.nodes[1].addr = public;
    world.publish(&[0, 1]);
    let other = world.nodes[1].key;
    let remotes = |world: &World| -> BTreeSet<SocketAddr> {
        world.nodes[0].mesh.pairs(&other).iter().map(|pair| pair.route.remote).collect()
    };
    let translated: SocketAddr = "[64:ff9b::c633:6407]:40000".parse().expect("an address");
    assert_eq!(remotes(&world), BTreeSet::from([public, translated]));
    world.nodes[0].mesh.set_nat64(None, world.now);
    assert_eq!(remotes(&world), BTreeSet::from([public]));
}
