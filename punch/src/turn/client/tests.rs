//! Scenarios in virtual time, against a small server of the tests' own.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::turn::message::{Failure, TransactionId};

const SECRET: &str = "the relay's secret";
const SERVER: &str = "198.51.100.10:3478";
const REALM: &str = "mesh.example";

#[test]
fn an_allocation_takes_two_round_trips() {
    let mut world = World::new();
    world.run(Duration::from_secs(1));
    let (relayed, mapped) = (RELAYED.parse().expect("an address"), MAPPED.parse().ok());
    assert_eq!(world.told, [Event::Allocated { relayed, mapped }]);
    assert_eq!(world.client.relayed(), Some(relayed));
    assert_eq!(world.client.mapped(), mapped);
    assert_eq!(world.server.heard, 2);
    assert_eq!(world.client.rtt(), Some(2 * DELAY));
}

#[test]
fn a_relay_in_the_internet_gives_no_address_of_anybody_s_own_network() {
    for named in
        ["192.168.1.1:53", "100.64.0.1:53", "169.254.1.1:53", "127.0.0.1:53", "[fd00::1]:53"]
    {
        let named: SocketAddr = named.parse().expect("an address");
        let mut world = World::new();
        world.server.relayed_addr = named;
        world.run(Duration::from_secs(5));
        assert_eq!(world.told, [Event::Ended(EndReason::PrivateRelayed(named))]);
        // One that is in such a network itself may.
        let mut world = World::at("10.0.0.1:3478", Transport::Datagram, 7);
        world.server.relayed_addr = named;
        world.run(Duration::from_secs(5));
        assert_eq!(world.client.relayed(), Some(named));
    }
    for nowhere in ["0.1.2.3:53", "255.255.255.255:53", "224.0.0.1:53", "203.0.113.1:0"] {
        let mut world = World::new();
        world.server.relayed_addr = nowhere.parse().expect("an address");
        world.run(Duration::from_secs(5));
        assert_eq!(world.ended(), Some(EndReason::Unusable), "{nowhere}");
    }
}

#[test]
fn a_channel_is_bound_once_and_kept_while_it_is_wanted() {
    let mut world = World::new();
    let peer = peer(1);
    world.client.bind(peer, world.now);
    world.client.send(peer, b"early", world.now);
    world.run(Duration::from_secs(1));
    let channel = world.client.channel(&peer).expect("bound");
    assert_eq!(world.told[1..], [Event::Bound { peer, channel }]);
    assert_eq!(world.server.relayed, [(peer, b"early".to_vec())], "it waited for the channel");
    world.client.send(peer, b"now", world.now);
    world.client.bind(peer, world.now);
    world.run(Duration::from_secs(3600));
    assert_eq!(world.server.relayed.len(), 2);
    assert_eq!(world.client.channel(&peer), Some(channel));
    assert_eq!(world.told.len(), 2, "nothing more is told in an hour: {:?}", world.told);
    // The server's permissions ended after five minutes each, and none ran out.
    assert!(!world.server.lapsed);
    assert!((14..=16).contains(&world.server.count(Method::ChannelBind)));
    // One Refresh each ten seconds: the budget of an idle relay.
    assert!((350..=361).contains(&world.server.count(Method::Refresh)));
}

#[test]
fn a_number_is_no_other_peers_before_the_server_has_forgotten_it() {
    let mut world = World::new();
    world.client.bind(peer(1), world.now);
    world.run(Duration::from_secs(1));
    let first = world.client.channel(&peer(1)).expect("bound");
    world.client.unbind(peer(1), world.now);
    assert_eq!(world.client.channel(&peer(1)), None);
    let all: BTreeSet<SocketAddr> = (2..=4097).map(peer).collect();
    world.client.set_peers(&all, world.now);
    world.run(Duration::from_secs(120));
    let bound: BTreeSet<u16> = all.iter().filter_map(|peer| world.client.channel(peer)).collect();
    assert_eq!(bound.len(), MAX_PEERS - 1);
    assert!(!bound.contains(&first));
    assert!(
        world.told.contains(&Event::Refused { peer: peer(4097), reason: RefuseReason::NoNumber })
    );
    // The former peer gets it back.
    world.client.bind(peer(1), world.now);
    assert_eq!(world.client.channel(&peer(1)), Some(first));
    world.client.unbind(peer(1), world.now);
    world.run(Duration::from_secs(901));
    world.client.bind(peer(4097), world.now);
    world.run(Duration::from_secs(1));
    assert_eq!(world.client.channel(&peer(4097)), Some(first));
}

