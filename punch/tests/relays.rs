//! Ends of a node beside its socket: allocations on relays, and further sockets.

mod net;

use std::net::SocketAddr;

use net::{HostId, INTERNET, SECOND, World};
use zonemesh_punch::{
    Candidate, CandidateKind, CheckError, LocalRelay, MAX_LISTED, Route, Tier, Transmit, Via,
    check::{Check, Receipt, Request},
};

const RELAYS: [LocalRelay; 2] = [relay(7, 50_000), relay(9, 50_001)];

const fn relay(id: u32, port: u16) -> LocalRelay {
    let ip = std::net::Ipv4Addr::new(198, 51, 100, 3);
    LocalRelay { id, relayed: SocketAddr::new(std::net::IpAddr::V4(ip), port) }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("a literal address")
}

fn candidate(kind: CandidateKind, text: &str) -> Candidate {
    Candidate { kind, addr: addr(text) }
}

/// A node that has an agent for a peer, which the test plays itself.
fn node() -> (World, HostId, HostId) {
    let mut world = World::new(1);
    let a = world.host(INTERNET, &["198.51.100.10"]);
    let b = world.host(INTERNET, &["198.51.100.20"]);
    world.start_agent(a, b);
    (world, a, b)
}

fn transmits(world: &mut World, host: HostId) -> Vec<Transmit> {
    let agent = world.agent(host);
    std::iter::from_fn(|| agent.poll_transmit()).collect()
}

/// What `peer` sends to `host`: a check of this moment.
fn check(world: &mut World, peer: HostId, host: HostId, priority: u32) -> Vec<u8> {
    let elapsed = u64::try_from(world.elapsed().as_millis()).expect("short");
    let clock_ms = world.of(peer).clock_ms + elapsed;
    let request = Request {
        id: [5; 12],
        clock_ms,
        priority,
        nominate: false,
        receipt: Receipt::default(),
        plan: None,
    };
    world.keys(peer, host).seal(&Check::Request(request))
}

#[test]
fn a_relay_is_asked_for_the_internet_only() {
    let (mut world, a, _) = node();
    let now = world.now;
    let candidates = [
        candidate(CandidateKind::Host, "192.168.1.2:5"),
        candidate(CandidateKind::Host, "100.64.0.1:5"),
        candidate(CandidateKind::Host, "169.254.7.7:5"),
        candidate(CandidateKind::Host, "[fd00::1]:5"),
        candidate(CandidateKind::Host, "[2001:db8::1]:5"),
        candidate(CandidateKind::ServerReflexive, "203.0.113.1:5"),
        candidate(CandidateKind::Relayed, "198.51.100.3:6"),
    ];
    world.agent(a).set_remote_candidates(&candidates, now);
    world.agent(a).set_relays(&RELAYS, now);
    let mut relayed: Vec<Route> = world.agent(a).pairs().map(|pair| pair.route).collect();
    relayed.retain(|route| route.via != Via::Socket);
    let to = ["198.51.100.3:6", "203.0.113.1:5"].map(addr);
    assert_eq!(relayed, [7, 9].map(|id| to.map(|to| Route::relayed(id, to))).concat());
    assert!(
        world
            .agent(a)
            .pairs()
            .all(|pair| pair.route.via == Via::Socket || pair.tier == Tier::Relayed)
    );
}

#[test]
fn a_relayed_address_in_somebody_s_own_network_is_not_checked() {
    let (mut world, a, _) = node();
    let now = world.now;
    let candidates = [
        candidate(CandidateKind::Host, "192.168.1.2:5"),
        candidate(CandidateKind::Relayed, "192.168.1.1:53"),
        candidate(CandidateKind::Relayed, "203.0.113.1:5"),
    ];
    world.agent(a).set_remote_candidates(&candidates, now);
    let routes: Vec<Route> = world.agent(a).pairs().map(|pair| pair.route).collect();
    assert_eq!(routes, ["192.168.1.2:5", "203.0.113.1:5"].map(|to| Route::direct(addr(to))));
}

