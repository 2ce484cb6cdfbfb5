//! Sealed zones on the servers that people run: members read all, and whoever has the
//! whole zone but not the seal learns nothing of any node.

use std::{
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};

use data_encoding::{BASE32_NOPAD, BASE64, HEXLOWER, HEXUPPER};
use zonemesh::lab::zone_server::ZoneServerKind;
use zonemesh_discovery::{
    advert::{Advert, Entry, SignedAdvert},
    identity::Identity,
    membership::{NetworkKey, RevocationList, Secret},
    sealed::Seal,
    zone::{
        Browser, ZoneClient,
        slice::{Claimed, SignedClaim, SliceClaim},
    },
};

use crate::zone::{Server, ZONE, until_news, zone};

#[tokio::test]
async fn on_bind() {
    members_read_all_and_others_nothing(ZoneServerKind::Bind).await;
}

#[tokio::test]
async fn on_knot() {
    members_read_all_and_others_nothing(ZoneServerKind::Knot).await;
}

async fn members_read_all_and_others_nothing(kind: ZoneServerKind) {
    let server = Server::start(kind, Some(true));
    let member = sealed(&server, 1);
    let mut browser = Browser::new(member.clone());
    let network = NetworkKey::from_seed(&[1; 32]);
    let nodes: Vec<Identity> = (1..=3).map(|seed| Identity::from_seed(&[seed; 32])).collect();
    for node in &nodes {
        member.publish(&advert(node, 1)).await.expect("the server takes it");
        member.announce(&node.public_key()).await.expect("there is nothing to do");
    }
    let claims: Vec<SignedClaim> = nodes.iter().map(|node| claim(node, 1)).collect();
    for claim in &claims {
        let slice = &claim.claim().slice;
        assert_eq!(member.look_at_slice(slice).await, Ok(vec![]));
        assert_eq!(member.claim_slice(claim, &vec![]).await, Ok(Claimed::Done));
        assert_eq!(member.claim_slice(claim, &vec![]).await, Ok(Claimed::Raced), "one winner");
        assert_eq!(member.look_at_slice(slice).await, Ok(vec![claim.txt().to_vec()]));
    }
    let revoked = [(&nodes[2].public_key()).into()];
    let list = RevocationList::sign(&network, 1, revoked).expect("one entry");
    member.publish_revocations(&list).await.expect("the server takes it");
    assert_eq!(member.revocations(&network.id()).await, Ok(Some(list.clone())));

    let view = until_news(&mut browser).await;
    assert_eq!(view.revocations, [list.txt()]);
    assert_eq!(view.instances.len(), nodes.len());
    for (node, records) in
        nodes.iter().zip(nodes.iter().map(|node| &view.instances[&node.public_key()]))
    {
        let entry = records.verify(&zone(), SystemTime::now()).expect("as it was published");
        assert!(matches!(&entry, Entry::Signed(signed) if signed.advert().name == name(node)));
    }
    let seen = view.claims.expect("the whole zone was read");
    assert_eq!(seen.len(), claims.len());
    for claim in &claims {
        assert_eq!(seen[&claim.claim().slice], [claim.txt().to_vec()]);
    }

    // By IXFR, and renewed by one who has seen what stands there.
    let renewed = claim(&nodes[0], 2);
    let slice = &renewed.claim().slice;
    let stands = member.look_at_slice(slice).await.expect("it is there");
    assert_eq!(member.claim_slice(&renewed, &stands).await, Ok(Claimed::Done));
    assert_eq!(member.claim_slice(&renewed, &stands).await, Ok(Claimed::Raced));
    member.publish(&advert(&nodes[0], 2)).await.expect("the server takes it");
    member.withdraw(&nodes[1].public_key()).await.expect("the server takes it");
    let view = until_news(&mut browser).await;
    assert_eq!(view.instances.len(), 2);
    let records = &view.instances[&nodes[0].public_key()];
    let Ok(Entry::Signed(signed)) = records.verify(&zone(), SystemTime::now()) else {
        panic!("the newer advert")
    };
    assert_eq!(signed.advert().sequence, 2);
    let found = browser.find(&nodes[2].public_key()).await.expect("the server answers");
    assert!(found.is_some_and(|records| records.verify(&zone(), SystemTime::now()).is_ok()));

    // One with another seal reads the same records, and one without any.
    for stranger in [sealed(&server, 2), server.client()] {
        let view = Browser::new(stranger).poll().await.expect("the server answers");
        let view = view.expect("the first look");
        assert!(view.instances.is_empty() && view.revocations.is_empty());
        assert!(view.claims.expect("the whole zone was read").is_empty());
    }
    let (types, dump) = dump(&server);
    let count = |kind: &str| types.iter().filter(|known| *known == kind).count();
    assert_eq!(count("TXT"), 2 + 3 + 1, "adverts, claims, the list");
    assert_eq!(count("SRV") + count("PTR") + count("AAAA"), 0);
    for node in &nodes {
        let key = node.public_key();
        let bytes = key.as_bytes();
        let slice = claim(node, 1).claim().slice;
        for secret in [
            bytes.to_vec(),
            BASE64.encode(bytes).into_bytes(),
            BASE32_NOPAD.encode(bytes).to_ascii_lowercase().into_bytes(),
            BASE32_NOPAD.encode(bytes).into_bytes(),
            HEXLOWER.encode(bytes).into_bytes(),
            HEXUPPER.encode(bytes).into_bytes(),
            name(node).into_bytes(),
            slice.to_string().into_bytes(),
            slice.network().to_string().replace('.', "-").into_bytes(),
        ] {
            assert!(!holds(&dump, &secret), "{}", String::from_utf8_lossy(&secret));
        }
    }
    for secret in ["198.51.100.", "10.42.", "_wireguard", "_slice", "_revoked", "txtvers", "pub="] {
        assert!(!holds(&dump, secret.as_bytes()), "{secret}");
    }

    // An open zone tells all of that: the dump is read as it should be.
    let open = Identity::from_seed(&[4; 32]);
    server.client().publish(&advert(&open, 1)).await.expect("the server takes it");
    let (types, dump) = self::dump(&server);
    assert!(types.contains(&"SRV".to_owned()));
    let base64 = format!("pub={}", open.public_key());
    for told in [name(&open), base64, open.public_key().to_base32(), "10.42.4.0/24".to_owned()] {
        assert!(holds(&dump, told.as_bytes()), "{told}");
    }
}

