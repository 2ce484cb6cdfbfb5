//! A plain WireGuard peer, by the configuration alone.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use zonemesh::lab::{
    member::{Identity, Member},
    namespace::run,
    nat::Kind,
    world::isolated,
};

use crate::{
    plain_peer::PlainPeer,
    stage::{JOIN_LIMIT, LAN_A, Stage, Zone, finish},
};

/// When WireGuard makes a new session while traffic flows (REKEY-AFTER-TIME), and how
/// much later it may show.
const REKEY_LIMIT: Duration = Duration::from_secs(120 + 15);

#[test]
fn wireguard_go_is_a_peer_without_a_preshared_key() {
    isolated("interop::wireguard_go_is_a_peer_without_a_preshared_key", || {
        let (_stage, peer, a) = with_plain_peer(false);
        assert_full_packets(&a, &peer);
        finish([a]);
    });
}

#[test]
fn wireguard_go_is_a_peer_with_a_preshared_key() {
    isolated("interop::wireguard_go_is_a_peer_with_a_preshared_key", || {
        let (_stage, peer, a) = with_plain_peer(true);
        assert_full_packets(&a, &peer);
        finish([a]);
    });
}

#[test]
fn wireguard_go_sees_a_rekey_without_loss() {
    isolated("interop::wireguard_go_sees_a_rekey_without_loss", || {
        let (_stage, peer, a) = with_plain_peer(true);
        let (first, start) = (peer.last_handshake(), Instant::now());
        while peer.last_handshake() == first {
            assert!(start.elapsed() < REKEY_LIMIT, "no rekey");
            let pings = a.ping(peer.overlay(), 20).expect("ping runs");
            assert!(pings.all_answered(), "{pings:?} after {:?}", start.elapsed());
        }
        let pings = a.ping(peer.overlay(), 20).expect("ping runs");
        assert!(pings.all_answered(), "{pings:?} after the rekey");
        finish([a]);
    });
}

/// A node behind a NAT whose configuration names a public WireGuard peer, and that has
/// reached it.
fn with_plain_peer(preshared: bool) -> (Stage, PlainPeer, Member) {
    let mut stage = Stage::new(Zone::Bind);
    let place = stage.public("peer");
    let site = stage.behind("a", Kind::PortRestricted, LAN_A);
    let peer = PlainPeer::start(&place.host);
    let mut section = format!(
        "[[peer]]\npublic_key = \"{}\"\nendpoint = \"{}:{}\"\nroutes = [\"{}\"]\n",
        peer.public_key,
        place.host.ipv4(),
        PlainPeer::PORT,
        peer.routes(),
    );
    let file = "/run/preshared.key";
    if preshared {
        let key = run(Command::new("wg").arg("genpsk"), "").expect("wg makes a key");
        std::fs::write(file, key).expect("the world's /run is ours");
        section.push_str(&format!("preshared_key_file = \"{file}\"\n"));
    }
    let mut a = stage.start_as(Identity { more: section, ..Identity::new("a", 1) }, &site.host);
    let key = a.wait_for("its key", JOIN_LIMIT, |status| {
        status["node"]["public_key"].as_str().map(str::to_owned)
    });
    peer.expect(&key.expect("it starts"), &a, preshared.then_some(file));
    a.wait_for_reply(peer.overlay(), JOIN_LIMIT).expect("the peer is reached");
    assert_ne!(peer.last_handshake(), 0);
    (stage, peer, a)
}

/// Packets as long as the tunnel takes pass in one piece: 1,392 bytes of payload, 8 of
/// ICMP and 20 of IP make the MTU of 1,420.
fn assert_full_packets(a: &Member, peer: &PlainPeer) {
    let pings = a.ping_with(&["-M", "do", "-s", "1392"], peer.overlay(), 10).expect("ping runs");
    assert!(pings.all_answered(), "{pings:?}");
}
