//! Membership: what an invite allows comes through, and nothing beside it does.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use proptest::prelude::*;
use zonemesh_discovery::{
    advert::{Advert, CLOCK_SKEW, SignedAdvert},
    identity::{Identity, PublicKey},
    membership::{
        Access, AccessKey, CertificateError, Certified, Chain, InviteId, Limits, MAX_CHAIN_LEN,
        MAX_REVOCATIONS, Membership, MembershipError, NetworkKey, Period, RevocationError,
        RevocationList, Secret, Token, TokenError, TokenTimeError, Validity, utc,
    },
};

const YEAR: Duration = Duration::from_secs(365 * 86_400);

#[test]
fn a_token_lets_a_node_in_within_its_limits() {
    let token = token(&invite_limits(), access());
    let read: Token = token.to_string().parse().expect("as it was printed");
    assert_eq!(read.to_string(), token.to_string());
    assert_eq!((read.zone(), read.network()), (token.zone(), network().id()));
    assert_eq!((read.limits(), read.access()), (&invite_limits(), &access()));
    assert_eq!(read.validity().not_after(), Some(now() + YEAR));

    let kept = read.admit(&node(), "pi-1", &nets(&["10.42.1.0/24"]), &["lab"], now());
    let kept = kept.expect("within the limits");
    assert!(kept.chain().as_bytes().len() <= MAX_CHAIN_LEN);
    let kept = Membership::from_bytes(&kept.to_bytes()).expect("as it was kept");
    assert_eq!((kept.zone(), kept.access()), (token.zone(), token.access()));
    let certified = Certified {
        name: "pi-1".to_owned(),
        routes: nets(&["10.42.1.0/24"]),
        groups: vec!["lab".to_owned()],
        invite: token.invite(),
        invited: invite_limits().routes().to_vec(),
        not_after: Some(now() + YEAR),
    };
    assert_eq!(kept.certified(&node(), now()), Ok(certified.clone()));

    // And as others see it.
    let advert = Advert {
        node: node(),
        name: "pi-1".to_owned(),
        addresses: Vec::new(),
        routes: nets(&["10.42.1.0/24"]),
        candidates: Vec::new(),
        certificate: Some(kept.chain().as_bytes().to_vec()),
        sequence: 1,
        expires: now() + Duration::from_secs(3600),
    };
    let signed = advert.sign(&identity(), token.zone()).expect("within bounds");
    assert!(signed.txt().iter().all(|string| string.len() <= 255));
    let read = SignedAdvert::verify(token.zone(), signed.txt(), now()).expect("just signed");
    assert_eq!(read.advert(), &advert);
    assert_eq!(read.certified(&network().id(), now()), Ok(certified));
    let bare = Advert { certificate: None, ..advert };
    let signed = bare.sign(&identity(), token.zone()).expect("within bounds");
    assert_eq!(signed.certified(&network().id(), now()), Err(CertificateError::Missing));
}

#[test]
fn a_chain_is_one_nodes_in_one_network_for_its_time() {
    let chain = chain();
    let network = network().id();
    assert!(chain.verify(&network, &node(), now()).is_ok());
    let other = NetworkKey::from_seed(&[9; 32]).id();
    assert_eq!(chain.verify(&other, &node(), now()), Err(CertificateError::Network));
    let thief = Identity::from_seed(&[9; 32]).public_key();
    assert_eq!(chain.verify(&network, &thief, now()), Err(CertificateError::Node));
    let second = Duration::from_secs(1);
    let early = now() - CLOCK_SKEW;
    assert!(chain.verify(&network, &node(), early).is_ok());
    let error = CertificateError::Time(Period::NotYet);
    assert_eq!(chain.verify(&network, &node(), early - second), Err(error));
    let error = CertificateError::Invite(Period::NotYet);
    assert_eq!(chain.verify(&network, &node(), UNIX_EPOCH), Err(error));
    let late = now() + YEAR + CLOCK_SKEW;
    assert!(chain.verify(&network, &node(), late).is_ok());
    let error = CertificateError::Invite(Period::Over);
    assert_eq!(chain.verify(&network, &node(), late + second), Err(error));
    assert!(error.to_string().contains("clock"), "{error}");
}

