//! What established paths live through, and how fast they are back.

use std::{
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use zonemesh::lab::{
    member::{INTERFACE, Identity, Member},
    nat::Kind,
    world::isolated,
};

use crate::{
    stage::{JOIN_LIMIT, LAN_A, LAN_B, Stage, Zone, finish, reach_each_other},
    stream::Stream,
};

/// How long a NAT that restarts may cost a direct path.
const NAT_RESTART_LIMIT: Duration = Duration::from_secs(15);

/// How long a crash may cost a session.
const CRASH_LIMIT: Duration = Duration::from_secs(10);

/// How often a log is looked at.
const POLL: Duration = Duration::from_millis(50);

#[test]
fn zone_server_of_bind_may_go_and_come_back() {
    isolated("faults::zone_server_of_bind_may_go_and_come_back", || {
        zone_server_restarts(Zone::Bind);
    });
}

#[test]
fn zone_server_of_knot_may_go_and_come_back() {
    isolated("faults::zone_server_of_knot_may_go_and_come_back", || {
        zone_server_restarts(Zone::Knot);
    });
}

#[test]
fn nat_that_restarts_with_another_address_is_back_with_its_streams() {
    isolated("faults::nat_that_restarts_with_another_address_is_back_with_its_streams", || {
        let mut stage = Stage::new(Zone::Bind);
        let mut left = stage.behind("a", Kind::PortRestricted, LAN_A);
        let right = stage.behind("b", Kind::PortRestricted, LAN_B);
        let (mut a, b) = stage.joined(&left, &right);
        let mut stream = Stream::open(&a, &b);
        stream.exchange(JOIN_LIMIT);

        let start = Instant::now();
        let new = left.site.as_mut().expect("it is a site").restart_nat().expect("it restarts");
        left.public = vec![new.into()];
        a.wait_for_reply(b.overlay(), NAT_RESTART_LIMIT).expect("the path is back");
        stage.assert_direct((&a, &left), (&b, &right));
        stream.exchange(NAT_RESTART_LIMIT.saturating_sub(start.elapsed()));
        finish([a, b]);
    });
}

#[test]
fn host_that_gets_another_address_keeps_its_streams() {
    isolated("faults::host_that_gets_another_address_keeps_its_streams", || {
        let mut stage = Stage::new(Zone::Bind);
        let left = stage.behind("a", Kind::PortRestricted, LAN_A);
        let right = stage.behind("b", Kind::PortRestricted, LAN_B);
        let (mut a, b) = stage.joined(&left, &right);
        let mut stream = Stream::open(&a, &b);
        stream.exchange(JOIN_LIMIT);

        let renumber = "addr flush dev eth0 scope global
             addr add 192.168.1.77/24 dev eth0
             route add default via 192.168.1.1";
        left.host.namespace.ip(renumber).expect("the address is free");
        a.wait_for_reply(b.overlay(), NAT_RESTART_LIMIT).expect("the path is back");
        stream.exchange(NAT_RESTART_LIMIT);
        stage.assert_direct((&a, &left), (&b, &right));
        finish([a, b]);
    });
}

#[test]
fn node_that_is_killed_is_back_with_its_session() {
    isolated("faults::node_that_is_killed_is_back_with_its_session", || {
        let mut stage = Stage::new(Zone::Bind);
        let left = stage.behind("a", Kind::PortRestricted, LAN_A);
        let right = stage.behind("b", Kind::PortRestricted, LAN_B);
        let (mut a, mut b) = stage.joined(&left, &right);
        let key = a.status().expect("it answers")["node"]["public_key"].clone();

        a.kill();
        a.restart().expect("it starts again");
        // Both ways: the one that stayed must also leave its old session.
        a.wait_for_reply(b.overlay(), CRASH_LIMIT).expect("the session is back");
        let left_of_limit = CRASH_LIMIT.saturating_sub(a.started().elapsed());
        b.wait_for_reply(a.overlay(), left_of_limit).expect("the session is back");
        assert_eq!(a.status().expect("it answers")["node"]["public_key"], key, "the key stays");
        stage.assert_direct((&a, &left), (&b, &right));
        finish([a, b]);
    });
}

#[test]
fn two_claims_to_a_route_have_one_winner_and_are_told() {
    isolated("faults::two_claims_to_a_route_have_one_winner_and_are_told", || {
        const CLAIMED: &str = "10.42.99.0/24";
        let mut stage = Stage::new(Zone::Bind);
        let places = ["a", "b", "c"].map(|name| stage.public(name));
        let claims = |name: &str, number: u8| {
            let routes = vec![format!("10.42.{number}.0/24"), CLAIMED.to_owned()];
            Identity { routes: Some(routes), ..Identity::new(name, number) }
        };
        let mut a = stage.start_as(claims("a", 1), &places[0].host);
        let mut b = stage.start_as(claims("b", 2), &places[1].host);
        let mut c = stage.start("c", 3, &places[2].host);
        reach_each_other(&mut [&mut a, &mut b, &mut c]);
        let key = |member: &Member| {
            let status = member.status().expect("it answers");
            status["node"]["public_key"].as_str().expect("a key").to_owned()
        };
        for (member, other) in [(&a, key(&b)), (&b, key(&a))] {
            wait_until_told(member, |line| line.contains(CLAIMED) && line.contains(&other));
        }
        let has = |member: &Member, peer: &Member| {
            let peer = member.peer(peer.name()).expect("it knows its peer");
            let routes = peer["routes"].as_array().expect("a list");
            routes.iter().any(|route| route == CLAIMED)
        };
        assert!(has(&c, &a) != has(&c, &b), "the third sees one winner");
        let (winner, loser) = if has(&c, &a) { (&a, &b) } else { (&b, &a) };
        assert!(!has(winner, loser), "the winner does not send its own away");
        // Nor does the loser: what stands behind it stays reachable for itself.
        assert!(!has(loser, winner), "the loser keeps its own for itself");
        let told = format!("of {} is not used: {} claims it too", key(loser), key(winner));
        for member in [loser, &c] {
            wait_until_told(member, |line| line.contains(CLAIMED) && line.contains(&told));
        }
        finish([a, b, c]);
    });
}

#[test]
fn device_that_is_taken_is_told() {
    isolated("faults::device_that_is_taken_is_told", || {
        let mut stage = Stage::new(Zone::Bind);
        let place = stage.public("a");
        let a = stage.start_advertised("a", 1, &place.host);
        let mut second = stage.start("second", 2, &place.host);
        let status = second.wait_for_end(JOIN_LIMIT).expect("it cannot go on");
        assert_eq!(status.code(), Some(1), "{}", second.log());
        assert!(second.log().contains(INTERFACE), "{}", second.log());
        // The first one is none the worse for it.
        assert!(a.status().is_ok());
        finish([a]);
    });
}

#[test]
fn port_that_is_taken_is_told() {
    isolated("faults::port_that_is_taken_is_told", || {
        let mut stage = Stage::new(Zone::Bind);
        let place = stage.public("a");
        let identity = Identity::new("a", 1);
        let port = identity.port();
        let taken = place.host.namespace.enter(|| UdpSocket::bind(("0.0.0.0", port)));
        let _taken = taken.expect("the namespace is there").expect("the port is free");
        let mut a = stage.start_as(identity, &place.host);
        let status = a.wait_for_end(JOIN_LIMIT).expect("it cannot go on");
        assert_eq!(status.code(), Some(1), "{}", a.log());
        assert!(a.log().contains(&port.to_string()), "{}", a.log());
    });
}

/// A zone that does not know the key: told in the log with the reason, tried again,
/// and no harm to what is up. Once the key is right, the node advertises itself.
#[test]
fn zone_that_refuses_the_key_is_told_and_tried_again() {
    isolated("faults::zone_that_refuses_the_key_is_told_and_tried_again", || {
        let mut stage = Stage::new(Zone::Bind);
        let place = stage.public("a");
        stage.setup.services.tsig_secret = "d3JvbmcgYW5kIGxvbmcgZW5vdWdoIHRvIHBhc3M=".to_owned();
        let mut a = stage.start("a", 1, &place.host);
        wait_until_told(&a, |line| line.contains("BADSIG") || line.contains("BADKEY"));
        assert!(a.status().is_ok());
        assert!(stage.setup.adverts().is_empty());

        // The server now starts with the key that the node has.
        stage.setup.stop_zone_server();
        stage.setup.start_zone_server().expect("it starts again");
        a.wait_for("its advert in the zone", JOIN_LIMIT * 2, |_| {
            (!stage.setup.adverts().is_empty()).then_some(())
        })
        .expect("it tries again");
        finish([a]);
    });
}

/// Established paths do not notice that the zone's server is away, and a node that
/// comes later finds the others once it is back.
fn zone_server_restarts(zone: Zone) {
    let mut stage = Stage::new(zone);
    let left = stage.behind("a", Kind::PortRestricted, LAN_A);
    let right = stage.behind("b", Kind::PortRestricted, LAN_B);
    let late = stage.public("c");
    let (a, b) = stage.joined(&left, &right);

    stage.setup.stop_zone_server();
    assert!(stage.setup.adverts().is_empty(), "the server is away");
    // 200 pings take ten seconds: time for the nodes to miss it several times.
    let pings = a.ping(b.overlay(), 200).expect("ping runs");
    assert!(pings.all_answered(), "{pings:?}");
    stage.assert_direct((&a, &left), (&b, &right));

    stage.setup.start_zone_server().expect("it starts again");
    let mut c = stage.start("c", 3, &late.host);
    c.wait_for_reply(a.overlay(), JOIN_LIMIT).expect("a late node joins");
    stage.assert_direct((&a, &left), (&b, &right));
    finish([a, b, c]);
}

/// Waits for a warning in a node's log.
fn wait_until_told(member: &Member, what: impl Fn(&str) -> bool) {
    let start = Instant::now();
    while !member.log().lines().any(|line| line.contains("WARN") && what(line)) {
        assert!(start.elapsed() < JOIN_LIMIT, "{} is not told:\n{}", member.name(), member.log());
        thread::sleep(POLL);
    }
}
