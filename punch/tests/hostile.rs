//! What somebody between two nodes, somebody far away, or the peer itself can do: not
//! much, and within bounds.

mod net;

use std::{net::SocketAddr, time::Duration};

use net::{Behaviour, HostId, INTERNET, Packet, SECOND, World};
use proptest::prelude::*;
use zonemesh_punch::{
    Candidate, CandidateKind, CheckError, MAX_LEARNED, MAX_REMOTE, OpenError, Username,
    check::{Check, Receipt, Request},
};

const STRANGER: &str = "198.51.100.66:6666";

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("a literal address")
}

/// Two public hosts, connected, with everything that they sent.
fn watched(seed: u64) -> (World, HostId, HostId) {
    let mut world = World::new(seed);
    world.record = true;
    let a = world.host(INTERNET, &["198.51.100.10"]);
    let b = world.host(INTERNET, &["198.51.100.20"]);
    world.introduce(a, b);
    world.connect(a, b, 10 * SECOND).expect("a path");
    world.run(20 * SECOND);
    (world, a, b)
}

fn is_request(packet: &Packet) -> bool {
    packet.payload[0] == 0
}

fn to(packet: &Packet, ip: &str) -> bool {
    packet.to.ip().to_string() == ip
}

#[test]
fn a_replayed_check_is_dropped() {
    let (mut world, a, _) = watched(1);
    let old: Vec<Packet> =
        world.seen.iter().filter(|packet| to(packet, "198.51.100.10")).cloned().collect();
    assert!(old.iter().any(is_request) && !old.iter().all(is_request));
    for later in [1, 100] {
        world.run(later * SECOND);
        let path = world.selected(a);
        world.of(a).errors.clear();
        world.seen.clear();
        let pairs = world.agent(a).pairs().count();
        for packet in &old {
            world.inject(INTERNET, Packet { from: addr(STRANGER), ..packet.clone() });
        }
        world.run(milliseconds(500));
        let errors = world.of(a).errors.clone();
        let dropped: u32 = errors.values().sum();
        assert_eq!(usize::try_from(dropped).expect("few"), old.len(), "{errors:?}");
        // Stale ones ask for the peer's clock once; nobody gets an answer.
        let back: Vec<_> = world.seen.iter().filter(|packet| packet.to == addr(STRANGER)).collect();
        assert!(back.len() <= 1 && back.iter().all(|packet| is_request(packet)), "{back:?}");
        assert_eq!(world.agent(a).pairs().count(), pairs);
        assert_eq!(
            world.selected(a).map(|path| path.route.remote),
            path.map(|path| path.route.remote)
        );
    }
}

#[test]
fn a_recorded_check_gains_nothing_against_a_node_that_has_just_started() {
    let (mut world, a, b) = watched(1);
    let seen = world.seen.clone();
    let old = seen.iter().filter(|packet| to(packet, "198.51.100.10") && is_request(packet));
    world.run(3600 * SECOND);
    world.start_agent(a, b);
    for packet in old {
        world.inject(INTERNET, Packet { from: addr(STRANGER), ..packet.clone() });
    }
    world.run(milliseconds(100));
    world.tell(a, b);
    world.connect(a, b, 5 * SECOND).expect("a path");
    world.run(60 * SECOND);
    let path = world.selected(a).expect("a path");
    assert_eq!(path.route.remote, addr("198.51.100.20:51820"));
}

#[test]
fn an_answer_counts_only_from_where_was_asked() {
    let (mut world, a, b) = watched(1);
    // Every packet to `a` arrives as if from the stranger, as a bad NAT would do it.
    let keys = world.keys(b, a);
    world.of(b).agent = None;
    world.seen.clear();
    world.run(30 * SECOND);
    let asked: Vec<Packet> =
        world.seen.iter().filter(|p| to(p, "198.51.100.20") && is_request(p)).cloned().collect();
    world.of(a).errors.clear();
    let packet = asked.last().expect("it keeps asking");
    let Ok(Check::Request(request)) = keys.open(&packet.payload) else { panic!("a request") };
    let answer = zonemesh_punch::check::Answer {
        id: request.id,
        clock_ms: request.clock_ms,
        mapped: packet.from,
        receipt: Receipt::default(),
        plan: None,
    };
    let payload = keys.seal(&Check::Answer(answer));
    for from in [addr(STRANGER), packet.to, packet.to] {
        world.inject(INTERNET, Packet::new(from, packet.from, payload.clone()));
        world.run(milliseconds(100));
    }
    let errors = &world.of(a).errors;
    assert_eq!(errors.get(&CheckError::Elsewhere), Some(&1));
    // The right one was taken, once.
    assert_eq!(errors.get(&CheckError::Unsolicited), Some(&1));
}

#[test]
fn a_peer_with_a_thousand_bogus_candidates_is_bounded() {
    let mut world = World::new(1);
    let a = world.host(INTERNET, &["198.51.100.10"]);
    let b = world.host(INTERNET, &["198.51.100.20"]);
    world.start_agent(a, b);
    let kinds = [CandidateKind::Host, CandidateKind::ServerReflexive];
    for round in 0..5u8 {
        let bogus: Vec<Candidate> = (0..=255u8)
            .flat_map(|x| (0..4u8).map(move |y| (x, y)))
            .map(|(x, y)| Candidate {
                kind: kinds[usize::from(y % 2)],
                addr: SocketAddr::from(([203, round, y, x], 51820)),
            })
            .collect();
        let now = world.now;
        world.agent(a).set_remote_candidates(&bogus, now);
        assert!(world.agent(a).pairs().count() <= MAX_REMOTE);
        let before = world.of(a).packets_out;
        world.run(SECOND);
        assert!(world.of(a).packets_out - before <= 50);
    }
    world.run(200 * SECOND);
    let before = world.of(a).packets_out;
    world.run(100 * SECOND);
    let each = 6;
    assert!(world.of(a).packets_out - before <= 8 * each);
}

