//! Nodes that no direct path can join reach each other by a relay, whichever way they
//! reach the relay.

use std::net::SocketAddr;

use serde_json::Value;
use zonemesh::lab::{
    member::Member,
    nat::Kind,
    relay_server::{Over, RelayKind},
    world::isolated,
};

use crate::stage::{JOIN_LIMIT, LAN_A, LAN_B, Stage, Zone, finish};

#[test]
fn symmetric_random_meets_symmetric_random_by_a_relay_over_udp() {
    isolated("relays::symmetric_random_meets_symmetric_random_by_a_relay_over_udp", || {
        meet_by_relay(Over::Udp);
    });
}

#[test]
fn symmetric_random_meets_symmetric_random_by_a_relay_over_tcp() {
    isolated("relays::symmetric_random_meets_symmetric_random_by_a_relay_over_tcp", || {
        meet_by_relay(Over::Tcp);
    });
}

#[test]
fn symmetric_random_meets_symmetric_random_by_a_relay_over_tls() {
    isolated("relays::symmetric_random_meets_symmetric_random_by_a_relay_over_tls", || {
        meet_by_relay(Over::Tls);
    });
}

/// A node that is told nothing but the zone and the secret finds its relay there, and
/// again while the zone is away.
#[test]
fn relays_are_found_in_the_zone_and_kept() {
    isolated("relays::relays_are_found_in_the_zone_and_kept", || {
        let mut stage = Stage::new(Zone::Bind);
        stage.setup.add_relay(RelayKind::Coturn).expect("a relay can be added");
        stage.setup.offer_relays(|_| vec![]).expect("the secret is given");
        let (host, _) = &stage.setup.relays[0];
        let (ip, zone) = (host.ipv4(), stage.setup.services.zone.clone());
        stage
            .setup
            .nsupdate(&format!(
                "update add relay.{zone}. 60 A {ip}
                 update add _turn._udp.{zone}. 60 SRV 0 0 3478 relay.{zone}.
                 update add _turn._tcp.{zone}. 60 SRV 0 0 3478 relay.{zone}.
                 send"
            ))
            .expect("the zone takes the update");
        let place = stage.behind("a", Kind::SymmetricRandom, LAN_A);
        let mut a = stage.start("a", 1, &place.host);
        let relayed = |status: &Value| {
            let relay = status["relays"].as_array()?.iter().find(|it| it["state"] == "primary")?;
            let uri = relay["uri"].as_str()?;
            assert_eq!(uri, format!("turn:relay.{zone}:3478?transport=udp"));
            relay["relayed"].as_str().map(str::to_owned)
        };
        let first = a.wait_for("its relayed address", JOIN_LIMIT, relayed).expect("it is there");
        a.kill();
        stage.setup.stop_zone_server();
        a.restart().expect("it starts again");
        let again = a.wait_for("a relayed address", JOIN_LIMIT, relayed).expect("it is there");
        // The allocation that the killed one left behind is ended, not kept.
        assert_ne!(first, again);
    });
}

fn meet_by_relay(over: Over) {
    let mut stage = Stage::new(Zone::Bind);
    stage.setup.add_relay(RelayKind::Coturn).expect("a relay can be added");
    stage.setup.offer_relays(|relay| relay.uris_over(over)).expect("it is offered");
    let left = stage.behind("a", Kind::SymmetricRandom, LAN_A);
    let right = stage.behind("b", Kind::SymmetricRandom, LAN_B);
    let a = stage.start_advertised("a", 1, &left.host);
    let mut b = stage.start("b", 2, &right.host);
    b.wait_for_reply(a.overlay(), JOIN_LIMIT).expect("they reach each other");
    let traffic = stage.traffic_of_pings(&b, &a);
    let direct = traffic.between(left.public[0], right.public[0]);
    let checks_alone = 20 * 200;
    assert!(direct.bytes < checks_alone, "{traffic:?}");
    for (from, to) in [(&a, "b"), (&b, "a")] {
        let path = from.peer(to).expect("it knows its peer")["path"].clone();
        assert_eq!(path["kind"], "relayed", "{path}");
        let remote: SocketAddr =
            path["remote"].as_str().unwrap_or_default().parse().expect("an address");
        assert!(!path["relay"].is_null() && remote.port() != 0, "{path}");
        assert_explained(from, to);
    }
    finish([a, b]);
}

/// `explain` tells why, and every way that was tried; for programs and for people.
fn assert_explained(from: &Member, to: &str) {
    let ask = |arguments: &[&str]| {
        let output = from.command("explain").arg(to).args(arguments).output().expect("it runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let told: Value = serde_json::from_str(&ask(&["--json"])).expect("JSON");
    assert_eq!(told["path"]["kind"], "relayed", "{told}");
    assert!(told["reason"].as_str().is_some_and(|reason| reason.contains("relay")), "{told}");
    let pairs = told["pairs"].as_array().expect("the pairs");
    let in_use = pairs.iter().filter(|pair| pair["selected"] == true).count();
    assert_eq!(in_use, 1, "{told}");
    let tried = |pair: &Value| pair["tier"] == "direct" && pair["last_sent_s"].is_f64();
    assert!(pairs.iter().any(tried), "{told}");
    let text = ask(&[]);
    assert!(text.contains("why     ") && text.contains("RESULT"), "{text}");
}
