//! The STUN client against coturn.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use zonemesh::{
    lab::{nat::Kind, net::Lab, programs, stun_server::StunServer, world::isolated},
    measure::{hairpin, mapping_lifetime},
};
use zonemesh_discovery::stun::{
    Behaviour, MappingLifetime, NatBehaviour, PortPattern, ReflexiveClient, StunEvent,
};

/// Past all the tries of one request and a whole behaviour test.
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn coturn_tells_our_address_and_that_there_is_no_nat() {
    isolated("stun::coturn_tells_our_address_and_that_there_is_no_nat", || {
        let home = TempDir::new().expect("a folder");
        let server = start(&home, &["127.0.0.1", "127.0.0.2"]);
        let mut node = Node::new("127.0.0.9:0");
        let now = Instant::now();
        node.client.set_servers(server.addresses(), now);
        node.run_until(|client| client.is_settled());
        assert_eq!(node.client.reflexive().collect::<Vec<_>>(), [node.local()]);
        let expected =
            NatBehaviour { mapping: Behaviour::None, filtering: Behaviour::EndpointIndependent };
        assert_eq!(node.client.behaviour(), expected);
        assert!(node.events.contains(&StunEvent::Behaviour(expected)));
    });
}

#[test]
fn coturn_answers_over_ipv6() {
    isolated("stun::coturn_answers_over_ipv6", || {
        let home = TempDir::new().expect("a folder");
        let server = start(&home, &["::1"]);
        let mut node = Node::new("[::1]:0");
        node.client.set_servers(server.addresses(), Instant::now());
        node.run_until(|client| client.is_settled());
        assert_eq!(node.client.reflexive().collect::<Vec<_>>(), [node.local()]);
        assert_eq!(node.client.behaviour().mapping, Behaviour::None);
    });
}

#[test]
fn a_coturn_that_dies_is_told_and_its_word_stays() {
    isolated("stun::a_coturn_that_dies_is_told_and_its_word_stays", || {
        let home = TempDir::new().expect("a folder");
        let mut server = start(&home, &["127.0.0.1"]);
        let asked = server.addresses()[0];
        let mut node = Node::new("127.0.0.9:0");
        node.client.set_servers(&[asked], Instant::now());
        node.run_until(|client| client.is_settled());
        server.stop();
        node.client.refresh(Instant::now());
        node.run_until_told(StunEvent::ServerSilent { server: asked });
        assert_eq!(node.client.reflexive().collect::<Vec<_>>(), [node.local()]);
        let _server = start(&home, &["127.0.0.1"]);
        node.events.clear();
        node.run_until_told(StunEvent::ServerAnswered { server: asked });
    });
}

