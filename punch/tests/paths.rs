//! Paths that change: from a relay to direct and back, and what that costs the data.

mod net;

use std::time::{Duration, Instant};

use net::{Behaviour, GatewayId, HostId, INTERNET, RelayId, SECOND, Weather, World};
use zonemesh_punch::{Event, Tier, Via};

const PUBLIC: [&str; 2] = ["203.0.113.1", "203.0.113.2"];
const MILLISECOND: Duration = Duration::from_millis(1);

/// Two sites with a relay, or two, in the Internet.
struct Sites {
    world: World,
    a: HostId,
    b: HostId,
    nats: [GatewayId; 2],
    relays: Vec<RelayId>,
}

fn sites(seed: u64, kinds: [Behaviour; 2], relays: usize) -> Sites {
    let mut world = World::new(seed);
    let [(nat_a, lan_a), (nat_b, lan_b)] =
        [0, 1].map(|side| world.nat(INTERNET, PUBLIC[side], kinds[side]));
    let a = world.host(lan_a, &["192.168.1.2"]);
    let b = world.host(lan_b, &["192.168.2.2"]);
    let relays: Vec<RelayId> =
        (0..relays).map(|n| world.relay(&format!("198.51.100.{}", 50 + n))).collect();
    for relay in &relays {
        world.allocate(a, *relay);
        world.allocate(b, *relay);
    }
    world.keepalive = Some(25 * SECOND);
    world.introduce(a, b);
    Sites { world, a, b, nats: [nat_a, nat_b], relays }
}

fn ordinary(seed: u64) -> Sites {
    sites(seed, [Behaviour::port_restricted(); 2], 2)
}

impl Sites {
    fn tiers(&self) -> [Option<Tier>; 2] {
        [self.a, self.b].map(|host| self.world.selected(host).map(|path| path.tier))
    }

    /// Runs until both paths are of this tier; how long it took.
    fn until(&mut self, tier: Tier, limit: Duration) -> Duration {
        let (a, b) = (self.a, self.b);
        let of = |world: &World, host| world.selected(host).map(|path| path.tier);
        let took = self
            .world
            .run_until(limit, |world| [a, b].into_iter().all(|host| of(world, host) == Some(tier)));
        let tiers = self.tiers();
        took.unwrap_or_else(|| {
            let pairs: Vec<_> = self.world.agent(a).pairs().collect();
            panic!("not {tier:?} within {limit:?}: {tiers:?} {pairs:#?}")
        })
    }

    fn peer_of(&self, host: HostId) -> HostId {
        if host == self.a { self.b } else { self.a }
    }

    fn connect(&mut self) -> Duration {
        self.world.connect(self.a, self.b, 10 * SECOND).expect("a path")
    }

    /// Both send a hundred packets a second.
    fn flow(&mut self) {
        self.world.flow(self.a, self.b, Some(10 * MILLISECOND));
        self.world.flow(self.b, self.a, Some(10 * MILLISECOND));
    }

    /// The longest time that `host` got nothing since.
    fn gap(&mut self, host: HostId, since: Instant) -> Duration {
        let until = self.world.now;
        self.world.of(host).traffic.longest_gap(since, until)
    }

    fn changes(&mut self, host: HostId) -> usize {
        let events = &self.world.of(host).events;
        events.iter().filter(|(_, event)| !matches!(event, Event::PathMtu(_))).count()
    }
}

/// Found by fuzzing (`fuzz/targets/agent.rs`).
#[test]
fn a_packet_too_big_for_a_path_that_is_gone_keeps_nobody_busy() {
    let mut world = World::new(1);
    let a = world.host(INTERNET, &["198.51.100.10"]);
    let b = world.host(INTERNET, &["198.51.100.20"]);
    world.start_agent(a, b);
    let now = world.now;
    world.agent(a).note_too_big(now);
    world.agent(a).handle_timeout(now);
    assert!(world.agent(a).poll_timeout().is_none_or(|due| due > now), "there is no path");
}

