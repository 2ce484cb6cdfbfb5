//! A zone under seal: the same rules, though nobody who reads it sees what they are about.

use super::{
    members::{
        advert as advert_with, certificate, invite, last_word, list, member_advert, network,
        refused, write,
    },
    *,
};
use crate::{
    membership::{RevocationList, Revoked, Secret},
    sealed::Seal,
    zone::{serve::Refusal, slice::SliceClaim},
};

fn seal() -> Seal {
    Seal::new(&Secret::new(vec![9; 32]))
}

fn sealed_config() -> ZoneConfig {
    ZoneConfig { network: Some(network().id()), seal: Some(seal()), ..config() }
}

fn sealed() -> ZoneStore {
    let (mut store, _) = ZoneStore::open(sealed_config(), &[], now()).expect("an empty journal");
    store.poll_journal();
    store.commit();
    store
}

fn put(owner: &Name, txt: &[Vec<u8>]) -> Vec<Record> {
    let sealed = seal().seal(owner, txt);
    let txt = TXT::from_bytes(sealed.iter().map(Vec::as_slice).collect());
    vec![delete_set(owner, RecordType::TXT), Record::from_rdata(owner.clone(), 30, RData::TXT(txt))]
}

fn at(node: &Identity) -> Name {
    seal().node(&zone(), &node.public_key())
}

fn say(node: &Identity, advert: &Advert) -> Vec<Record> {
    put(&at(node), advert.sign(node, &zone()).expect("within bounds").txt())
}

fn put_list(list: &RevocationList) -> Vec<Record> {
    put(&seal().revocations(&zone()), &list.txt())
}

#[test]
fn a_member_writes_its_own_record_and_nobody_elses() {
    let mut store = sealed();
    let fixed = text(&store).len();
    let (one, two) = (node(1), node(2));
    assert_eq!(write(&mut store, say(&one, &member_advert(&one, 5))), Ok(()));
    // One record, and no list of who there is.
    assert_eq!(text(&store).len(), fixed + 1);
    let serial = store.serial();
    // The same, sealed anew, is the same.
    assert_eq!(write(&mut store, say(&one, &member_advert(&one, 5))), Ok(()));
    assert_eq!(store.serial(), serial);
    let old = write(&mut store, say(&one, &member_advert(&one, 4)));
    assert_eq!(refused(old), Refusal::Old { known: 5 });
    // At another's name, or a name that nobody has.
    let signed = member_advert(&one, 6).sign(&one, &zone()).expect("within bounds");
    for owner in [at(&two), seal().revocations(&zone()), name(&"a".repeat(32))] {
        refused(write(&mut store, put(&owner, signed.txt())));
    }
    // Not to be opened, or deleted.
    let rubbish = TXT::from_bytes(vec![&[1; 200][..]]);
    let rubbish = vec![
        delete_set(&at(&one), RecordType::TXT),
        Record::from_rdata(at(&one), 30, RData::TXT(rubbish)),
    ];
    assert_eq!(refused(write(&mut store, rubbish)), Refusal::Unproven);
    let gone = vec![delete_set(&at(&one), RecordType::TXT)];
    assert_eq!(refused(write(&mut store, gone)), Refusal::Unproven);
    // In the open, nobody has a name here.
    for record in publish(&one, &member_advert(&one, 6)) {
        assert_eq!(refused(write(&mut store, vec![record])), Refusal::Name);
    }
    // Who is no member writes nothing, though it may have the seal.
    let stranger = advert_with(&two, None);
    assert!(matches!(refused(write(&mut store, say(&two, &stranger))), Refusal::Certificate(_)));
    assert_eq!(write(&mut store, say(&one, &last_word(&one, 7))), Ok(()));
    assert_eq!(text(&store).len(), fixed);
}

#[test]
fn what_is_sealed_ends_and_is_revoked_as_in_the_open() {
    let mut store = sealed();
    let fixed = text(&store);
    let (one, two) = (node(1), node(2));
    write(&mut store, say(&one, &member_advert(&one, 5))).expect("a member");
    write(&mut store, say(&two, &member_advert(&two, 5))).expect("a member");
    let slice = "10.42.7.0/24".parse().expect("a prefix");
    let routes = ["10.42.0.0/16".parse().expect("a prefix")];
    let member = invite().admit(&one.public_key(), "a", &routes, &[] as &[&str], now());
    let chain = member.expect("within the limits").chain().as_bytes().to_vec();
    let claim = SliceClaim {
        node: one.public_key(),
        slice,
        sequence: 1,
        expires: after(7200),
        certificate: Some(chain),
    };
    let owner = seal().slice(&zone(), &slice);
    let claimed = claim.sign(&one, &zone()).expect("within bounds");
    assert_eq!(write(&mut store, put(&owner, claimed.txt())), Ok(()));
    let (mut again, _) =
        ZoneStore::open(sealed_config(), &store.snapshot(), now()).expect("a snapshot");
    assert_eq!(again.poll_journal(), None);
    for store in [&mut store, &mut again] {
        let first = list(1, vec![Revoked::from(&two.public_key())]);
        assert_eq!(write(store, put_list(&first)), Ok(()));
        assert_eq!(store.revocations(), Some(&first));
        let back = write(store, say(&two, &member_advert(&two, 6)));
        assert_eq!(refused(back), Refusal::Revoked);
        let back = refused(write(store, put_list(&list(1, vec![]))));
        assert_eq!(back, Refusal::OldRevocations { known: 1 });
        store.handle_timeout(after(3900));
        store.poll_journal();
        store.commit();
        assert_eq!(store.nodes(), 0);
        store.handle_timeout(after(7500));
        store.poll_journal();
        store.commit();
        // All but the list.
        assert_eq!(text(store).len(), fixed.len() + 1);
    }
}

#[test]
fn under_another_seal_nothing_of_the_old_one_stays() {
    let mut store = sealed();
    let fixed = text(&store);
    let identity = node(1);
    write(&mut store, say(&identity, &member_advert(&identity, 5))).expect("a member");
    let other = Seal::new(&Secret::new(vec![8; 32]));
    for seal in [Some(other), None] {
        let config = ZoneConfig { seal, ..sealed_config() };
        let (again, _) = ZoneStore::open(config, &store.snapshot(), now()).expect("a snapshot");
        assert_eq!(text(&again), fixed);
    }
}

#[test]
fn a_certificate_is_needed_under_seal_too() {
    let mut store = sealed();
    let identity = node(1);
    let other = certificate(&invite(), &node(2).public_key());
    let advert = advert_with(&identity, other);
    assert!(matches!(refused(write(&mut store, say(&identity, &advert))), Refusal::Certificate(_)));
}
