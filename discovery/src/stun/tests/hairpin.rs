//! Whether a NAT turns packets round.

use std::time::{Duration, Instant};

use super::{
    super::HairpinTest,
    SERVER_A, SERVER_B,
    world::{Answered, addr, id_of},
};

const EXTERNAL: &str = "203.0.113.7:40007";
const NUMBERS: [[u8; 12]; 2] = [[1; 12], [2; 12]];

#[test]
fn what_comes_back_was_turned_round() {
    let (mut test, now) = seen();
    let sent = test.poll_transmit().expect("a question to itself");
    assert_eq!(sent.to, addr(EXTERNAL));
    // From the router's inner address, as some NATs show it.
    assert!(test.handle_datagram(addr("192.168.1.1:40007"), &sent.payload, now));
    assert_eq!(test.poll_event(), Some(Some(true)));
    assert_eq!(test.poll_timeout(), None);
}

#[test]
fn what_does_not_come_back_was_not() {
    let (mut test, start) = seen();
    let mut now = start;
    let mut sent = 0;
    while let Some(due) = test.poll_timeout() {
        sent += usize::from(test.poll_transmit().is_some());
        let other = Answered { mapped: addr(EXTERNAL), other: None };
        let other = other.encode(&stun_rs::TransactionId::from(NUMBERS[1]));
        assert!(!test.handle_datagram(addr(EXTERNAL), &other, now), "an answer is no question");
        now = due;
        test.handle_timeout(now);
    }
    assert_eq!((sent, test.poll_event()), (3, Some(Some(false))));
    assert!(now - start < Duration::from_secs(2));
}

#[test]
fn without_a_server_nothing_is_known() {
    let mut test = HairpinTest::new(addr(SERVER_A), NUMBERS, Instant::now());
    while let Some(due) = test.poll_timeout() {
        test.handle_timeout(due);
    }
    assert_eq!(test.poll_event(), Some(None));
}

/// A test that knows its outer address.
fn seen() -> (HairpinTest, Instant) {
    let now = Instant::now();
    let mut test = HairpinTest::new(addr(SERVER_A), NUMBERS, now);
    let asked = test.poll_transmit().expect("it asks at once");
    let answer = Answered { mapped: addr(EXTERNAL), other: None }.encode(&id_of(&asked.payload));
    assert!(!test.handle_datagram(addr(SERVER_B), &answer, now), "another server");
    assert!(test.handle_datagram(addr(SERVER_A), &answer, now));
    (test, now)
}
