//! Agents at sites behind modelled NATs, in virtual time.

mod net;

use std::time::Duration;

use net::{Behaviour, DEPENDS, Ports, World, direct_is_possible};

const SECOND: Duration = Duration::from_secs(1);

/// Two sites, and how long it takes them to connect.
fn meet(seed: u64, a: Behaviour, b: Behaviour, limit: Duration) -> Option<Duration> {
    let mut world = World::new(seed);
    let a = world.site("203.0.113.1", "192.168.1.2", a);
    let b = world.site("203.0.113.2", "192.168.2.2", b);
    world.introduce(a, b);
    world.connect(a, b, limit)
}

#[test]
fn port_restricted_meets_port_restricted() {
    let nat = Behaviour::port_restricted();
    let took = meet(1, nat, nat, 10 * SECOND).expect("a path");
    assert!(took < SECOND, "{took:?}");
}

#[test]
fn every_nat_meets_every_other() {
    let mut kinds = Vec::new();
    for mapping in DEPENDS {
        for filtering in DEPENDS {
            for ports in [Ports::Preserving, Ports::Sequential, Ports::Random] {
                kinds.push(Behaviour::new(mapping, filtering, ports));
            }
        }
    }
    let mut seed = 0;
    for a in &kinds {
        for b in &kinds {
            seed += 1;
            let took = meet(seed, *a, *b, 10 * SECOND);
            if direct_is_possible(a, b) {
                let took = took.unwrap_or_else(|| panic!("no path: {a:?} × {b:?}"));
                assert!(took < SECOND, "{took:?}: {a:?} × {b:?}");
            } else {
                assert_eq!(took, None, "a path nobody expected: {a:?} × {b:?}");
            }
        }
    }
}
