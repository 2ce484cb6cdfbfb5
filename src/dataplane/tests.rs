//! Whole data planes against each other, over loopback, with a socket pair in the place
//! of the TUN device.

use std::{
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use rustix::io::{Errno, read, write};
use zonemesh_discovery::identity::Identity;
use zonemesh_punch::{Via, turn::channel};

use super::{offload::VNET_HEADER, *};

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(20);

/// A node whose overlay network is 10.42.`number`.0/24, and the kernel's end of its
/// device.
struct Node {
    number: u8,
    plane: DataPlane,
    upcalls: mpsc::Receiver<Upcall>,
    kernel: OwnedFd,
}

impl Node {
    fn new(number: u8) -> Self {
        let (device, kernel) = Device::pair();
        let config = Config {
            interface: "pair".to_owned(),
            listen_port: 0,
            private_key: Identity::from_seed(&[number; 32]).wireguard_private_key(),
        };
        let (plane, upcalls) = DataPlane::with_device(&config, device).expect("starts");
        Self { number, plane, upcalls, kernel }
    }

    fn key(&self) -> PublicKey {
        Identity::from_seed(&[self.number; 32]).public_key()
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.plane.port()))
    }

    fn route(&self) -> Route {
        Route::direct(self.address())
    }

    /// This node as another's peer.
    fn peer(&self, mode: EndpointMode) -> PeerConfig {
        PeerConfig {
            public_key: self.key(),
            preshared_key: None,
            keepalive: None,
            allowed: vec![format!("10.42.{}.0/24", self.number).parse().expect("a prefix")],
            mode,
        }
    }

    fn send(&self, packet: &[u8]) {
        let whole = [&[0; VNET_HEADER], packet].concat();
        write(&self.kernel, &whole).expect("the device takes it");
    }

    fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 70_000];
        let length = until("a packet arrives", || match read(&self.kernel, &mut buffer) {
            Ok(length) => Some(length),
            Err(Errno::AGAIN) => None,
            Err(error) => panic!("{error}"),
        });
        buffer[VNET_HEADER..length].to_vec()
    }

    fn upcall<T>(&mut self, what: &str, wanted: impl Fn(&Upcall) -> Option<T>) -> T {
        until(what, || self.upcalls.try_recv().ok().and_then(|upcall| wanted(&upcall)))
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        let counters = self.plane.counters();
        counters.iter().find(|(counted, _)| *counted == reason).map_or(0, |(_, count)| *count)
    }
}

fn until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(result) = ready() {
            return result;
        }
        assert!(start.elapsed() < LIMIT, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// An IPv4 packet of a protocol that nothing joins.
fn packet(from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 20];
    packet[0] = 0x45;
    let length = u16::try_from(20 + payload.len()).expect("small");
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[9] = 253;
    packet[12..16].copy_from_slice(&from);
    packet[16..20].copy_from_slice(&to);
    packet.extend_from_slice(payload);
    packet
}

/// A packet of node `from` to node `to`.
fn between(from: &Node, to: &Node, payload: &[u8]) -> Vec<u8> {
    packet([10, 42, from.number, 1], [10, 42, to.number, 1], payload)
}

/// Two nodes, the first of which knows where the second one is.
fn pair() -> (Node, Node) {
    let (a, b) = (Node::new(1), Node::new(2));
    a.plane.set_peers(&[b.peer(EndpointMode::Roaming(Some(b.address())))]);
    b.plane.set_peers(&[a.peer(EndpointMode::Roaming(None))]);
    (a, b)
}

#[test]
fn packets_cross_both_ways_from_the_first_one_on() {
    let (a, b) = pair();
    for payload in [&b"one"[..], &[7; 1380], &[]] {
        let there = between(&a, &b, payload);
        a.send(&there);
        assert_eq!(b.receive(), there);
        let back = between(&b, &a, payload);
        b.send(&back);
        assert_eq!(a.receive(), back);
    }
    let report = b.plane.peers_report().remove(0);
    assert_eq!(report.path, Some(a.route()), "it learned where the first one is");
    assert!(report.last_handshake.is_some());
    assert_eq!(report.last_received.map(|(_, from)| from), Some(a.route()));
    assert!(report.rx_bytes > 1380 && report.tx_bytes > 1380, "{report:?}");
}

