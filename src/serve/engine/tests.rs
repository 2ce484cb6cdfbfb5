use std::{
    net::{Ipv4Addr, TcpStream, UdpSocket},
    path::Path,
};

use socket2::SockRef;
use zonemesh_punch::turn::server::{Forward, PeerAddr};

use super::*;
use crate::config::Config;

fn engine() -> Engine {
    let config = Config::parse(Path::new("zonemesh.toml"), "[serve]\nturn = false");
    let config = config.expect("a configuration").serve.expect("a [serve] section");
    let config = ServeConfig { listen: vec![(Ipv4Addr::LOCALHOST, 0).into()], ..config };
    let (_, inbox) = mpsc::channel();
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("a bell");
    Engine::open(&config, Addresses::default(), vec![], inbox, Arc::new(bell)).expect("sockets")
}

#[test]
fn what_a_client_sent_last_leaves_by_his_address_though_its_place_is_used_again() {
    let mut engine = engine();
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    receiver.set_read_timeout(Some(Duration::from_secs(10))).expect("a deadline");
    let peer = PeerAddr(receiver.local_addr().expect("an address"));
    let relay = RelayId { slot: 0, family: Family::V4 };
    let (his, another_s) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
    assert!(engine.open_relay(relay, (his, 0).into()));
    engine.forward(Forward::Peer { relay, peer }, b"last words");
    engine.close_relay(relay);
    assert!(engine.open_relay(relay, (another_s, 0).into()));
    engine.leave();
    let mut buffer = [0; 100];
    let (len, from) = receiver.recv_from(&mut buffer).expect("a datagram");
    assert_eq!((&buffer[..len], from.ip()), (&b"last words"[..], his.into()));
}

#[test]
fn who_cannot_be_accepted_for_want_of_files_waits_for_the_next_tick() {
    fn tokens(engine: &Engine, wait: Duration) -> Vec<Token> {
        let mut events = [MaybeUninit::uninit(); EVENTS];
        let wait = Timespec::try_from(wait).expect("a short time");
        let (ready, _) = epoll::wait(&engine.poller, &mut events, Some(&wait)).expect("events");
        ready.iter().map(|event| Token::of(event.data)).collect()
    }

    let mut engine = engine();
    let acceptor = SockRef::from(&engine.acceptors[0]).local_addr().expect("an address");
    let acceptor = acceptor.as_socket().expect("of IP");
    let _client = TcpStream::connect(acceptor).expect("a connection that waits");
    let (at_once, in_time) = (Duration::ZERO, Duration::from_secs(10));
    assert_eq!(tokens(&engine, in_time), [Token::Acceptor(0)]);
    engine.not_accepted(0, &io::Error::from_raw_os_error(libc::EMFILE));
    assert_eq!(tokens(&engine, at_once), []);
    engine.tick(Instant::now());
    assert_eq!(tokens(&engine, in_time), [Token::Acceptor(0)]);
    engine.accept(0, Instant::now());
    assert_eq!(engine.streams.len(), 1);
    assert_eq!(tokens(&engine, at_once), [], "nobody waits any more");
}
