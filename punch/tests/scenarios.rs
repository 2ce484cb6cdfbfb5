//! What happens to a path: on a LAN, through changes and failures, and to the choice
//! between several.

mod net;

use std::{net::SocketAddr, time::Duration};

use net::{Behaviour, GatewayId, HostId, INTERNET, PORT, Packet, SECOND, Segment, Weather, World};
use zonemesh_punch::{
    CandidateKind, Event, Route, Tier,
    check::{Check, Receipt, Request},
};

/// Two sites behind port-restricted NATs, connected.
struct Sites {
    world: World,
    a: HostId,
    b: HostId,
    nat_b: GatewayId,
    lan_b: Segment,
}

fn connected(seed: u64) -> Sites {
    let mut world = World::new(seed);
    let nat = Behaviour::port_restricted();
    let a = world.site("203.0.113.1", "192.168.1.2", nat);
    let (nat_b, lan_b) = world.nat(INTERNET, "203.0.113.2", nat);
    let b = world.host(lan_b, &["192.168.2.2"]);
    world.introduce(a, b);
    world.connect(a, b, 10 * SECOND).expect("a path");
    Sites { world, a, b, nat_b, lan_b }
}

/// Two public hosts with an address of either family.
fn dual_stack(seed: u64) -> (World, HostId, HostId) {
    let mut world = World::new(seed);
    let a = world.host(INTERNET, &["198.51.100.10", "2001:db8::1"]);
    let b = world.host(INTERNET, &["198.51.100.20", "2001:db8::2"]);
    (world, a, b)
}

