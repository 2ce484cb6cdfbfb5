//! Attacks on a roster that takes members alone. Each succeeds where every signed advert of
//! the zone counts, so that it is known to be one.

use proptest::prelude::*;
use zonemesh_discovery::membership::{
    Access, Limits, MAX_CHAIN_LEN, NetworkKey, Revoked, Token, Validity,
};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn network(n: u8) -> NetworkKey {
    NetworkKey::from_seed(&[n; 32])
}

fn token_of(network: &NetworkKey, ends: SystemTime) -> Token {
    let route: IpNet = "10.42.0.0/16".parse().expect("a prefix");
    let limits = Limits::new("", &[route], &["edge"]).expect("in bounds");
    let validity = Validity::new(wall() - 30 * DAY, Some(ends));
    let made = Token::issue(network, &INVITE, zone(), validity, limits, Access::default());
    made.expect("it fits")
}

/// The seed of every invite's key.
const INVITE: [u8; 32] = [99; 32];

/// A chain that lets node `n` in with 10.42.`n`.0/24.
fn chain(n: u8, network: &NetworkKey, ends: SystemTime) -> Vec<u8> {
    let route: IpNet = format!("10.42.{n}.0/24").parse().expect("a prefix");
    let (node, then) = (identity(n).public_key(), wall().min(ends - DAY));
    let name = format!("node-{n}");
    let made = token_of(network, ends).admit(&node, &name, &[route], &["edge"], then);
    made.expect("it is let in").chain().as_bytes().to_vec()
}

fn certified(n: u8, certificate: Vec<u8>) -> SignedAdvert {
    let plain = advert(n, 1);
    let advert = Advert { certificate: Some(certificate), ..plain.advert().clone() };
    advert.sign(&identity(n), &zone()).expect("a valid advert")
}

fn member(n: u8) -> SignedAdvert {
    certified(n, chain(n, &network(1), wall() + 30 * DAY))
}

fn strict() -> Roster {
    roster(Admission::Members(network(1).id(), None))
}

fn list(number: u64, revoked: impl IntoIterator<Item = Revoked>) -> Arc<RevocationList> {
    Arc::new(RevocationList::sign(&network(1), number, revoked).expect("it fits"))
}

/// Whether an advert makes a member, by whatever way it comes; in a weak mesh it does.
fn is_taken(signed: &SignedAdvert) -> bool {
    let mut weak = roster(Admission::Zone);
    assert!(weak.handle_zone(&view(&[signed]), wall()), "the attack works on a weak mesh");
    let by_zone = strict().handle_zone(&view(&[signed]), wall());
    let by_lan = strict().handle_lan(signed.txt(), wall());
    let by_memory = strict().handle_remembered(signed.txt(), wall());
    assert_eq!((by_zone, by_zone), (by_lan, by_memory));
    by_zone
}

#[test]
fn a_member_is_taken_with_what_its_certificate_says() {
    let mut roster = strict();
    assert!(roster.handle_zone(&view(&[&member(1)]), wall()));
    let taken = roster.get(&identity(1).public_key()).expect("a member");
    assert_eq!(taken.advert(), Some(member(1).advert()));
    assert_eq!(taken.certified().map(|it| it.groups.clone()), Some(vec!["edge".to_owned()]));
    assert!(is_taken(&member(1)));
}

#[test]
fn a_node_without_certificate_or_with_one_of_another_network_is_none() {
    assert!(!is_taken(&advert(1, 1)));
    assert!(!is_taken(&certified(1, chain(1, &network(2), wall() + DAY))));
    let mut roster = strict();
    roster.handle_zone(&view(&[&advert(1, 1)]), wall());
    assert_eq!(roster.dropped().uncertified, 1);
}

#[test]
fn another_node_s_certificate_is_worth_nothing() {
    assert!(!is_taken(&certified(2, chain(1, &network(1), wall() + DAY))));
}

#[test]
fn a_certificate_that_widens_its_invite_is_worth_nothing() {
    // As an invite's holder would sign it: version, key, validity, limits and signature of the
    // invite, then the node's own part.
    let good = chain(1, &network(1), wall() + DAY);
    let invite = &good[..1 + 32 + 8 + 11 + 64];
    let since: u32 = 1_800_000_000;
    let widened = |from: u32, until: u32, route: &[u8], group: &[u8]| {
        let count = [1];
        let name: &[u8] = b"\x04evil";
        let dates = [from.to_be_bytes(), until.to_be_bytes()].concat();
        let part = [&dates, name, &count, route, &count, &[group.len() as u8], group].concat();
        let (network, node) = (network(1).id(), identity(1).public_key());
        let context: &[u8] = b"zonemesh node v1\0";
        let message = [context, network.as_bytes(), invite, node.as_bytes(), &part].concat();
        let signature = Identity::from_seed(&INVITE).sign(&message);
        certified(1, [invite, &part, &signature[1..]].concat())
    };
    let day = 24 * 3600;
    let net: &[u8] = &[24, 10, 42, 1];
    assert!(is_taken(&widened(since, since + day, net, b"edge")), "the form is right");
    assert!(!is_taken(&widened(since, since + day + 1, net, b"edge")), "longer");
    assert!(!is_taken(&widened(since - 31 * day, since + day, net, b"edge")), "earlier");
    assert!(!is_taken(&widened(since, since + day, &[8, 10], b"edge")), "a wider route");
    assert!(!is_taken(&widened(since, since + day, &[24, 10, 43, 1], b"edge")), "another route");
    assert!(!is_taken(&widened(since, since + day, net, b"admin")), "another group");
}