#[test]
fn channels_are_asked_for_twenty_at_a_time() {
    let mut world = World::new();
    world.run(Duration::from_secs(1));
    let heard = world.server.heard;
    world.client.set_peers(&(1..=1000).map(peer).collect(), world.now);
    assert_eq!(world.client.transmits.len(), MAX_BINDS);
    world.run(Duration::from_secs(10));
    assert_eq!((1..=1000).filter(|n| world.client.channel(&peer(*n)).is_some()).count(), 1000);
    assert!(world.server.heard - heard <= 1002);
}

#[test]
fn another_port_of_a_known_address_is_reached_without_a_channel() {
    let mut world = World::new();
    let known: SocketAddr = "192.0.2.7:1000".parse().expect("an address");
    let other: SocketAddr = "192.0.2.7:2000".parse().expect("an address");
    let stranger: SocketAddr = "192.0.2.8:2000".parse().expect("an address");
    world.client.bind(known, world.now);
    world.run(Duration::from_secs(1));
    world.client.send(other, b"answer", world.now);
    world.client.send(stranger, b"answer", world.now);
    world.run(Duration::from_secs(1));
    assert_eq!(world.server.relayed, [(other, b"answer".to_vec())]);
    let data = Message {
        peers: vec![other],
        data: Some(b"question".to_vec()),
        ..Message::new(Method::Data, Class::Indication, [1; 12])
    };
    let data = data.encode(None).expect("it can be written");
    assert!(world.client.handle_message(&data, world.now));
    let told = world.client.poll_event();
    assert_eq!(told, Some(Event::Data { peer: other, payload: b"question".to_vec() }));
}

#[test]
fn a_new_nonce_is_used_at_once() {
    let mut world = World::new();
    world.client.bind(peer(1), world.now);
    world.run(Duration::from_secs(1));
    for n in 2..100 {
        world.server.nonce += 1;
        world.client.bind(peer(n), world.now);
        world.run(Duration::from_secs(11));
        assert!(world.client.channel(&peer(n)).is_some());
    }
    assert_eq!(world.ended(), None);
}

#[test]
fn a_server_that_wants_ever_newer_nonces_is_left() {
    let mut world = World::new();
    world.server.script = Script::AlwaysStale;
    world.run(Duration::from_secs(60));
    assert_eq!(world.ended(), Some(EndReason::Unusable));
    assert!(world.server.heard <= 5, "{} requests", world.server.heard);
    let mut world = World::new();
    world.run(Duration::from_secs(1));
    world.server.script = Script::AlwaysStale;
    world.run(Duration::from_secs(15));
    assert_eq!(world.ended(), Some(EndReason::Unusable));
}

#[test]
fn a_wrong_secret_is_told_after_two_requests() {
    let mut world = World::new();
    world.server.password = "another one".into();
    world.run(Duration::from_secs(60));
    assert_eq!(world.ended(), Some(EndReason::Unauthorized));
    assert_eq!(world.server.heard, 2);
    assert_eq!(world.client.poll_timeout(), None, "an ended client rests");
}

#[test]
fn each_refusal_of_an_allocation_is_told() {
    let other = "198.51.100.99:3478".parse().expect("an address");
    for (code, reason) in [
        (300, EndReason::AlternateServer(other)),
        (403, EndReason::Forbidden),
        (441, EndReason::Mismatch),
        (486, EndReason::Quota),
        (500, EndReason::Failed(500)),
        (508, EndReason::NoCapacity),
    ] {
        let mut world = World::new();
        world.server.script = Script::Refuse(Method::Allocate, code);
        world.run(Duration::from_secs(60));
        assert_eq!(world.told, [Event::Ended(reason)]);
        assert_eq!(world.server.heard, 2);
    }
}

#[test]
fn an_allocation_of_an_earlier_run_is_ended_first() {
    let mut world = World::new();
    world.server.allocated = true;
    world.run(Duration::from_secs(1));
    assert!(world.client.relayed().is_some());
    // Asked without credential, refused, ended, asked again.
    assert_eq!(world.server.heard, 4);
    // Some say that they have ended it, and do so later.
    let mut world = World::new();
    world.server.script = Script::Refuse(Method::Allocate, 437);
    world.run(Duration::from_secs(1));
    world.server.script = Script::None;
    world.run(Duration::from_secs(1));
    assert!(world.client.relayed().is_some());
    let mut world = World::new();
    world.server.script = Script::Refuse(Method::Allocate, 437);
    world.run(Duration::from_secs(60));
    assert_eq!(world.ended(), Some(EndReason::Mismatch));
    assert_eq!(world.server.count(Method::Refresh), 1, "once is enough");
    assert!(world.server.heard < 16);
}

