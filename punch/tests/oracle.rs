//! Any two NATs, any losses and timings, against what the oracle says is possible.

mod net;

use std::time::Duration;

use net::{Behaviour, DEPENDS, HostId, INTERNET, Ports, SECOND, Weather, World};
use proptest::prelude::*;
use zonemesh_punch::{
    Event, Tier, Verdict,
    oracle::{Best, Depends, Nat, best_possible},
};

/// One side: what stands before it, and how many NATs that is.
#[derive(Debug, Clone, Copy)]
struct Site {
    nat: Option<Behaviour>,
    /// Behind the carrier's NAT is the home's.
    home: bool,
}

impl Site {
    fn nat(&self) -> Nat {
        self.nat.map_or(Nat::PUBLIC, |behaviour| behaviour.nat())
    }

    fn build(&self, world: &mut World, public: &str, lan: u8) -> HostId {
        let Some(behaviour) = self.nat else { return world.host(INTERNET, &[public]) };
        let (_, outer) = world.nat(INTERNET, public, behaviour);
        let (carrier, private) = (format!("100.64.0.{lan}"), format!("192.168.{lan}.2"));
        if !self.home {
            return world.host(outer, &[&private]);
        }
        let home = Behaviour { timeout: behaviour.timeout, ..Behaviour::port_restricted() };
        let (_, inner) = world.nat(outer, &carrier, home);
        world.host(inner, &[&private])
    }
}

fn site() -> impl Strategy<Value = Site> {
    let ports = [Ports::Preserving, Ports::Sequential, Ports::Random];
    let any_nat = (
        prop::sample::select(DEPENDS.to_vec()),
        prop::sample::select(DEPENDS.to_vec()),
        prop::sample::select(ports.to_vec()),
        prop::sample::select(vec![15u32, 30, 60, 180]),
    );
    let any_nat = any_nat.prop_map(|(mapping, filtering, ports, timeout)| {
        // What keeps the inner port has no need of another for each destination.
        let keeps = ports == Ports::Preserving;
        let mapping = if keeps { Depends::Nothing } else { mapping };
        Some(Behaviour { timeout: timeout * SECOND, ..Behaviour::new(mapping, filtering, ports) })
    });
    let nat = prop_oneof![
        8 => any_nat,
        2 => Just(Some(Behaviour::open_input())),
        1 => Just(Some(Behaviour::blocked())),
        1 => Just(None),
    ];
    // A home's filter stands before the carrier's, which must not be better.
    (nat, prop::bool::weighted(0.15)).prop_map(|(nat, home)| {
        let fits = |nat: Behaviour| nat.filtering == Depends::AddressAndPort && !nat.remaps;
        Site { nat, home: home && nat.is_some_and(fits) }
    })
}

/// Two sites with a relay, of which the second starts later.
fn world(seed: u64, sites: [Site; 2], weather: Weather, late: Duration) -> (World, HostId, HostId) {
    let mut world = World::new(seed);
    world.weather = weather;
    world.hard = true;
    world.keepalive = Some(25 * SECOND);
    let a = sites[0].build(&mut world, "203.0.113.1", 1);
    let b = sites[1].build(&mut world, "203.0.113.2", 2);
    let relay = world.relay("198.51.100.50");
    world.allocate(a, relay);
    world.allocate(b, relay);
    world.start_agent(a, b);
    world.start_agent(b, a);
    world.tell(b, a);
    world.run(late);
    world.tell(a, b);
    (world, a, b)
}

fn is_direct(world: &World, host: HostId) -> bool {
    world.selected(host).is_some_and(|path| path.tier != Tier::Relayed)
}

fn changes(world: &mut World, host: HostId) -> usize {
    let changed = |event: &Event| matches!(event, Event::PathSelected(_) | Event::PathLost);
    world.of(host).events.iter().filter(|(_, event)| changed(event)).count()
}

/// How many random worlds are tried unless `ORACLE_CASES` says otherwise.
const CASES: u32 = 200;

