//! The client against scripted servers behind a modelled NAT, in virtual time.

mod hairpin;
mod lifetime;
mod mapping;
mod sample;
mod world;

use std::time::Duration;

use proptest::prelude::*;
use stun_rs::TransactionId;

use self::world::{Answered, LOCAL, Nat, Server, TRIP, World, addr, double, id_of, plain};
use super::{Behaviour, NatBehaviour, PortPattern, StunEvent};

const SERVER_A: &str = "198.51.100.10:3478";
const SERVER_A_SECOND: &str = "198.51.100.11:3478";
const SERVER_B: &str = "198.51.100.20:3478";
const SERVER_C: &str = "198.51.100.30:3478";

#[test]
fn the_address_is_known_after_one_round_trip() {
    let mut world = World::behind(Nat::default()).with(&[plain(SERVER_A), plain(SERVER_B)]);
    world.run(2 * TRIP);
    assert_eq!(world.reflexive(), ["203.0.113.7:40000"]);
    assert!(world.told(StunEvent::Changed));
    assert!(world.told(StunEvent::ServerAnswered { server: addr(SERVER_A) }));
    world.run(4 * TRIP);
    assert!(world.client.is_settled());
}

#[test]
fn a_dead_first_server_costs_a_quarter_of_a_second() {
    let mut world = World::behind(Nat::default()).with(&[plain(SERVER_A), plain(SERVER_B)]);
    world.servers[0].dead = true;
    world.run(Duration::from_millis(250) + 2 * TRIP);
    assert_eq!(world.reflexive(), ["203.0.113.7:40000"]);
    world.run(Duration::from_secs(6));
    assert!(world.told(StunEvent::ServerSilent { server: addr(SERVER_A) }));
}

#[test]
fn every_nat_is_told_by_its_behaviour() {
    use Behaviour::*;
    let kinds = [EndpointIndependent, AddressDependent, AddressAndPortDependent];
    // The server alone, both its addresses in either order, and beside another one.
    let lists: [&[&str]; 4] = [
        &[SERVER_A],
        &[SERVER_A, SERVER_A_SECOND],
        &[SERVER_A_SECOND, SERVER_A],
        &[SERVER_A, SERVER_B],
    ];
    for mapping in kinds {
        for filtering in kinds {
            for list in lists {
                let nat = Nat { mapping, filtering, ..Nat::default() };
                let mut world = World::behind(nat);
                world.servers = vec![double(SERVER_A, SERVER_A_SECOND), plain(SERVER_B)];
                world.ask(list);
                world.run(Duration::from_secs(8));
                let expected = NatBehaviour { mapping, filtering };
                assert_eq!(world.client.behaviour(), expected, "asking {list:?}");
                assert!(world.told(StunEvent::Behaviour(expected)));
            }
        }
    }
}

#[test]
fn the_ports_of_a_nat_tell_their_pattern() {
    use Behaviour::*;
    type Ports = fn(usize) -> u16;
    let patterns: [(Ports, PortPattern); 4] = [
        (|_| 51820, PortPattern::Preserving),
        (|number| 40_000 + number as u16, PortPattern::Sequential { step: 1 }),
        (|number| 40_000 - 2 * number as u16, PortPattern::Sequential { step: -2 }),
        (|number| [49_152, 1_025, 63_999, 20_011, 33_333][number % 5], PortPattern::Random),
    ];
    for mapping in [AddressDependent, AddressAndPortDependent] {
        for (port, expected) in patterns {
            // One with two addresses; or two, which see the same less quickly.
            for servers in [
                [double(SERVER_A, SERVER_A_SECOND)].as_slice(),
                [plain(SERVER_A), plain(SERVER_B), plain(SERVER_C)].as_slice(),
            ] {
                let nat = Nat { mapping, port, ..Nat::default() };
                let mut world = World::behind(nat);
                world.client.set_local_addresses(&[addr(LOCAL)]);
                world = world.with(servers);
                world.run(Duration::from_secs(8));
                assert_eq!(world.client.ports(), expected, "{mapping}, {} servers", servers.len());
                assert!(world.told(StunEvent::Ports(expected)));
            }
        }
    }
    let nat = Nat { mapping: EndpointIndependent, ..Nat::default() };
    let mut world = World::behind(nat).with(&[plain(SERVER_A), plain(SERVER_B)]);
    world.run(Duration::from_secs(8));
    assert_eq!(world.client.ports(), PortPattern::Unknown, "one mapping has no pattern");
}

