use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::turn::message::{Failure, UDP, verify};

const REALM: &str = "zonemesh";
const MINUTE: Duration = Duration::from_secs(60);

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn config() -> ServerConfig {
    let relay = |ip: &str| {
        let ip = ip.parse().expect("an address");
        RelayAddress { bind: ip, external: ip }
    };
    let mut users = Users::default();
    for user in ["alice", "bob"] {
        users.passwords.insert(user.to_owned(), "secret".to_owned());
    }
    ServerConfig {
        stun: true,
        turn: true,
        realm: REALM.to_owned(),
        users,
        addresses: vec![relay("198.18.1.2"), relay("2001:2:0:1::2")],
        ports: 50_000..=50_999,
        peers: PeerPolicy {
            own: vec!["198.18.1.0/24".parse::<IpNet>().expect("a network")],
            ..PeerPolicy::default()
        },
        alternates: vec![],
        limits: Limits::default(),
    }
}

fn client(last: u8) -> ClientAddr {
    ClientAddr {
        transport: ClientTransport::Udp,
        local: addr("198.18.1.2:3478"),
        remote: SocketAddr::new([192, 0, 2, last].into(), 4_000),
    }
}

fn peer(text: &str) -> PeerAddr {
    PeerAddr(addr(text))
}

/// A server with the sockets that it asked for.
struct World {
    server: Server,
    now: Instant,
    sockets: HashMap<RelayId, SocketAddr>,
    /// Ports that are taken by somebody else.
    taken: HashSet<u16>,
    nonces: HashMap<ClientAddr, String>,
    count: u8,
}

impl World {
    fn new(config: ServerConfig) -> Self {
        let now = Instant::now();
        let server = Server::new(config, [7; 32], 1_700_000_000, now);
        let (sockets, taken, nonces) = Default::default();
        Self { server, now, sockets, taken, nonces, count: 0 }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.server.handle_timeout(self.now);
        self.obey();
    }

    fn obey(&mut self) {
        while let Some(command) = self.server.poll_command() {
            match command {
                Command::Open { relay, bind } => {
                    let opened = !self.taken.contains(&bind.port());
                    if opened {
                        assert!(self.sockets.insert(relay, bind).is_none(), "{relay:?} twice");
                    }
                    self.server.handle_opened(relay, opened, self.now);
                }
                Command::Close { relay } => {
                    assert!(self.sockets.remove(&relay).is_some(), "{relay:?} is not open");
                }
            }
        }
    }

    fn send(&mut self, client: ClientAddr, bytes: &[u8]) -> Option<Message> {
        let forwarded = self.server.handle_message(client, bytes, self.now);
        assert_eq!(forwarded, None);
        self.obey();
        let sent = self.server.poll_transmit()?;
        assert_eq!(sent.client, client);
        assert_eq!(self.server.poll_transmit(), None, "one answer at most");
        Some(Message::parse(&sent.payload).expect("a message"))
    }

    /// A request of this client, by user name and password.
    fn signed(
        &mut self,
        client: ClientAddr,
        username: &str,
        password: &str,
        build: impl FnOnce(&mut Message),
    ) -> Vec<u8> {
        self.count += 1;
        let mut request = Message::new(Method::Allocate, Class::Request, [self.count; 12]);
        request.nonce = Some(self.nonces.get(&client).cloned().unwrap_or_else(|| {
            let unsigned = Message::new(Method::Allocate, Class::Request, [0; 12]);
            let answer = self.send(client, &unsigned.encode(None).expect("written"));
            answer.and_then(|answer| answer.nonce).expect("a nonce")
        }));
        self.nonces.insert(client, request.nonce.clone().expect("just set"));
        request.username = Some(username.to_owned());
        request.realm = Some(REALM.to_owned());
        build(&mut request);
        let key = Key::new(username, REALM, password).expect("plain text");
        request.encode(Some(&key)).expect("written")
    }

    fn ask(&mut self, client: ClientAddr, build: impl FnOnce(&mut Message)) -> Message {
        let bytes = self.signed(client, "alice", "secret", build);
        self.send(client, &bytes).expect("an answer")
    }

