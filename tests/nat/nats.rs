//! The lab's NATs do what their names say, seen by plain UDP sockets.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use zonemesh::lab::{
    namespace::Namespace,
    nat::{Kind, SHORT_LIFETIME},
    net::{Host, Lab, Site},
    world::isolated,
};

/// How long a packet may take through the lab. What has not come by then is taken for
/// dropped; a veth link takes microseconds.
const ARRIVAL: Duration = Duration::from_millis(300);

/// The port of the inner host.
const INNER: u16 = 5000;

/// A site and two public hosts that look at what comes from it.
struct Scene {
    lab: Lab,
    site: Site,
    inner: Host,
    sockets: [UdpSocket; 2],
    socket: UdpSocket,
}

impl Scene {
    fn new(kind: Kind) -> Self {
        let mut lab = Lab::new().expect("a core");
        let mut site = lab.site("site", kind, "192.168.1.0/24").expect("a site");
        let inner = site.host("inner").expect("a host");
        let sockets = ["left", "right"].map(|name| {
            let host = lab.public_host(name, 1).expect("a public host");
            bind(&host.namespace, host.ipv4(), 7000)
        });
        let socket = bind(&inner.namespace, inner.ipv4(), INNER);
        Self { lab, site, inner, sockets, socket }
    }

    /// The outer address that the inner socket has for public host `index`.
    fn mapping_to(&self, index: usize) -> SocketAddr {
        send(&self.socket, address(&self.sockets[index]));
        let from = received(&self.sockets[index]).expect("packets get out");
        assert_eq!(from.ip(), self.site.public());
        from
    }
}

#[test]
fn full_cone_lets_everybody_in_by_one_mapping() {
    isolated("nats::full_cone_lets_everybody_in_by_one_mapping", || {
        let scene = Scene::new(Kind::FullCone);
        let mapped = scene.mapping_to(0);
        send(&scene.sockets[1], mapped);
        assert_eq!(received(&scene.socket), Some(address(&scene.sockets[1])));
        assert_eq!(scene.mapping_to(1), mapped);
    });
}

#[test]
fn full_cone_turns_a_packet_round_for_its_own_lan() {
    isolated("nats::full_cone_turns_a_packet_round_for_its_own_lan", || {
        let mut scene = Scene::new(Kind::FullCone);
        let mapped = scene.mapping_to(0);
        let second = scene.site.host("second").expect("a host");
        let second = bind(&second.namespace, second.ipv4(), 5001);
        let before = scene.lab.traffic().expect("counted").total();
        send(&second, mapped);
        let from = received(&scene.socket).expect("the packet comes round");
        assert_eq!(from, SocketAddr::new(scene.site.public(), 5001));
        send(&scene.socket, from);
        assert_eq!(received(&second), Some(mapped));
        assert_eq!(scene.lab.traffic().expect("counted").total(), before);
        let (a, b) = (address(&scene.socket).ip(), address(&second).ip());
        assert_eq!(scene.site.traffic().expect("counted").between(a, b).packets, 2, "hairpins");
    });
}

#[test]
fn address_restricted_lets_in_whom_it_wrote_to_from_any_port() {
    isolated("nats::address_restricted_lets_in_whom_it_wrote_to_from_any_port", || {
        let scene = Scene::new(Kind::AddressRestricted);
        let mapped = scene.mapping_to(0);
        send(&scene.sockets[1], mapped);
        assert_eq!(received(&scene.socket), None, "not written to yet");
        let left = scene.sockets[0].local_addr().expect("bound").ip();
        let other = bind(&Namespace::named("left"), left, 7001);
        send(&other, mapped);
        assert_eq!(received(&scene.socket), Some(address(&other)));
        assert_eq!(scene.mapping_to(1), mapped);
    });
}

