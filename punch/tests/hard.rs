//! NATs that ordinary checks do not pass: ports that are told in advance, and ports that
//! are met by chance.

mod net;

use std::time::Duration;

use net::{Behaviour, Depends, HostId, Ports, SECOND, Weather, World};
use zonemesh_punch::{Event, MAX_SOCKETS, Tier, Via};

/// How many worlds each kind is tried in.
const SEEDS: u64 = 40;

fn sites(seed: u64, kinds: [Behaviour; 2], weather: Weather) -> (World, HostId, HostId) {
    let mut world = World::new(seed);
    world.weather = weather;
    world.hard = true;
    let a = world.site("203.0.113.1", "192.168.1.2", kinds[0]);
    let b = world.site("203.0.113.2", "192.168.2.2", kinds[1]);
    let relay = world.relay("198.51.100.50");
    world.allocate(a, relay);
    world.allocate(b, relay);
    world.keepalive = Some(25 * SECOND);
    for (host, kind) in [(a, kinds[0]), (b, kinds[1])] {
        if kind.remaps {
            // What is new leaves from another port than the one that is known.
            world.knock(host);
        }
    }
    world.introduce(a, b);
    (world, a, b)
}

fn is_direct(world: &World, host: HostId) -> bool {
    world.selected(host).is_some_and(|path| path.tier == Tier::Direct)
}

/// How many of a hundred come to be direct within the limit; by a sample of them.
fn successes(kinds: [Behaviour; 2], limit: Duration, weather: Weather) -> usize {
    let mut times = Vec::new();
    for seed in 0..SEEDS {
        let kinds = if seed % 2 == 0 { kinds } else { [kinds[1], kinds[0]] };
        let (mut world, a, b) = sites(seed, kinds, weather);
        let both = |world: &mut World| is_direct(world, a) && is_direct(world, b);
        let Some(took) = world.run_until(limit, both) else { continue };
        world.run(5 * SECOND);
        assert!(world.carries(a, b) && world.carries(b, a), "seed {seed}");
        times.push(took);
    }
    times.sort_unstable();
    let (median, last) = (times.get(times.len() / 2), times.last());
    eprintln!("{} of {SEEDS}, median {median:?}, last {last:?}", times.len());
    times.len() * 100 / usize::try_from(SEEDS).expect("few")
}

#[test]
fn a_sequence_is_told_in_advance() {
    for other in [Behaviour::port_restricted(), Behaviour::open_input()] {
        let direct = successes([other, Behaviour::sequential()], 10 * SECOND, net::FAIR);
        assert!(direct >= 95, "{direct} of 100 with {other:?}");
    }
}

#[test]
fn two_sequences_meet_in_order() {
    let direct = successes([Behaviour::sequential(); 2], 10 * SECOND, net::FAIR);
    assert!(direct >= 95, "{direct} of 100");
}

#[test]
fn random_ports_are_met_by_chance() {
    for other in [Behaviour::port_restricted(), Behaviour::open_input()] {
        let direct = successes([other, Behaviour::symmetric()], 60 * SECOND, net::FAIR);
        assert!(direct >= 90, "{direct} of 100 with {other:?}");
    }
}

#[test]
fn sequences_are_told_in_bad_weather_too() {
    let weather = Weather { loss: 0.1, ..net::FAIR };
    let direct =
        successes([Behaviour::port_restricted(), Behaviour::sequential()], 20 * SECOND, weather);
    assert!(direct >= 90, "{direct} of 100");
}

#[test]
fn what_is_hopeless_is_not_tried() {
    let random = Behaviour::symmetric();
    for other in [random, Behaviour::sequential(), Behaviour::blocked()] {
        let (mut world, a, b) = sites(1, [random, other], net::FAIR);
        world.run(300 * SECOND);
        for host in [a, b] {
            assert!(!world.of(host).events.iter().any(|(_, event)| *event == Event::WantTurn));
            assert!(!is_direct(&world, host));
        }
    }
}

#[test]
fn nothing_is_tried_where_it_is_switched_off() {
    let (mut world, a, b) =
        sites(1, [Behaviour::port_restricted(), Behaviour::sequential()], net::FAIR);
    let now = world.now;
    world.agent(a).set_hard(false, now);
    world.run(120 * SECOND);
    assert!(!is_direct(&world, a) && !is_direct(&world, b));
    assert_eq!(world.of(a).traffic.extra.len() + world.of(b).traffic.extra.len(), 0);
}

#[test]
fn an_attempt_keeps_within_its_budget_and_pauses_double() {
    // The random side's NAT lets nothing in: each attempt fails.
    let (mut world, a, b) =
        sites(1, [Behaviour::port_restricted(), Behaviour::symmetric()], net::FAIR);
    world.cut("203.0.113.1", "203.0.113.2");
    world.run(SECOND);
    world.record = true;
    let mut attempts = Vec::new();
    for second in 0..3600u64 {
        world.seen.clear();
        world.run(SECOND);
        let probes = world.seen.iter().filter(|packet| {
            packet.from.ip() == "203.0.113.1".parse::<std::net::IpAddr>().expect("an address")
                && packet.to.ip() == "203.0.113.2".parse::<std::net::IpAddr>().expect("an address")
        });
        let count = probes.count();
        assert!(count <= 240, "{count} probes in a second");
        if count > 100 && attempts.last().is_none_or(|last| second > last + 10) {
            attempts.push(second);
        }
        for host in [a, b] {
            assert!(world.of(host).traffic.extra.len() <= usize::from(MAX_SOCKETS));
        }
    }
    let pauses: Vec<u64> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!((5..=8).contains(&attempts.len()), "{attempts:?}");
    assert!(pauses.windows(2).all(|pair| pair[1] > pair[0] * 3 / 2), "{pauses:?}");
    for host in [a, b] {
        let events = world.of(host).events.clone();
        let turns = |wanted| events.iter().filter(|(_, event)| *event == wanted).count();
        assert_eq!(turns(Event::WantTurn), turns(Event::TurnOver));
    }
}

#[test]
fn the_socket_that_was_met_is_kept_and_the_others_go() {
    let (mut world, a, b) =
        sites(3, [Behaviour::port_restricted(), Behaviour::symmetric()], net::FAIR);
    world
        .run_until(60 * SECOND, |world| is_direct(world, a) && is_direct(world, b))
        .expect("it is met");
    world.run(10 * SECOND);
    let path = world.selected(b).expect("a path");
    let Via::Extra(kept) = path.route.via else { panic!("{path:?}") };
    assert_eq!(world.of(b).traffic.extra.iter().copied().collect::<Vec<_>>(), [kept]);
    world.run(3600 * SECOND);
    assert!(is_direct(&world, a) && is_direct(&world, b));
    assert!(world.carries(a, b) && world.carries(b, a));
}

#[test]
fn a_sequence_by_address_is_told_in_advance_too() {
    let nat = Behaviour::new(Depends::Address, Depends::AddressAndPort, Ports::Sequential);
    let direct = successes([Behaviour::port_restricted(), nat], 10 * SECOND, net::FAIR);
    assert!(direct >= 95, "{direct} of 100");
}