#[test]
fn an_expired_certificate_is_worth_nothing_and_ends_a_membership_that_is_heard() {
    assert!(!is_taken(&certified(1, chain(1, &network(1), wall() - DAY))));
    let mut roster = strict();
    roster.handle_zone(&view(&[&certified(1, chain(1, &network(1), wall() + DAY))]), wall());
    let later = wall() + DAY + CLOCK_SKEW;
    assert!(!roster.forget_silent(later, |_| true));
    assert!(roster.forget_silent(later + Duration::from_secs(1), |_| true));
    assert!(keys(&roster).is_empty());
}

#[test]
fn a_revoked_node_goes_at_once_and_comes_back_by_no_way() {
    let revoked = member(1);
    let node = identity(1).public_key();
    let mut roster = strict();
    roster.handle_zone(&view(&[&revoked, &member(2)]), wall());
    assert!(roster.set_revocations(&list(1, [Revoked::from(&node)])));
    assert_eq!(keys(&roster), [identity(2).public_key()]);
    assert!(!roster.handle_zone(&view(&[&revoked, &member(2)]), wall()));
    assert!(!roster.handle_records(&records(&revoked), wall()));
    assert!(!roster.handle_lan(revoked.txt(), wall()));
    assert!(!roster.handle_remembered(revoked.txt(), wall()));
    assert!(!roster.handle_shared(&node, revoked.txt(), wall()));
    assert_eq!(roster.dropped().revoked, 4);
    let invite = token_of(&network(1), wall() + DAY).invite();
    assert!(roster.set_revocations(&list(2, [Revoked::from(&invite)])), "all of its nodes go");
    assert!(keys(&roster).is_empty());
}

#[test]
fn what_is_outside_of_the_certificate_is_left_out_and_told() {
    let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
    let plain = member(1);
    let routes = ["10.42.1.0/24", "10.42.1.128/25", "10.42.2.0/24", "0.0.0.0/0"].map(net);
    let addresses = ["10.42.1.1", "10.42.2.1"].map(|ip| ip.parse().expect("an address"));
    let greedy = Advert {
        name: "somebody-else".to_owned(),
        routes: routes.to_vec(),
        addresses: addresses.to_vec(),
        ..plain.advert().clone()
    };
    let greedy = greedy.sign(&identity(1), &zone()).expect("a valid advert");
    let mut roster = strict();
    assert!(roster.handle_zone(&view(&[&greedy]), wall()));
    let member = roster.get(&identity(1).public_key()).expect("the rest counts");
    let advert = member.advert().expect("it is signed");
    assert_eq!(advert.name, "node-1", "the certified one");
    assert_eq!(advert.routes, routes[..2]);
    assert_eq!(advert.addresses, addresses[..1]);
    let outside: Vec<IpNet> = member.outside().collect();
    assert_eq!(outside, ["10.42.2.0/24", "0.0.0.0/0", "10.42.2.1/32"].map(net));
    assert_eq!(member.signed(), Some(&greedy), "what is kept bears its signature");
}

#[test]
fn a_clock_that_is_off_is_suspected_by_what_all_others_sign() {
    let all = [member(1), member(2), member(3)];
    let view = view(&[&all[0], &all[1], &all[2]]);
    for (clock, fault) in [
        (wall(), None),
        (wall() + DAY, Some(ClockFault::Ahead)),
        (wall() - DAY, Some(ClockFault::Behind)),
    ] {
        let mut roster = strict();
        roster.handle_zone(&view, clock);
        assert_eq!(roster.clock_fault(), fault);
    }
    let mut roster = strict();
    roster.handle_zone(&view, wall());
    roster.handle_zone(&view, wall() + DAY);
    assert_eq!(roster.clock_fault(), Some(ClockFault::Ahead), "the clock was set meanwhile");
}

proptest! {
    #[test]
    fn no_certificate_with_a_bit_flipped_makes_a_member(bit in 0..MAX_CHAIN_LEN * 8) {
        let mut forged = chain(1, &network(1), wall() + DAY);
        let bit = bit % (forged.len() * 8);
        forged[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(!is_taken(&certified(1, forged)));
    }
}
