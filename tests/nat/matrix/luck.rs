//! What luck decides is decided well nine times of ten.

use zonemesh::lab::{member::find_peer, world::isolated};

use super::{BIRTHDAY, CONNECTED, network::Network};
use crate::stage::{Stage, finish};

/// How often it is tried, and how often it may fail.
const TRIES: u8 = 10;
const FAILURES: usize = 1;

#[test]
fn port_restricted_meets_symmetric_random_nine_times_of_ten() {
    isolated("matrix::luck::port_restricted_meets_symmetric_random_nine_times_of_ten", || {
        meet_again_and_again(Network::PortRestricted);
    });
}

#[test]
fn open_input_meets_symmetric_random_nine_times_of_ten() {
    isolated("matrix::luck::open_input_meets_symmetric_random_nine_times_of_ten", || {
        meet_again_and_again(Network::OpenInput);
    });
}

/// A node there, and one after the other behind a NAT with random ports: each is new to the
/// first node, and to the NATs.
fn meet_again_and_again(steady: Network) {
    let mut stage = Stage::with_relay();
    let left = steady.place(&mut stage, "a", 1);
    let right = Network::SymmetricRandom.place(&mut stage, "b", 2);
    let a = stage.start_advertised("a", 1, &left.host);
    let mut times = Vec::new();
    for number in 2..2 + TRIES {
        let mut b = stage.start(&format!("b{number}"), number, &right.host);
        let reply = b.wait_for_reply(a.overlay(), CONNECTED).expect("they are connected");
        let direct = b.wait_for("a direct path", BIRTHDAY, |status| {
            (find_peer(status, "a")?["path"]["kind"] == "direct").then(|| reply.elapsed())
        });
        times.push(direct.ok());
        finish([b]);
    }
    println!("direct after {times:?}");
    let failures = times.iter().filter(|time| time.is_none()).count();
    assert!(failures <= FAILURES, "{times:?}");
    finish([a]);
}
