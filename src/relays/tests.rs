//! Scenarios in virtual time, with servers that give every client an allocation.

use proptest::prelude::*;
use zonemesh_punch::turn::message::{Class, Failure, Message, Method};

use super::*;
use crate::config::Secret;

#[test]
fn a_relay_by_udp_is_there_after_a_round_trip_and_opens_no_stream() {
    let mut world = World::new(&[Host::new("a", 20)]);
    world.run(1000);
    assert_eq!(world.listed(), ["a udp"]);
    assert_eq!(world.opened, ["a udp"]);
    assert!(world.listed_at < ms(100));
}

#[test]
fn where_nothing_but_tls_gets_out_it_takes_less_than_two_seconds() {
    let mut world = World::new(&[Host { udp: false, tcp: false, ..Host::new("a", 100) }]);
    world.run(5000);
    assert_eq!(world.listed(), ["a tls"]);
    assert!(world.listed_at < ms(2000), "after {:?}", world.listed_at);
}

#[test]
fn the_nearest_of_all_is_first_the_next_is_kept_and_the_others_let_go() {
    let hosts = [Host::new("far", 90), Host::new("near", 10), Host::new("mid", 40)];
    let mut world = World::new(&hosts);
    world.run(10_000);
    assert_eq!(world.listed(), ["near udp", "mid udp"]);
    assert_eq!(world.allocations(), ["mid", "near"]);
    let report = world.relays.report();
    assert_eq!(report[0].state, RelayState::Primary);
    assert_eq!(report[1].state, RelayState::Spare);
    let far = report.iter().find(|relay| relay.label == "far udp").expect("it is reported");
    assert_eq!((far.state, far.rtt), (RelayState::Resting, Some(ms(90))));
}

#[test]
fn a_little_nearer_is_no_reason_to_move() {
    let mut world = World::new(&[Host::new("a", 50), Host::new("b", 60)]);
    world.run(10_000);
    world.host("b").rtt = 42;
    world.run(600_000);
    assert_eq!(world.listed(), ["a udp", "b udp"]);
    world.host("b").rtt = 30;
    world.run(600_000);
    assert_eq!(world.listed(), ["b udp", "a udp"]);
}

#[test]
fn when_the_first_dies_the_spare_is_first_and_a_third_is_taken() {
    let hosts = [Host::new("a", 10), Host::new("b", 40), Host::new("c", 70)];
    let mut world = World::new(&hosts);
    world.run(20_000);
    world.host("a").dead = true;
    world.run(15_000);
    assert_eq!(world.listed(), ["b udp", "c udp"]);
    assert!(world.died.iter().any(|died| died == "a udp: the relay does not answer"));
    assert_eq!(world.died.len(), 1, "told once: {:?}", world.died);
    let before = world.opened.len();
    world.run(600_000);
    assert_eq!(world.opened.len(), before, "with two that work, the dead one is left alone");
    // It is measured with all the others after half an hour.
    world.host("a").dead = false;
    world.run(1_300_000);
    assert_eq!(world.listed(), ["a udp", "b udp"]);
}

#[test]
fn the_only_relay_is_taken_again_when_it_comes_back() {
    let mut world = World::new(&[Host::new("a", 10)]);
    world.run(60_000);
    world.host("a").dead = true;
    world.run(600_000);
    assert!(world.listed().is_empty());
    // Growing pauses: each attempt opens three connections.
    assert!(world.opened.len() < 60, "{}", world.opened.len());
    world.host("a").dead = false;
    world.run(80_000);
    assert_eq!(world.listed(), ["a udp"]);
}

#[test]
fn a_restarted_relay_is_asked_again_at_once() {
    let mut world = World::new(&[Host::new("a", 10)]);
    world.run(60_000);
    world.host("a").allocated.clear();
    world.run(11_000);
    assert_eq!(world.listed(), ["a udp"]);
    assert_eq!(world.opened, ["a udp", "a udp"]);
}