    fn allocate(&mut self, client: ClientAddr) -> SocketAddr {
        let answer = self.ask(client, |request| request.requested_transport = Some(UDP));
        assert_eq!(answer.failure, None);
        answer.relayed[0]
    }

    fn permit(&mut self, client: ClientAddr, peers: &[SocketAddr]) -> Message {
        self.ask(client, |request| {
            request.method = Method::CreatePermission;
            request.peers = peers.to_vec();
        })
    }

    fn bind(&mut self, client: ClientAddr, number: u16, peer: SocketAddr) -> Message {
        self.ask(client, |request| {
            request.method = Method::ChannelBind;
            request.channel = Some(number);
            request.peers = vec![peer];
        })
    }

    fn refresh(&mut self, client: ClientAddr, lifetime: u32) -> Message {
        self.ask(client, |request| {
            request.method = Method::Refresh;
            request.lifetime = Some(lifetime);
        })
    }

    fn relay(&self, relayed: SocketAddr) -> RelayId {
        let found = self.sockets.iter().find(|(_, bound)| **bound == relayed);
        *found.expect("a socket is open there").0
    }

    fn channel_data(&mut self, client: ClientAddr, number: u16) -> Option<Forward> {
        self.server.channel_data(&client, number, load(1, 100), self.now)
    }

    fn peer_data(&mut self, relayed: SocketAddr, peer: PeerAddr) -> Option<Forward> {
        let relay = self.relay(relayed);
        self.server.peer_data(relay, peer, load(1, 100), self.now)
    }
}

fn load(packets: u64, bytes: u64) -> Load {
    Load { packets, bytes }
}

fn code(message: &Message) -> Option<u16> {
    message.failure.as_ref().map(|failure| failure.code)
}

#[test]
fn a_stranger_is_told_realm_and_nonce_in_few_bytes() {
    let mut world = World::new(config());
    let mut request = Message::new(Method::Allocate, Class::Request, [1; 12]);
    request.requested_transport = Some(UDP);
    let bytes = request.encode(None).expect("written");
    assert_eq!(bytes.len(), 28);
    world.server.handle_message(client(1), &bytes, world.now);
    let answer = world.server.poll_transmit().expect("an answer").payload;
    assert_eq!(answer.len(), 72);
    let answer = Message::parse(&answer).expect("a message");
    assert_eq!(answer.failure, Some(Failure { code: 401, reason: "Unauthorized".to_owned() }));
    assert_eq!(answer.realm.as_deref(), Some(REALM));
    assert_eq!(world.server.allocations(), 0);
}

#[test]
fn an_allocation_is_made_refreshed_and_ended() {
    let mut world = World::new(config());
    let bytes = world.signed(client(1), "alice", "secret", |request| {
        request.requested_transport = Some(UDP);
        request.lifetime = Some(60);
    });
    world.server.handle_message(client(1), &bytes, world.now);
    assert_eq!(world.server.poll_transmit(), None, "the socket comes first");
    world.obey();
    let sent = world.server.poll_transmit().expect("an answer").payload;
    let key = Key::new("alice", REALM, "secret").expect("plain text");
    assert_eq!(verify(&sent, &key), Ok(()), "the server has shown that it knows the password");
    let answer = Message::parse(&sent).expect("a message");
    assert_eq!(answer.mapped, Some(client(1).remote));
    assert_eq!(answer.lifetime, Some(600), "never shorter");
    let relayed = answer.relayed[0];
    assert_eq!(relayed.ip(), addr("198.18.1.2:1").ip());
    assert!((50_000..=50_999).contains(&relayed.port()));
    assert_eq!(world.relay(relayed), RelayId { slot: 0, family: Family::V4 });

    world.pass(MINUTE * 9);
    assert_eq!(world.refresh(client(1), 100_000).lifetime, Some(3600), "never longer");
    world.pass(MINUTE * 59);
    assert_eq!(world.server.allocations(), 1);
    world.nonces.clear();
    assert_eq!(world.refresh(client(1), 0).lifetime, Some(0));
    assert_eq!((world.server.allocations(), world.sockets.len()), (0, 0));
    assert_eq!(code(&world.refresh(client(1), 0)), Some(437), "gone already");
}