#[test]
fn a_server_without_ipv4_is_asked_for_ipv6() {
    let mut world = World::new();
    world.server.relayed_addr = "[2001:db8::9]:50000".parse().expect("an address");
    let (v4, v6) = (peer(1), "[2001:db8::7]:1".parse().expect("an address"));
    world.client.set_peers(&BTreeSet::from([v4, v6]), world.now);
    world.run(Duration::from_secs(1));
    assert!(world.client.channel(&v6).is_some());
    assert!(world.told.contains(&Event::Refused { peer: v4, reason: RefuseReason::Family }));
}

#[test]
fn a_refused_peer_is_told_and_left_alone_for_five_minutes() {
    let mut world = World::new();
    world.server.script = Script::Refuse(Method::ChannelBind, 403);
    world.client.bind(peer(1), world.now);
    world.run(Duration::from_secs(1));
    let refused = Event::Refused { peer: peer(1), reason: RefuseReason::Forbidden };
    assert_eq!(world.told[1..], [refused]);
    world.client.unbind(peer(1), world.now);
    world.client.bind(peer(1), world.now);
    world.run(Duration::from_secs(280));
    assert_eq!(world.server.count(Method::ChannelBind), 1);
    world.server.script = Script::None;
    world.run(Duration::from_secs(30));
    assert!(world.client.channel(&peer(1)).is_some());
}

#[test]
fn a_restarted_server_is_noticed_with_the_next_refresh() {
    let mut world = World::new();
    world.run(Duration::from_secs(1));
    world.server = Server { nonce: 1000, ..Server::default() };
    world.run(Duration::from_secs(11));
    assert_eq!(world.ended(), Some(EndReason::Lost));
    // With another address of ours it is the same; who knows, asks at once.
    let mut world = World::new();
    world.run(Duration::from_secs(1));
    world.server.allocated = false;
    world.client.check_now(world.now);
    world.run(Duration::from_secs(1));
    assert_eq!(world.ended(), Some(EndReason::Lost));
}

#[test]
fn a_server_that_is_gone_or_cut_off_one_way_is_noticed_within_fifteen_seconds() {
    for transport in [Transport::Datagram, Transport::Stream] {
        for (up, down) in [(100, 100), (100, 0), (0, 100)] {
            let mut world = World::over(transport);
            world.client.bind(peer(1), world.now);
            world.run(Duration::from_secs(10));
            let heard = world.server.heard;
            (world.loss_up, world.loss_down) = (up, down);
            world.run(Duration::from_secs(15));
            assert_eq!(world.ended(), Some(EndReason::NoAnswer), "{transport:?} {up} {down}");
            assert!(world.server.heard - heard <= 10);
        }
    }
}

#[test]
fn a_server_that_is_not_there_is_given_up_after_four_seconds() {
    let mut world = World::new();
    world.loss_up = 100;
    world.run(Duration::from_secs(5));
    assert_eq!(world.ended(), Some(EndReason::NoAnswer));
}

#[test]
fn every_fifth_packet_lost_each_way_is_no_end() {
    for seed in 0..20 {
        let mut world = World::with(Transport::Datagram, seed);
        (world.loss_up, world.loss_down) = (20, 20);
        world.client.set_peers(&(1..=20).map(peer).collect(), world.now);
        world.run(Duration::from_secs(600));
        assert_eq!(world.ended(), None, "seed {seed}");
        assert!((1..=20).all(|n| world.client.channel(&peer(n)).is_some()));
        assert!(!world.server.lapsed);
    }
}

#[test]
fn rubbish_for_an_answer_is_told_as_that() {
    for script in [Script::Garbled, Script::Unsigned] {
        let mut world = World::new();
        world.server.script = script;
        world.run(Duration::from_secs(6));
        assert_eq!(world.ended(), Some(EndReason::Unusable), "{script:?}");
    }
}

#[test]
fn a_closed_client_says_goodbye_once() {
    let mut world = World::new();
    world.run(Duration::from_secs(1));
    world.client.close(world.now);
    world.client.close(world.now);
    world.client.bind(peer(1), world.now);
    world.run(Duration::from_secs(60));
    assert!(!world.server.allocated);
    assert_eq!(world.told[1..], [Event::Ended(EndReason::Closed)]);
    assert_eq!(world.server.heard, 3);
}

