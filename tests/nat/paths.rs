//! Which nodes reach each other directly, proven by counting packets at the core.

use std::time::Duration;

use zonemesh::lab::{member::find_peer, nat::Kind, world::isolated};

use crate::stage::{JOIN_LIMIT, LAN_A, LAN_B, Place, Stage, Zone, finish, reach_each_other};

/// How long two nodes are watched that must not reach each other: twice what others
/// take.
const MISS_LIMIT: Duration = Duration::from_secs(6);

#[test]
fn port_restricted_meets_port_restricted_in_a_zone_of_bind() {
    isolated("paths::port_restricted_meets_port_restricted_in_a_zone_of_bind", || {
        meet_behind(Zone::Bind, Kind::PortRestricted, Kind::PortRestricted);
    });
}

#[test]
fn port_restricted_meets_port_restricted_in_a_zone_of_knot() {
    isolated("paths::port_restricted_meets_port_restricted_in_a_zone_of_knot", || {
        meet_behind(Zone::Knot, Kind::PortRestricted, Kind::PortRestricted);
    });
}

#[test]
fn full_cone_meets_symmetric_random() {
    isolated("paths::full_cone_meets_symmetric_random", || {
        meet_behind(Zone::Bind, Kind::FullCone, Kind::SymmetricRandom);
    });
}

#[test]
fn symmetric_random_meets_full_cone() {
    isolated("paths::symmetric_random_meets_full_cone", || {
        meet_behind(Zone::Knot, Kind::SymmetricRandom, Kind::FullCone);
    });
}

#[test]
fn full_cone_meets_symmetric_sequential() {
    isolated("paths::full_cone_meets_symmetric_sequential", || {
        meet_behind(Zone::Knot, Kind::FullCone, Kind::SymmetricSequential);
    });
}

#[test]
fn address_restricted_meets_symmetric_random() {
    isolated("paths::address_restricted_meets_symmetric_random", || {
        meet_behind(Zone::Bind, Kind::AddressRestricted, Kind::SymmetricRandom);
    });
}

#[test]
fn symmetric_sequential_meets_address_restricted() {
    isolated("paths::symmetric_sequential_meets_address_restricted", || {
        meet_behind(Zone::Knot, Kind::SymmetricSequential, Kind::AddressRestricted);
    });
}

#[test]
fn public_meets_public() {
    isolated("paths::public_meets_public", || {
        let mut stage = Stage::new(Zone::Bind);
        let (a, b) = (stage.public("a"), stage.public("b"));
        meet(&stage, &a, &b);
    });
}

#[test]
fn public_meets_full_cone() {
    isolated("paths::public_meets_full_cone", || meet_public(Kind::FullCone));
}

#[test]
fn public_meets_address_restricted() {
    isolated("paths::public_meets_address_restricted", || meet_public(Kind::AddressRestricted));
}

#[test]
fn public_meets_port_restricted() {
    isolated("paths::public_meets_port_restricted", || meet_public(Kind::PortRestricted));
}

#[test]
fn public_meets_open_input() {
    isolated("paths::public_meets_open_input", || meet_public(Kind::OpenInput));
}

#[test]
fn public_meets_symmetric_random() {
    isolated("paths::public_meets_symmetric_random", || meet_public(Kind::SymmetricRandom));
}

#[test]
fn public_meets_symmetric_sequential() {
    isolated("paths::public_meets_symmetric_sequential", || meet_public(Kind::SymmetricSequential));
}

#[test]
fn hosts_of_one_lan_use_it_where_the_router_does_not_hairpin() {
    isolated("paths::hosts_of_one_lan_use_it_where_the_router_does_not_hairpin", || {
        meet_on_lan(Kind::PortRestricted);
    });
}

#[test]
fn hosts_of_one_lan_use_it_where_the_router_hairpins() {
    isolated("paths::hosts_of_one_lan_use_it_where_the_router_hairpins", || {
        meet_on_lan(Kind::FullCone);
    });
}

/// The zone is away from the start: neighbours find each other by mDNS.
#[test]
fn hosts_of_one_lan_join_without_the_zone() {
    isolated("paths::hosts_of_one_lan_join_without_the_zone", || {
        let mut stage = Stage::new(Zone::Bind);
        let mut place = stage.behind("a", Kind::PortRestricted, LAN_A);
        let second = place.site.as_mut().expect("it is a site").host("b-host");
        let second = second.expect("a host can be built");
        stage.setup.stop_zone_server();
        let a = stage.start("a", 1, &place.host);
        let mut b = stage.start("b", 2, &second);
        b.wait_for_reply(a.overlay(), JOIN_LIMIT).expect("they reach each other");
        stage.assert_settles_on_lan(&place, &mut b, &a);
        finish([a, b]);
    });
}

/// Both sites number their hosts alike: an address that is a neighbour's at one site
/// is the own one, or a stranger's, at the other.
#[test]
fn sites_with_the_same_lan_prefix_tell_neighbours_from_strangers() {
    isolated("paths::sites_with_the_same_lan_prefix_tell_neighbours_from_strangers", || {
        let mut stage = Stage::new(Zone::Bind);
        let mut left = stage.behind("left", Kind::PortRestricted, LAN_A);
        let right = stage.behind("right", Kind::PortRestricted, LAN_A);
        assert_eq!(left.host.ipv4(), right.host.ipv4());
        let neighbour = left.site.as_mut().expect("it is a site").host("neighbour");
        let neighbour = neighbour.expect("a host can be built");
        let mut a = stage.start_advertised("a", 1, &left.host);
        let mut n = stage.start_advertised("n", 2, &neighbour);
        let mut b = stage.start("b", 3, &right.host);
        reach_each_other(&mut [&mut a, &mut n, &mut b]);
        stage.assert_settles_on_lan(&left, &mut a, &n);
        stage.assert_direct((&a, &left), (&b, &right));
        stage.assert_direct((&n, &left), (&b, &right));
        finish([a, n, b]);
    });
}