#[test]
fn what_is_not_refreshed_goes() {
    let mut world = World::new(config());
    world.allocate(client(1));
    world.pass(MINUTE * 5);
    world.allocate(client(2));
    assert_eq!(world.server.poll_timeout(), Some(world.now + MINUTE * 5));
    world.pass(MINUTE * 5);
    assert_eq!((world.server.allocations(), world.sockets.len()), (1, 1));
    world.pass(MINUTE * 5);
    assert_eq!((world.server.allocations(), world.sockets.len()), (0, 0));
    assert_eq!(world.server.poll_timeout(), None);
}

#[test]
fn an_allocate_that_comes_again_gets_the_same_answer() {
    let mut world = World::new(config());
    let bytes = world.signed(client(1), "alice", "secret", |request| {
        request.requested_transport = Some(UDP);
    });
    // Before the socket is there, and after.
    world.server.handle_message(client(1), &bytes, world.now);
    world.server.handle_message(client(1), &bytes, world.now);
    let first = world.send(client(1), &bytes).expect("an answer");
    let second = world.send(client(1), &bytes).expect("an answer");
    assert_eq!(first, second);
    assert_eq!(world.server.allocations(), 1);
    let another = world.ask(client(1), |request| request.requested_transport = Some(UDP));
    assert_eq!(code(&another), Some(437));
}

#[test]
fn a_nonce_that_has_run_out_is_replaced() {
    let mut world = World::new(config());
    world.allocate(client(1));
    world.refresh(client(1), 3600);
    world.pass(MINUTE * 50);
    world.nonces.clear();
    world.refresh(client(1), 3600);
    let old = world.nonces[&client(1)].clone();
    world.pass(MINUTE * 59);
    assert_eq!(code(&world.refresh(client(1), 3600)), None);
    world.pass(MINUTE * 2);
    let answer = world.refresh(client(1), 3600);
    assert_eq!(code(&answer), Some(438));
    assert_ne!(answer.nonce, Some(old));
    world.nonces.insert(client(1), answer.nonce.expect("a nonce"));
    assert_eq!(code(&world.refresh(client(1), 3600)), None);
}

#[test]
fn what_cannot_be_allocated_is_refused_with_its_reason() {
    let mut world = World::new(config());
    let mut refused = |build: fn(&mut Message)| code(&world.ask(client(1), build));
    assert_eq!(refused(|_| {}), Some(400), "no transport");
    assert_eq!(
        refused(|request| {
            request.requested_transport = Some(UDP);
            request.requested_family = Some(Family::V6);
            request.additional_family = Some(Family::V6);
        }),
        Some(400)
    );
    for build in [
        |request: &mut Message| request.even_port = Some(true),
        |request: &mut Message| request.reservation_token = Some([1; 8]),
    ] {
        let answer = world.ask(client(1), |request| {
            request.requested_transport = Some(UDP);
            build(request);
        });
        assert_eq!(code(&answer), Some(508));
    }
    // A protocol that was changed on its way is not believed.
    let mut bytes = world.signed(client(1), "alice", "secret", |request| {
        request.requested_transport = Some(UDP);
    });
    let at = bytes.windows(4).position(|w| w == [0, 0x19, 0, 4]).expect("it is in there");
    bytes[at + 4] = 6;
    assert_eq!(code(&world.send(client(1), &bytes).expect("an answer")), Some(401), "changed");
    assert_eq!(world.server.allocations(), 0);

    let mut config = config();
    config.addresses.truncate(1);
    let mut world = World::new(config);
    let answer = world.ask(client(1), |request| {
        request.requested_transport = Some(UDP);
        request.requested_family = Some(Family::V6);
    });
    assert_eq!(code(&answer), Some(440));
}

