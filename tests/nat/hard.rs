//! Pairs of NATs that ordinary checks do not pass, and luck or arithmetic does: the nodes
//! meet by a relay first, and agree over it on what to send.

use std::time::Duration;

use zonemesh::lab::{member::find_peer, nat::Kind, relay_server::RelayKind, world::isolated};

use crate::stage::{JOIN_LIMIT, LAN_A, LAN_B, Stage, Zone, finish};

/// How long ports may have to be predicted, on a machine that runs other labs as well.
const PREDICTED: Duration = Duration::from_secs(20);

/// How long many sockets may have to meet many probes.
const BIRTHDAY: Duration = Duration::from_secs(60);

#[test]
fn port_restricted_meets_symmetric_sequential_by_prediction() {
    isolated("hard::port_restricted_meets_symmetric_sequential_by_prediction", || {
        meet(Kind::PortRestricted, Kind::SymmetricSequential, PREDICTED);
    });
}

#[test]
fn symmetric_sequential_meets_symmetric_sequential_by_prediction() {
    isolated("hard::symmetric_sequential_meets_symmetric_sequential_by_prediction", || {
        meet(Kind::SymmetricSequential, Kind::SymmetricSequential, PREDICTED);
    });
}

#[test]
fn port_restricted_meets_symmetric_random_by_many_sockets() {
    isolated("hard::port_restricted_meets_symmetric_random_by_many_sockets", || {
        meet(Kind::PortRestricted, Kind::SymmetricRandom, BIRTHDAY);
    });
}

fn meet(first: Kind, second: Kind, limit: Duration) {
    let mut stage = Stage::new(Zone::Bind);
    stage.setup.add_relay(RelayKind::Coturn).expect("a relay can be added");
    let left = stage.behind("a", first, LAN_A);
    let right = stage.behind("b", second, LAN_B);
    let mut a = stage.start_advertised("a", 1, &left.host);
    let mut b = stage.start("b", 2, &right.host);
    b.wait_for_reply(a.overlay(), JOIN_LIMIT).expect("they reach each other by the relay");
    for (from, to) in [(&mut a, "b"), (&mut b, "a")] {
        from.wait_for("a direct path", limit, |status| {
            (find_peer(status, to)?["path"]["kind"] == "direct").then_some(())
        })
        .expect("what is possible happens");
    }
    stage.assert_direct((&a, &left), (&b, &right));
    println!("joined directly {:.1} s after the start", b.started().elapsed().as_secs_f64());
    finish([a, b]);
}