#[test]
fn each_nat_is_told_by_coturn_with_two_addresses() {
    isolated("stun::each_nat_is_told_by_coturn_with_two_addresses", || {
        use Behaviour::*;
        let home = TempDir::new().expect("a folder");
        let mut lab = Lab::new().expect("a core");
        let stun = lab.public_host("stun", 2).expect("a public host");
        let command = |program: &str| stun.namespace.command(program);
        let server =
            StunServer::start(command, home.path(), &stun.addresses, 3478).expect("coturn starts");
        use PortPattern::{Preserving, Random, Sequential};
        let dependent = AddressAndPortDependent;
        let counting = Sequential { step: 1 };
        for (name, kind, mapping, filtering, ports) in [
            ("cone", Kind::FullCone, EndpointIndependent, EndpointIndependent, Preserving),
            ("address", Kind::AddressRestricted, EndpointIndependent, AddressDependent, Preserving),
            ("port", Kind::PortRestricted, EndpointIndependent, dependent, Preserving),
            ("random", Kind::SymmetricRandom, dependent, dependent, Random),
            ("sequence", Kind::SymmetricSequential, dependent, dependent, counting),
            ("twos", Kind::SymmetricByTwos, dependent, dependent, Sequential { step: 2 }),
            ("ipv6", Kind::Ipv6Firewall, None, dependent, Preserving),
        ] {
            let lan = if kind == Kind::Ipv6Firewall { "2001:2:1::/64" } else { "192.168.1.0/24" };
            let mut site = lab.site(name, kind, lan).expect("a site");
            let host = site.host(&format!("{name}-host")).expect("a host");
            let local = SocketAddr::new(host.addresses[0], 0).to_string();
            let servers: Vec<SocketAddr> = server
                .addresses()
                .iter()
                .copied()
                .filter(|server| server.is_ipv4() == host.addresses[0].is_ipv4())
                .collect();
            let attempt = || {
                let mut node = host.namespace.enter(|| Node::new(&local)).expect("the namespace");
                node.client.set_servers(&servers, Instant::now());
                node.run_until(|client| client.is_settled());
                node
            };
            // On a busy machine an answer may take so long that the second server was
            // asked before: then nothing is told, and a fresh port tells more.
            let mut node = attempt();
            for _ in 0..4 {
                if node.client.behaviour().filtering == Unknown {
                    node = attempt();
                }
            }
            let expected = NatBehaviour { mapping, filtering };
            assert_eq!(node.client.behaviour(), expected, "{kind:?}");
            assert_eq!(node.client.ports(), ports, "{kind:?}");
            for mapped in node.client.reflexive() {
                let outer = if mapping == None { node.local().ip() } else { site.public() };
                assert_eq!(mapped.ip(), outer, "{kind:?}");
            }
        }
    });
}

#[test]
fn a_nat_that_restarts_with_another_address_is_noticed_within_ten_seconds() {
    isolated(
        "stun::a_nat_that_restarts_with_another_address_is_noticed_within_ten_seconds",
        || {
            let home = TempDir::new().expect("a folder");
            let mut lab = Lab::new().expect("a core");
            let stun = lab.public_host("stun", 2).expect("a public host");
            let command = |program: &str| stun.namespace.command(program);
            let server = StunServer::start(command, home.path(), &stun.addresses[..2], 3478)
                .expect("coturn starts");
            let mut site =
                lab.site("site", Kind::PortRestricted, "192.168.1.0/24").expect("a site");
            let host = site.host("host").expect("a host");
            let local = SocketAddr::new(host.ipv4(), 0).to_string();
            let mut node = host.namespace.enter(|| Node::new(&local)).expect("the namespace");
            node.client.set_servers(server.addresses(), Instant::now());
            node.run_until(|client| client.is_settled());

            let fresh = IpAddr::from(site.restart_nat().expect("the NAT restarts"));
            let start = Instant::now();
            let known =
                |client: &ReflexiveClient| client.reflexive().any(|addr| addr.ip() == fresh);
            node.run_until(known);
            assert!(start.elapsed() < Duration::from_secs(10), "after {:?}", start.elapsed());
            // The other server confirms it at once, and the old one is gone.
            node.run_until(|client| client.reflexive().all(|addr| addr.ip() == fresh));
            assert!(start.elapsed() < Duration::from_secs(10), "after {:?}", start.elapsed());
        },
    );
}

/// By an answer from outside where the NAT keeps the port, which nothing else would show;
/// and where it does not.
#[test]
fn the_lifetime_of_a_mapping_is_measured_with_coturn() {
    isolated("stun::the_lifetime_of_a_mapping_is_measured_with_coturn", || {
        let home = TempDir::new().expect("a folder");
        let mut lab = Lab::new().expect("a core");
        let stun = lab.public_host("stun", 2).expect("a public host");
        let command = |program: &str| stun.namespace.command(program);
        let server =
            StunServer::start(command, home.path(), &stun.addresses[..2], 3478).expect("coturn");
        let server = server.addresses()[0];
        std::thread::scope(|scope| {
            for kind in [Kind::PortRestricted, Kind::SymmetricRandom] {
                let name = format!("{kind:?}");
                let mut site = lab.site(&name, kind, "192.168.1.0/24").expect("a site");
                site.router()
                    .enter(|| {
                        for timeout in
                            ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"]
                        {
                            let path = format!("/proc/sys/net/netfilter/{timeout}");
                            std::fs::write(path, "14").expect("a timeout");
                        }
                    })
                    .expect("the router's namespace");
                let host = site.host(&format!("{name}-host")).expect("a host");
                scope.spawn(move || {
                    let found = host.namespace.enter(|| wait_for(mapping_lifetime(server)));
                    let expected = MappingLifetime {
                        survived: Some(Duration::from_secs(10)),
                        lost: Some(Duration::from_secs(15)),
                    };
                    assert_eq!(found.expect("the namespace"), Some(expected), "{kind:?}");
                });
            }
        });
    });
}