#[test]
fn a_list_of_revocations_names_nodes_and_invites() {
    let invite = token(&invite_limits(), access()).invite();
    let entries = [(&node()).into(), (&invite).into()];
    let list = RevocationList::sign(&network(), 7, entries).expect("two entries");
    let read = RevocationList::from_txt(&list.txt(), &network().id()).expect("just signed");
    assert_eq!(read, list);
    assert_eq!(read.number(), 7);
    assert!(read.contains(&node()) && read.contains_invite(&invite));
    let other = Identity::from_seed(&[9; 32]).public_key();
    assert!(!read.contains(&other));
    assert!(!read.contains_invite(&InviteId::from_bytes([1; 32])));
    let other = NetworkKey::from_seed(&[9; 32]).id();
    assert_eq!(RevocationList::read(list.as_bytes(), &other), Err(RevocationError::Network));
}

#[test]
fn what_a_token_does_not_allow_it_does_not_sign() {
    let token = token(&invite_limits(), access());
    let admit = |name: &str, routes: &[&str], groups: &[&str]| {
        token.admit(&node(), name, &nets(routes), groups, now()).err()
    };
    assert_eq!(admit("pi-1", &["10.42.0.0/16", "fd00:42::/48"], &["lab", "edge"]), None);
    for wide in ["10.43.0.0/24", "10.42.0.0/15", "0.0.0.0/0", "fd00:42::/47", "::/0"] {
        assert_eq!(admit("pi-1", &[wide], &[]), Some(MembershipError::Routes), "{wide}");
    }
    assert_eq!(admit("pi-1", &[], &["lab", "admin"]), Some(MembershipError::Groups));
    assert!(matches!(admit("", &[], &[]), Some(MembershipError::Limits(_))));
    assert!(matches!(admit("pi\u{7}", &[], &[]), Some(MembershipError::Limits(_))));

    let named = Limits::new("pi-1", &[], &[] as &[&str]).expect("within bounds");
    let named = self::token(&named, Access::default());
    let none: [&str; 0] = [];
    assert!(named.admit(&node(), "pi-1", &[], &none, now()).is_ok());
    let error = named.admit(&node(), "pi-2", &[], &none, now()).err();
    assert_eq!(error, Some(MembershipError::Name));

    let second = Duration::from_secs(1);
    let late = token.admit(&node(), "pi-1", &[], &none, now() + YEAR + CLOCK_SKEW + second);
    let late = late.expect_err("has expired");
    assert!(matches!(late, MembershipError::Time(TokenTimeError::Expired { .. })));
    assert!(late.to_string().contains("good until 2028-01-15 08:00 UTC"), "{late}");
    let early = token.admit(&node(), "pi-1", &[], &none, UNIX_EPOCH).expect_err("not yet");
    assert!(early.to_string().contains("clock shows 1970-01-01 00:00 UTC"), "{early}");
}

#[test]
fn the_longest_chain_fits_an_advert_and_a_longer_one_is_not_made() {
    let groups: Vec<String> = (0..12).map(|n| format!("group-{n:02}")).collect();
    let limits = Limits::new("", &nets(&["10.42.0.0/16"]), &groups).expect("within bounds");
    let token = token(&limits, Access::default());
    let admit = |groups: &[String]| {
        token.admit(&node(), &"n".repeat(10), &nets(&["10.42.1.0/24"]), groups, now())
    };
    let kept = admit(&groups[..1]).expect("it fits");
    assert!(kept.chain().as_bytes().len() > MAX_CHAIN_LEN - 20);
    assert_eq!(admit(&groups).err(), Some(MembershipError::TooLong));
}

