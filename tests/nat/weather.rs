//! What goes wrong at the lab's core goes wrong as its names say, seen by plain UDP
//! sockets, and stops.

use std::{iter, net::UdpSocket};

use quinn_udp::{Transmit, UdpSocketState};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use zonemesh::lab::{
    net::{Host, Lab},
    weather::Fault,
    world::isolated,
};

use crate::nats::{address, bind, received, send};

/// How many packets are sent where some are to be lost.
const MANY: usize = 1000;

/// Two public hosts, each with a socket.
struct Scene {
    lab: Lab,
    hosts: [Host; 2],
    sockets: [UdpSocket; 2],
}

impl Scene {
    fn new() -> Self {
        let mut lab = Lab::new().expect("a core");
        let hosts = ["left", "right"].map(|name| lab.public_host(name, 1).expect("a host"));
        let sockets = hosts.each_ref().map(|host| bind(&host.namespace, host.ipv4(), 7000));
        Self { lab, hosts, sockets }
    }

    /// Whether a packet from one of the two arrives at the other.
    fn arrives(&self, from: usize) -> bool {
        send(&self.sockets[from], address(&self.sockets[1 - from]));
        received(&self.sockets[1 - from]).is_some()
    }

    /// Whether a packet of these bytes, and so many zeros, arrives on the right.
    fn arrives_with(&self, start: &[u8], length: usize) -> bool {
        let mut packet = start.to_vec();
        packet.resize(length, 0);
        let [left, right] = &self.sockets;
        left.send_to(&packet, address(right)).expect("a packet leaves");
        received(right).is_some()
    }

    /// All is well again once a fault has ended, and `dropped` packets were in its way.
    fn ends(&mut self, fault: &Fault, dropped: u64) {
        self.lab.end(fault).expect("it ends");
        assert!(self.arrives(0));
        assert!(self.arrives(1));
        assert_eq!(self.lab.dropped(fault).expect("counted"), dropped);
    }
}

#[test]
fn cut_is_both_ways_or_one() {
    isolated("weather::cut_is_both_ways_or_one", || {
        let mut scene = Scene::new();
        let [left, right] = scene.hosts.each_ref().map(Host::ipv4);
        let both = scene.lab.cut(left, right).expect("cut");
        assert!(!scene.arrives(0));
        assert!(!scene.arrives(1));
        assert_eq!(scene.lab.traffic().expect("counted").total().packets, 0, "none gets through");
        // The ends of the second fault and of the first do not depend on each other.
        let one = scene.lab.cut_one_way(left, right).expect("cut");
        scene.lab.end(&both).expect("it ends");
        assert!(!scene.arrives(0));
        assert!(scene.arrives(1));
        scene.ends(&one, 1);
        assert_eq!(scene.lab.dropped(&both).expect("counted"), 2);
    });
}

#[test]
fn cut_data_lets_checks_and_handshakes_pass() {
    isolated("weather::cut_data_lets_checks_and_handshakes_pass", || {
        let mut scene = Scene::new();
        let [left, right] = scene.hosts.each_ref().map(Host::ipv4);
        let fault = scene.lab.cut_data(left, right).expect("cut");
        assert!(!scene.arrives_with(&[4, 0, 0, 0], 32));
        for start in [[1, 0, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0], [0, 1, 0, 4]] {
            assert!(scene.arrives_with(&start, 148), "{start:?}");
        }
        scene.ends(&fault, 1);
    });
}

#[test]
fn host_that_is_cut_off_reaches_nobody() {
    isolated("weather::host_that_is_cut_off_reaches_nobody", || {
        let mut scene = Scene::new();
        let fault = scene.lab.cut_host(&scene.hosts[0]).expect("cut");
        assert!(!scene.arrives(0));
        assert!(!scene.arrives(1));
        scene.ends(&fault, 2);
    });
}

#[test]
fn packets_of_a_train_are_lost_one_by_one() {
    isolated("weather::packets_of_a_train_are_lost_one_by_one", || {
        /// As many as are sent as one train.
        const TRAIN: usize = 10;
        const SIZE: usize = 100;
        let mut scene = Scene::new();
        let [left, right] = scene.hosts.each_ref().map(Host::ipv4);
        let fault = scene.lab.lose(20, left, right).expect("lossy");
        let to = &scene.sockets[1];
        set_socket_recv_buffer_size_force(to, 4 << 20).expect("root may");
        let from = bind(&scene.hosts[0].namespace, left, 7001);
        let state = UdpSocketState::new((&from).into()).expect("it is a UDP socket");
        let train = Transmit {
            destination: address(to),
            ecn: None,
            contents: &[0; TRAIN * SIZE],
            segment_size: Some(SIZE),
            src_ip: None,
        };
        for _ in 0..MANY / TRAIN {
            state.try_send((&from).into(), &train).expect("a train leaves");
        }
        let arrived = iter::from_fn(|| received(to)).count() as u64;
        let dropped = scene.lab.dropped(&fault).expect("counted");
        assert_eq!(arrived + dropped, MANY as u64);
        // 20 % are 200; this is off by seven standard deviations.
        assert!((110..290).contains(&dropped), "{dropped}");
    });
}

#[test]
fn narrow_link_swallows_what_is_too_long() {
    isolated("weather::narrow_link_swallows_what_is_too_long", || {
        /// IP and UDP.
        const HEADERS: usize = 28;
        let mut scene = Scene::new();
        let ip = scene.hosts[0].ipv4();
        let fault = scene.lab.narrow(1400, ip).expect("narrow");
        assert!(scene.arrives_with(&[], 1400 - HEADERS));
        assert!(!scene.arrives_with(&[], 1401 - HEADERS));
        scene.ends(&fault, 1);
    });
}
