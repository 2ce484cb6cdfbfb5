//! Claims of slices: one holder each.

use ipnet::IpNet;

use super::{
    members::{
        certificate, invite, list, list_records, members, network, refused, write, write_at,
    },
    *,
};
use crate::{
    membership::{Limits, Revoked, Token, Validity},
    zone::{
        serve::{Refusal, UpdateError},
        slice::{ClaimError, SliceClaim},
    },
};

fn slice(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

/// A certificate under which the whole of the network's range may be claimed.
fn claimer(node: &Identity) -> Option<Vec<u8>> {
    let routes = [slice("10.42.0.0/16")];
    let member = invite().admit(&node.public_key(), "a node", &routes, &[] as &[&str], now());
    Some(member.expect("within the limits").chain().as_bytes().to_vec())
}

fn claim(node: &Identity, text: &str, sequence: u64, lease: u64) -> SliceClaim {
    SliceClaim {
        node: node.public_key(),
        slice: slice(text),
        sequence,
        expires: after(lease),
        certificate: claimer(node),
    }
}

fn txt(node: &Identity, claim: &SliceClaim) -> Record {
    let signed = claim.sign(node, &zone()).expect("within bounds");
    let txt = TXT::from_bytes(signed.txt().iter().map(Vec::as_slice).collect());
    Record::from_rdata(zone().slice(&claim.slice), 30, RData::TXT(txt))
}

/// The claim in the place of whatever is there.
fn replace(node: &Identity, claim: &SliceClaim) -> Vec<Record> {
    vec![delete_set(&zone().slice(&claim.slice), RecordType::TXT), txt(node, claim)]
}

#[test]
fn a_claim_stands_until_it_ends_and_gives_way_to_nobody() {
    let mut store = members();
    let (one, two) = (node(1), node(2));
    assert_eq!(write(&mut store, replace(&one, &claim(&one, "10.42.7.0/24", 1, 3600))), Ok(()));
    let taken = Refusal::Taken { slice: slice("10.42.7.0/24") };
    for text in ["10.42.7.0/24", "10.42.0.0/16", "10.42.7.128/25"] {
        let other = replace(&two, &claim(&two, text, 9, 3600));
        assert_eq!(refused(write(&mut store, other)), taken, "{text}");
    }
    let gone = vec![delete_set(&zone().slice(&slice("10.42.7.0/24")), RecordType::TXT)];
    assert_eq!(refused(write(&mut store, gone)), Refusal::Unproven);
    // It is renewed, and not by what was said before.
    assert_eq!(write(&mut store, replace(&one, &claim(&one, "10.42.7.0/24", 2, 7200))), Ok(()));
    let old = replace(&one, &claim(&one, "10.42.7.0/24", 1, 3600));
    assert_eq!(refused(write(&mut store, old)), Refusal::Old { known: 2 });
    // It ends: by itself, or as soon as another node asks.
    let end = after(7200 + 300);
    assert_eq!(store.poll_timeout(), Some(end));
    let late = claim(&two, "10.42.7.0/24", 1, 7200 + 3600);
    let early = write_at(&mut store, replace(&two, &late), end - Duration::from_secs(1));
    assert_eq!(refused(early), taken);
    assert_eq!(write_at(&mut store, replace(&two, &late), end), Ok(()));
    store.handle_timeout(after(7200 + 3600 + 300));
    store.poll_journal();
    store.commit();
    assert!(store.records().all(|record| record.record_type() != RecordType::TXT));
}

#[test]
fn a_claim_proves_itself() {
    let mut store = members();
    let identity = node(1);
    let good = claim(&identity, "10.42.7.0/24", 1, 3600);
    let outside = claim(&identity, "10.43.7.0/24", 1, 3600);
    let error = refused(write(&mut store, replace(&identity, &outside)));
    assert_eq!(error, Refusal::NotCertified);
    // A certificate without routes allows none.
    let certificate = certificate(&invite(), &identity.public_key());
    let none = SliceClaim { certificate, ..good };
    let error = refused(write(&mut store, replace(&identity, &none)));
    assert_eq!(error, Refusal::NotCertified);
    let bare = SliceClaim { certificate: None, ..good };
    let error = refused(write(&mut store, replace(&identity, &bare)));
    assert!(matches!(error, Refusal::Certificate(_)));
    let long = SliceClaim { expires: after(25 * 3600), ..good.clone() };
    let error = refused(write(&mut store, replace(&identity, &long)));
    assert!(matches!(error, Refusal::Claim(ClaimError::Form(_))));
    // At another slice's name.
    let mut moved = txt(&identity, &good);
    moved.name = zone().slice(&slice("10.42.8.0/24"));
    assert_eq!(refused(write(&mut store, vec![moved])), Refusal::Claim(ClaimError::OtherSlice));
    let two = vec![txt(&identity, &good), txt(&identity, &claim(&identity, "10.42.7.0/24", 2, 60))];
    assert_eq!(refused(write(&mut store, two)), Refusal::Unproven);
    let mut more = vec![txt(&identity, &good)];
    more.push(txt(&identity, &claim(&identity, "10.42.8.0/24", 1, 60)));
    assert_eq!(refused(write(&mut store, more)), Refusal::TooMany);
    assert_eq!(write(&mut store, replace(&identity, &good)), Ok(()));
}

#[test]
fn one_node_holds_few_slices_and_the_zone_not_too_many() {
    let mut store = members();
    let identity = node(1);
    for number in 0..4 {
        let claim = claim(&identity, &format!("10.42.{number}.0/24"), 1, 3600);
        assert_eq!(write(&mut store, replace(&identity, &claim)), Ok(()));
    }
    let fifth = replace(&identity, &claim(&identity, "10.42.9.0/24", 1, 3600));
    assert_eq!(refused(write(&mut store, fifth)), Refusal::TooMany);
    store.config.limits.claims = 4;
    let other = replace(&node(2), &claim(&node(2), "10.42.9.0/24", 1, 3600));
    assert_eq!(refused(write(&mut store, other)), Refusal::Full { limit: 4, what: "slices" });
}

#[test]
fn the_slices_of_who_is_revoked_are_free_at_once() {
    let mut store = members();
    let (one, two) = (node(1), node(2));
    assert_eq!(write(&mut store, replace(&one, &claim(&one, "10.42.7.0/24", 1, 3600))), Ok(()));
    let revoked = list(1, vec![Revoked::from(&one.public_key())]);
    assert_eq!(write(&mut store, list_records(&revoked)), Ok(()));
    let again = replace(&one, &claim(&one, "10.42.7.0/24", 2, 3600));
    assert_eq!(refused(write(&mut store, again)), Refusal::Revoked);
    assert_eq!(write(&mut store, replace(&two, &claim(&two, "10.42.7.0/24", 1, 3600))), Ok(()));
}

#[test]
fn a_claim_ends_with_the_membership_and_outlives_a_restart() {
    let mut store = members();
    let identity = node(1);
    let validity = Validity::new(now() - Duration::from_secs(60), Some(after(600)));
    let limits = Limits::new("", &[slice("10.42.0.0/16")], &[] as &[&str]).expect("within bounds");
    let access = invite().access().clone();
    let short =
        Token::issue(&network(), &[103; 32], zone(), validity, limits, access).expect("it fits");
    let routes = [slice("10.42.0.0/16")];
    let member = short.admit(&identity.public_key(), "a", &routes, &[] as &[&str], now());
    let certificate = Some(member.expect("within the limits").chain().as_bytes().to_vec());
    let short = SliceClaim { certificate, ..claim(&identity, "10.42.7.0/24", 1, 3600) };
    assert_eq!(write(&mut store, replace(&identity, &short)), Ok(()));
    assert_eq!(store.poll_timeout(), Some(after(600 + 300)));
    let (mut again, _) =
        ZoneStore::open(store.config.clone(), &store.snapshot(), now()).expect("a snapshot");
    assert_eq!(again.poll_timeout(), store.poll_timeout());
    let two = node(2);
    let other = replace(&two, &claim(&two, "10.42.7.0/24", 1, 3600));
    assert!(matches!(refused(write(&mut again, other)), Refusal::Taken { .. }));
}

#[test]
fn of_those_who_race_for_a_slice_one_wins() {
    let mut store = members();
    for round in 0..100u8 {
        let text = format!("10.42.{round}.0/24");
        let mut winners = Vec::new();
        for seed in 0..4u8 {
            // A node may hold few: others race each time.
            let identity = node(1 + (round / 4) * 4 + seed);
            let claim = claim(&identity, &text, 1, 3600);
            let free = {
                let mut record = delete_set(&zone().slice(&claim.slice), RecordType::TXT);
                record.dns_class = DNSClass::NONE;
                record
            };
            let message = update_message(vec![free], vec![txt(&identity, &claim)]);
            let reply = store.handle_update(&message, &Writer::Anyone, now());
            match reply.error {
                None => winners.push(identity.public_key()),
                Some(error) => assert_eq!(error, UpdateError::YxRrset),
            }
        }
        assert_eq!(winners.len(), 1);
    }
}