#[test]
fn a_relay_connects_whatever_the_nats_are() {
    use Behaviour as B;
    let kinds = [B::symmetric(), B::sequential(), B::port_restricted(), B::blocked()];
    for (seed, left) in (0..).zip(kinds) {
        for right in kinds {
            let mut sites = sites(seed, [left, right], 1);
            let took = sites.connect();
            assert!(took < SECOND, "{took:?}: {left:?} × {right:?}");
            sites.world.run(60 * SECOND);
            assert!(sites.world.carries(sites.a, sites.b), "{left:?} × {right:?}");
            assert!(sites.world.carries(sites.b, sites.a), "{left:?} × {right:?}");
        }
    }
}

#[test]
fn both_agree_on_one_route_over_a_relay() {
    for seed in 0..10 {
        let mut sites = sites(seed, [Behaviour::symmetric(); 2], 2);
        sites.connect();
        sites.world.run(10 * SECOND);
        let [one, two] = [sites.a, sites.b].map(|host| sites.world.selected(host).expect("a path"));
        // What one has as its own address is what the other sends to.
        assert_eq!(one.own.map(|own| own.ip()), Some(two.route.remote.ip()), "{one:?} {two:?}");
        assert_eq!(two.own.map(|own| own.ip()), Some(one.route.remote.ip()), "{one:?} {two:?}");
    }
}

#[test]
fn a_direct_path_follows_the_relayed_one_and_costs_no_packet() {
    for seed in 0..10 {
        let mut sites = ordinary(seed);
        // The direct way opens after a while only.
        sites.world.cut(PUBLIC[0], PUBLIC[1]);
        sites.connect();
        sites.flow();
        sites.world.run(5 * SECOND);
        assert_eq!(sites.tiers(), [Some(Tier::Relayed); 2]);
        let numbers = [sites.a, sites.b].map(|host| sites.world.of(host).traffic.sent);
        sites.world.heal();
        sites.until(Tier::Direct, 30 * SECOND);
        sites.world.run(5 * SECOND);
        for (from, to, first) in [(sites.a, sites.b, numbers[0]), (sites.b, sites.a, numbers[1])] {
            let last = sites.world.of(from).traffic.sent - 100;
            let lost = sites.world.of(to).traffic.lost_and_doubled(first..last);
            assert_eq!(lost, (0, 0));
        }
    }
}

#[test]
fn a_direct_path_that_is_cut_is_replaced_within_three_seconds() {
    type Cut = fn(&mut World);
    let cuts: [(&str, Cut); 5] = [
        ("both ways", |world| world.cut(PUBLIC[0], PUBLIC[1])),
        ("one way", |world| world.cut_one_way(PUBLIC[0], PUBLIC[1])),
        ("the other way", |world| world.cut_one_way(PUBLIC[1], PUBLIC[0])),
        ("data one way", |world| world.cut_data(PUBLIC[0], PUBLIC[1])),
        ("data the other way", |world| world.cut_data(PUBLIC[1], PUBLIC[0])),
    ];
    for (what, cut) in cuts {
        for both in [true, false] {
            for seed in 0..6 {
                let mut sites = ordinary(seed);
                sites.connect();
                sites.until(Tier::Direct, 5 * SECOND);
                sites.world.flow(sites.a, sites.b, Some(10 * MILLISECOND));
                if both {
                    sites.world.flow(sites.b, sites.a, Some(10 * MILLISECOND));
                }
                sites.world.run(8 * SECOND + u32::try_from(seed).expect("small") * SECOND / 7);
                let since = sites.world.now;
                cut(&mut sites.world);
                sites.world.run(10 * SECOND);
                let gap = sites.gap(sites.b, since);
                assert!(gap <= 3 * SECOND, "{what}, both {both}: {gap:?} to b");
                if both {
                    let gap = sites.gap(sites.a, since);
                    assert!(gap <= 3 * SECOND, "{what}: {gap:?} to a");
                }
            }
        }
    }
}

#[test]
fn a_direct_path_that_returns_is_taken_within_thirty_seconds() {
    for seed in 0..5 {
        for cut_for in [10, 60, 200] {
            let mut sites = ordinary(seed);
            sites.connect();
            sites.until(Tier::Direct, 5 * SECOND);
            sites.world.flow(sites.a, sites.b, Some(100 * MILLISECOND));
            sites.world.flow(sites.b, sites.a, Some(100 * MILLISECOND));
            sites.world.run(20 * SECOND);
            sites.world.cut(PUBLIC[0], PUBLIC[1]);
            sites.world.run(cut_for * SECOND);
            assert_eq!(sites.tiers(), [Some(Tier::Relayed); 2]);
            sites.world.heal();
            let took = sites.until(Tier::Direct, 60 * SECOND);
            assert!(took <= 30 * SECOND, "{took:?} after {cut_for} s");
        }
    }
}