#[test]
fn a_token_says_what_is_wrong_with_it() {
    let good = token(&invite_limits(), access()).to_string();
    let error = |text: &str| text.parse::<Token>().err();
    assert_eq!(error(&format!("\n {good} \n")), None);
    let (a, b) = good.split_at(100);
    assert_eq!(error(&format!("{a}\n{b}")), None, "a terminal broke the line");
    for text in ["", "z", "node.key", "AZM1", &"zm1".repeat(2000)] {
        assert_eq!(error(text), Some(TokenError::NotAToken), "{text}");
    }
    assert_eq!(error(&good.replacen("zm1", "zm2", 1)), Some(TokenError::Newer));
    for len in 2..good.len() {
        assert_eq!(error(&good[..len]), Some(TokenError::CutShort), "{len}");
    }
    assert_eq!(error(&format!("{good}A")), Some(TokenError::Altered));
    assert_eq!(error(&good.replace('4', "\u{2026}")), Some(TokenError::Altered));
    assert!(!format!("{:?}", token(&invite_limits(), access())).contains("north"));
}

#[test]
fn nobody_else_makes_an_invite_of_a_network() {
    // Whoever can make a right checksum still has not the network's key.
    let good = token(&invite_limits(), access()).to_string();
    let mut bytes = data_encoding::BASE64URL_NOPAD.decode(&good.as_bytes()[3..]).expect("is it");
    let zone = 2 + "mesh.example".len() + 2;
    for at in zone..zone + 32 + 32 + 60 {
        bytes[at] ^= 1;
        let text = with_check(&bytes);
        assert!(
            matches!(text.parse::<Token>(), Err(TokenError::Forged | TokenError::Malformed)),
            "byte {at}"
        );
        bytes[at] ^= 1;
    }
    assert_eq!(with_check(&bytes), good);
}

#[test]
fn no_bit_of_a_chain_can_be_changed_and_no_byte_left_out() {
    let good = chain().as_bytes().to_vec();
    let verify = |bytes: &[u8]| {
        Chain::read(bytes).and_then(|chain| chain.verify(&network().id(), &node(), now()))
    };
    assert!(verify(&good).is_ok());
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(verify(&bytes).is_err(), "bit {bit}");
    }
    for len in 0..good.len() {
        assert!(Chain::read(&good[..len]).is_err(), "{len} bytes");
    }
    assert!(Chain::read(&[&good[..], &[0]].concat()).is_err());
}

#[test]
fn no_bit_of_a_list_can_be_changed_and_no_byte_left_out() {
    let entries = (0..5u8).map(|n| (&Identity::from_seed(&[n; 32]).public_key()).into());
    let list = RevocationList::sign(&network(), 300, entries).expect("five entries");
    let good = list.as_bytes();
    let read = |bytes: &[u8]| RevocationList::read(bytes, &network().id());
    assert!(read(good).is_ok());
    for bit in 0..good.len() * 8 {
        let mut bytes = good.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&bytes).is_err(), "bit {bit}");
    }
    for len in 0..good.len() {
        assert!(read(&good[..len]).is_err(), "{len} bytes");
    }
    assert!(read(&[good, &[0]].concat()).is_err());
}

#[test]
fn a_list_is_bounded_and_the_longest_fits_a_message() {
    let entry = |n: usize| {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        (&PublicKey::from_bytes(key)).into()
    };
    let list = RevocationList::sign(&network(), 1, (0..MAX_REVOCATIONS).map(entry));
    let list = list.expect("as many as there may be");
    let txt = list.txt();
    assert!(txt.iter().map(|string| 1 + string.len()).sum::<usize>() < 60_000);
    assert_eq!(RevocationList::from_txt(&txt, &network().id()).as_ref(), Ok(&list));
    let error = RevocationList::sign(&network(), 1, (0..=MAX_REVOCATIONS).map(entry)).err();
    assert_eq!(error, Some(RevocationError::Full));
    let long = vec![vec![0; 255]; 300];
    let error = RevocationList::from_txt(&long, &network().id()).err();
    assert_eq!(error, Some(RevocationError::Full));
}

