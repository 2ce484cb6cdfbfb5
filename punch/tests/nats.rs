//! Two sites behind modelled NATs: which pairs of NATs let a path be opened, and how
//! fast it is.

mod net;

use std::time::Duration;

use net::{
    Behaviour, DEPENDS, HostId, INTERNET, Ports, SECOND, Weather, World, direct_is_possible,
};
use proptest::prelude::*;
use zonemesh_punch::{CandidateKind, Event, Tier};

/// Two sites that know each other from the start.
fn sites(seed: u64, a: Behaviour, b: Behaviour) -> (World, HostId, HostId) {
    let mut world = World::new(seed);
    let a = world.site("203.0.113.1", "192.168.1.2", a);
    let b = world.site("203.0.113.2", "192.168.2.2", b);
    world.introduce(a, b);
    (world, a, b)
}

fn assert_direct(a: Behaviour, b: Behaviour) {
    for seed in 0..20 {
        for (a, b) in [(a, b), (b, a)] {
            let (mut world, a, b) = sites(seed, a, b);
            let took = world.connect(a, b, 10 * SECOND).expect("a path");
            assert!(took < SECOND, "{took:?}");
            assert_eq!(world.selected(a).map(|path| path.tier), Some(Tier::Direct));
        }
    }
}

fn assert_impossible(a: Behaviour, b: Behaviour) {
    for (a, b) in [(a, b), (b, a)] {
        let (mut world, a, b) = sites(1, a, b);
        world.run(60 * SECOND);
        assert_eq!((world.selected(a), world.selected(b)), (None, None));
        assert!(world.of(a).events.is_empty() && world.of(b).events.is_empty());
        // No storm, and no giving up either.
        for host in [a, b] {
            let before = world.of(host).packets_out;
            world.run(120 * SECOND);
            let sent = world.of(host).packets_out - before;
            assert!((10..=240).contains(&sent), "{sent} packets in two minutes");
        }
    }
}

#[test]
fn port_restricted_meets_port_restricted() {
    assert_direct(Behaviour::port_restricted(), Behaviour::port_restricted());
}

#[test]
fn full_cone_meets_symmetric() {
    assert_direct(Behaviour::full_cone(), Behaviour::symmetric());
}

#[test]
fn address_restricted_meets_symmetric() {
    assert_direct(Behaviour::address_restricted(), Behaviour::symmetric());
}

#[test]
fn port_restricted_meets_symmetric() {
    assert_impossible(Behaviour::port_restricted(), Behaviour::symmetric());
}

#[test]
fn symmetric_meets_symmetric() {
    assert_impossible(Behaviour::symmetric(), Behaviour::symmetric());
}

#[test]
fn a_public_host_meets_any_nat() {
    for nat in kinds() {
        let mut world = World::new(1);
        let public = world.host(INTERNET, &["198.51.100.7"]);
        let site = world.site("203.0.113.2", "192.168.2.2", nat);
        world.introduce(public, site);
        let took = world.connect(public, site, 10 * SECOND).expect("a path");
        assert!(took < SECOND, "{took:?}: {nat:?}");
    }
}

#[test]
fn carrier_grade_nat_is_a_nat_behind_a_nat() {
    let mut world = World::new(1);
    let site = |world: &mut World, public, carrier, private| {
        let (_, shared) = world.nat(INTERNET, public, Behaviour::port_restricted());
        let (_, lan) = world.nat(shared, carrier, Behaviour::port_restricted());
        world.host(lan, &[private])
    };
    let a = site(&mut world, "203.0.113.1", "100.64.0.1", "192.168.1.2");
    let b = site(&mut world, "203.0.113.2", "100.64.0.1", "192.168.1.2");
    world.introduce(a, b);
    let took = world.connect(a, b, 10 * SECOND).expect("a path");
    assert!(took < SECOND, "{took:?}");
    world.run(300 * SECOND);
    assert!(world.carries(a, b) && world.carries(b, a));
}

#[test]
fn ipv6_passes_stateful_firewalls_on_both_sides() {
    let mut world = World::new(1);
    let (_, left) = world.firewall(INTERNET);
    let (_, right) = world.firewall(INTERNET);
    let a = world.host(left, &["2001:db8:1::2"]);
    let b = world.host(right, &["2001:db8:2::2"]);
    world.introduce(a, b);
    let took = world.connect(a, b, 10 * SECOND).expect("a path");
    assert!(took < SECOND, "{took:?}");
}

#[test]
fn ipv6_is_taken_where_both_families_work() {
    let mut world = World::new(1);
    let hosts = [("203.0.113.1", "2001:db8:1::2"), ("203.0.113.2", "2001:db8:2::2")];
    let [a, b] = hosts.map(|(public, ipv6)| {
        let (_, lan) = world.dual(INTERNET, public, Behaviour::port_restricted());
        world.host(lan, &["192.168.1.2", ipv6])
    });
    world.introduce(a, b);
    world.connect(a, b, 10 * SECOND).expect("a path");
    world.run(5 * SECOND);
    for host in [a, b] {
        let path = world.selected(host).expect("a path");
        assert!(path.route.remote.is_ipv6(), "{path:?}");
        assert_eq!(path.tier, Tier::Lan, "no NAT is on the way");
    }
}

