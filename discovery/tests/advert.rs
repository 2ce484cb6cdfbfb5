//! The advert: what is signed comes back as it was, and nothing else does.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{
        RData, Record, RecordType,
        rdata::{SRV, TXT},
    },
};
use ipnet::IpNet;
use proptest::prelude::*;
use zonemesh_discovery::{
    advert::{
        Advert, AdvertError, CLOCK_SKEW, Candidate, CandidateKind, Endpoint, Entry,
        InstanceRecords, MAX_CANDIDATES, MAX_LEASE, MAX_ROUTES, SignedAdvert, Zone,
    },
    identity::Identity,
};

#[test]
fn what_is_signed_comes_back_as_it_was() {
    let advert = full();
    let signed = advert.sign(&identity(), &zone()).expect("within bounds");
    let read = SignedAdvert::verify(&zone(), signed.txt(), now()).expect("just signed");
    assert_eq!(read, signed);
    assert_eq!(read.advert(), &advert);
    let entry = records(&signed).verify(&zone(), now()).expect("just signed");
    assert_eq!(entry, Entry::Signed(signed));
    assert_eq!(entry.node(), identity().public_key());
}

#[test]
fn the_zones_names_are_compared_in_any_case() {
    let signed = full().sign(&identity(), &"Mesh.EXAMPLE".parse().expect("a zone"));
    let signed = signed.expect("within bounds");
    assert!(SignedAdvert::verify(&zone(), signed.txt(), now()).is_ok());
}

#[test]
fn no_bit_of_the_strings_can_be_changed() {
    let signed = full().sign(&identity(), &zone()).expect("within bounds");
    for string in 0..signed.txt().len() {
        for bit in 0..signed.txt()[string].len() * 8 {
            let mut txt = signed.txt().to_vec();
            txt[string][bit / 8] ^= 1 << (bit % 8);
            let read = SignedAdvert::verify(&zone(), &txt, now());
            assert!(read.is_err(), "bit {bit} of string {string}: {read:?}");
        }
    }
}

#[test]
fn no_string_can_be_left_out_added_or_moved() {
    let signed = full().sign(&identity(), &zone()).expect("within bounds");
    for at in 0..signed.txt().len() {
        let mut txt = signed.txt().to_vec();
        txt.remove(at);
        assert!(SignedAdvert::verify(&zone(), &txt, now()).is_err(), "without string {at}");
        let mut txt = signed.txt().to_vec();
        txt.insert(at, b"more=1".to_vec());
        assert!(SignedAdvert::verify(&zone(), &txt, now()).is_err(), "more before string {at}");
        let mut txt = signed.txt().to_vec();
        txt.swap(at, (at + 1) % signed.txt().len());
        assert!(SignedAdvert::verify(&zone(), &txt, now()).is_err(), "string {at} moved");
    }
    assert!(SignedAdvert::verify(&zone(), &[], now()).is_err());
}

#[test]
fn a_lease_counts_from_its_start_to_its_end_and_clocks_may_differ_a_little() {
    let second = Duration::from_secs(1);
    let verify = |expires: SystemTime| {
        let advert = Advert { expires, ..full() };
        let signed = advert.sign(&identity(), &zone()).expect("within bounds");
        SignedAdvert::verify(&zone(), signed.txt(), now()).map(drop)
    };
    assert_eq!(verify(now() - CLOCK_SKEW), Ok(()));
    assert_eq!(verify(now() - CLOCK_SKEW - second), Err(AdvertError::Expired));
    assert_eq!(verify(now() + MAX_LEASE + CLOCK_SKEW), Ok(()));
    assert_eq!(verify(now() + MAX_LEASE + CLOCK_SKEW + second), Err(AdvertError::Lease));
}

#[test]
fn an_advert_speaks_only_for_the_node_of_its_label_and_only_in_its_zone() {
    let signed = full().sign(&identity(), &zone()).expect("within bounds");
    let other = Identity::from_seed(&[2; 32]).public_key();
    let stolen = InstanceRecords { node: other, ..records(&signed) };
    assert_eq!(stolen.verify(&zone(), now()), Err(AdvertError::OtherNode));
    let foreign: Zone = "other.example".parse().expect("a zone");
    let read = records(&signed).verify(&foreign, now());
    assert_eq!(read, Err(AdvertError::Signature));
    // The same labels, cut elsewhere.
    let glued: Zone = "meshexample".parse().expect("a zone");
    assert!(records(&signed).verify(&glued, now()).is_err());
}