#[test]
fn an_allocation_may_have_both_families() {
    let mut world = World::new(config());
    let both = |request: &mut Message| {
        request.requested_transport = Some(UDP);
        request.additional_family = Some(Family::V6);
    };
    let answer = world.ask(client(1), both);
    let [v4, v6] = answer.relayed[..] else { panic!("two: {answer:?}") };
    assert!(v4.is_ipv4() && v6.is_ipv6());
    assert_eq!(code(&world.bind(client(1), 0x4000, addr("[2001:db8::9]:1"))), None);
    let to = world.channel_data(client(1), 0x4000);
    let relay = RelayId { slot: 0, family: Family::V6 };
    assert_eq!(to, Some(Forward::Peer { relay, peer: peer("[2001:db8::9]:1") }));
    // One family goes, the other stays.
    let ended = world.ask(client(1), |request| {
        request.method = Method::Refresh;
        request.lifetime = Some(0);
        request.requested_family = Some(Family::V6);
    });
    assert_eq!((code(&ended), ended.lifetime), (None, Some(0)));
    assert_eq!((world.server.allocations(), world.sockets.len()), (1, 1));
    assert_eq!(world.channel_data(client(1), 0x4000), None);
    assert_eq!(code(&world.permit(client(1), &[addr("[2001:db8::9]:1")])), Some(443));
}

#[test]
fn of_two_families_the_one_that_is_missing_is_named() {
    let mut config = config();
    config.addresses.truncate(1);
    let mut world = World::new(config);
    let answer = world.ask(client(1), |request| {
        request.requested_transport = Some(UDP);
        request.additional_family = Some(Family::V6);
    });
    assert!(answer.relayed.len() == 1 && answer.relayed[0].is_ipv4(), "{answer:?}");
    let missing = answer.address_failure.map(|(family, failure)| (family, failure.code));
    assert_eq!(missing, Some((Family::V6, 440)));
}

#[test]
fn a_port_that_is_taken_costs_another_try_and_no_port_at_all_an_error() {
    let mut world = World::new(config());
    world.taken = (50_000..=50_999).filter(|port| port % 8 != 0).collect();
    assert_eq!(world.allocate(client(1)).port() % 8, 0);
    world.taken = (50_000..=50_999).collect();
    let answer = world.ask(client(2), |request| request.requested_transport = Some(UDP));
    assert_eq!(code(&answer), Some(508));
    assert_eq!((world.server.allocations(), world.sockets.len()), (1, 1));
    world.taken.clear();
    let even = world.ask(client(2), |request| {
        request.requested_transport = Some(UDP);
        request.even_port = Some(false);
    });
    assert_eq!(even.relayed[0].port() % 2, 0);
}

#[test]
fn data_flows_both_ways_with_permission_only() {
    let mut world = World::new(config());
    let relayed = world.allocate(client(1));
    let friend = peer("203.0.113.9:7000");
    assert_eq!(world.channel_data(client(1), 0x4000), None);
    assert_eq!(world.peer_data(relayed, friend), None);
    assert_eq!(code(&world.bind(client(1), 0x4000, friend.0)), None);
    let relay = world.relay(relayed);
    assert_eq!(world.channel_data(client(1), 0x4000), Some(Forward::Peer { relay, peer: friend }));
    let channel = Some(Forward::Channel { client: client(1), channel: 0x4000 });
    assert_eq!(world.peer_data(relayed, friend), channel);
    let same_host = peer("203.0.113.9:7001");
    let indication = Some(Forward::Indication { client: client(1), peer: same_host });
    assert_eq!(world.peer_data(relayed, same_host), indication);
    assert_eq!(world.peer_data(relayed, peer("203.0.113.8:7000")), None);
    assert_eq!(world.channel_data(client(2), 0x4000), None, "somebody else's channel");
    assert_eq!(world.server.counters().relayed, load(3, 300));
    assert_eq!(world.server.counters().unpermitted, 4);
}