#[test]
fn the_chain_is_as_it_is_described() {
    // By `docs/protocol.md`, and not by the code that writes it.
    let mut bytes = vec![1];
    let invite = Identity::from_seed(&[2; 32]);
    let invite_key = token(&invite_limits(), access()).invite();
    bytes.extend(invite_key.as_bytes());
    bytes.extend((1_800_000_000u32 - 365 * 86_400).to_be_bytes());
    bytes.extend((1_800_000_000u32 + 365 * 86_400).to_be_bytes());
    bytes.extend([0, 2, 16, 10, 42, 64 + 48, 0xfd, 0, 0, 0x42, 0, 0, 2, 4]);
    bytes.extend(b"edge\x03lab");
    let id = network().id();
    let message = [b"zonemesh invite v1\0", &id.as_bytes()[..], &bytes].concat();
    // A node's signature has a byte before it that these have not.
    bytes.extend(&Identity::from_seed(&[1; 32]).sign(&message)[1..]);
    let mut part = 1_800_000_000u32.to_be_bytes().to_vec();
    part.extend((1_800_000_000u32 + 365 * 86_400).to_be_bytes());
    part.extend(b"\x04pi-1\x01\x18\x0a\x2a\x01\x01\x03lab");
    let context = b"zonemesh node v1\0";
    let message = [&context[..], id.as_bytes(), &bytes, node().as_bytes(), &part].concat();
    bytes.extend(&part);
    bytes.extend(&invite.sign(&message)[1..]);
    assert_eq!(chain().as_bytes(), bytes);
}

#[test]
fn what_the_documentation_shows_is_what_is_made() {
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    let plain = Access { seal_secret: None, tsig: None, ..access() };
    let list = RevocationList::sign(&network(), 7, [(&node()).into()]).expect("one entry");
    let documentation = include_str!("../../docs/protocol.md");
    for shown in
        [hex(chain().as_bytes()), token(&invite_limits(), plain).to_string(), hex(list.as_bytes())]
    {
        let lines: Vec<&str> =
            shown.as_bytes().chunks(80).map(|line| str::from_utf8(line).expect("ASCII")).collect();
        let block = lines.join("\n");
        assert!(documentation.contains(&block), "{block}");
    }
}

#[test]
fn times_are_told_as_people_do() {
    for (seconds, text) in [
        (0, "1970-01-01 00:00 UTC"),
        (951_782_399, "2000-02-28 23:59 UTC"),
        (951_782_400, "2000-02-29 00:00 UTC"),
        (951_868_800, "2000-03-01 00:00 UTC"),
        (1_800_000_000, "2027-01-15 08:00 UTC"),
        (4_107_542_399, "2100-02-28 23:59 UTC"),
        (4_107_542_400, "2100-03-01 00:00 UTC"),
        (4_294_967_294, "2106-02-07 06:28 UTC"),
    ] {
        assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
    }
}