fn config() -> ProptestConfig {
    let cases = std::env::var("ORACLE_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig::with_cases(cases.unwrap_or(CASES))
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_pair_is_connected_and_gets_its_best(
        seed in any::<u64>(),
        sites in [site(), site()],
        loss in prop::sample::select(vec![0.0, 0.0, 0.05, 0.2]),
        delay_ms in 1..80u64,
        late_ms in 0..4000u64,
    ) {
        // Two that count and let anybody in chase each other, and so count on and on.
        let [one, two] = sites.map(|site| site.nat());
        let counts = |nat: Nat| nat.mapping != Depends::Nothing && nat.filtering == Depends::Nothing;
        prop_assume!(best_possible(one, two) != Best::Predicted || !(counts(one) || counts(two)));
        let ms = Duration::from_millis;
        let weather = Weather { delay: ms(delay_ms), jitter: ms(delay_ms / 4), loss };
        let (mut world, a, b) = world(seed, sites, weather, ms(late_ms));
        let took = world.connect(a, b, 5 * SECOND);
        prop_assert!(took.is_some(), "not connected");
        let best = best_possible(sites[0].nat(), sites[1].nat());
        let limit = match best {
            Best::Direct if loss < 0.1 => 5 * SECOND,
            Best::Direct => 20 * SECOND,
            Best::Predicted if loss < 0.1 => 15 * SECOND,
            Best::Predicted => 70 * SECOND,
            Best::Birthday if loss < 0.1 => 120 * SECOND,
            Best::Birthday => 400 * SECOND,
            Best::Relayed => 60 * SECOND,
        };
        let both = |world: &mut World| is_direct(world, a) && is_direct(world, b);
        let took = world.run_until(limit, both);
        if best == Best::Relayed {
            prop_assert!(took.is_none(), "nobody expected that");
            let verdict = world.agent(a).verdict();
            prop_assert!(matches!(verdict, Verdict::Relayed(_)), "{verdict:?}");
        } else if best < Best::Birthday || loss < 0.1 {
            prop_assert!(took.is_some(), "{best:?}, but {:?}", world.agent(a).verdict());
        }
        // A mapping that is shorter than the keepalive's pause ends with each of them.
        if sites.iter().any(|site| site.nat.is_some_and(|nat| nat.timeout < 30 * SECOND)) {
            world.run(60 * SECOND);
            let since = world.now;
            for (from, to) in [(a, b), (b, a)] {
                world.flow(from, to, Some(ms(100)));
            }
            world.run(10 * SECOND);
            let until = world.now;
            for host in [a, b] {
                let gap = world.of(host).traffic.longest_gap(since, until);
                prop_assert!(gap <= 5 * SECOND, "nothing for {gap:?}");
            }
            return Ok(());
        }
        // And so it stays.
        world.run(15 * SECOND);
        let before = [changes(&mut world, a), changes(&mut world, b)];
        let sent = [a, b].map(|host| world.of(host).packets_out);
        world.run(60 * SECOND);
        for (host, before) in [a, b].into_iter().zip(before) {
            let changes = changes(&mut world, host) - before;
            prop_assert!(changes == 0, "{changes} changes: {:?}", world.of(host).events);
        }
        if loss == 0.0 {
            for (host, sent) in [a, b].into_iter().zip(sent) {
                let sent = world.of(host).packets_out - sent;
                let most = if best == Best::Relayed { 300 } else { 40 };
                prop_assert!(sent <= most, "{sent} packets in an idle minute");
            }
        }
        prop_assert!(loss > 0.1 || world.carries(a, b) && world.carries(b, a));
    }
}

#[test]
fn a_node_that_slept_an_hour_is_back_at_once() {
    let restricted = Site { nat: Some(Behaviour::port_restricted()), home: false };
    for seed in 0..5 {
        let (mut world, a, b) = world(seed, [restricted; 2], net::FAIR, Duration::ZERO);
        world.run(10 * SECOND);
        assert!(is_direct(&world, a) && is_direct(&world, b));
        // Asleep, it neither sends nor takes anything.
        let sleeping = world.of(a).agent.take();
        world.run(3600 * SECOND);
        world.of(a).agent = sleeping;
        let now = world.now;
        world.agent(a).local_changed(now);
        world.connect(a, b, 5 * SECOND).expect("a path");
        let both = |world: &mut World| is_direct(world, a) && is_direct(world, b);
        let took = world.run_until(15 * SECOND, both);
        assert!(took.is_some(), "{:?}", world.agent(a).verdict());
    }
}