#[test]
fn a_send_indication_goes_to_a_permitted_peer() {
    let mut world = World::new(config());
    let relayed = world.allocate(client(1));
    let friend = peer("203.0.113.9:7000");
    let indication = Message {
        peers: vec![friend.0],
        data: Some(b"hello".to_vec()),
        dont_fragment: true,
        ..Message::new(Method::Send, Class::Indication, [9; 12])
    };
    let bytes = indication.encode(None).expect("written");
    assert_eq!(world.server.handle_message(client(1), &bytes, world.now), None);
    assert_eq!(code(&world.permit(client(1), &[addr("203.0.113.9:0")])), None, "any port");
    let sent = world.server.handle_message(client(1), &bytes, world.now).expect("it goes on");
    let to = Forward::Peer { relay: world.relay(relayed), peer: friend };
    assert_eq!(sent, Forwarded { to, payload: b"hello".to_vec(), dont_fragment: true });
    assert_eq!(world.server.handle_message(client(2), &bytes, world.now), None);
    let two = Message { peers: vec![friend.0, friend.0], ..indication };
    let bytes = two.encode(None).expect("written");
    assert_eq!(world.server.handle_message(client(1), &bytes, world.now), None);

    let back = world.server.data_indication(friend, b"hi").expect("short enough");
    let back = Message::parse(&back).expect("a message");
    assert_eq!((back.method, back.class), (Method::Data, Class::Indication));
    assert_eq!((back.peers, back.data), (vec![friend.0], Some(b"hi".to_vec())));
}

#[test]
fn nobody_is_relayed_to_who_is_not_public() {
    let mut world = World::new(config());
    world.allocate(client(1));
    for refused in
        ["127.0.0.1:80", "10.0.0.1:80", "192.168.1.1:80", "169.254.169.254:80", "198.18.1.77:80"]
    {
        assert_eq!(code(&world.permit(client(1), &[addr(refused)])), Some(403), "{refused}");
        assert_eq!(code(&world.bind(client(1), 0x4000, addr(refused))), Some(403), "{refused}");
    }
    // One that is refused spoils all of them.
    let mixed = [addr("203.0.113.9:1"), addr("10.0.0.1:1")];
    assert_eq!(code(&world.permit(client(1), &mixed)), Some(403));
    assert!(
        world
            .peer_data(
                world.sockets[&RelayId { slot: 0, family: Family::V4 }],
                peer("203.0.113.9:1")
            )
            .is_none()
    );
    // The relay's own address is for its relayed addresses alone.
    assert_eq!(code(&world.bind(client(1), 0x4000, addr("198.18.1.2:22"))), None);
    assert_eq!(world.channel_data(client(1), 0x4000), None);
}

#[test]
fn a_node_beside_its_relay_is_reached_at_its_own_port() {
    let mut config = config();
    config.peers.own_ports = vec![51820];
    let mut world = World::new(config);
    let relayed = world.allocate(client(1));
    let node = peer("198.18.1.2:51820");
    assert_eq!(code(&world.bind(client(1), 0x4000, node.0)), None);
    let relay = world.relay(relayed);
    assert_eq!(world.channel_data(client(1), 0x4000), Some(Forward::Peer { relay, peer: node }));
}

#[test]
fn two_clients_of_one_relay_meet_inside_it() {
    let mut world = World::new(config());
    let (a, b) = (world.allocate(client(1)), world.allocate(client(2)));
    assert_eq!(code(&world.bind(client(1), 0x4000, b)), None);
    assert_eq!(world.channel_data(client(1), 0x4000), None, "the other one has not permitted it");
    assert_eq!(code(&world.permit(client(2), &[a])), None);
    let indication = Forward::Indication { client: client(2), peer: PeerAddr(a) };
    assert_eq!(world.channel_data(client(1), 0x4000), Some(indication));
    assert_eq!(code(&world.bind(client(2), 0x4007, a)), None);
    let channel = Forward::Channel { client: client(2), channel: 0x4007 };
    assert_eq!(world.channel_data(client(1), 0x4000), Some(channel));
    let back = Forward::Channel { client: client(1), channel: 0x4000 };
    assert_eq!(world.channel_data(client(2), 0x4007), Some(back));
    world.refresh(client(2), 0);
    assert_eq!(world.channel_data(client(1), 0x4000), None, "nobody is there any more");
}

