//! The relays of a node against coturn and `zonemesh serve`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use rustix::net::{RecvFlags, SendFlags, recv, send};
use tempfile::TempDir;
use tokio::sync::mpsc;
use zonemesh::{
    config::{RelayUri, Secret},
    lab::{
        nat::Kind,
        net::{Host, Lab},
        programs,
        relay_server::{Over, RelayKind, RelayServer, RelaySettings},
        world::isolated,
    },
    relays::{
        Event, Link, RelayState, Relays, Settings, Transport, resolve,
        stream::{StreamEvent, Streams},
    },
};
use zonemesh_punch::{LocalRelay, turn::channel};

/// Past every deadline of a client and a connection together.
const LIMIT: Duration = Duration::from_secs(30);

/// How long a dead relay may stay unnoticed.
const NOTICED: Duration = Duration::from_secs(15);

#[test]
fn a_node_is_reached_through_coturn_by_udp_tcp_and_tls() {
    isolated("turn::a_node_is_reached_through_coturn_by_udp_tcp_and_tls", || {
        assert_reached_by_all_transports(RelayKind::Coturn);
    });
}

#[test]
fn a_node_is_reached_through_zonemesh_serve_by_udp_tcp_and_tls() {
    isolated("turn::a_node_is_reached_through_zonemesh_serve_by_udp_tcp_and_tls", || {
        assert_reached_by_all_transports(RelayKind::Zonemesh);
    });
}

fn assert_reached_by_all_transports(kind: RelayKind) {
    let mut stage = Stage::with(kind, RelaySettings::default());
    let peer = stage.peer();
    for (over, transport) in
        [(Over::Udp, Transport::Udp), (Over::Tcp, Transport::Tcp), (Over::Tls, Transport::Tls)]
    {
        let uris = ipv4(stage.relay.uris_over(over));
        stage.with_node(&uris, |node| {
            node.run_until(|node| node.relayed().is_some());
            let [used] = &node.used()[..] else { panic!("one relay: {:?}", node.used()) };
            assert_eq!(*used, transport);
            node.assert_reached_by(&peer);
        });
    }
}

#[test]
fn a_name_is_found_and_its_certificate_checked() {
    isolated("turn::a_name_is_found_and_its_certificate_checked", || {
        let stage = Stage::new();
        let uri = format!("turns:{}:5349", stage.relay.addresses()[0]);
        let uri: RelayUri = uri.parse().expect("a URI");
        let [right] = &resolve::of_uri(&uri, &stage.relay.addresses()[..1])[..] else {
            panic!("one server")
        };
        let mut wrong = right.clone();
        wrong.tls_name = Some("other.example".into());
        stage.with_node(&[], |node| {
            node.relays.set_servers(&[wrong.clone()], Instant::now(), SystemTime::now());
            node.run_until(|node| !node.died.is_empty());
            assert!(node.died[0].contains("certificate"), "{:?}", node.died);
        });
        // The authority is the lab's own: the system does not know it.
        let trusting_nobody = stage.node(&[], None);
        trusting_nobody.run(|node| {
            node.relays.set_servers(std::slice::from_ref(right), Instant::now(), SystemTime::now());
            node.run_until(|node| !node.died.is_empty());
            assert!(node.died[0].contains("certificate"), "{:?}", node.died);
        });
    });
}

#[test]
fn coturn_tells_that_the_secret_is_wrong() {
    isolated("turn::coturn_tells_that_the_secret_is_wrong", || {
        assert_wrong_secret_is_told(RelayKind::Coturn);
    });
}

#[test]
fn zonemesh_serve_tells_that_the_secret_is_wrong() {
    isolated("turn::zonemesh_serve_tells_that_the_secret_is_wrong", || {
        assert_wrong_secret_is_told(RelayKind::Zonemesh);
    });
}

fn assert_wrong_secret_is_told(kind: RelayKind) {
    let mut stage = Stage::with(kind, RelaySettings::default());
    stage.secret = "another one".into();
    for over in [Over::Udp, Over::Tcp] {
        let uris = ipv4(stage.relay.uris_over(over));
        stage.with_node(&uris, |node| {
            node.run_until(|node| !node.died.is_empty());
            assert!(node.died[0].contains("401"), "{:?}", node.died);
            assert_eq!(node.relays.report()[0].state, RelayState::Failed);
        });
    }
}

#[test]
fn a_coturn_that_is_restarted_is_used_again() {
    isolated("turn::a_coturn_that_is_restarted_is_used_again", || {
        assert_used_again_after_a_restart(RelayKind::Coturn);
    });
}