#[test]
fn direct_pairs_and_one_of_a_relay_are_checked_first() {
    let (mut world, a, _) = node();
    let now = world.now;
    let candidates = ["203.0.113.1:5", "203.0.113.2:5", "203.0.113.3:5", "203.0.113.4:5"]
        .map(|text| candidate(CandidateKind::ServerReflexive, text));
    world.agent(a).set_relays(&[relay(1, 1), relay(2, 2), relay(3, 3)], now);
    world.agent(a).set_remote_candidates(&candidates, now);
    assert_eq!(world.agent(a).pairs().count(), 4 + 2 * 4);
    let at_once: Vec<Via> = transmits(&mut world, a).iter().map(|t| t.route.via).collect();
    assert_eq!(at_once, [Via::Socket, Via::Socket, Via::Socket, Via::Socket, Via::Relay(1)]);
    let many: Vec<_> = (1..=200)
        .map(|port| candidate(CandidateKind::ServerReflexive, &format!("203.0.113.9:{port}")))
        .collect();
    world.agent(a).set_remote_candidates(&many, now);
    world.agent(a).set_uplinks(&[5, 6, 7], now);
    assert_eq!(world.agent(a).pairs().count(), MAX_LISTED);
}

#[test]
fn a_path_over_a_relay_goes_with_the_relay() {
    let (mut world, a, b) = node();
    let now = world.now;
    let candidates = [candidate(CandidateKind::ServerReflexive, "203.0.113.1:5")];
    world.agent(a).set_remote_candidates(&candidates, now);
    world.agent(a).set_relays(&RELAYS, now);
    world.run(SECOND / 2);
    // The peer answers what comes from either relay.
    let keys = world.keys(b, a);
    let before = world.now;
    world.agent(a).wake(before);
    let now = before + SECOND / 4;
    world.agent(a).handle_timeout(now);
    for transmit in transmits(&mut world, a) {
        let Ok(Check::Request(request)) = keys.open(&transmit.payload) else { continue };
        let answer = zonemesh_punch::check::Answer {
            id: request.id,
            clock_ms: request.clock_ms,
            mapped: RELAYS[0].relayed,
            receipt: Receipt::default(),
            plan: None,
        };
        let answer = keys.seal(&Check::Answer(answer));
        if transmit.route.via != Via::Socket {
            // At the other end it is no answer.
            let elsewhere = Route::direct(transmit.route.remote);
            let result = world.agent(a).handle_datagram(elsewhere, &answer, now);
            assert_eq!(result, Err(CheckError::Elsewhere));
            assert_eq!(world.agent(a).handle_datagram(transmit.route, &answer, now), Ok(()));
        }
    }
    let first = world.selected(a).expect("a path");
    assert_eq!(first.tier, Tier::Relayed);
    let left: Vec<LocalRelay> =
        RELAYS.into_iter().filter(|relay| first.route.via != Via::Relay(relay.id)).collect();
    world.agent(a).set_relays(&left, now);
    assert_eq!(world.selected(a).map(|path| path.route.via), Some(Via::Relay(left[0].id)));
    world.agent(a).set_relays(&[], now);
    assert_eq!(world.selected(a), None);
    assert!(world.agent(a).pairs().all(|pair| pair.route.via == Via::Socket));
    let late = world.agent(a).handle_datagram(first.route, &[], now);
    assert_eq!(late, Err(CheckError::Gone));
}

#[test]
fn an_address_of_the_peers_relay_is_known_for_one_before_anybody_names_it() {
    let (mut world, a, b) = node();
    let now = world.now;
    let from_relay = Candidate { kind: CandidateKind::Relayed, addr: addr("198.51.100.3:6") };
    let datagram = check(&mut world, b, a, from_relay.priority());
    let route = Route::direct(from_relay.addr);
    world.agent(a).note_data_received(route, now);
    assert_eq!(world.agent(a).handle_datagram(route, &datagram, now), Ok(()));
    let pair = world.agent(a).pairs().next().expect("it is learned");
    assert_eq!((pair.route, pair.kind, pair.tier), (route, from_relay.kind, Tier::Relayed));
}

#[test]
fn pairs_of_further_sockets_are_learned_and_go_with_them() {
    let (mut world, a, b) = node();
    let now = world.now;
    let datagram = check(&mut world, b, a, u32::MAX);
    let route = Route { via: Via::Extra(3), remote: addr("203.0.113.1:5") };
    assert_eq!(world.agent(a).handle_datagram(route, &datagram, now), Err(CheckError::Gone));
    world.agent(a).set_extra(&[2, 3], now);
    assert_eq!(world.agent(a).handle_datagram(route, &datagram, now), Ok(()));
    assert_eq!(world.agent(a).pairs().map(|pair| pair.route).collect::<Vec<_>>(), [route]);
    assert!(transmits(&mut world, a).iter().all(|transmit| transmit.route == route));
    world.agent(a).set_extra(&[2], now);
    assert_eq!(world.agent(a).pairs().count(), 0);
}