#[test]
fn datagrams_take_over_from_a_stream_while_it_still_works() {
    let mut world = World::new(&[Host { udp: false, ..Host::new("a", 10) }]);
    world.run(10_000);
    assert_eq!(world.listed(), ["a tcp"]);
    world.host("a").udp = true;
    world.lists.clear();
    world.run(300_000);
    assert_eq!(world.lists, [vec!["a udp", "a tcp"], vec!["a udp"]]);
    assert!(world.died.is_empty());
}

#[test]
fn a_host_that_refuses_is_told_once_with_the_reason() {
    let mut world = World::new(&[Host { refuses: Some(486), ..Host::new("a", 10) }]);
    world.run(300_000);
    assert_eq!(world.died.len(), 1);
    assert!(world.died[0].contains("quota"), "{:?}", world.died);
    let report = world.relays.report();
    assert!(report.iter().all(|relay| relay.error.is_some()));
}

#[test]
fn a_moved_node_is_known_to_its_relay_again_at_once() {
    let mut world = World::new(&[Host::new("a", 10)]);
    world.run(60_000);
    world.host("a").allocated.clear();
    let now = world.now;
    world.relays.handle_moved(now, world.wall());
    world.run(200);
    assert_eq!(world.listed(), ["a udp"]);
}

#[test]
fn a_closed_connection_is_no_news_but_for_the_relay_it_carried() {
    let mut world = World::new(&[Host { udp: false, ..Host::new("a", 10) }, Host::new("b", 20)]);
    world.run(40_000);
    assert_eq!(world.listed(), ["b udp", "a tcp"], "datagrams come first");
    let id = world.relays.listed()[1].id;
    let now = world.now;
    world.relays.handle_closed(id, "reset", now, world.wall());
    world.run(2000);
    assert_eq!(world.died, ["a tcp: reset"]);
    assert_eq!(world.listed(), ["b udp", "a tcp"]);
    world.relays.handle_closed(id, "reset", world.now, world.wall());
    assert_eq!(world.died.len(), 1, "its number is nobody's any more");
}

#[test]
fn credentials_are_renewed_before_they_end_and_the_spare_carries_meanwhile() {
    let mut world = World::new(&[Host::new("a", 10), Host::new("b", 20)]);
    world.run(60_000);
    let first = world.host("a").name_seen();
    world.lists.clear();
    // Hours pass; the relays keep asking.
    world.run(36 * 3_600_000);
    assert_ne!(world.host("a").name_seen(), first);
    assert!(world.died.is_empty());
    assert!(world.lists.iter().all(|list| !list.is_empty()), "{:?}", world.lists);
    assert!(world.host("a").expired.is_none(), "{:?}", world.host("a").expired);
}

#[test]
fn channels_follow_the_peers_that_are_wanted() {
    let mut world = World::new(&[Host::new("a", 10)]);
    world.run(1000);
    let id = world.relays.listed()[0].id;
    let peers: BTreeSet<SocketAddr> = (1..=3).map(|n| ([192, 0, 2, n], 51820).into()).collect();
    world.relays.set_peers(id, &peers, world.now);
    world.run(1000);
    assert_eq!(world.channels.iter().copied().collect::<BTreeSet<_>>(), peers);
    let one = BTreeSet::from([([192, 0, 2, 2], 51820).into()]);
    world.relays.set_peers(id, &one, world.now);
    world.run(1000);
    assert_eq!(world.channels.iter().copied().collect::<BTreeSet<_>>(), one);
}

#[test]
fn servers_that_are_named_no_more_are_closed_and_others_stay() {
    let mut world = World::new(&[Host::new("a", 10), Host::new("b", 20)]);
    world.run(10_000);
    let kept = world.relays.listed()[1];
    let servers: Vec<RelayServer> = world.servers_of("b");
    let now = world.now;
    world.relays.set_servers(&servers, now, world.wall());
    world.run(10_000);
    assert_eq!(world.relays.listed(), [kept]);
    assert_eq!(world.allocations(), ["b"]);
    world.relays.close_all(world.now);
    world.run(1000);
    assert!(world.allocations().is_empty());
    assert!(world.relays.listed().is_empty());
}