#[test]
fn nats_that_answer_what_comes_unsolicited_are_passed_in_the_right_order() {
    let open = Behaviour::open_input();
    for other in [open, Behaviour::port_restricted(), Behaviour::full_cone()] {
        for seed in 0..10 {
            for kinds in [[open, other], [other, open]] {
                let mut sites = sites(seed, kinds, 1);
                sites.connect();
                let took = sites.until(Tier::Direct, 60 * SECOND);
                assert!(took <= 3 * SECOND, "{took:?}: {kinds:?}");
            }
        }
    }
}

#[test]
fn a_node_that_starts_later_does_not_meet_its_peer_in_the_wrong_order() {
    let open = Behaviour::open_input();
    for late_ms in [10, 500, 2000, 4000] {
        for first in [0, 1] {
            let mut sites = sites(late_ms, [open; 2], 1);
            let hosts = [sites.a, sites.b];
            let (early, late) = (hosts[first], hosts[1 - first]);
            sites.world.of(late).agent = None;
            sites.world.start_agent(early, late);
            sites.world.tell(early, late);
            sites.world.run(Duration::from_millis(late_ms));
            sites.world.start_agent(late, early);
            sites.world.tell(late, early);
            sites.connect();
            let took = sites.until(Tier::Direct, 60 * SECOND);
            assert!(took <= 4 * SECOND, "{took:?} after {late_ms} ms");
        }
    }
}

#[test]
fn an_unlucky_order_is_healed_while_data_flows() {
    for seed in 0..5 {
        let mut sites = sites(seed, [Behaviour::open_input(); 2], 0);
        // Without a relay, each met the other's packets first.
        sites.world.run(20 * SECOND);
        let relay = sites.world.relay("198.51.100.60");
        sites.world.allocate(sites.a, relay);
        sites.world.allocate(sites.b, relay);
        sites.world.tell(sites.a, sites.b);
        sites.world.tell(sites.b, sites.a);
        sites.connect();
        sites.flow();
        sites.until(Tier::Direct, 120 * SECOND);
    }
}

#[test]
fn nobody_flaps_in_bad_weather() {
    for loss in [0.05, 0.2] {
        for seed in 0..10 {
            let mut sites = ordinary(seed);
            sites.world.weather =
                Weather { delay: 30 * MILLISECOND, jitter: 30 * MILLISECOND, loss };
            sites.connect();
            sites.until(Tier::Direct, 30 * SECOND);
            sites.world.flow(sites.a, sites.b, Some(20 * MILLISECOND));
            sites.world.run(10 * SECOND);
            let before = [sites.a, sites.b].map(|host| sites.changes(host));
            sites.world.run(60 * SECOND);
            let after = [sites.a, sites.b].map(|host| sites.changes(host));
            assert_eq!(
                before,
                after,
                "at {loss} with seed {seed}: {:#?}",
                sites.world.of(sites.a).events
            );
        }
    }
}

#[test]
fn an_idle_path_costs_its_keepalives_and_little_more() {
    for kinds in [[Behaviour::port_restricted(); 2], [Behaviour::symmetric(); 2]] {
        let mut sites = sites(1, kinds, 2);
        sites.connect();
        sites.world.run(600 * SECOND);
        let before = [sites.a, sites.b].map(|host| sites.world.of(host).packets_out);
        sites.world.run(3600 * SECOND);
        for (host, before) in [sites.a, sites.b].into_iter().zip(before) {
            let sent = sites.world.of(host).packets_out - before;
            let relayed = sites.world.selected(host).expect("a path").tier == Tier::Relayed;
            // One each 25 s is 144; a spare is looked at each ten minutes, and a relayed
            // path is no reason to give up.
            let most = if relayed { 144 + 24 + 30 * 24 } else { 144 + 60 };
            assert!(sent <= most, "{sent} packets in an idle hour, relayed: {relayed}");
        }
        assert!(sites.world.carries(sites.a, sites.b));
        assert!(sites.world.carries(sites.b, sites.a));
    }
}

