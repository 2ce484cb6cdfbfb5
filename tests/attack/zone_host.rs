//! The zone's own host is hostile: it serves yesterday, two networks at once, names without
//! number, or nothing; before and after a node was restarted.

use std::collections::BTreeMap;

use zonemesh::mesh::roster::MAX_MEMBERS;
use zonemesh_discovery::{
    advert::{Endpoint, InstanceRecords},
    identity::PublicKey,
};

use crate::world::{
    HOUR, Says, at, chain, good, key, members_only, net, records, routes, token_of, view, wall,
    zone_trusted,
};

fn moved(sequence: u64, to: u8) -> zonemesh_discovery::advert::SignedAdvert {
    let route = "10.42.1.0/24";
    let certificate = Some(chain(&crate::world::token(1, &["10.42.0.0/16"]), 1, &[route]));
    Says { n: 1, routes: &[route], certificate, sequence, at: to }.sign()
}

#[test]
fn yesterdays_adverts_do_not_come_back() {
    let (old, new) = (moved(7, 1), moved(8, 2));
    let mut roster = members_only();
    roster.handle_zone(&view([&new]), wall());
    for _ in 0..3 {
        roster.handle_zone(&view([&old]), wall());
        roster.handle_lan(old.txt(), wall());
        assert!(!roster.handle_shared(&key(1), old.txt(), wall()));
    }
    assert_eq!(at(&roster, 1), Some(2));
    assert!(roster.dropped().replayed >= 9);

    // Who has never seen the newer one is led astray, until the old one lapses.
    let mut weak = members_only();
    assert!(weak.handle_zone(&view([&old]), wall()));
    assert_eq!(at(&weak, 1), Some(1));
    let later = wall() + 2 * HOUR;
    assert!(!members_only().handle_zone(&view([&old]), later));
}

#[test]
fn a_restarted_node_that_remembers_is_not_led_back() {
    let (old, new) = (moved(7, 1), moved(8, 2));
    let mut before = members_only();
    before.handle_zone(&view([&new]), wall());
    // What the state folder keeps of it.
    let kept: Vec<Vec<Vec<u8>>> =
        before.members().filter_map(|(_, member)| Some(member.signed()?.txt().to_vec())).collect();

    let mut after = members_only();
    for txt in &kept {
        assert!(after.handle_remembered(txt, wall()));
    }
    after.handle_zone(&view([&old]), wall());
    assert_eq!(at(&after, 1), Some(2));

    let mut forgetful = members_only();
    forgetful.handle_zone(&view([&old]), wall());
    assert_eq!(at(&forgetful, 1), Some(1), "without its state it is");
}

#[test]
fn another_networks_members_are_strangers_though_the_zone_mixes_both() {
    let theirs = chain(&token_of(2, 1, &["10.42.0.0/16"]), 9, &["10.42.1.0/24"]);
    let theirs =
        Says { n: 9, routes: &["10.42.1.0/24"], certificate: Some(theirs), sequence: 1, at: 9 }
            .sign();
    let both = view([&good(1, 1), &theirs]);
    let mut roster = members_only();
    roster.handle_zone(&both, wall());
    assert_eq!(roster.members().count(), 1);
    assert_eq!(routes(&roster, 1), [net("10.42.1.0/24")]);
    assert_eq!(roster.dropped().uncertified, 1);

    let mut weak = zone_trusted();
    weak.handle_zone(&both, wall());
    assert_eq!(routes(&weak, 9), [net("10.42.1.0/24")], "two claim one route");
}

#[test]
fn a_zone_that_answers_every_name_fills_nothing() {
    let mut roster = members_only();
    roster.handle_zone(&view([&good(1, 1)]), wall());
    let made_up = (0..2 * MAX_MEMBERS as u32).map(|n| {
        let mut bytes = [3; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        let node = PublicKey::from_bytes(bytes);
        let endpoint = Some(Endpoint::new(51820, vec![[198, 51, 100, 66].into()]));
        (node, InstanceRecords { node, txt: vec![b"txtvers=1".to_vec()], endpoint })
    });
    let mut view: BTreeMap<PublicKey, InstanceRecords> = made_up.collect();
    roster.handle_zone(&view, wall());
    assert_eq!(roster.members().count(), 1, "and the member stays, though it is not shown");
    assert!(roster.dropped().invalid + roster.dropped().uncertified >= 2 * MAX_MEMBERS as u64);
    view.insert(key(2), records(&good(2, 1)));
    assert!(roster.handle_zone(&view, wall()), "among all of it the genuine one is found");
    assert_eq!(roster.members().count(), 2);
}

#[test]
fn what_is_withheld_or_was_dropped_after_an_acknowledgement_ends_nothing_that_lives() {
    let mut roster = members_only();
    roster.handle_zone(&view([&good(1, 1), &good(2, 1)]), wall());
    for empty in [view([]), view([&good(2, 1)]), view([])] {
        roster.handle_zone(&empty, wall());
        roster.forget_silent(wall(), |node| *node == key(1));
        assert!(roster.get(&key(1)).is_some(), "it is heard");
    }
    // What the zone has swallowed comes over the mesh.
    assert!(roster.handle_shared(&key(1), moved(9, 5).txt(), wall()));
    assert_eq!(at(&roster, 1), Some(5));
    // One that is neither shown nor heard is gone: that much a zone can withhold.
    assert!(roster.get(&key(2)).is_none());
}