#[test]
fn nobody_signs_for_another_node() {
    let advert = Advert { node: Identity::from_seed(&[2; 32]).public_key(), ..full() };
    assert_eq!(advert.sign(&identity(), &zone()).err(), Some(AdvertError::OtherNode));
}

#[test]
fn a_lease_ends_at_a_whole_second_for_all() {
    let advert = Advert { expires: now() + Duration::from_millis(1500), ..full() };
    let signed = advert.sign(&identity(), &zone()).expect("within bounds");
    assert_eq!(signed.advert().expires, now() + Duration::from_secs(1));
    assert_eq!(SignedAdvert::verify(&zone(), signed.txt(), now()), Ok(signed));
}

#[test]
fn srv_and_addresses_are_those_that_were_signed() {
    let signed = full().sign(&identity(), &zone()).expect("within bounds");
    let good = records(&signed).endpoint.expect("an endpoint");
    let addresses = good.addresses().to_vec();
    let fewer = addresses[1..].to_vec();
    let mut more = addresses.clone();
    more.push([203, 0, 113, 99].into());
    for endpoint in [
        None,
        Some(Endpoint::new(good.port() + 1, addresses.clone())),
        Some(Endpoint::new(good.port(), fewer)),
        Some(Endpoint::new(good.port(), more)),
    ] {
        let changed = InstanceRecords { endpoint, ..records(&signed) };
        assert_eq!(changed.verify(&zone(), now()), Err(AdvertError::Endpoint));
    }
    // In whatever order they came.
    let reversed = addresses.into_iter().rev().collect();
    let endpoint = Some(Endpoint::new(good.port(), reversed));
    let same = InstanceRecords { endpoint, ..records(&signed) };
    assert!(same.verify(&zone(), now()).is_ok());
}

#[test]
fn the_endpoint_is_made_of_the_public_candidates() {
    use CandidateKind::{Host, Mapped, Relayed, ServerReflexive};
    let endpoint = |candidates: &[(CandidateKind, &str)]| {
        let advert = Advert { candidates: candidates.iter().map(candidate).collect(), ..full() };
        advert.endpoint().map(|endpoint| {
            endpoint.socket_addrs().map(|addr| addr.to_string()).collect::<Vec<_>>()
        })
    };
    assert_eq!(endpoint(&[]), None);
    let lan = (Host, "192.168.1.2:51820");
    assert_eq!(endpoint(&[lan]), Some(vec!["192.168.1.2:51820".to_owned()]));
    let found = endpoint(&[
        lan,
        (Relayed, "203.0.113.1:50000"),
        (ServerReflexive, "198.51.100.7:40000"),
        (Host, "[2001:db8::7]:40000"),
        (Host, "[fd00::7]:40000"),
        (Mapped, "198.51.100.7:41000"),
    ]);
    let expected = ["198.51.100.7:40000", "[2001:db8::7]:40000"].map(str::to_owned);
    assert_eq!(found, Some(expected.to_vec()));
}

#[test]
fn long_lists_are_split_into_strings_that_dns_can_carry() {
    let routes: Vec<IpNet> = (0..MAX_ROUTES as u16)
        .map(|number| format!("2001:db8:{number:x}:ffff::/64").parse().expect("a prefix"))
        .collect();
    let advert = Advert { routes, candidates: Vec::new(), ..full() };
    let signed = advert.sign(&identity(), &zone()).expect("within bounds");
    assert!(signed.txt().iter().all(|string| string.len() <= 255));
    assert!(signed.txt().iter().any(|string| string.starts_with(b"allowed1=")));
    let read = SignedAdvert::verify(&zone(), signed.txt(), now()).expect("just signed");
    assert_eq!(read.advert().routes, advert.routes);
}