#[test]
fn only_the_account_that_made_an_allocation_may_change_it() {
    let mut world = World::new(config());
    world.allocate(client(1));
    let bytes = world.signed(client(1), "bob", "secret", |request| {
        request.method = Method::Refresh;
        request.lifetime = Some(0);
    });
    assert_eq!(code(&world.send(client(1), &bytes).expect("an answer")), Some(441));
    let bytes = world.signed(client(1), "alice", "guess", |request| {
        request.method = Method::Refresh;
    });
    assert_eq!(code(&world.send(client(1), &bytes).expect("an answer")), Some(401));
    let bytes = world.signed(client(2), "alice", "secret", |request| {
        request.method = Method::Refresh;
    });
    assert_eq!(code(&world.send(client(2), &bytes).expect("an answer")), Some(437));
    assert_eq!(world.server.allocations(), 1);
}

#[test]
fn quotas_hold_per_account_per_source_and_in_all() {
    let mut config = config();
    config.limits = Limits {
        allocations: 5,
        allocations_per_account: 2,
        allocations_per_source: 3,
        ..Limits::default()
    };
    for user in ["u1", "u2", "u3", "u4"] {
        config.users.passwords.insert(user.to_owned(), "secret".to_owned());
    }
    let mut world = World::new(config);
    let mut attempt = |host: u8, port: u16, user: &str| {
        let mut from = client(host);
        from.remote.set_port(port);
        let bytes = world.signed(from, user, "secret", |request| {
            request.requested_transport = Some(UDP);
        });
        code(&world.send(from, &bytes).expect("an answer"))
    };
    assert_eq!(attempt(1, 1, "u1"), None);
    assert_eq!(attempt(2, 1, "u1"), None);
    assert_eq!(attempt(3, 1, "u1"), Some(486), "the account has two");
    assert_eq!(attempt(1, 2, "u2"), None);
    assert_eq!(attempt(1, 3, "u2"), None);
    assert_eq!(attempt(1, 4, "u3"), Some(486), "the address has three");
    assert_eq!(attempt(4, 1, "u3"), None);
    assert_eq!(attempt(5, 1, "u4"), Some(508), "the server has five");
    // What goes makes room.
    let mut gone = client(1);
    gone.remote.set_port(2);
    world.server.handle_disconnect(&gone);
    world.obey();
    let mut from = client(1);
    from.remote.set_port(4);
    let bytes =
        world.signed(from, "u3", "secret", |request| request.requested_transport = Some(UDP));
    assert_eq!(code(&world.send(from, &bytes).expect("an answer")), None);
}

#[test]
fn no_more_is_relayed_than_the_bandwidth() {
    let mut config = config();
    config.limits.bandwidth_per_allocation = Some(1_000_000);
    config.limits.bandwidth = Some(1_500_000);
    let mut world = World::new(config);
    world.allocate(client(1));
    world.allocate(client(2));
    for host in [1, 2] {
        world.bind(client(host), 0x4000, addr("203.0.113.9:7"));
    }
    let mut passed = [0; 2];
    for _ in 0..10_000 {
        world.now += Duration::from_millis(1);
        for (index, passed) in passed.iter_mut().enumerate() {
            let from = client(1 + index as u8);
            let train = load(10, 12_000);
            if world.server.channel_data(&from, 0x4000, train, world.now).is_some() {
                *passed += train.bytes;
            }
        }
    }
    assert!(passed[0] <= 11_000_000 && passed[1] <= 11_000_000, "{passed:?}");
    let total = passed[0] + passed[1];
    assert!((16_000_000..=16_500_000).contains(&total), "{passed:?}");
    assert!(world.server.counters().over_limit > 0);
}