#[test]
fn without_a_nat_the_mapping_is_none() {
    for filtering in [Behaviour::EndpointIndependent, Behaviour::AddressAndPortDependent] {
        let nat = Nat { mapping: Behaviour::None, filtering, ..Nat::default() };
        let mut world = World::behind(nat);
        world.client.set_local_addresses(&[addr(LOCAL)]);
        world = world.with(&[double(SERVER_A, SERVER_A_SECOND)]);
        world.run(Duration::from_secs(8));
        assert_eq!(world.reflexive(), [LOCAL]);
        let expected = NatBehaviour { mapping: Behaviour::None, filtering };
        assert_eq!(world.client.behaviour(), expected);
    }
}

#[test]
fn plain_servers_tell_the_mapping_by_their_difference() {
    for (mapping, told) in [
        (Behaviour::EndpointIndependent, Behaviour::EndpointIndependent),
        (Behaviour::AddressDependent, Behaviour::AddressDependent),
        // Two addresses cannot prove more.
        (Behaviour::AddressAndPortDependent, Behaviour::AddressDependent),
    ] {
        let nat = Nat { mapping, ..Nat::default() };
        let mut world = World::behind(nat).with(&[plain(SERVER_A), plain(SERVER_B)]);
        world.run(Duration::from_secs(1));
        let expected = NatBehaviour { mapping: told, filtering: Behaviour::Unknown };
        assert_eq!(world.client.behaviour(), expected);
    }
}

#[test]
fn a_server_that_ignores_change_requests_proves_nothing() {
    let mut server = double(SERVER_A, SERVER_A_SECOND);
    server.ignores_change = true;
    let mut world = World::behind(Nat::default()).with(&[server]);
    world.run(Duration::from_secs(8));
    assert_eq!(world.client.behaviour().filtering, Behaviour::Unknown);
}

#[test]
fn a_filter_that_is_open_to_the_second_address_already_is_not_judged() {
    for (filtering, told) in [
        (Behaviour::EndpointIndependent, Behaviour::Unknown),
        (Behaviour::AddressDependent, Behaviour::Unknown),
        (Behaviour::AddressAndPortDependent, Behaviour::AddressAndPortDependent),
    ] {
        let mut world = World::behind(Nat { filtering, ..Nat::default() });
        // The second address is asked before the first one's answer is there.
        world.trip = Duration::from_millis(200);
        world.servers = vec![double(SERVER_A, SERVER_A_SECOND)];
        world.ask(&[SERVER_A, SERVER_A_SECOND]);
        world.run(Duration::from_secs(10));
        assert_eq!(world.client.behaviour().filtering, told);
    }
}

#[test]
fn a_server_cannot_aim_many_datagrams_at_another_address() {
    // Every answer brings another mapping, which is to be tested.
    let mut world = World::behind(Nat { forgets: true, ..Nat::default() })
        .with(&[double(SERVER_A, SERVER_A_SECOND)]);
    world.run(Duration::from_secs(60));
    let victim = addr(SERVER_A_SECOND).ip();
    let aimed = world.asked.iter().filter(|to| to.ip() == victim).count();
    assert!((1..=14).contains(&aimed), "{aimed} in a minute");
}