#[test]
fn a_nat_that_hairpins_is_told_from_one_that_does_not() {
    isolated("stun::a_nat_that_hairpins_is_told_from_one_that_does_not", || {
        let home = TempDir::new().expect("a folder");
        let mut lab = Lab::new().expect("a core");
        let stun = lab.public_host("stun", 1).expect("a public host");
        let command = |program: &str| stun.namespace.command(program);
        let server =
            StunServer::start(command, home.path(), &stun.addresses[..1], 3478).expect("coturn");
        let server = server.addresses()[0];
        for (kind, turns) in [(Kind::FullCone, true), (Kind::PortRestricted, false)] {
            let name = format!("{kind:?}");
            let mut site = lab.site(&name, kind, "192.168.1.0/24").expect("a site");
            let host = site.host(&format!("{name}-host")).expect("a host");
            let found = host.namespace.enter(|| wait_for(hairpin(server)));
            assert_eq!(found.expect("the namespace"), Some(turns), "{kind:?}");
        }
    });
}

fn wait_for<T>(measured: impl Future<Output = std::io::Result<T>>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().expect("a runtime");
    runtime.block_on(measured).expect("sockets")
}

fn start(home: &TempDir, listen: &[&str]) -> StunServer {
    programs::require(&["turnserver"]).expect("the programs are there");
    let listen: Vec<IpAddr> = listen.iter().map(|ip| ip.parse().expect("an address")).collect();
    StunServer::start(|program| Command::new(program), home.path(), &listen, 3478)
        .expect("coturn starts")
}

/// A client with a socket.
struct Node {
    socket: UdpSocket,
    client: ReflexiveClient,
    events: Vec<StunEvent>,
}

impl Node {
    fn new(local: &str) -> Self {
        let socket = UdpSocket::bind(local).expect("a socket");
        let mut client = ReflexiveClient::new([7; 32]);
        client.set_local_addresses(&[socket.local_addr().expect("it is bound")]);
        Self { socket, client, events: Vec::new() }
    }

    fn local(&self) -> SocketAddr {
        self.socket.local_addr().expect("it is bound")
    }

    fn run_until_told(&mut self, event: StunEvent) {
        let start = Instant::now();
        while !self.events.contains(&event) {
            assert!(start.elapsed() < LIMIT, "never told: {event:?}, only {:?}", self.events);
            self.step();
        }
    }

    fn run_until(&mut self, done: impl Fn(&ReflexiveClient) -> bool) {
        let start = Instant::now();
        while !done(&self.client) {
            assert!(start.elapsed() < LIMIT, "not done; told: {:?}", self.events);
            self.step();
        }
        self.events.extend(std::iter::from_fn(|| self.client.poll_event()));
    }

    fn step(&mut self) {
        self.client.handle_timeout(Instant::now());
        self.events.extend(std::iter::from_fn(|| self.client.poll_event()));
        while let Some(transmit) = self.client.poll_transmit() {
            // A refused one is a lost one: the server may be away.
            let _ = self.socket.send_to(&transmit.payload, transmit.to);
        }
        let due = self.client.poll_timeout().expect("a server is always asked again");
        let wait = due.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(wait)).expect("a wait above zero");
        let mut buffer = [0; 1500];
        if let Ok((length, from)) = self.socket.recv_from(&mut buffer) {
            // The second answer to a question that was asked twice is nobody's.
            self.client.handle_datagram(from, &buffer[..length], Instant::now());
        }
    }
}