/// What happens to a world at random.
#[derive(Debug, Clone)]
enum Chance {
    /// A host dies, or comes back.
    Toggle(usize),
    /// A firewall lets UDP through, or no more.
    ToggleUdp(usize),
    /// A host forgets all allocations.
    Restart(usize),
    /// The route to a host gets longer or shorter.
    Distance(usize, u64),
    /// A connection breaks.
    Break(u32),
    /// The node's network changes.
    Move,
    /// Somebody asks whether the relays are there.
    Check,
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        (0_usize..3).prop_map(Chance::Toggle),
        (0_usize..3).prop_map(Chance::ToggleUdp),
        (0_usize..3).prop_map(Chance::Restart),
        (0_usize..3, 1_u64..300).prop_map(|(host, rtt)| Chance::Distance(host, rtt)),
        (0_u32..60).prop_map(Chance::Break),
        Just(Chance::Move),
        Just(Chance::Check),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_happens_two_relays_are_there_a_while_after(
        chances in proptest::collection::vec((chance(), 0_u64..20_000), 0..25),
    ) {
        let hosts = [Host::new("a", 20), Host::new("b", 60), Host::new("c", 150)];
        let mut world = World::new(&hosts);
        for (chance, pause) in chances {
            let (now, wall) = (world.now, world.wall());
            match chance {
                Chance::Toggle(host) => world.hosts[host].dead ^= true,
                Chance::ToggleUdp(host) => world.hosts[host].udp ^= true,
                Chance::Restart(host) => world.hosts[host].allocated.clear(),
                Chance::Distance(host, rtt) => world.hosts[host].rtt = rtt,
                Chance::Break(id) => world.relays.handle_closed(id, "broken", now, wall),
                Chance::Move => world.relays.handle_moved(now, wall),
                Chance::Check => world.relays.check_now(now, wall),
            }
            world.run(pause);
            prop_assert!(world.relays.listed().len() <= KEPT);
        }
        for host in &mut world.hosts {
            host.dead = false;
        }
        // The longest pause, and an attempt with all its tries.
        world.run(90_000);
        prop_assert_eq!(world.relays.listed().len(), KEPT, "{:?}", world.relays.report());
        world.run(20_000);
        // Nothing is left behind beside those; where there is a stream, UDP may be tried.
        let hosts: BTreeSet<&str> = world.links.values().map(|link| &*link.host).collect();
        prop_assert_eq!(hosts.len(), KEPT, "{:?}", world.links);
        prop_assert!(world.links.len() <= 2 * KEPT, "{:?}", world.links);
        // And nothing swings to and fro then.
        world.lists.clear();
        world.run(120_000);
        prop_assert!(world.lists.len() <= 4, "{:?}", world.lists);
    }
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// A host with a TURN server, which knows each connection by its number.
#[derive(Clone)]
struct Host {
    name: &'static str,
    rtt: u64,
    udp: bool,
    tcp: bool,
    dead: bool,
    refuses: Option<u16>,
    allocated: BTreeSet<u32>,
    names: Vec<String>,
    expired: Option<String>,
}

impl Host {
    fn new(name: &'static str, rtt: u64) -> Self {
        Self {
            name,
            rtt,
            udp: true,
            tcp: true,
            dead: false,
            refuses: None,
            allocated: BTreeSet::new(),
            names: vec![],
            expired: None,
        }
    }

    /// The user name of the newest request.
    fn name_seen(&self) -> String {
        self.names.last().cloned().unwrap_or_default()
    }