#[test]
fn a_second_address_that_is_dead_proves_nothing() {
    let mut server = double(SERVER_A, SERVER_A_SECOND);
    server.second_is_dead = true;
    let nat = Nat { filtering: Behaviour::EndpointIndependent, ..Nat::default() };
    let mut world = World::behind(nat).with(&[server]);
    world.run(Duration::from_secs(10));
    assert_eq!(world.client.behaviour(), NatBehaviour::default());
    assert!(world.client.is_settled());
}

#[test]
fn a_symmetric_nat_has_one_address_per_server() {
    let nat = Nat { mapping: Behaviour::AddressAndPortDependent, ..Nat::default() };
    let mut world = World::behind(nat).with(&[plain(SERVER_A), plain(SERVER_B)]);
    world.run(Duration::from_secs(60));
    assert_eq!(world.reflexive(), ["203.0.113.7:40000", "203.0.113.7:40001"]);
    assert_eq!(world.count(&StunEvent::Changed), 2);
}

#[test]
fn every_server_of_a_long_list_is_heard_in_time() {
    let servers: Vec<Server> = (1..=9).map(|n| plain(&format!("198.51.100.{n}:3478"))).collect();
    let nat = Nat { mapping: Behaviour::AddressDependent, ..Nat::default() };
    let mut world = World::behind(nat).with(&servers);
    world.run(Duration::from_secs(120));
    // Of nine, eight are asked; all of them stay current, so nothing changes again.
    assert_eq!(world.reflexive().len(), 8);
    assert_eq!(world.count(&StunEvent::Changed), 8);
}

#[test]
fn lost_answers_are_asked_for_again() {
    for lost in 0..32u32 {
        let mut world = World::behind(Nat::default()).with(&[plain(SERVER_A)]);
        // Any four of the first five answers may be lost.
        world.lose = Box::new(move |number| number < 5 && lost >> number & 1 == 1);
        world.run(Duration::from_secs(4));
        let expected = if lost == 31 { 0 } else { 1 };
        assert_eq!(world.reflexive().len(), expected, "lost: {lost:b}");
    }
}

#[test]
fn one_datagram_per_five_seconds_keeps_the_mapping_alive() {
    let mut world = World::behind(Nat::default()).with(&[plain(SERVER_A), plain(SERVER_B)]);
    world.run(Duration::from_secs(2));
    let before = world.sent;
    world.run(Duration::from_secs(100));
    assert_eq!(world.sent - before, 20);
}

#[test]
fn a_nat_that_restarts_is_noticed_within_ten_seconds() {
    for offset in [0u64, 1, 2, 3, 4] {
        let mut world = World::behind(Nat::default())
            .with(&[double(SERVER_A, SERVER_A_SECOND), plain(SERVER_B)]);
        world.run(Duration::from_secs(30 + offset));
        world.events.clear();
        world.nat.restart("203.0.113.99");
        world.run(Duration::from_secs(5) + 2 * TRIP);
        assert_eq!(world.reflexive()[0], "203.0.113.99:40000");
        assert!(world.told(StunEvent::Changed));
        // The other server has been asked at once and confirms it: the old one goes.
        world.run(2 * TRIP);
        assert_eq!(world.reflexive(), ["203.0.113.99:40000"]);
        world.run(Duration::from_secs(15));
        let expected = NatBehaviour {
            mapping: Behaviour::EndpointIndependent,
            filtering: Behaviour::AddressAndPortDependent,
        };
        assert_eq!(world.client.behaviour(), expected, "measured anew");
    }
}

#[test]
fn an_address_that_only_a_silent_server_named_is_dropped() {
    let nat = Nat { mapping: Behaviour::AddressDependent, ..Nat::default() };
    let mut world = World::behind(nat).with(&[plain(SERVER_A), plain(SERVER_B)]);
    world.run(Duration::from_secs(10));
    assert_eq!(world.reflexive().len(), 2);
    world.servers[1].dead = true;
    world.run(Duration::from_secs(10));
    assert_eq!(world.reflexive().len(), 2, "not at once");
    world.run(Duration::from_secs(25));
    assert_eq!(world.reflexive(), ["203.0.113.7:40000"]);
    assert!(world.told(StunEvent::ServerSilent { server: addr(SERVER_B) }));
}