#[test]
fn port_restricted_lets_in_only_the_port_it_wrote_to() {
    isolated("nats::port_restricted_lets_in_only_the_port_it_wrote_to", || {
        let scene = Scene::new(Kind::PortRestricted);
        let mapped = scene.mapping_to(0);
        let left = scene.sockets[0].local_addr().expect("bound").ip();
        let other = bind(&Namespace::named("left"), left, 7001);
        send(&other, mapped);
        send(&scene.sockets[1], mapped);
        assert_eq!(received(&scene.socket), None, "neither was written to");
        send(&scene.sockets[0], mapped);
        assert_eq!(received(&scene.socket), Some(address(&scene.sockets[0])));
        // The packet that came too early must not have spoilt the mapping.
        assert_eq!(scene.mapping_to(1), mapped);
    });
}

#[test]
fn open_input_spoils_the_mapping_for_who_came_too_early() {
    isolated("nats::open_input_spoils_the_mapping_for_who_came_too_early", || {
        let scene = Scene::new(Kind::OpenInput);
        let mapped = scene.mapping_to(0);
        send(&scene.sockets[1], mapped);
        assert_eq!(received(&scene.socket), None, "not written to yet");
        assert_ne!(scene.mapping_to(1), mapped);
    });
}

#[test]
fn symmetric_random_maps_each_destination_to_its_own_port() {
    isolated("nats::symmetric_random_maps_each_destination_to_its_own_port", || {
        let scene = Scene::new(Kind::SymmetricRandom);
        let (first, second) = (scene.mapping_to(0), scene.mapping_to(1));
        assert_ne!(first, second);
        send(&scene.sockets[1], first);
        assert_eq!(received(&scene.socket), None, "that mapping is the other's");
        send(&scene.sockets[0], first);
        assert_eq!(received(&scene.socket), Some(address(&scene.sockets[0])));
    });
}

#[test]
fn symmetric_sequential_counts_its_ports_up() {
    isolated("nats::symmetric_sequential_counts_its_ports_up", || {
        let scene = Scene::new(Kind::SymmetricSequential);
        let (first, second) = (scene.mapping_to(0), scene.mapping_to(1));
        assert_eq!(second.port(), first.port() + 1);
        assert_eq!(scene.mapping_to(0), first, "a mapping stays");
    });
}

#[test]
fn symmetric_by_twos_counts_every_other_port() {
    isolated("nats::symmetric_by_twos_counts_every_other_port", || {
        let scene = Scene::new(Kind::SymmetricByTwos);
        let (first, second) = (scene.mapping_to(0), scene.mapping_to(1));
        assert_eq!(second.port(), first.port() + 2);
    });
}

/// The one thing here that takes its time: the kernel's clock cannot be set.
#[test]
fn short_lived_forgets_what_is_not_used() {
    isolated("nats::short_lived_forgets_what_is_not_used", || {
        let lifetime = Duration::from_secs(SHORT_LIFETIME.into());
        let second = Duration::from_secs(1);
        let scene = Scene::new(Kind::ShortLived);
        let mapped = scene.mapping_to(0);
        for idle in [lifetime - 2 * second, lifetime + second] {
            thread::sleep(idle);
            send(&scene.sockets[0], mapped);
            // The first answer, which comes in time, keeps the mapping once more.
            let from = (idle < lifetime).then(|| address(&scene.sockets[0]));
            assert_eq!(received(&scene.socket), from, "after {idle:?}");
        }
    });
}

#[test]
fn udp_blocked_lets_out_dns_and_tcp() {
    isolated("nats::udp_blocked_lets_out_dns_and_tcp", || {
        let scene = Scene::new(Kind::UdpBlocked);
        send(&scene.socket, address(&scene.sockets[0]));
        assert_eq!(received(&scene.sockets[0]), None, "UDP is blocked");
        let left = address(&scene.sockets[0]).ip();
        let dns = bind(&Namespace::named("left"), left, 53);
        send(&scene.socket, address(&dns));
        let from = received(&dns).expect("DNS gets out");
        send(&dns, from);
        assert_eq!(received(&scene.socket), Some(address(&dns)));
        assert!(connects(&scene.inner, left, 7000));
    });
}