#[test]
fn a_zonemesh_serve_that_is_restarted_is_used_again() {
    isolated("turn::a_zonemesh_serve_that_is_restarted_is_used_again", || {
        assert_used_again_after_a_restart(RelayKind::Zonemesh);
    });
}

fn assert_used_again_after_a_restart(kind: RelayKind) {
    let mut stage = Stage::with(kind, RelaySettings::default());
    for over in [Over::Udp, Over::Tls] {
        let uris = ipv4(stage.relay.uris_over(over));
        let Stage { relay, client, .. } = &mut stage;
        let ca_file = relay.ca_file();
        let driver = Driver::new(client, relay.secret(), &uris, Some(&ca_file));
        driver.run(|node| {
            node.run_until(|node| node.relayed().is_some());
            let first = node.relays.listed()[0].id;
            relay.restart().expect("it starts again");
            let start = Instant::now();
            node.run_until(|node| node.relays.listed().iter().any(|known| known.id != first));
            assert!(start.elapsed() < NOTICED, "{over:?}: after {:?}", start.elapsed());
            assert_eq!(node.died.len(), 1, "{:?}", node.died);
        });
    }
}

#[test]
fn a_relay_that_is_cut_off_is_noticed_and_another_one_taken() {
    isolated("turn::a_relay_that_is_cut_off_is_noticed_and_another_one_taken", || {
        let mut stage = Stage::new();
        let second = stage.lab.public_host("second", 1).expect("a public host");
        let settings = RelaySettings { secret: stage.secret.clone(), ..RelaySettings::default() };
        let other = RelayServer::start(RelayKind::Coturn, &second, stage.home.path(), settings)
            .expect("the relay starts");
        for over in [Over::Udp, Over::Tcp] {
            let uris = [ipv4(stage.relay.uris_over(over)), ipv4(other.uris_over(over))].concat();
            let relay_host = stage.relay_host.clone();
            let driver = Driver::new(&stage.client, &stage.secret, &uris, None);
            let lab = &mut stage.lab;
            driver.run(|node| {
                node.run_until(|node| node.relays.listed().len() == 2);
                let fault = lab.cut_host(&relay_host).expect("it is cut off");
                let start = Instant::now();
                node.run_until(|node| !node.died.is_empty());
                assert!(start.elapsed() < NOTICED, "{over:?}: after {:?}", start.elapsed());
                assert!(node.died[0].contains("not answer"), "{:?}", node.died);
                let [left] = node.relays.listed() else { panic!("one is left") };
                assert_eq!(left.relayed.ip(), second.ipv4());
                lab.end(&fault).expect("it is back");
                node.run_until(|node| node.relays.listed().len() == 2);
            });
        }
    });
}

#[test]
fn behind_a_firewall_that_lets_out_only_port_443_there_is_a_relay_in_three_seconds() {
    isolated(
        "turn::behind_a_firewall_that_lets_out_only_port_443_there_is_a_relay_in_three_seconds",
        || {
            let mut stage = Stage::with(
                RelayKind::Coturn,
                RelaySettings { tls_port: Some(443), ..RelaySettings::default() },
            );
            let mut site =
                stage.lab.site("office", Kind::Tcp443Only, "192.168.1.0/24").expect("a site");
            stage.client = site.host("desk").expect("a host");
            let peer = stage.peer();
            let uris = ipv4(stage.relay.uris());
            stage.with_node(&uris, |node| {
                let start = Instant::now();
                node.run_until(|node| node.relayed().is_some());
                assert!(start.elapsed() < Duration::from_secs(3), "after {:?}", start.elapsed());
                assert_eq!(node.used(), [Transport::Tls]);
                node.assert_reached_by(&peer);
            });
        },
    );
}

#[test]
fn an_allocation_that_a_killed_node_left_behind_is_no_obstacle() {
    isolated("turn::an_allocation_that_a_killed_node_left_behind_is_no_obstacle", || {
        let stage = Stage::new();
        let uris = ipv4(stage.relay.uris_over(Over::Udp));
        for _ in 0..2 {
            stage.with_node(&uris, |node| {
                node.run_until(|node| node.relayed().is_some());
                assert!(node.died.is_empty(), "{:?}", node.died);
                // It goes without a word, and the next one has the same port.
            });
        }
    });
}

/// A host's addresses of both families would count as two relays, since nothing says that
/// they are one.
fn ipv4(uris: Vec<String>) -> Vec<String> {
    uris.into_iter().filter(|uri| !uri.contains('[')).collect()
}