    fn answer(&mut self, id: u32, bytes: &[u8], wall_s: u64) -> Option<Vec<u8>> {
        let request = Message::parse(bytes).ok()?;
        let answer = |class| Message::new(request.method, class, request.id);
        let refuse = |code| Message {
            failure: Some(Failure { code, reason: "No".into() }),
            ..answer(Class::Error)
        };
        let answer = match (&request.username, request.method) {
            (None, _) => {
                Message { realm: Some("test".into()), nonce: Some("nonce".into()), ..refuse(401) }
            }
            (Some(name), method) => {
                if self.names.last() != Some(name) {
                    self.names.push(name.clone());
                }
                let expires = name.split(':').next().and_then(|text| text.parse().ok());
                if expires.is_none_or(|expires: u64| expires < wall_s) {
                    self.expired = Some(name.clone());
                }
                match method {
                    Method::Allocate => match self.refuses {
                        Some(code) => refuse(code),
                        None => {
                            self.allocated.insert(id);
                            let relayed = SocketAddr::from(([203, 0, 113, 1], 49152 + id as u16));
                            Message {
                                relayed: vec![relayed],
                                lifetime: Some(600),
                                ..answer(Class::Success)
                            }
                        }
                    },
                    Method::Refresh if request.lifetime == Some(0) => {
                        self.allocated.remove(&id);
                        answer(Class::Success)
                    }
                    _ if !self.allocated.contains(&id) => refuse(437),
                    _ => answer(Class::Success),
                }
            }
        };
        let name = request.username.unwrap_or_default();
        let key = time_limited_key(&name);
        answer.encode(Some(&key).filter(|_| !name.is_empty())).ok()
    }
}

/// The key that a client makes of the secret `secret` for this user name.
fn time_limited_key(username: &str) -> turn::message::Key {
    let (expires, name) = username.split_once(':').unwrap_or(("0", ""));
    let credentials = Credentials::time_limited(b"secret", name, expires.parse().unwrap_or(0));
    credentials.key("test").expect("plain text")
}

#[derive(Clone)]
enum Arrival {
    Opened,
    Closed,
    Message(Vec<u8>),
}

struct World {
    relays: Relays,
    hosts: Vec<Host>,
    start: Instant,
    now: Instant,
    links: BTreeMap<u32, RelayServer>,
    /// What is on its way to a relay.
    inbox: VecDeque<(Instant, u32, Arrival)>,
    opened: Vec<String>,
    lists: Vec<Vec<String>>,
    listed_at: Duration,
    died: Vec<String>,
    channels: Vec<SocketAddr>,
}

impl World {
    fn new(hosts: &[Host]) -> Self {
        let now = Instant::now();
        let settings =
            Settings { secret: Secret::new("secret".into()), name: "node".into(), seed: [3; 32] };
        let mut world = Self {
            relays: Relays::new(settings, now, UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
            hosts: hosts.to_vec(),
            start: now,
            now,
            links: BTreeMap::new(),
            inbox: VecDeque::new(),
            opened: vec![],
            lists: vec![],
            listed_at: Duration::ZERO,
            died: vec![],
            channels: vec![],
        };
        let servers: Vec<RelayServer> =
            hosts.iter().flat_map(|host| world.servers_of(host.name)).collect();
        world.relays.set_servers(&servers, now, world.wall());
        world
    }

    fn servers_of(&self, name: &str) -> Vec<RelayServer> {
        let place = self.hosts.iter().position(|host| host.name == name).expect("a host");
        let transports = [(Transport::Udp, 3478), (Transport::Tcp, 3478), (Transport::Tls, 443)];
        transports
            .map(|(transport, port)| RelayServer {
                label: format!("{name} {transport}"),
                host: name.into(),
                transport,
                addr: SocketAddr::from(([198, 51, 100, place as u8], port)),
                tls_name: (transport == Transport::Tls).then(|| name.into()),
            })
            .to_vec()
    }

    fn wall(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000) + (self.now - self.start)
    }

    fn host(&mut self, name: &str) -> &mut Host {
        self.hosts.iter_mut().find(|host| host.name == name).expect("a host")
    }

    /// The labels of the allocations, best first.
    fn listed(&self) -> Vec<String> {
        let label = |relay: &LocalRelay| self.relays.label(relay.id).unwrap_or("?").to_owned();
        self.relays.listed().iter().map(label).collect()
    }

