//! A mesh of members: who is revoked is out everywhere, also where the zone is not reached.

use zonemesh_discovery::membership::{
    Access, Limits, NetworkKey, RevocationList, Revoked, Token, Validity,
};

use super::*;

fn network() -> NetworkKey {
    NetworkKey::from_seed(&[7; 32])
}

fn token(wall: SystemTime) -> Token {
    let limits = Limits::new("", &[net("10.42.0.0/16")], &["edge"]).expect("in bounds");
    let validity = Validity::new(wall, Some(wall + Duration::from_secs(24 * 3600)));
    Token::issue(&network(), &[8; 32], zone(), validity, limits, Access::default()).expect("fits")
}

fn members(count: usize) -> World {
    let routes: Vec<String> = (0..count).map(|n| format!("10.42.{n}.0/24")).collect();
    let routes: Vec<[&str; 1]> = routes.iter().map(|route| [route.as_str()]).collect();
    let routes: Vec<&[&str]> = routes.iter().map(|routes| &routes[..]).collect();
    let admission = Admission::Members(network().id(), None);
    let mut world = World::of(&routes, &admission, |n, key, wall| {
        let route = net(&format!("10.42.{n}.0/24"));
        let made = token(wall).admit(key, &format!("member-{n}"), &[route], &["edge"], wall);
        Some(made.expect("the token lets it in").chain().as_bytes().to_vec())
    });
    for node in &mut world.nodes {
        node.mesh.set_network(network().id());
    }
    world
}

fn list(number: u64, revoked: impl IntoIterator<Item = Revoked>) -> RevocationList {
    RevocationList::sign(&network(), number, revoked).expect("it fits")
}

impl World {
    fn knows(&self, node: usize, other: usize) -> bool {
        let key = self.nodes[other].key;
        self.nodes[node].mesh.wire_peers().iter().any(|peer| peer.node == key)
    }

    fn number(&self, node: usize) -> Option<u64> {
        self.nodes[node].mesh.revocations().map(|list| list.number())
    }
}

#[test]
fn a_revoked_member_is_out_at_all_within_seconds_though_one_alone_reads_the_zone() {
    let mut world = members(4);
    world.publish(&[0, 1, 2, 3]);
    world.run(Duration::from_secs(1), |_, _| false);
    world.hear();
    assert!(world.knows(2, 1) && world.path(2, 1).is_some());
    let now = world.now;
    let revoked = Revoked::from(&world.nodes[1].key);
    assert!(world.nodes[0].mesh.handle_revocations(list(1, [revoked]), now));
    assert!(!world.knows(0, 1), "at once where it was read");
    world.run(Duration::from_secs(1), |_, _| false);
    for node in [2, 3] {
        assert_eq!(world.number(node), Some(1));
        assert!(!world.knows(node, 1) && world.knows(node, 0), "{node}");
    }
    // Its advert brings it back by no way, and the list does not go back.
    world.publish(&[0, 1, 2, 3]);
    let stale = list(0, []);
    assert!(!world.nodes[2].mesh.handle_revocations(stale, world.now));
    world.run(Duration::from_secs(1), |_, _| false);
    assert!((0..4).filter(|node| *node != 1).all(|node| !world.knows(node, 1)));
}

#[test]
fn with_an_invite_all_go_whom_it_let_in() {
    let mut world = members(3);
    world.publish(&[0, 1, 2]);
    world.run(Duration::from_secs(1), |_, _| false);
    let invite = token(world.wall).invite();
    let now = world.now;
    world.nodes[0].mesh.handle_revocations(list(1, [Revoked::from(&invite)]), now);
    assert!(!world.knows(0, 1) && !world.knows(0, 2));
}

#[test]
fn who_comes_later_or_was_cut_off_gets_a_long_list_too() {
    let mut world = members(3);
    let others = (0..2000u16).map(|n| {
        let mut key = [9; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        Revoked::from(&PublicKey::from_bytes(key))
    });
    let now = world.now;
    assert!(world.nodes[0].mesh.handle_revocations(list(5, others), now));
    world.publish(&[0, 1]);
    let cut_off = world.nodes[2].addr;
    world.run(Duration::from_secs(3), |a, b| a == cut_off || b == cut_off);
    assert_eq!((world.number(1), world.number(2)), (Some(5), None));
    world.publish(&[0, 1, 2]);
    world.run(Duration::from_secs(3), |_, _| false);
    assert_eq!(world.number(2), Some(5));
}

#[test]
fn a_membership_that_ends_ends_the_sessions_with_it() {
    let mut world = members(2);
    world.publish(&[0, 1]);
    world.run(Duration::from_secs(1), |_, _| false);
    world.hear();
    world.wall += Duration::from_secs(24 * 3600 + 299);
    world.run(Duration::from_millis(1), |_, _| false);
    assert!(world.knows(0, 1), "clocks may differ by 5 minutes");
    for _ in 0..3 {
        world.run(Duration::from_secs(1), |_, _| false);
        world.hear();
    }
    assert!(!world.knows(0, 1), "though it was heard just now");
}