/// A relay, and a host for a node.
struct Stage {
    relay: RelayServer,
    relay_host: Host,
    client: Host,
    secret: String,
    home: TempDir,
    lab: Lab,
}

impl Stage {
    fn new() -> Self {
        Self::with(RelayKind::Coturn, RelaySettings::default())
    }

    fn with(kind: RelayKind, settings: RelaySettings) -> Self {
        programs::require(&["openssl", "turnserver"]).expect("all there");
        let home = TempDir::new().expect("a folder");
        let mut lab = Lab::new().expect("a core");
        let relay_host = lab.public_host("relay", 1).expect("a public host");
        let client = lab.public_host("client", 1).expect("a public host");
        let secret = settings.secret.clone();
        let settings =
            RelaySettings { executable: env!("CARGO_BIN_EXE_zonemesh").into(), ..settings };
        let relay =
            RelayServer::start(kind, &relay_host, home.path(), settings).expect("the relay starts");
        Self { relay, relay_host, client, secret, home, lab }
    }

    /// A socket on another public host.
    fn peer(&mut self) -> UdpSocket {
        let host = self.lab.public_host("peer", 1).expect("a public host");
        let addr = SocketAddr::new(host.ipv4(), 5000);
        let socket = host.namespace.enter(|| UdpSocket::bind(addr)).expect("the namespace");
        socket.expect("a socket")
    }

    fn node(&self, uris: &[String], ca_file: Option<&Path>) -> Driver<'_> {
        Driver::new(&self.client, &self.secret, uris, ca_file)
    }

    fn with_node(&self, uris: &[String], scenario: impl FnOnce(&mut Node) + Send) {
        self.node(uris, Some(&self.relay.ca_file())).run(scenario);
    }
}

/// What runs a node on a host.
struct Driver<'a> {
    host: &'a Host,
    secret: String,
    uris: Vec<String>,
    ca_file: Option<std::path::PathBuf>,
}

impl<'a> Driver<'a> {
    fn new(host: &'a Host, secret: &str, uris: &[String], ca_file: Option<&Path>) -> Self {
        let ca_file = ca_file.map(Path::to_owned);
        Self { host, secret: secret.to_owned(), uris: uris.to_vec(), ca_file }
    }

    fn run(self, scenario: impl FnOnce(&mut Node) + Send) {
        let Self { host, secret, uris, ca_file } = self;
        let scenario = || {
            let mut node = Node::new(&secret, &uris, ca_file.as_deref());
            scenario(&mut node);
        };
        host.namespace.enter(scenario).expect("the namespace");
    }
}

/// The part of a node that has to do with relays, its data plane made by hand.
struct Node {
    runtime: tokio::runtime::Runtime,
    relays: Relays,
    streams: Streams,
    told: mpsc::Receiver<StreamEvent>,
    socket: UdpSocket,
    links: BTreeMap<u32, Open>,
    channels: BTreeMap<(u32, SocketAddr), u16>,
    died: Vec<String>,
    /// What peers sent on channels.
    heard: Vec<(u16, Vec<u8>)>,
}

enum Open {
    Udp(SocketAddr),
    Stream(OwnedFd),
}