#[test]
fn datagrams_without_data_count_by_their_headers() {
    let mut config = config();
    config.limits.bandwidth = Some(1_000_000);
    let mut world = World::new(config);
    let relayed = world.allocate(client(1));
    world.bind(client(1), 0x4000, addr("203.0.113.9:7"));
    let relay = world.relay(relayed);
    let peer = peer("203.0.113.9:7");
    let mut passed = 0;
    for count in 0..100_000 {
        let (server, now) = (&mut world.server, world.now);
        let to = if count % 2 == 0 {
            server.channel_data(&client(1), 0x4000, load(1, 0), now)
        } else {
            server.peer_data(relay, peer, load(1, 0), now)
        };
        passed += u64::from(to.is_some());
    }
    assert_eq!(passed, 1_000_000 / 28);
}

#[test]
fn what_strangers_send_is_neither_read_nor_answered_where_it_is_long() {
    let mut world = World::new(config());
    let long = Some(vec![7; 60_000]);
    let id = [1; 12];
    let binding =
        Message { data: long.clone(), ..Message::new(Method::Binding, Class::Request, id) };
    let bytes = binding.encode(None).expect("written");
    assert_eq!(world.send(client(1), &bytes), None);
    assert_eq!(world.server.counters().junk, 1);
    // A Send that cannot be read counts as what it is only where somebody may send.
    let send = Message { data: long, ..Message::new(Method::Send, Class::Indication, id) };
    let mut bytes = send.encode(None).expect("written");
    bytes[22] = 0xff;
    assert_eq!(world.send(client(1), &bytes), None);
    assert_eq!((world.server.counters().junk, world.server.counters().unpermitted), (1, 1));
    world.allocate(client(1));
    assert_eq!(world.send(client(1), &bytes), None);
    assert_eq!((world.server.counters().junk, world.server.counters().unpermitted), (2, 1));
}

#[test]
fn a_flood_of_strangers_gets_few_answers_and_leaves_nothing() {
    let mut world = World::new(config());
    let request = Message::new(Method::Allocate, Class::Request, [1; 12]);
    let allocate = request.encode(None).expect("written");
    let binding = Message::new(Method::Binding, Class::Request, [1; 12]);
    let binding = binding.encode(None).expect("written");
    let mut answers = 0;
    for port in 0..10_000 {
        let mut from = client(1);
        from.remote.set_port(port);
        for bytes in [&allocate, &binding] {
            world.server.handle_message(from, bytes, world.now);
        }
        while world.server.poll_transmit().is_some() {
            answers += 1;
        }
    }
    assert_eq!(answers, 100, "two seconds' worth");
    assert_eq!(world.server.counters().unanswered, 20_000 - 100);
    assert_eq!(world.server.allocations(), 0);
}

#[test]
fn a_closed_connection_takes_its_allocation_along() {
    let mut world = World::new(config());
    let stream = ClientAddr { transport: ClientTransport::Tls, ..client(1) };
    world.allocate(stream);
    world.allocate(client(1));
    world.server.handle_disconnect(&stream);
    world.obey();
    assert_eq!((world.server.allocations(), world.sockets.len()), (1, 1));
}