#[test]
fn who_learns_of_the_other_late_connects_at_once() {
    // Long after the first side's fast phase: its own checks have held its NAT open.
    for late in [1, 3, 10, 50, 100, 400] {
        let mut world = World::new(late);
        let a = world.site("203.0.113.1", "192.168.1.2", Behaviour::port_restricted());
        let b = world.site("203.0.113.2", "192.168.2.2", Behaviour::port_restricted());
        world.start_agent(a, b);
        world.start_agent(b, a);
        world.tell(a, b);
        world.run(u32::try_from(late).expect("small") * SECOND);
        world.tell(b, a);
        let took = world.connect(a, b, 10 * SECOND).expect("a path");
        assert!(took < SECOND, "{took:?} after {late} s");
    }
}

#[test]
fn what_a_nat_maps_anew_is_learned_as_peer_reflexive() {
    let (mut world, a, b) = sites(1, Behaviour::full_cone(), Behaviour::symmetric());
    world.connect(a, b, 10 * SECOND).expect("a path");
    let path = world.selected(a).expect("a path");
    assert_eq!(path.kind, CandidateKind::PeerReflexive);
    assert_eq!(Some(path.route.remote), world.selected(b).and_then(|path| path.own));
}

#[test]
fn a_mapping_is_kept_alive_while_nothing_is_sent() {
    for timeout in [30, 60, 180] {
        let mut nat = Behaviour::port_restricted();
        nat.timeout = timeout * SECOND;
        let (mut world, a, b) = sites(u64::from(timeout), nat, nat);
        world.connect(a, b, 10 * SECOND).expect("a path");
        let before = world.of(a).packets_out;
        world.run(3600 * SECOND);
        assert!(world.carries(a, b) && world.carries(b, a));
        let lost = |(_, event): &(Duration, Event)| *event == Event::PathLost;
        assert!(!world.of(a).events.iter().any(lost) && !world.of(b).events.iter().any(lost));
        // The price of an idle hour: 20 s apart at most, checks and answers.
        let sent = world.of(a).packets_out - before;
        assert!((360..=700).contains(&sent), "{sent} packets in an idle hour");
    }
}

#[test]
fn every_nat_meets_every_other() {
    for (seed, (a, b)) in (0..).zip(every_two(&kinds())) {
        let (mut world, left, right) = sites(seed, a, b);
        let took = world.connect(left, right, 10 * SECOND);
        if direct_is_possible(&a, &b) {
            let took = took.unwrap_or_else(|| panic!("no path: {a:?} × {b:?}"));
            assert!(took < SECOND, "{took:?}: {a:?} × {b:?}");
        } else {
            assert_eq!(took, None, "a path that nobody expected: {a:?} × {b:?}");
            world.run(60 * SECOND);
            let before = [left, right].map(|host| world.of(host).packets_out);
            world.run(60 * SECOND);
            for (host, before) in [left, right].into_iter().zip(before) {
                let sent = world.of(host).packets_out - before;
                assert!(sent <= 5 * 60, "{sent} packets in a minute: {a:?} × {b:?}");
            }
        }
    }
}

#[test]
fn every_nat_meets_every_other_in_bad_weather() {
    let mut times = Vec::new();
    for (seed, (a, b)) in (0..).zip(every_two(&kinds())) {
        if !direct_is_possible(&a, &b) {
            continue;
        }
        let (mut world, left, right) = sites(seed, a, b);
        world.weather = storm(0.2);
        let took = world.connect(left, right, 30 * SECOND);
        times.push(took.unwrap_or_else(|| panic!("no path: {a:?} × {b:?}")));
    }
    times.sort_unstable();
    let (median, late) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    assert!(median < SECOND, "{median:?}");
    assert!(late < 4 * SECOND, "{late:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any two NATs, any loss, and whoever learns of the other first.
    #[test]
    fn a_path_is_found_where_one_is_possible(
        seed in any::<u64>(),
        a in prop::sample::select(kinds()),
        b in prop::sample::select(kinds()),
        loss in 0.0..0.2,
        first_ms in 0..10_000u64,
        second_ms in 0..10_000u64,
    ) {
        let mut world = World::new(seed);
        world.weather = storm(loss);
        let left = world.site("203.0.113.1", "192.168.1.2", a);
        let right = world.site("203.0.113.2", "192.168.1.3", b);
        world.start_agent(left, right);
        world.run(Duration::from_millis(first_ms));
        world.tell(left, right);
        world.start_agent(right, left);
        world.run(Duration::from_millis(second_ms));
        world.tell(right, left);
        let took = world.connect(left, right, 60 * SECOND);
        prop_assert_eq!(took.is_some(), direct_is_possible(&a, &b), "{:?}", took);
    }
}

fn storm(loss: f64) -> Weather {
    Weather { delay: 30 * SECOND / 1000, jitter: 60 * SECOND / 1000, loss }
}

fn every_two(kinds: &[Behaviour]) -> impl Iterator<Item = (Behaviour, Behaviour)> + '_ {
    kinds.iter().flat_map(|a| kinds.iter().map(|b| (*a, *b)))
}

/// Every kind of NAT in the words of RFC 4787.
fn kinds() -> Vec<Behaviour> {
    let mut kinds = Vec::new();
    for mapping in DEPENDS {
        for filtering in DEPENDS {
            for ports in [Ports::Preserving, Ports::Sequential, Ports::Random] {
                kinds.push(Behaviour::new(mapping, filtering, ports));
            }
        }
    }
    kinds
}