#[test]
fn what_is_out_of_bounds_is_not_signed() {
    let too_many = |advert: Advert| advert.sign(&identity(), &zone()).err();
    let candidate = full().candidates[0];
    let candidates = vec![candidate; MAX_CANDIDATES + 1];
    assert!(too_many(Advert { candidates, ..full() }).is_some());
    let routes = vec![full().routes[0]; MAX_ROUTES + 1];
    assert!(too_many(Advert { routes, ..full() }).is_some());
    let with_host_bits: IpNet = "10.42.1.7/24".parse().expect("a prefix");
    let error = too_many(Advert { routes: vec![with_host_bits], ..full() });
    assert_eq!(error, Some(AdvertError::Value("allowed")));
    for name in [String::new(), "x".repeat(64), "line\nbreak".to_owned()] {
        assert_eq!(too_many(Advert { name, ..full() }), Some(AdvertError::Value("name")));
    }
    for addr in
        ["127.0.0.1:51820", "0.0.0.0:51820", "224.0.0.1:51820", "198.51.100.7:0", "[fe80::1]:1"]
    {
        let addr = addr.parse().expect("an address");
        let candidates = vec![Candidate { kind: CandidateKind::Host, addr }];
        let error = too_many(Advert { candidates, ..full() });
        assert_eq!(error, Some(AdvertError::Value("cand")), "{addr}");
    }
    let expires = UNIX_EPOCH - Duration::from_secs(1);
    assert!(too_many(Advert { expires, ..full() }).is_some());
}

#[test]
fn what_others_sign_out_of_bounds_is_not_read() {
    // Signed by hand, as a node would that does not care for the bounds.
    let base = ["txtvers=1".to_owned(), format!("pub={}", identity().public_key())];
    let rest = ["seq=1".to_owned(), format!("exp={}", seconds(now()))];
    for (string, error) in [
        ("name=", AdvertError::Value("name")),
        ("name=a\u{7}", AdvertError::Value("name")),
        ("name=a,cand=h:127.0.0.1:1", AdvertError::Value("cand")),
        ("name=a,cand=h:198.51.100.7:0", AdvertError::Value("cand")),
        ("name=a,cand=h:[::ffff:198.51.100.7]:1", AdvertError::Value("cand")),
        ("name=a,cand=x:198.51.100.7:1", AdvertError::Value("cand")),
        ("name=a,allowed=10.42.1.7/24", AdvertError::Value("allowed")),
        ("name=a,NAME=b", AdvertError::Twice),
        ("name=a,ip=nonsense", AdvertError::Value("ip")),
    ] {
        let strings = string.split(',').map(str::to_owned);
        let txt = base.iter().cloned().chain(strings).chain(rest.iter().cloned());
        let txt = sign_by_hand(txt.map(String::into_bytes).collect());
        assert_eq!(SignedAdvert::verify(&zone(), &txt, now()), Err(error), "{string}");
    }
    let mut txt: Vec<Vec<u8>> = vec![b"txtvers=1".to_vec()];
    txt.extend((0..9).map(|number| format!("x{number}={}", "y".repeat(100)).into_bytes()));
    let error = SignedAdvert::verify(&zone(), &sign_by_hand(txt), now());
    assert_eq!(error, Err(AdvertError::TooLarge));
}

#[test]
fn keys_of_a_later_version_are_covered_unseen() {
    let signed = full().sign(&identity(), &zone()).expect("within bounds");
    let mut txt = signed.txt().to_vec();
    txt.pop();
    txt.push(b"later=1".to_vec());
    let txt = sign_by_hand(txt);
    let read = SignedAdvert::verify(&zone(), &txt, now()).expect("a later version's");
    assert_eq!(read.advert(), &full());
    // But another version of the form as a whole is not read.
    let mut txt = signed.txt().to_vec();
    txt.pop();
    txt[0] = b"txtvers=2".to_vec();
    let read = SignedAdvert::verify(&zone(), &sign_by_hand(txt), now());
    assert_eq!(read, Err(AdvertError::Version));
}

#[test]
fn records_in_wgsds_form_are_bare_entries() {
    let node = identity().public_key();
    let endpoint = Endpoint::new(51820, vec![[198, 51, 100, 7].into()]);
    let txt = |strings: &[String]| strings.iter().map(|s| s.clone().into_bytes()).collect();
    let records = |strings: &[String]| InstanceRecords {
        node,
        txt: txt(strings),
        endpoint: Some(endpoint.clone()),
    };
    let full = ["txtvers=1".to_owned(), format!("pub={node}"), "allowed=10.99.0.7/32".to_owned()];
    let Ok(Entry::Bare(bare)) = records(&full).verify(&zone(), now()) else { panic!("bare") };
    assert_eq!((bare.node, &bare.endpoint), (node, &endpoint));
    assert_eq!(bare.routes, ["10.99.0.7/32".parse().expect("a prefix")]);
    // Older servers have no TXT.
    let Ok(Entry::Bare(bare)) = records(&[]).verify(&zone(), now()) else { panic!("bare") };
    assert_eq!(bare.routes, []);

    let other = Identity::from_seed(&[2; 32]).public_key();
    let of_other = ["txtvers=1".to_owned(), format!("pub={other}")];
    assert_eq!(records(&of_other).verify(&zone(), now()), Err(AdvertError::OtherNode));
    let without = InstanceRecords { endpoint: None, ..records(&full) };
    assert!(matches!(without.verify(&zone(), now()), Err(AdvertError::Missing(_))));
}