/// One thing that a client or a peer does.
#[derive(Debug, Clone)]
enum Step {
    Request { client: u8, method: u8, peer: u8, channel: u16, lifetime: u32, v6: bool },
    Mutated { client: u8, at: usize, with: u8 },
    Junk { client: u8, bytes: Vec<u8> },
    Out { client: u8, channel: u16 },
    In { slot: u32, peer: u8 },
    Disconnect { client: u8 },
    Pass { seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let client = 1u8..6;
    let channel = 0x3ffe_u16..0x4006;
    prop_oneof![
        8 => (client.clone(), 0u8..4, 0u8..8, channel.clone(), 0u32..2000, any::<bool>()).prop_map(
            |(client, method, peer, channel, lifetime, v6)| Step::Request {
                client, method, peer, channel, lifetime: lifetime / 700 * 700, v6
            }
        ),
        2 => (client.clone(), any::<usize>(), any::<u8>())
            .prop_map(|(client, at, with)| Step::Mutated { client, at, with }),
        2 => (client.clone(), prop::collection::vec(any::<u8>(), 0..64))
            .prop_map(|(client, bytes)| Step::Junk { client, bytes }),
        4 => (client.clone(), channel).prop_map(|(client, channel)| Step::Out { client, channel }),
        4 => (0u32..8, 0u8..8).prop_map(|(slot, peer)| Step::In { slot, peer }),
        1 => client.prop_map(|client| Step::Disconnect { client }),
        2 => (0u64..400).prop_map(|seconds| Step::Pass { seconds }),
    ]
}

fn some_peer(number: u8) -> SocketAddr {
    match number {
        0 => addr("10.0.0.1:1"),
        1 => addr("198.18.1.2:50001"),
        2 => addr("[2001:db8::9]:1"),
        _ => SocketAddr::new([203, 0, 113, number].into(), 7000),
    }
}

proptest! {
    #[test]
    fn whatever_is_sent_the_limits_hold_and_every_socket_is_closed(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut config = config();
        config.ports = 50_000..=50_003;
        config.limits = Limits {
            allocations: 3,
            permissions: 2,
            channels: 2,
            strangers: 10_000,
            ..Limits::default()
        };
        let mut world = World::new(config);
        let mut last = Vec::new();
        for step in steps {
            match step {
                Step::Request { client: from, method, peer, channel, lifetime, v6 } => {
                    let from = client(from);
                    world.count = world.count.wrapping_add(1) % 200;
                    let bytes = world.signed(from, "alice", "secret", |request| match method {
                        0 => {
                            request.requested_transport = Some(UDP);
                            request.additional_family = v6.then_some(Family::V6);
                        }
                        1 => {
                            request.method = Method::Refresh;
                            request.lifetime = Some(lifetime);
                        }
                        2 => {
                            request.method = Method::CreatePermission;
                            request.peers = vec![some_peer(peer), some_peer(peer ^ 1)];
                        }
                        _ => {
                            request.method = Method::ChannelBind;
                            request.channel = Some(channel);
                            request.peers = vec![some_peer(peer)];
                        }
                    });
                    let answer = world.send(from, &bytes);
                    prop_assert!(answer.is_some());
                    // The nonce may have run out meanwhile.
                    if let Some(nonce) = answer.and_then(|answer| answer.nonce) {
                        world.nonces.insert(from, nonce);
                    }
                    last = bytes;
                }
                Step::Mutated { client: from, at, with } => {
                    let mut bytes = last.clone();
                    if let Some(len) = std::num::NonZero::new(bytes.len()) {
                        bytes[at % len] ^= with;
                    }
                    world.send(client(from), &bytes);
                }
                Step::Junk { client: from, bytes } => {
                    world.server.handle_message(client(from), &bytes, world.now);
                }
                Step::Out { client: from, channel } => {
                    if let Some(Forward::Peer { relay, peer }) =
                        world.channel_data(client(from), channel)
                    {
                        prop_assert!(world.sockets.contains_key(&relay));
                        prop_assert!(peer.0.ip() != some_peer(0).ip());
                    }
                }
                Step::In { slot, peer } => {
                    let relay = RelayId { slot, family: Family::V4 };
                    let peer = PeerAddr(some_peer(peer));
                    world.server.peer_data(relay, peer, load(1, 1), world.now);
                }
                Step::Disconnect { client: from } => {
                    world.server.handle_disconnect(&client(from));
                    world.obey();
                }
                Step::Pass { seconds } => world.pass(Duration::from_secs(seconds)),
            }
            prop_assert!(world.server.allocations() <= 3);
            prop_assert!(world.sockets.len() <= 6);
            prop_assert!(world.server.allocations() <= world.sockets.len());
        }
        world.pass(Duration::from_secs(3600));
        prop_assert_eq!((world.server.allocations(), world.sockets.len()), (0, 0));
        prop_assert!(world.server.accounts.is_empty() && world.server.sources.is_empty());
        prop_assert!(world.server.relayed.is_empty() && world.server.deadlines.is_empty());
        prop_assert_eq!(world.server.free.len(), world.server.slots.len());
    }
}