fn milliseconds(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn two_on_one_lan_use_the_lan() {
    for hairpin in [false, true] {
        for seed in 0..10 {
            let mut world = World::new(seed);
            let nat = Behaviour { hairpin, ..Behaviour::full_cone() };
            let (_, lan) = world.nat(INTERNET, "203.0.113.1", nat);
            let a = world.host(lan, &["192.168.1.2"]);
            let b = world.host(lan, &["192.168.1.3"]);
            world.introduce(a, b);
            world.connect(a, b, 10 * SECOND).expect("a path");
            world.run(10 * SECOND);
            for (host, peer) in [(a, "192.168.1.3:51820"), (b, "192.168.1.2:51820")] {
                let path = world.selected(host).expect("a path");
                assert_eq!(
                    (path.tier, path.route.remote.to_string()),
                    (Tier::Lan, peer.to_owned())
                );
            }
        }
    }
}

#[test]
fn the_lan_wins_over_the_hairpin_also_when_it_is_known_late() {
    let mut world = World::new(1);
    let nat = Behaviour { hairpin: true, ..Behaviour::full_cone() };
    let (_, lan) = world.nat(INTERNET, "203.0.113.1", nat);
    let a = world.host(lan, &["192.168.1.2"]);
    let b = world.host(lan, &["192.168.1.3"]);
    world.start_agent(a, b);
    world.start_agent(b, a);
    for (host, peer) in [(a, b), (b, a)] {
        let mut candidates = world.candidates(peer);
        candidates.retain(|candidate| candidate.kind == CandidateKind::ServerReflexive);
        let now = world.now;
        world.agent(host).set_remote_candidates(&candidates, now);
    }
    world.connect(a, b, 10 * SECOND).expect("a path by hairpin");
    assert_eq!(world.selected(a).map(|path| path.tier), Some(Tier::Direct));
    world.run(60 * SECOND);
    world.tell(a, b);
    world.tell(b, a);
    let on_lan =
        |world: &World, host| world.selected(host).is_some_and(|path| path.tier == Tier::Lan);
    let took = world.run_until(5 * SECOND, |world| on_lan(world, a) && on_lan(world, b));
    assert!(took.expect("the LAN is found") < SECOND);
    assert!(world.carries(a, b) && world.carries(b, a));
}

#[test]
fn same_prefix_on_both_sites_is_not_confused() {
    let mut world = World::new(1);
    let nat = Behaviour::port_restricted();
    let (_, left) = world.nat(INTERNET, "203.0.113.1", nat);
    let (_, right) = world.nat(INTERNET, "203.0.113.2", nat);
    let a = world.host(left, &["192.168.1.2"]);
    let b = world.host(right, &["192.168.1.3"]);
    // At each site somebody else has the address that the peer has at the other: a
    // machine that knows nothing, and a node of the same mesh.
    let stranger = world.host(left, &["192.168.1.3"]);
    let member = world.host(right, &["192.168.1.2"]);
    world.introduce(a, b);
    world.start_agent(member, a);
    world.connect(a, b, 10 * SECOND).expect("a path");
    world.run(60 * SECOND);
    assert!(world.carries(a, b) && world.carries(b, a));
    assert!(!world.of(stranger).received.is_empty() && !world.of(member).received.is_empty());
    for host in [a, b] {
        assert_eq!(world.selected(host).map(|path| path.tier), Some(Tier::Direct));
    }
    assert_eq!(world.of(member).packets_out, 0, "what is not for it gets no answer");
}

#[test]
fn a_node_does_not_check_itself() {
    // Both have the very same address at home.
    let mut world = World::new(1);
    let nat = Behaviour::port_restricted();
    let a = world.site("203.0.113.1", "192.168.1.2", nat);
    let b = world.site("203.0.113.2", "192.168.1.2", nat);
    world.introduce(a, b);
    world.connect(a, b, 10 * SECOND).expect("a path");
    assert!(
        world.agent(a).pairs().all(|pair| pair.route.remote.to_string() != "192.168.1.2:51820")
    );
    assert_eq!(world.of(a).errors.len() + world.of(b).errors.len(), 0);
}

#[test]
fn behind_one_nat_without_a_common_lan_the_hairpin_is_used() {
    // Two floors of one house, a router each, and the provider's NAT above both.
    let mut world = World::new(1);
    let hairpin = Behaviour { hairpin: true, ..Behaviour::port_restricted() };
    let (_, house) = world.nat(INTERNET, "203.0.113.1", hairpin);
    let (_, first) = world.nat(house, "100.64.0.1", Behaviour::port_restricted());
    let (_, second) = world.nat(house, "100.64.0.2", Behaviour::port_restricted());
    let a = world.host(first, &["192.168.1.2"]);
    let b = world.host(second, &["192.168.1.2"]);
    world.introduce(a, b);
    let took = world.connect(a, b, 10 * SECOND).expect("a path");
    assert!(took < SECOND, "{took:?}");
}

#[test]
fn nat_restart_is_survived() {
    for seed in 0..10 {
        let Sites { mut world, a, b, nat_b, .. } = connected(seed);
        world.run(100 * SECOND);
        world.restart_nat(nat_b, "203.0.113.99");
        // The daemon asks its STUN server every few seconds; the zone is polled.
        world.run(5 * SECOND);
        let candidates = world.candidates(b);
        let now = world.now;
        world.agent(b).set_local_candidates(&candidates, now);
        world.agent(b).local_changed(now);
        world.run(2 * SECOND);
        world.tell(a, b);
        let took = world.connect(a, b, 15 * SECOND).expect("a path");
        assert!(took < 4 * SECOND, "{took:?}");
        let path = world.selected(a).expect("a path");
        assert_eq!(path.route.remote.ip().to_string(), "203.0.113.99");
    }
}

#[test]
fn a_nat_that_forgets_its_mapping_is_reopened_without_the_zone() {
    // The same public address: the peer's own checks open a new mapping, and where
    // the other side takes them from any port, nobody else needs to know.
    let mut world = World::new(1);
    let a = world.site("203.0.113.1", "192.168.1.2", Behaviour::address_restricted());
    let (nat_b, lan) = world.nat(INTERNET, "203.0.113.2", Behaviour::symmetric());
    let b = world.host(lan, &["192.168.2.2"]);
    world.introduce(a, b);
    world.connect(a, b, 10 * SECOND).expect("a path");
    world.run(100 * SECOND);
    let old = world.selected(a).expect("a path").route.remote;
    world.restart_nat(nat_b, "203.0.113.2");
    let moved = world.run_until(30 * SECOND, |world| {
        world.selected(a).is_some_and(|path| path.route.remote != old)
    });
    assert!(moved.is_some());
    world.connect(a, b, 5 * SECOND).expect("a path");
}

#[test]
fn a_dead_path_is_left_within_five_seconds_while_data_is_sent() {
    let Sites { mut world, a, b, nat_b, .. } = connected(1);
    for _ in 0..100 {
        let (to_b, to_a) = (world.selected(a).expect("a path"), world.selected(b).expect("a path"));
        let now = world.now;
        world.agent(a).note_data_sent(now);
        world.agent(a).note_data_received(to_b.route, now);
        world.agent(b).note_data_sent(now);
        world.agent(b).note_data_received(to_a.route, now);
        world.run(milliseconds(100));
    }
    world.restart_nat(nat_b, "203.0.113.99");
    let begin = world.now;
    while world.selected(a).is_some() && world.now < begin + 20 * SECOND {
        let now = world.now;
        world.agent(a).note_data_sent(now);
        world.run(milliseconds(100));
    }
    let took = world.now - begin;
    assert!(took <= 5 * SECOND, "{took:?}");
    assert!(matches!(world.of(a).events.last(), Some((_, Event::PathLost))));
}

#[test]
fn a_peer_that_restarts_is_back_at_once() {
    for seed in 0..10 {
        let Sites { mut world, a, b, .. } = connected(seed);
        for (restarted, peer) in [(a, b), (b, a)] {
            world.run(200 * SECOND);
            world.start_agent(restarted, peer);
            world.tell(restarted, peer);
            let took = world.connect(a, b, 10 * SECOND).expect("a path");
            assert!(took < SECOND, "{took:?}");
        }
    }
}

#[test]
fn a_clock_that_steps_does_not_part_two_nodes() {
    const DAY: u64 = 24 * 3600 * 1000;
    for seed in 0..5 {
        let Sites { mut world, a, b, .. } = connected(seed);
        for step in [-1, 1, -300] {
            for (restarted, peer) in [(a, b), (b, a)] {
                world.run(200 * SECOND);
                let clock_ms = world.of(restarted).clock_ms;
                world.of(restarted).clock_ms = clock_ms.saturating_add_signed(step * DAY as i64);
                world.start_agent(restarted, peer);
                world.tell(restarted, peer);
                let took = world.connect(a, b, 30 * SECOND).expect("a path");
                assert!(took < 2 * SECOND, "{took:?}");
                // And its requests are taken: nominations are followed again.
                world.run(30 * SECOND);
                let stale = world.of(peer).errors.clone();
                world.run(300 * SECOND);
                assert_eq!(world.of(peer).errors, stale);
            }
        }
    }
}

#[test]
fn both_use_the_same_path() {
    // Either family works; what one nominates the other follows.
    for seed in 0..20 {
        let (mut world, a, b) = dual_stack(seed);
        world.weather = Weather { jitter: milliseconds(60), loss: 0.1, ..net::FAIR };
        world.introduce(a, b);
        world.connect(a, b, 10 * SECOND).expect("a path");
        // Until the rivals of the first that answered are measured.
        world.run(15 * SECOND);
        let apart = |world: &World| {
            let paths = [a, b].map(|host| world.selected(host).expect("a path"));
            paths[0].own != Some(paths[1].route.remote)
                || paths[1].own != Some(paths[0].route.remote)
        };
        world.run_until(5 * SECOND, |world| !apart(world)).expect("they agree");
        for _ in 0..60 {
            world.run(SECOND);
            assert!(!apart(&world));
        }
    }
}

#[test]
fn a_nomination_that_was_overtaken_is_not_followed() {
    let (mut world, mut a, mut b) = dual_stack(1);
    world.introduce(a, b);
    world.connect(a, b, 10 * SECOND).expect("a path");
    world.run(30 * SECOND);
    if world.keys(b, a).controlling() {
        (a, b) = (b, a);
    }
    // From here on the test speaks for the controlling side.
    let keys = world.keys(a, b);
    let clock_ms =
        world.of(a).clock_ms + u64::try_from(world.elapsed().as_millis()).expect("short");
    let ips = world.of(a).ips.clone();
    world.of(a).agent = None;
    let target = world.of(b).ips.clone();
    for (family, later_ms) in [(0, 100), (1, 50), (0, 110), (1, 120)] {
        let request = Request {
            id: [u8::try_from(later_ms).expect("small"); 12],
            clock_ms: clock_ms + later_ms,
            priority: 0,
            nominate: true,
            receipt: Receipt::default(),
            plan: None,
        };
        let packet = Packet::new(
            SocketAddr::new(ips[family], PORT),
            SocketAddr::new(target[family], PORT),
            keys.seal(&Check::Request(request)),
        );
        world.inject(INTERNET, packet);
        world.run(milliseconds(100));
        let expected = if later_ms == 120 { ips[1] } else { ips[0] };
        assert_eq!(world.selected(b).map(|path| path.route.remote.ip()), Some(expected));
    }
}

#[test]
fn nominations_count_again_after_the_peers_clock_stepped_back() {
    let (mut world, mut a, mut b) = dual_stack(1);
    if world.keys(b, a).controlling() {
        (a, b) = (b, a);
    }
    world.introduce(a, b);
    world.connect(a, b, 10 * SECOND).expect("a path");
    world.run(30 * SECOND);
    world.of(a).clock_ms -= 24 * 3600 * 1000;
    world.start_agent(a, b);
    world.tell(a, b);
    world.connect(a, b, 10 * SECOND).expect("a path");
    world.run(30 * SECOND);
    let before = world.selected(b).expect("a path").route.remote;
    let now = world.now;
    world.agent(a).note_data_dead(now);
    world.run(SECOND);
    assert_ne!(world.selected(b).expect("a path").route.remote, before);
}

#[test]
fn a_peer_that_is_heard_after_long_silence_is_looked_for_everywhere() {
    let (mut world, a, b) = dual_stack(1);
    world.start_agent(a, b);
    world.tell(a, b);
    world.run(600 * SECOND);
    // The peer comes up and knows one address of ours only.
    world.start_agent(b, a);
    let mut candidates = world.candidates(a);
    candidates.retain(|candidate| candidate.addr.is_ipv4());
    let now = world.now;
    world.agent(b).set_remote_candidates(&candidates, now);
    world.run(SECOND / 2);
    assert_eq!(world.agent(a).pairs().filter(|pair| pair.rtt.is_some()).count(), 2);
}

#[test]
fn in_fair_weather_a_path_once_chosen_stays() {
    let Sites { mut world, a, b, .. } = connected(1);
    world.run(30 * SECOND);
    let before = (world.of(a).events.len(), world.of(b).events.len());
    world.run(24 * 3600 * SECOND);
    assert_eq!((world.of(a).events.len(), world.of(b).events.len()), before);
    assert!(before.0 <= 2 && before.1 <= 2, "{before:?}");
}

#[test]
fn bad_weather_does_not_lose_the_path_for_long() {
    for seed in 0..5 {
        let Sites { mut world, a, b, .. } = connected(seed);
        world.weather = Weather { delay: milliseconds(80), jitter: milliseconds(80), loss: 0.15 };
        let mut down = Duration::ZERO;
        for _ in 0..3600 {
            world.run(SECOND);
            if world.selected(a).is_none() || world.selected(b).is_none() {
                down += SECOND;
            }
        }
        assert!(down <= 36 * SECOND, "{down:?} of an hour");
    }
}

#[test]
fn data_that_dies_moves_the_path_and_its_return_clears_the_name() {
    let (mut world, a, b) = dual_stack(1);
    world.introduce(a, b);
    world.connect(a, b, 10 * SECOND).expect("a path");
    world.run(10 * SECOND);
    let first = world.selected(a).expect("a path").route.remote;
    // WireGuard finds its packets dead on both sides, as a rule.
    for host in [a, b] {
        let now = world.now;
        world.agent(host).note_data_dead(now);
    }
    let second = world.selected(a).expect("another path").route.remote;
    assert_ne!(first, second);
    world.run(15 * SECOND);
    assert_eq!(world.selected(a).map(|path| path.route.remote), Some(second));
    assert!(world.agent(a).pairs().any(|pair| pair.suspect && pair.route.remote == first));
    let now = world.now;
    world.agent(a).note_data_received(Route::direct(first), now);
    assert!(!world.agent(a).pairs().any(|pair| pair.suspect));
}

#[test]
fn a_path_on_which_data_keeps_dying_is_tried_ever_more_seldom() {
    let mut world = World::new(1);
    let nat = Behaviour { hairpin: true, ..Behaviour::full_cone() };
    let (_, lan) = world.nat(INTERNET, "203.0.113.1", nat);
    let a = world.host(lan, &["192.168.1.2"]);
    let b = world.host(lan, &["192.168.1.3"]);
    world.introduce(a, b);
    world.connect(a, b, 10 * SECOND).expect("a path");
    world.run(10 * SECOND);
    let mut deaths = 0;
    for _ in 0..4 * 3600 {
        world.run(SECOND);
        let on_lan = world.selected(a).expect("a path").tier == Tier::Lan;
        deaths += u32::from(on_lan);
        for host in [a, b].into_iter().filter(|_| on_lan) {
            let now = world.now;
            world.agent(host).note_data_dead(now);
        }
    }
    // After 0, 20 and 60 seconds, 2, 5, 10, 21 and 43 minutes, and then each 43 minutes.
    assert!((10..=14).contains(&deaths), "{deaths}");
}

#[test]
fn data_from_an_unknown_address_is_followed() {
    // The peer's NAT maps anew, and its data is here before its checks.
    let mut world = World::new(1);
    let a = world.site("203.0.113.1", "192.168.1.2", Behaviour::full_cone());
    let b = world.host(INTERNET, &["198.51.100.20"]);
    world.start_agent(a, b);
    world.start_agent(b, a);
    let reflexive = world.candidates(a).last().expect("a reflexive one").addr;
    let now = world.now;
    world.agent(b).note_data_received(Route::direct(reflexive), now);
    world.connect(a, b, SECOND).expect("a path");
}

#[test]
fn where_data_dies_on_the_only_path_it_is_kept() {
    let Sites { mut world, a, .. } = connected(1);
    let before = world.of(a).packets_out;
    for _ in 0..60 {
        let now = world.now;
        world.agent(a).note_data_dead(now);
        world.run(SECOND);
    }
    assert!(world.selected(a).is_some());
    assert!(world.of(a).packets_out - before < 200);
}

#[test]
fn a_much_faster_way_of_the_same_kind_takes_over_but_not_at_a_whim() {
    for (extra_ms, moves) in [(80, true), (4, false)] {
        let (mut world, a, b) = dual_stack(1);
        world.slow_down("2001:db8::1", milliseconds(extra_ms));
        world.slow_down("2001:db8::2", milliseconds(extra_ms));
        world.introduce(a, b);
        // At first only the slow one is known.
        for (host, peer) in [(a, b), (b, a)] {
            let mut candidates = world.candidates(peer);
            candidates.retain(|candidate| candidate.addr.is_ipv6());
            let now = world.now;
            world.agent(host).set_remote_candidates(&candidates, now);
        }
        world.connect(a, b, 5 * SECOND).expect("a path");
        world.run(5 * SECOND);
        assert!(world.selected(a).expect("a path").route.remote.is_ipv6());
        world.tell(a, b);
        world.tell(b, a);
        let moved = |world: &mut World| {
            [a, b]
                .iter()
                .all(|host| world.selected(*host).is_some_and(|p| p.route.remote.is_ipv4()))
        };
        let took = world.run_until(300 * SECOND, moved);
        assert_eq!(took.is_some(), moves, "{took:?}");
        assert!(took.is_none_or(|took| took > SECOND), "one answer is no proof: {took:?}");
    }
}

#[test]
fn what_the_peer_no_longer_names_goes_unless_it_works() {
    let Sites { mut world, a, .. } = connected(1);
    let works = world.selected(a).expect("a path").route.remote;
    assert!(world.agent(a).pairs().count() > 1);
    let now = world.now;
    world.agent(a).set_remote_candidates(&[], now);
    let left: Vec<_> = world.agent(a).pairs().map(|pair| pair.route.remote).collect();
    assert_eq!(left, [works]);
    world.run(300 * SECOND);
    assert_eq!(world.selected(a).map(|path| path.route.remote), Some(works));
}

#[test]
fn nothing_is_due_where_nothing_is_known() {
    let mut world = World::new(1);
    let a = world.host(INTERNET, &["198.51.100.10"]);
    let b = world.host(INTERNET, &["198.51.100.20"]);
    world.start_agent(a, b);
    assert_eq!(world.agent(a).poll_timeout(), None);
    world.tell(a, b);
    assert!(world.agent(a).poll_timeout().is_some());
}

#[test]
fn waking_restarts_fast_probing() {
    let mut world = World::new(1);
    let a = world.host(INTERNET, &["198.51.100.10"]);
    let b = world.host(INTERNET, &["198.51.100.20"]);
    world.start_agent(a, b);
    world.tell(a, b);
    world.run(600 * SECOND);
    let before = world.of(a).packets_out;
    world.run(4 * SECOND);
    assert!(world.of(a).packets_out - before <= 1);
    let now = world.now;
    world.agent(a).wake(now);
    let before = world.of(a).packets_out;
    world.run(4 * SECOND);
    assert!(world.of(a).packets_out - before >= 15);
}

#[test]
fn another_host_on_the_lan_gets_its_own_mapping() {
    // Two nodes behind one NAT, each with a path to the same peer.
    let Sites { mut world, a, lan_b, .. } = connected(1);
    let c = world.host(lan_b, &["192.168.2.3"]);
    world.introduce(a, c);
    world.connect(a, c, 10 * SECOND).expect("a path");
}