    /// The hosts that hold allocations.
    fn allocations(&self) -> Vec<&'static str> {
        let mut names: Vec<_> =
            self.hosts.iter().flat_map(|host| host.allocated.iter().map(|_| host.name)).collect();
        names.sort_unstable();
        names
    }

    fn run(&mut self, time_ms: u64) {
        let end = self.now + ms(time_ms);
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < 10_000 + time_ms, "it does not come to rest");
            self.drain();
            let due = [self.inbox.iter().map(|(at, ..)| *at).min(), self.relays.poll_timeout()];
            let Some(due) = due.into_iter().flatten().min().filter(|due| *due < end) else {
                self.now = end;
                return;
            };
            assert!(self.now <= due, "time does not run backwards");
            self.now = due;
            let (now, wall) = (self.now, self.wall());
            let arrived: Vec<_> =
                self.inbox.iter().filter(|(at, ..)| *at <= now).cloned().collect();
            self.inbox.retain(|(at, ..)| now < *at);
            for (_, id, bytes) in arrived {
                match bytes {
                    Arrival::Opened => self.relays.handle_opened(id, now, wall),
                    Arrival::Closed => self.relays.handle_closed(id, "no way", now, wall),
                    Arrival::Message(bytes) => {
                        self.relays.handle_message(id, &bytes, now, wall);
                    }
                }
            }
            self.relays.handle_timeout(now, wall);
        }
    }

    fn drain(&mut self) {
        let wall_s = self.wall().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        while let Some(event) = self.relays.poll_event() {
            match event {
                Event::Open { id, link } => {
                    let (addr, transport) = match link {
                        Link::Udp(addr) => (addr, Transport::Udp),
                        Link::Tcp(addr) => (addr, Transport::Tcp),
                        Link::Tls(addr, _) => (addr, Transport::Tls),
                    };
                    let all = self.hosts.iter().flat_map(|host| self.servers_of(host.name));
                    let server = all
                        .into_iter()
                        .find(|server| server.addr == addr && server.transport == transport)
                        .expect("a server that was named");
                    self.opened.push(server.label.clone());
                    let is_twice = |open: &&RelayServer| **open == server;
                    if transport == Transport::Udp {
                        assert_eq!(self.links.values().find(is_twice), None, "one per address");
                    }
                    let host = self.host(&server.host.clone()).clone();
                    let open = match transport {
                        Transport::Udp => false,
                        Transport::Tcp => host.tcp,
                        Transport::Tls => true,
                    };
                    let trips = if transport == Transport::Tls { 2 } else { 1 };
                    if open && !host.dead {
                        let at = self.now + ms(trips * host.rtt);
                        self.inbox.push_back((at, id, Arrival::Opened));
                    } else if transport != Transport::Udp {
                        self.inbox.push_back((self.now + ms(5000), id, Arrival::Closed));
                    }
                    self.links.insert(id, server);
                }
                Event::Transmit { id, bytes } => {
                    let server = self.links.get(&id).expect("what is open").clone();
                    let at = self.now;
                    let host = self.host(&server.host);
                    let lost = host.dead || (server.transport == Transport::Udp && !host.udp);
                    if lost {
                        continue;
                    }
                    let at = at + ms(host.rtt);
                    if let Some(answer) = host.answer(id, &bytes, wall_s) {
                        self.inbox.push_back((at, id, Arrival::Message(answer)));
                    }
                }
                Event::Close { id } => {
                    assert!(self.links.remove(&id).is_some(), "closed once");
                }
                Event::Changed(relays) => {
                    let labels = relays.iter().map(|relay| self.links[&relay.id].label.clone());
                    self.lists.push(labels.collect());
                    self.listed_at = self.now - self.start;
                }
                Event::Channel { peer, .. } => self.channels.push(peer),
                Event::Unbound { peer, .. } => self.channels.retain(|bound| *bound != peer),
                Event::Died { label, reason } => self.died.push(format!("{label}: {reason}")),
                Event::Data { .. } | Event::Up { .. } => {}
            }
        }
    }
}