#[test]
fn a_peer_speaks_for_its_own_addresses_only() {
    let (a, b) = pair();
    a.send(&packet([10, 42, 3, 1], [10, 42, 2, 1], b"not mine"));
    let mine = between(&a, &b, b"mine");
    a.send(&mine);
    assert_eq!(b.receive(), mine);
    assert_eq!(b.dropped(DropReason::ForeignSource), 1);
}

#[test]
fn a_packet_that_is_nobodys_is_counted() {
    let (a, _b) = pair();
    a.send(&packet([10, 42, 1, 1], [10, 42, 9, 1], b"where to"));
    a.send(b"no packet");
    until("both are counted", || {
        let counted = (a.dropped(DropReason::NoRoute), a.dropped(DropReason::Malformed));
        (counted == (1, 1)).then_some(())
    });
}

#[test]
fn a_managed_peer_gets_nothing_until_it_has_a_path() {
    let (mut a, b) = (Node::new(1), Node::new(2));
    a.plane.set_peers(&[b.peer(EndpointMode::Managed)]);
    b.plane.set_peers(&[a.peer(EndpointMode::Managed)]);
    a.send(&between(&a, &b, b"too early"));
    let peer = a.upcall("a path is wished", |upcall| match upcall {
        Upcall::NoPath { peer } => Some(*peer),
        _ => None,
    });
    assert_eq!(peer, b.key());
    assert_eq!(a.dropped(DropReason::NoPath), 1);
    assert!(!a.plane.initiate(&b.key()), "no path, no handshake");

    assert!(a.plane.set_path(&b.key(), Some(b.route())));
    assert!(b.plane.set_path(&a.key(), Some(a.route())));
    assert!(a.plane.initiate(&b.key()));
    let from = a.upcall("the handshake is done", |upcall| match upcall {
        Upcall::Handshake { from, .. } => Some(*from),
        _ => None,
    });
    assert_eq!(from, b.route());
    for (from, to) in [(&a, &b), (&b, &a)] {
        let packet = between(from, to, b"now");
        from.send(&packet);
        assert_eq!(to.receive(), packet);
    }
}

#[test]
fn a_managed_peers_path_stays_whatever_its_source_is() {
    let (a, mut b) = (Node::new(1), Node::new(2));
    a.plane.set_peers(&[b.peer(EndpointMode::Roaming(Some(b.address())))]);
    b.plane.set_peers(&[a.peer(EndpointMode::Managed)]);
    let elsewhere = SocketAddr::from(([127, 0, 0, 1], 9));
    assert!(b.plane.set_path(&a.key(), Some(Route::direct(elsewhere))));
    let packet = between(&a, &b, b"from here");
    a.send(&packet);
    assert_eq!(b.receive(), packet);
    let from = b.upcall("the source is told", |upcall| match upcall {
        Upcall::SourceChanged { from, .. } => Some(*from),
        _ => None,
    });
    assert_eq!(from, a.route());
    assert_eq!(b.plane.peers_report()[0].path, Some(Route::direct(elsewhere)));
}

#[test]
fn a_new_path_is_used_at_once_and_the_session_lives_on() {
    let (a, b) = pair();
    let packet = between(&a, &b, b"before");
    a.send(&packet);
    assert_eq!(b.receive(), packet);
    // The same machine by another of its addresses.
    let other = SocketAddr::from(([127, 0, 0, 2], b.plane.port()));
    let before = b.plane.peers_report().remove(0).rx_bytes;
    assert!(a.plane.set_path(&b.key(), Some(Route::direct(other))));
    until("the keepalive arrives", || (b.plane.peers_report()[0].rx_bytes > before).then_some(()));
    assert!(!a.plane.set_path(&Identity::from_seed(&[9; 32]).public_key(), None));
}

