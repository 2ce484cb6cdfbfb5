//! The relay, or anybody between two nodes: it sees all, and may change, keep, repeat and
//! redirect it. Here are checks and notes; WireGuard's own packets have their tests in
//! `src/tunnel.rs`, and what an agent makes of repetitions is in `punch/tests/hostile.rs`.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use zonemesh_punch::{
    CheckKeys, Courier, OpenError, Route,
    check::{Check, Receipt, Request},
};

use crate::world::{key, node};

fn keys(own: u8, peer: u8) -> CheckKeys {
    let private = node(own).wireguard_private_key();
    CheckKeys::new(&private, key(own).as_bytes(), key(peer).as_bytes()).expect("sound keys")
}

fn request(id: u8) -> Check {
    Check::Request(Request {
        id: [id; 12],
        clock_ms: 1_800_000_000_000,
        priority: 0,
        nominate: true,
        receipt: Receipt::default(),
        plan: None,
    })
}

#[test]
fn a_check_that_was_changed_or_redirected_is_nobodys() {
    let sent = keys(1, 2).seal(&request(1));
    assert!(keys(2, 1).open(&sent).is_ok());
    for bit in 0..sent.len() * 8 {
        let mut changed = sent.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(keys(2, 1).open(&changed).is_err(), "bit {bit}");
    }
    // To a third node, and back to where it came from.
    assert_eq!(keys(3, 1).open(&sent), Err(OpenError::Foreign));
    assert_eq!(keys(1, 2).open(&sent), Err(OpenError::Foreign));
    // Made by the relay, with keys that it has itself.
    assert_eq!(keys(2, 1).open(&keys(66, 2).seal(&request(1))), Err(OpenError::Foreign));
}

#[test]
fn a_note_that_was_changed_is_not_taken_and_one_that_is_repeated_says_nothing_new() {
    let now = Instant::now();
    let route = Route::relayed(1, SocketAddr::from(([198, 51, 100, 1], 50_000)));
    let mut from = Courier::new(keys(1, 2), [1; 32], now);
    let mut to = Courier::new(keys(2, 1), [2; 32], now);
    from.offer(b"news".to_vec(), now);
    from.handle_timeout(&[route], now);
    let sent = from.poll_transmit().expect("the note").payload;
    for at in 0..sent.len() {
        let mut changed = sent.clone();
        changed[at] ^= 0x10;
        assert!(to.handle_datagram(route, &changed, now).is_err(), "byte {at}");
    }
    assert_eq!(to.handle_datagram(route, &sent, now), Ok(Some(b"news".to_vec())));
    // Repeated for ever, it is looked at four times and then each ten seconds.
    let taken = (0..1000).filter(|_| to.handle_datagram(route, &sent, now).is_ok()).count();
    assert!(taken <= 4, "{taken}");
    let later = now + Duration::from_secs(11);
    assert!(to.handle_datagram(route, &sent, later).is_ok());
}
