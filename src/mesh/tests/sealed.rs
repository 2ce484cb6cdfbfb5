//! A sealed mesh: what members hand each other on their way says nothing to others.

use std::sync::Arc;

use zonemesh_discovery::{membership::Secret, sealed::Seal};

use super::*;

/// Whether a new address of node 1 comes to node 0 over the mesh, and whether it could be read
/// on its way.
fn told_and_readable(seals: [Option<u8>; 2]) -> (bool, bool) {
    let mut world = World::new(&[&["10.42.0.0/24"], &["10.42.1.0/24"]]);
    for (node, seal) in world.nodes.iter_mut().zip(seals) {
        if let Some(secret) = seal {
            node.mesh.set_seal(Arc::new(Seal::new(&Secret::new(vec![secret; 32]))));
        }
    }
    world.publish(&[0, 1]);
    world.run(Duration::from_secs(1), |_, _| false);
    let candidate = zonemesh_discovery::advert::Candidate {
        kind: Advertised::ServerReflexive,
        addr: "198.51.100.77:4".parse().expect("an address"),
    };
    let (now, wall) = (world.now, world.wall);
    let newer = world.nodes[1].own.refresh(&[candidate], now, wall).expect("fits").expect("new");
    world.nodes[1].mesh.set_own_advert(&newer, now);
    let mut is_readable = false;
    for _ in 0..200 {
        world.run(Duration::from_millis(5), |_, _| false);
        let secrets = [&b"pub="[..], b"198.51.100.77", b"node-1"];
        is_readable |= world.wire.iter().any(|(.., payload)| {
            secrets.iter().any(|secret| payload.windows(secret.len()).any(|at| at == *secret))
        });
    }
    let advert = world.nodes[0].mesh.advert(&world.nodes[1].key).expect("a member");
    (advert.candidates.contains(&candidate), is_readable)
}

#[test]
fn what_a_member_hands_on_is_for_members_alone() {
    assert_eq!(told_and_readable([Some(1), Some(1)]), (true, false));
    assert_eq!(told_and_readable([None, None]), (true, true), "in an open mesh it can be read");
    assert_eq!(told_and_readable([Some(1), Some(2)]), (false, false), "of another network");
}