#[test]
fn a_session_survives_that_the_peers_are_set_again() {
    let (a, b) = pair();
    let packet = between(&a, &b, b"one");
    a.send(&packet);
    assert_eq!(b.receive(), packet);
    let third = Node::new(3);
    b.plane.set_peers(&[third.peer(EndpointMode::Managed), a.peer(EndpointMode::Roaming(None))]);
    a.send(&packet);
    assert_eq!(b.receive(), packet);
    assert_eq!(b.plane.peers_report().len(), 2);
    b.plane.set_peers(&[]);
    a.send(&packet);
    until("the peer that is gone is refused", || {
        (b.dropped(DropReason::NoSession) == 1).then_some(())
    });
}

#[test]
fn a_stranger_knocks_and_gets_no_answer() {
    let (a, mut b) = (Node::new(1), Node::new(2));
    a.plane.set_peers(&[b.peer(EndpointMode::Roaming(Some(b.address())))]);
    a.send(&between(&a, &b, b"hello"));
    let knock = b.upcall("the knock is told", |upcall| match upcall {
        Upcall::Knock { key, from } => Some((*key, *from)),
        _ => None,
    });
    assert_eq!(knock, (a.key(), a.route()));
    assert_eq!(b.dropped(DropReason::Stranger), 1);
    assert_eq!(a.plane.peers_report()[0].rx_bytes, 0);
}

#[test]
fn knocks_are_told_a_few_times_a_second_only() {
    let mut bucket = Bucket::new();
    let told = (0..100).filter(|_| bucket.take()).count();
    // The second may have ended in between, once.
    assert!(told == KNOCKS_PER_SECOND as usize || told == 2 * KNOCKS_PER_SECOND as usize);
}