#[test]
fn what_nobody_signed_is_bounded_and_leads_nowhere_else() {
    let node = identity().public_key();
    let records = |allowed: &str, port, addresses: &[[u8; 4]]| InstanceRecords {
        node,
        txt: ["txtvers=1", &format!("pub={node}"), allowed].map(|s| s.as_bytes().to_vec()).into(),
        endpoint: Some(Endpoint::new(port, addresses.iter().map(|a| (*a).into()).collect())),
    };
    let mixed = records("allowed=10.99.0.7/24", 51820, &[[127, 0, 0, 1], [198, 51, 100, 7]]);
    let Ok(Entry::Bare(bare)) = mixed.verify(&zone(), now()) else { panic!("bare") };
    assert_eq!(bare.routes, ["10.99.0.0/24".parse().expect("a prefix")]);
    assert_eq!(bare.endpoint.addresses(), [std::net::IpAddr::from([198, 51, 100, 7])]);
    for useless in [
        records("allowed=", 51820, &[[127, 0, 0, 1], [224, 0, 0, 1], [255; 4]]),
        records("allowed=", 0, &[[198, 51, 100, 7]]),
    ] {
        assert!(matches!(useless.verify(&zone(), now()), Err(AdvertError::Missing(_))));
    }
    // One name may have many TXT records of 64 KB each: to compare all keys takes hours.
    let mut many = records("allowed=", 51820, &[[198, 51, 100, 7]]);
    many.txt.extend((0..1_000_000u32).map(|n| format!("{n:x}=").into_bytes()));
    assert_eq!(many.verify(&zone(), now()), Err(AdvertError::TooLarge));
}

#[test]
fn the_answer_for_one_node_fits_a_packet() {
    let candidates = [
        "198.51.100.207:51820",
        "[2001:db8:ffff:ffff:ffff:ffff:ffff:ff01]:51820",
        "[2001:db8:ffff:ffff:ffff:ffff:ffff:ff02]:51820",
        "203.0.113.207:51820",
        "192.168.178.207:51820",
        "[fd00:ffff:ffff:ffff:ffff:ffff:ffff:ff03]:51820",
        "172.16.178.207:51820",
        "10.255.178.207:51820",
    ];
    let candidates = candidates.map(|addr| candidate(&(CandidateKind::Host, addr))).to_vec();
    let routes = ["10.42.101.0/24", "10.143.100.0/24"];
    let advert = Advert {
        name: "branch-office-rack-12-node-3".to_owned(),
        candidates,
        routes: routes.map(|route| route.parse().expect("a prefix")).to_vec(),
        sequence: u64::from(u32::MAX),
        ..full()
    };
    let signed = advert.sign(&identity(), &zone()).expect("within bounds");
    let node = identity().public_key();
    let (instance, host) = (zone().instance(&node), zone().host(&node));
    let mut message = Message::new(1, MessageType::Response, OpCode::Query);
    message.add_query(Query::query(instance.clone(), RecordType::ANY));
    let endpoint = advert.endpoint().expect("candidates");
    let srv = SRV::new(0, 0, endpoint.port(), host.clone());
    let txt = TXT::from_bytes(signed.txt().iter().map(Vec::as_slice).collect());
    message.add_answer(Record::from_rdata(instance.clone(), 30, RData::SRV(srv)));
    message.add_answer(Record::from_rdata(instance, 30, RData::TXT(txt)));
    for address in endpoint.addresses() {
        message.add_additional(Record::from_rdata(host.clone(), 30, RData::from(*address)));
    }
    let wire = message.to_vec().expect("it can be encoded");
    // Beside it: an OPT record (11 bytes) and a TSIG (some 110 with a key's name).
    assert!(wire.len() + 11 + 110 <= 1232, "{} bytes", wire.len());
}