#[test]
fn three_sites_make_a_full_mesh() {
    isolated("paths::three_sites_make_a_full_mesh", || {
        let mut stage = Stage::new(Zone::Knot);
        let places = [
            stage.behind("a", Kind::PortRestricted, LAN_A),
            stage.behind("b", Kind::PortRestricted, LAN_B),
            stage.behind("c", Kind::FullCone, "192.168.3.0/24"),
        ];
        let mut members: Vec<_> = ["a", "b", "c"]
            .iter()
            .zip(1..)
            .zip(&places)
            .map(|((name, number), place)| stage.start(name, number, &place.host))
            .collect();
        reach_each_other(&mut members.iter_mut().collect::<Vec<_>>());
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            stage.assert_direct((&members[from], &places[from]), (&members[to], &places[to]));
        }
        finish(members);
    });
}

#[test]
fn home_behind_a_carrier_meets_port_restricted() {
    isolated("paths::home_behind_a_carrier_meets_port_restricted", || {
        let mut stage = Stage::new(Zone::Bind);
        let a = stage.behind_carrier("a", Kind::PortRestricted, Kind::PortRestricted);
        let b = stage.behind("b", Kind::PortRestricted, LAN_B);
        meet(&stage, &a, &b);
    });
}

#[test]
fn homes_behind_two_carriers_meet() {
    isolated("paths::homes_behind_two_carriers_meet", || {
        let mut stage = Stage::new(Zone::Knot);
        let a = stage.behind_carrier("a", Kind::PortRestricted, Kind::PortRestricted);
        let b = stage.behind_carrier("b", Kind::PortRestricted, Kind::PortRestricted);
        meet(&stage, &a, &b);
    });
}

#[test]
fn ipv6_sites_meet_through_their_firewalls() {
    isolated("paths::ipv6_sites_meet_through_their_firewalls", || {
        let mut stage = Stage::new_ipv6(Zone::Bind);
        let a = stage.behind("a", Kind::Ipv6Firewall, "2001:2:a::/64");
        let b = stage.behind("b", Kind::Ipv6Firewall, "2001:2:b::/64");
        meet(&stage, &a, &b);
    });
}

/// Where the NAT gives every destination another port and the other side's lets in
/// only the port it wrote to, neither learns the port that would be let in. Such nodes
/// need a relay.
#[test]
fn port_restricted_and_symmetric_random_have_no_direct_path() {
    isolated("paths::port_restricted_and_symmetric_random_have_no_direct_path", || {
        miss(Kind::PortRestricted, Kind::SymmetricRandom);
    });
}

#[test]
fn symmetric_random_and_symmetric_random_have_no_direct_path() {
    isolated("paths::symmetric_random_and_symmetric_random_have_no_direct_path", || {
        miss(Kind::SymmetricRandom, Kind::SymmetricRandom);
    });
}

/// Two nodes know of each other and try, but nothing arrives; and both say so.
fn miss(first: Kind, second: Kind) {
    let mut stage = Stage::new(Zone::Bind);
    let left = stage.behind("a", first, LAN_A);
    let right = stage.behind("b", second, LAN_B);
    let a = stage.start_advertised("a", 1, &left.host);
    let mut b = stage.start("b", 2, &right.host);
    b.wait_for("its peer", JOIN_LIMIT, |status| find_peer(status, "a")).expect("found");
    let error = b.wait_for_reply(a.overlay(), MISS_LIMIT).expect_err("nothing gets through");
    assert!(error.to_string().contains("no reply"), "{error}");
    for (from, to) in [(&a, "b"), (&b, "a")] {
        assert_eq!(from.peer(to).expect("it knows its peer")["path"]["kind"], "none");
    }
    let tried = stage.setup.lab.traffic().expect("the core counts");
    assert!(tried.sent(left.public[0], right.public[0]).packets > 0, "{tried:?}");
    assert!(tried.sent(right.public[0], left.public[0]).packets > 0, "{tried:?}");
    finish([a, b]);
}

fn meet_behind(zone: Zone, first: Kind, second: Kind) {
    let mut stage = Stage::new(zone);
    let a = stage.behind("a", first, LAN_A);
    let b = stage.behind("b", second, LAN_B);
    meet(&stage, &a, &b);
}

fn meet_public(kind: Kind) {
    let mut stage = Stage::new(Zone::Bind);
    let a = stage.public("a");
    let b = stage.behind("b", kind, LAN_B);
    meet(&stage, &a, &b);
}

fn meet_on_lan(kind: Kind) {
    let mut stage = Stage::new(Zone::Knot);
    let mut place = stage.behind("a", kind, LAN_A);
    let second = place.site.as_mut().expect("it is a site").host("b-host");
    let second = second.expect("a host can be built");
    let a = stage.start_advertised("a", 1, &place.host);
    let mut b = stage.start("b", 2, &second);
    b.wait_for_reply(a.overlay(), JOIN_LIMIT).expect("they reach each other");
    stage.assert_settles_on_lan(&place, &mut b, &a);
    finish([a, b]);
}

/// A node at each place, one after the other: they reach each other directly.
fn meet(stage: &Stage, first: &Place, second: &Place) {
    let a = stage.start_advertised("a", 1, &first.host);
    let mut b = stage.start("b", 2, &second.host);
    b.wait_for_reply(a.overlay(), JOIN_LIMIT).expect("they reach each other");
    stage.assert_direct((&a, first), (&b, second));
    finish([a, b]);
}