proptest! {
    #[test]
    fn what_a_child_may_is_decided_as_sets_are(
        parent in limits(any_name()), child in limits("[ab]"), at in 0u64..4, span in 0u64..4,
    ) {
        // Written out: a name that is the parent's if it has one, and so on.
        let name = parent.name().is_empty() || parent.name() == child.name();
        let lies_in = |child: &IpNet, parent: &IpNet| {
            parent.contains(&child.network()) && parent.contains(&child.broadcast())
        };
        let routes =
            child.routes().iter().all(|net| parent.routes().iter().any(|own| lies_in(net, own)));
        let groups = child.groups().iter().all(|group| parent.groups().contains(group));
        let zone = "mesh.example".parse().expect("a zone");
        let day = Duration::from_secs(86_400);
        let begin = now() - 2 * day + day * at as u32;
        let validity = Validity::new(begin, Some(begin + day * span as u32));
        let token = Token::issue(&network(), &[2; 32], zone, validity, parent, Access::default());
        let token = token.expect("fits");
        let kept = token.admit(&node(), child.name(), child.routes(), child.groups(), now());
        let is_good = now() + CLOCK_SKEW >= begin && now() <= begin + day * span as u32 + CLOCK_SKEW;
        prop_assert_eq!(kept.is_ok(), name && routes && groups && is_good, "{:?}", kept);
        if let Ok(kept) = kept {
            let certified = kept.certified(&node(), now()).expect("just signed");
            prop_assert_eq!(&certified.routes[..], child.routes());
            prop_assert_eq!(&certified.groups[..], child.groups());
            prop_assert_eq!(certified.not_after, token.validity().not_after());
            prop_assert_eq!(Membership::from_bytes(&kept.to_bytes()), Some(kept));
        }
    }

    #[test]
    fn a_child_that_widens_is_refused_also_when_its_invite_has_signed_it(
        parent in limits(any_name()), child in limits("[ab]"), early in 0u32..2, late in 0u32..2,
    ) {
        // A member with a stolen invite writes its part by hand.
        let invite = Identity::from_seed(&[2; 32]);
        let zone = "mesh.example".parse().expect("a zone");
        let day = Duration::from_secs(86_400);
        let validity = Validity::new(now() - day, Some(now() + day));
        let token =
            Token::issue(&network(), &[2; 32], zone, validity, parent.clone(), Access::default());
        let honest = Limits::new("a", &[], &[] as &[&str]).expect("within bounds");
        prop_assume!(parent.name() != "b");
        let kept = token.expect("fits").admit(&node(), "a", honest.routes(), honest.groups(), now());
        let honest_part = 4 + 4 + 1 + 1 + 1 + 1 + 64;
        let mut bytes = kept.expect("it asks for nothing").chain().as_bytes().to_vec();
        bytes.truncate(bytes.len() - honest_part);
        let mut part = Vec::new();
        let second = |time: SystemTime| {
            time.duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as u32
        };
        part.extend((second(now() - day) - early).to_be_bytes());
        part.extend((second(now() + day) + late).to_be_bytes());
        part.extend(limits_by_hand(&child));
        let id = network().id();
        let context = b"zonemesh node v1\0";
        let message = [&context[..], id.as_bytes(), &bytes, node().as_bytes(), &part].concat();
        bytes.extend(&part);
        bytes.extend(&invite.sign(&message)[1..]);
        let read = Chain::read(&bytes).expect("well formed").verify(&id, &node(), now());
        let lies_in = |net: &IpNet| parent.routes().iter().any(|own| own.contains(net));
        let keeps = (parent.name().is_empty() || parent.name() == child.name())
            && child.routes().iter().all(lies_in)
            && child.groups().iter().all(|group| parent.groups().contains(group))
            && early == 0
            && late == 0;
        match read {
            Ok(_) => prop_assert!(keeps),
            Err(error) => {
                prop_assert!(!keeps);
                prop_assert!(matches!(error, CertificateError::Widens(_)), "{}", error);
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Chain::read(&bytes);
        prop_assert!(RevocationList::read(&bytes, &network().id()).is_err());
        prop_assert!(Membership::from_bytes(&bytes).is_none());
        prop_assert!(with_check(&[&[0, 0][..], &bytes, &[0; 4]].concat()).parse::<Token>().is_err());
    }

    #[test]
    fn no_character_of_a_token_can_be_changed(at in 3usize..200, with in "[A-Za-z0-9_-]") {
        let good = token(&invite_limits(), access()).to_string();
        let mut text = good.clone();
        text.replace_range(at..=at, &with);
        prop_assume!(text != good);
        let error = text.parse::<Token>().err();
        prop_assert!(matches!(error, Some(TokenError::Altered | TokenError::CutShort)));
    }
}

fn any_name() -> &'static str {
    "[ab]?"
}

/// Few names, prefixes and groups, so that many are one another's.
fn limits(name: &'static str) -> impl Strategy<Value = Limits> {
    let route = (0u8..2, 0u8..=3, 6u8..=10).prop_map(|(third, bits, len)| {
        let v4 = format!("10.{}.0.0/{}", u32::from(bits) << 6, len);
        let v6 = format!("fd{bits:02x}::/{}", len + 4);
        let net: IpNet = if third == 0 { v4 } else { v6 }.parse().expect("a prefix");
        net.trunc()
    });
    let routes = prop::collection::vec(route, 0..3);
    let groups = prop::collection::vec("[xyz]", 0..3);
    (name, routes, groups).prop_map(|(name, routes, groups)| {
        Limits::new(&name, &routes, &groups).expect("within bounds")
    })
}

fn limits_by_hand(limits: &Limits) -> Vec<u8> {
    let mut out = vec![limits.name().len() as u8];
    out.extend(limits.name().as_bytes());
    out.push(limits.routes().len() as u8);
    for net in limits.routes() {
        let (base, octets) = match net {
            IpNet::V4(net) => (0, net.network().octets().to_vec()),
            IpNet::V6(net) => (64, net.network().octets().to_vec()),
        };
        out.push(base + net.prefix_len());
        out.extend(&octets[..usize::from(net.prefix_len()).div_ceil(8)]);
    }
    out.push(limits.groups().len() as u8);
    for group in limits.groups() {
        out.push(group.len() as u8);
        out.extend(group.as_bytes());
    }
    out
}

/// A token of these bytes, whose last four are replaced by their right checksum, and the
/// first two by the right length.
fn with_check(bytes: &[u8]) -> String {
    use sha2::Digest;
    let body = &bytes[2..bytes.len() - 4];
    let covered = [&(body.len() as u16).to_be_bytes(), body].concat();
    let check = sha2::Sha256::digest(&covered);
    let bytes = [&covered[..], &check[..4]].concat();
    format!("zm1{}", data_encoding::BASE64URL_NOPAD.encode(&bytes))
}

fn network() -> NetworkKey {
    NetworkKey::from_seed(&[1; 32])
}

fn identity() -> Identity {
    Identity::from_seed(&[3; 32])
}

fn node() -> PublicKey {
    identity().public_key()
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().expect("a prefix")).collect()
}