#[test]
fn an_outage_of_all_servers_keeps_what_is_known_for_ten_minutes() {
    let mut world = World::behind(Nat::default()).with(&[plain(SERVER_A), plain(SERVER_B)]);
    world.run(Duration::from_secs(10));
    world.servers.iter_mut().for_each(|server| server.dead = true);
    let before = world.sent;
    world.run(Duration::from_secs(590));
    assert_eq!(world.reflexive(), ["203.0.113.7:40000"]);
    assert!(world.sent - before < 250, "silent servers are asked ever more rarely");
    world.run(Duration::from_secs(30));
    assert!(world.reflexive().is_empty());
    // One that comes back has the other asked at once.
    world.servers.iter_mut().for_each(|server| server.dead = false);
    world.run(Duration::from_secs(40));
    assert_eq!(world.reflexive(), ["203.0.113.7:40000"]);
    assert_eq!(world.count(&StunEvent::ServerAnswered { server: addr(SERVER_A) }), 2);
    assert_eq!(world.count(&StunEvent::ServerAnswered { server: addr(SERVER_B) }), 2);
}

#[test]
fn a_lying_server_takes_nothing_away() {
    let mut liar = plain(SERVER_B);
    liar.lie = Some(addr("192.0.2.66:666"));
    let mut world = World::behind(Nat::default()).with(&[plain(SERVER_A), liar, plain(SERVER_C)]);
    world.run(Duration::from_secs(60));
    assert_eq!(world.reflexive(), ["203.0.113.7:40000", "192.0.2.66:666"], "the agreed one first");
}

#[test]
fn senseless_addresses_are_no_answer() {
    for senseless in ["0.0.0.0:5", "224.0.0.1:5", "255.255.255.255:5", "127.0.0.1:5", "192.0.2.1:0"]
    {
        let mut liar = plain(SERVER_A);
        liar.lie = Some(addr(senseless));
        let mut world = World::behind(Nat::default()).with(&[liar]);
        world.run(Duration::from_secs(1));
        assert!(world.reflexive().is_empty(), "{senseless}");
        assert!(world.told(StunEvent::ServerSilent { server: addr(SERVER_A) }));
    }
}

#[test]
fn forged_answers_are_nobodys() {
    let mut world = World::behind(Nat::default()).with(&[plain(SERVER_A)]);
    let now = world.now;
    let asked = world.client.poll_transmit().expect("a request");
    let forged = Answered { mapped: addr("192.0.2.66:666"), other: None };
    let answer = forged.encode(&id_of(&asked.payload));
    assert!(!world.client.handle_datagram(addr(SERVER_B), &answer, now), "another server");
    let elsewhere = addr("198.51.100.10:3479");
    assert!(!world.client.handle_datagram(elsewhere, &answer, now), "another port");
    let other_id = forged.encode(&TransactionId::from([7; 12]));
    assert!(!world.client.handle_datagram(addr(SERVER_A), &other_id, now), "another transaction");
    assert!(!world.client.handle_datagram(addr(SERVER_A), &asked.payload, now), "the request");
    assert!(!world.client.handle_datagram(addr(SERVER_A), &answer[..19], now), "a stump");
    assert!(world.client.reflexive().next().is_none());
    // The true one is still waited for.
    let truth = Answered { mapped: addr("203.0.113.7:40000"), other: None };
    let answer = truth.encode(&id_of(&asked.payload));
    assert!(world.client.handle_datagram(addr(SERVER_A), &answer, now));
    assert_eq!(world.reflexive(), ["203.0.113.7:40000"]);
    assert!(!world.client.handle_datagram(addr(SERVER_A), &answer, now), "a replay");
}