fn holds(dump: &[u8], secret: &[u8]) -> bool {
    dump.windows(secret.len()).any(|window| window == secret)
}

/// The whole zone as `dig` shows it: the types of its records, and all of its text with
/// what is written as `\DDD` put back to bytes.
fn dump(server: &Server) -> (Vec<String>, Vec<u8>) {
    let address = server.server.address();
    let output = Command::new("dig")
        .args([&format!("@{}", address.ip()), "-p", &address.port().to_string()])
        .args(["-y", &server.key().join(":"), "+noall", "+answer", "+onesoa", ZONE, "AXFR"])
        .output()
        .expect("dig");
    let text = String::from_utf8(output.stdout).expect("ASCII");
    assert!(text.contains("SOA"), "{text}");
    let types = text.lines().filter_map(|line| line.split_ascii_whitespace().nth(3));
    let types = types.map(str::to_owned).collect();
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let number = after.get(..3).and_then(|digits| str::from_utf8(digits).ok()?.parse().ok());
        rest = match (first, number) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                &after[3..]
            }
            (b'\\', None) => after,
            _ => {
                bytes.push(*first);
                after
            }
        };
    }
    (types, bytes)
}

fn sealed(server: &Server, secret: u8) -> ZoneClient {
    let seal = Seal::new(&Secret::new(vec![secret; 32]));
    server.client().sealed(Some(Arc::new(seal)))
}

fn name(node: &Identity) -> String {
    format!("secret-lab-{}", &node.public_key().to_base32()[..4])
}

fn advert(node: &Identity, sequence: u64) -> SignedAdvert {
    let last = node.seed()[0];
    let candidates = [format!("s:198.51.100.{last}:51820"), format!("h:192.168.1.{last}:51820")];
    let advert = Advert {
        node: node.public_key(),
        name: name(node),
        addresses: vec![format!("10.42.{last}.1").parse().expect("an address")],
        routes: vec![format!("10.42.{last}.0/24").parse().expect("a prefix")],
        candidates: candidates.map(|text| text.parse().expect("a candidate")).to_vec(),
        certificate: Some(vec![7; 300]),
        sequence,
        expires: SystemTime::now() + Duration::from_secs(3600),
    };
    advert.sign(node, &zone()).expect("it can be signed")
}

fn claim(node: &Identity, sequence: u64) -> SignedClaim {
    let claim = SliceClaim {
        node: node.public_key(),
        slice: format!("10.42.{}.0/24", node.seed()[0]).parse().expect("a prefix"),
        sequence,
        expires: SystemTime::now() + Duration::from_secs(3600),
        certificate: None,
    };
    claim.sign(node, &zone()).expect("it can be signed")
}