#[test]
fn a_server_cannot_make_the_client_ask_oftener_or_keep_more_than_so_much() {
    let mut world = World::new();
    world.server.lifetime = 0;
    world.run(Duration::from_secs(100));
    assert!(world.server.count(Method::Refresh) <= 51);
    for n in 0..10_000_u32 {
        let data = Message {
            peers: vec![peer(n)],
            data: Some(vec![0; 1000]),
            ..Message::new(Method::Data, Class::Indication, [1; 12])
        };
        world.client.handle_message(&data.encode(None).expect("written"), world.now);
        world.client.send(peer(n), b"nobody", world.now);
    }
    assert_eq!(world.client.events.len(), MAX_QUEUED);
    assert!(world.client.transmits.is_empty());
}

proptest! {
    #[test]
    fn no_bytes_harm_the_client(
        garbage in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..20),
        at in 0usize..200,
        with in any::<u8>(),
    ) {
        let mut world = World::new();
        for bytes in &garbage {
            world.client.handle_message(bytes, world.now);
        }
        world.flip = Some((at, with));
        world.client.bind(peer(1), world.now);
        world.run(Duration::from_secs(20));
        prop_assert!(world.server.heard < 60);
    }
}

const DELAY: Duration = Duration::from_millis(20);
const RELAYED: &str = "203.0.113.5:50000";
const MAPPED: &str = "198.51.100.3:4321";

fn peer(n: u32) -> SocketAddr {
    let [_, a, b, c] = n.to_be_bytes();
    SocketAddr::from(([10, a, b, c], 51820))
}

/// A client, a server, and what is on the way between them.
struct World {
    client: Client,
    server: Server,
    now: Instant,
    told: Vec<Event>,
    up: VecDeque<(Instant, Vec<u8>)>,
    down: VecDeque<(Instant, Vec<u8>)>,
    loss_up: u32,
    loss_down: u32,
    /// A byte of each answer that is changed.
    flip: Option<(usize, u8)>,
    rng: StdRng,
}

impl World {
    fn new() -> Self {
        Self::over(Transport::Datagram)
    }

    fn over(transport: Transport) -> Self {
        Self::with(transport, 7)
    }

    fn with(transport: Transport, seed: u8) -> Self {
        Self::at(SERVER, transport, seed)
    }

    fn at(server: &str, transport: Transport, seed: u8) -> Self {
        let now = Instant::now();
        let credentials = Credentials::new("node", SECRET);
        let server = server.parse().expect("an address");
        let config = ClientConfig { credentials, server, transport, seed: [seed; 32] };
        Self {
            client: Client::new(config, now),
            server: Server::default(),
            now,
            told: vec![],
            up: VecDeque::new(),
            down: VecDeque::new(),
            loss_up: 0,
            loss_down: 0,
            flip: None,
            rng: StdRng::from_seed([seed; 32]),
        }
    }

    fn ended(&self) -> Option<EndReason> {
        self.told.iter().find_map(|event| match event {
            Event::Ended(reason) => Some(*reason),
            _ => None,
        })
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            while let Some(bytes) = self.client.poll_transmit() {
                if self.rng.random_range(0..100) >= self.loss_up {
                    self.up.push_back((self.now + DELAY, bytes));
                }
            }
            self.told.extend(std::iter::from_fn(|| self.client.poll_event()));
            let due = [
                self.up.front().map(|(at, _)| *at),
                self.down.front().map(|(at, _)| *at),
                self.client.poll_timeout(),
            ];
            let due = due.into_iter().flatten().min().unwrap_or(end);
            assert!(self.now <= due, "time does not run backwards");
            self.now = due.min(end);
            while self.up.front().is_some_and(|(at, _)| *at <= self.now) {
                let Some((_, bytes)) = self.up.pop_front() else { break };
                let Some(mut answer) = self.server.handle(&bytes, self.now) else { continue };
                if let Some((at, with)) = self.flip
                    && let Some(byte) = answer.get_mut(at)
                {
                    *byte ^= with;
                }
                if self.rng.random_range(0..100) >= self.loss_down {
                    self.down.push_back((self.now + DELAY, answer));
                }
            }
            while self.down.front().is_some_and(|(at, _)| *at <= self.now) {
                let Some((_, bytes)) = self.down.pop_front() else { break };
                self.client.handle_message(&bytes, self.now);
            }
            self.client.handle_timeout(self.now);
            if self.now >= end && self.client.transmits.is_empty() {
                self.told.extend(std::iter::from_fn(|| self.client.poll_event()));
                return;
            }
        }
    }
}

/// What the server does out of the ordinary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Script {
    None,
    /// Answers requests of this method with this error, once they are signed.
    Refuse(Method, u16),
    AlwaysStale,
    /// Answers signed requests with what is no message.
    Garbled,
    /// Answers signed requests without a signature.
    Unsigned,
}

