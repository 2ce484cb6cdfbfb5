//! What is kept up for a peer that was active a while ago, and what it costs.

mod net;

use std::time::Duration;

use net::{Behaviour, HostId, INTERNET, SECOND, World};
use zonemesh_punch::{Event, Tier};

/// Two sites behind NATs that forget after so long, with a direct path over which data flowed.
fn after_data(seed: u64, timeouts: [Duration; 2]) -> (World, HostId, HostId) {
    let mut world = World::new(seed);
    world.keepalive = Some(25 * SECOND);
    let [a, b] = timeouts.map(|timeout| Behaviour { timeout, ..Behaviour::port_restricted() });
    let a = world.site("203.0.113.1", "192.168.1.2", a);
    let b = world.site("203.0.113.2", "192.168.2.2", b);
    let relay = world.relay("198.51.100.50");
    world.allocate(a, relay);
    world.allocate(b, relay);
    world.introduce(a, b);
    world.connect(a, b, 5 * SECOND).expect("a path");
    for (from, to) in [(a, b), (b, a)] {
        world.flow(from, to, Some(SECOND));
    }
    world.run(5 * SECOND);
    for (from, to) in [(a, b), (b, a)] {
        world.flow(from, to, None);
    }
    (world, a, b)
}

fn changes(world: &mut World, host: HostId) -> usize {
    let changed = |event: &Event| matches!(event, Event::PathSelected(_) | Event::PathLost);
    world.of(host).events.iter().filter(|(_, event)| changed(event)).count()
}

/// What both send in so long.
fn packets_in(world: &mut World, hosts: [HostId; 2], time: Duration) -> u64 {
    let before: u64 = hosts.map(|host| world.of(host).packets_out).iter().sum();
    world.run(time);
    hosts.map(|host| world.of(host).packets_out).iter().sum::<u64>() - before
}

#[test]
fn nats_that_forget_after_fifteen_seconds_stay_open_for_a_minute_after_data() {
    for seed in 0..20 {
        for timeouts in [[15, 15], [15, 60], [60, 15]] {
            let (mut world, a, b) = after_data(seed, timeouts.map(Duration::from_secs));
            let before = [a, b].map(|host| changes(&mut world, host));
            // To look opens them too: once, at another time in each world.
            world.run((20 + 2 * u32::try_from(seed).expect("few")) * SECOND);
            let (from, to) = if seed % 2 == 0 { (a, b) } else { (b, a) };
            assert!(world.carries(from, to), "seed {seed}: {timeouts:?}");
            let after = [a, b].map(|host| changes(&mut world, host));
            assert_eq!(before, after, "seed {seed}: {timeouts:?}");
        }
    }
}

#[test]
fn what_was_measured_to_live_long_is_left_alone() {
    let [unknown, known] = [None, Some(150 * SECOND)].map(|lifetime| {
        let (mut world, a, b) = after_data(1, [180 * SECOND; 2]);
        for host in [a, b] {
            world.agent(host).set_mapping_lifetime(lifetime);
        }
        world.run(15 * SECOND);
        packets_in(&mut world, [a, b], 60 * SECOND)
    });
    eprintln!("{unknown} packets of both in a minute after data, {known} where NATs are known");
    // Four or five checks and their answers.
    assert!(unknown <= known + 12 && known < unknown, "{unknown} and {known}");
}

#[test]
fn the_better_family_is_taken_at_once() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        let hosts = [("203.0.113.1", "2001:db8:1::2"), ("203.0.113.2", "2001:db8:2::2")];
        let [a, b] = hosts.map(|(ipv4, ipv6)| world.host(INTERNET, &[ipv4, ipv6]));
        world.introduce(a, b);
        world.connect(a, b, 5 * SECOND).expect("a path");
        world.run(SECOND / 2);
        let before = [a, b].map(|host| changes(&mut world, host));
        for host in [a, b] {
            let path = world.selected(host).expect("a path");
            assert!(path.route.remote.is_ipv6(), "seed {seed}: {path:?}");
        }
        world.run(60 * SECOND);
        assert_eq!(before, [a, b].map(|host| changes(&mut world, host)), "seed {seed}");
    }
}

#[test]
fn who_does_not_control_moves_up_once() {
    for seed in 0..20 {
        let (mut world, a, b) = after_data(seed, [60 * SECOND; 2]);
        for host in [a, b] {
            let path = world.selected(host).expect("a path");
            assert_eq!(path.tier, Tier::Direct);
            // By a relay, or two as one follows the other, and then straight.
            let changes = changes(&mut world, host);
            assert!(changes <= 3, "seed {seed}: {:?}", world.of(host).events);
        }
    }
}