#[test]
fn an_advert_that_would_not_fit_is_not_signed() {
    let routes = (0..MAX_ROUTES as u16)
        .map(|number| format!("2001:db8:{number:x}:ffff:ffff:ffff:ffff:0/112"))
        .map(|route| route.parse().expect("a prefix"))
        .collect();
    let advert = Advert { routes, name: "x".repeat(63), ..full() };
    assert_eq!(advert.sign(&identity(), &zone()).err(), Some(AdvertError::TooLarge));
}

#[test]
fn a_zones_name_is_checked() {
    for bad in ["", ".", "a..b", &"x".repeat(64), &["abcdefghi"; 20].join(".")] {
        assert!(bad.parse::<Zone>().is_err(), "{bad}");
    }
    let node = identity().public_key();
    let longest = [&*"a".repeat(60), &"b".repeat(60), &"c".repeat(58)].join(".");
    let zone: Zone = longest.parse().expect("just short enough");
    assert_eq!(zone.instance_key(&zone.instance(&node)), Some(node));
    assert_eq!(zone.instance_key(&zone.host(&node)), None);
    let unpadded = zone.service().prepend_label(node.to_base32()).expect("a name");
    assert_eq!(zone.instance_key(&unpadded), None, "two names for one node");
    assert_eq!(zone.instance_key(&zone.instance(&node).to_lowercase()), Some(node));
    assert_eq!(zone.instance_key(&zone.service()), None);
}

proptest! {
    #[test]
    fn no_strings_make_it_panic_and_none_verify(
        strings in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..255), 0..8),
    ) {
        prop_assert!(SignedAdvert::verify(&zone(), &strings, now()).is_err());
        let node = identity().public_key();
        let _ = InstanceRecords { node, txt: strings, endpoint: None }.verify(&zone(), now());
    }

    #[test]
    fn no_values_make_it_panic_even_when_signed(
        values in prop::collection::vec((
            "(name|allowed|ip|cand|seq|exp|cand1|[a-z]{0,4})",
            "[0-9a-f:./,\\[\\]hsmr%-]{0,60}|\\PC{0,20}",
        ), 0..8),
    ) {
        let base = ["txtvers=1".to_owned(), format!("pub={}", identity().public_key())];
        let values = values.into_iter().map(|(key, value)| format!("{key}={value}"));
        let txt = base.into_iter().chain(values).map(String::into_bytes).collect();
        let _ = SignedAdvert::verify(&zone(), &sign_by_hand(txt), now());
    }
}

fn zone() -> Zone {
    "mesh.example".parse().expect("a zone")
}

fn identity() -> Identity {
    Identity::from_seed(&[1; 32])
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

fn candidate((kind, addr): &(CandidateKind, &str)) -> Candidate {
    Candidate { kind: *kind, addr: addr.parse().expect("an address") }
}

fn full() -> Advert {
    let candidates = [
        (CandidateKind::ServerReflexive, "198.51.100.7:51820"),
        (CandidateKind::Host, "[2001:db8::7]:51820"),
        (CandidateKind::Host, "192.168.1.2:51820"),
    ];
    Advert {
        node: identity().public_key(),
        name: "lab-pi-1".to_owned(),
        addresses: vec!["10.42.1.1".parse().expect("an address")],
        routes: vec!["10.42.1.0/24".parse().expect("a prefix")],
        candidates: candidates.iter().map(candidate).collect(),
        certificate: None,
        sequence: 7,
        expires: now() + Duration::from_secs(3600),
    }
}

/// The records as a zone with nothing else in it gives them back.
fn records(signed: &SignedAdvert) -> InstanceRecords {
    let advert = signed.advert();
    let (node, endpoint) = (advert.node, advert.endpoint());
    InstanceRecords { node, txt: signed.txt().to_vec(), endpoint }
}

/// The signature by its description: context, then each label of the zone, an empty
/// one, and each string, with their lengths in 32 bits before them.
fn sign_by_hand(mut txt: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut message = b"zonemesh advert v1\0".to_vec();
    let labels: [&[u8]; 3] = [b"mesh", b"example", b""];
    for part in labels.into_iter().chain(txt.iter().map(Vec::as_slice)) {
        message.extend(u32::try_from(part.len()).expect("short").to_be_bytes());
        message.extend(part);
    }
    let signature = data_encoding::BASE64.encode(&identity().sign(&message));
    txt.push(format!("sig={signature}").into_bytes());
    txt
}