#[test]
fn a_hostile_peer_cannot_make_a_node_send_more_than_it_sends_itself() {
    let (mut world, a, b) = watched(1);
    let keys = world.keys(b, a);
    world.of(b).agent = None;
    world.run(SECOND);
    let (bytes, packets) = (world.of(a).bytes_out, world.of(a).packets_out);
    let mut sent = 0;
    let clock_ms =
        world.of(b).clock_ms + u64::try_from(world.elapsed().as_millis()).expect("short");
    for n in 0..20_000u32 {
        let mut id = [0; 12];
        id[..4].copy_from_slice(&n.to_be_bytes());
        let clock_ms = clock_ms + u64::from(n) / 2;
        let request = Request {
            id,
            clock_ms,
            priority: 0,
            nominate: n % 3 == 0,
            receipt: Receipt::default(),
            plan: None,
        };
        let payload = keys.seal(&Check::Request(request));
        sent += payload.len();
        let [_, x, y, z] = n.to_be_bytes();
        let from = SocketAddr::from(([203, x, y, z], 51820));
        world.inject(INTERNET, Packet::new(from, addr("198.51.100.10:51820"), payload));
        if n % 2 == 0 {
            world.run(milliseconds(1));
        }
    }
    world.run(SECOND);
    let (bytes, packets) = (world.of(a).bytes_out - bytes, world.of(a).packets_out - packets);
    assert!(usize::try_from(bytes).expect("few") < sent / 10, "{bytes} bytes for {sent}");
    // 80 answers and 40 checks a second, and the bursts.
    assert!(packets <= 12 * (80 + 40) + 64, "{packets}");
    assert!(world.agent(a).pairs().count() <= MAX_REMOTE + MAX_LEARNED);
    assert!(world.of(a).errors[&CheckError::Busy] > 10_000);
}

#[test]
fn strangers_get_no_answer() {
    let (mut world, a, b) = watched(1);
    let c = world.host(INTERNET, &["198.51.100.30"]);
    // Checks between others, and checks that were meant for `b`.
    let others = world.keys(c, b).seal(&Check::Request(Request {
        id: [1; 12],
        clock_ms: 1_800_000_000_000,
        priority: 0,
        nominate: true,
        receipt: Receipt::default(),
        plan: None,
    }));
    let meant = world.seen.iter().find(|packet| to(packet, "198.51.100.20"));
    let payloads = [others, meant.expect("there are some").payload.clone(), vec![0; 120], vec![]];
    world.run(milliseconds(600));
    world.of(a).errors.clear();
    world.seen.clear();
    for payload in payloads {
        let to = addr("198.51.100.10:51820");
        world.inject(INTERNET, Packet::new(addr(STRANGER), to, payload));
    }
    world.run(milliseconds(200));
    assert!(world.seen.iter().all(|packet| packet.to != addr(STRANGER)));
    let errors = &world.of(a).errors;
    assert_eq!(errors.get(&CheckError::Open(OpenError::Foreign)), Some(&2), "{errors:?}");
    assert_eq!(errors.get(&CheckError::Open(OpenError::Malformed)), Some(&2), "{errors:?}");
}

#[test]
fn the_agent_of_a_datagram_is_found_by_its_user_name() {
    let (mut world, a, b) = watched(1);
    let names = [(a, "198.51.100.10"), (b, "198.51.100.20")];
    let seen = world.seen.clone();
    for (host, ip) in names {
        let name = world.agent(host).inbound_username();
        for packet in &seen {
            assert_eq!(Username::peek(&packet.payload) == Some(name), to(packet, ip));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Somebody between changes, repeats, delays and redirects what they like: nobody
    /// panics, the bounds hold, and a path comes about when they stop.
    #[test]
    fn meddling_does_no_lasting_harm(
        seed in any::<u64>(),
        meddling in prop::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), 0..3u8, 0..2000u64),
            1..100,
        ),
    ) {
        let mut world = World::new(seed);
        world.record = true;
        let a = world.site("203.0.113.1", "192.168.1.2", Behaviour::full_cone());
        let b = world.site("203.0.113.2", "192.168.1.2", Behaviour::full_cone());
        world.introduce(a, b);
        world.run(milliseconds(100));
        for (which, at, flip, kind, wait_ms) in meddling {
            let mut packet = world.seen[which.index(world.seen.len())].clone();
            if kind > 0 {
                let at = at.index(packet.payload.len());
                packet.payload[at] ^= flip;
            }
            if kind > 1 {
                packet.from = addr(STRANGER);
            }
            world.inject(INTERNET, packet);
            world.run(milliseconds(wait_ms));
            for host in [a, b] {
                prop_assert!(world.agent(host).pairs().count() <= MAX_REMOTE + MAX_LEARNED);
            }
        }
        prop_assert!(world.connect(a, b, 10 * SECOND).is_some());
        world.run(60 * SECOND);
        prop_assert!(world.carries(a, b) && world.carries(b, a));
        for host in [a, b] {
            let path = world.selected(host).expect("a path");
            prop_assert!(path.route.remote != addr(STRANGER));
        }
    }
}

fn milliseconds(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