#[test]
fn tcp_443_only_lets_out_nothing_else() {
    isolated("nats::tcp_443_only_lets_out_nothing_else", || {
        let scene = Scene::new(Kind::Tcp443Only);
        let left = address(&scene.sockets[0]).ip();
        for port in [53, 443] {
            let server = bind(&Namespace::named("left"), left, port);
            send(&scene.socket, address(&server));
            assert_eq!(received(&server), None, "UDP to port {port} is blocked");
        }
        assert!(connects(&scene.inner, left, 443));
        assert!(!connects(&scene.inner, left, 7000));
        let ping = ["-c", "1", "-W", "0.3", &left.to_string()];
        assert!(scene.inner.namespace.run("ping", &ping).is_err());
    });
}

#[test]
fn ipv4_firewall_lets_in_only_answers() {
    isolated("nats::ipv4_firewall_lets_in_only_answers", || {
        let mut lab = Lab::new().expect("a core");
        let mut site = lab.site("site", Kind::Ipv4Firewall, "198.19.1.0/24").expect("a site");
        let inner = site.host("inner").expect("a host");
        let public = lab.public_host("public", 1).expect("a public host");
        let server = bind(&public.namespace, public.ipv4(), 7000);
        let socket = bind(&inner.namespace, inner.ipv4(), INNER);
        assert_lets_in_only_answers(&socket, &server);
    });
}

#[test]
fn host_moves_to_another_lan() {
    isolated("nats::host_moves_to_another_lan", || {
        let mut scene = Scene::new(Kind::PortRestricted);
        assert_eq!(scene.mapping_to(0).ip(), scene.site.public());
        let mut other =
            scene.lab.site("other", Kind::PortRestricted, "192.168.2.0/24").expect("a site");
        // The address that it would have had is taken.
        other.host("neighbour").expect("a host");
        other.take_host(&scene.site, &mut scene.inner).expect("it moves");
        assert_eq!(scene.inner.addresses, ["192.168.2.11".parse::<IpAddr>().expect("one")]);
        let socket = bind(&scene.inner.namespace, scene.inner.ipv4(), INNER);
        send(&socket, address(&scene.sockets[0]));
        let from = received(&scene.sockets[0]).expect("packets get out");
        assert_eq!(from.ip(), other.public());
        send(&scene.sockets[0], from);
        assert_eq!(received(&socket), Some(address(&scene.sockets[0])));
        // And back, where its place is still free for others.
        scene.site.host("newcomer").expect("a host");
        scene.site.take_host(&other, &mut scene.inner).expect("it moves back");
        let socket = bind(&scene.inner.namespace, scene.inner.ipv4(), INNER + 1);
        send(&socket, address(&scene.sockets[0]));
        let from = received(&scene.sockets[0]).expect("packets get out");
        assert_eq!(from.ip(), scene.site.public());
    });
}

#[test]
fn restarted_nat_has_another_address_and_no_mapping() {
    isolated("nats::restarted_nat_has_another_address_and_no_mapping", || {
        let mut scene = Scene::new(Kind::PortRestricted);
        let before = scene.mapping_to(0);
        let new = scene.site.restart_nat().expect("it restarts");
        assert_ne!(before.ip(), IpAddr::from(new));
        send(&scene.sockets[0], before);
        send(&scene.sockets[0], SocketAddr::new(new.into(), before.port()));
        assert_eq!(received(&scene.socket), None, "the mapping is lost");
        assert_eq!(scene.mapping_to(0).ip(), IpAddr::from(new));
    });
}

#[test]
fn customers_of_a_carrier_share_its_address() {
    isolated("nats::customers_of_a_carrier_share_its_address", || {
        let mut lab = Lab::new().expect("a core");
        let mut carrier =
            lab.site("carrier", Kind::PortRestricted, "100.64.0.0/24").expect("a site");
        let public = lab.public_host("public", 1).expect("a public host");
        let server = bind(&public.namespace, public.ipv4(), 7000);
        for (router, name) in [("home-a", "a"), ("home-b", "b")] {
            let mut home =
                carrier.customer(router, Kind::PortRestricted, "192.168.1.0/24").expect("a home");
            let host = home.host(name).expect("a host");
            let socket = bind(&host.namespace, host.ipv4(), INNER);
            send(&socket, address(&server));
            let from = received(&server).expect("packets get out");
            assert_eq!(from.ip(), carrier.public());
            send(&server, from);
            assert_eq!(received(&socket), Some(address(&server)));
        }
    });
}