fn invite_limits() -> Limits {
    let routes = nets(&["10.42.0.0/16", "fd00:42::/48"]);
    Limits::new("", &routes, &["lab", "edge"]).expect("within bounds")
}

fn access() -> Access {
    Access {
        servers: vec![
            "198.51.100.53:53".parse().expect("an address"),
            "[2001:db8::53]:5353".parse().expect("an address"),
        ],
        tsig: Some(AccessKey {
            name: "mesh-key".to_owned(),
            algorithm: "hmac-sha512".to_owned(),
            secret: Secret::new(vec![4; 32]),
        }),
        relay_secret: Some(Secret::new(b"north".to_vec())),
        seal_secret: Some(Secret::new(vec![5; 32])),
        slice: 25,
    }
}

fn token(limits: &Limits, access: Access) -> Token {
    let zone = "mesh.example".parse().expect("a zone");
    let validity = Validity::new(now() - YEAR, Some(now() + YEAR));
    Token::issue(&network(), &[2; 32], zone, validity, limits.clone(), access).expect("fits")
}

fn chain() -> Chain {
    let kept = token(&invite_limits(), access());
    let kept = kept.admit(&node(), "pi-1", &nets(&["10.42.1.0/24"]), &["lab"], now());
    kept.expect("within the limits").chain().clone()
}
