//! How long it takes from the start of the second node to the first reply in the
//! overlay. These tests have the machine to themselves.

use std::time::Duration;

use zonemesh::lab::{nat::Kind, world::isolated};

use crate::stage::{JOIN_LIMIT, LAN_A, LAN_B, Place, Stage, Zone, finish};

/// The promise: half of all joins are faster.
const PROMISED: Duration = Duration::from_secs(3);

/// How many joins are timed.
const JOINS: u8 = 5;

#[test]
fn port_restricted_joins_port_restricted_in_a_zone_of_bind() {
    isolated("timing::port_restricted_joins_port_restricted_in_a_zone_of_bind", || {
        join_behind(Zone::Bind, Kind::PortRestricted, Kind::PortRestricted);
    });
}

#[test]
fn port_restricted_joins_port_restricted_in_a_zone_of_knot() {
    isolated("timing::port_restricted_joins_port_restricted_in_a_zone_of_knot", || {
        join_behind(Zone::Knot, Kind::PortRestricted, Kind::PortRestricted);
    });
}

#[test]
fn symmetric_random_joins_full_cone() {
    isolated("timing::symmetric_random_joins_full_cone", || {
        join_behind(Zone::Bind, Kind::FullCone, Kind::SymmetricRandom);
    });
}

#[test]
fn symmetric_random_joins_address_restricted() {
    isolated("timing::symmetric_random_joins_address_restricted", || {
        join_behind(Zone::Bind, Kind::AddressRestricted, Kind::SymmetricRandom);
    });
}

#[test]
fn symmetric_random_joins_public() {
    isolated("timing::symmetric_random_joins_public", || {
        let mut stage = Stage::new(Zone::Bind);
        let a = stage.public("a");
        let b = stage.behind("b", Kind::SymmetricRandom, LAN_B);
        join(&stage, &a, &b);
    });
}

#[test]
fn neighbour_joins_on_the_lan() {
    isolated("timing::neighbour_joins_on_the_lan", || {
        let mut stage = Stage::new(Zone::Bind);
        let mut a = stage.behind("a", Kind::PortRestricted, LAN_A);
        let host = a.site.as_mut().expect("it is a site").host("b-host");
        let b = Place {
            host: host.expect("a host can be built"),
            public: a.public.clone(),
            site: None,
        };
        join(&stage, &a, &b);
    });
}

#[test]
fn home_behind_a_carrier_joins_port_restricted() {
    isolated("timing::home_behind_a_carrier_joins_port_restricted", || {
        let mut stage = Stage::new(Zone::Bind);
        let a = stage.behind("a", Kind::PortRestricted, LAN_A);
        let b = stage.behind_carrier("b", Kind::PortRestricted, Kind::PortRestricted);
        join(&stage, &a, &b);
    });
}

#[test]
fn ipv6_site_joins_through_firewalls() {
    isolated("timing::ipv6_site_joins_through_firewalls", || {
        let mut stage = Stage::new_ipv6(Zone::Bind);
        let a = stage.behind("a", Kind::Ipv6Firewall, "2001:2:a::/64");
        let b = stage.behind("b", Kind::Ipv6Firewall, "2001:2:b::/64");
        join(&stage, &a, &b);
    });
}

fn join_behind(zone: Zone, first: Kind, second: Kind) {
    let mut stage = Stage::new(zone);
    let a = stage.behind("a", first, LAN_A);
    let b = stage.behind("b", second, LAN_B);
    join(&stage, &a, &b);
}

/// One node after the other joins from the second place: each is new to the mesh, and
/// has a port of its own that the NAT does not know either.
fn join(stage: &Stage, first: &Place, second: &Place) {
    let a = stage.start_advertised("a", 1, &first.host);
    let mut times: Vec<Duration> = (2..2 + JOINS)
        .map(|number| {
            let mut b = stage.start(&format!("b{number}"), number, &second.host);
            let reply = b.wait_for_reply(a.overlay(), JOIN_LIMIT).expect("it joins");
            let time = reply - b.started();
            finish([b]);
            time
        })
        .collect();
    finish([a]);
    times.sort_unstable();
    println!("joins took {times:?}");
    assert!(times[times.len() / 2] < PROMISED, "too slow: {times:?}");
}