impl Node {
    fn new(secret: &str, uris: &[String], ca_file: Option<&Path>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 51820)).expect("a socket");
        socket.set_nonblocking(true).expect("it does not wait");
        let settings =
            Settings { secret: Secret::new(secret.into()), name: "node".into(), seed: [5; 32] };
        let (streams, told) = Streams::new(ca_file).expect("TLS is ready");
        let mut relays = Relays::new(settings, Instant::now(), SystemTime::now());
        let servers: Vec<_> = uris
            .iter()
            .flat_map(|uri| {
                let uri: RelayUri = uri.parse().expect("a URI");
                let zonemesh::config::RelayHost::Ip(ip) = uri.host else { panic!("an address") };
                resolve::of_uri(&uri, &[ip])
            })
            .collect();
        // All at one host are ways to one relay.
        relays.set_servers(&servers, Instant::now(), SystemTime::now());
        Self {
            runtime,
            relays,
            streams,
            told,
            socket,
            links: BTreeMap::new(),
            channels: BTreeMap::new(),
            died: Vec::new(),
            heard: Vec::new(),
        }
    }

    fn relayed(&self) -> Option<SocketAddr> {
        self.relays.listed().first().map(|relay| relay.relayed)
    }

    /// The transports of the allocations, best first.
    fn used(&self) -> Vec<Transport> {
        let used = |known: &LocalRelay| {
            let report = self.relays.report();
            report.iter().find(|relay| relay.id == Some(known.id)).map(|relay| relay.transport)
        };
        self.relays.listed().iter().filter_map(used).collect()
    }

    /// Binds a channel to a peer, and has both send to each other.
    fn assert_reached_by(&mut self, peer: &UdpSocket) {
        let addr = peer.local_addr().expect("it is bound");
        let relay = self.relays.listed()[0];
        self.relays.set_peers(relay.id, &BTreeSet::from([addr]), Instant::now());
        self.run_until(|node| node.channels.contains_key(&(relay.id, addr)));
        let number = self.channels[&(relay.id, addr)];
        self.send(relay.id, &channel::encode(number, b"to the peer").expect("short"));
        // The runtime has to run for a stream to go on.
        peer.set_nonblocking(true).expect("it does not wait");
        let mut buffer = [0; 1500];
        let mut arrived = None;
        self.run_until(|_| {
            arrived = peer.recv_from(&mut buffer).ok();
            arrived.is_some()
        });
        let (len, from) = arrived.expect("it arrives");
        assert_eq!((&buffer[..len], from), (&b"to the peer"[..], relay.relayed));
        self.heard.clear();
        peer.send_to(b"to the node", relay.relayed).expect("sent");
        self.run_until(|node| !node.heard.is_empty());
        assert_eq!(self.heard, [(number, b"to the node".to_vec())]);
    }

    fn run_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        loop {
            self.step();
            if done(self) {
                return;
            }
            assert!(
                start.elapsed() < LIMIT,
                "not done: {:?}, {:?}",
                self.died,
                self.relays.report()
            );
        }
    }

    fn step(&mut self) {
        // Lets the connections' tasks go on.
        self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(2)).await });
        let (now, wall) = (Instant::now(), SystemTime::now());
        while let Ok(event) = self.told.try_recv() {
            match event {
                StreamEvent::Opened { id, end } => {
                    self.links.insert(id, Open::Stream(end));
                    self.relays.handle_opened(id, now, wall);
                }
                StreamEvent::Closed { id, reason } => {
                    self.relays.handle_closed(id, &reason, now, wall);
                }
            }
        }
        let mut buffer = [0; 2000];
        while let Ok((len, from)) = self.socket.recv_from(&mut buffer) {
            let frame = &buffer[..len];
            match channel::decode(frame) {
                Some((number, payload)) => self.heard.push((number, payload.to_vec())),
                None => {
                    self.relays.handle_datagram(from, frame, now, wall);
                }
            }
        }
        let mut frames = Vec::new();
        for (id, link) in &self.links {
            let Open::Stream(end) = link else { continue };
            while let Ok((len @ 1.., _)) = recv(end, &mut buffer[..], RecvFlags::DONTWAIT) {
                frames.push((*id, buffer[..len].to_vec()));
            }
        }
        for (id, frame) in frames {
            match channel::decode(&frame) {
                Some((number, payload)) => self.heard.push((number, payload.to_vec())),
                None => {
                    self.relays.handle_message(id, &frame, now, wall);
                }
            }
        }
        self.relays.handle_timeout(now, wall);
        self.drain();
    }

    fn drain(&mut self) {
        let _guard = self.runtime.enter();
        while let Some(event) = self.relays.poll_event() {
            match event {
                Event::Open { id, link: Link::Udp(server) } => {
                    self.links.insert(id, Open::Udp(server));
                }
                Event::Open { id, link } => self.streams.open(id, &link),
                Event::Transmit { id, bytes } => send_on(&self.socket, &self.links, id, &bytes),
                Event::Close { id } => {
                    let was_open = self.links.remove(&id).is_some();
                    self.streams.close(id, was_open);
                }
                Event::Channel { id, peer, channel } => {
                    self.channels.insert((id, peer), channel);
                }
                Event::Died { label, reason } => self.died.push(format!("{label}: {reason}")),
                Event::Changed(_)
                | Event::Unbound { .. }
                | Event::Data { .. }
                | Event::Up { .. } => {}
            }
        }
    }

    fn send(&self, id: u32, bytes: &[u8]) {
        send_on(&self.socket, &self.links, id, bytes);
    }
}

fn send_on(socket: &UdpSocket, links: &BTreeMap<u32, Open>, id: u32, bytes: &[u8]) {
    match links.get(&id) {
        // What is refused is lost: the server may be away.
        Some(Open::Udp(server)) => {
            let _ = socket.send_to(bytes, server);
        }
        Some(Open::Stream(end)) => {
            let _ = send(end, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
        None => panic!("relay {id} is not open"),
    }
}