#[test]
fn a_relay_that_goes_is_replaced_at_once() {
    for seed in 0..5 {
        let mut sites = sites(seed, [Behaviour::symmetric(); 2], 2);
        sites.connect();
        sites.flow();
        sites.world.run(10 * SECOND);
        let path = sites.world.selected(sites.a).expect("a path");
        let used = sites.relays.iter().position(|_| true).filter(|_| path.tier == Tier::Relayed);
        assert!(used.is_some());
        for relay in sites.relays.clone() {
            let since = sites.world.now;
            // Nobody tells the agents: their own checks see it.
            sites.world.set_relay(relay, false);
            sites.world.run(15 * SECOND);
            for host in [sites.a, sites.b] {
                let gap = sites.gap(host, since);
                assert!(gap <= 5 * SECOND, "{gap:?}");
            }
            sites.world.set_relay(relay, true);
            sites.world.run(60 * SECOND);
        }
    }
}

#[test]
fn a_nat_that_reboots_elsewhere_is_passed_again_in_time() {
    for seed in 0..5 {
        let mut sites = ordinary(seed);
        sites.connect();
        sites.until(Tier::Direct, 5 * SECOND);
        sites.flow();
        sites.world.run(10 * SECOND);
        let since = sites.world.now;
        let nat = sites.nats[1];
        sites.world.restart_nat(nat, "203.0.113.99");
        sites.world.run(4 * SECOND);
        // By now the STUN server and the zone have told.
        sites.world.moved(sites.b);
        sites.world.run(SECOND);
        sites.world.tell(sites.a, sites.b);
        sites.until(Tier::Direct, 10 * SECOND);
        for host in [sites.a, sites.b] {
            let gap = sites.gap(host, since);
            assert!(gap <= 5 * SECOND, "{gap:?}");
        }
    }
}

#[test]
fn both_may_roam_at_once() {
    for seed in 0..5 {
        let mut sites = ordinary(seed);
        sites.connect();
        sites.until(Tier::Direct, 5 * SECOND);
        sites.flow();
        sites.world.run(10 * SECOND);
        let since = sites.world.now;
        for (side, public) in [(0, "203.0.113.11"), (1, "203.0.113.12")] {
            let (_, lan) = sites.world.nat(INTERNET, public, Behaviour::port_restricted());
            let host = [sites.a, sites.b][side];
            sites.world.take_host(host, lan, &[["192.168.7.2", "192.168.8.2"][side]]);
        }
        sites.world.run(SECOND);
        sites.world.tell(sites.a, sites.b);
        sites.world.tell(sites.b, sites.a);
        sites.until(Tier::Direct, 15 * SECOND);
        for host in [sites.a, sites.b] {
            let gap = sites.gap(host, since);
            assert!(gap <= 5 * SECOND, "{gap:?}");
        }
    }
}

#[test]
fn what_passes_whole_is_found_with_icmp_lost() {
    for mtu in [1500, 1492, 1440, 1420, 1280] {
        for loss in [0.0, 0.05] {
            let mut sites = ordinary(mtu);
            sites.world.mtu = usize::try_from(mtu).expect("small");
            sites.world.weather.loss = loss;
            sites.connect();
            sites.until(Tier::Direct, 10 * SECOND);
            sites.world.run(15 * SECOND);
            let found = sites.world.selected(sites.a).expect("a path").mtu.expect("it is known");
            let link = if mtu == 1440 { 1420 } else { mtu };
            assert_eq!(u64::from(found), link);
            // The link shrinks, and packets of that size are lost.
            sites.world.mtu = sites.world.mtu.min(1400);
            let now = sites.world.now;
            sites.world.agent(sites.a).note_too_big(now);
            sites.world.run(15 * SECOND);
            let found = sites.world.selected(sites.a).expect("a path").mtu.expect("it is known");
            assert_eq!(u64::from(found), link.min(1400));
            let told =
                sites.world.of(sites.a).events.iter().any(
                    |(_, event)| matches!(event, Event::PathMtu(path) if path.mtu == Some(found)),
                );
            assert!(told || link <= 1400);
        }
    }
}