#[test]
fn an_other_address_cannot_aim_us_at_ourselves_or_a_group() {
    for other in ["127.0.0.1:22", "224.0.0.251:5353", "198.51.100.10:3479", "198.51.100.11:3478"] {
        let mut server = plain(SERVER_A);
        server.claims_other = Some(addr(other));
        let mut world = World::behind(Nat::default()).with(&[server]);
        world.run(Duration::from_secs(8));
        assert!(!world.asked.iter().any(|to| *to != addr(SERVER_A)), "{other}");
    }
}

#[test]
fn a_nat_that_changes_with_every_packet_makes_no_storm() {
    let mut world = World::behind(Nat { forgets: true, ..Nat::default() })
        .with(&[double(SERVER_A, SERVER_A_SECOND), double(SERVER_B, SERVER_C)]);
    world.run(Duration::from_secs(60));
    assert!(world.sent < 100, "{} datagrams in a minute", world.sent);
}

#[test]
fn a_changed_list_keeps_the_rest_as_it_is() {
    let mut world = World::behind(Nat::default());
    world.servers = vec![plain(SERVER_A), plain(SERVER_B), plain(SERVER_C)];
    world.ask(&[SERVER_A, SERVER_B]);
    world.run(Duration::from_secs(1));
    let before = world.sent;
    world.ask(&[SERVER_B, SERVER_A, SERVER_A]);
    world.run(Duration::from_secs(1));
    assert_eq!(world.sent, before, "the same list asks nothing");
    world.ask(&[SERVER_A, SERVER_C]);
    world.run(2 * TRIP);
    assert_eq!(world.sent, before + 1);
    assert!(world.told(StunEvent::ServerAnswered { server: addr(SERVER_C) }));
    // An empty list is an outage too.
    world.ask(&[]);
    world.run(Duration::from_secs(300));
    assert_eq!(world.reflexive(), ["203.0.113.7:40000"]);
    assert_eq!(world.count(&StunEvent::Changed), 1);
    world.run(Duration::from_secs(310));
    assert!(world.reflexive().is_empty());
}

#[test]
fn a_refresh_asks_everybody_now() {
    let mut world = World::behind(Nat::default()).with(&[plain(SERVER_A), plain(SERVER_B)]);
    world.run(Duration::from_secs(1));
    world.nat.restart("203.0.113.99");
    let now = world.now;
    world.client.refresh(now);
    world.run(4 * TRIP);
    assert_eq!(world.reflexive(), ["203.0.113.99:40000"]);
}

#[test]
fn both_families_have_addresses_of_their_own() {
    let mut world = World::behind(Nat::default()).with(&[
        plain("[2001:db8::10]:3478"),
        plain(SERVER_A),
        plain("[2001:db8::20]:3478"),
    ]);
    world.run(Duration::from_secs(1));
    assert_eq!(world.reflexive(), ["[2001:db8:7::2]:51820", "203.0.113.7:40000"]);
    // The IPv6 servers agree; what is told is the IPv4 NAT, of which one tells nothing.
    assert_eq!(world.client.behaviour().mapping, Behaviour::Unknown);
}

proptest! {
    #[test]
    fn rubbish_is_never_an_answer(
        mut datagram in proptest::collection::vec(any::<u8>(), 0..200),
        true_header in any::<bool>(),
    ) {
        let mut world = World::behind(Nat::default()).with(&[plain(SERVER_A)]);
        let asked = world.client.poll_transmit().expect("a request");
        if true_header && datagram.len() >= 20 {
            datagram[..2].copy_from_slice(&[0x01, 0x01]);
            datagram[4..20].copy_from_slice(&asked.payload[4..20]);
        }
        let now = world.now;
        world.client.handle_datagram(addr(SERVER_A), &datagram, now);
        world.run(Duration::from_secs(60));
        prop_assert_eq!(world.reflexive(), ["203.0.113.7:40000"]);
    }
}
