mod members;

use std::time::Duration;

use ipnet::IpNet;
use zonemesh_discovery::{
    advert::{Candidate, CandidateKind, Endpoint},
    identity::Identity,
};

use super::*;

const WALL: Duration = Duration::from_secs(1_800_000_000);

fn wall() -> SystemTime {
    SystemTime::UNIX_EPOCH + WALL
}

fn zone() -> Zone {
    "mesh.example".parse().expect("a zone")
}

fn identity(n: u8) -> Identity {
    Identity::from_seed(&[n; 32])
}

fn roster(admission: Admission) -> Roster {
    Roster::new(zone(), identity(0).public_key(), admission, Vec::new())
}

fn advert(n: u8, sequence: u64) -> SignedAdvert {
    let route: IpNet = format!("10.42.{n}.0/24").parse().expect("a prefix");
    let advert = Advert {
        node: identity(n).public_key(),
        name: format!("node-{n}"),
        addresses: vec![],
        routes: vec![route],
        candidates: vec![Candidate {
            kind: CandidateKind::ServerReflexive,
            addr: "198.51.100.7:51820".parse().expect("an address"),
        }],
        sequence,
        certificate: None,
        expires: wall() + Duration::from_secs(3600),
    };
    advert.sign(&identity(n), &zone()).expect("a valid advert")
}

fn records(signed: &SignedAdvert) -> InstanceRecords {
    InstanceRecords {
        node: signed.advert().node,
        txt: signed.txt().to_vec(),
        endpoint: signed.advert().endpoint(),
    }
}

fn view(all: &[&SignedAdvert]) -> BTreeMap<PublicKey, InstanceRecords> {
    all.iter().map(|signed| (signed.advert().node, records(signed))).collect()
}

fn keys(roster: &Roster) -> Vec<PublicKey> {
    roster.members().map(|(key, _)| *key).collect()
}

#[test]
fn an_older_advert_never_replaces_a_newer_one() {
    let mut roster = roster(Admission::Zone);
    assert!(roster.handle_zone(&view(&[&advert(1, 7)]), wall()));
    assert!(!roster.handle_zone(&view(&[&advert(1, 6)]), wall()));
    assert!(!roster.handle_lan(advert(1, 6).txt(), wall()));
    assert_eq!(roster.dropped().replayed, 2);
    let member = roster.get(&identity(1).public_key()).expect("a member");
    assert_eq!(member.advert().expect("signed").sequence, 7);
}

#[test]
fn one_bad_record_harms_no_other() {
    let mut roster = roster(Admission::Zone);
    let (good, bad) = (advert(1, 1), advert(2, 1));
    let mut view = view(&[&good, &bad]);
    let spoilt = view.get_mut(&bad.advert().node).expect("there");
    spoilt.txt[2][6] ^= 1;
    assert!(roster.handle_zone(&view, wall()));
    assert_eq!(keys(&roster), [good.advert().node]);
    assert_eq!(roster.dropped().invalid, 1);
}

#[test]
fn a_member_that_left_the_zone_stays_while_it_is_heard() {
    let mut roster = roster(Admission::Zone);
    roster.handle_zone(&view(&[&advert(1, 1)]), wall());
    roster.handle_zone(&BTreeMap::new(), wall());
    assert!(!roster.forget_silent(wall(), |_| true));
    assert!(roster.forget_silent(wall(), |_| false));
    assert!(keys(&roster).is_empty());
}

#[test]
fn a_remembered_member_counts_until_the_zone_is_read() {
    let mut roster = roster(Admission::Zone);
    assert!(roster.handle_remembered(advert(1, 1).txt(), wall()));
    assert!(roster.handle_remembered(advert(2, 1).txt(), wall()));
    assert!(!roster.forget_silent(wall(), |_| false), "the zone may be away");
    roster.handle_zone(&view(&[&advert(1, 1)]), wall());
    assert!(roster.forget_silent(wall(), |_| false));
    assert_eq!(keys(&roster), [identity(1).public_key()]);
}

#[test]
fn a_lapsed_member_goes_though_the_zone_still_shows_it() {
    let mut roster = roster(Admission::Zone);
    roster.handle_zone(&view(&[&advert(1, 1)]), wall());
    let later = wall() + Duration::from_secs(3600) + CLOCK_SKEW + Duration::from_secs(1);
    assert!(!roster.forget_silent(wall(), |_| false));
    assert!(roster.forget_silent(later, |_| false));
}

#[test]
fn only_listed_keys_are_taken_where_they_are_listed() {
    let mut roster = roster(Admission::Listed([identity(1).public_key()].into()));
    roster.handle_zone(&view(&[&advert(1, 1), &advert(2, 1)]), wall());
    assert_eq!(keys(&roster), [identity(1).public_key()]);
    assert_eq!(roster.dropped().foreign, 1);
}

#[test]
fn an_unsigned_record_counts_for_a_listed_key_alone() {
    let node = identity(1).public_key();
    let endpoint = Endpoint::new(51820, vec!["198.51.100.7".parse().expect("an address")]);
    let bare = InstanceRecords { node, txt: vec![], endpoint: Some(endpoint) };
    let view = BTreeMap::from([(node, bare)]);
    let mut open = roster(Admission::Zone);
    assert!(!open.handle_zone(&view, wall()));
    let mut listed = roster(Admission::Listed([node].into()));
    assert!(listed.handle_zone(&view, wall()));
    assert!(matches!(listed.get(&node).expect("a member").said(), Said::Bare(_)));
    // A signed advert takes over, and an unsigned record does not take it back.
    assert!(listed.handle_lan(advert(1, 1).txt(), wall()));
    assert!(!listed.handle_zone(&view, wall()));
    assert!(listed.get(&node).expect("a member").advert().is_some());
}

#[test]
fn our_own_advert_makes_no_member_and_tells_its_sequence() {
    let mut roster = roster(Admission::Zone);
    assert!(!roster.handle_zone(&view(&[&advert(0, 41)]), wall()));
    assert_eq!(roster.own_sequence(), 41);
    assert!(keys(&roster).is_empty());
}

#[test]
fn nobody_speaks_for_a_peer_that_the_configuration_names() {
    let fixed = vec![identity(1).public_key()];
    let mut roster = Roster::new(zone(), identity(0).public_key(), Admission::Zone, fixed);
    assert!(!roster.handle_zone(&view(&[&advert(1, 1)]), wall()));
}
