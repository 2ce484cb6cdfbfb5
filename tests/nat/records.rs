//! The zone's records, seen by others and written by others.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use zonemesh::lab::{member::Identity, nat::Kind, world::isolated};
use zonemesh_discovery::identity::PublicKey;

use crate::{
    plain_peer::PlainPeer,
    stage::{JOIN_LIMIT, LAN_A, Stage, Zone, finish},
};

#[test]
fn dig_shows_the_records_of_a_node_until_it_stops_in_a_zone_of_bind() {
    isolated("records::dig_shows_the_records_of_a_node_until_it_stops_in_a_zone_of_bind", || {
        shows_until_stopped(Zone::Bind);
    });
}

#[test]
fn dig_shows_the_records_of_a_node_until_it_stops_in_a_zone_of_knot() {
    isolated("records::dig_shows_the_records_of_a_node_until_it_stops_in_a_zone_of_knot", || {
        shows_until_stopped(Zone::Knot);
    });
}

/// wgsd's layout to the letter: the instance's own name is the target of its SRV
/// record. BIND's default name checks refuse such a name for an address; Knot has none.
#[test]
fn record_in_the_form_of_wgsd_is_a_peers_endpoint() {
    isolated("records::record_in_the_form_of_wgsd_is_a_peers_endpoint", || {
        let mut stage = Stage::new(Zone::Knot);
        let place = stage.public("peer");
        let site = stage.behind("a", Kind::PortRestricted, LAN_A);
        let peer = PlainPeer::start(&place.host);
        let stranger = PlainPeer::make_key();

        let trust = format!("[network]\ntrust = \"listed\"\nkeys = [\"{}\"]\n", peer.public_key);
        let identity = Identity { more: trust, ..Identity::new("a", 1) };
        let mut a = stage.start_as(identity, &site.host);
        let status = a.wait_for("its status", JOIN_LIMIT, |status| Some(status.clone()));
        let status = status.expect("it starts");
        let key = status["node"]["public_key"].as_str().expect("a key").to_owned();
        peer.expect(&key, &a, None);

        write_like_wgsd(
            &stage,
            &peer.public_key,
            place.host.ipv4(),
            PlainPeer::PORT,
            &peer.routes(),
        );
        write_like_wgsd(&stage, &stranger, place.host.ipv4(), 9, "10.98.0.0/24");
        a.wait_for_reply(peer.overlay(), JOIN_LIMIT).expect("the peer is reached");
        let status = a.status().expect("it answers");
        let peers = status["peers"].as_array().expect("a list");
        assert!(peers.iter().any(|known| known["public_key"] == peer.public_key.as_str()));
        assert!(!peers.iter().any(|known| known["public_key"] == stranger.as_str()), "{status}");
        finish([a]);
    });
}

/// A node that is told nothing but the zone finds its STUN servers there.
#[test]
fn stun_servers_are_found_in_the_zone() {
    isolated("records::stun_servers_are_found_in_the_zone", || {
        let mut stage = Stage::new(Zone::Bind);
        let place = stage.behind("a", Kind::PortRestricted, LAN_A);
        let zone = stage.setup.services.zone.clone();
        let mut script = String::new();
        for (index, server) in stage.setup.services.stun_servers.drain(..).enumerate() {
            script.push_str(&format!(
                "update add stun-{index}.{zone}. 60 A {ip}
                 update add _stun._udp.{zone}. 60 SRV 0 0 {port} stun-{index}.{zone}.\n",
                ip = server.ip(),
                port = server.port(),
            ));
        }
        stage.setup.nsupdate(&format!("{script}send")).expect("the zone takes the update");
        let mut a = stage.start("a", 1, &place.host);
        a.wait_for("its reflexive address", JOIN_LIMIT, |status| {
            let seen = status["node"]["reflexive"][0].as_str()?.parse::<SocketAddr>().ok()?;
            (place.public.contains(&seen.ip())).then_some(())
        })
        .expect("it asks the servers of the zone");
        finish([a]);
    });
}

/// Writes the records of a peer by hand, as wgsd's own zone has them.
fn write_like_wgsd(stage: &Stage, key: &str, ip: IpAddr, port: u16, routes: &str) {
    let zone = &stage.setup.services.zone;
    let key: PublicKey = key.parse().expect("a public key");
    let service = format!("_wireguard._udp.{zone}.");
    let instance = format!("{}====.{service}", key.to_base32());
    stage
        .setup
        .nsupdate(&format!(
            "check-names off
             update add {service} 60 PTR {instance}
             update add {instance} 60 SRV 0 0 {port} {instance}
             update add {instance} 60 TXT \"txtvers=1\" \"pub={key}\" \"allowed={routes}\"
             update add {instance} 60 A {ip}
             send"
        ))
        .expect("the zone takes the update");
}

fn shows_until_stopped(zone: Zone) {
    let mut stage = Stage::new(zone);
    let place = stage.behind("a", Kind::PortRestricted, LAN_A);
    let a = stage.start_advertised("a", 1, &place.host);
    let status = a.status().expect("it answers");
    let key = status["node"]["public_key"].as_str().expect("a key").to_owned();

    let adverts = stage.setup.adverts();
    let [instance] = adverts.as_slice() else { panic!("one instance, not {adverts:?}") };
    let srv = stage.setup.dig(instance, "SRV");
    let fields: Vec<&str> = srv.split_whitespace().collect();
    let [priority, weight, port, target] = fields[..] else { panic!("one SRV, not {srv:?}") };
    // A port-restricted NAT of the lab keeps the port.
    assert_eq!((priority, weight, port), ("0", "0", "51821"));
    let txt = stage.setup.dig(instance, "TXT");
    assert!(txt.contains("\"txtvers=1\""), "{txt}");
    assert!(txt.contains(&format!("\"pub={key}\"")), "{txt}");
    assert!(txt.contains("\"allowed=10.42.1.0/24\""), "{txt}");
    assert_eq!(stage.setup.dig(target, "A").trim(), place.public[0].to_string());

    let target = target.to_owned();
    finish([a]);
    let start = Instant::now();
    let names = [(instance, "SRV"), (instance, "TXT"), (&target, "A")];
    while !stage.setup.adverts().is_empty()
        || names.iter().any(|(n, t)| !stage.setup.dig(n, t).is_empty())
    {
        assert!(start.elapsed() < Duration::from_secs(5), "the records stay");
    }
}
