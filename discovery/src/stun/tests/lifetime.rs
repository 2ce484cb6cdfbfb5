//! How long a mapping lives, behind modelled NATs in virtual time.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use stun_rs::MessageDecoder;

use super::{
    super::{LifetimeTest, MappingLifetime, Socket, Transmit},
    SERVER_A,
    world::{Answered, addr, id_of},
};

const TRIP: Duration = Duration::from_millis(20);

const INNER: u16 = 40_000;

/// A NAT that forgets, and a server.
struct Scene {
    /// How long a mapping lives that nothing leaves by.
    lifetime: Duration,
    /// Whether it keeps the inner port.
    preserves: bool,
    /// Whether the server knows RESPONSE-PORT.
    knows_response_port: bool,
    /// Which answers are lost, by their number.
    lose: fn(u32) -> bool,
    /// When the server goes away.
    dies: Option<Duration>,
}

impl Default for Scene {
    fn default() -> Self {
        Self {
            lifetime: Duration::from_secs(120),
            preserves: true,
            knows_response_port: true,
            lose: |_| false,
            dies: None,
        }
    }
}

/// What a measurement came to.
struct Measured {
    outcome: Option<MappingLifetime>,
    took: Duration,
    sent: u32,
}

impl Scene {
    fn measure(&self) -> Measured {
        let start = Instant::now();
        let mut now = start;
        let mut test = LifetimeTest::new(addr(SERVER_A), INNER, [5; 32], now);
        // For each socket its outer port and when it lapses.
        let mut mappings: BTreeMap<u8, (u16, Instant)> = BTreeMap::new();
        let mut next_port = 50_000;
        let (mut sent, mut answers) = (0, 0);
        let mut arriving: BTreeMap<(Instant, u32), (Socket, Vec<u8>)> = BTreeMap::new();
        loop {
            while let Some((socket, transmit)) = test.poll_transmit() {
                sent += 1;
                let key = u8::from(socket == Socket::Other);
                let fresh = || {
                    next_port += 1;
                    if self.preserves { INNER + u16::from(key) } else { next_port }
                };
                let mapping = mappings.get(&key).filter(|(_, lapses)| *lapses > now);
                let port = mapping.map_or_else(fresh, |(port, _)| *port);
                mappings.insert(key, (port, now + self.lifetime));
                if self.dies.is_some_and(|dies| now >= start + dies) {
                    continue;
                }
                answers += 1;
                if (self.lose)(answers) {
                    continue;
                }
                let (to, payload) = self.answer(port, &transmit);
                let arrives = now + TRIP;
                let open = mappings.iter().find(|(_, (port, at))| *port == to && *at > arrives);
                if let Some((key, _)) = open {
                    let socket = if *key == 0 { Socket::Tested } else { Socket::Other };
                    arriving.insert((arrives, sent), (socket, payload));
                }
            }
            if let Some(outcome) = test.poll_event() {
                assert_eq!(test.poll_timeout(), None);
                return Measured { outcome, took: now - start, sent };
            }
            let due = test.poll_timeout().expect("it goes on or ends");
            match arriving.first_entry() {
                Some(entry) if entry.key().0 <= due => {
                    let ((at, _), (socket, payload)) = entry.remove_entry();
                    now = at;
                    test.handle_datagram(socket, addr(SERVER_A), &payload, now);
                }
                _ => {
                    now = now.max(due);
                    test.handle_timeout(now);
                }
            }
        }
    }

    /// The port that the answer goes to, and the answer.
    fn answer(&self, from: u16, transmit: &Transmit) -> (u16, Vec<u8>) {
        let (message, _) = MessageDecoder::default().decode(&transmit.payload).expect("a question");
        let wanted = message.get::<stun_rs::attributes::discovery::ResponsePort>();
        let wanted = wanted.and_then(|wanted| wanted.as_response_port().ok());
        let to = wanted.filter(|_| self.knows_response_port).map_or(from, |port| port.as_u16());
        let mapped = SocketAddr::new(addr("203.0.113.7:1").ip(), from);
        (to, Answered { mapped, other: None }.encode(&id_of(&transmit.payload)))
    }
}

fn between(survived: Option<u64>, lost: Option<u64>) -> Option<MappingLifetime> {
    let seconds = |time: Option<u64>| time.map(Duration::from_secs);
    Some(MappingLifetime { survived: seconds(survived), lost: seconds(lost) })
}

#[test]
fn every_lifetime_is_found_with_few_packets() {
    for (lifetime, survived, lost) in [
        (5, None, Some(10)),
        (14, Some(10), Some(15)),
        (17, Some(15), Some(20)),
        (29, Some(20), Some(30)),
        (35, Some(30), Some(45)),
        (59, Some(45), Some(60)),
        (89, Some(60), Some(90)),
        (119, Some(90), Some(120)),
        (130, Some(120), Some(150)),
        (300, Some(150), None),
    ] {
        // By an answer from outside, and where there is none, by the port.
        for (preserves, knows_response_port) in [(true, true), (false, true), (false, false)] {
            let lifetime = Duration::from_secs(lifetime);
            let scene = Scene { lifetime, preserves, knows_response_port, ..Scene::default() };
            let measured = scene.measure();
            assert_eq!(measured.outcome, between(survived, lost), "{lifetime:?}");
            assert!(measured.took < Duration::from_secs(600), "{:?}", measured.took);
            assert!(measured.sent <= 30, "{} datagrams", measured.sent);
        }
    }
}

#[test]
fn where_nothing_would_be_seen_nothing_is_told() {
    let scene = Scene { knows_response_port: false, ..Scene::default() };
    let measured = scene.measure();
    assert_eq!(measured.outcome, None);
    assert!(measured.took < Duration::from_secs(10), "and at once");
}

#[test]
fn lost_answers_are_no_lost_mappings() {
    for knows_response_port in [true, false] {
        let scene = Scene {
            knows_response_port,
            preserves: false,
            lose: |number| number % 2 == 1,
            ..Scene::default()
        };
        assert_eq!(scene.measure().outcome, between(Some(90), Some(120)));
    }
}

#[test]
fn a_server_that_goes_away_tells_nothing() {
    // Before anything, while the mapping is left alone, and later.
    for dies in [0, 20, 100] {
        let scene = Scene { dies: Some(Duration::from_secs(dies)), ..Scene::default() };
        assert_eq!(scene.measure().outcome, None, "after {dies} s");
    }
}

#[test]
fn what_is_not_the_servers_answer_is_left_alone() {
    let now = Instant::now();
    let mut test = LifetimeTest::new(addr(SERVER_A), INNER, [5; 32], now);
    let (_, asked) = test.poll_transmit().expect("it asks at once");
    let answer = Answered { mapped: addr("203.0.113.7:1"), other: None };
    let true_one = answer.encode(&id_of(&asked.payload));
    let stranger = addr("198.51.100.99:3478");
    assert!(!test.handle_datagram(Socket::Tested, stranger, &true_one, now));
    assert!(!test.handle_datagram(Socket::Tested, addr(SERVER_A), &true_one[..10], now));
    assert!(test.handle_datagram(Socket::Tested, addr(SERVER_A), &true_one, now));
    assert!(!test.handle_datagram(Socket::Tested, addr(SERVER_A), &true_one, now), "a replay");
}
