//! Tokens and lists of another network, and lists that go back.

use std::time::Instant;

use zonemesh::mesh::Mesh;
use zonemesh_discovery::membership::{RevocationError, RevocationList, Revoked, Token};

use crate::world::{
    Says, chain, good, key, members_only, mesh, network, records, revoked, token_of, view, wall,
    zone_trusted,
};

#[test]
fn a_token_of_another_network_lets_nobody_in() {
    let theirs = token_of(2, 1, &["10.42.0.0/16"]);
    let printed = theirs.to_string();
    let read: Token = printed.parse().expect("it is a good token");
    let outsider = Says {
        n: 9,
        routes: &["10.42.9.0/24"],
        certificate: Some(chain(&read, 9, &["10.42.9.0/24"])),
        sequence: 1,
        at: 9,
    }
    .sign();
    assert!(!members_only().handle_records(&records(&outsider), wall()));
    assert!(zone_trusted().handle_records(&records(&outsider), wall()));
}

#[test]
fn another_networks_list_revokes_nobody() {
    let forged = RevocationList::sign(&network(2), 99, [Revoked::from(&key(1))]).expect("few");
    let read = RevocationList::from_txt(&forged.txt(), &network(1).id());
    assert_eq!(read, Err(RevocationError::Network));
    assert!(RevocationList::from_txt(&forged.txt(), &network(2).id()).is_ok());
}

/// A node with what it kept of the network's list, after a restart.
fn restarted(kept: Option<&RevocationList>) -> Mesh {
    let mut mesh = mesh();
    mesh.set_network(network(1).id());
    if let Some(kept) = kept {
        let list = RevocationList::read(kept.as_bytes(), &network(1).id()).expect("as it was kept");
        assert!(mesh.handle_revocations(list, Instant::now()));
    }
    mesh
}

#[test]
fn an_older_list_does_not_bring_a_revoked_member_back_after_a_restart() {
    let old = revoked(1, []);
    let new = revoked(2, [Revoked::from(&key(1))]);
    let both = view([&good(1, 1), &good(2, 1)]);
    let known = |mesh: &Mesh, n| mesh.wire_peers().iter().any(|peer| peer.node == key(n));
    let now = Instant::now();

    let mut mesh = restarted(Some(&new));
    assert!(!mesh.handle_revocations((*old).clone(), now), "lower, and so not taken");
    mesh.handle_zone(&both, now, wall());
    assert!(known(&mesh, 2) && !known(&mesh, 1));

    // A node that keeps nothing believes what the zone shows.
    let mut forgetful = restarted(None);
    assert!(forgetful.handle_revocations((*old).clone(), now));
    forgetful.handle_zone(&both, now, wall());
    assert!(known(&forgetful, 1));
    // Until the newer one comes by any way.
    assert!(forgetful.handle_revocations((*new).clone(), now));
    assert!(!known(&forgetful, 1) && known(&forgetful, 2));
}