#[test]
fn ipv6_firewall_lets_in_only_answers() {
    isolated("nats::ipv6_firewall_lets_in_only_answers", || {
        let mut lab = Lab::new().expect("a core");
        let mut site = lab.site("site", Kind::Ipv6Firewall, "2001:2:1::/64").expect("a site");
        let inner = site.host("inner").expect("a host");
        let public = lab.public_host("public", 1).expect("a public host");
        let server = bind(&public.namespace, public.ipv6(), 7000);
        let socket = bind(&inner.namespace, inner.ipv6(), INNER);
        assert_lets_in_only_answers(&socket, &server);
    });
}

#[test]
fn hosts_of_one_lan_talk_past_the_core_which_counts_the_others() {
    isolated("nats::hosts_of_one_lan_talk_past_the_core_which_counts_the_others", || {
        let mut scene = Scene::new(Kind::PortRestricted);
        let second = scene.site.host("second").expect("a host");
        let second = bind(&second.namespace, second.ipv4(), 5001);
        send(&scene.socket, address(&second));
        assert_eq!(received(&second), Some(SocketAddr::new(scene.inner.ipv4(), INNER)));
        assert_eq!(scene.lab.traffic().expect("counted").total().packets, 0);
        assert_eq!(scene.site.traffic().expect("counted").total().packets, 0);
        let mapped = scene.mapping_to(0);
        send(&scene.sockets[0], mapped);
        received(&scene.socket).expect("an answer gets in");
        let traffic = scene.lab.traffic().expect("counted");
        let left = address(&scene.sockets[0]).ip();
        assert_eq!(traffic.sent(mapped.ip(), left).packets, 1);
        assert_eq!(traffic.between(mapped.ip(), left).packets, 2);
        assert_eq!(traffic.total().packets, 2);
    });
}

/// What stands between the two translates nothing, and lets in only answers.
fn assert_lets_in_only_answers(inner: &UdpSocket, outer: &UdpSocket) {
    send(outer, address(inner));
    assert_eq!(received(inner), None, "unsolicited");
    send(inner, address(outer));
    assert_eq!(received(outer), Some(address(inner)), "not translated");
    send(outer, address(inner));
    assert_eq!(received(inner), Some(address(outer)));
}

/// Whether a TCP connection from this host to a port of the left public host comes about.
fn connects(from: &Host, left: IpAddr, port: u16) -> bool {
    let server = SocketAddr::new(left, port);
    let listener = Namespace::named("left").enter(|| TcpListener::bind(server));
    let _listener = listener.expect("the namespace is there").expect("the port is free");
    let connect = || TcpStream::connect_timeout(&server, ARRIVAL).is_ok();
    from.namespace.enter(connect).expect("the namespace is there")
}

pub(crate) fn bind(namespace: &Namespace, ip: IpAddr, port: u16) -> UdpSocket {
    let socket = namespace
        .enter(|| UdpSocket::bind((ip, port)))
        .expect("the namespace is there")
        .expect("the port is free");
    socket.set_read_timeout(Some(ARRIVAL)).expect("it is not zero");
    socket
}

pub(crate) fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("it is bound")
}

pub(crate) fn send(socket: &UdpSocket, to: SocketAddr) {
    socket.send_to(b"probe", to).expect("a packet leaves");
}

/// Where the next packet comes from; none where nothing comes.
pub(crate) fn received(socket: &UdpSocket) -> Option<SocketAddr> {
    match socket.recv_from(&mut [0; 64]) {
        Ok((_, from)) => Some(from),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(error) => panic!("cannot receive: {error}"),
    }
}
