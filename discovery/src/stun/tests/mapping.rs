//! Mappings as a fresh socket sees them.

use std::time::{Duration, Instant};

use super::{
    super::{Behaviour, MappingFound, MappingTest, PortPattern, StunEvent},
    SERVER_A, SERVER_A_SECOND, SERVER_B,
    world::{Nat, Server, World, addr, double, plain},
};

const OTHER: &str = "198.51.100.11:3479";

/// What the test finds behind this NAT with this server, and how many datagrams that took.
fn found(nat: &mut Nat, server: &Server) -> (Option<MappingFound>, usize) {
    let mut now = Instant::now();
    let mut test = MappingTest::new(addr(SERVER_A), addr(OTHER), 40_000, [1; 32], now);
    let mut sent = 0;
    loop {
        while let Some(transmit) = test.poll_transmit() {
            sent += 1;
            let from = nat.outbound(transmit.to);
            if let Some((source, answer)) = server.answer(from, &transmit) {
                assert!(!test.handle_datagram(addr(SERVER_B), &answer, now), "another server");
                assert!(test.handle_datagram(source, &answer, now));
            }
        }
        if let Some(outcome) = test.poll_event() {
            assert_eq!(test.poll_timeout(), None);
            return (outcome, sent);
        }
        now = test.poll_timeout().expect("it waits for something");
        test.handle_timeout(now);
    }
}

#[test]
fn a_fresh_socket_sees_mappings_and_ports() {
    use Behaviour::*;
    use PortPattern::{Preserving, Random, Sequential};
    type Ports = fn(usize) -> u16;
    let counting: Ports = |number| 20_000 + number as u16;
    let random: Ports = |number| [49_152, 1_025, 63_999, 20_011][number % 4];
    let server = double(SERVER_A, SERVER_A_SECOND);
    for (mapping, port, ports, questions) in [
        (EndpointIndependent, (|_| 40_000) as Ports, Preserving, 2),
        (EndpointIndependent, counting, PortPattern::Unknown, 2),
        (AddressDependent, counting, Sequential { step: 1 }, 3),
        (AddressAndPortDependent, counting, Sequential { step: 1 }, 4),
        (AddressAndPortDependent, random, Random, 4),
    ] {
        let mut nat = Nat { mapping, port, ..Nat::default() };
        let (found, sent) = found(&mut nat, &server);
        let found = found.expect("both addresses answer");
        assert_eq!((found.mapping, found.ports, sent), (mapping, ports, questions));
    }
}

#[test]
fn a_server_without_its_other_address_tells_nothing() {
    let mut server = double(SERVER_A, SERVER_A_SECOND);
    server.second_is_dead = true;
    assert_eq!(found(&mut Nat::default(), &server), (None, 4), "the second is asked three times");
    server.dead = true;
    assert_eq!(found(&mut Nat::default(), &server), (None, 3));
}

#[test]
fn a_fresh_sockets_word_counts_while_the_public_address_is_the_same() {
    // To the keeper's socket, which others have sent to, the NAT looks worse than it is.
    let nat = Nat { mapping: Behaviour::AddressAndPortDependent, ..Nat::default() };
    let mut world = World::behind(nat).with(&[double(SERVER_A, SERVER_A_SECOND)]);
    world.run(Duration::from_millis(100));
    let (server, other) = (addr(SERVER_A), addr(OTHER));
    assert!(world.told(StunEvent::MappingWanted { server, other }));
    let mapping = Behaviour::EndpointIndependent;
    let ports = PortPattern::Preserving;
    world.client.set_mapping(MappingFound { mapped: addr("203.0.113.7:5"), mapping, ports });
    world.run(Duration::from_secs(8));
    assert_eq!((world.client.behaviour().mapping, world.client.ports()), (mapping, ports));
    world.nat.restart("203.0.113.99");
    world.run(Duration::from_secs(60));
    assert_eq!(world.client.behaviour().mapping, Behaviour::AddressAndPortDependent);
    assert_eq!(world.count(&StunEvent::MappingWanted { server, other }), 2, "to be tested anew");
}

#[test]
fn a_server_with_one_address_has_nothing_tested() {
    let mut world = World::behind(Nat::default()).with(&[plain(SERVER_A)]);
    world.run(Duration::from_secs(8));
    assert!(!world.events.iter().any(|event| matches!(event, StunEvent::MappingWanted { .. })));
}
