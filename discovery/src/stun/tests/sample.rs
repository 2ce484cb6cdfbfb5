//! One question through a socket of its own.

use std::time::{Duration, Instant};

use super::{
    super::{Sample, SampleEvent},
    SERVER_A, SERVER_B,
    world::{Answered, addr, id_of},
};

const EXTERNAL: &str = "203.0.113.7:40007";

#[test]
fn the_new_mapping_is_told_with_its_round_trip() {
    let start = Instant::now();
    let mut sample = Sample::new(addr(SERVER_A), [7; 12], start);
    let asked = sample.poll_transmit().expect("it asks at once");
    assert_eq!(asked.to, addr(SERVER_A));
    // The first one is lost.
    let again = sample.poll_timeout().expect("it will ask again");
    sample.handle_timeout(again);
    assert_eq!(sample.poll_transmit().as_ref(), Some(&asked), "the same question");
    let trip = Duration::from_millis(30);
    let answer = truth().encode(&id_of(&asked.payload));
    assert!(!sample.handle_datagram(addr(SERVER_B), &answer, again + trip), "another server");
    assert!(sample.handle_datagram(addr(SERVER_A), &answer, again + trip));
    let seen = SampleEvent::Seen { external: addr(EXTERNAL), rtt: trip };
    assert_eq!(sample.poll_event(), Some(seen));
    assert!(!sample.handle_datagram(addr(SERVER_A), &answer, again + trip), "a second answer");
    assert_eq!((sample.poll_timeout(), sample.poll_event()), (None, None));
}

#[test]
fn a_silent_server_is_given_up_within_two_seconds() {
    let start = Instant::now();
    let mut sample = Sample::new(addr(SERVER_A), [7; 12], start);
    let mut asked = 0;
    let mut now = start;
    while let Some(due) = sample.poll_timeout() {
        asked += usize::from(sample.poll_transmit().is_some());
        now = due;
        sample.handle_timeout(now);
    }
    assert_eq!((asked, sample.poll_event()), (3, Some(SampleEvent::Failed)));
    assert_eq!(now - start, Sample::LIMIT);
    assert!(Sample::LIMIT < Duration::from_secs(2));
}

#[test]
fn an_answer_that_says_nothing_ends_it() {
    let now = Instant::now();
    let mut sample = Sample::new(addr(SERVER_A), [7; 12], now);
    let asked = sample.poll_transmit().expect("it asks at once");
    let mut answer = truth().encode(&id_of(&asked.payload));
    answer.truncate(20);
    answer[2..4].copy_from_slice(&[0, 0]);
    assert!(sample.handle_datagram(addr(SERVER_A), &answer, now));
    assert_eq!(sample.poll_event(), Some(SampleEvent::Failed));
}

fn truth() -> Answered {
    Answered { mapped: addr(EXTERNAL), other: None }
}
