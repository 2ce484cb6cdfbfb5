//! A member that wants more than its own, and one that was thrown out.

use std::time::Instant;

use zonemesh_discovery::membership::{MembershipError, Revoked, Token};

use crate::world::{
    Says, chain, good, key, members_only, mesh, net, network, node, records, revoked, routes,
    token, view, wall, zone, zone_trusted,
};

#[test]
fn another_members_route_is_not_to_be_had() {
    // Each site has an invite of its own, as docs/security.md says.
    let site = token(2, &["10.42.2.0/24"]);
    let claimed = ["10.42.2.0/24", "10.42.1.0/24", "10.42.1.0/25", "0.0.0.0/8"];
    let greedy =
        |certificate| Says { n: 2, routes: &claimed, certificate, sequence: 1, at: 2 }.sign();
    let honest = greedy(Some(chain(&site, 2, &["10.42.2.0/24"])));
    let mut roster = members_only();
    roster.handle_zone(&view([&good(1, 1), &honest]), wall());
    assert_eq!(routes(&roster, 1), [net("10.42.1.0/24")]);
    assert_eq!(routes(&roster, 2), [net("10.42.2.0/24")], "its own counts, the rest does not");
    let member = roster.get(&key(2)).expect("a member");
    assert_eq!(member.outside().count(), 3, "and is told");

    // The token signs for nothing beyond it.
    let wider = site.admit(&key(2), "b", &[net("10.42.1.0/24")], &[] as &[&str], wall());
    assert_eq!(wider.err(), Some(MembershipError::Routes));

    // With one invite for all, any of its nodes may have any of its routes; and where
    // nothing is certified, all that it says.
    let shared = chain(&token(1, &["10.42.0.0/16"]), 2, &["10.42.0.0/16"]);
    let mut weak = members_only();
    weak.handle_zone(&view([&good(1, 1), &greedy(Some(shared))]), wall());
    assert!(routes(&weak, 2).contains(&net("10.42.1.0/24")));
    let mut weaker = zone_trusted();
    weaker.handle_zone(&view([&greedy(None)]), wall());
    assert_eq!(routes(&weaker, 2).len(), claimed.len());
}

#[test]
fn who_was_invited_for_more_does_not_get_what_a_site_was_invited_for() {
    let (site, wide) = (token(2, &["10.42.1.0/24"]), token(1, &["10.42.0.0/16"]));
    let says = |n, token: &Token, routes: &[&str]| {
        Says { n, routes, certificate: Some(chain(token, n, routes)), sequence: 1, at: n }.sign()
    };
    let greedy = ["10.42.1.0/24", "10.42.1.0/25", "10.42.1.128/25", "10.42.1.7/32"];
    let resolve = |honest_token: &Token, honest, other| {
        let mut mesh = mesh();
        let honest_says = says(honest, honest_token, &["10.42.1.0/24"]);
        let both = view([&honest_says, &says(other, &wide, &greedy)]);
        mesh.handle_zone(&both, Instant::now(), wall());
        let of = |n| mesh.resolved().routes.get(&key(n)).map_or(0, std::collections::BTreeSet::len);
        (of(honest), of(other))
    };
    // Whoever has the lower key.
    assert_eq!(resolve(&site, 1, 2), (1, 0));
    assert_eq!(resolve(&site, 2, 1), (1, 0));
    // With one invite for both, the parts of the route are the attacker's.
    assert!(resolve(&wide, 1, 2).1 > 0);
}

#[test]
fn another_members_certificate_is_of_no_use() {
    let theirs = chain(&token(1, &["10.42.0.0/16"]), 1, &["10.42.1.0/24"]);
    let thief =
        Says { n: 66, routes: &["10.42.1.0/24"], certificate: Some(theirs), sequence: 1, at: 66 }
            .sign();
    let mut roster = members_only();
    roster.handle_zone(&view([&thief]), wall());
    assert_eq!(roster.members().count(), 0);
    let mut weak = zone_trusted();
    weak.handle_zone(&view([&thief]), wall());
    assert_eq!(weak.members().count(), 1);
}

#[test]
fn nobody_signs_for_another_nodes_key() {
    let mut advert = good(1, 1).advert().clone();
    advert.sequence = 2;
    assert!(advert.sign(&node(2), &zone()).is_err());
    // Handed over the mesh by a member that is one.
    let mut roster = members_only();
    roster.handle_zone(&view([&good(1, 1), &good(2, 1)]), wall());
    assert!(!roster.handle_shared(&key(2), good(1, 2).txt(), wall()), "it speaks for itself");
    assert_eq!(roster.dropped().foreign, 1);
    assert!(roster.handle_shared(&key(1), good(1, 2).txt(), wall()), "as its own word it counts");
}

#[test]
fn a_revoked_member_is_out_by_its_key_and_by_its_invite() {
    let invite = token(1, &["10.42.0.0/16"]).invite();
    for entry in [Revoked::from(&key(1)), Revoked::from(&invite)] {
        let by_key = entry == Revoked::from(&key(1));
        let mut roster = members_only();
        roster.handle_zone(&view([&good(1, 1), &good(2, 1)]), wall());
        assert!(roster.set_revocations(&revoked(1, [entry])));
        assert_eq!(roster.members().count(), usize::from(by_key));
        // It comes back by no way, also with a newer advert.
        let again = good(1, 2);
        roster.handle_zone(&view([&again]), wall());
        roster.handle_lan(again.txt(), wall());
        roster.handle_remembered(again.txt(), wall());
        roster.handle_shared(&key(1), again.txt(), wall());
        assert!(roster.get(&key(1)).is_none());
        assert!(roster.dropped().revoked >= 3);
    }
    // Where the list never came, it stays.
    let mut weak = members_only();
    weak.handle_zone(&view([&good(1, 1)]), wall());
    weak.handle_zone(&view([&good(1, 2)]), wall());
    assert!(weak.get(&key(1)).is_some());
}

#[test]
fn a_new_key_under_a_revoked_invite_is_out_too() {
    let invite = token(1, &["10.42.0.0/16"]);
    let mut roster = members_only();
    roster.set_revocations(&revoked(1, [Revoked::from(&invite.invite())]));
    // Whoever has the token makes another key and lets it in.
    let fresh = Says {
        n: 77,
        routes: &[],
        certificate: Some(chain(&invite, 77, &[])),
        sequence: 1,
        at: 77,
    }
    .sign();
    assert!(!roster.handle_records(&records(&fresh), wall()));
    // Had only the first node been revoked, it would be in.
    let mut weak = members_only();
    weak.set_revocations(&revoked(1, [Revoked::from(&key(1))]));
    assert!(weak.handle_records(&records(&fresh), wall()));
    assert_ne!(network(1).id(), network(2).id());
}