#[test]
fn a_short_mapping_is_kept_up_while_the_peer_is_active() {
    let nat = Behaviour { timeout: 15 * SECOND, ..Behaviour::port_restricted() };
    let mut sites = sites(1, [nat; 2], 1);
    for host in [sites.a, sites.b] {
        sites.world.agent(host).set_mapping_lifetime(Some(15 * SECOND));
    }
    sites.connect();
    sites.until(Tier::Direct, 5 * SECOND);
    sites.flow();
    sites.world.run(5 * SECOND);
    sites.world.flow(sites.a, sites.b, None);
    sites.world.flow(sites.b, sites.a, None);
    for _ in 0..50 {
        sites.world.run(SECOND);
        let paths = [sites.a, sites.b].map(|host| sites.world.selected(host).expect("a path"));
        assert!(paths.iter().all(|path| path.route.via == Via::Socket));
    }
    // And after an idle hour it is there again at once.
    sites.world.run(3600 * SECOND);
    let since = sites.world.now;
    sites.flow();
    sites.world.run(10 * SECOND);
    for host in [sites.a, sites.b] {
        let gap = sites.gap(host, since);
        assert!(gap <= 4 * SECOND, "{gap:?}");
    }
    sites.until(Tier::Direct, 30 * SECOND);
}

#[test]
fn a_direct_path_that_one_side_left_is_looked_at_by_both() {
    // The other side still believes in the pair, long after the NATs have closed.
    let nat = Behaviour { timeout: 15 * SECOND, ..Behaviour::port_restricted() };
    for seed in 0..5 {
        let mut sites = sites(seed, [nat; 2], 1);
        sites.connect();
        sites.until(Tier::Direct, 5 * SECOND);
        sites.world.run(60 * SECOND);
        let mut hosts = [sites.a, sites.b];
        hosts.sort_by_key(|host| !sites.world.keys(*host, sites.peer_of(*host)).controlling());
        let now = sites.world.now;
        sites.world.agent(hosts[0]).note_data_dead(now);
        sites.until(Tier::Relayed, 10 * SECOND);
        sites.world.run(50 * SECOND);
        sites.flow();
        sites.until(Tier::Direct, 15 * SECOND);
    }
}

#[test]
fn a_second_uplink_takes_over_when_the_first_dies() {
    for seed in 0..10 {
        let restricted = Behaviour::port_restricted();
        let mut world = World::new(seed);
        let a = world.site(PUBLIC[0], "192.168.1.2", restricted);
        let b = world.site(PUBLIC[1], "192.168.2.2", restricted);
        world.second_uplink(a, "203.0.113.3", restricted);
        let relay = world.relay("198.51.100.50");
        world.allocate(b, relay);
        world.introduce(a, b);
        world.connect(a, b, 5 * SECOND).expect("a path");
        for (from, to) in [(a, b), (b, a)] {
            world.flow(from, to, Some(20 * MILLISECOND));
        }
        world.run(10 * SECOND);
        let used = world.selected(b).expect("a path").route.remote.ip().to_string();
        assert_ne!(used, "198.51.100.50", "seed {seed}");
        let since = world.now;
        world.cut(&used, PUBLIC[1]);
        // Nor does the relay answer by it any more.
        world.cut(&used, "198.51.100.50");
        world.run(10 * SECOND);
        let until = world.now;
        for host in [a, b] {
            let gap = world.of(host).traffic.longest_gap(since, until);
            assert!(gap <= 4 * SECOND, "seed {seed}: nothing for {gap:?}");
            let path = world.selected(host).expect("a path");
            assert_eq!(path.tier, Tier::Direct, "seed {seed}: {path:?}");
        }
    }
}

#[test]
fn an_uplink_that_is_gone_takes_its_pairs_with_it() {
    let restricted = Behaviour::port_restricted();
    let mut world = World::new(1);
    let a = world.site(PUBLIC[0], "192.168.1.2", restricted);
    let b = world.site(PUBLIC[1], "192.168.2.2", restricted);
    world.second_uplink(a, "203.0.113.3", restricted);
    world.introduce(a, b);
    world.run(5 * SECOND);
    let by_uplink = |world: &mut World| {
        world.agent(a).pairs().filter(|pair| matches!(pair.route.via, Via::Uplink(_))).count()
    };
    assert!(by_uplink(&mut world) > 0);
    let now = world.now;
    world.agent(a).set_uplinks(&[], now);
    assert_eq!(by_uplink(&mut world), 0);
    world.connect(a, b, 5 * SECOND).expect("a path by the other");
}