#[test]
fn stun_goes_up_and_down_past_wireguard() {
    let (a, mut b) = (Node::new(1), Node::new(2));
    let mut request = [0; 20];
    request[1] = 1;
    request[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
    a.plane.send(b.route(), b"junk", false);
    a.plane.send(b.route(), &request, false);
    let stun = b.upcall("the request is told", |upcall| match upcall {
        Upcall::Stun { route, bytes } => Some((*route, bytes.clone())),
        _ => None,
    });
    assert_eq!(stun, (a.route(), request.to_vec()));
    assert_eq!(b.dropped(DropReason::Junk), 1);
}

#[test]
fn a_control_plane_that_sleeps_costs_memory_up_to_a_bound() {
    let (a, mut b) = (Node::new(1), Node::new(2));
    let mut request = [0; 20];
    request[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
    until("the queue is full", || {
        a.plane.send(b.route(), &request, false);
        (b.dropped(DropReason::ControlBusy) > 0).then_some(())
    });
    let mut waiting = 0;
    while b.upcalls.try_recv().is_ok() {
        waiting += 1;
    }
    assert!(waiting >= UPCALLS, "{waiting}");
}

#[test]
fn forged_and_replayed_data_is_counted() {
    let (a, b) = pair();
    let packet = between(&a, &b, b"good");
    a.send(&packet);
    assert_eq!(b.receive(), packet);
    // A data message for a session that is there, by somebody without its key.
    let snapshot = b.plane.shared.snapshot.load();
    let index = snapshot.peers().next().expect("one").index;
    for low in 0..8u32 {
        let mut forged = [0; 64];
        forged[0] = 4;
        forged[4..8].copy_from_slice(&(index << 8 | low).to_le_bytes());
        forged[8] = 0xff;
        a.plane.send(b.route(), &forged, false);
    }
    until("they are counted", || {
        let sum = b.dropped(DropReason::Forged) + b.dropped(DropReason::NoSession);
        (sum == 8).then_some(())
    });
    assert!(b.dropped(DropReason::Forged) >= 1, "the session's own index was among them");
    assert_eq!(b.plane.peers_report()[0].path, Some(a.route()));
}

#[test]
fn a_super_packet_crosses_whole() {
    let (a, b) = pair();
    let first = between(&a, &b, b"opens the session");
    a.send(&first);
    assert_eq!(b.receive(), first);

    // 40 segments of 1,000 bytes of TCP over IPv4, as the kernel hands them over.
    let (segment, count) = (1000usize, 40usize);
    let payload: Vec<u8> = (0..segment * count).map(|at| (at / 7) as u8).collect();
    let mut whole = between(&a, &b, &[&[0; 20][..], &payload].concat());
    whole[8..10].copy_from_slice(&[64, 6]);
    whole[32..34].copy_from_slice(&[0x50, 0x10]);
    let mut vnet = [0; VNET_HEADER];
    vnet[..2].copy_from_slice(&[1, 1]);
    for (at, value) in [(2, 40u16), (4, 1000), (6, 20), (8, 16)] {
        vnet[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }
    write(&a.kernel, &[&vnet[..], &whole].concat()).expect("the device takes it");

    // It may arrive in several parts, each of some segments.
    let mut received = Vec::new();
    let mut parts = 0;
    while received.len() < payload.len() {
        let part = b.receive();
        received.extend_from_slice(&part[40..]);
        parts += 1;
    }
    assert_eq!(received, payload);
    assert!(parts < count / 2, "{parts} parts: hardly anything was joined");
}

/// Between a node that has a channel on a relay, reached by `link`, and one that is the
/// relay's peer. Everything that the first one sends there comes out of `relay`, and goes
/// to the second one from `outside`.
struct Relayed {
    a: Node,
    b: Node,
    outside: UdpSocket,
}

const CHANNEL: u16 = 0x4001;

impl Relayed {
    fn new(link: RelayLink) -> Self {
        let (a, b) = (Node::new(1), Node::new(2));
        let outside = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let relayed = Route::direct(outside.local_addr().expect("bound"));
        a.plane.open_relay(3, link);
        a.plane.set_peers(&[b.peer(EndpointMode::Managed)]);
        b.plane.set_peers(&[a.peer(EndpointMode::Managed)]);
        assert!(a.plane.set_path(&b.key(), Some(Route::relayed(3, b.address()))));
        assert!(b.plane.set_path(&a.key(), Some(relayed)));
        Self { a, b, outside }
    }

    /// Passes packets both ways between the nodes, and a check from the second one.
    fn exchange(&mut self) {
        self.a.send(&between(&self.a, &self.b, b"too early"));
        until("the missing channel is counted", || {
            (self.a.dropped(DropReason::NoChannel) == 1).then_some(())
        });
        self.a.plane.bind_channel(3, self.b.address(), CHANNEL);
        self.b.plane.initiate(&self.a.key());
        for payload in [&b"one"[..], &[7; 1380], b"two"] {
            for (from, to) in [(&self.a, &self.b), (&self.b, &self.a)] {
                let packet = between(from, to, payload);
                from.send(&packet);
                assert_eq!(to.receive(), packet);
            }
        }
        let received = self.a.plane.peers_report()[0].last_received;
        let through = Route::relayed(3, self.b.address());
        assert_eq!(received.map(|(_, route)| route), Some(through));
        let mut request = [0; 20];
        request[1] = 1;
        request[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
        let to = self.b.plane.peers_report()[0].path.expect("it was set");
        self.b.plane.send(to, &request, false);
        let told = self.a.upcall("the check is told", |upcall| match upcall {
            Upcall::Stun { route, bytes } => Some((*route, bytes.clone())),
            _ => None,
        });
        assert_eq!(told, (through, request.to_vec()));
    }
}

/// Passes frames on until the socket is shut down: from the link to the peer of the channel,
/// and back.
fn relay(
    outside: UdpSocket,
    receive: impl Fn(&mut [u8]) -> io::Result<usize> + Send + 'static,
    answer: impl Fn(&[u8]) + Send + 'static,
    peer: SocketAddr,
) {
    let out = outside.try_clone().expect("a descriptor is left");
    thread::spawn(move || {
        let mut buffer = vec![0; 70_000];
        while let Ok(length @ 1..) = receive(&mut buffer) {
            let Some((CHANNEL, payload)) = channel::decode(&buffer[..length]) else { continue };
            out.send_to(payload, peer).expect("loopback takes it");
        }
    });
    thread::spawn(move || {
        let mut buffer = vec![0; 70_000];
        while let Ok(length) = outside.recv(&mut buffer) {
            answer(&channel::encode(CHANNEL, &buffer[..length]).expect("it fits"));
        }
    });
}

#[test]
fn a_relay_by_udp_carries_packets_and_checks() {
    let server = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let link = RelayLink::Udp(server.local_addr().expect("bound"));
    let mut relayed = Relayed::new(link);
    let (client, peer) = (relayed.a.address(), relayed.b.address());
    let outside = relayed.outside.try_clone().expect("a descriptor is left");
    let back = server.try_clone().expect("a descriptor is left");
    let answer = move |frame: &[u8]| {
        back.send_to(frame, client).expect("loopback takes it");
    };
    relay(outside, move |buffer| server.recv(buffer), answer, peer);
    relayed.exchange();
    // Who is no relay's server is not heard, whatever the frame says.
    let before = relayed.a.dropped(DropReason::Junk);
    let frame = channel::encode(CHANNEL, &[0; 32]).expect("it fits");
    relayed.outside.send_to(&frame, client).expect("loopback takes it");
    until("it is junk", || (relayed.a.dropped(DropReason::Junk) > before).then_some(()));
}

#[test]
fn a_relay_by_a_stream_carries_packets_checks_and_its_own_messages() {
    use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("a socket pair");
    let mut relayed = Relayed::new(RelayLink::Stream(ours));
    let peer = relayed.b.address();
    let outside = relayed.outside.try_clone().expect("a descriptor is left");
    let theirs = Arc::new(theirs);
    let (inward, outward) = (Arc::clone(&theirs), Arc::clone(&theirs));
    let receive = move |buffer: &mut [u8]| {
        Ok(recv(&*outward, buffer, rustix::net::RecvFlags::empty()).map(|(length, _)| length)?)
    };
    let answer = move |frame: &[u8]| {
        send(&*inward, frame, SendFlags::NOSIGNAL).expect("it is open");
    };
    relay(outside, receive, answer, peer);
    relayed.exchange();
    let mut message = [0; 20];
    message[..2].copy_from_slice(&[0x01, 0x04]);
    message[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
    send(&*theirs, &message, SendFlags::NOSIGNAL).expect("it is open");
    let told = relayed.a.upcall("the server's message is told", |upcall| match upcall {
        Upcall::Relay { id, bytes } => Some((*id, bytes.clone())),
        _ => None,
    });
    assert_eq!(told, (3, message.to_vec()));
}

#[test]
fn a_further_socket_is_an_end_like_the_others_while_it_is_there() {
    let (a, mut b) = pair();
    let further = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let at = further.local_addr().expect("bound");
    a.plane.set_sockets(vec![(Via::Extra(9), further)], &[]).expect("the kernel takes it");
    assert!(a.plane.set_path(&b.key(), Some(Route { via: Via::Extra(9), remote: b.address() })));
    for (from, to) in [(&a, &b), (&b, &a)] {
        let packet = between(from, to, b"from another port");
        from.send(&packet);
        assert_eq!(to.receive(), packet);
    }
    let from = b.upcall("the source is told", |upcall| match upcall {
        Upcall::SourceChanged { from, .. } => Some(*from),
        _ => None,
    });
    assert_eq!(from, Route::direct(at));
    let received = a.plane.peers_report()[0].last_received.map(|(_, route)| route.via);
    assert_eq!(received, Some(Via::Extra(9)));
    a.plane.set_sockets(vec![], &[]).expect("nothing to refuse");
    a.send(&between(&a, &b, b"nowhere"));
    until("it is counted", || (a.dropped(DropReason::NoChannel) == 1).then_some(()));
}

#[test]
fn dropping_it_ends_the_threads() {
    let (a, b) = pair();
    let packet = between(&a, &b, b"one");
    a.send(&packet);
    assert_eq!(b.receive(), packet);
    let (port, kernel) = (a.plane.port(), a.kernel);
    drop(a.plane);
    let mut buffer = [0; 64];
    assert_eq!(read(&kernel, &mut buffer), Ok(0), "the device is closed");
    Sockets::open(port).expect("the port is free again");
}