struct Server {
    password: String,
    nonce: u32,
    script: Script,
    relayed_addr: SocketAddr,
    lifetime: u32,
    allocated: bool,
    permissions: BTreeMap<SocketAddr, Instant>,
    channels: BTreeMap<u16, SocketAddr>,
    answers: BTreeMap<TransactionId, Vec<u8>>,
    heard: usize,
    methods: Vec<Method>,
    relayed: Vec<(SocketAddr, Vec<u8>)>,
    /// A permission was renewed too late.
    lapsed: bool,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            password: SECRET.into(),
            nonce: 1,
            script: Script::None,
            relayed_addr: RELAYED.parse().expect("an address"),
            lifetime: 600,
            allocated: false,
            permissions: BTreeMap::new(),
            channels: BTreeMap::new(),
            answers: BTreeMap::new(),
            heard: 0,
            methods: vec![],
            relayed: vec![],
            lapsed: false,
        }
    }
}

impl Server {
    fn count(&self, method: Method) -> usize {
        self.methods.iter().filter(|heard| **heard == method).count()
    }

    fn handle(&mut self, bytes: &[u8], now: Instant) -> Option<Vec<u8>> {
        if let Some((number, payload)) = channel::decode(bytes) {
            self.relayed.extend(self.channels.get(&number).map(|peer| (*peer, payload.to_vec())));
            return None;
        }
        let request = Message::parse(bytes).expect("the client sends messages");
        if request.method == Method::Send {
            self.relayed.push((request.peers[0], request.data.expect("something to send")));
            return None;
        }
        self.heard += 1;
        if let Some(answer) = self.answers.get(&request.id) {
            return Some(answer.clone());
        }
        self.methods.push(request.method);
        let key = Key::new("node", REALM, &self.password).expect("plain text");
        let answer = self.answer(&request, bytes, &key, now);
        let signed = request.nonce.is_some() && answer.nonce.is_none();
        let key = Some(&key).filter(|_| signed && self.script != Script::Unsigned);
        let mut answer = answer.encode(key).expect("it can be written");
        if signed && self.script == Script::Garbled {
            answer.truncate(20);
            answer.extend_from_slice(&[0, 9, 0, 2, 0, 0, 0, 0]);
            answer[2..4].copy_from_slice(&8_u16.to_be_bytes());
        }
        self.answers.insert(request.id, answer.clone());
        Some(answer)
    }

    fn answer(&mut self, request: &Message, bytes: &[u8], key: &Key, now: Instant) -> Message {
        let success = Message::new(request.method, Class::Success, request.id);
        let refuse = |code| Message {
            failure: Some(Failure { code, reason: "No".into() }),
            alternate_server: (code == 300).then(|| "198.51.100.99:3478".parse().ok()).flatten(),
            ..Message::new(request.method, Class::Error, request.id)
        };
        let challenge = |code, nonce: u32| Message {
            realm: Some(REALM.into()),
            nonce: Some(nonce.to_string()),
            ..refuse(code)
        };
        let Some(nonce) = &request.nonce else { return challenge(401, self.nonce) };
        if self.script == Script::AlwaysStale {
            self.nonce += 1;
        }
        if message::verify(bytes, key).is_err() {
            return challenge(401, self.nonce);
        }
        if *nonce != self.nonce.to_string() {
            return challenge(438, self.nonce);
        }
        if let Script::Refuse(method, code) = self.script
            && method == request.method
        {
            return refuse(code);
        }
        if request.method != Method::Allocate && !self.allocated {
            return refuse(437);
        }
        match request.method {
            Method::Allocate if self.allocated => refuse(437),
            Method::Allocate
                if self.relayed_addr.is_ipv6() && request.requested_family != Some(Family::V6) =>
            {
                refuse(440)
            }
            Method::Allocate => {
                self.allocated = true;
                Message {
                    relayed: vec![self.relayed_addr],
                    mapped: MAPPED.parse().ok(),
                    lifetime: Some(self.lifetime),
                    ..success
                }
            }
            Method::Refresh => {
                self.allocated = request.lifetime != Some(0);
                Message { lifetime: Some(self.lifetime), ..success }
            }
            Method::ChannelBind => {
                let peer = request.peers[0];
                let number = request.channel.expect("a number");
                let former = self.channels.insert(number, peer);
                let until = self.permissions.insert(peer, now + Duration::from_secs(300));
                assert!(former.is_none_or(|former| former == peer) || until.is_none());
                self.lapsed |= until.is_some_and(|until| until < now);
                success
            }
            method => panic!("the client does not ask for {method:?}"),
        }
    }
}
