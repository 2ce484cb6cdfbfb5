//! The zone's key was stolen: somebody writes in the zone what they like.

use data_encoding::BASE64;
use zonemesh_discovery::{
    advert::{Endpoint, InstanceRecords},
    identity::PublicKey,
};

use crate::world::wall;
use crate::world::{
    Says, at, good, key, members_only, net, node, records, routes, view, zone, zone_trusted,
};

#[test]
fn who_writes_in_the_zone_is_no_member_by_that() {
    let stranger =
        Says { n: 66, routes: &["10.42.66.0/24"], certificate: None, sequence: 1, at: 66 }.sign();
    let view = view([&good(1, 1), &stranger]);
    let mut roster = members_only();
    roster.handle_zone(&view, wall());
    assert!(roster.get(&key(1)).is_some());
    assert!(roster.get(&key(66)).is_none());
    assert_eq!(roster.dropped().uncertified, 1);

    let mut weak = zone_trusted();
    weak.handle_zone(&view, wall());
    assert_eq!(routes(&weak, 66), [net("10.42.66.0/24")], "who may write is in");
}

#[test]
fn nothing_of_a_members_advert_can_be_changed() {
    let genuine = records(&good(1, 1));
    let text = |string: &[u8]| String::from_utf8_lossy(string).into_owned();
    let mut forged: Vec<InstanceRecords> = Vec::new();
    for (number, string) in genuine.txt.iter().enumerate() {
        let mut changed = genuine.clone();
        // The candidates lead to the attacker; the rest is changed somewhere.
        if text(string).starts_with("cand=") {
            changed.txt[number] = b"cand=s:198.51.100.66:51820".to_vec();
        } else if text(string).starts_with("allowed=") {
            changed.txt[number] = b"allowed=0.0.0.0/8".to_vec();
        } else if let Some(last) = changed.txt[number].last_mut() {
            *last ^= 1;
        }
        forged.push(changed);
        let mut without = genuine.clone();
        without.txt.remove(number);
        forged.push(without);
    }
    // SRV and addresses of the attacker beside what was signed.
    forged.push(InstanceRecords {
        endpoint: Some(Endpoint::new(51820, vec![[198, 51, 100, 66].into()])),
        ..genuine.clone()
    });
    // Under another's name.
    forged.push(InstanceRecords { node: key(2), ..genuine.clone() });
    // Signed by the attacker in the victim's name.
    let mut resigned = genuine;
    let signature = node(66).sign(b"whatever");
    *resigned.txt.last_mut().expect("signed") =
        format!("sig={}", BASE64.encode(&signature)).into_bytes();
    forged.push(resigned);
    for records in forged {
        for mut roster in [members_only(), zone_trusted()] {
            assert!(!roster.handle_records(&records, wall()), "{records:?}");
            assert_eq!(roster.members().count(), 0);
        }
    }
}

/// A record that nobody signed counts for listed keys alone, and there the zone is believed:
/// that is what listing a key that signs nothing means.
#[test]
fn an_unsigned_record_leads_only_to_keys_that_are_listed_for_it() {
    use zonemesh::mesh::roster::{Admission, Roster};
    let bare = |node: PublicKey| InstanceRecords {
        node,
        txt: vec![],
        endpoint: Some(Endpoint::new(51820, vec![[198, 51, 100, 66].into()])),
    };
    let listed = || Roster::new(zone(), key(100), Admission::Listed([key(1)].into()), Vec::new());
    for mut roster in [members_only(), zone_trusted(), listed()] {
        assert!(!roster.handle_records(&bare(key(66)), wall()));
    }
    let mut roster = members_only();
    roster.handle_records(&records(&good(1, 1)), wall());
    assert!(!roster.handle_records(&bare(key(1)), wall()));
    assert_eq!(at(&roster, 1), Some(1), "who signs is not spoken for");
    let mut weak = listed();
    assert!(weak.handle_records(&bare(key(1)), wall()), "led to where the zone says");
}
