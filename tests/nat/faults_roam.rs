//! Nodes whose place in the network changes under them: a NAT that comes back with
//! another address, a host that is carried to another site, a NAT that forgets early.

use std::{
    thread,
    time::{Duration, Instant},
};

use zonemesh::lab::{nat::Kind, net::Site, world::isolated};

use crate::{
    pair::Pair,
    stage::{JOIN_LIMIT, Stage},
};

/// From a change to traffic by any path.
const TRAFFIC_LIMIT: Duration = Duration::from_secs(5);

/// From a change to a direct path.
const DIRECT_LIMIT: Duration = Duration::from_secs(15);

/// Longer than a NAT that forgets early remembers, and less than it takes to measure that.
const PAUSE: Duration = Duration::from_secs(40);

/// Four times as long as such a NAT remembers, and long enough for the peer to have given up.
const SLEEP: Duration = Duration::from_secs(60);

/// Long enough for a peer to count as idle: it gets fewer keepalives than such a NAT asks
/// for.
const IDLE: Duration = Duration::from_secs(100);

#[test]
fn nat_that_restarts_with_another_address_costs_seconds() {
    isolated("faults_roam::nat_that_restarts_with_another_address_costs_seconds", || {
        let mut pair = pair([Kind::PortRestricted, Kind::PortRestricted]);
        let start = Instant::now();
        restart_nat(&mut pair, 0);
        is_back(&mut pair, start);
        pair.finish();
    });
}

#[test]
fn both_nats_restart_at_once() {
    isolated("faults_roam::both_nats_restart_at_once", || {
        let mut pair = pair([Kind::PortRestricted, Kind::PortRestricted]);
        let start = Instant::now();
        restart_nat(&mut pair, 0);
        restart_nat(&mut pair, 1);
        is_back(&mut pair, start);
        pair.finish();
    });
}

#[test]
fn host_that_moves_to_another_site_is_back_in_seconds() {
    isolated("faults_roam::host_that_moves_to_another_site_is_back_in_seconds", || {
        let mut pair = pair([Kind::PortRestricted, Kind::PortRestricted]);
        let new = new_site(&mut pair, 0);
        let start = Instant::now();
        move_host(&mut pair, 0, new);
        is_back(&mut pair, start);
        pair.finish();
    });
}

#[test]
fn node_that_slept_until_the_nats_forgot_it_is_back_in_seconds() {
    isolated("faults_roam::node_that_slept_until_the_nats_forgot_it_is_back_in_seconds", || {
        let mut pair = pair([Kind::ShortLived, Kind::ShortLived]);
        pair.nodes[0].set_asleep(true).expect("it runs");
        thread::sleep(SLEEP);
        let start = Instant::now();
        pair.nodes[0].set_asleep(false).expect("it runs");
        is_back(&mut pair, start);
        pair.finish();
    });
}

#[test]
fn both_hosts_move_at_once() {
    isolated("faults_roam::both_hosts_move_at_once", || {
        let mut pair = pair([Kind::PortRestricted, Kind::PortRestricted]);
        let new = [0, 1].map(|index| new_site(&mut pair, index));
        let start = Instant::now();
        for (index, site) in new.into_iter().enumerate() {
            move_host(&mut pair, index, site);
        }
        is_back(&mut pair, start);
        pair.finish();
    });
}

/// What has closed in a pause, or after a long time, opens again.
#[test]
fn path_through_nats_that_forget_early_opens_again() {
    isolated("faults_roam::path_through_nats_that_forget_early_opens_again", || {
        let mut pair = pair([Kind::ShortLived, Kind::ShortLived]);
        for silence in [PAUSE, IDLE] {
            thread::sleep(silence);
            is_back(&mut pair, Instant::now());
        }
        pair.finish();
    });
}

/// Two nodes with a direct path, and a relay beside it.
fn pair(kinds: [Kind; 2]) -> Pair {
    Pair::direct(Stage::with_relay(), kinds)
}

fn restart_nat(pair: &mut Pair, index: usize) {
    let place = &mut pair.places[index];
    let new = place.site.as_mut().expect("it is a site").restart_nat().expect("it restarts");
    place.public = vec![new.into()];
}

/// A site that a node's host may be carried to.
fn new_site(pair: &mut Pair, index: usize) -> Site {
    let name = ["new-a", "new-b"][index];
    let lan = ["192.168.11.0/24", "192.168.12.0/24"][index];
    let site = pair.stage.setup.lab.site(name, Kind::PortRestricted, lan);
    site.expect("a site can be built")
}

/// Carries a node's host to a new site.
fn move_host(pair: &mut Pair, index: usize, mut new: Site) {
    let place = &mut pair.places[index];
    let old = place.site.as_ref().expect("it is a site");
    new.take_host(old, &mut place.host).expect("it moves");
    place.public = vec![new.public()];
    place.site = Some(new);
}

/// Traffic is back both ways in time, and so is a direct path.
fn is_back(pair: &mut Pair, start: Instant) {
    let overlays = pair.nodes.each_ref().map(|node| node.overlay());
    for (node, overlay) in pair.nodes.iter_mut().zip([overlays[1], overlays[0]]) {
        node.wait_for_reply(overlay, JOIN_LIMIT).expect("traffic is back");
    }
    let traffic = start.elapsed();
    assert!(traffic < TRAFFIC_LIMIT, "no traffic for {traffic:?}");
    pair.reach("direct", DIRECT_LIMIT.saturating_sub(start.elapsed()));
    println!("traffic after {traffic:?}, direct after {:?}", start.elapsed());
    pair.assert_direct();
}
