//! Relays of all sorts carry what has no direct path, and others take over when one dies.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use zonemesh::lab::{
    nat::Kind,
    relay_server::{Over, RelayKind},
    world::isolated,
};

use crate::{
    pair::Pair,
    stage::{JOIN_LIMIT, Stage, Zone},
};

/// Packets of a flow in each second, each way.
const RATE: u32 = 1000;

/// How long a flow runs.
const FLOW: Duration = Duration::from_secs(3);

/// From the end of a relay to traffic by another one.
const RELAY_LIMIT: Duration = Duration::from_secs(15);

#[test]
fn coturn_relays_over_udp() {
    isolated("faults_relay::coturn_relays_over_udp", || relays(RelayKind::Coturn, Over::Udp));
}

#[test]
fn coturn_relays_over_tcp() {
    isolated("faults_relay::coturn_relays_over_tcp", || relays(RelayKind::Coturn, Over::Tcp));
}

#[test]
fn coturn_relays_over_tls() {
    isolated("faults_relay::coturn_relays_over_tls", || relays(RelayKind::Coturn, Over::Tls));
}

#[test]
fn zonemesh_relays_over_udp() {
    isolated("faults_relay::zonemesh_relays_over_udp", || relays(RelayKind::Zonemesh, Over::Udp));
}

#[test]
fn zonemesh_relays_over_tcp() {
    isolated("faults_relay::zonemesh_relays_over_tcp", || relays(RelayKind::Zonemesh, Over::Tcp));
}

#[test]
fn zonemesh_relays_over_tls() {
    isolated("faults_relay::zonemesh_relays_over_tls", || relays(RelayKind::Zonemesh, Over::Tls));
}

/// Nodes that know a relay only this way reach each other through it.
fn relays(kind: RelayKind, over: Over) {
    let mut stage = Stage::new(Zone::Bind);
    stage.setup.add_relay(kind).expect("a relay can be started");
    stage.setup.offer_relays(|relay| relay.uris_over(over)).expect("the certificates are there");
    let (mut pair, _cut) = Pair::cut_off(stage);
    pair.assert_relayed();
    for report in pair.flow_while(RATE, |_| thread::sleep(FLOW)) {
        report.assert_whole();
    }
    pair.finish();
}

#[test]
fn relay_that_is_killed_is_replaced() {
    isolated("faults_relay::relay_that_is_killed_is_replaced", || {
        is_replaced(|pair, index| pair.stage.setup.relays[index].1.stop());
    });
}

#[test]
fn relay_that_is_cut_off_is_replaced() {
    isolated("faults_relay::relay_that_is_cut_off_is_replaced", || {
        is_replaced(|pair, index| {
            let host = pair.stage.setup.relays[index].0.clone();
            pair.stage.setup.lab.cut_host(&host).expect("cut");
        });
    });
}

#[test]
fn relay_that_is_cut_off_one_way_is_replaced() {
    isolated("faults_relay::relay_that_is_cut_off_one_way_is_replaced", || {
        is_replaced(|pair, index| {
            let relay = pair.stage.setup.relays[index].0.ipv4();
            for public in pair.public() {
                pair.stage.setup.lab.cut_one_way(relay, public).expect("cut");
            }
        });
    });
}

/// Of two relays the one that is used goes: the other one takes over, and `status` says
/// so.
fn is_replaced(goes: impl FnOnce(&mut Pair, usize)) {
    let mut stage = Stage::with_relay();
    stage.setup.add_relay(RelayKind::Coturn).expect("a relay can be started");
    let (mut pair, _cut) = Pair::cut_off(stage);
    let used = used_relay(&pair);
    let start = Instant::now();
    goes(&mut pair, used);
    is_back(&mut pair, start);
    let (gone, other) = (address(&pair, used), address(&pair, 1 - used));
    for (node, peer) in pair.nodes.iter().zip(["b", "a"]) {
        let path = node.peer(peer).expect("it knows its peer")["path"].to_string();
        assert!(!path.contains(&gone) && path.contains(&other), "{path}");
    }
    pair.assert_relayed();
    pair.finish();
}

/// The only relay loses all that it knew: it is taken again.
#[test]
fn relay_that_restarts_is_taken_again() {
    isolated("faults_relay::relay_that_restarts_is_taken_again", || {
        let (mut pair, _cut) = Pair::cut_off(Stage::with_relay());
        let start = Instant::now();
        pair.stage.setup.relays[0].1.restart().expect("it starts again");
        is_back(&mut pair, start);
        pair.assert_relayed();
        pair.finish();
    });
}

/// A relay that knows another secret: `status` says so, and direct paths need none.
#[test]
fn relay_that_refuses_is_told() {
    isolated("faults_relay::relay_that_refuses_is_told", || {
        let mut stage = Stage::with_relay();
        let access = stage.setup.services.relay.as_mut().expect("there is a relay");
        access.secret = "not the relay's secret".to_owned();
        let kinds = [Kind::PortRestricted, Kind::PortRestricted];
        let mut pair = Pair::direct(stage, kinds);
        for node in &mut pair.nodes {
            let told = |status: &Value| {
                let relays = status["relays"].as_array()?;
                let refused = |relay: &&Value| {
                    relay["error"].as_str().is_some_and(|error| error.contains("401"))
                };
                relays.iter().find(refused).map(|relay| relay["relayed"].clone())
            };
            let relayed = node.wait_for("the refusal", JOIN_LIMIT, told).expect("it is told");
            assert_eq!(relayed, Value::Null);
        }
        pair.assert_direct();
        pair.finish();
    });
}

/// Traffic is back both ways in time.
fn is_back(pair: &mut Pair, start: Instant) {
    let overlays = pair.nodes.each_ref().map(|node| node.overlay());
    // A reply that comes before the loss is noticed would be the old path's last one.
    for (node, overlay) in pair.nodes.iter_mut().zip([overlays[1], overlays[0]]) {
        node.wait_for_reply(overlay, JOIN_LIMIT).expect("traffic is back");
    }
    let took = start.elapsed();
    println!("traffic after {took:?}");
    assert!(took < RELAY_LIMIT, "no traffic for {took:?}");
}

/// The relay by which two nodes reach each other: most passes there.
fn used_relay(pair: &Pair) -> usize {
    let [a, b] = &pair.nodes;
    let traffic = pair.stage.traffic_of_pings(a, b);
    let relays = pair.stage.setup.relays.iter().enumerate();
    let bytes = |ip: IpAddr| pair.public().map(|public| traffic.between(public, ip).bytes);
    let used = relays.max_by_key(|(_, (host, _))| bytes(host.ipv4()).iter().sum::<u64>());
    used.expect("there are relays").0
}

/// A relay's address, as a status names it.
fn address(pair: &Pair, relay: usize) -> String {
    pair.stage.setup.relays[relay].0.ipv4().to_string()
}
